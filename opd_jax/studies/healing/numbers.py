"""Everything that a study of healing has measured, as one JSON object; measured.json beside this file holds those behind docs/healing.md.

python -m opd_jax.studies.healing.numbers OUT > measured.json
"""

import json
import sys
from typing import Any

import numpy as np

from opd_jax.config import expanded_path
from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.healing.arms import LABELS
from opd_jax.studies.results import Missing, Results


def collect(results: Results) -> dict[str, dict[str, Any]]:
  """List what was measured by arm and seed, see measures.py; with the "flops" and "generated_tokens" up to each checkpoint."""
  found: dict[str, dict[str, Any]] = {}
  for arm in (UNTRAINED, *LABELS):
    try:
      records = results.analysis(f"asked-{arm}")
    except Missing:
      continue
    done = records if arm == UNTRAINED else results.seeds(arm)
    found[arm] = {
      str(seed): _short(
        {key: value for key, value in records[seed].items() if key != "of"} | _spent(results, arm, seed)
      )
      for seed in records
      if seed in done
    }
  return found


def _spent(results: Results, arm: str, seed: int) -> dict[str, Any]:
  if arm == UNTRAINED:
    return {}
  steps = [each["step"] for each in results.analysis(f"asked-{arm}")[seed]["steps"]]
  train = results.runs(arm)[seed].train
  tokens = np.interp(steps, [r["step"] for r in train], [r["tokens"] for r in train])
  return {"flops": results.flops_at(arm, seed, steps).tolist(), "generated_tokens": [round(n) for n in tokens]}


def _short(value: Any) -> Any:
  """Round every float in it to four digits."""
  if isinstance(value, dict):
    return {key: _short(each) for key, each in value.items()}
  if isinstance(value, list):
    return [_short(each) for each in value]
  return float(f"{value:.4g}") if isinstance(value, float) else value


def text(found: dict[str, dict[str, Any]]) -> str:
  """Write it as JSON, a run a line."""
  runs = {
    arm: ",\n".join(f"  {json.dumps(seed)}: {json.dumps(run)}" for seed, run in of.items()) for arm, of in found.items()
  }
  return "{\n" + ",\n".join(f" {json.dumps(arm)}: {{\n{lines}\n }}" for arm, lines in runs.items()) + "\n}\n"


if __name__ == "__main__":
  if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit("usage: python -m opd_jax.studies.healing.numbers OUT")
  out = expanded_path(sys.argv[1])
  seeds = sorted({int(path.stem.removeprefix("seed")) for path in out.glob("analysis/*/seed*.json")})
  sys.stdout.write(text(collect(Results(out, seeds))))

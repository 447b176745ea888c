"""Workdirs of runs that learn from a verifier's reward, written by hand: their numbers can be checked on paper."""

import json
from typing import Any

from tests.helpers.report_runs import workdir

TEACHERLESS: dict[str, Any] = {"teacher": "", "mixture": {"reward": 1.0, "divergence": 0.0}}


def reward_workdir(path, steps=20, *, n=4, groups=8, best=0.9, beyond=0.1, config=None, **options):
  """Write a run without a teacher whose reward rises by equal amounts from 0 to `best`, in so many steps.

  At the reward r, r of the groups are solved in all rollouts, and the others in one.
  """
  config = {"steps": steps} | TEACHERLESS | {"surrogate": {"kind": "drpo"}} | (config or {})
  workdir(path, [0.0, best / 2, best], every=steps // 2, config=config, **options)
  records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  for record in records:
    if record["kind"] == "train":
      del record["by_position"]["kl"]
      record |= reward_metrics(record["step"] / steps * best, n=n, groups=groups, beyond=beyond)
  (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  return path


def reward_metrics(reward: float, *, n: int = 4, groups: int = 8, beyond: float = 0.1) -> dict[str, Any]:
  """Make up what a step's record has of a reward."""
  solved = round(reward * groups)
  return {
    "reward": reward,
    "groups_by_solve_rate": [0, groups - solved, *[0] * (n - 2), solved],
    "teaching_groups": 1 - solved / groups,
    "resampled": 3,
    "verifier_timeouts": 1,
    "student_entropy": 2 - reward,
    "initial_kl": reward / 10,
    "moved": beyond / 5,
    "moved_by_mu": [beyond * (i + 1) / 50 if i < 9 else None for i in range(10)],
    "beyond": beyond,
    "ratio": 1.0 + beyond / 100,
    "ratio_max": 1.0 + 20 * beyond,
    "gradient_weight": 1 - beyond,
    "gradient_weight_min": -beyond,
    "gradient_weight_max": 1 + beyond,
    "rare": 0.02,
    "logprob_gap": 0.003,
  }

"""Workdirs and analyses as a study would leave them, made in no time and without a model.

Accuracy rises as 1 - exp(-step / slowness) from `START` to the arm's own level, with noise by seed and by evaluation.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

from opd_jax import config as configs
from opd_jax.horizon import schedule as horizons
from opd_jax.studies.horizon import arms as horizon
from opd_jax.studies.horizon import measures
from opd_jax.studies.results import Results

LONGEST, BINS, BATCH, PROMPT = 128, 16, 32, 16
START = 0.28
SEEDS = range(5)

TRUNCATED = {f"topd{r:g}": r for r in (0.05, 0.1, 0.25, 0.5)}
TENTHS = [f"tenth{i}" for i in range(10)]
RATES, HORIZONS = (1e-4, 3e-4, 3e-3), (13, 32, 128)
DISCOUNTS, TEACHERS = (0.0, 0.5, 0.9, 0.97, 1.0), ("good", "biased")
ADAPTIVE = ("drift", "saturation", "look")
SHARES = (0, 0.025, 0.05, 0.1, 0.25, 0.5)


def workdir(
  path: pathlib.Path,
  seed: int,
  accuracy: Callable[[int], float],
  limit: Callable[[int], int] = lambda _: LONGEST,
  *,
  steps: int = 60,
  every: int = 5,
  log_every: int = 1,
  done: int | None = None,
  noise: float = 0.012,
  config: dict[str, Any] | None = None,
  metrics: dict[str, float] | None = None,
  **horizon,
) -> pathlib.Path:
  """Write one run.

  Args:
    metrics: more numbers of every training record.
    accuracy, limit: by step.
    log_every: steps between training records; divides `every`.
    done: the steps that were made before it was cut short; None: all.
    noise: of an evaluation's accuracy, the first excepted.
  """
  path.mkdir(parents=True)
  rng = np.random.default_rng([seed, sum(str(path.parent.name).encode())])
  saved = {
    "seed": seed,
    "steps": steps,
    "batch": BATCH,
    "rollouts_per_prompt": 1,
    "updates_per_rollout": 1,
    "student": "builtin:student",
    "teacher": "builtin:teacher",
    "horizon.max": LONGEST,
    "horizon.kind": "full",
    "horizon.ratio": 0.0,
    "horizon.length": 0,
    "horizon.probes": 8,
    "optimizer.lr": 1e-3,
    "objective.discount": 0.0,
    "mixture.initial": 0.0,
    "eval.every": every,
  }
  saved |= (config or {}) | {f"horizon.{k}": v for k, v in horizon.items()}
  edges = np.arange(BINS + 1) * LONGEST // BINS
  elapsed = tokens = 0.0
  records = []
  for step in range((steps if done is None else done) + 1):
    if step and step % log_every == 0:
      cap = limit(step - 1)
      length = np.minimum(rng.integers(50, LONGEST + 1, BATCH), cap)
      count = np.clip(length[:, None] - edges[:-1], 0, np.diff(edges)).sum(0)
      step_tokens = int(length.sum())
      elapsed += log_every * (0.15 + 0.006 * cap) * (1 + 0.05 * rng.random())
      tokens += log_every * step_tokens
      records.append(
        {"kind": "train", "step": step, "tokens": int(tokens), "elapsed": elapsed, "limit": cap, "width": cap}
        | {"step_tokens": step_tokens, "trained": step_tokens, "seconds": {"rollout": 0.1}, "skipped": 0}
        | {"by_position": {"edges": edges.tolist(), "count": count.tolist()}}
        | (metrics or {})
      )
    if step % every == 0:
      a = float(np.clip(accuracy(step) + (noise * rng.normal() if step else 0), 0, 1))
      at = {"step": step, "tokens": int(tokens), "elapsed": elapsed, "accuracy": a}
      bounds = {"low": a - 0.03, "high": a + 0.03}
      records.append({"kind": "eval"} | at | bounds | {"greedy": {"accuracy": min(1.0, a + 0.02)} | bounds})
  (path / "config.json").write_text(json.dumps(saved))
  program = {"name": "rollout", "prompt": PROMPT, "width": LONGEST, "seconds": 0.0}
  (path / "run.json").write_text(json.dumps({"programs": [program]}))
  (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  return path


def finished_opd(out: pathlib.Path, seed: int) -> horizon.ArmSpec:
  """Write a finished run of the arm OPD with its config and an empty checkpoint; return the arm."""
  (spec,) = (spec for spec in horizon.ARMS if spec.name == "opd")
  path = workdir(out / "runs" / "opd" / f"seed{seed}", seed, lambda step: 0.5, every=10)
  (path / "config.json").write_text(configs.to_json(spec.config(seed)))
  (path / "checkpoints" / "60").mkdir(parents=True)
  return spec


def rising(level: float, slowness: float = 12.0, collapse: float = 0.0) -> Callable[[int], Callable[[int], float]]:
  """Make a function from a seed to accuracies by step; `collapse` is lost again from a third of the way on."""

  def of_seed(seed: int) -> Callable[[int], float]:
    own = level + 0.015 * np.random.default_rng(seed).normal()

    def at_step(step: int) -> float:
      risen = START + (own - START) * (1 - np.exp(-step / slowness))
      return risen - collapse * max(0, step - 20) / 40

    return at_step

  return of_seed


def arm(
  out: pathlib.Path,
  name: str,
  accuracy: Callable[[int], Callable[[int], float]],
  limit: Callable[[int, int], int] | int = LONGEST,
  seeds: Iterable[int] = SEEDS,
  **options: Any,
) -> None:
  """Write the runs of every seed.

  Args:
    accuracy: by seed, then by step.
    limit: the horizon by seed and step, or one for all; tokens.
    options: of `workdir`.
  """
  for seed in seeds:
    own = functools.partial(limit, seed) if callable(limit) else functools.partial(_constant, limit)
    workdir(out / "runs" / name / f"seed{seed}", seed, accuracy(seed), own, **options)


def _constant(value: int, _: int) -> int:
  return value


def study(out: pathlib.Path, seeds: Iterable[int], steps: int) -> pathlib.Path:
  """Write every arm and analysis that the pictures know."""
  make = functools.partial(arm, out, seeds=seeds, steps=steps, log_every=5)
  make("opd", rising(0.93, 14))
  for name, ratio in TRUNCATED.items():
    level = 0.93 - 0.02 / ratio**0.9
    make(name, rising(level, 12), round(ratio * LONGEST), kind="truncated", ratio=ratio)
  make("popd", rising(0.925, 13), lambda _, step: min(LONGEST, 8 + 2 * step), kind="progressive")
  make("geometric", rising(0.93, 13), lambda _, step: min(LONGEST, round(8 * 1.05**step)), kind="geometric")
  for i, name in enumerate(TENTHS):
    make(name, rising(0.9 - 0.07 * i), config={"weights.kind": "segment", "weights.start": i * 13})
  make("random", rising(0.88))
  make("last", rising(0.24))
  for name, level in {"opd": 0.8, "topd0.1": 0.3}.items():
    make(f"phase-{name}", rising(level, 18))
  for i, lr in enumerate(RATES):
    for j, length in enumerate(HORIZONS):
      cell = rising(0.7 + 0.08 * min(i, 2), 25 / (i + 1), collapse=0.2 * max(0, i - 1) * j / 2)
      make(f"drift-{lr:g}-{length}", cell, length, kind="truncated", length=length, config={"optimizer.lr": lr})
  for k, name in enumerate(ADAPTIVE):
    limit = functools.partial(_look if name == "look" else _grow, 14 + 4 * k)
    make(name, rising(0.9 + 0.01 * k, 12 + k), limit, kind=name, log_every=1)
  for teacher in TEACHERS:
    for discount in DISCOUNTS:
      lost = discount**3 * (0.08 if teacher == "good" else 0.5)
      make(f"credit-{teacher}-{discount:g}", rising(0.9 - lost), config={"objective.discount": discount})
  for seed in seeds:
    write(out, "prefix", seed, prefix(seed))
    write(out, "positions", seed, positions(seed))
  return out


def _grow(steps: int, seed: int, step: int) -> int:
  """A horizon that doubles every so many steps, at another time with every seed."""
  return (16, 32, 64, LONGEST)[min(3, (step + 3 * seed) // steps)]


def _look(steps: int, seed: int, step: int) -> int:
  """The horizon of `_grow`, but every tenth step to the end."""
  return LONGEST if step % 10 == 0 else _grow(steps, seed, step)


def write(out: pathlib.Path, name: str, seed: int, record: dict[str, Any]) -> None:
  """Write one seed's record of an analysis."""
  file = out / "analysis" / name / f"seed{seed}.json"
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(record))


def study_of_claims(
  out: pathlib.Path,
  own: dict[str, Callable[[int], Callable[[int], float]]] | None = None,
  arms: Collection[str] | None = None,
) -> Results:
  """Write what the claims of the study of horizons are decided by.

  Args:
    own: accuracies of some arms, as `arm` takes them; the others rise to 0.9.
    arms: only these, and no analysis; None: every arm and every analysis.
  """
  for spec in horizon.ARMS:
    if arms is None or spec.name in arms:
      config = {"steps": horizon.STEPS, "eval.every": horizon.CHAIN["eval.every"]} | spec.changes
      steps, every = config.pop("steps"), config.pop("eval.every")
      limit = functools.partial(_limit, horizons.from_config(spec.config(0).horizon))
      accuracy = (own or {}).get(spec.name, rising(0.9))
      arm(out, spec.name, accuracy, limit, steps=steps, every=every, log_every=every, config=config, noise=0.002)
  for seed in SEEDS if arms is None else ():
    for name, record in analyses(seed).items():
      write(out, name, seed, record)
  return Results(out, SEEDS)


def _limit(schedule: horizons.Horizon, _: int, step: int) -> int:
  """The horizon of a step; of an adaptive one, its first."""
  return min(LONGEST, schedule.limit(step))


def analyses(seed: int) -> dict[str, dict[str, Any]]:
  """The records of studies/horizon/measures.py, in which all that is claimed is so."""
  less = 0.001 * seed

  def reliability(late: float) -> dict[str, list[float]]:
    return {
      **{name: [0.9, 0.9, 0.9, late + less] for name in ("teacher", "student", "overlap")},
      **{name: [0.1, 0.1, 0.1, 1 - late] for name in ("kl", "teacher_entropy", "off_path")},
      "count": [40, 40, 40, 40],
      "decisive": [10, 20, 10, 20],
    }

  def continued(low: float, slope: float) -> dict[str, float]:
    return {f"{share:g}": low + slope * share + less for share in SHARES}

  return {
    "advantage": {"cubic_variance": 0.9 - less, "linear_variance": 0.7, "exponent": 0.8},
    "reliability": {
      "edges": [0, 35, 70, 105, 140],
      "0": reliability(0.6),
      "half": reliability(0.7),
      "last": reliability(0.85),
    },
    "continuation": {
      "untrained": continued(0.3, 0.5),
      "topd-10": continued(0.8, 0.02),
      "opd": continued(0.9, 0.0),
    },
    "untrained": {
      "chain": {"1": START, "0.7": START + 0.1 + less, "0.5": START + 0.08, "0": START + 0.05},
      "phase": {"1": START, "0.7": START + 0.01 + less, "0.5": START, "0": START - 0.01},
    },
    "drift": {name: {"within": 0.1, "beyond": 0.2 + less * len(name)} for name in measures.DRIFTING},
  }


def prefix(seed: int) -> dict[str, Any]:
  """An analysis of continuations: {student: {share: accuracy}}."""
  noise = np.random.default_rng(seed)
  before = {f"{share:g}": START + 0.5 * share + 0.01 * noise.normal() for share in SHARES}
  after = {f"{share:g}": 0.89 + 0.02 * share + 0.01 * noise.normal() for share in SHARES}
  return {"untrained": before, "topd0.1": after}


def positions(seed: int) -> dict[str, Any]:
  """An analysis by position; the last bin is known at no step."""
  noise = np.random.default_rng(seed)
  x = np.arange(BINS) / BINS
  found: dict[str, Any] = {"edges": (np.arange(BINS + 1) * LONGEST // BINS).tolist()}
  for step in (0, 10, 30, 60):
    left = np.exp(-step / 15) * (1 + x)
    metrics = {
      "reliability": 0.97 - 0.15 * left + 0.005 * noise.normal(size=BINS),
      "kl": 0.02 + 0.3 * left + abs(0.01 * noise.normal(size=BINS)),
      "entropy": 0.05 + 0.2 * left + abs(0.01 * noise.normal(size=BINS)),
      "overlap": 0.9 - 0.2 * left + 0.01 * noise.normal(size=BINS),
    }
    found[str(step)] = {name: [*map(float, values[:-1]), None] for name, values in metrics.items()}
  return found

"""Workdirs and analyses as a study would leave them, made in no time and without a model.

Accuracy rises as 1 - exp(-step / slowness) from `START` to the arm's own level, with noise by seed and by evaluation.
"""

import itertools
import json
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from opd_jax import horizon as horizons
from opd_jax.studies.horizon import arms as horizon
from opd_jax.studies.horizon import measures
from opd_jax.studies.results import Results

LONGEST, BINS, BATCH, PROMPT = 128, 16, 32, 16
START = 0.28
SEEDS = range(5)

TRUNCATED = {f"topd{r:g}": r for r in (0.05, 0.1, 0.25, 0.5)}
TENTHS = [f"tenth{i}" for i in range(10)]
RATES, HORIZONS = (1e-4, 3e-4, 1e-3, 3e-3), (13, 32, 64, 128)
DISCOUNTS, TEACHERS = (0.0, 0.5, 0.9, 0.97, 1.0), ("good", "biased")
ADAPTIVE = ("agreement", "drift", "saturation", "look")


def workdir(
  path: pathlib.Path,
  seed: int,
  accuracy: Callable[[int], float],
  limit: Callable[[int], int] = lambda _: LONGEST,
  *,
  steps: int = 60,
  every: int = 5,
  done: int | None = None,
  noise: float = 0.012,
  config: dict[str, Any] | None = None,
  **horizon,
) -> pathlib.Path:
  """One run.

  Args:
    done: the steps that were made before it was cut short; None: all.
    noise: of an evaluation's accuracy, the first excepted.
  """
  path.mkdir(parents=True)
  rng = np.random.default_rng([seed, sum(str(path.parent.name).encode())])
  c = {
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
  c |= (config or {}) | {f"horizon.{k}": v for k, v in horizon.items()}
  edges = np.arange(BINS + 1) * LONGEST // BINS
  elapsed = tokens = 0.0
  records = []
  for step in range((steps if done is None else done) + 1):
    if step:
      cap = limit(step - 1)
      length = np.minimum(rng.integers(50, LONGEST + 1, BATCH), cap)
      count = [int(np.clip(length - lo, 0, hi - lo).sum()) for lo, hi in itertools.pairwise(edges)]
      elapsed += (0.15 + 0.006 * cap) * (1 + 0.05 * rng.random())
      tokens += int(length.sum())
      records.append(
        {"kind": "train", "step": step, "tokens": int(tokens), "elapsed": elapsed, "limit": cap, "width": cap}
        | {"step_tokens": int(length.sum()), "trained": int(length.sum()), "seconds": {"rollout": 0.1}, "skipped": 0}
        | {"by_position": {"edges": edges.tolist(), "count": count}}
      )
    if step % every == 0:
      a = float(np.clip(accuracy(step) + (noise * rng.normal() if step else 0), 0, 1))
      at = {"step": step, "tokens": int(tokens), "elapsed": elapsed, "accuracy": a}
      records.append({"kind": "eval"} | at | {"low": a - 0.03, "high": a + 0.03})
  (path / "config.json").write_text(json.dumps(c))
  program = {"name": "rollout", "prompt": PROMPT, "width": LONGEST, "seconds": 0.0}
  (path / "run.json").write_text(json.dumps({"programs": [program]}))
  (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  return path


def rising(level: float, slowness: float = 12.0, collapse: float = 0.0) -> Callable[[int], Callable[[int], float]]:
  """By seed, accuracy by step; `collapse` is lost again from a third of the way on."""

  def of(seed: int) -> Callable[[int], float]:
    own = level + 0.015 * np.random.default_rng(seed).normal()
    rise = lambda step: START + (own - START) * (1 - np.exp(-step / slowness))
    return lambda step: rise(step) - collapse * max(0, step - 20) / 40

  return of


def arm(out: pathlib.Path, name: str, accuracy, limit=lambda _: LONGEST, seeds=SEEDS, **how) -> None:
  """Runs of every seed; `limit` may take (seed, step) where it is called `chosen`."""
  chosen = how.pop("chosen", None)
  for seed in seeds:
    own = (lambda step, seed=seed: chosen(seed, step)) if chosen else limit
    workdir(out / "runs" / name / f"seed{seed}", seed, accuracy(seed), own, **how)


def study(out: pathlib.Path, **how) -> pathlib.Path:
  """Every arm and analysis that the pictures know."""
  make = lambda name, accuracy, limit=lambda _: LONGEST, **own: arm(out, name, accuracy, limit, **how, **own)
  make("opd", rising(0.93, 14))
  for name, ratio in TRUNCATED.items():
    cap = round(ratio * LONGEST)
    make(name, rising(0.93 - 0.02 / ratio**0.9, 12), lambda _, cap=cap: cap, kind="truncated", ratio=ratio)
  make("popd", rising(0.925, 13), lambda step: min(LONGEST, 8 + 2 * step), kind="progressive")
  make("geometric", rising(0.93, 13), lambda step: min(LONGEST, round(8 * 1.05**step)), kind="geometric")
  for i, name in enumerate(TENTHS):
    make(name, rising(0.9 - 0.07 * i), config={"weights.kind": "segment", "weights.start": i * 13})
  make("random", rising(0.88))
  make("last", rising(0.24))
  for name, level in {"opd": 0.8, "popd": 0.78, "topd0.5": 0.45, "topd0.1": 0.3}.items():
    make(f"phase-{name}", rising(level, 18))
  for i, lr in enumerate(RATES):
    for j, length in enumerate(HORIZONS):
      cell = rising(0.7 + 0.08 * min(i, 2), 25 / (i + 1), collapse=0.2 * max(0, i - 1) * j / 2)
      own = {"kind": "truncated", "length": length, "config": {"optimizer.lr": lr}}
      make(f"drift-{lr:g}-{length}", cell, lambda _, length=length: length, **own)
  widths = (16, 32, 64, 128)
  for k, name in enumerate(ADAPTIVE):
    grow = lambda seed, step, k=k: widths[min(3, (step + 3 * seed) // (14 + 4 * k))]
    look = lambda seed, step, grow=grow: LONGEST if step % 10 == 0 else grow(seed, step)
    make(name, rising(0.9 + 0.01 * k, 12 + k), chosen=look if name == "look" else grow, kind=name)
  for teacher in TEACHERS:
    for discount in DISCOUNTS:
      lost = discount**3 * (0.08 if teacher == "good" else 0.5)
      make(f"credit-{teacher}-{discount:g}", rising(0.9 - lost), config={"objective.discount": discount})
  for seed in how.get("seeds", SEEDS):
    write(out, "prefix", seed, prefix(seed))
    write(out, "positions", seed, positions(seed))
  return out


def write(out: pathlib.Path, name: str, seed: int, found: dict) -> None:
  file = out / "analysis" / name / f"seed{seed}.json"
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(found))


def study_of_claims(
  out: pathlib.Path,
  own: dict[str, Callable[[int], Callable[[int], float]]] | None = None,
  arms: Collection[str] | None = None,
) -> Results:
  """What the claims of the study of horizons are judged by.

  Args:
    own: accuracies of some arms, as `arm` takes them; the others rise to 0.9.
    arms: only these, and no analysis; None: every arm and every analysis.
  """
  for one in horizon.ARMS:
    if arms is None or one.name in arms:
      cap = lambda step, limit=_limit(one): limit(step)
      c = {"steps": horizon.STEPS, "eval.every": horizon.CHAIN["eval.every"]} | one.changes
      how = {"steps": c.pop("steps"), "every": c.pop("eval.every"), "config": c, "noise": 0.002}
      arm(out, one.name, (own or {}).get(one.name, rising(0.9)), cap, **how)
  for seed in SEEDS if arms is None else ():
    for name, found in analyses(seed).items():
      write(out, name, seed, found)
  return Results(out, SEEDS)


def _limit(one: horizon.Arm) -> Callable[[int], int]:
  """Of an adaptive horizon, its first."""
  limit = horizons.from_config(one.config(0).horizon).limit
  return lambda step: min(LONGEST, limit(step))


def analyses(seed: int) -> dict[str, dict[str, Any]]:
  """Those of studies/horizon/measures.py: all that was claimed is so."""
  less = 0.001 * seed
  at = lambda late: {
    **{name: [0.9, 0.9, 0.9, late + less] for name in ("teacher", "student", "overlap")},
    **{name: [0.1, 0.1, 0.1, 1 - late] for name in ("kl", "teacher_entropy", "off_path")},
    "count": [40, 40, 40, 40],
    "decisive": [10, 20, 10, 20],
  }
  shares = ("0", "0.025", "0.05", "0.1", "0.25", "0.5")
  prefixed = lambda low, rise: {share: low + rise * float(share) + less for share in shares}
  return {
    "advantage": {"cubic_variance": 0.9 - less, "linear_variance": 0.7, "exponent": 0.8},
    "reliability": {"edges": [0, 35, 70, 105, 140], "0": at(0.6), "half": at(0.7), "last": at(0.85)},
    "continuation": {"untrained": prefixed(0.3, 0.5), "topd-10": prefixed(0.8, 0.02), "opd": prefixed(0.9, 0.0)},
    "drift": {name: {"within": 0.1, "beyond": 0.2 + less * len(name)} for name in measures.DRIFTING},
  }


def prefix(seed: int) -> dict[str, Any]:
  noise = np.random.default_rng(seed)
  shares = (0, 0.025, 0.05, 0.1, 0.25, 0.5)
  before = {f"{s:g}": START + 0.5 * s + 0.01 * noise.normal() for s in shares}
  after = {f"{s:g}": 0.89 + 0.02 * s + 0.01 * noise.normal() for s in shares}
  return {"untrained": before, "topd0.1": after}


def positions(seed: int) -> dict[str, Any]:
  """The last bin is known at no step."""
  noise = np.random.default_rng(seed)
  x = np.arange(BINS) / BINS
  found: dict[str, Any] = {"edges": (np.arange(BINS + 1) * LONGEST // BINS).tolist()}
  for step in (0, 10, 30, 60):
    left = np.exp(-step / 15) * (1 + x)
    wobble = lambda size: size * noise.normal(size=BINS)
    metrics = {
      "reliability": 0.97 - 0.15 * left + wobble(0.005),
      "kl": 0.02 + 0.3 * left + abs(wobble(0.01)),
      "entropy": 0.05 + 0.2 * left + abs(wobble(0.01)),
      "overlap": 0.9 - 0.2 * left + wobble(0.01),
    }
    found[str(step)] = {name: [*map(float, values[:-1]), None] for name, values in metrics.items()}
  return found

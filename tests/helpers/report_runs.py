"""Workdirs of a report, written by hand: their numbers can be checked on paper."""

import itertools
import json

from opd_jax.data.scored import ScoredResponse

EDGES = [0, 10, 20, 40]


def workdir(
  path, accuracy, *, seconds=1.0, tokens=100, seed=0, every=10, total=None, config=None, info=None, **horizon
):
  """Write a run with an evaluation every `every` steps; each step costs `seconds` and `tokens`, and the first 2 s to compile."""
  path.mkdir(parents=True)
  horizon = {"kind": "full", "max": 40, "length": 0, "ratio": 0.0, "start": 0} | horizon
  steps = every * (len(accuracy) - 1)
  saved = {
    "seed": seed,
    "steps": steps if total is None else total,
    "student": "builtin:student",
    "horizon": horizon,
    "objective": {"kind": "reverse_kl"},
    "optimizer": {"kind": "adamw", "lr": 1e-4},
    "eval": {"every": every},
    "checkpoint": {"every": 50},
  }
  for key, value in (config or {}).items():
    *parents, leaf = key.split(".")
    at = saved
    for parent in parents:
      at = at[parent]
    at[leaf] = value
  limit = {"full": 40, "truncated": horizon["length"] or round(40 * horizon["ratio"]), "progressive": 30}[
    horizon["kind"]
  ]
  count = [max(0, min(limit, hi) - lo) * 4 for lo, hi in itertools.pairwise(EDGES)]
  records = []
  for step in range(steps + 1):
    at = {"step": step, "tokens": tokens * step, "elapsed": seconds * step, "wall": 2 * seconds * step + 3}
    if step:
      parts = {"rollout": 0.5, "verify": 0.125, "update": 0.25, "other": 0.125}
      records.append(
        at
        | {"kind": "train", "limit": limit, "width": 40, "skipped": 0, "peak_memory": 2**20}
        | {"loss": 0.7 / step, "kl": 0.5 / step}
        | {"response_length": 0.9 * limit, "ended": 0.4, "cut": 0.6}
        | {"seconds": {k: v * seconds for k, v in parts.items()} | {"compile": 2.0 if step == 1 else 0.0}}
        | {"by_position": {"edges": EDGES, "count": count, "kl": [0.5 / step if n else None for n in count]}}
      )
    if step % every == 0:
      a = accuracy[step // every]
      value = {"value": a, "low": a - 0.05, "high": a + 0.04}
      records.append(
        at
        | {
          "kind": "eval",
          "accuracy": a,
          "low": a - 0.05,
          "high": a + 0.04,
          "k": 1,
          "seconds": 0.5,
          "pass": {"1": value},
        }
      )
  programs = [{"name": "rollout", "width": 40, "seconds": 1.5}, {"name": "update", "width": 40, "seconds": 2.5}]
  default = {"versions": {"jax": "0.10.0"}, "commit": "0123456789abcdef", "devices": "2 x cpu", "programs": programs}
  (path / "config.json").write_text(json.dumps(saved))
  (path / "run.json").write_text(json.dumps(default | (info or {})))
  (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  return path


def response(texts: list[str], divergence=None, **changes) -> ScoredResponse:
  """A response of these tokens, with made-up numbers."""
  n = len(texts)
  return ScoredResponse(
    of=changes.pop("of", "student"),
    prompt=changes.pop("prompt", "p"),
    tokens=texts,
    ids=[0] * n,
    ended=False,
    kind="reverse_kl",
    divergence=[0.0] * n if divergence is None else divergence,
    logprob=[-0.5] * n,
    teacher_logprob=[-1.0] * n,
    student_entropy=[0.5] * n,
    teacher_entropy=[0.5] * n,
    **changes,
  )

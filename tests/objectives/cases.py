"""Objectives that are tested in every way, and arrays to test them on."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from opd_jax.objectives.divergence import DIVERGENCES, Coefficients, FrozenInputs, HiddenAndHead, Objective

V = 9
TOPK = [
  Objective(V, support=support, tail=tail, k=3)
  for support in ("student_topk", "teacher_topk", "both_topk")
  for tail in ("bucket", "renormalise")
]


def of_kind(kind: str) -> list[Objective]:
  """List the objectives that every entry of `DIVERGENCES` is tested by, whatever it is."""
  changes: list[dict[str, Any]] = [{}]
  if "beta" in DIVERGENCES[kind].parameters:
    changes.append({"beta": 0.3})
  if "normalised" in DIVERGENCES[kind].parameters:
    changes += [{"beta": beta, "normalised": True} for beta in (0.0, 0.1, 1.0)]
  changes += [
    {"entry_clip": 0.05},
    {"student_temperature": 1.3, "teacher_temperature": 0.7, "sampling_temperature": 0.8},
    {"support": "student_topk", "k": 3},
    {"support": "both_topk", "tail": "renormalise", "k": 3},
  ]
  return [Objective(V, kind=kind, **change) for change in changes]


_ALL = [
  *(objective for kind in DIVERGENCES for objective in of_kind(kind)),
  *TOPK,
  Objective(V, kind="jsd", beta=0.3, entry_clip=0.02),
  Objective(V, support="student_topk", kind="forward_kl", k=3, entry_clip=0.1),
  Objective(V, support="student_topk", tail="reweight", k=3),
]
OBJECTIVES = list(dict.fromkeys(_ALL))


def name(o: Objective) -> str:
  """Name a test case by the fields that differ from the default."""
  default = Objective(o.vocab)
  return " ".join(f"{k}={v}" for k, v in vars(o).items() if v != getattr(default, k)) or "default"


B, H, D = 2, 5, 4  # in most tests, so that they share compiled programs


def random_inputs(
  B=B, H=H, D=D, E=D, ids=V, seed=0, teachers=1, dtype=jnp.float32, vocab=None
) -> tuple[HiddenAndHead, FrozenInputs]:
  """Draw a student, teachers and tokens, under a ragged mask."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  student = HiddenAndHead(draw(B, H, D), draw(ids, D).astype(jnp.float32))
  inputs = FrozenInputs(
    teachers=tuple(HiddenAndHead(draw(B, H, E), draw(ids, E)) for _ in range(teachers)),
    token=jnp.asarray(rng.integers(0, vocab or ids, (B, H))),
    mask=jnp.asarray(np.arange(H) < rng.integers(0, H + 1, B)[:, None]),
  )
  return student, inputs


def random_coefficients(B=B, H=H, seed=0, divergence=True, reference_kl=False) -> Coefficients:
  """Draw the coefficients of a loss, for the statistics that it has."""
  rng = np.random.default_rng(1000 + seed)

  def draw():
    return jnp.asarray(rng.normal(size=(B, H)), jnp.float32)

  return Coefficients(draw() if divergence else None, draw(), draw() if reference_kl else None)

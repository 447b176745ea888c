"""What int8 and bfloat16 do to a teacher: its distributions on the student's own rollouts, against float32.

    python -m opd_jax.bench int8                                                  the built-in pair
    python -m opd_jax.bench int8 --task=task:phase --student=builtin:phase-student --prompts=256

Per generated token: KL(teacher || copy), how often the likeliest token is the same, KL(student || copy), and by how
much the last moves from what the float32 teacher gives (the mean, with its standard error over tokens). Needs qwix.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import config, inputs
from opd_jax.data import pipeline
from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, quantise
from opd_jax.objectives import divergence
from opd_jax.rollout import sample

BATCH = 64
HORIZON = 256


def measure(student: str, teacher: str, task: str, prompts: int) -> dict[str, dict[str, float]]:
  """The numbers of every copy of the teacher, by its name."""
  changes = {"student": student, "teacher": teacher, "data.path": task, "eval.prompts": prompts}
  changes |= {"precision": "float32", "horizon.max": HORIZON, "teacher_precision": "int8"}
  i = inputs.load(config.override(config.default(), changes))
  ids, cfg = i.evaluation.problems.ids if i.evaluation else [], i.teachers[0].cfg
  speaker, dense = (hf.read(m.path, m.cfg) for m in (i.student, i.teachers[0]))
  int8 = quantise.quantise(dense)
  copies = {
    "float32": (dense, jnp.float32),
    "bfloat16": (dense, jnp.bfloat16),
    "int8 in float32": (int8, jnp.float32),
    "int8 in bfloat16": (int8, jnp.bfloat16),
  }
  roll = jax.jit(functools.partial(sample.rollout, cfg=i.student.cfg, sampling=i.sampling, horizon=HORIZON))

  @functools.partial(jax.jit, static_argnums=(3, 4))
  def read(params, batch, said, cfg, dtype=jnp.float32):
    seen = (batch.prompt, batch.prompt_mask, said.response, said.mask)
    x = decoder.response_hidden(params, cfg, *seen, dtype=dtype)
    return jax.nn.log_softmax(divergence.logits(divergence.Readout(x, decoder.head(params)), i.sampling.vocab))

  found = {name: [] for name in copies}
  for first in range(0, len(ids), BATCH):
    batch = pipeline.pad(ids[first : first + BATCH], pipeline.width(ids), i.sampling.pad_id)
    said = roll(speaker, batch, jax.random.key(first), HORIZON)
    s, t = read(speaker, batch, said, i.student.cfg), read(dense, batch, said, cfg)
    exact = kl(s, t)
    for name, (params, dtype) in copies.items():
      v = read(params, batch, said, cfg, dtype)
      same = jnp.argmax(t, -1) == jnp.argmax(v, -1)
      found[name].append(np.stack([kl(t, v), same, kl(s, v), kl(s, v) - exact])[:, said.mask])
  return {name: summary(np.concatenate(parts, axis=1)) for name, parts in found.items()}


def kl(a, b):
  """KL(a || b) of log-probabilities, per position."""
  return divergence.reverse_kl(a, b).sum(-1)


def summary(each: np.ndarray) -> dict[str, float]:
  """Of KL(teacher || copy), same top-1, KL(student || copy) and its change, [4, tokens]."""
  each = each.astype(np.float64)
  off, same, distance, moved = each.mean(axis=1)
  error = each[3].std() / each.shape[1] ** 0.5
  names = ("tokens", "kl", "kl_max", "top1", "student_kl", "moved", "moved_error")
  return dict(zip(names, (each.shape[1], off, each[0].max(), same, distance, moved, error), strict=True))


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m opd_jax.bench int8", description=(__doc__ or "").split("\n", 1)[0])
  parser.add_argument("--student", default="builtin:student")
  parser.add_argument("--teacher", default="builtin:teacher")
  parser.add_argument("--task", default="task:chain")
  parser.add_argument("--prompts", type=int, default=512)
  args = parser.parse_args(argv)
  try:
    found = measure(args.student, args.teacher, args.task, args.prompts)
  except InputError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  for name, r in found.items():
    print(
      f"{name:17s} {r['tokens']:.0f} tokens  KL(t||copy) {r['kl']:.1e} (max {r['kl_max']:.1e})  same top-1 "
      f"{r['top1']:.4%}  KL(s||copy) {r['student_kl']:.6f}  moved {r['moved']:+.1e} +- {r['moved_error']:.0e}"
    )
  return 0

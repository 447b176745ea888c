"""What int8 and bfloat16 do to a teacher: its distributions on the student's own rollouts, against float32.

    python -m opd_jax.bench int8                                                  the built-in pair
    python -m opd_jax.bench int8 --task=task:phase --student=builtin:phase-student --prompts=256

Per generated token: KL(teacher || copy), how often the likeliest token is the same, KL(student || copy), and by how
much the last moves from what the float32 teacher gives (the mean, with its standard error over tokens). Needs qwix.
"""

import argparse
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import config, inputs
from opd_jax.data import pipeline
from opd_jax.models import decoder, hf, quantise
from opd_jax.objectives import divergence
from opd_jax.rollout import sample
from opd_jax.runtime import cli

BATCH = 64
HORIZON = 256


def measure(student: str, teacher: str, task: str, prompts: int) -> dict[str, dict[str, float]]:
  """The numbers of every copy of the teacher, by the copy's name; `summary` says which they are.

  Args:
    student: directory or builtin:NAME, likewise `teacher`.
    task: problems, as config.data.path names them.
    prompts: how many of the task's evaluation problems.
  """
  changes = {"student": student, "teacher": teacher, "data.path": task, "eval.prompts": prompts}
  changes |= {"precision": "float32", "horizon.max": HORIZON, "teacher_precision": "int8"}
  loaded = inputs.load(config.override(config.default(), changes))
  ids = loaded.evaluation.problems.ids if loaded.evaluation else []
  student_cfg, teacher_cfg = loaded.student.cfg, loaded.teachers[0].cfg
  student_params = hf.load(loaded.student.path, student_cfg)
  dense = hf.load(loaded.teachers[0].path, teacher_cfg)
  int8 = quantise.quantise(dense)
  copies = {
    "float32": (dense, jnp.float32),
    "bfloat16": (dense, jnp.bfloat16),
    "int8 in float32": (int8, jnp.float32),
    "int8 in bfloat16": (int8, jnp.bfloat16),
  }
  sampling = loaded.sampling
  rollout = jax.jit(functools.partial(sample.rollout, cfg=student_cfg, sampling=sampling, response_len=HORIZON))

  @functools.partial(jax.jit, static_argnums=(3, 4))
  def logprobs(params, batch, rollouts, cfg, dtype=jnp.float32):
    tokens = (batch.prompt, batch.prompt_mask, rollouts.response, rollouts.mask)
    hidden = decoder.response_hidden(params, cfg, *tokens, dtype=dtype)
    logits = divergence.logits(divergence.HiddenAndHead(hidden, decoder.head(params)), sampling.vocab)
    return jax.nn.log_softmax(logits)

  per_token = {name: [] for name in copies}
  for first in range(0, len(ids), BATCH):
    batch = pipeline.pad(ids[first : first + BATCH], pipeline.padded_len(ids), sampling.pad_id)
    rollouts = rollout(student_params, batch, jax.random.key(first), HORIZON)
    s = logprobs(student_params, batch, rollouts, student_cfg)
    t = logprobs(dense, batch, rollouts, teacher_cfg)
    exact = kl(s, t)
    for name, (params, dtype) in copies.items():
      v = logprobs(params, batch, rollouts, teacher_cfg, dtype)
      same = jnp.argmax(t, -1) == jnp.argmax(v, -1)
      numbers = np.stack([kl(t, v), same, kl(s, v), kl(s, v) - exact])
      per_token[name].append(numbers[:, rollouts.mask])
  return {name: summary(np.concatenate(parts, axis=1)) for name, parts in per_token.items()}


def kl(a, b):
  """Computes KL(a || b) of log-probabilities [..., V], per position, in nats."""
  return divergence.reverse_kl(a, b).sum(-1)


def summary(per_token: np.ndarray) -> dict[str, float]:
  """Computes means over the tokens, the largest KL, and the standard error of the last row.

  Args:
    per_token: [4, tokens]: KL(teacher || copy), same top-1, KL(student || copy), and how much that has moved.
  """
  per_token = per_token.astype(np.float64)
  tokens = per_token.shape[1]
  kl_mean, same, student_kl, moved = per_token.mean(axis=1)
  return {
    "tokens": tokens,
    "kl": kl_mean,
    "kl_max": per_token[0].max(),
    "top1": same,
    "student_kl": student_kl,
    "moved": moved,
    "moved_error": per_token[3].std() / tokens**0.5,
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Prints a line for each copy of the teacher; returns the exit status."""
  parser = argparse.ArgumentParser(prog="python -m opd_jax.bench int8", description=(__doc__ or "").split("\n", 1)[0])
  parser.add_argument("--student", default="builtin:student")
  parser.add_argument("--teacher", default="builtin:teacher")
  parser.add_argument("--task", default="task:chain")
  parser.add_argument("--prompts", type=int, default=512)
  args = parser.parse_args(argv)
  with cli.reporting_the_end():
    summaries = measure(args.student, args.teacher, args.task, args.prompts)
  for name, r in summaries.items():
    print(
      f"{name:17s} {r['tokens']:.0f} tokens  KL(t||copy) {r['kl']:.1e} (max {r['kl_max']:.1e})  same top-1 "
      f"{r['top1']:.4%}  KL(s||copy) {r['student_kl']:.6f}  moved {r['moved']:+.1e} +- {r['moved_error']:.0e}"
    )
  return 0

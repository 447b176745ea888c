"""Task accuracy of full-length responses: avg@k and pass@k with intervals.

An evaluation is never cut by the training horizon; its own limit is `eval.max_tokens`.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import hosts
from opd_jax import mesh as meshes
from opd_jax.config import Config
from opd_jax.data import pipeline
from opd_jax.errors import InputError
from opd_jax.inputs import Evaluation
from opd_jax.models import kernels, moe
from opd_jax.programs import Kept, Shape, record
from opd_jax.rollout import cache, sample
from opd_jax.types import Batch, Params

Z95 = 1.959964


class Evaluator:
  """Answers the held-out problems k times each and judges the answers.

  One program: `eval.batch` prompts at a time. The same sampling keys are used at every evaluation of a run, so that
  two evaluations differ by the weights alone.
  """

  def __init__(self, c: Config, inputs: Evaluation, params: Params, kept: Kept | None = None):
    """Compiles the program for parameters that lie as `params` do, or takes it from `kept`, see programs.py."""
    self._in = inputs
    self._k, self._pass_at, self._samples = c.eval.k, tuple(c.eval.pass_at), c.log.samples
    shards = meshes.row_shards(inputs.mesh)
    self._batch = -(-min(c.eval.batch, len(inputs.problems.ids)) // shards) * shards
    self._width = pipeline.width(inputs.problems.ids)
    self._key = jax.random.fold_in(jax.random.key(c.seed), 2**20)  # no training step has this number
    began = time.perf_counter()
    i, kept = inputs, {} if kept is None else kept
    static = (i.model.cfg, i.sampling, i.max_tokens, i.segments, i.attention, i.mesh, i.dtype)
    key = ("evaluate", *static, self._k, self._batch, self._width)
    if key not in kept:
      kept[key] = self._lower(params).compile()
    self._program = kept[key]
    self.compiled = record(
      "evaluate", Shape(self._width, inputs.max_tokens), time.perf_counter() - began, self._program
    )

  def __call__(self, params: Params) -> tuple[dict[str, Any], list[dict]]:
    """Returns the record of metrics.jsonl (without step and time) and a few responses as text."""
    texts, lengths, ended = [], [], []
    ids, sampling = self._in.problems.ids, self._in.sampling
    for first in range(0, len(ids), self._batch):
      part = ids[first : first + self._batch]
      padded = part + [part[0]] * (self._batch - len(part))
      batch = hosts.place(pipeline.pad(padded, self._width, sampling.pad_id), meshes.rows(self._in.mesh))
      key = jax.random.fold_in(self._key, first)
      said = self._program(params, batch, key, np.int32(self._in.max_tokens))
      said = hosts.whole(dataclasses.replace(said, behavior_logprob=said.ended))  # nobody asks for it here
      rows = len(part) * self._k
      texts += decode(self._in.tokenizer, said.response[:rows], said.mask[:rows], sampling.stop_ids)
      lengths.append(said.mask[:rows].sum(axis=1))
      ended.append(said.ended[:rows])
    answers = [a for a in self._in.problems.answers for _ in range(self._k)]
    correct = self._judge(texts, answers)
    length = np.concatenate(lengths)
    result = {
      **summarise(correct.reshape(-1, self._k), self._pass_at),
      "length": {
        "mean": float(length.mean()),
        "p50": float(np.quantile(length, 0.5)),
        "p90": float(np.quantile(length, 0.9)),
        "max": int(length.max()),
      },
      "ended": float(np.concatenate(ended).mean()),
    }
    shown = [
      {
        "prompt": self._in.tokenizer.decode(ids[i // self._k]),
        "response": texts[i],
        "answer": answers[i],
        "correct": bool(correct[i]),
      }
      for i in range(0, min(self._samples * self._k, len(texts)), self._k)
    ]
    return result, shown

  def _judge(self, texts: list[str], answers: list[str]) -> np.ndarray:
    """Which texts are right, bool[texts]; every process judges its share."""
    share = slice(jax.process_index(), None, jax.process_count())
    correct = np.zeros(len(texts), bool)
    correct[share] = [self._in.verify(*pair) for pair in zip(texts[share], answers[share], strict=True)]
    return hosts.combine(correct)

  def _lower(self, params: Params) -> jax.stages.Lowered:
    mesh = self._in.mesh
    run = functools.partial(
      sample.rollout,
      cfg=meshes.for_rollout(mesh, self._in.model.cfg),
      sampling=self._in.sampling,
      horizon=self._in.max_tokens,
      n=self._k,
      dtype=self._in.dtype,
      segments=self._in.segments,
      experts=functools.partial(moe.feed_forward, mesh),
      drawn=sample.draw_on(mesh, meshes.ROWS, "tensor"),
      attend=functools.partial(kernels.attend, self._in.attention, mesh),
      lay_out=lambda params, cfg, dtype: meshes.constrain(mesh, cache.lay_out(params, cfg, dtype), "rollout"),
    )
    row, everywhere = meshes.rows(mesh), meshes.replicated(mesh)
    spec = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    prompts = (self._batch, self._width)
    batch = Batch(
      prompt=jax.ShapeDtypeStruct(prompts, jnp.int32, sharding=row),  # pyright: ignore[reportArgumentType]
      prompt_mask=jax.ShapeDtypeStruct(prompts, jnp.bool_, sharding=row),  # pyright: ignore[reportArgumentType]
    )
    params = jax.tree.map(lambda a: spec(a, a.sharding), params)
    limit = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return jax.jit(run, out_shardings=row).lower(params, batch, spec(self._key, everywhere), limit)


def decode(tokenizer, response: np.ndarray, mask: np.ndarray, stop_ids: Sequence[int]) -> list[str]:
  """Text of each row, without the stop token."""
  rows = [[int(t) for t in row[m] if t not in stop_ids] for row, m in zip(response, mask, strict=True)]
  return tokenizer.batch_decode(rows, skip_special_tokens=True)


def summarise(correct: np.ndarray, pass_at: Sequence[int]) -> dict[str, Any]:
  """avg@k and pass@k of bool[problems, k], each with a 95% interval over problems."""
  prompts, k = correct.shape
  low, high = interval(correct.mean(axis=1))
  out: dict[str, Any] = {
    "accuracy": float(correct.mean()),
    "low": low,
    "high": high,
    "k": k,
    "prompts": prompts,
    "pass": {},
  }
  for m in pass_at:
    each = np.array([pass_at_k(k, int(c), m) for c in correct.sum(axis=1)])
    low, high = interval(each)
    out["pass"][str(m)] = {"value": float(each.mean()), "low": low, "high": high}
  return out


def pass_at_k(n: int, correct: int, k: int) -> float:
  """Unbiased estimate of P(at least one of k samples is correct) from `correct` of n samples.

  1 - C(n - correct, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374).
  """
  if not 1 <= k <= n:
    raise InputError(f"pass@{k} needs at least {k} samples per prompt, and there are {n}.")
  return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def interval(each: np.ndarray, z: float = Z95) -> tuple[float, float]:
  """Wilson's score interval for the mean of one value in [0, 1] per problem.

  The problems are the sample: several answers to one problem are not independent, so the effective number of trials
  is the binomial variance over the variance of the mean, which is the number of problems where each has one answer.
  """
  n, mean = len(each), float(np.mean(each))
  spread = float(np.var(each)) / n
  trials = max(n, mean * (1 - mean) / spread) if spread > 0 else n
  centre = (mean + z * z / (2 * trials)) / (1 + z * z / trials)
  half = z / (1 + z * z / trials) * math.sqrt(mean * (1 - mean) / trials + z * z / (4 * trials * trials))
  return max(0.0, centre - half), min(1.0, centre + half)

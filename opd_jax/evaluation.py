"""Task accuracy of full-length responses: avg@k and pass@k with intervals.

An evaluation is never cut by the training horizon; its own limit is `eval.max_tokens`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from opd_jax import hosts
from opd_jax.config import Config
from opd_jax.data import pipeline
from opd_jax.errors import InputError
from opd_jax.inputs import Evaluation
from opd_jax.programs import Kept
from opd_jax.speaker import Speaker, Speech
from opd_jax.tasks import Verifier
from opd_jax.types import Params

Z95 = 1.959964


class Evaluator:
  """Answers the held-out problems k times each and judges the answers.

  One program: `eval.batch` prompts at a time. The same sampling keys are used at every evaluation of a run, so that
  two evaluations differ by the weights alone.
  """

  def __init__(self, c: Config, inputs: Evaluation, params: Params, kept: Kept | None = None):
    """Compiles the program for parameters that lie as `params` do, or takes it from `kept`, see programs.py."""
    self._in = inputs
    self._pass_at, self._samples = tuple(c.eval.pass_at), c.log.samples
    self._key = jax.random.fold_in(jax.random.key(c.seed), 2**20)  # no training step has this number
    width = pipeline.width(inputs.problems.ids)
    self._speak = Speaker(
      inputs.voice,
      inputs.tokenizer,
      batch=min(c.eval.batch, len(inputs.problems.ids)),
      widths=(width,),
      max_tokens=inputs.max_tokens,
      k=c.eval.k,
      kept=kept,
    )
    self._speak.prepare(params, width)

  @property
  def compiled(self) -> list[dict]:
    return self._speak.compiled

  def __call__(self, params: Params) -> tuple[dict[str, Any], list[dict]]:
    """Returns the record of metrics.jsonl (without step and time) and a few responses as text."""
    ids, k = self._in.problems.ids, self._speak.k
    speech = self._speak(params, ids, self._key)
    answers = [a for a in self._in.problems.answers for _ in range(k)]
    correct = judge(self._in.verify, speech.texts, answers)
    result = summarise(correct.reshape(-1, k), self._pass_at) | spoken(speech)
    shown = [
      {
        "prompt": self._in.tokenizer.decode(ids[i // k]),
        "response": speech.texts[i],
        "answer": answers[i],
        "correct": bool(correct[i]),
      }
      for i in range(0, min(self._samples * k, len(speech.texts)), k)
    ]
    return result, shown


def judge(verify: Verifier, texts: list[str], answers: list[str]) -> np.ndarray:
  """Which texts are right, bool[texts]; every process judges its share."""
  share = slice(jax.process_index(), None, jax.process_count())
  correct = np.zeros(len(texts), bool)
  correct[share] = [verify(*pair) for pair in zip(texts[share], answers[share], strict=True)]
  return hosts.combine(correct)


def spoken(speech: Speech) -> dict[str, Any]:
  """How long the responses were, in tokens, and the share that ended by a stop token."""
  length = speech.lengths
  return {
    "length": {
      "mean": float(length.mean()),
      "p50": float(np.quantile(length, 0.5)),
      "p90": float(np.quantile(length, 0.9)),
      "max": int(length.max()),
    },
    "ended": float(speech.ended.mean()),
  }


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

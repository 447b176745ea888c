"""Task accuracy of full-length responses: avg@k and pass@k with intervals.

An evaluation is never cut by the training horizon; its own limit is `eval.max_tokens`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from opd_jax.config import Config
from opd_jax.data import pipeline, scored
from opd_jax.errors import InputError
from opd_jax.evaluation.inputs import EvaluationInputs
from opd_jax.rewards.verdicts import batched
from opd_jax.rollout.denoise import DenoiserConfig
from opd_jax.rollout.generate import Completions, Generator
from opd_jax.runtime import hosts, keys
from opd_jax.runtime.programs import ProgramCache
from opd_jax.tasks.problem import Response, Verifier
from opd_jax.types import Params

Z95 = 1.959964


MakeGenerator = Callable[..., Generator]  # called as rollout.generate.Generator is


class Evaluator:
  """Answers the held-out problems k times each and verifies the answers.

  One program answers `eval.batch` prompts at a time. The same sampling keys are used at every evaluation of a run, so
  that two evaluations differ by the weights alone.
  """

  def __init__(
    self,
    config: Config,
    inputs: EvaluationInputs,
    params: Params,
    program_cache: ProgramCache | None = None,
    make_generator: MakeGenerator = Generator,
  ):
    """Compiles the program for parameters that are sharded as `params`, or takes it from the cache, see programs.py.

    Args:
      make_generator: how the model answers prompts, where it is not token by token.
    """
    self._inputs = inputs
    self._pass_at, self._samples = tuple(config.eval.pass_at), config.log.samples
    self._key = keys.of_seed(config.seed, keys.Use.EVALUATION)
    prompt_len = pipeline.padded_len(inputs.problems.ids, limit=config.data.max_prompt)
    seen = {} if inputs.images is None else {"images": inputs.images}
    self._generate = make_generator(
      inputs.generator_config,
      inputs.tokenizer,
      batch=min(config.eval.batch, len(inputs.problems.ids)),
      prompt_lens=(prompt_len,),
      max_tokens=inputs.max_tokens,
      k=config.eval.k,
      program_cache=program_cache,
      **seen,
    )
    self._generate.prepare(params, prompt_len)

  @property
  def compiled(self) -> list[dict]:
    """The records of all compiled programs, see programs.record."""
    return self._generate.compiled

  def __call__(self, params: Params) -> tuple[dict[str, Any], list[dict]]:
    """Returns the record of metrics.jsonl (without step and time) and a few responses as text."""
    ids, k = self._inputs.problems.ids, self._generate.k
    seen: dict[str, Any] = {} if self._inputs.images is None else {"images": self._inputs.problems.images}
    completions = self._generate(params, ids, self._key, **seen)
    answers = [a for a in self._inputs.problems.answers for _ in range(k)]
    responses = self._inputs.problems.with_records(completions.responses, [i // k for i in range(len(answers))])
    correct, failures = verify_all(self._inputs.verify, responses, answers)
    correct_of = correct.reshape(-1, k)
    record = accuracy(correct_of, self._pass_at) | response_lengths(completions) | failures
    record |= by_domain(correct_of, self._inputs.problems.domains)
    if isinstance(how := self._generate.config, DenoiserConfig):
      record["denoising_steps"] = how.steps(self._generate.max_tokens)
    samples = [
      {
        "prompt": scored.prompt_text(self._inputs.tokenizer, ids[i // k]),
        "response": completions.texts[i],
        "answer": answers[i],
        "correct": bool(correct[i]),
        "ended": bool(completions.ended[i]),
      }
      for i in range(0, min(self._samples * k, len(completions.texts)), k)
    ]
    return record, samples


class Verified(NamedTuple):
  """Which responses are right, and how often the verifier failed."""

  correct: np.ndarray  # bool[responses]
  failures: dict[str, int]  # verifier_timeouts, verifier_errors; where there are any


def verify_all(verify: Verifier, responses: Sequence[Response], answers: Sequence[str]) -> Verified:
  """Verifies every response against its answer. Each process verifies a share, and all get all of it."""
  share = slice(jax.process_index(), None, jax.process_count())
  verifier = batched(verify)
  verdicts = verifier.submit(responses[share], answers[share]).result()
  verifier.tell(verdicts)
  flags = np.zeros((3, len(responses)), bool)
  flags[:, share] = np.array([(v.solved, v.timed_out, bool(v.error)) for v in verdicts], bool).reshape(-1, 3).T
  correct, *failed = hosts.any_on_hosts(flags)
  counts = zip(("verifier_timeouts", "verifier_errors"), failed, strict=True)
  return Verified(correct, {name: int(flags.sum()) for name, flags in counts if flags.any()})


def response_lengths(completions: Completions) -> dict[str, Any]:
  """Summarises how long the responses were, in tokens, and which share ended by a stop token."""
  length = completions.lengths
  return {
    "length": {
      "mean": float(length.mean()),
      "p50": float(np.quantile(length, 0.5)),
      "p90": float(np.quantile(length, 0.9)),
      "max": int(length.max()),
    },
    "ended": float(completions.ended.mean()),
  }


def accuracy(correct: np.ndarray, pass_at: Sequence[int]) -> dict[str, Any]:
  """Computes avg@k and pass@k of bool[problems, k], each with a 95% interval over problems."""
  prompts, k = correct.shape
  low, high = interval(correct.mean(axis=1))
  record: dict[str, Any] = {
    "accuracy": float(correct.mean()),
    "low": low,
    "high": high,
    "k": k,
    "prompts": prompts,
    "pass": {},
  }
  for m in pass_at:
    values = np.array([pass_at_k(k, int(c), m) for c in correct.sum(axis=1)])
    low, high = interval(values)
    record["pass"][str(m)] = {"value": float(values.mean()), "low": low, "high": high}
  return record


def by_domain(correct: np.ndarray, domains: Sequence[str]) -> dict[str, Any]:
  """Computes avg@k of bool[problems, k] by the problems' domains, with intervals; empty where there are not several."""
  if len(set(domains)) < 2:
    return {}
  found = {}
  for domain in sorted(set(domains)):
    means = correct[[d == domain for d in domains]].mean(axis=1)
    low, high = interval(means)
    found[domain] = {"accuracy": float(means.mean()), "low": low, "high": high, "prompts": len(means)}
  return {"domains": found}


def pass_at_k(n: int, correct: int, k: int) -> float:
  """Estimates without bias P(at least one of k samples is correct) from `correct` of n samples.

  1 - C(n - correct, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374).
  """
  if not 1 <= k <= n:
    raise InputError(f"pass@{k} needs at least {k} samples per prompt, and there are {n}.")
  return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def interval(values: np.ndarray, z: float = Z95) -> tuple[float, float]:
  """Computes Wilson's score interval for the mean of one value in [0, 1] per problem.

  The problems are the sample: several answers to one problem are not independent, so the effective number of trials
  is the binomial variance over the variance of the mean, which is the number of problems where each has one answer.
  """
  n, mean = len(values), float(np.mean(values))
  spread = float(np.var(values)) / n
  trials = max(n, mean * (1 - mean) / spread) if spread > 0 else n
  centre = (mean + z * z / (2 * trials)) / (1 + z * z / trials)
  half = z / (1 + z * z / trials) * math.sqrt(mean * (1 - mean) / trials + z * z / (4 * trials * trials))
  return max(0.0, centre - half), min(1.0, centre + half)

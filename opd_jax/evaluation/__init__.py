"""Accuracy of full-length responses to held-out problems, told at once or turn by turn."""

import dataclasses
from typing import Any

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.evaluation.inputs import EvaluationInputs
from opd_jax.evaluation.multi_turn import MultiTurnEvaluator
from opd_jax.evaluation.single_turn import Evaluator, MakeGenerator
from opd_jax.rollout.generate import Generator
from opd_jax.runtime.programs import ProgramCache
from opd_jax.types import Params


def make_evaluator(
  config: Config,
  inputs: EvaluationInputs,
  params: Params,
  program_cache: ProgramCache | None = None,
  make_generator: MakeGenerator = Generator,
) -> "Evaluator | MultiTurnEvaluator | WithGreedy":
  """Makes the evaluator that fits the problems, with its program compiled for parameters that are sharded as `params`."""
  kind = MultiTurnEvaluator if inputs.problems.conversations else Evaluator
  sampled = kind(config, inputs, params, program_cache, make_generator)
  if not config.eval.greedy or not config.eval.temperature:
    return sampled
  once = configs.override(config, {"eval.k": 1, "eval.pass_at": (1,), "eval.temperature": 0.0})
  certain = dataclasses.replace(inputs, sampling=dataclasses.replace(inputs.sampling, temperature=0.0))
  return WithGreedy(sampled, kind(once, certain, params, program_cache, make_generator))


GREEDY = ("accuracy", "low", "high", "domains")  # what a record has of the likeliest answers


@dataclasses.dataclass(frozen=True)
class WithGreedy:
  """An evaluator that answers every problem once more, by the likeliest tokens.

  What training gains at a temperature may be that the student has become surer, as a lower temperature would make it; what it
  gains here is not.
  """

  sampled: Evaluator | MultiTurnEvaluator
  greedy: Evaluator | MultiTurnEvaluator

  @property
  def compiled(self) -> list[dict]:
    """The records of all compiled programs, see programs.record."""
    return self.sampled.compiled + self.greedy.compiled

  def __call__(self, params: Params) -> tuple[dict[str, Any], list[dict]]:
    """Returns the record and samples at the temperature, with `greedy` in the record: accuracy and its interval, by domain too."""
    record, samples = self.sampled(params)
    found = self.greedy(params)[0]
    return record | {"greedy": {name: found[name] for name in GREEDY if name in found}}, samples

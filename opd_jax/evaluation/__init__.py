"""Accuracy of full-length responses to held-out problems, told at once or turn by turn."""

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
) -> Evaluator | MultiTurnEvaluator:
  """Makes the evaluator that fits the problems, with its program compiled for parameters that are sharded as `params`."""
  kind = MultiTurnEvaluator if inputs.problems.conversations else Evaluator
  return kind(config, inputs, params, program_cache, make_generator)

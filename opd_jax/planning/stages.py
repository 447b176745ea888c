"""Lowers and compiles what the trainer would: the recipe's programs at a stage's width, and the evaluation."""

import dataclasses
import math
from collections.abc import Iterator

import jax

from opd_jax.config import response_len
from opd_jax.planning import compiled
from opd_jax.planning.compiled import Program
from opd_jax.planning.setup import STOP, Setup
from opd_jax.rollout.sample import Sampling
from opd_jax.runtime import mesh as meshes
from opd_jax.training import specs


def programs(setup: Setup, width: int) -> Iterator[Program]:
  """Compiles the programs of a step at one width; of a distillation step the teachers score inside the update."""
  for name, lowered in setup.recipe.lower(setup.recipe.planned_shape(setup.prompt, width)):
    yield compiled.compile_program(name, lowered, setup.mesh)


def evaluation(setup: Setup) -> Program:
  """Compiles the program that answers evaluation prompts, for the first of the recipe's models."""
  config, recipe = setup.c, setup.recipe
  name, params = next(iter(recipe.models(recipe.abstract_state(), recipe.abstract_frozen()).items()))
  of_evaluation = dataclasses.replace(
    recipe.specs.generator_config,
    cfg=recipe.spec(name).cfg,
    sampling=Sampling(STOP, 0, setup.vocab, config.eval.temperature),
    attention=specs.attention(config, setup.mesh, [recipe.spec(name).cfg]),
  )
  max_tokens = config.eval.max_tokens or response_len(config)
  sizes = {
    "batch": evaluation_batch(setup),
    "prompt_lens": (setup.prompt,),
    "max_tokens": max_tokens,
    "k": config.eval.k,
  }
  lowered = recipe.generator(name, of_evaluation, None, **sizes).lower(params, setup.prompt)
  return compiled.compile_program("evaluate", lowered, setup.mesh)


def evaluation_batch(setup: Setup) -> int:
  """The prompts of one call, rounded as the evaluator does."""
  shards = meshes.row_shards(setup.mesh)
  return -(-min(setup.c.eval.batch, setup.c.eval.prompts) // shards) * shards


def bytes_per_device(tree) -> int:
  """Count the bytes per device of abstract arrays with shardings, without the padding of layouts."""
  return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def resident(setup: Setup) -> dict[str, int]:
  """Count the bytes per device between programs: "params", "optimizer", and "teachers" unless they are offloaded."""
  recipe = setup.recipe
  state = recipe.abstract_state()
  params = sum(map(bytes_per_device, recipe.models(state).values()))
  teachers = 0 if setup.c.teacher_offload else bytes_per_device(recipe.abstract_frozen())
  return {"params": params, "optimizer": bytes_per_device(state) - params, "teachers": teachers}

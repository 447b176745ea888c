"""Lowers and compiles what the trainer would: the recipe's programs at a stage's width, and the evaluation."""

import math
from collections.abc import Iterator

import jax

from opd_jax import inputs
from opd_jax import mesh as meshes
from opd_jax.planning import compiled
from opd_jax.planning.compiled import Program
from opd_jax.planning.setup import Setup
from opd_jax.rollout.sample import Sampling
from opd_jax.speaker import Voice

STOP = (1,)  # a stop token, of whichever number, so that the loops can end early as they do in training


def programs(setup: Setup, width: int) -> Iterator[Program]:
  """Rollout and update at one width; the teachers score inside the update."""
  subject = setup.subject
  recipe = subject.recipe_of(setup.c, STOP)
  state, judges = subject.abstract_state(), subject.abstract_judges()
  for name, lowered in recipe.programs(width, state, judges, subject.abstract_batch(setup.case(width))):
    yield compiled.compile_(name, lowered, setup.mesh)


def evaluation(setup: Setup) -> Program:
  c, subject = setup.c, setup.subject
  recipe = subject.recipe_of(c, STOP)
  s = recipe.sampling
  voice = Voice(
    cfg=recipe.student,
    sampling=Sampling(s.stop_ids, s.pad_id, s.vocab, c.eval.temperature),
    segments=inputs.segments(c, setup.mesh),
    attention=inputs.attention(c, setup.mesh, [recipe.student]),
    mesh=setup.mesh,
    dtype=subject.dtype,
  )
  student = recipe.whole(subject.abstract_state().params, subject.abstract_judges())
  max_tokens = c.eval.max_tokens or c.horizon.max
  lowered = voice.lower(student, evaluation_batch(setup), setup.prompt, max_tokens, c.eval.k)
  return compiled.compile_("evaluate", lowered, setup.mesh)


def evaluation_batch(setup: Setup) -> int:
  """Prompts of one call, as the Evaluator rounds them."""
  shards = meshes.row_shards(setup.mesh)
  return -(-min(setup.c.eval.batch, setup.c.eval.prompts) // shards) * shards


def bytes_per_device(tree) -> int:
  """Of abstract arrays with shardings, without the padding of layouts."""
  return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def resident(setup: Setup) -> dict[str, int]:
  """Bytes per device of what lies there between programs: "params", "optimizer", and "teachers" unless they rest."""
  subject = setup.subject
  state = subject.abstract_state()
  params = bytes_per_device(state.params)
  teachers = 0 if setup.c.teacher_offload else bytes_per_device(subject.abstract_judges())
  return {"params": params, "optimizer": bytes_per_device(state) - params, "teachers": teachers}

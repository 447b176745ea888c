"""Lowers and compiles what the trainer would: the recipe's programs at a stage's width, the evaluation, and what encodes images."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from opd_jax.config import response_len
from opd_jax.models import image_encoder, roofline
from opd_jax.models.roofline import Cost
from opd_jax.models.spec import ModelSpec
from opd_jax.models.vision import VisionConfig
from opd_jax.planning import compiled
from opd_jax.planning.compiled import Program
from opd_jax.planning.setup import STOP, Setup
from opd_jax.rollout.sample import Sampling
from opd_jax.runtime import mesh as meshes
from opd_jax.training import specs
from opd_jax.training.prompt_images import ImageSizes


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
  seen = {"images": _PlannedImages(recipe.specs.images[0], setup.dtype)} if recipe.specs.images else {}
  lowered = recipe.generator(name, of_evaluation, None, **sizes, **seen).lower(params, setup.prompt)
  return compiled.compile_program("evaluate", lowered, setup.mesh)


@dataclasses.dataclass(frozen=True)
class _PlannedImages:
  """The images of prompts that nobody has read, as a rollout.generate.SeenImages."""

  sizes: ImageSizes
  dtype: Any
  place: Any = None  # nothing is generated


def evaluation_batch(setup: Setup) -> int:
  """The prompts of one call, rounded as the evaluator does."""
  shards = meshes.row_shards(setup.mesh)
  return -(-min(setup.c.eval.batch, setup.c.eval.prompts) // shards) * shards


def encoding(setup: Setup) -> Program | None:
  """Compiles the program by which the first of `towers` encodes the largest images, for the devices of one host."""
  found = towers(setup)
  if not found:
    return None
  mesh = _host_mesh(setup)
  lowered = image_encoder.lower(found[0], mesh, image_patches(setup), setup.dtype)
  return compiled.compile_program(image_encoder.PROGRAM, lowered, mesh)


def towers(setup: Setup) -> list[VisionConfig]:
  """Lists the frozen vision towers that every device holds in full: the student's, other teachers', and the evaluation's own."""
  models: dict[Any, ModelSpec] = {}
  for model in setup.recipe.specs.models if setup.recipe.specs.images else ():
    models.setdefault(model.path, model)
  frozen = [model for model in models.values() if model.cfg.tower is None]
  if setup.c.eval.every:  # its encoder is another than that of training
    frozen += [model for model in frozen if model.path == setup.recipe.specs.student.path]
  return [tower for model in frozen if (tower := specs.planned_tower(model)) is not None]


def tower_bytes(setup: Setup, tower: VisionConfig) -> int:
  """Count the bytes of a frozen tower's weights on each device."""
  return bytes_per_device(image_encoder.abstract_params(tower, _host_mesh(setup), setup.dtype))


def image_patches(setup: Setup) -> int:
  """The patches of the largest image that a prompt, of the student or of a teacher's own, has room for."""
  longest = max(setup.prompt, setup.recipe.planned_shape(setup.prompt, 1).teacher_prompt)
  return setup.recipe.specs.images[0].within(longest).room * towers(setup)[0].merged


def encoding_cost(setup: Setup) -> Cost:
  """The cost of one call of `encoding` on every host at once; each device reads the weights for its own images."""
  tower, mesh = towers(setup)[0], _host_mesh(setup)
  images = image_encoder.rows_of(mesh, image_patches(setup)) * setup.mesh.size // mesh.size
  flops = roofline.tower_flops(tower, images, image_patches(setup) // tower.merged)
  return Cost(flops, tower_bytes(setup, tower) * setup.mesh.shape["tensor"])


def _host_mesh(setup: Setup) -> jax.sharding.Mesh:
  """The devices of the first host, on which its images are encoded."""
  devices = setup.target.devices
  return meshes.make(devices=[d for d in devices if d.process_index == devices[0].process_index])


def bytes_per_device(tree) -> int:
  """Count the bytes per device of abstract arrays with shardings, without the padding of layouts."""
  return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def resident(setup: Setup) -> dict[str, int]:
  """Count the bytes per device between programs: "params", "optimizer", "teachers" unless they are offloaded, and "towers"."""
  recipe = setup.recipe
  state = recipe.abstract_state()
  params = sum(map(bytes_per_device, recipe.models(state).values()))
  teachers = 0 if setup.c.teacher_offload else bytes_per_device(recipe.abstract_frozen())
  seeing = sum(tower_bytes(setup, tower) for tower in towers(setup))
  return {"params": params, "optimizer": bytes_per_device(state) - params, "teachers": teachers, "towers": seeing}

"""What a run would do, without its first step: prompts as the models see them, lengths, stages, programs and memory.

Everything is read and checked as in training; no weight is read, nothing is compiled and nothing is written.
"""

from collections.abc import Iterator, Sequence
from statistics import median

import jax
import numpy as np

from opd_jax import inputs
from opd_jax.config import Config, horizon_unit, response_len, width_unit
from opd_jax.data import chat
from opd_jax.data.problems import Problems
from opd_jax.horizon import schedule as horizons
from opd_jax.inputs import Inputs
from opd_jax.models import roofline
from opd_jax.planning.stages import bytes_per_device
from opd_jax.recipes import base as recipes
from opd_jax.recipes.base import Recipe
from opd_jax.runtime import mesh as meshes

PROMPTS = 2  # of training that are shown, and of evaluation one
MIB = 2**20


def lines(config: Config, loaded: Inputs | None = None) -> Iterator[str]:
  """Makes the lines that tell what a run of this config would do, one after another.

  Args:
    loaded: what the config names, see inputs.load; None: it is loaded, with today's date in templates that write one.

  Raises:
    InputError: anything about the config, the models or the data that training would refuse.
  """
  loaded = loaded or inputs.load(config)
  recipe = recipes.make(loaded)
  recipe.check_begin()
  yield "dry run: nothing is trained, compiled or written"
  yield from _training_prompts(loaded, recipe)
  if loaded.evaluation:
    yield from _shown("evaluation, the first problem", loaded.evaluation.problems.ids[0], loaded.tokenizer)
  yield from _lengths(loaded)
  yield from _stages(config)
  yield from _programs(loaded, recipe)
  yield from _memory(loaded, recipe)
  yield from (f"  note: {warning}" for warning in loaded.warnings)


def _training_prompts(loaded: Inputs, recipe: Recipe) -> Iterator[str]:
  """Renders the prompts that the first step reads, and what the teachers read where it is something else."""
  prompts = loaded.prompts(np.arange(loaded.config.batch))
  next(prompts)
  for place, i in enumerate(map(int, prompts.index[:PROMPTS]), 1):
    where = f"training, prompt {place} of step 1"
    if not loaded.train.conversations:
      contexts = list(recipe.preview(loaded, i))
      alone = bool(contexts or loaded.train.teacher_ids)
      reader = "what the student reads" if alone else "student and teachers read it"
      yield from _shown(f"{where} ({reader})", loaded.train.ids[i], loaded.tokenizer)
      if loaded.train.teacher_ids:
        yield from _shown(f"{where}, what the teachers read", loaded.train.teacher_ids[i], loaded.tokenizer)
      for what, ids in contexts:
        yield from _shown(f"{where}, {what}", ids, loaded.tokenizer)
      continue
    yield from _shown(f"{where}, what the teachers read", loaded.train.ids[i], loaded.tokenizer)
    conversation = loaded.train.conversations[i]
    reply = conversation.answer or "1"  # in words that the tokenizer has
    replies = [reply] * (len(conversation.turns) - 1)
    raw = chat.render(conversation.raw(replies), loaded.tokenizer, loaded.rendering.without_system())
    what = f"{where}, what the student reads, with {reply!r} in the place of each reply of its own"
    yield from _shown(what, raw, loaded.tokenizer)


def _shown(what: str, ids: Sequence[int], tokenizer) -> Iterator[str]:
  """Decodes token ids with all special tokens, each line behind a bar so that spaces at its ends are seen."""
  yield f"{what}: {len(ids)} tokens"
  yield from (f"  |{line}|" for line in tokenizer.decode(list(ids), skip_special_tokens=False).split("\n"))


def _lengths(loaded: Inputs) -> Iterator[str]:
  parts: list[tuple[str, Problems]] = [("training", loaded.train)]
  if loaded.evaluation:
    parts.append(("evaluation", loaded.evaluation.problems))
  for name, problems in parts:
    found = [len(row) for row in problems.ids]
    widths = ", ".join(map(str, problems.prompt_lens))
    limit = loaded.config.data.max_prompt
    full = sum(n >= limit for n in found)
    at_limit = f", {full} as long as data.max_prompt={limit}" if full else ""
    yield (
      f"{name}: {len(found):,} prompts of {min(found)} / {median(found):g} / {max(found)} tokens (min / median / max), padded to "
      f"{widths}{at_limit}; {problems.skipped} left out"
    )


def _stages(config: Config) -> Iterator[str]:
  horizon = horizons.from_config(config.horizon)
  yield f"{config.horizon.kind} horizon, {config.steps} steps"
  stages = horizons.describe(horizon, config.steps, config.batch * config.rollouts_per_prompt)
  yield from horizon.lines(stages, horizon_unit(config))


def _widths(config: Config) -> list[int]:
  """Every response width that the horizon may ask for, rising."""
  horizon = horizons.from_config(config.horizon)
  return sorted({width for step in range(config.steps) for width in horizon.possible_widths(step)})


def _programs(loaded: Inputs, recipe: Recipe) -> Iterator[str]:
  config = loaded.config
  shapes = [recipe.planned_shape(prompt, width) for width in _widths(config) for prompt in loaded.prompt_widths]
  listed = ", ".join(f"{shape.prompt} + {shape.width}" for shape in shapes)
  evaluation = ", and 1 program for evaluation" if loaded.evaluation else ""
  encoding = f", and {loaded.encode_programs} to encode images" if loaded.encode_programs else ""
  yield f"programs: at most {len(shapes)} shape(s) of a step{evaluation}{encoding}; prompt + {width_unit(config)}: {listed}"


def _memory(loaded: Inputs, recipe: Recipe) -> Iterator[str]:
  """Counts what stands in a device's memory between programs, and the cache of the widest rollout."""
  config, mesh = loaded.config, loaded.mesh
  state = recipe.abstract_state()
  params = sum(map(bytes_per_device, recipe.models(state).values()))
  parts = {"parameters": params, "optimizer": bytes_per_device(state) - params}
  offloaded = config.teacher_offload
  parts["frozen models"] = 0 if offloaded else bytes_per_device(recipe.abstract_frozen())
  if loaded.encoders:
    parts["frozen vision towers"] = sum(bytes_per_device(encoder.abstract_params) for encoder in loaded.encoders)
  parts["gradient"] = params
  width, prompt = max(_widths(config), default=0), loaded.prompt_widths[-1]
  slots = config.batch * (prompt + config.rollouts_per_prompt * width)
  if not loaded.student.cfg.causal:  # which reads all of a canvas at each step, if no cache is asked for
    slots = config.batch * config.rollouts_per_prompt * (prompt + response_len(config)) * config.denoising.cache
  cache = roofline.cache_bytes(loaded.student.cfg, 1, slots, loaded.dtype.itemsize)
  if cache:
    parts["cache of the widest rollout"] = round(cache / meshes.row_shards(mesh) / mesh.shape["tensor"])
  listed = ", ".join(f"{name} {_size(size)}" for name, size in parts.items())
  limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
  of = f" of {_size(limit)}" if limit else ""
  yield (
    f"memory of each of {mesh.size} device(s), at least: {_size(sum(parts.values()))}{of} ({listed}); activations and logits "
    "come on top, see python -m opd_jax.plan"
  )


def _size(size: float) -> str:
  return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / MIB:.1f} MiB"

"""What student and teacher make of answers that were denoised, token by token: each on the canvas to which it was committed.

    denoiser = denoiser_of(student, 20, temperature=1.0)
    answers = denoise(student, denoiser, prompts, 20)
    scored = score_denoised(student, teacher, denoiser, prompts, answers)

What a masked diffusion model predicts of a token depends on what else stands on the canvas, so that a finished text alone has no numbers of
its own. Both models read the canvases that the writer read, the teacher without a look at the answer's end, and every token is scored once: where
it was drawn.

Dimensions: R rows, P prompt width, H positions of a canvas, c positions that a step commits at the most, k alternatives.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from opd_jax.analysis import notebook, score
from opd_jax.analysis.loaded import Model
from opd_jax.data import pipeline
from opd_jax.data.scored import ScoredResponse
from opd_jax.errors import InputError
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.objectives import fused
from opd_jax.objectives.divergence import FrozenInputs, HiddenAndHead, Objective
from opd_jax.objectives.forward import Forward
from opd_jax.rollout.denoise import Denoised, DenoiserConfig, canvas_at
from opd_jax.runtime import hosts, keys
from opd_jax.runtime import mesh as meshes
from opd_jax.types import Batch, Params

REVERSE_KL = "reverse_kl"


def denoiser_of(model: Model, length: int, temperature: float) -> DenoiserConfig:
  """Returns how the model of a run answers: as in an evaluation of its config, but of so many positions and at this temperature.

  Raises:
    InputError: the model comes from no run, or its blocks and steps do not fit the length.
  """
  if model.origin is None:
    raise InputError(f"{model.spec.name} comes from no run, and how it denoises is for a run's config to say.")
  config, sizes = notebook.generator_config(model, temperature), {"batch": 1, "prompt_lens": (), "max_tokens": length}
  found = model.origin.recipe.generator(model.origin.model, config, model.tokenizer, **sizes).config
  assert isinstance(found, DenoiserConfig)
  return found


def denoise(writer: Model, denoiser: DenoiserConfig, prompts: score.Ids, length: int, seed: int = 0) -> Denoised:
  """Lets a model of the denoiser's tokenizer answer each prompt once.

  Returns:
    On the host, a row for each prompt.

  Raises:
    InputError: more tokens than the model has positions.
  """
  denoiser = dataclasses.replace(denoiser, cfg=writer.spec.cfg)
  width, rows = notebook.check_length(writer, prompts, length), _whole_rows(writer, prompts)
  program = score.compiled(denoiser, writer, len(rows), width, length)
  batch = hosts.to_global(pipeline.pad(rows, width, denoiser.sampling.pad_id), meshes.rows(writer.mesh))
  rollout = program(writer.params, batch, keys.of_seed(seed, keys.Use.ANALYSIS), np.int32(length))
  return jax.tree.map(lambda a: a[: len(prompts)], hosts.all_gather_to_host(rollout))


def score_denoised(
  student: Model,
  teacher: Model,
  denoiser: DenoiserConfig,
  prompts: score.Ids,
  answers: Denoised,
  *,
  k: int = 5,
  of: str = "",
) -> list[ScoredResponse]:
  """Scores the answers of `denoise`, up to their stop tokens; see score.score for what is returned.

  Raises:
    InputError: one of the models writes from left to right, their tokenizers differ, or a canvas has no room in one.
  """
  vocab, length = notebook.check_pair(student, teacher, REVERSE_KL, denoise=True), answers.response.shape[1]
  width = min(notebook.check_length(model, prompts, length) for model in (student, teacher))
  shards = meshes.row_shards(student.mesh)
  at_a_time = -(-min(score.AT_A_TIME, len(prompts)) // shards) * shards
  found: list[ScoredResponse] = []
  for first in range(0, len(prompts), at_a_time):
    part = range(first, min(first + at_a_time, len(prompts)))
    padded = np.array([*part, *[first] * (at_a_time - len(part))])
    batch = pipeline.pad([prompts[i] for i in padded], width, notebook.pad_id(student))
    rollout = jax.tree.map(lambda a, rows=padded: np.asarray(a)[rows], answers)
    batch, rollout = hosts.to_global((batch, rollout), meshes.rows(student.mesh))
    numbers = _scores(
      (student.params, teacher.params),
      batch,
      rollout,
      cfgs=(student.spec.cfg, teacher.spec.cfg),
      forwards=tuple(Forward(m.mesh, m.dtype) for m in (student, teacher)),
      objective=Objective(vocab, REVERSE_KL),
      steps=denoiser.denoising.total(length),
      committed=denoiser.denoising.tokens,
      k=min(k, vocab),
    )
    numbers = hosts.all_gather_to_host(numbers)
    for i in part:
      ids = np.asarray(answers.response)[i, np.asarray(answers.mask)[i]].tolist()
      found.append(score.record(student, prompts[i], ids, numbers, i - first, REVERSE_KL, of))
  return found


def _whole_rows(model: Model, prompts: score.Ids) -> list[Sequence[int]]:
  """Repeats the first prompt until the rows fill the devices."""
  return [*prompts, *[prompts[0]] * (-len(prompts) % meshes.row_shards(model.mesh))]


@functools.partial(jax.jit, static_argnames=("cfgs", "forwards", "objective", "steps", "committed", "k"))
def _scores(
  params: tuple[Params, Params],
  batch: Batch,
  rollout: Denoised,
  *,
  cfgs: tuple[DecoderConfig, DecoderConfig],
  forwards: tuple[Forward, Forward],
  objective: Objective,
  steps: int,
  committed: int,
  k: int,
) -> dict[str, Array]:
  """Computes the statistics of every token and of each model the k likeliest ids, one denoising step after the other: [R, H, ...]."""
  R, H = rollout.response.shape
  committed_at = rollout.committed_at
  assert committed_at is not None

  def at(t: Array) -> tuple[Array, dict[str, Array]]:
    """The positions that step t commits, H where it commits fewer, and their numbers: [R, c, ...]."""
    here = committed_at == t
    _, positions = lax.top_k(here.astype(jnp.int32), committed)
    compared = jnp.take_along_axis(here & rollout.mask, positions, axis=1)
    tokens = jnp.take_along_axis(rollout.response, positions, axis=1)
    models = []
    for forward, weights, cfg in zip(forwards, params, cfgs, strict=True):
      assert cfg.mask_id is not None
      whole = forward.canvas(weights, cfg, batch, canvas_at(rollout.response, committed_at, t, cfg.mask_id))
      hidden = jnp.take_along_axis(whole.hidden, positions[..., None], axis=1)
      models.append(HiddenAndHead(hidden, whole.head))
    inputs = FrozenInputs((models[1],), tokens, compared)
    numbers: dict[str, Any] = dict(fused.token_stats(objective, models[0], inputs, mesh=forwards[0].mesh))
    for name, model in zip(("student", "teacher"), models, strict=True):
      numbers[f"{name}_top"], numbers[f"{name}_ids"] = score.likeliest(model, objective.vocab, k)
    return jnp.where(compared, positions, H), numbers

  def step(t: Array, found: dict[str, Array]) -> dict[str, Array]:
    positions, numbers = at(t)
    places = jnp.arange(R)[:, None], positions
    return jax.tree.map(lambda old, new: old.at[places].set(new, mode="drop"), found, numbers)

  shapes = jax.eval_shape(lambda: at(jnp.int32(0))[1])
  nothing = jax.tree.map(lambda a: jnp.zeros((R, H, *a.shape[2:]), a.dtype), shapes)
  return lax.fori_loop(0, steps, step, nothing)

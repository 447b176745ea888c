"""The compiled programs of rollouts that branch: one for each layer of the trees, see branch.py.

A layer goes on from the caches of the one before (prefix.py), or reads prompts and steps again as prompts. Both draw the same tokens; the
second is the reference, and what models with sliding windows get.

Dimensions: p prompts, r rows of a prompt in a layer, P prompt length, L tokens of a step.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.models import roofline
from opd_jax.models.roofline import Cost
from opd_jax.rollout import prefix
from opd_jax.rollout.branch import rows_of_layers
from opd_jax.rollout.generate import GeneratorConfig
from opd_jax.rollout.prefix import Prefix
from opd_jax.runtime import mesh as meshes
from opd_jax.types import Batch, Params, Rollout


@dataclasses.dataclass(frozen=True)
class Layers:
  """The static description of trees, by layer.

  Attributes:
    generator: what samples a step, with the tokens that end one.
    prompts: p, trees of a step.
    widths: children of a node in each layer.
    step_tokens: L.
    prefixes: "cached" or "recomputed".
    longest: tokens of prompt and response together, at most.
  """

  generator: GeneratorConfig
  prompts: int
  widths: tuple[int, ...]
  step_tokens: int
  prefixes: str
  longest: int

  @property
  def rows(self) -> list[int]:
    """r of each layer."""
    return rows_of_layers(self.widths)

  @property
  def cached(self) -> bool:
    """Whether a layer goes on from caches; a window that hides a token is told by slots, and reads prefixes again."""
    return self.prefixes == "cached" and prefix.supports(self.generator.cfg, self.longest)

  def sample(
    self,
    params: Params,
    before: Batch | Prefix,
    key: jax.Array,
    limit: Int[Array, ""],
    expand: Int[Array, "p r"],
    *,
    keep: bool,
  ) -> tuple[Rollout, Prefix | None]:
    """Sample the steps of a layer, a pure function of its arrays.

    Args:
      before: prompts with the steps so far; cached, in every layer but the first, what the layer before has kept.
      expand: the rows before that each row goes on from.
      keep: whether another layer goes on from this one, cached.
    """
    settings = {"response_len": self.step_tokens, "expand": expand}
    if not self.cached:
      assert isinstance(before, Batch)
      return self.generator.rollout(params, before, key, limit, **settings), None
    grown, kept = self.generator.rollout_and_prefix(params, before, key, limit, **settings)
    return grown, kept if keep else None

  def lower(self, layer: int, params: Params, prompt_len: int) -> jax.stages.Lowered:
    """Lower the program of a layer.

    Args:
      params: arrays, or their shapes and shardings.
      prompt_len: P.
    """
    row = meshes.rows(self.generator.mesh)
    keep = self.cached and layer < len(self.widths) - 1
    sample = functools.partial(self.sample, keep=keep)
    return jax.jit(sample, out_shardings=row).lower(*self._arguments(layer, params, prompt_len))

  def texts(self, layers: int, prompt_len: int) -> Batch:
    """The shapes of the prompts with the steps of so many layers, a row for each node of the last one."""
    rows = self.prompts * [1, *self.rows][layers]
    return self.texts_of(rows, prompt_len + layers * self.step_tokens)

  def texts_of(self, rows: int, length: int) -> Batch:
    """The shapes of so many texts of so many tokens."""
    array = functools.partial(jax.ShapeDtypeStruct, (rows, length), sharding=meshes.rows(self.generator.mesh))
    return Batch(array(dtype=jnp.int32), array(dtype=jnp.bool_))  # pyright: ignore[reportArgumentType]

  def _arguments(self, layer: int, params: Params, prompt_len: int) -> tuple[Any, ...]:
    row, everywhere = meshes.rows(self.generator.mesh), meshes.replicated(self.generator.mesh)
    key, limit = meshes.abstract(jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0))), everywhere)
    expand = jax.ShapeDtypeStruct((self.prompts, self.rows[layer]), jnp.int32, sharding=row)
    before = self.texts(layer, prompt_len)
    if layer and self.cached:
      of_layer_before = functools.partial(self.sample, keep=True)
      arguments = self._arguments(layer - 1, params, prompt_len)
      before = meshes.abstract(jax.eval_shape(of_layer_before, *arguments)[1], row)
    return params, before, key, limit, expand

  def costs(self, prompts: int, prompt_len: int, **sizes: int) -> list[Cost]:
    """Count the layers of so many trees one after another, with what each reads of what stands before it."""
    found, cfg = [], self.generator.cfg
    for layer, (before, here) in enumerate(zip([1, *self.rows], self.rows, strict=False)):
      so_far = prompt_len + layer * self.step_tokens
      first, *others = roofline.rollout(cfg, prompts * before, here // before, so_far, self.step_tokens, **sizes)
      if layer and self.cached:  # one token of each row
        first = roofline.decode_step(cfg, prompts * here, 1, so_far - 1, 1, **sizes)
      found += [first, *others]
    return found


def check_sizes(config: Config) -> None:
  """Refuses trees that do not fit the update's rows.

  Raises:
    InputError: says which key is wrong.
  """
  widths, tokens = tuple(config.graph.widths), config.graph.step_tokens
  n, length = math.prod(widths), len(widths) * tokens
  if not widths:
    raise InputError("config.graph.widths is (); give the children of a node in each layer, such as (2, 2, 2).")
  if config.rollouts_per_prompt != n:
    raise InputError(
      f"config.rollouts_per_prompt is {config.rollouts_per_prompt}, and config.graph.widths {widths} make {n} ways; set it to that."
    )
  if config.horizon.max != length:
    raise InputError(
      f"config.horizon.max is {config.horizon.max}, and {len(widths)} layers of config.graph.step_tokens={tokens} are {length} tokens; set it to "
      "that."
    )

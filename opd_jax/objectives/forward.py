"""Teacher-forced forward passes: what a model predicts at each token of a response, under any prompt.

Usable without a recipe: training, probes and analyses call it with whichever parameters and prompts they compare.

Dimensions: B rows, n of each prompt, H response width, D model width, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from opd_jax.models import decoder, kernels, lookup, moe
from opd_jax.objectives.divergence import HiddenAndHead
from opd_jax.types import Batch, Params, Rollout


@dataclasses.dataclass(frozen=True)
class Forward:
  """The settings of a teacher-forced forward pass; calling it computes one.

  Attributes:
    mesh: the devices.
    dtype: the compute type.
    remat: what a backward pass computes again, see decoder.REMAT.
    attention: the kernel, see models/kernels.py.
  """

  mesh: jax.sharding.Mesh
  dtype: Any = jnp.float32
  remat: str = "none"
  attention: str = "xla"

  def __call__(
    self, params: Params, cfg: decoder.DecoderConfig, prompt: Batch, rollout: Rollout, layout: str = "train"
  ) -> HiddenAndHead:
    """Computes the hidden states [B, H, D] that predict each response token under the prompts, beside the head [V, D].

    Args:
      params: of `cfg`, sharded by `layout`, a key of runtime.mesh.RULES.
      prompt: one row per row of the rollout, or one for every n of them, which are neighbours.
    """
    hidden = decoder.response_hidden(
      params,
      cfg,
      prompt.prompt,
      prompt.prompt_mask,
      rollout.response,
      rollout.mask,
      dtype=self.dtype,
      remat=self.remat,
      attention_fn=functools.partial(kernels.attend, self.attention, self.mesh),
      images=prompt.images,
      **self._on_mesh(layout),
    )
    return HiddenAndHead(hidden, decoder.head(params))

  def canvas(
    self, params: Params, cfg: decoder.DecoderConfig, prompt: Batch, canvas: Int[Array, "B H"], layout: str = "train"
  ) -> HiddenAndHead:
    """Computes the hidden states [B, H, D] by which a masked diffusion model predicts each position of a canvas.

    Args:
      prompt: one row per row of the canvas.
      canvas: tokens, and the mask's id where there is none yet.
    """
    hidden = decoder.canvas_hidden(
      params,
      cfg,
      prompt.prompt,
      prompt.prompt_mask,
      canvas,
      dtype=self.dtype,
      remat=self.remat,
      **self._on_mesh(layout),
    )
    return HiddenAndHead(hidden, decoder.head(params))

  def _on_mesh(self, layout: str) -> dict[str, Any]:
    return {
      "moe_fn": functools.partial(moe.feed_forward, self.mesh),
      "embed_fn": functools.partial(lookup.embed, self.mesh, layout),
    }

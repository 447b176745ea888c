"""What a decoder is: its sizes and switches, and what follows from them of its layers and their rotary angles."""

import dataclasses
from typing import Any

from jaxtyping import Array, Int

from opd_jax.models import layer_kinds, rope
from opd_jax.models.delta_net import DeltaNet
from opd_jax.models.layer_kinds import LayerKind
from opd_jax.models.moe import MoE
from opd_jax.models.vision import VisionConfig

OF_ATTENTION = ("q", "k", "v", "o")  # with which the names of a layer's parameters of attention begin, and of no others
NORMS = {  # of a layer, by where they stand: before attention and feed-forward, behind them, or both
  "before": ("attn_norm", "mlp_norm"),
  "after": ("attn_out_norm", "mlp_out_norm"),
  "both": ("attn_norm", "attn_out_norm", "mlp_norm", "mlp_out_norm"),
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """The sizes and switches of a decoder; read_config of hf.py makes one of a config.json."""

  vocab: int
  d_model: int  # the model width D
  layers: int
  heads: int
  kv_heads: int
  head_width: int
  ff_width: int  # of one expert where there are several
  rope_theta: float = 10_000.0
  rope_scaling: rope.Scaling | None = None
  norm_eps: float = 1e-6
  qk_norm: bool = False  # Qwen3
  qkv_bias: bool = False  # Qwen2.5
  tied: bool = True  # the output head is the embedding
  max_positions: int = 32_768
  moe: MoE | None = None  # every layer's feed-forward part is a mixture of experts
  adapter_scale: float = 1.0  # of the low-rank adapters that the parameters may hold, see lora.py
  out_bias: bool = False  # config.json's attention_bias, together with qkv_bias
  whole_qk_norm: bool = False  # the norms of queries and keys are over all heads at once (OLMo-2)
  norms: str = "before"  # a key of NORMS; "after" in OLMo-2, "both" in Gemma-3
  zero_centred_norms: bool = False  # norms multiply by 1 + their weight, as all of the next four in Gemma-3
  activation: str = "silu"  # a key of ACTIVATIONS
  scaled_embedding: bool = False  # by sqrt(D)
  query_scalar: int | None = None  # scores are divided by its square root; None: by that of the head width
  layer_kinds: tuple[LayerKind, ...] = ()  # of the first layers, and then again from the first; (): all are plain
  causal: bool = True  # False: a masked diffusion model, whose tokens see all others
  mask_id: int | None = None  # the id of the mask, of a masked diffusion model
  shifted: bool = False  # a masked diffusion model whose prediction of a position stands at the one before it (Dream)
  rotary_width: int | None = None  # how much of a head is rotated, from its first number on; None: all of it
  gated_attention: bool = False  # what a head has attended to is multiplied by the sigmoid of a gate as wide
  delta: DeltaNet | None = None  # of the layers whose kind says so
  tensor_names: str = "transformers"  # how its files call their tensors, a key of tensor_places.NAMES
  rope_axes: tuple[
    int, ...
  ] = ()  # of a model that sees images: which position of a token each rotary frequency turns by
  tower: VisionConfig | None = None  # the vision tower, where it is part of the parameters; None: images come encoded

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")

  def to_dict(self) -> dict[str, Any]:
    """The fields as plan.json and bench records keep them, where d_model has its first name, "width"."""
    newer = {f.name: f.default for f in dataclasses.fields(self)[_FIRST_FIELDS:]}
    values = {name: v for name, v in dataclasses.asdict(self).items() if name not in newer or v != newer[name]}
    return {"width" if name == "d_model" else name: value for name, value in values.items()}

  @property
  def kinds(self) -> list[LayerKind]:
    """The kind of every layer."""
    return layer_kinds.repeated(self.layer_kinds, self.layers)

  @property
  def block(self) -> int:
    """The number of layers after which their mixers repeat; of all where they never do."""
    mixers = [kind.mixer for kind in self.kinds]
    fits = (m for m in range(1, self.layers + 1) if self.layers % m == 0)
    return next(m for m in fits if mixers == mixers[:m] * (self.layers // m))

  def holders(self, name: str) -> list[int]:
    """The layers that have a parameter of this name, in whose order it is stacked."""
    mixer = "delta" if name.startswith("delta_") else "attention" if name.startswith(OF_ATTENTION) else None
    return [i for i, kind in enumerate(self.kinds) if mixer in (None, kind.mixer)]

  @property
  def _rope_kinds(self) -> list[LayerKind]:
    """The rotary settings of the layers, each once."""
    return list(dict.fromkeys(map(_rotary_kind, self.kinds)))

  @property
  def rope_of(self) -> list[int]:
    """The index in `ropes` of every layer."""
    return [self._rope_kinds.index(_rotary_kind(kind)) for kind in self.kinds]

  def ropes(self, positions: Int[Array, "B T"] | Int[Array, "B T 3"]) -> list[tuple[Array, Array]]:
    """The tables of rotary angles, as `rope_tables`, of every kind of layer; one where layers do not differ in it."""
    own = lambda kind: rope_tables(self, positions) if kind.theta is None else self._unscaled(kind.theta, positions)
    return [own(kind) if kind.rotary else rope.nowhere(own(kind)) for kind in self._rope_kinds]

  def _unscaled(self, theta: float, positions: Int[Array, "B T"] | Int[Array, "B T 3"]) -> tuple[Array, Array]:
    return rope.tables(self.rotary_width or self.head_width, theta, None, positions, self.rope_axes)


def rope_tables(cfg: DecoderConfig, positions: Int[Array, "B T"] | Int[Array, "B T 3"]) -> tuple[Array, Array]:
  """The cosine and the sine of the rotary angles, f32[B, T, 1, h/2] each, of layers without a base of their own."""
  return rope.tables(cfg.rotary_width or cfg.head_width, cfg.rope_theta, cfg.rope_scaling, positions, cfg.rope_axes)


def _rotary_kind(kind: LayerKind) -> LayerKind:
  """What of a layer's kind its rotary angles depend on."""
  return dataclasses.replace(kind, window=None, mixer="attention")


# Of the fields behind these only those are recorded that are set.
_FIRST_FIELDS = 1 + [f.name for f in dataclasses.fields(DecoderConfig)].index("adapter_scale")

"""Which layers of a config.json see how far, and which have rotary positions: read as `LayerKind`s, and written.

Every architecture has keys and defaults of its own for it. What is wrong with a value is a ValueError's sentence without its
full stop.
"""

import dataclasses

from opd_jax.models import hf_rope, layer_kinds
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.models.hf_rope import FULL, LINEAR, SLIDING
from opd_jax.models.hf_values import Json, entries, positive_int, switch
from opd_jax.models.layer_kinds import LayerKind
from opd_jax.models.rope import Scaling

Rope = tuple[float, Scaling | None]


class Layers:
  """Layers that are all alike: each sees everything before it, at rotary positions."""

  def read(self, raw: Json, layers: int, max_positions: int, theta: float) -> tuple[Rope, list[LayerKind]]:
    """Read the model's rotary embedding and the kinds of its first layers, which those behind them repeat.

    Args:
      theta: the base where config.json has none.
    """
    entries(raw, "layer_types", (FULL,), layers)
    return hf_rope.read(raw, max_positions, theta), [LayerKind()]

  def write(self, cfg: DecoderConfig) -> Json:
    """The keys of config.json that `read` looks at, if they can say what `cfg` is."""
    return hf_rope.as_json(cfg.rope_theta, cfg.rope_scaling)


PLAIN = Layers()


class WindowEverywhere(Layers):
  """Mistral: sliding_window is of all layers, and is 4096 where it is left out."""

  def read(self, raw: Json, layers: int, max_positions: int, theta: float) -> tuple[Rope, list[LayerKind]]:
    rope, kinds = super().read(raw, layers, max_positions, theta)
    if raw.get("sliding_window", 4096) is None:
      return rope, kinds
    return rope, [LayerKind(positive_int(raw, "sliding_window", 4096))]

  def write(self, cfg: DecoderConfig) -> Json:
    return super().write(cfg) | {"sliding_window": cfg.kinds[0].window}


class WindowWhereSwitched(Layers):
  """Qwen2 and Qwen3: windows are of the layers that layer_types names, or from max_window_layers on, if switched on."""

  def read(self, raw: Json, layers: int, max_positions: int, theta: float) -> tuple[Rope, list[LayerKind]]:
    if not switch(raw, "use_sliding_window") or ("sliding_window" in raw and raw["sliding_window"] is None):
      if SLIDING in (entries(raw, "layer_types", (FULL, SLIDING), layers) or ()):
        raise ValueError(f"layer_types has '{SLIDING}', and use_sliding_window or sliding_window says that none is")
      return super().read(raw, layers, max_positions, theta)
    _check_number(layers)
    types = entries(raw, "layer_types", (FULL, SLIDING), layers) or self._types(raw, layers)
    window = positive_int(raw, "sliding_window", 4096)
    rope = hf_rope.read(raw, max_positions, theta)
    return rope, [LayerKind(window if kind == SLIDING else None) for kind in types]

  def _types(self, raw: Json, layers: int) -> list[str]:
    full = raw.get("max_window_layers", 28)
    if full != 0:
      full = positive_int(raw, "max_window_layers", 28)
    return [SLIDING if i >= full else FULL for i in range(layers)]

  def write(self, cfg: DecoderConfig) -> Json:
    return super().write(cfg) | _windows(cfg, {"use_sliding_window": True})


class NoRopeInSome(WindowWhereSwitched):
  """SmolLM3: no_rope_layers has a 0 for layers without rotary positions, every fourth where it is left out."""

  def read(self, raw: Json, layers: int, max_positions: int, theta: float) -> tuple[Rope, list[LayerKind]]:
    _check_number(layers)
    rope, kinds = super().read(raw, layers, max_positions, theta)
    kinds, rotary = layer_kinds.repeated(kinds, layers), self._rotary(raw, layers)
    return rope, [dataclasses.replace(kind, rotary=bool(r)) for kind, r in zip(kinds, rotary, strict=True)]

  def _rotary(self, raw: Json, layers: int) -> list[int]:
    interval = positive_int(raw, "no_rope_layer_interval", 4)
    default = [int((i + 1) % interval != 0) for i in range(layers)]
    return entries(raw, "no_rope_layers", (0, 1), layers) or default

  def _types(self, raw: Json, layers: int) -> list[str]:
    return [FULL if rotary else SLIDING for rotary in self._rotary(raw, layers)]

  def write(self, cfg: DecoderConfig) -> Json:
    return super().write(cfg) | {"no_rope_layers": [int(kind.rotary) for kind in cfg.kinds]}


@dataclasses.dataclass(frozen=True)
class Alternating(Layers):
  """OLMo-3 and Gemma-3: windows in most layers, whose rotary embedding is never scaled, and may have a base of its own."""

  period: int  # every so many-th layer is full, where layer_types is left out
  local_theta: float | None = None  # of sliding layers; None: that of the full ones

  def read(self, raw: Json, layers: int, max_positions: int, theta: float) -> tuple[Rope, list[LayerKind]]:
    _check_number(layers)
    period = positive_int(raw, "sliding_window_pattern", self.period)
    default = [FULL if (i + 1) % period == 0 else SLIDING for i in range(layers)]
    types = entries(raw, "layer_types", (FULL, SLIDING), layers) or default
    rope = hf_rope.read(raw, max_positions, theta, FULL)
    sliding = LayerKind(positive_int(raw, "sliding_window", 4096), theta=self._local_theta(raw, max_positions, rope))
    return rope, [sliding if kind == SLIDING else LayerKind() for kind in types]

  def _local_theta(self, raw: Json, max_positions: int, rope: Rope) -> float | None:
    local = rope[0] if self.local_theta is None else raw.get("rope_local_base_freq") or self.local_theta
    plain = {"rope_theta": local}
    if isinstance(raw.get("rope_parameters"), dict):
      plain["rope_parameters"] = {SLIDING: raw["rope_parameters"].get(SLIDING)}
    theta, scaling = hf_rope.read(plain, max_positions, self.local_theta or rope[0], SLIDING)
    if scaling is not None:
      raise ValueError(f"the rope scaling of {SLIDING} is not 'default', which is not supported")
    return None if rope == (theta, None) else theta

  def write(self, cfg: DecoderConfig) -> Json:
    local = next((k.theta for k in cfg.kinds if k.window is not None and k.theta is not None), cfg.rope_theta)
    full = {"rope_theta": cfg.rope_theta} | (hf_rope.scaling_as_json(cfg.rope_scaling) or {"rope_type": "default"})
    nested = {FULL: full, SLIDING: {"rope_theta": local, "rope_type": "default"}}
    base = {} if self.local_theta is None else {"rope_local_base_freq": local}
    return super().write(cfg) | base | {"rope_parameters": nested} | _windows(cfg, {})


class Hybrid(Layers):
  """Qwen3.5: layers of the gated delta rule, and of full attention every full_attention_interval layers, or as layer_types says."""

  def read(self, raw: Json, layers: int, max_positions: int, theta: float) -> tuple[Rope, list[LayerKind]]:
    _check_number(layers)
    interval = positive_int(raw, "full_attention_interval", 4)
    default = [FULL if (i + 1) % interval == 0 else LINEAR for i in range(layers)]
    types = entries(raw, "layer_types", (FULL, LINEAR), layers) or default
    if FULL not in types:
      raise ValueError(f"no layer is '{FULL}', which is not supported")
    rope = hf_rope.read(raw, max_positions, theta, partial=True)
    return rope, [LayerKind(mixer="delta" if kind == LINEAR else "attention") for kind in types]

  def write(self, cfg: DecoderConfig) -> Json:
    if cfg.delta is None:
      return super().write(cfg)
    net, types = cfg.delta, [LINEAR if kind.mixer == "delta" else FULL for kind in cfg.kinds]
    return super().write(cfg) | {
      "layer_types": types,
      "partial_rotary_factor": (cfg.rotary_width or cfg.head_width) / cfg.head_width,
      "linear_num_key_heads": net.key_heads,
      "linear_num_value_heads": net.value_heads,
      "linear_key_head_dim": net.key_width,
      "linear_value_head_dim": net.value_width,
      "linear_conv_kernel_dim": net.conv,
    }


MOST_LAYERS = 4096  # of models whose layers differ; they are listed, and no list should fill the memory


def _check_number(layers: int) -> None:
  if layers > MOST_LAYERS:
    raise ValueError(f"num_hidden_layers is {layers}; of models whose layers differ it can be {MOST_LAYERS} at most")


def _windows(cfg: DecoderConfig, switched: Json) -> Json:
  """The keys of layers with and without a window, where any has one."""
  windows = [kind.window for kind in cfg.kinds]
  if not any(windows):
    return {}
  types = [FULL if window is None else SLIDING for window in windows]
  return switched | {"sliding_window": next(filter(None, windows)), "layer_types": types}

"""The rotary embedding of a config.json: transformers 4's rope_theta and rope_scaling, or 5's rope_parameters.

What is wrong with a value is a ValueError's sentence without its full stop.
"""

import math
from typing import Any

from opd_jax.errors import brief
from opd_jax.models.hf_values import Json, number
from opd_jax.models.rope import LinearScaling, RopeScaling, Scaling, YarnScaling
from opd_jax.runtime.json_files import is_whole

KINDS = ("default", "linear", "dynamic", "yarn", "llama3")
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"


def read(
  raw: Json, max_positions: int, default_theta: float, layer_type: str | None = None, *, partial: bool = False
) -> tuple[float, Scaling | None]:
  """Read base and scaling.

  Args:
    partial: whether the model may rotate a part of each head alone, see `rotary_width`.
    layer_type: FULL or SLIDING where the two have settings of their own, as in OLMo-3 and Gemma-3; in transformers 4's
      form those are of the full layers.
  """
  rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
  if layer_type and isinstance(raw.get("rope_parameters"), dict) and raw["rope_parameters"].keys() & {FULL, SLIDING}:
    rope = raw["rope_parameters"].get(layer_type) or {}
  if not isinstance(rope, dict):
    raise ValueError(f"the rope scaling is {brief(rope)}; it has to be an object")
  if nested := [key for key, value in rope.items() if isinstance(value, dict)]:
    raise ValueError(f"the rope scaling has settings for {brief(nested[0])} alone, which is not supported")
  theta = number({"rope_theta": rope.get("rope_theta") or raw.get("rope_theta")}, "rope_theta", default_theta)
  factor = rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
  if factor != 1.0 and not partial:
    raise ValueError(f"partial_rotary_factor is {brief(factor)}; only 1 is supported")
  kind = rope.get("rope_type") or rope.get("type") or "default"
  if kind not in KINDS:
    raise ValueError(f"rope type {brief(kind)} is not supported; {', '.join(map(repr, KINDS))} are")
  if kind == "default":
    return theta, None
  factor = number(rope, "factor")
  if kind == "dynamic":  # it scales beyond max_position_embeddings alone, and no sequence here goes there
    return theta, None
  if kind == "linear":
    return theta, LinearScaling(factor)
  key = "original_max_position_embeddings"
  original = raw.get(key) or rope.get(key) or max_positions
  if not is_whole(original, 1):
    raise ValueError(f"{key} is {brief(original)}; it has to be a whole number above 0")
  if kind == "yarn":
    return theta, _yarn(rope, theta, factor, original)
  low, high = number(rope, "low_freq_factor"), number(rope, "high_freq_factor")
  if not low < high:
    raise ValueError(f"low_freq_factor is {low} and high_freq_factor {high}; it has to be the larger")
  return theta, RopeScaling(factor, low, high, original)


def rotary_width(raw: Json, head_width: int, default: float) -> int:
  """Read how many of a head's numbers are rotated.

  Args:
    default: share of them, where config.json has none.
  """
  rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
  share = rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or default
  share = number({"partial_rotary_factor": share}, "partial_rotary_factor")
  width = int(head_width * share)
  if share > 1 or width < 2 or width % 2:
    raise ValueError(
      f"partial_rotary_factor is {share}, which rotates {width} of a head's {head_width} numbers; that has to be even, and at least 2"
    )
  return width


def _yarn(rope: Json, theta: float, factor: float, original: int) -> YarnScaling:
  """Read YaRN; without an attention_factor it is 0.1 ln(factor) + 1, or a quotient of two such with mscale."""
  if rope.get("truncate") not in (None, True):
    raise ValueError(f"truncate is {brief(rope['truncate'])} in the rope scaling; only true is supported")
  if theta <= 1:
    raise ValueError(f"rope_theta is {brief(theta)}, and rope type 'yarn' needs one above 1")
  larger = lambda mscale=1.0: 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
  default = larger()
  if rope.get("mscale") and rope.get("mscale_all_dim"):
    default = larger(number(rope, "mscale")) / larger(number(rope, "mscale_all_dim"))
  fast = number(rope, "beta_fast") if rope.get("beta_fast") else 32.0
  slow = number(rope, "beta_slow") if rope.get("beta_slow") else 1.0
  return YarnScaling(factor, original, fast, slow, number(rope, "attention_factor", default))


def scaling_as_json(scaling: Scaling | None) -> dict[str, Any] | None:
  """The value of rope_scaling, which transformers 5 reads too."""
  match scaling:
    case None:
      return None
    case LinearScaling(factor):
      return {"rope_type": "linear", "factor": factor}
    case RopeScaling(factor, low, high, original):
      return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
      }
    case YarnScaling(factor, original, fast, slow, attention_factor):
      return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": fast,
        "beta_slow": slow,
        "attention_factor": attention_factor,
      }


def as_json(theta: float, scaling: Scaling | None) -> Json:
  """The two rope keys as transformers 4 writes them, which transformers 5 also reads."""
  return {"rope_theta": theta, "rope_scaling": scaling_as_json(scaling)}

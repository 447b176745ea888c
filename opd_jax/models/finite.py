"""Whether weights are numbers: a NaN or Inf in one of them makes a NaN of every response, loss and gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool


def all_finite(tree: Any) -> Bool[Array, ""]:
  """Tells whether no float array of a pytree has a NaN or Inf; to be traced."""
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for _, a in _floats(tree)]))


def first_broken(tree: Any) -> str | None:
  """Names the first float array of a pytree that has a NaN or Inf, as "layers/q"; None where all are finite."""
  floats = _floats(tree)
  finite = jax.device_get(_finite([a for _, a in floats]))
  broken = [name for (name, _), fine in zip(floats, finite, strict=True) if not np.all(fine)]
  return broken[0] if broken else None


@jax.jit
def _finite(arrays: list[Array]) -> list[Bool[Array, ""]]:
  return [jnp.all(jnp.isfinite(a)) for a in arrays]


def _floats(tree: Any) -> list[tuple[str, Array]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return [
    (jax.tree_util.keystr(path, simple=True, separator="/"), a)
    for path, a in leaves
    if jnp.issubdtype(a.dtype, jnp.floating)
  ]

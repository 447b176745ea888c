"""Which weights move, and how: the optimiser chain and the guard against a broken update."""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from opd_jax.types import TrainState


def learning_rate(c, update: int) -> float:
  """Linear warm-up over `warmup` updates, then constant, as in the paper's runs; updates count from 0."""
  return c.lr * min(1.0, (update + 1) / max(c.warmup, 1))


def make(c) -> optax.GradientTransformation:
  """The chain of `config.optimizer`: clip by global norm, AdamW; weight decay on matrices only.

  The same object for the same numbers, so that programs which close over it can be told to be the same.
  """
  return _chain(c.lr, c.warmup, c.clip, c.b1, c.b2, c.eps, c.weight_decay)


@functools.cache
def _chain(lr, warmup, clip, b1, b2, eps, weight_decay) -> optax.GradientTransformation:
  decayed = lambda params: jax.tree_util.tree_map_with_path(
    lambda path, _: not any(part in path[-1].key for part in ("norm", "bias")), params
  )
  rate = lambda count: lr * jnp.minimum(1.0, (count + 1) / max(warmup, 1))  # `learning_rate`, traced
  return optax.chain(
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decayed),
  )


def apply(
  optimizer: optax.GradientTransformation, state: TrainState, grads, loss: Float[Array, ""]
) -> tuple[TrainState, Float[Array, ""]]:
  """One update, or none where the loss or the gradient is not finite, or where the gradient is exactly zero.

  Zero is what is left where no token counts, where all are clipped, or where all rollouts of each prompt earn the same;
  an update would still move weights, by momentum and decay.

  Returns:
    The next state, and the gradient's global norm before clipping.
  """
  norm = optax.global_norm(grads)
  good = jnp.isfinite(loss) & jnp.isfinite(norm)
  wanted = norm != 0
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  keep = lambda new, old: jnp.where(good & wanted, new, old)
  return TrainState(
    params=jax.tree.map(keep, optax.apply_updates(state.params, updates), state.params),
    opt_state=jax.tree.map(keep, opt_state, state.opt_state),
    step=state.step + 1,
    skipped=jnp.where(good, 0, state.skipped + 1),
    empty=state.empty + ~wanted,
  ), norm

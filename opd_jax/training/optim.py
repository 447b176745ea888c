"""Which weights move, and how: the optimiser chain and the guard against a broken update."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from opd_jax.models import finite
from opd_jax.types import TrainState


def learning_rate(config, update: int) -> float:
  """Computes the learning rate of an update, from 0: linear warm-up over `warmup` of them, then constant."""
  return config.lr * min(1.0, (update + 1) / max(config.warmup, 1))


def make(config) -> optax.GradientTransformation:
  """Makes the optimiser of `config.optimizer`: clip by global norm, AdamW; weight decay on matrices only.

  Equal numbers give the same object, so that programs which close over it compare as equal.
  """
  return _chain(config.lr, config.warmup, config.clip, config.b1, config.b2, config.eps, config.weight_decay)


@functools.cache
def _chain(lr, warmup, clip, b1, b2, eps, weight_decay) -> optax.GradientTransformation:
  def decayed(params):  # which parameters weight decay applies to
    return jax.tree_util.tree_map_with_path(
      lambda path, _: not any(part in path[-1].key for part in ("norm", "bias")), params
    )

  def rate(count):  # `learning_rate`, traced
    return lr * jnp.minimum(1.0, (count + 1) / max(warmup, 1))

  return optax.chain(
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decayed),
  )


def apply(
  optimizer: optax.GradientTransformation, state: TrainState, grads, loss: Float[Array, ""]
) -> tuple[TrainState, Float[Array, ""]]:
  """Makes one update, or none where it would not be finite, or where the gradient is exactly zero.

  Not finite: a NaN or Inf in the loss, in the gradient, in a new parameter or in a new moment of the optimiser. So
  parameters that are finite stay it. Zero is what is left where no token counts, where all are clipped, or where all
  rollouts of each prompt earn the same; an update would still move weights, by momentum and decay.

  Returns:
    The next state, and the gradient's global norm before clipping.
  """
  norm = optax.global_norm(grads)
  wanted = norm != 0
  good = jnp.isfinite(loss) & jnp.isfinite(norm) & (~wanted | _stays_finite(optimizer, state, grads))
  params, opt_state = _updated(optimizer, state, grads)

  def if_updated(new, old):
    return jnp.where(good & wanted, new, old)

  return dataclasses.replace(
    state,
    params=jax.tree.map(if_updated, params, state.params),
    opt_state=jax.tree.map(if_updated, opt_state, state.opt_state),
    step=state.step + 1,
    skipped=jnp.where(good, 0, state.skipped + 1),
    empty=state.empty + ~wanted,
  ), norm


def _updated(optimizer: optax.GradientTransformation, state: TrainState, grads):
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  return optax.apply_updates(state.params, updates), opt_state


def _stays_finite(optimizer: optax.GradientTransformation, state: TrainState, grads) -> Bool[Array, ""]:
  """Tells whether the new parameters and moments have neither NaN nor Inf; they are computed for this alone.

  Computed once, they would lie in memory until the last of them is looked at: twice the parameters' bytes on a TPU.
  Behind the barrier the compiler computes them again, in the pass that reduces them.
  """
  state, grads = lax.optimization_barrier((state, grads))
  return finite.all_finite(_updated(optimizer, state, grads))

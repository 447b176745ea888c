"""Which weights move, and how: the optimiser chain and the guard against a broken update."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from opd_jax.models import finite
from opd_jax.training import masks
from opd_jax.types import TrainState


class Rate(NamedTuple):
  """How the learning rate goes over a run's updates; see the keys `optimizer.*` of the same names."""

  lr: float
  warmup: int
  schedule: str
  decay_updates: int
  min_lr_ratio: float


def _rate_of(config) -> Rate:
  return Rate(*(config[name] for name in Rate._fields))


def learning_rate(config, update: int) -> float:
  """Computes the learning rate of an update, from 0.

  A linear warm-up over `warmup` updates; then `schedule`: constant, or from lr down to `min_lr_ratio` of it over `decay_updates`, by a line or by half
  a cosine, and constant from there.
  """
  warm = config.lr * min(1.0, (update + 1) / max(config.warmup, 1))
  if config.schedule == "constant":
    return warm
  gone = min(1.0, max(0.0, (update - config.warmup) / config.decay_updates))
  left = 1.0 - gone if config.schedule == "linear" else (1.0 + math.cos(math.pi * gone)) / 2
  return warm * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * left)


def _traced(rate: Rate) -> optax.Schedule:
  """`learning_rate`, of an update's number that is an array."""

  def at(count):
    warm = rate.lr * jnp.minimum(1.0, (count + 1) / max(rate.warmup, 1))
    if rate.schedule == "constant":
      return warm
    gone = jnp.clip((count - rate.warmup) / rate.decay_updates, 0.0, 1.0)
    left = 1.0 - gone if rate.schedule == "linear" else (1.0 + jnp.cos(jnp.pi * gone)) / 2
    return warm * (rate.min_lr_ratio + (1.0 - rate.min_lr_ratio) * left)

  return at


def make(config) -> optax.GradientTransformation:
  """Makes the optimiser of `config.optimizer`: clip by global norm, then AdamW or SGD; weight decay on matrices only.

    adamw    m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, theta <- theta - lr (m' / (sqrt(v') + eps) + decay theta),
             m' and v' without their bias toward 0 (Loshchilov & Hutter 2019, arXiv:1711.05101)
    sgd      m <- momentum m + g, theta <- theta - lr (m + decay theta), their SGDW; without momentum m is g and not kept

  Equal numbers give the same object, so that programs which close over it compare as equal.
  """
  rate = _rate_of(config)
  if config.kind == "sgd":
    optimizer = _sgd(rate, config.clip, config.momentum, config.weight_decay)
  else:
    optimizer = _adamw(rate, config.clip, config.b1, config.b2, config.eps, config.weight_decay)
  return optimizer if config.vision_lr == 1 else _with_vision_lr(optimizer, config.vision_lr)


@functools.cache
def _with_vision_lr(optimizer: optax.GradientTransformation, scale: float) -> optax.GradientTransformation:
  """Gives the vision tower a rate of its own, a multiple of the others'; without state, so that checkpoints are the same."""

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    found: Any
    found, state = optimizer.update(updates, state, params)
    if "vision" in found:
      found = found | {"vision": jax.tree.map(lambda u: scale * u, found["vision"])}
    return found, state

  return optax.GradientTransformation(optimizer.init, update)


@functools.cache
def _adamw(rate: Rate, clip, b1, b2, eps, weight_decay) -> optax.GradientTransformation:
  lr = _traced(rate)
  return optax.chain(_clip(clip), optax.adamw(lr, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_decayed))


@functools.cache
def _sgd(rate: Rate, clip, momentum, weight_decay) -> optax.GradientTransformation:
  return optax.chain(
    _clip(clip),
    optax.trace(momentum) if momentum else optax.identity(),
    optax.add_decayed_weights(weight_decay, _decayed),
    optax.scale_by_learning_rate(_traced(rate)),
  )


def _clip(norm: float) -> optax.GradientTransformation:
  return optax.clip_by_global_norm(norm) if norm else optax.identity()


def _decayed(params: Any) -> Any:
  """Tells of every parameter whether weight decay applies to it."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: not any(part in path[-1].key for part in ("norm", "bias")), params
  )


def apply(
  optimizer: optax.GradientTransformation, state: TrainState, grads, loss: Float[Array, ""]
) -> tuple[TrainState, Float[Array, ""]]:
  """Makes one update, or none where it would not be finite, or where the gradient is exactly zero.

  Not finite: a NaN or Inf in the loss, in the gradient, in a new parameter or in a new moment of the optimiser. So
  parameters that are finite stay it. Zero is what is left where no token counts, where all are clipped, or where all
  rollouts of each prompt earn the same; an update would still move weights, by momentum and decay. Of a state with a mask
  (training/masks.py) the gradient is that of the coordinates that are trained; all others stay as they are.

  Returns:
    The next state, and the gradient's global norm before clipping.
  """
  mask = masks.of(state)
  grads = masks.keep(mask, grads)
  norm = optax.global_norm(grads)
  wanted = norm != 0
  good = jnp.isfinite(loss) & jnp.isfinite(norm) & (~wanted | _stays_finite(optimizer, state, grads))
  params, opt_state = _updated(optimizer, state, grads)

  # Masked here and not in `_updated`, so that a new weight is computed as it is without a mask, in the same fused loop.
  def if_updated(new, old, trained=True):
    return jnp.where(good & wanted & trained, new, old)

  return dataclasses.replace(
    state,
    params=jax.tree.map(if_updated, params, state.params, *([] if mask is None else [mask])),
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


def diagnostics(before: TrainState, after: TrainState, grads) -> dict[str, Float[Array, ""]]:
  """Measures how the optimiser's state goes with the gradient (arXiv:2606.13657), over the coordinates that are trained.

    momentum_cosine         cosine of the gradient and the momentum of the updates before it; NaN before the second update
    second_moment_spread    std / mean of sqrt(v), v being AdamW's mean of squared gradients, this one's included

  Args:
    before, after: the states around an update.
    grads: its gradient, before masking and clipping.

  Returns:
    Those of the two that the optimiser has the moments for.
  """
  found, mask = {}, masks.of(before)
  momentum = optax.tree.get(before.opt_state, "mu", optax.tree.get(before.opt_state, "trace"))
  if momentum is not None:
    grads = masks.keep(mask, grads)
    along = optax.tree.sum(jax.tree.map(jnp.multiply, momentum, grads))
    found["momentum_cosine"] = along / (optax.global_norm(momentum) * optax.global_norm(grads))
  if (squares := optax.tree.get(after.opt_state, "nu")) is not None:
    sizes = after.params if mask is None else mask
    trained = [a.size if mask is None else jnp.sum(a, dtype=jnp.float32) for a in jax.tree.leaves(sizes)]
    n = sum(trained, jnp.float32(0))
    mean = optax.tree.sum(jax.tree.map(jnp.sqrt, squares)) / n
    variance = optax.tree.sum(squares) / n - mean**2
    found["second_moment_spread"] = jnp.sqrt(jnp.maximum(variance, 0)) / mean
  return found

"""On-policy distillation: OPD, TOPD and POPD are this one file under three horizons (arXiv:2605.31490).

    for every step:
      sample   the student answers the prompts, at most H tokens long      `rollout`
      score    the teachers read what the student wrote                    `score`
      update   the student moves toward them, token by token               `update`

All three are pure functions of arrays; what they close over is static. The teachers' answers travel from `score` to
`update` as hidden states [B, H, E] and never as logits [B, H, V], so several updates on one rollout, or a teacher
that lies elsewhere on the mesh, score once.

Dimensions: p prompts, n rollouts of each, B = p n rows, P prompt width, H horizon, D and E model widths.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from opd_jax import mesh as meshes
from opd_jax import optim
from opd_jax.models import decoder
from opd_jax.objectives import fused
from opd_jax.objectives.divergence import Readout
from opd_jax.objectives.loss import Loss
from opd_jax.rollout import cache, sample
from opd_jax.types import Answer, Batch, Judges, Params, Rollout, TrainState


@dataclasses.dataclass(frozen=True)
class Distill:
  """What is static in a distillation run."""

  student: decoder.DecoderConfig
  teachers: tuple[decoder.DecoderConfig, ...]
  sampling: sample.Sampling  # its `vocab` is the number of ids that student and teachers share
  loss: Loss
  optimizer: optax.GradientTransformation
  mesh: jax.sharding.Mesh
  n: int = 1  # rollouts per prompt
  micro_batches: int = 1  # gradient-accumulation slices
  dtype: Any = jnp.float32  # compute type
  remat: bool = False
  max_horizon: int = 0  # position bins of the metrics span [0, max_horizon)
  bins: int = 16
  seed: int = 0  # of the mask of random tokens

  def rollout(self, params: Params, batch: Batch, key: jax.Array, limit: jax.Array, *, horizon: int) -> Rollout:
    """n responses to every prompt, cut at `limit` <= `horizon` tokens."""

    def lay_out(params, cfg, dtype):
      return meshes.constrain(self.mesh, cache.lay_out(params, cfg, dtype), "rollout")

    how = {"cfg": self.student, "sampling": self.sampling, "horizon": horizon, "n": self.n, "dtype": self.dtype}
    return sample.rollout(params, batch, key, limit, lay_out=lay_out, **how)

  def score(self, judges: Judges, batch: Batch, said: Rollout) -> Answer:
    """The hidden states of every frozen model before every response token."""
    batch = repeat(batch, self.n)

    def one(part: tuple[Batch, Rollout]) -> Answer:
      teachers = zip(judges.teachers, self.teachers, strict=True)
      initial = None if judges.initial is None else self.read(judges.initial, self.student, *part)
      return Answer(tuple(self.read(params, cfg, *part) for params, cfg in teachers), initial)

    parts = self.split((batch, said))
    return self.merge(one(parts) if self.micro_batches == 1 else lax.map(one, parts))

  def update(
    self, state: TrainState, judges: Judges, answer: Answer, batch: Batch, said: Rollout
  ) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser update on the loss over the batch's generated tokens.

    What each token adds to the mean is settled for the whole batch before it is split, so the loss does not depend on
    the horizon, on padding or on the number of micro-batches. A batch without a gradient changes nothing.
    """
    shares = self.loss.shares(said.mask, jax.random.fold_in(self.key, state.step))

    def loss_of(params: Params, part) -> tuple[jax.Array, tuple]:
      prompts, said, answer, shares = part
      student = Readout(self.read(params, self.student, prompts, said), decoder.head(params))
      teachers = tuple(Readout(h, decoder.head(p)) for h, p in zip(answer.teachers, judges.teachers, strict=True))
      initial = None
      if answer.initial is not None and judges.initial is not None:
        initial = Readout(answer.initial, decoder.head(judges.initial))
      seen = (self.loss.objective, student, teachers, said.response, said.mask)
      how = {"teacher_weight": prompts.teacher_weight, "initial": initial, "mesh": self.mesh}
      extra = (said.behavior_logprob, answer.advantage)
      first = self.loss.reads_first
      readings = fused.read(*seen, **how) if first else {}
      coefficients = self.loss.coefficients(shares, readings, *extra)
      total, found = fused.weighted(*seen, coefficients, **how, readings=not first)
      value, more = self.loss.value(shares, readings or found, *extra)
      return total, (value, self.by_position((readings or found) | more | {"count": said.mask}))

    def gradient(part):
      (_, (loss, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params, part)
      return loss, stats, grads

    parts = self.split((repeat(batch, self.n), said, answer, shares))
    loss, stats, grads = gradient(parts) if self.micro_batches == 1 else accumulate(gradient, parts)
    trained = jnp.sum(shares.chosen > 0, dtype=jnp.int32)
    state, norm = optim.apply(self.optimizer, state, grads, loss)
    counts = {"skipped": state.skipped, "empty": state.empty, "trained": trained}
    return state, {"loss": loss, "grad_norm": norm, "sums": stats, **counts, **self.lengths(said)}

  @property
  def key(self) -> jax.Array:
    """Of the mask of random tokens, apart from the keys of rollouts and evaluations."""
    return jax.random.fold_in(jax.random.key(self.seed), 2**21)

  def read(self, params: Params, cfg: decoder.DecoderConfig, prompts: Batch, said: Rollout) -> Float[Array, "B H D"]:
    """Hidden states that predict each response token, under these prompts."""
    how = {"dtype": self.dtype, "remat": self.remat}
    return decoder.response_hidden(params, cfg, prompts.prompt, prompts.prompt_mask, said.response, said.mask, **how)

  def by_position(self, stats: dict[str, Float[Array, "B H"]]) -> dict[str, Float[Array, "bins"]]:
    """Sums over rows within bins of response position; fp32."""
    H = stats["count"].shape[1]
    bin_of = jnp.arange(H) * self.bins // self.max_horizon
    # Not a matrix product: on a TPU that would round its inputs to bfloat16, and counts with them.
    by_bin = lambda a: jax.ops.segment_sum(jnp.sum(a, axis=0, dtype=jnp.float32), bin_of, self.bins)
    return {name: by_bin(lax.stop_gradient(a)) for name, a in stats.items()}

  def lengths(self, said: Rollout) -> dict[str, Array]:
    """Generated tokens, and the shares of rows that ended by themselves and that the horizon cut."""
    ended = jnp.mean(said.ended, dtype=jnp.float32)
    return {"tokens": jnp.sum(said.mask, dtype=jnp.int32), "ended": ended, "cut": 1 - ended}

  def split(self, tree):
    """[B, ...] -> [micro-batches, B / micro-batches, ...]; every device keeps its own rows."""
    if self.micro_batches == 1:
      return tree
    return jax.tree.map(lambda a: a.reshape(-1, self.micro_batches, *a.shape[1:]).swapaxes(0, 1), tree)

  def merge(self, tree):
    """The inverse of `split`."""
    if self.micro_batches == 1:
      return tree
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), tree)

  def programs(
    self, width: int, state: TrainState, judges: Judges, batch: Batch
  ) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """The three step functions of one stage, lowered for these (abstract) arguments; the slowest to compile first."""
    row, everywhere = meshes.rows(self.mesh), meshes.replicated(self.mesh)
    placed = lambda tree, sharding: jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
    )
    own = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
    key = placed(jax.eval_shape(lambda: jax.random.key(0)), everywhere)
    limit = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    state, judges, batch = own(state), own(judges), placed(batch, row)

    rollout = functools.partial(self.rollout, horizon=width)
    said = placed(jax.eval_shape(rollout, state.params, batch, key, limit), row)
    answer = placed(jax.eval_shape(self.score, judges, batch, said), row)
    advantage = jax.ShapeDtypeStruct(said.ended.shape, jnp.float32, sharding=row) if self.loss.reward else None
    kept = jax.tree.map(lambda a: a.sharding, state)
    update = jax.jit(self.update, donate_argnums=0, out_shardings=(kept, everywhere))
    yield "update", update.lower(state, judges, answer.replace(advantage=advantage), batch, said)
    yield "rollout", jax.jit(rollout, out_shardings=row).lower(state.params, batch, key, limit)
    yield "score", jax.jit(self.score, out_shardings=row).lower(judges, batch, said)


def accumulate(f, parts):
  """The sum of f over the leading axis of `parts`, one slice at a time."""
  first = jax.tree.map(lambda a: a[0], parts)
  zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(f, first))
  total, _ = lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, f(part)), None), zero, parts)
  return total


def repeat(batch: Batch, n: int) -> Batch:
  """Every prompt n times in a row, to stand beside its rollouts."""
  return batch if n == 1 else jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), batch)

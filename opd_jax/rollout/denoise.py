"""Masked diffusion sampling, block by block from left to right: a canvas of masks, of which every step commits a few (LLaDA, arXiv:2502.09992).

    canvas <- H masks behind the prompt
    for each block of the canvas, for i = 0 .. S - 1:
      x_j ~ softmax(logits_j / temperature) at every mask j of the block, with a confidence c_j        all positions see each other
      the quota(i) masks with the highest c_j become their x_j, and stay

Of n masks at the entry to a block step i commits n // S, and one more where i < n mod S. That is the schedule "even". Dream's, "linear", has
no blocks: it runs over S + 1 times t from 1 to eps at equal distances, and step i commits the share 1 - t[i + 1] / t[i] of the masks that are
left, rounded down, and the last step all of them. No token is ever masked again, and nothing ends early: behind a stop token the canvas is
filled too.

What is kept is the token of every position and the step at which it was committed, B H numbers each: the canvas before step t has the
tokens committed before t, and masks elsewhere (`canvas_at`). Tokens are drawn by inversion in fp32, an exact draw from the softmax,
where noise in bf16 gives a much colder one. The mask itself is never drawn.

Dimensions: p prompts, n rollouts of each, B = p n rows, P prompt width, H response width, b positions of a block, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from opd_jax.errors import InputError
from opd_jax.models import decoder, lookup
from opd_jax.rollout import block_cache, sample
from opd_jax.rollout.generate import lower_rollout
from opd_jax.rollout.sample import Sampling
from opd_jax.runtime import mesh as meshes
from opd_jax.types import Batch, Params, Rollout

SCHEDULES = ("even", "linear")
REMASKING = ("low_confidence", "maskgit_plus", "margin", "entropy", "random", "origin")
NO_CONFIDENCE = ("random", "origin")  # of them those that ask for none
EOS = ("plain", "last", "never")
DEFAULT_EPS = 1e-3  # Dream's
GIVEN = -1  # the step of a position that was no mask to begin with
_LAST = -1e30  # a confidence below all others, and above that of what is no mask


@dataclasses.dataclass(frozen=True)
class Denoising:
  """How a canvas is filled; all of it is static.

  Attributes:
    block: positions of a block.
    steps: of a block, S.
    remasking: which masks are committed first: those whose drawn token has the highest probability at temperature 1 (low_confidence, as in
      LLaDA) or in the distribution that it is drawn from (maskgit_plus), or where the likeliest token is the farthest above the second in
      that distribution (margin), or where it has the least entropy (entropy, all three as in Dream), or any (random). With origin, Dream's
      default, each mask is committed with the step's share as its probability, whatever the others do.
    eos: stop tokens are drawn and committed as others are (plain), committed behind all others (last), or not drawn (never).
    cache: keys and values outside of a block are those of the step that entered it: an approximation, see block_cache.py.
    schedule: how many masks a step commits, one of SCHEDULES.
    eps: linear: the last time.
    confidence_temperature: 0: the masks of the highest confidence c are committed; above it they are drawn without replacement, from
      softmax(c / confidence_temperature) (Dream's alg_temp).
  """

  block: int
  steps: int
  remasking: str = "low_confidence"
  eos: str = "plain"
  cache: bool = False
  schedule: str = "even"
  eps: float = DEFAULT_EPS
  confidence_temperature: float = 0.0

  def __post_init__(self):
    for value, known in ((self.remasking, REMASKING), (self.eos, EOS), (self.schedule, SCHEDULES)):
      if value not in known:
        raise ValueError(f"{value!r} is not one of {', '.join(known)}")
    if self.remasking == "origin" and (self.schedule != "linear" or self.eos == "last"):
      raise ValueError("origin commits by the shares of the linear schedule, and nothing first or last")
    if self.confidence_temperature and self.remasking in NO_CONFIDENCE:
      raise ValueError(f"{self.remasking} has no confidence to draw by")
    if not 1 <= self.steps <= self.block:
      raise ValueError(f"a block of {self.block} positions takes 1 to {self.block} steps, not {self.steps}")

  @property
  def tokens(self) -> int:
    """The most tokens that a step commits of a block of masks."""
    if self.remasking == "origin":
      return self.block
    if self.schedule == "even":
      return -(-self.block // self.steps)
    left, most = self.block, 0
    for share in self.shares:
      committed = int(np.float32(left) * share)
      left, most = left - committed, max(most, committed)
    return most

  @functools.cached_property
  def shares(self) -> Float[np.ndarray, " S"]:
    """linear: the share of the masks left that each step commits, in fp32 as Dream computes it."""
    times = np.linspace(1.0, self.eps, self.steps + 1, dtype=np.float32)
    return np.append(1 - times[1:-1] / times[:-2], np.float32(1))

  def total(self, length: int) -> int:
    """The steps that fill a canvas.

    Raises:
      InputError: it has no whole number of blocks.
    """
    if length % self.block:
      raise InputError(
        f"A canvas of {length} tokens has no whole number of blocks of {self.block}; change one of the two."
      )
    return length // self.block * self.steps

  def quota(self, masks: Int[Array, "*b"], left: Int[Array, "*b"], step: Int[Array, ""] | int) -> Int[Array, "*b"]:
    """How many masks a step of a block commits, of so many at the entry to the block and so many that are left."""
    if self.schedule == "even":
      return masks // self.steps + (step < masks % self.steps)
    return jnp.floor(left.astype(jnp.float32) * jnp.asarray(self.shares)[step]).astype(jnp.int32)


@flax.struct.dataclass
class Denoised(Rollout):
  """Responses that were denoised. Behind a stop token `response` is what was drawn there, and no padding.

  `behavior_logprob` is the log-probability of each token in the step that committed it.
  """

  committed_at: Int[Array, "B H"] | None = None  # the step of each position, from 0; GIVEN: it was there to begin with


def canvas_at(
  response: Int[Array, "B H"], committed_at: Int[Array, "B H"], step: Int[Array, "*s"] | int, mask_id: int
) -> Int[Array, "B H"]:
  """The canvas that the model read at a step."""
  return jnp.where(committed_at < step, response, mask_id)


PredictBlock = Callable[[Int[Array, "B H"], Int[Array, ""], Int[Array, ""], Any], tuple[Float[Array, "B b V"], Any]]


def denoise(
  predict: PredictBlock,
  carried: Any,
  start: Int[Array, "B H"],
  keys: jax.Array,
  *,
  denoising: Denoising,
  sampling: Sampling,
  mask_id: int,
  sample_fn=sample.draw,
) -> Denoised:
  """Fill a canvas.

  Args:
    predict: (canvas, first position of the block, step within it, what it carries) -> the logits of the block, and what it carries on.
    carried: to the first call of `predict`.
    start: with `mask_id` where a token is to be drawn; positions of other ids keep them.
    keys: one for each row, so that a row does not depend on its neighbours.
    sample_fn: draws a token per row of logits, see sample.draw.
  """
  (B, H), b = start.shape, denoising.block
  total = denoising.total(H)
  masks = jnp.sum((start == mask_id).reshape(B, -1, b), axis=2, dtype=jnp.int32)  # at the entry to each block
  stop = jnp.array(sampling.stop_ids, jnp.int32)

  def step(t: Array, state: tuple):
    tokens, committed_at, logprob, carried = state
    block, i = t // denoising.steps, t % denoising.steps
    first = block * b
    of_block = lambda a: lax.dynamic_slice_in_dim(a, first, b, axis=1)
    logits, carried = predict(tokens, first, i, carried)
    with jax.named_scope("sample"):
      step_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, t), b + 1))(keys)
      flat = _allowed(logits.reshape(B * b, -1), denoising, sampling, mask_id)
      drawn, drawn_logprob = (a.reshape(B, b) for a in sample_fn(step_keys[:, :b].reshape(-1), flat, sampling))
      confidence = _confidence(flat, drawn.reshape(-1), denoising, sampling).reshape(B, b)
      if denoising.remasking in NO_CONFIDENCE:
        confidence = jax.vmap(lambda key: jax.random.uniform(key, (b,)))(step_keys[:, b])
      if denoising.confidence_temperature:  # the highest of these are a draw without replacement
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (b,), mode="high"))(step_keys[:, b])
        confidence = confidence / denoising.confidence_temperature + noise
      if denoising.eos == "last" and sampling.stop_ids:
        confidence = jnp.where(jnp.isin(drawn, stop), _LAST, confidence)
    masked = of_block(committed_at) == total
    if denoising.remasking == "origin":
      chosen = masked & (confidence < jnp.asarray(denoising.shares)[i])
    else:
      at_entry = lax.dynamic_index_in_dim(masks, block, axis=1, keepdims=False)
      quota = denoising.quota(at_entry, jnp.sum(masked, axis=1, dtype=jnp.int32), i)
      chosen = highest(jnp.where(masked, confidence, -jnp.inf), quota) & masked
    put = lambda a, new: lax.dynamic_update_slice_in_dim(a, jnp.where(chosen, new, of_block(a)), first, axis=1)
    return put(tokens, drawn), put(committed_at, t), put(logprob, drawn_logprob), carried

  state = start, jnp.where(start == mask_id, total, GIVEN), jnp.zeros((B, H), jnp.float32), carried
  tokens, committed_at, logprob, _ = lax.fori_loop(0, total, step, state)
  stops = sample.is_stop(tokens, sampling.stop_ids)
  before = jnp.cumsum(stops, axis=1) - stops  # stop tokens in front of each position
  return Denoised(tokens, before == 0, logprob, jnp.any(stops, axis=1), committed_at=committed_at)


def highest(confidence: Float[Array, "B b"], quota: Int[Array, " B"]) -> Bool[Array, "B b"]:
  """Tell which positions are the `quota` highest of each row; of equal ones those further left."""
  order = jnp.argsort(-confidence, axis=1, stable=True)
  return jnp.argsort(order, axis=1) < quota[:, None]


def _allowed(
  logits: Float[Array, "N V"], denoising: Denoising, sampling: Sampling, mask_id: int
) -> Float[Array, "N V"]:
  """Give ids that may not be drawn no probability: the mask, ids that no token has, and stop tokens where they never come."""
  logits = sample.leave_out(logits[:, : sampling.vocab].astype(jnp.float32), sampling.never)
  left_out = [mask_id, *(sampling.stop_ids if denoising.eos == "never" else ())]
  return logits.at[:, jnp.array([i for i in left_out if i < sampling.vocab], jnp.int32)].set(-jnp.inf)


def _confidence(
  logits: Float[Array, "N V"], drawn: Int[Array, " N"], denoising: Denoising, sampling: Sampling
) -> Float[Array, " N"]:
  if denoising.remasking == "low_confidence":
    logprob = jax.nn.log_softmax(logits)
    return jnp.exp(jnp.take_along_axis(logprob, drawn[:, None], axis=1)[:, 0])
  if denoising.remasking in NO_CONFIDENCE:
    return jnp.zeros(len(logits), jnp.float32)
  logprob = sample.log_distribution(logits, sampling)
  if denoising.remasking == "maskgit_plus":
    return jnp.exp(jnp.take_along_axis(logprob, drawn[:, None], axis=1)[:, 0])
  if denoising.remasking == "margin":
    most = lax.top_k(jnp.exp(logprob), 2)[0]
    return most[:, 0] - most[:, 1]
  return jnp.sum(jnp.where(logprob > -jnp.inf, jnp.exp(logprob) * logprob, 0.0), axis=1)


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
  """The static settings of a masked diffusion model that generates, as rollout.generate.GeneratorConfig is for others."""

  cfg: decoder.DecoderConfig
  sampling: Sampling
  denoising: Denoising
  mesh: jax.sharding.Mesh
  dtype: Any

  def steps(self, response_len: int) -> int:
    """The denoising steps that a canvas of so many positions takes: passes of the model, whatever the answer is."""
    return response_len // self.denoising.block * self.denoising.steps

  def rollout(
    self,
    params: Params,
    batch: Batch,
    key: jax.Array,
    limit: jax.Array | None = None,
    *,
    response_len: int,
    n: int = 1,
    start: Int[Array, "B H"] | None = None,
  ) -> Denoised:
    """Sample n responses to every prompt on the mesh. A pure function of its arrays, to be compiled by the caller.

    Args:
      batch: p prompts; the rollouts of a prompt are neighbours in the result.
      limit: not used: a canvas is filled as a whole.
      response_len: static; positions of the canvas.
      start: the canvas to begin with; None: masks alone.
    """
    cfg, mask_id, s = self.cfg, self.cfg.mask_id, self.sampling
    assert mask_id is not None
    # Once, in front of the loop: there a gather over fsdp would be paid for at every step.
    w = meshes.constrain(self.mesh, jax.tree.map(lambda a: a.astype(self.dtype), params), "rollout")
    embed_fn = functools.partial(lookup.embed, self.mesh, "rollout")
    numbers = jnp.arange(batch.prompt.shape[0] * n)
    if batch.number is not None:
      numbers = (batch.number[:, None] * n + jnp.arange(n)).reshape(-1)
    prompt, prompt_mask = (jnp.repeat(a, n, axis=0) for a in (batch.prompt, batch.prompt_mask))
    if start is None:
      start = jnp.full((prompt.shape[0], response_len), mask_id, jnp.int32)

    def predict(canvas: Array, first: Array, i: Array, carried: Any):
      if self.denoising.cache:
        hidden, carried = block_cache.hidden(
          w, cfg, prompt, prompt_mask, canvas, first, i == 0, carried, self.denoising.block, self.dtype, embed_fn
        )
      else:
        hidden = decoder.canvas_hidden(w, cfg, prompt, prompt_mask, canvas, dtype=self.dtype, embed_fn=embed_fn)
        hidden = lax.dynamic_slice_in_dim(hidden, first, self.denoising.block, axis=1)
      return decoder.unembed(w, hidden), carried

    carried = (
      block_cache.empty(cfg, prompt.shape[0], prompt.shape[1], response_len, self.dtype)
      if self.denoising.cache
      else None
    )
    return denoise(
      predict,
      carried,
      start,
      jax.vmap(lambda row: jax.random.fold_in(key, row))(numbers),
      denoising=self.denoising,
      sampling=s,
      mask_id=mask_id,
      sample_fn=sample.draw_on(self.mesh, meshes.ROWS, "tensor"),
    )

  def lower(
    self, params: Params, batch: int, prompt_len: int, response_len: int, n: int, numbered: bool = False
  ) -> jax.stages.Lowered:
    """Lower the program that samples n responses to each of `batch` prompts; see `generate.lower_rollout`."""
    return lower_rollout(self.rollout, self.mesh, params, batch, prompt_len, response_len, n, numbered)

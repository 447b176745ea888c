"""Autoregressive sampling to a static response length.

Dimensions: p prompts, n rollouts of each, B = p n rows, P prompt length, H response length, V vocabulary, D model width.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt

from opd_jax.models import decoder, moe
from opd_jax.models.attention import attend_causal
from opd_jax.rollout import cache
from opd_jax.rollout.segments import DEFAULT, Segments
from opd_jax.types import Batch, Params, Rollout


@dataclasses.dataclass(frozen=True)
class Sampling:
  """The distribution that tokens are drawn from. The defaults are the student's own; anything else is off-policy."""

  stop_ids: tuple[int, ...]
  pad_id: int
  vocab: int  # ids at or above this are never drawn: padding of the embedding, or unknown to the teacher
  temperature: float = 1.0  # 0: greedy
  top_p: float = 1.0
  top_k: int = 0
  recorded: int = 0  # how many of the most likely ids of each draw are recorded, with their log-probabilities
  never: tuple[tuple[int, int], ...] = ()  # [first, end) of other ids that are never drawn: no token has them
  delimiters: tuple[int, ...] = ()  # what ends a step of a response and not all of it, where rollouts branch

  @property
  def of_step(self) -> "Sampling":
    """The same, but that a step is all that is drawn."""
    return dataclasses.replace(self, stop_ids=(*self.stop_ids, *self.delimiters), delimiters=())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeRow:
  """The token loop's carry for every row: its inputs, and what has been generated so far."""

  key: jax.Array  # key[B]
  first_position: jax.Array  # int32[B], of the response's first token
  token: jax.Array  # int32[B], the last one, not yet in the cache
  response: jax.Array  # int32[B, H]
  logprob: jax.Array  # f32[B, H]
  length: jax.Array  # int32[B], tokens generated
  ended: jax.Array  # bool[B], a stop token was drawn
  caches: list[cache.Cache]  # one per layer, of the response alone; of prompt and response where n is 1
  recorded_ids: jax.Array | None  # int32[B, H, k], the `sampling.recorded` most likely ids of each draw
  recorded_logprob: jax.Array | None  # f32[B, H, k]

  def as_rollout(self) -> Rollout:
    """The responses alone."""
    mask = jnp.arange(self.response.shape[1]) < self.length[:, None]
    return Rollout(self.response, mask, self.logprob, self.ended, self.recorded_ids, self.recorded_logprob)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
  """The token loop's carry."""

  t: jax.Array  # int32[], tokens drawn so far
  rows: DecodeRow


def rollout(
  params: Params,
  batch: Batch,
  key: jax.Array,
  limit: Int[Array, ""],
  *,
  cfg: decoder.DecoderConfig,
  sampling: Sampling,
  response_len: int,
  n: int = 1,
  expand: Int[Array, "q r"] | None = None,
  dtype: DTypeLike = jnp.float32,
  prepare_decode_params=cache.prepare_decode_params,
  segments: Segments = DEFAULT,
  attention_fn=attend_causal,
  moe_fn=moe.reference,
  sample_fn=None,
) -> Rollout:
  """Sample n responses to every prompt, at most `limit` <= `response_len` tokens long.

  A prompt is prefilled once for its n rollouts, and its keys and values are kept once. Every row draws from a key of its own, folded with the token's index,
  so a short rollout is the prefix of a long one and a row does not depend on its neighbours. The loop ends at the
  limit or when every row has ended, whichever comes first.

  Args:
    batch: p prompts; the rollouts of a prompt are neighbours in the result.
    limit: traced; the tokens from here on are padding.
    response_len: static; the width H of the result and of the compiled program.
    expand: the rows behind prompts that come in q equal parts: of each part which of its prompts r rows go on from, so that a prompt is
      prefilled once for as many rows as wanted, perhaps none. None: n rows behind each.
    prepare_decode_params: turns `params` into DecodeParams; on a mesh it also places them.
    segments: where the cache grows and the batch shrinks; `segments.PLAIN` is the reference.
    attention_fn: attention over whole prompts, see attention.py and kernels.py.
    moe_fn: the mixture of experts, where there is one, see moe.py.
    sample_fn: draws a token per row; None: `draw`, and on a mesh `draw_on`.
  """
  w = prepare_decode_params(params, cfg, dtype)
  B, P = (batch.prompt.shape[0] * n if expand is None else expand.size), batch.prompt.shape[1]
  numbers = jnp.arange(B)
  if batch.number is not None:
    numbers = (batch.number[:, None] * n + jnp.arange(n)).reshape(-1)
  with jax.named_scope("prefill"):
    x, prompts = cache.prefill(w, cfg, batch.prompt, batch.prompt_mask, attention_fn, moe_fn, batch.images)
  first_position = jnp.sum(batch.prompt_mask, axis=1, dtype=jnp.int32)
  if batch.images is not None:
    first_position = batch.images.next_position
  if expand is not None:
    x, prompts, first_position = chosen_rows((x, prompts, first_position), expand)
  caches, first_slot = [layer.of_rows(n) for layer in prompts.layers], 0
  if n == 1:  # a token reads one cache in the place of two
    caches, prompts, first_slot = prompts.layers, prompts._replace(layers=[]), P
  x, first_position = (jnp.repeat(a, n, axis=0) for a in (x, first_position))
  context = Context(x, prompts, caches, first_position, first_slot)
  keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(numbers)
  rows = token_loop(
    w,
    context,
    keys,
    limit,
    cfg=cfg,
    sampling=sampling,
    response_len=response_len,
    n=n,
    segments=segments,
    moe_fn=moe_fn,
    sample_fn=sample_fn,
  )
  return rows.as_rollout()


class Context(NamedTuple):
  """What stands before the first token of a rollout."""

  x: Float[Array, "B D"]  # the hidden state that predicts it
  prompts: cache.PromptCaches
  caches: list[cache.Cache]  # the rows' own
  position: Int[Array, " B"]  # its own; behind text alone the number of real tokens before it
  first_slot: int  # of the rows' own caches, for it


def token_loop(
  w: cache.DecodeParams,
  context: Context,
  keys: Array,
  limit: Int[Array, ""],
  *,
  cfg: decoder.DecoderConfig,
  sampling: Sampling,
  response_len: int,
  n: int = 1,
  segments: Segments = DEFAULT,
  moe_fn=moe.reference,
  sample_fn=None,
) -> DecodeRow:
  """Sample token after token behind a context; arguments as of `rollout`.

  Args:
    keys: key[B], of the rows.
  """
  sample_fn, recorded = sample_fn or draw, sampling.recorded
  _, prompts, caches, first_position, first_slot = context
  B, P = len(first_position), prompts.mask.shape[1]

  def not_done(state: DecodeState) -> jax.Array:
    return (state.t < limit) & ~jnp.all(state.rows.ended)

  def sample_token(state: DecodeState, x: Float[Array, "b D"]) -> DecodeState:
    """Draw token t from the hidden state that predicts it, and write it into the response."""
    rows = state.rows
    with jax.named_scope("sample"):
      keys = jax.vmap(lambda k: jax.random.fold_in(k, state.t))(rows.key)
      logits = leave_out(cache.logits(w, x, sampling.vocab), sampling.never)
      token, logprob = sample_fn(keys, logits, sampling)
    live = ~rows.ended
    token = jnp.where(live, token, sampling.pad_id)
    put = lambda a, new: lax.dynamic_update_slice_in_dim(a, new[:, None], state.t, axis=1)
    if recorded:
      recorded_logprob, ids = lax.top_k(log_distribution(logits, sampling), recorded)
      rows = dataclasses.replace(
        rows,
        recorded_ids=put(rows.recorded_ids, jnp.where(live[:, None], ids, sampling.pad_id)),
        recorded_logprob=put(rows.recorded_logprob, recorded_logprob),
      )
    rows = dataclasses.replace(
      rows,
      token=token,
      response=put(rows.response, token),
      logprob=put(rows.logprob, jnp.where(live, logprob, 0.0)),
      length=rows.length + live,
      ended=rows.ended | is_stop(token, sampling.stop_ids) & live,
    )
    return DecodeState(state.t + 1, rows)

  def decode_token(prompts: cache.PromptCaches, state: DecodeState) -> DecodeState:
    """Run the model on the last token and draw the next one."""
    rows, last = state.rows, state.t - 1  # the last token's index in the response
    with jax.named_scope("decode"):
      ropes = jax.tree.map(lambda table: table[rows.first_position + last][:, None], angles)
      # A row that has ended attends to padding too, and what comes of it is not used.
      x, caches = cache.decode(w, cfg, rows.token, ropes, first_slot + last, prompts, rows.caches, moe_fn)
    return sample_token(DecodeState(state.t, dataclasses.replace(rows, caches=caches)), x)

  def run_segment(state: DecodeState, size: int, end: int) -> DecodeState:
    """Decode up to token `end`, in a batch of `size` rows that holds all live ones."""
    in_segment = lambda state: not_done(state) & (state.t < end)
    if size == B:
      return lax.while_loop(in_segment, functools.partial(decode_token, prompts), state)
    live = segments.live_first(state.rows.ended, size)
    gathered = DecodeState(state.t, segments.gather(state.rows, live))
    a_prompt_each = segments.gather(prompts, live // n)
    gathered = lax.while_loop(in_segment, functools.partial(decode_token, a_prompt_each), gathered)
    return DecodeState(gathered.t, segments.scatter(state.rows, gathered.rows, live))

  angles = jax.tree.map(lambda a: a[0], cfg.ropes(jnp.arange(P + response_len)[None]))
  empty = DecodeRow(
    key=keys,
    first_position=first_position,
    token=jnp.full((B,), sampling.pad_id, jnp.int32),
    response=jnp.full((B, response_len), sampling.pad_id, jnp.int32),
    logprob=jnp.zeros((B, response_len), jnp.float32),
    length=jnp.zeros((B,), jnp.int32),
    ended=jnp.zeros((B,), bool),
    caches=caches,
    recorded_ids=jnp.full((B, response_len, recorded), sampling.pad_id, jnp.int32) if recorded else None,
    recorded_logprob=jnp.zeros((B, response_len, recorded), jnp.float32) if recorded else None,
  )
  state = sample_token(DecodeState(jnp.int32(0), empty), context.x)
  # One segment after the other, also those that the limit leaves nothing to do: a conditional would keep the caches of
  # every segment before it alive, and with them several times the memory of the last one.
  for i, end in enumerate(segments.ends(response_len)):
    caches = [layer.grow(first_slot + end) for layer in state.rows.caches]
    state = DecodeState(state.t, dataclasses.replace(state.rows, caches=caches))
    sizes = segments.sizes(B) if i else [B]
    runs = [functools.partial(run_segment, size=size, end=end) for size in sizes]
    state = runs[0](state) if len(runs) == 1 else lax.switch(segments.choose(sizes, state.rows.ended), runs, state)
  return state.rows


def chosen_rows(tree, which: Int[Array, "q r"]):
  """Take rows of a pytree whose rows come in q equal parts, from each part r of its own: arrays [q r, ...]."""

  def take(a: Array) -> Array:
    parts = a.reshape(which.shape[0], -1, *a.shape[1:])
    index = which.reshape(*which.shape, *[1] * (a.ndim - 1))
    return jnp.take_along_axis(parts, index, axis=1).reshape(-1, *a.shape[1:])

  return jax.tree.map(take, tree)


def draw(
  keys: jax.Array, logits: Float[Array, "B V"], sampling: Sampling
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
  """Draw one token per row, with its log-probability under the distribution that it was drawn from.

  At temperature 0 it is the most likely token, with its log-probability at temperature 1.
  """
  if sampling.temperature == 0:
    token = jnp.argmax(logits, axis=-1)
    logprob = jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    return token.astype(jnp.int32), logprob
  return categorical(random_words(keys), restrict(logits / sampling.temperature, sampling))


def log_distribution(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
  """Compute the log-probabilities of the distribution that `draw` draws from."""
  return jax.nn.log_softmax(restrict(logits / (sampling.temperature or 1.0), sampling))


def draw_on(mesh: jax.sharding.Mesh, rows: tuple[str, ...], ids: str):
  """Build a `draw` for logits whose ids lie over a mesh axis, and stay there.

  Left to the compiler, every small array of a draw would be communicated. Written out, only the greatest logit, the
  masses of the blocks, and the masses inside the one block that was drawn are.

  Args:
    rows, ids: the mesh axes over which rows and ids lie.
  """

  def run(keys: jax.Array, logits: Float[Array, "B V"], sampling: Sampling):
    devices, V = mesh.shape[ids], logits.shape[-1]
    blocks = num_blocks(V)
    whole_blocks = V % devices == 0 and V % blocks == 0 and blocks % devices == 0
    truncated = sampling.temperature == 0 or sampling.top_p < 1 or sampling.top_k > 0
    if devices == 1 or not whole_blocks or truncated:
      return draw(keys, logits, sampling)
    on_device = lambda words, logits: categorical(words, logits / sampling.temperature, ids)
    row = PartitionSpec(rows)
    sharded = jax.shard_map(
      on_device, mesh=mesh, in_specs=(row, PartitionSpec(rows, ids)), out_specs=(row, row), check_vma=False
    )
    return sharded(random_words(keys), logits)

  return run


def random_words(keys: jax.Array) -> UInt[Array, "B 2"]:
  """Take two random words from each key; the data of a key that was folded for one use are random."""
  return jax.random.key_data(keys)[:, :2]


def categorical(
  words: UInt[Array, "B 2"], logits: Float[Array, "B V"], axis: str | None = None
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
  """Draw from softmax(logits), with the log-probability, by two random numbers per row instead of V.

  A block of ids is drawn by its mass, then an id by its share of the block, each by inversion. The second number is
  independent of the first, so that an id far below the 2^-24 steps of a uniform number is drawn as often as it should
  be. An id of probability 0 never is.

  Args:
    words: two random words of each row.
    axis: the mesh axis over which the ids lie, inside a shard_map; each device has whole blocks of them.
  """
  V = logits.shape[-1]
  devices = 1 if axis is None else lax.axis_size(axis)
  blocks = num_blocks(V * devices) // devices  # of this device
  top = jnp.max(logits, axis=-1, keepdims=True)
  top = top if axis is None else lax.pmax(top, axis)
  mass = jnp.pad(jnp.exp(logits - top), ((0, 0), (0, -V % blocks))).reshape(-1, blocks, -(-V // blocks))
  u = (words >> 8).astype(jnp.float32) * 2**-24
  block_mass = jnp.sum(mass, axis=-1)
  if axis is not None:
    block_mass = lax.all_gather(block_mass, axis, axis=1, tiled=True)
  cumulative = jnp.cumsum(block_mass, axis=-1)
  block = inverse_cdf(cumulative, u[:, 0])
  local_block = block if axis is None else block - lax.axis_index(axis) * blocks  # in [0, blocks) on its own device
  in_block = jnp.take_along_axis(mass, jnp.clip(local_block, 0, blocks - 1)[:, None, None], axis=1)[:, 0]
  if axis is not None:
    here = (local_block >= 0) & (local_block < blocks)
    in_block = lax.psum(jnp.where(here[:, None], in_block, 0.0), axis)
  index = inverse_cdf(jnp.cumsum(in_block, axis=-1), u[:, 1])
  drawn_mass = jnp.take_along_axis(in_block, index[:, None], axis=-1)[:, 0]
  return block * mass.shape[-1] + index, jnp.log(drawn_mass) - jnp.log(cumulative[:, -1])


def num_blocks(V: int, devices: int = 128) -> int:
  """Choose the number of blocks into which `categorical` cuts V ids: about sqrt(V), and the same on every mesh.

  Where V allows it, all blocks have the same size and each device's ids, on up to `devices` devices, are whole blocks:
  then the ids stay where they are.
  """
  shared = math.gcd(V, devices)
  while shared * 8 > V:
    shared //= 2
  equal_parts = [n for n in range(shared, V // 8 + 1, max(shared, 1)) if shared and V % n == 0]
  nearest = min(equal_parts, key=lambda n: abs(math.log(n * n / V)), default=1)
  return nearest if V / 16 <= nearest * nearest <= 16 * V else math.isqrt(V)


def inverse_cdf(cumulative: Float[Array, "B n"], u: Float[Array, " B"]) -> Int[Array, " B"]:
  """Find the first index whose cumulative mass exceeds the fraction u, in [0, 1), of the total."""
  total = cumulative[:, -1:]
  below = jnp.minimum(u[:, None] * total, jnp.nextafter(total, 0.0))  # the product may round up to the total
  return jnp.sum(cumulative <= below, axis=-1, dtype=jnp.int32)


def leave_out(logits: Float[Array, "B V"], never: tuple[tuple[int, int], ...]) -> Float[Array, "B V"]:
  """Give ids in these ranges, each [first, end), no probability; without ranges the program has nothing of it."""
  if not never:
    return logits
  left_out = np.zeros(logits.shape[-1], bool)
  for first, end in never:
    left_out[first:end] = True
  return jnp.where(left_out, -jnp.inf, logits)


def restrict(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
  """Apply top-k, then top-p: tokens that may not be drawn get -inf. Nothing is sorted where both are off."""
  V = logits.shape[-1]
  if 0 < sampling.top_k < V:
    kth = lax.top_k(logits, sampling.top_k)[0][:, -1:]
    logits = jnp.where(logits < kth, -jnp.inf, logits)
  if sampling.top_p < 1:
    descending = jnp.sort(logits, axis=-1)[:, ::-1]
    before = jnp.cumsum(jax.nn.softmax(descending, axis=-1), axis=-1) - jax.nn.softmax(descending, axis=-1)
    least = jnp.min(jnp.where(before < sampling.top_p, descending, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return logits


def is_stop(token: Int[Array, "*b"], stop_ids: tuple[int, ...]) -> Bool[Array, "*b"]:
  """Test which tokens are stop tokens; none is where `stop_ids` is empty."""
  return jnp.isin(token, jnp.array(stop_ids, jnp.int32)) if stop_ids else jnp.zeros(token.shape, bool)

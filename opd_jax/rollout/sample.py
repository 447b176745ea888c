"""Autoregressive sampling to a static horizon.

Dimensions: p prompts, n rollouts of each, B = p n rows, P prompt width, H horizon, V vocabulary, S = P + H.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from opd_jax.models import decoder, moe
from opd_jax.models.attention import attend_causal
from opd_jax.rollout import cache
from opd_jax.rollout.segments import DEFAULT, Segments
from opd_jax.types import Batch, Params, Rollout


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is drawn. The defaults are the student's own distribution: anything else is not on-policy."""

  stop_ids: tuple[int, ...]
  pad_id: int
  vocab: int  # ids at or above this are never drawn: padding of the embedding, or unknown to the teacher
  temperature: float = 1.0  # 0: greedy
  top_p: float = 1.0
  top_k: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
  """What the token loop carries for every row; what a row is given stands beside what it has said."""

  key: jax.Array  # key[B]
  prompt_mask: jax.Array  # bool[B, P]
  token: jax.Array  # int32[B], the last one, not yet in the cache
  response: jax.Array  # int32[B, H]
  logprob: jax.Array  # f32[B, H]
  length: jax.Array  # int32[B], tokens said
  ended: jax.Array  # bool[B], a stop token was drawn
  caches: list[cache.LayerCache]  # one per layer; prompt first, response after it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  t: jax.Array  # int32[], tokens drawn so far
  rows: Row


def rollout(
  params: Params,
  batch: Batch,
  key: jax.Array,
  limit: Int[Array, ""],
  *,
  cfg: decoder.DecoderConfig,
  sampling: Sampling,
  horizon: int,
  n: int = 1,
  dtype: jnp.dtype = jnp.float32,
  lay_out=cache.lay_out,
  segments: Segments = DEFAULT,
  attend=attend_causal,
  experts=moe.reference,
  drawn=None,
) -> Rollout:
  """Samples n responses to every prompt, at most `limit` <= `horizon` tokens long.

  The prompt is read once for its n rollouts. Every row draws from a key of its own, folded with the token's index,
  so a short rollout is the prefix of a long one and a row does not depend on its neighbours. The loop ends at the
  limit or when every row has ended, whichever comes first.

  Args:
    horizon: static; the width of the result and of the compiled program.
    limit: traced; tokens beyond it are padding.
    segments: where the cache grows and the batch shrinks; `segments.PLAIN` is the reference.
    attend: attention over whole prompts, see attention.py and kernels.py.
    experts: the mixture of experts, where there is one, see moe.py.
    drawn: draws a token per row; None: `draw`, and on a mesh `draw_on`.
  """
  drawn = drawn or draw
  w = lay_out(params, cfg, dtype)
  B, P = batch.prompt.shape[0] * n, batch.prompt.shape[1]
  numbers = jnp.arange(B)
  if batch.number is not None:
    numbers = (batch.number[:, None] * n + jnp.arange(n)).reshape(-1)
  ends = segments.ends(horizon)

  def going_on(s: State) -> jax.Array:
    return (s.t < limit) & ~jnp.all(s.rows.ended)

  def speak(s: State, x: Float[Array, "b D"]) -> State:
    """Draws token t from the hidden state that predicts it, and writes it down."""
    r = s.rows
    with jax.named_scope("sample"):
      keys = jax.vmap(lambda k: jax.random.fold_in(k, s.t))(r.key)
      token, logprob = drawn(keys, cache.logits(w, x, sampling.vocab), sampling)
    live = ~r.ended
    token = jnp.where(live, token, sampling.pad_id)
    put = lambda a, new: lax.dynamic_update_slice_in_dim(a, new[:, None], s.t, axis=1)
    said = dataclasses.replace(
      r,
      token=token,
      response=put(r.response, token),
      logprob=put(r.logprob, jnp.where(live, logprob, 0.0)),
      length=r.length + live,
      ended=r.ended | is_stop(token, sampling.stop_ids) & live,
    )
    return State(s.t + 1, said)

  def one_token(s: State) -> State:
    r, at = s.rows, s.t - 1  # the last token's index in the response
    width = r.caches[0].width
    filled = jnp.pad(r.prompt_mask, ((0, 0), (0, width - P)), constant_values=True)
    visible = filled & (jnp.arange(width) <= P + at)  # a row that has ended sees padding too, and is not heard
    with jax.named_scope("decode"):
      position = jnp.sum(r.prompt_mask, axis=1, dtype=jnp.int32) + at
      rope = jax.tree.map(lambda table: table[position][:, None], angles)
      x, caches = cache.decode(w, cfg, r.token, rope, P + at, visible, r.caches, experts)
    return speak(State(s.t, dataclasses.replace(r, caches=caches)), x)

  def loop(s: State, rows: int, end: int) -> State:
    """Up to token `end`, over `rows` rows."""
    inside = lambda s: going_on(s) & (s.t < end)
    if rows == B:
      return lax.while_loop(inside, one_token, s)
    live = segments.live_first(s.rows.ended, rows)
    few = lax.while_loop(inside, one_token, State(s.t, segments.gather(s.rows, live)))
    return State(few.t, segments.scatter(s.rows, few.rows, live))

  angles = jax.tree.map(lambda a: a[0], decoder.rope_tables(cfg, jnp.arange(P + horizon)[None]))
  with jax.named_scope("prefill"):
    x, caches = cache.prefill(w, cfg, batch.prompt, batch.prompt_mask, attend, experts)
  x, caches, prompt_mask = jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), (x, caches, batch.prompt_mask))
  silent = Row(
    key=jax.vmap(lambda row: jax.random.fold_in(key, row))(numbers),
    prompt_mask=prompt_mask,
    token=jnp.full((B,), sampling.pad_id, jnp.int32),
    response=jnp.full((B, horizon), sampling.pad_id, jnp.int32),
    logprob=jnp.zeros((B, horizon), jnp.float32),
    length=jnp.zeros((B,), jnp.int32),
    ended=jnp.zeros((B,), bool),
    caches=caches,
  )
  s = speak(State(jnp.int32(0), silent), x)
  # One segment after the other, also those that the limit leaves nothing to do: a conditional would keep the caches of
  # every segment before it alive, and with them several times the memory of the last one.
  for i, end in enumerate(ends):
    s = State(s.t, dataclasses.replace(s.rows, caches=[c.grow(P + end) for c in s.rows.caches]))
    sizes = segments.sizes(B) if i else [B]
    run = [functools.partial(loop, rows=size, end=end) for size in sizes]
    s = run[0](s) if len(run) == 1 else lax.switch(segments.choose(sizes, s.rows.ended), run, s)
  said = s.rows
  mask = jnp.arange(horizon) < said.length[:, None]
  return Rollout(response=said.response, mask=mask, behavior_logprob=said.logprob, ended=said.ended)


def draw(keys: jax.Array, logits: Float[Array, "B V"], sampling: Sampling) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
  """One token per row and its log-probability under the distribution that it was drawn from.

  With temperature 0 the most likely token, whose log-probability is given at temperature 1.
  """
  if sampling.temperature == 0:
    token = jnp.argmax(logits, axis=-1)
    logprob = jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    return token.astype(jnp.int32), logprob
  return categorical(words_of(keys), restrict(logits / sampling.temperature, sampling))


def draw_on(mesh: jax.sharding.Mesh, rows: tuple[str, ...], ids: str):
  """`draw` for logits whose ids lie over a mesh axis, and stay there.

  Left to the compiler, every small array of a draw would travel. Written out, it is the greatest logit, the masses of
  the blocks, and the masses inside the one block that was drawn.

  Args:
    rows, ids: the mesh axes over which rows and ids lie.
  """

  def run(keys: jax.Array, logits: Float[Array, "B V"], sampling: Sampling):
    devices, V = mesh.shape[ids], logits.shape[-1]
    plain = sampling.temperature == 0 or sampling.top_p < 1 or sampling.top_k > 0
    if devices == 1 or V % devices or blocks_of(V) % devices or V % blocks_of(V) or plain:
      return draw(keys, logits, sampling)
    one = lambda words, logits: categorical(words, logits / sampling.temperature, ids)
    row = PartitionSpec(rows)
    split = jax.shard_map(
      one, mesh=mesh, in_specs=(row, PartitionSpec(rows, ids)), out_specs=(row, row), check_vma=False
    )
    return split(words_of(keys), logits)

  return run


def words_of(keys: jax.Array) -> Int[Array, "B 2"]:
  """Random words: a key that was folded for one use is such words."""
  return jax.random.key_data(keys)[:, :2]


def categorical(
  words: Int[Array, "B 2"], logits: Float[Array, "B V"], axis: str | None = None
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
  """A draw from softmax(logits) and its log-probability, with two random numbers per row instead of V.

  A block of ids is drawn by its mass, then an id by its share of the block, each by inversion. The second number is
  independent of the first, so that an id far below the 2^-24 steps of a uniform number is drawn as often as it should
  be. An id of probability 0 never is.

  Args:
    words: two random words of each row.
    axis: the mesh axis over which the ids lie, inside a shard_map; each device has whole blocks of them.
  """
  V = logits.shape[-1]
  devices = 1 if axis is None else lax.axis_size(axis)
  blocks = blocks_of(V * devices) // devices  # of this device
  top = jnp.max(logits, axis=-1, keepdims=True)
  top = top if axis is None else lax.pmax(top, axis)
  mass = jnp.pad(jnp.exp(logits - top), ((0, 0), (0, -V % blocks))).reshape(-1, blocks, -(-V // blocks))
  u = (words >> 8).astype(jnp.float32) * 2**-24
  of_block = jnp.sum(mass, axis=-1)
  of_block = jnp.cumsum(of_block if axis is None else lax.all_gather(of_block, axis, axis=1, tiled=True), axis=-1)
  block = invert(of_block, u[:, 0])
  own = block if axis is None else block - lax.axis_index(axis) * blocks  # where it is on the device that has it
  inside = jnp.take_along_axis(mass, jnp.clip(own, 0, blocks - 1)[:, None, None], axis=1)[:, 0]
  if axis is not None:
    inside = lax.psum(jnp.where(((own >= 0) & (own < blocks))[:, None], inside, 0.0), axis)
  index = invert(jnp.cumsum(inside, axis=-1), u[:, 1])
  chosen = jnp.take_along_axis(inside, index[:, None], axis=-1)[:, 0]
  return block * mass.shape[-1] + index, jnp.log(chosen) - jnp.log(of_block[:, -1])


def blocks_of(V: int, devices: int = 128) -> int:
  """Into how many blocks `categorical` cuts V ids: about sqrt(V), and the same on every mesh.

  Where V allows it, blocks are alike and each device's ids, up to so many devices, are whole blocks: then the ids stay
  where they are.
  """
  shared = math.gcd(V, devices)
  while shared * 8 > V:
    shared //= 2
  alike = [n for n in range(shared, V // 8 + 1, max(shared, 1)) if shared and V % n == 0]
  near = min(alike, key=lambda n: abs(math.log(n * n / V)), default=1)
  return near if V / 16 <= near * near <= 16 * V else math.isqrt(V)


def invert(cumulative: Float[Array, "B n"], u: Float[Array, "B"]) -> Int[Array, "B"]:
  """The first index whose cumulative mass exceeds the share u in [0, 1) of the whole."""
  whole = cumulative[:, -1:]
  below = jnp.minimum(u[:, None] * whole, jnp.nextafter(whole, 0.0))  # the product may round up to the whole
  return jnp.sum(cumulative <= below, axis=-1, dtype=jnp.int32)


def restrict(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
  """Top-k, then top-p: the tokens that may not be drawn get -inf. Sorts only where one of them is on."""
  V = logits.shape[-1]
  if 0 < sampling.top_k < V:
    kth = lax.top_k(logits, sampling.top_k)[0][:, -1:]
    logits = jnp.where(logits < kth, -jnp.inf, logits)
  if sampling.top_p < 1:
    rising = jnp.sort(logits, axis=-1)[:, ::-1]
    before = jnp.cumsum(jax.nn.softmax(rising, axis=-1), axis=-1) - jax.nn.softmax(rising, axis=-1)
    least = jnp.min(jnp.where(before < sampling.top_p, rising, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return logits


def is_stop(token: Int[Array, "*b"], stop_ids: tuple[int, ...]) -> Bool[Array, "*b"]:
  """True on stop tokens; nothing stops when there are none."""
  return jnp.isin(token, jnp.array(stop_ids, jnp.int32)) if stop_ids else jnp.zeros(token.shape, bool)

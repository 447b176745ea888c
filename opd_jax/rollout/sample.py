"""Autoregressive sampling to a static horizon.

Dimensions: p prompts, n rollouts of each, B = p n rows, P prompt width, H horizon, V vocabulary, S = P + H.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from opd_jax.models import decoder
from opd_jax.rollout import cache
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
class State:
  """What the token loop carries."""

  t: jax.Array  # int32[], tokens drawn so far
  token: jax.Array  # int32[B], the last one, not yet in the cache
  caches: list[cache.LayerCache]  # one per layer, S slots; prompt first, response after it
  visible: jax.Array  # bool[B, S], slots that hold a real token, the last one's included
  response: jax.Array  # int32[B, H]
  logprob: jax.Array  # f32[B, H]
  mask: jax.Array  # bool[B, H]
  ended: jax.Array  # bool[B], a stop token was drawn


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
) -> Rollout:
  """Samples n responses to every prompt, at most `limit` <= `horizon` tokens long.

  The prompt is read once for its n rollouts. Every row draws from a key of its own, folded with the token's index,
  so a short rollout is the prefix of a long one and a row does not depend on its neighbours. The loop ends at the
  limit or when every row has ended, whichever comes first.

  Args:
    horizon: static; the width of the result and of the compiled program.
    limit: traced; tokens beyond it are padding.
  """
  w = lay_out(params, cfg, dtype)
  B, P = batch.prompt.shape[0] * n, batch.prompt.shape[1]
  with jax.named_scope("prefill"):
    x, caches = cache.prefill(w, cfg, batch.prompt, batch.prompt_mask, P + horizon)
  x, caches, prompt_mask = jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), (x, caches, batch.prompt_mask))
  prompt_length = jnp.sum(prompt_mask, axis=1, dtype=jnp.int32)
  row_keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(B))

  def speak(s: State, x: jax.Array) -> State:
    """Draws token t from the hidden state that predicts it, and writes it down."""
    with jax.named_scope("sample"):
      keys = jax.vmap(lambda k: jax.random.fold_in(k, s.t))(row_keys)
      token, logprob = draw(keys, cache.logits(w, x, sampling.vocab), sampling)
    live = ~s.ended
    token = jnp.where(live, token, sampling.pad_id)
    put = lambda a, new, at: lax.dynamic_update_slice_in_dim(a, new[:, None], at, axis=1)
    return dataclasses.replace(
      s,
      t=s.t + 1,
      token=token,
      visible=put(s.visible, live, P + s.t),
      response=put(s.response, token, s.t),
      logprob=put(s.logprob, jnp.where(live, logprob, 0.0), s.t),
      mask=put(s.mask, live, s.t),
      ended=s.ended | is_stop(token, sampling.stop_ids) & live,
    )

  def going_on(s: State) -> jax.Array:
    return (s.t < limit) & ~jnp.all(s.ended)

  def one_token(s: State) -> State:
    at = s.t - 1  # the last token's index in the response
    with jax.named_scope("decode"):
      x, caches = cache.decode(w, cfg, s.token, prompt_length + at, P + at, s.visible, s.caches)
    return speak(dataclasses.replace(s, caches=caches), x)

  silence = State(
    t=jnp.int32(0),
    token=jnp.full((B,), sampling.pad_id, jnp.int32),
    caches=caches,
    visible=jnp.pad(prompt_mask, ((0, 0), (0, horizon))),
    response=jnp.full((B, horizon), sampling.pad_id, jnp.int32),
    logprob=jnp.zeros((B, horizon), jnp.float32),
    mask=jnp.zeros((B, horizon), bool),
    ended=jnp.zeros((B,), bool),
  )
  said = lax.while_loop(going_on, one_token, speak(silence, x))
  return Rollout(response=said.response, mask=said.mask, behavior_logprob=said.logprob, ended=said.ended)


def draw(keys: jax.Array, logits: Float[Array, "B V"], sampling: Sampling) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
  """One token per row and its log-probability under the distribution that it was drawn from.

  With temperature 0 the most likely token, whose log-probability is given at temperature 1.
  """
  if sampling.temperature == 0:
    token = jnp.argmax(logits, axis=-1)
  else:
    logits = restrict(logits / sampling.temperature, sampling)
    token = jax.vmap(jax.random.categorical)(keys, logits)
  logprob = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
  return token.astype(jnp.int32), logprob


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

"""What an answer attends to: the user's turns, or the student's own earlier ones (arXiv:2605.30251).

    A(X)    attention from the answer's tokens to those of X, per token of X: a mean over answer tokens and heads
    ratio   log((A(user) + eps) / (A(own) + eps)), layer by layer; below 0 the student looks more at its own words

Template markup and system messages are in neither. That the ratio is a mean over conversations of a conversation's own, and
eps, are our choice.

Dimensions: B rows, P prompt width, T positions, H horizon, L layers.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from opd_jax.context.chat import Prompt
from opd_jax.models import decoder
from opd_jax.models.attention import attend_causal
from opd_jax.models.quantise import dense
from opd_jax.types import Batch, Params, Rollout

EPS = 1e-6
USER, OWN = 1, 2


def speakers(messages: Prompt, tokenizer: Any) -> tuple[list[int], list[int]]:
  """Token ids of a conversation up to the reply that is asked for, and who says each: USER, OWN, or 0 for neither.

  A turn that the template does not show word by word, such as a thought that it leaves out, is nobody's.
  """
  chat = [dict(m) for m in messages if not isinstance(m, str)]
  text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
  by_character = np.zeros(len(text), np.int8)
  at = 0
  for m in chat:
    said = m["content"].strip()
    if (start := text.find(said, at)) >= 0:
      at = start + len(said)
      by_character[start:at] = {"user": USER, "assistant": OWN}.get(m["role"], 0)
  read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
  return read["input_ids"], [int(by_character[first]) if last > first else 0 for first, last in read["offset_mapping"]]


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"))
def ratios(
  params: Params, batch: Batch, said: Rollout, who: Int[Array, "B P"], *, cfg: decoder.DecoderConfig, dtype: Any
) -> Float[Array, "B L"]:
  """The ratio of every row; NaN where the answer, or what one of the two has said, has no token.

  Args:
    said: the answers to `batch`, from the same model.
    who: says each token of the prompts: USER, OWN or 0.
  """
  P = batch.prompt.shape[1]
  tokens = jnp.concatenate([batch.prompt, said.response], axis=1)
  mask = jnp.concatenate([batch.prompt_mask, said.mask], axis=1)
  both = jnp.stack([who == USER, who == OWN], axis=-1) & batch.prompt_mask[..., None]
  sets = jnp.pad(both, ((0, 0), (0, said.mask.shape[1]), (0, 0)))
  seen = masses(params, tokens, mask, sets, cfg=cfg, dtype=dtype)[:, :, P:]  # from each token of the answers
  count = lambda a: jnp.sum(a, axis=1, dtype=jnp.float32)
  answer, size = count(said.mask)[:, None], count(sets)
  density = jnp.sum(seen * said.mask[..., None], axis=2) / (jnp.maximum(answer, 1) * jnp.maximum(size, 1))
  there = (answer[:, 0] > 0) & (size > 0).all(axis=1)
  return jnp.where(there, jnp.log((density[..., 0] + EPS) / (density[..., 1] + EPS)), jnp.nan).T


def masses(
  params: Params,
  tokens: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  sets: Bool[Array, "B T 2"],
  *,
  cfg: decoder.DecoderConfig,
  dtype: Any = jnp.float32,
) -> Float[Array, "L B T 2"]:
  """Attention from every token to each of two sets of tokens, a mean over heads; f32.

  A head's attention to a set is what it would read if the values were 1 there and 0 elsewhere.
  """
  rope = decoder.rope_tables(cfg, decoder.positions_of(mask))
  marks = jnp.pad(sets.astype(dtype), ((0, 0), (0, 0), (0, cfg.head_width - 2)))[:, :, None]

  def layer(x, w):
    w = dense(w, dtype)
    q, k, v = decoder.qkv(x, w, cfg, rope)
    to_sets = attend_causal(q, k, jnp.broadcast_to(marks, k.shape), mask)[..., :2]
    x = x + decoder.project_out(attend_causal(q, k, v, mask), w, cfg)
    return x + decoder.feed_forward(x, w, cfg, mask), jnp.mean(to_sets, axis=2, dtype=jnp.float32)

  return lax.scan(layer, decoder.embed(params, tokens, dtype), params["layers"])[1]


def in_columns(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
  """Who says what, left-padded as prompts are; int32[rows, width]."""
  out = np.zeros((len(rows), width), np.int32)
  for row, who in zip(out, rows, strict=True):
    if who := who[-width:]:
      row[-len(who) :] = who
  return out

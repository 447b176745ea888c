"""What an answer attends to: the user's turns, or the student's own earlier ones (arXiv:2605.30251).

    A(X)    attention from the answer's tokens to those of X, per token of X: a mean over answer tokens and heads
    ratio   log((A(user) + eps) / (A(own) + eps)), layer by layer; below 0 the student looks more at its own words

Template markup and system messages are in neither. That the ratio is a mean over conversations of a conversation's own,
and eps, are our choice.

Dimensions: B rows, P prompt width, T positions, H horizon, L layers with attention: those of the gated delta rule have no weights to look at.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from opd_jax.data import chat as chats
from opd_jax.data.rendering import Rendering
from opd_jax.models import decoder
from opd_jax.models.attention import attend_causal
from opd_jax.models.quantise import dense
from opd_jax.tasks import thoughts
from opd_jax.types import Batch, Params, Rollout

EPS = 1e-6
USER, OWN = 1, 2


def speakers(messages: chats.Prompt, tokenizer: Any, rendering: Rendering) -> tuple[list[int], list[int]]:
  """Tokenise a conversation up to the reply that is asked for, and give each token its speaker: USER, OWN or 0.

  A turn that the template does not show word by word is nobody's; of one whose thought it leaves out, what stands behind it counts.

  Args:
    rendering: but for its system message and suffix, which conversations have in them.
  """
  chat = [dict(m) for m in messages if not isinstance(m, str)]
  text = chats.as_text([chat], tokenizer, rendering.for_conversations())[0]
  by_character = np.zeros(len(text), np.int8)
  at = 0
  for m in chat:
    content = m["content"].strip()
    start = text.find(content, at)
    if start < 0 and (content := (thoughts.conclusion(content) or "").strip()):
      start = text.find(content, at)
    if start >= 0:
      at = start + len(content)
      by_character[start:at] = {"user": USER, "assistant": OWN}.get(m["role"], 0)
  encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
  spans = encoded["offset_mapping"]
  return encoded["input_ids"], [int(by_character[first]) if last > first else 0 for first, last in spans]


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"))
def ratios(
  params: Params, batch: Batch, rollout: Rollout, speaker: Int[Array, "B P"], *, cfg: decoder.DecoderConfig, dtype: Any
) -> Float[Array, "B L"]:
  """Compute the ratio of every row; NaN where the answer, the user's turns or the student's own have no token.

  Args:
    rollout: the answers to `batch`, from the same model.
    speaker: of each token of the prompts: USER, OWN or 0.
  """
  P = batch.prompt.shape[1]
  tokens = jnp.concatenate([batch.prompt, rollout.response], axis=1)
  mask = jnp.concatenate([batch.prompt_mask, rollout.mask], axis=1)
  both = jnp.stack([speaker == USER, speaker == OWN], axis=-1) & batch.prompt_mask[..., None]
  sets = jnp.pad(both, ((0, 0), (0, rollout.mask.shape[1]), (0, 0)))
  mass = attention_mass(params, tokens, mask, sets, cfg=cfg, dtype=dtype)[:, :, P:]  # from each token of the answers
  answer = jnp.sum(rollout.mask, axis=1, dtype=jnp.float32)[:, None]  # tokens
  size = jnp.sum(sets, axis=1, dtype=jnp.float32)  # tokens of each set
  density = jnp.sum(mass * rollout.mask[..., None], axis=2) / (jnp.maximum(answer, 1) * jnp.maximum(size, 1))
  defined = (answer[:, 0] > 0) & (size > 0).all(axis=1)
  return jnp.where(defined, jnp.log((density[..., 0] + EPS) / (density[..., 1] + EPS)), jnp.nan).T


def attention_mass(
  params: Params,
  tokens: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  sets: Bool[Array, "B T 2"],
  *,
  cfg: decoder.DecoderConfig,
  dtype: Any = jnp.float32,
) -> Float[Array, "L B T 2"]:
  """Compute the attention from every token to each of two sets of tokens, a mean over heads; f32.

  A head's attention to a set is what its output would be if the values were 1 there and 0 elsewhere.
  """
  differ, of_layer = decoder.by_layer(cfg, decoder.positions_of(mask), tokens.shape[1])
  marks = jnp.pad(sets.astype(dtype), ((0, 0), (0, 0), (0, cfg.head_width - 2)))[:, :, None]

  def block(x, w_and_own):
    to_sets = []
    for w, own, kind in zip(*map(functools.partial(decoder.unblocked, cfg), w_and_own), cfg.kinds, strict=False):
      w, (rope, options) = dense(w, dtype), of_layer(own)
      if kind.mixer == "delta":
        x = x + decoder.gated_delta(x, w, cfg, mask)
      else:
        q, k, v, gate = decoder.qkv(x, w, cfg, rope)
        to_sets.append(attend_causal(q, k, jnp.broadcast_to(marks, k.shape), mask, **options)[..., :2])
        x = x + decoder.project_out(attend_causal(q, k, v, mask, **options), gate, w, cfg)
      x = x + decoder.feed_forward(x, w, cfg, mask)
    return x, jnp.mean(jnp.stack(to_sets), axis=3, dtype=jnp.float32)

  x = decoder.scale_embedding(decoder.embed(params, tokens, dtype), cfg)
  mass = lax.scan(block, x, decoder.blocked((params["layers"], differ), cfg.layers // cfg.block))[1]
  return mass.reshape(-1, *mass.shape[2:])


def pad_left(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
  """Pad the speakers of tokens on the left, as prompts are padded; int32[rows, width]."""
  padded = np.zeros((len(rows), width), np.int32)
  for row, speaker in zip(padded, rows, strict=True):
    last = speaker[-width:]
    if last:
      row[-len(last) :] = last
  return padded

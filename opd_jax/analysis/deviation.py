"""How far a conversation moves a student from its own answer when it is told everything at once (arXiv:2605.30251).

    psi       KL(pi(. | conversation, y_<n) || pi(. | everything at once, y_<n)), the same weights on both sides
    neutral   psi with the student's own earlier turns replaced by a placeholder
    own turn  psi - neutral: what its own earlier words add

y is the student's own last reply in the conversation. All are means over its tokens, in nats. What
the reply attends to is measured along with it, see attention_ratio.py.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.analysis import attention_ratio
from opd_jax.data import pipeline
from opd_jax.data.conversation import CLAIMS, Conversation
from opd_jax.evaluation.multi_turn import MultiTurnEvaluator
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.objectives import fused
from opd_jax.objectives.divergence import FrozenInputs, Objective
from opd_jax.objectives.forward import Forward
from opd_jax.runtime import hosts
from opd_jax.runtime import mesh as meshes
from opd_jax.types import Batch, Params, Rollout

PLACEHOLDER = "..."  # ours; where a task has its own words for an answer, they with a "?"


def deviation(evaluator: MultiTurnEvaluator, params: Params) -> dict[str, Any]:
  """Measure the deviation over the evaluator's held-out problems, each told in a new conversation.

  Returns:
    psi, neutral, own_turn: in nats per token.
    looks: by layer, log of the last reply's attention to the user's turns over that to the student's own; empty where
      no conversation has both.
    prompts_cut: how many of the prompts lost their beginning; only where there are any.
  """
  replies = evaluator.converse(params)
  raw = [c.raw(reply) for c, reply in zip(evaluator.conversations, replies, strict=True)]
  prompts = {
    "raw": raw,
    "neutral": [c.raw((placeholder(c),) * (len(c.turns) - 1)) for c in evaluator.conversations],
    "full": [c.full for c in evaluator.conversations],
  }
  rendered = {name: evaluator.render_within(texts) for name, texts in prompts.items()}
  ids, cut = {name: rows for name, (rows, _) in rendered.items()}, sum(n for _, n in rendered.values())
  inputs = evaluator.inputs
  static = ("deviation", inputs.generator_config, inputs.max_tokens, evaluator.batch, evaluator.widths)
  if static not in evaluator.program_cache:
    evaluator.program_cache[static] = _Programs(evaluator)
  programs: _Programs = evaluator.program_cache[static]
  speakers: list[list[int]] = [[] for _ in raw]
  if inputs.tokenizer.is_fast:  # others know no offsets
    speakers = [attention_ratio.speakers(messages, inputs.tokenizer, inputs.rendering)[1] for messages in raw]
  sums, ratios = programs(params, ids["raw"], ids["neutral"], ids["full"], speakers, evaluator.key)
  psi, neutral, tokens = sums
  means = {"psi": psi / tokens, "neutral": neutral / tokens, "own_turn": (psi - neutral) / tokens}
  return means | {"looks": ratios} | ({"prompts_cut": cut} if cut else {})


def placeholder(conversation: Conversation) -> str:
  """The text that stands for a turn of the student's own."""
  return PLACEHOLDER if conversation.claims == CLAIMS else conversation.claims[0].format("?")


class _Programs:
  """Programs that roll out, compare, and measure attention; for one model and any parameters of it."""

  def __init__(self, evaluator: MultiTurnEvaluator):
    i = evaluator.inputs
    self._rows, self._widths = evaluator.batch, evaluator.widths
    self._sampling = dataclasses.replace(i.sampling, temperature=1.0)
    self._cfg, objective = i.model.cfg, Objective(i.sampling.vocab)
    self._forward = Forward(i.mesh, i.dtype, attention=i.attention)
    self._mesh, self._limit = i.mesh, i.max_tokens
    generator = dataclasses.replace(i.generator_config, sampling=self._sampling)
    self._rollout = jax.jit(functools.partial(generator.rollout, response_len=i.max_tokens))
    self._compare = jax.jit(functools.partial(compare, self._forward, self._cfg, objective))

  def __call__(
    self,
    params: Params,
    raw: list[list[int]],
    neutral: list[list[int]],
    full: list[list[int]],
    speakers: list[list[int]],
    key: jax.Array,
  ) -> tuple[np.ndarray, list[float]]:
    """Answer the raw prompts, and compare the answers under the three prompts.

    Args:
      raw, neutral, full: prompts of each problem, as token ids.
      speakers: of each token of `raw`, see attention_ratio.py.

    Returns:
      the sums over tokens of the divergence under raw and under neutral prompts, and the number of tokens.
      the attention ratio by layer, a mean over the rows that have one.
    """
    longest = max(map(len, (*raw, *neutral, *full)))
    width = next(w for w in self._widths if w >= longest)
    total, ratios, key = np.zeros(3), [], jax.random.fold_in(key, 32)
    for first in range(0, len(raw), self._rows):
      part = slice(first, first + self._rows)
      counted = np.arange(self._rows) < len(raw[part])
      raw_batch, neutral_batch, full_batch = (self._to_devices(rows[part], width) for rows in (raw, neutral, full))
      rollout = self._rollout(params, raw_batch, jax.random.fold_in(key, first), jnp.int32(self._limit))
      for at, batch in enumerate((raw_batch, neutral_batch)):
        kl, mask = hosts.all_gather_to_host((self._compare(params, batch, full_batch, rollout), rollout.mask))
        total[at] += float(np.sum(kl[counted], dtype=np.float64, where=mask[counted]))
      total[2] += float(mask[counted].sum())
      padded = attention_ratio.pad_left(self._filled(speakers[part]), width)
      speaker = hosts.to_global(padded, meshes.rows(self._mesh))
      of_rows = attention_ratio.ratios(params, raw_batch, rollout, speaker, cfg=self._cfg, dtype=self._forward.dtype)
      ratios.append(hosts.all_gather_to_host(of_rows)[counted])
    by_row = np.concatenate(ratios)
    by_row = by_row[~np.isnan(by_row).any(axis=1)]
    return total, by_row.mean(axis=0, dtype=np.float64).tolist() if len(by_row) else []

  def _to_devices(self, rows: list[list[int]], width: int) -> Batch:
    padded = pipeline.pad(self._filled(rows), width, self._sampling.pad_id)
    return hosts.to_global(padded, meshes.rows(self._mesh))

  def _filled(self, rows: list[list[int]]) -> list[list[int]]:
    """Fill up a batch with the first of the rows."""
    return rows + rows[:1] * (self._rows - len(rows))


def compare(
  forward: Forward, cfg: DecoderConfig, objective: Objective, params: Params, raw: Batch, full: Batch, rollout: Rollout
) -> Any:
  """Compute KL(model under the prompts `raw` || same model under `full`) at every token of the rollout; [B, H]."""
  under_raw, under_full = (forward(params, cfg, batch, rollout) for batch in (raw, full))
  inputs = FrozenInputs((under_full,), rollout.response, rollout.mask)
  return fused.token_stats(objective, under_raw, inputs, mesh=forward.mesh)["kl"]

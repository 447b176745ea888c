"""How far a conversation moves a student from what it says when it is told everything at once (arXiv:2605.30251).

    psi       KL(pi(. | conversation, y_<n) || pi(. | everything at once, y_<n)), the same weights on both sides
    neutral   psi with the student's own earlier turns replaced by a placeholder
    own turn  psi - neutral: what its own earlier words add

y is the student's own last reply in the conversation. All are means over its tokens, in nats. While it is there, what it
attends to is read too, see looks.py.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from opd_jax import hosts
from opd_jax import mesh as meshes
from opd_jax.analysis import looks
from opd_jax.context.conversation import CLAIMS, Conversation
from opd_jax.data import pipeline
from opd_jax.multiturn import MultiTurnEvaluator
from opd_jax.objectives import fused
from opd_jax.objectives.divergence import Objective
from opd_jax.objectives.loss import Loss
from opd_jax.recipes.distill import Distill
from opd_jax.types import Batch, Params, Rollout

PLACEHOLDER = "..."  # ours; where a task has its own words for an answer, they with a "?"


def deviation(evaluator: MultiTurnEvaluator, params: Params) -> dict[str, Any]:
  """psi, neutral and own_turn over the evaluator's held-out problems, each told in a new conversation.

  And "looks": by layer, log of the last reply's attention to the user's turns over that to the student's own; empty where
  nobody has said anything.
  """
  replies = evaluator.converse(params)
  talks = [t.raw(r) for t, r in zip(evaluator.talks, replies, strict=True)]
  ids = {
    "raw": evaluator.ids(talks),
    "neutral": evaluator.ids([t.raw((placeholder(t),) * (len(t.turns) - 1)) for t in evaluator.talks]),
    "full": evaluator.ids([t.full for t in evaluator.talks]),
  }
  i = evaluator.inputs
  static = ("deviation", i.voice, i.max_tokens, evaluator.batch, evaluator.widths)
  if static not in evaluator.kept:
    evaluator.kept[static] = _Reader(evaluator)
  reader: _Reader = evaluator.kept[static]
  who = [looks.speakers(talk, i.tokenizer)[1] if i.tokenizer.is_fast else [] for talk in talks]  # needs offsets
  (psi, neutral, tokens), ratios = reader(params, ids["raw"], ids["neutral"], ids["full"], who, evaluator.key)
  means = {"psi": psi / tokens, "neutral": neutral / tokens, "own_turn": (psi - neutral) / tokens}
  return means | {"looks": ratios}


def placeholder(talk: Conversation) -> str:
  """What stands for a turn of the student's own."""
  return PLACEHOLDER if talk.claims == CLAIMS else talk.claims[0].format("?")


class _Reader:
  """Programs that speak, compare, and see what is attended to; for one model and any parameters of it."""

  def __init__(self, evaluator: MultiTurnEvaluator):
    i = evaluator.inputs
    self._rows, self._widths = evaluator.batch, evaluator.widths
    self._sampling = dataclasses.replace(i.sampling, temperature=1.0)
    self.recipe = Distill(
      student=i.model.cfg,
      teachers=(i.model.cfg,),
      sampling=self._sampling,
      loss=Loss(Objective(i.sampling.vocab)),
      optimizer=optax.identity(),
      mesh=i.mesh,
      dtype=i.dtype,
      attention=i.attention,
      segments=i.segments,
    )
    self._mesh, self._limit = i.mesh, i.max_tokens
    self._speak = jax.jit(functools.partial(self.recipe.rollout, horizon=i.max_tokens))
    self._compare = jax.jit(functools.partial(compare, self.recipe))

  def __call__(
    self,
    params: Params,
    raw: list[list[int]],
    neutral: list[list[int]],
    full: list[list[int]],
    who: list[list[int]],
    key: jax.Array,
  ) -> tuple[np.ndarray, list[float]]:
    """Of answers to the raw prompts: sums over tokens of the divergence under raw and neutral prompts, and tokens; looks.

    Args:
      who: says each token of `raw`, see looks.py.
    """
    longest = max(map(len, (*raw, *neutral, *full)))
    width = next(w for w in self._widths if w >= longest)
    total, ratios, key = np.zeros(3), [], jax.random.fold_in(key, 32)
    for first in range(0, len(raw), self._rows):
      part = slice(first, first + self._rows)
      counted = np.arange(self._rows) < len(raw[part])
      told, blank, at_once = (self._place(rows[part], width) for rows in (raw, neutral, full))
      said = self._speak(params, told, jax.random.fold_in(key, first), jnp.int32(self._limit))
      for at, batch in enumerate((told, blank)):
        kl, mask = hosts.whole((self._compare(params, batch, at_once, said), said.mask))
        total[at] += float(np.sum(kl[counted], dtype=np.float64, where=mask[counted]))
      total[2] += float(mask[counted].sum())
      speakers = hosts.place(looks.in_columns(self._full(who[part]), width), meshes.rows(self._mesh))
      seen = looks.ratios(params, told, said, speakers, cfg=self.recipe.student, dtype=self.recipe.dtype)
      ratios.append(hosts.whole(seen)[counted])
    seen = np.concatenate(ratios)
    seen = seen[~np.isnan(seen).any(axis=1)]
    return total, seen.mean(axis=0, dtype=np.float64).tolist() if len(seen) else []

  def _place(self, rows: list[list[int]], width: int) -> Batch:
    padded = pipeline.pad(self._full(rows), width, self._sampling.pad_id)
    return hosts.place(padded, meshes.rows(self._mesh))

  def _full(self, rows: list[list[int]]) -> list[list[int]]:
    """The first of them again, as often as a batch has room."""
    return rows + rows[:1] * (self._rows - len(rows))


def compare(recipe: Distill, params: Params, told: Batch, at_once: Batch, said: Rollout) -> Any:
  """Reverse KL of every token of what was said under the one prompt, from the same model under the other; [B, H]."""
  here, there = (recipe.read(params, recipe.student, batch, said) for batch in (told, at_once))
  return fused.read(recipe.loss.objective, here, (there,), said.response, said.mask, mesh=recipe.mesh)["kl"]

"""How far a conversation moves a student from what it says when it is told everything at once (arXiv:2605.30251).

    psi       KL(pi(. | conversation, y_<n) || pi(. | everything at once, y_<n)), the same weights on both sides
    neutral   psi with the student's own earlier turns replaced by a placeholder
    own turn  psi - neutral: what its own earlier words add

y is the student's own last reply in the conversation. All are means over its tokens, in nats.
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
from opd_jax.context.conversation import CLAIMS, Conversation
from opd_jax.data import pipeline
from opd_jax.multiturn import MultiTurnEvaluator
from opd_jax.objectives import fused
from opd_jax.objectives.divergence import Objective
from opd_jax.objectives.loss import Loss
from opd_jax.recipes.distill import Distill
from opd_jax.types import Batch, Params, Rollout

PLACEHOLDER = "..."  # ours; where a task has its own words for an answer, they with a "?"


def deviation(evaluator: MultiTurnEvaluator, params: Params) -> dict[str, float]:
  """psi, neutral and own_turn over the evaluator's held-out problems, each told in a new conversation."""
  replies = evaluator.converse(params)
  ids = {
    "raw": evaluator.ids([t.raw(r) for t, r in zip(evaluator.talks, replies, strict=True)]),
    "neutral": evaluator.ids([t.raw((placeholder(t),) * (len(t.turns) - 1)) for t in evaluator.talks]),
    "full": evaluator.ids([t.full for t in evaluator.talks]),
  }
  width = pipeline.width([row for rows in ids.values() for row in rows])
  found = _Reader(evaluator, width)
  psi, neutral, tokens = found(params, ids["raw"], ids["neutral"], ids["full"])
  return {"psi": psi / tokens, "neutral": neutral / tokens, "own_turn": (psi - neutral) / tokens}


def placeholder(talk: Conversation) -> str:
  """What stands for a turn of the student's own."""
  return PLACEHOLDER if talk.claims == CLAIMS else talk.claims[0].format("?")


class _Reader:
  """Programs that speak and compare, for prompts of one width."""

  def __init__(self, evaluator: MultiTurnEvaluator, width: int):
    i = evaluator.inputs
    self._width, self._key = width, jax.random.fold_in(evaluator.key, 32)
    self._rows = evaluator.batch
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

  def __call__(self, params: Params, *prompts: list[list[int]]) -> tuple[float, float, float]:
    """Sums over tokens of the divergence of the first and of the second prompts from the third, and tokens."""
    total = np.zeros(3)
    n = len(prompts[0])
    for first in range(0, n, self._rows):
      count = min(self._rows, n - first)
      raw, neutral, full = (self._place(rows[first : first + count]) for rows in prompts)
      said = self._speak(params, raw, jax.random.fold_in(self._key, first), jnp.int32(self._limit))
      counted = np.arange(self._rows) < count
      for at, batch in enumerate((raw, neutral)):
        kl, mask = hosts.whole((self._compare(params, batch, full, said), said.mask))
        total[at] += float(np.sum(kl[counted], dtype=np.float64, where=mask[counted]))
      total[2] += float(mask[counted].sum())
    return total[0], total[1], total[2]

  def _place(self, rows: list[list[int]]) -> Batch:
    padded = rows + [rows[0]] * (self._rows - len(rows))
    return hosts.place(pipeline.pad(padded, self._width, self._sampling.pad_id), meshes.rows(self._mesh))


def compare(recipe: Distill, params: Params, told: Batch, at_once: Batch, said: Rollout) -> Any:
  """Reverse KL of every token of what was said under the one prompt, from the same model under the other; [B, H]."""
  here, there = (recipe.read(params, recipe.student, batch, said) for batch in (told, at_once))
  return fused.read(recipe.loss.objective, here, (there,), said.response, said.mask, mesh=recipe.mesh)["kl"]

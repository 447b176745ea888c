"""What comments do: attempts at held-out problems, a comment on each, and second answers by a student that is shown it.

The student is shown a comment as the teacher of a training step is (`context.template`), so that this measures what a teacher gains
by it, and how often it makes a right answer a wrong one: the break rate of arXiv:2606.14368, section 5.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from opd_jax.config import Config
from opd_jax.context.comments import Comment
from opd_jax.context.privileged import Privileged
from opd_jax.context.replies import control_tokens, final_text
from opd_jax.data import chat, pipeline
from opd_jax.evaluation.inputs import EvaluationInputs
from opd_jax.evaluation.single_turn import verify_all
from opd_jax.evaluation.tutoring import break_rate_by
from opd_jax.rollout.generate import Generator
from opd_jax.runtime import keys
from opd_jax.runtime.programs import ProgramCache
from opd_jax.types import Params

# The comments on responses to prompts, one each, drawn with a key: tutor.Tutor with its weights, or a rule.
CommentOn = Callable[[Sequence[chat.Prompt], Sequence[str], jax.Array], Sequence[Comment]]


class CommentedEvaluator:
  """Answers the held-out problems `eval.k` times each, has the answers commented, and answers again, once for each comment."""

  def __init__(self, config: Config, inputs: EvaluationInputs, program_cache: ProgramCache | None = None):
    self._inputs, self._k = inputs, config.eval.k
    self._privileged = Privileged.from_config(config)
    self._key = keys.of_seed(config.seed, keys.Use.EVALUATION)
    self._control = control_tokens(inputs.tokenizer)
    self._attempt = self._generator(config, pipeline.padded_len(inputs.problems.ids), self._k, program_cache)
    self._again = self._generator(config, config.context.max_tokens, 1, program_cache)

  def _generator(self, config: Config, width: int, k: int, program_cache: ProgramCache | None) -> Generator:
    return Generator(
      self._inputs.generator_config,
      self._inputs.tokenizer,
      batch=config.eval.batch,
      prompt_lens=(width,),
      max_tokens=self._inputs.max_tokens,
      k=k,
      name="commented",
      program_cache=program_cache,
    )

  def __call__(self, student: Params, comment_on: dict[str, CommentOn]) -> dict[str, dict[str, Any]]:
    """Measures every way to comment on the same attempts of a student.

    Args:
      comment_on: ways to comment, by name.

    Returns:
      Of each name, and of "again", whose second answers are fresh ones to the problem alone, which spoil some right answers too:
        comments: how many have which outcome, see context/comments.py.
        rows: attempts whose comment was kept; the rest is of these.
        without, with: accuracy of the attempts and of the second answers, by domain and "all".
        broken: among attempts that were right, those whose second answer is wrong: rate, interval and rows, by domain and "all".
        broken_by_solved: likewise by how many of a problem's k attempts were right, "1" to "k": the smaller, the harder.
    """
    problems, k = self._inputs.problems, self._k
    drawn, commented, again = jax.random.split(self._key, 3)
    first = self._attempt(student, problems.ids, drawn)
    of_rows = [i // k for i in range(len(first.texts))]
    right = self._verify(first.responses, of_rows)
    solved = right.reshape(-1, k).sum(axis=1)
    prompts = [problems.prompts[i] for i in of_rows]
    texts = [final_text(response, self._control) for response in first.responses]
    afresh = self._attempt(student, problems.ids, jax.random.fold_in(again, 1))
    every = range(len(of_rows))
    found = {
      "again": {"comments": {}, "rows": len(of_rows)}
      | self._effects(right, self._verify(afresh.responses, of_rows), every, of_rows, solved)
    }
    for name, source in comment_on.items():
      comments = source(prompts, texts, commented)
      parts = [(prompt, "", comment.text) for prompt, comment in zip(prompts, comments, strict=True)]
      ids, _ = self._privileged.rows(parts, self._inputs.tokenizer, self._inputs.rendering)
      rows = [i for i, row in enumerate(ids) if row]
      outcomes = collections.Counter(comment.outcome.value for comment in comments)
      found[name] = {"comments": dict(sorted(outcomes.items())), "rows": len(rows)}
      if not rows:
        continue
      second = self._again(student, [ids[i] for i in rows], again)
      after = self._verify(second.responses, [of_rows[i] for i in rows])
      found[name] |= self._effects(right, after, rows, of_rows, solved)
    return found

  def _effects(
    self, right: np.ndarray, after: np.ndarray, rows: Sequence[int], of_rows: Sequence[int], solved: np.ndarray
  ) -> dict[str, Any]:
    """Compares attempts of some rows with their second answers."""
    before, domains = right[list(rows)], self._inputs.problems.domains
    of_domain = [domains[of_rows[i]] if domains else "" for i in rows]
    difficulty = [str(solved[of_rows[i]]) for i in rows]
    return {
      "without": _by_domain(before, of_domain),
      "with": _by_domain(after, of_domain),
      "broken": _rates(["all"] * len(before), before, after) | _rates(of_domain, before, after),
      "broken_by_solved": _rates(difficulty, before, after),
    }

  def _verify(self, responses: Sequence[Any], of_rows: Sequence[int]) -> np.ndarray:
    """Verifies responses to the problems of these numbers; bool[rows]."""
    problems = self._inputs.problems
    answers = [problems.answers[i] for i in of_rows]
    return verify_all(self._inputs.verify, problems.with_records(responses, of_rows), answers).correct


def shuffled(comment_on: CommentOn, by: int) -> CommentOn:
  """Makes a control of a way to comment: every row is given the comment on the row `by` rows before it."""

  def source(prompts: Sequence[chat.Prompt], texts: Sequence[str], key: jax.Array) -> Sequence[Comment]:
    comments = list(comment_on(prompts, texts, key))
    return [comments[i - by] for i in range(len(comments))]

  return source


def _by_domain(right: np.ndarray, domains: Sequence[str]) -> dict[str, float]:
  found = {"all": float(right.mean())}
  for domain in sorted(set(domains) - {""}):
    found[domain] = float(right[[d == domain for d in domains]].mean())
  return found


def _rates(groups: Sequence[str], before: np.ndarray, after: np.ndarray) -> dict[str, dict[str, Any]]:
  rates = break_rate_by(groups, before.tolist(), after.tolist())
  return {group: rate._asdict() for group, rate in rates.items()}

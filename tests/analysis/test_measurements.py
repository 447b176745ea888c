"""The oracle beside a response: where it is wrong, and from where on it is off the path."""

import numpy as np
import pytest

from opd_jax.analysis.measurements import survivors, truth
from opd_jax.tasks import chain
from tests.helpers.measurements import by_hand

PROMPT = "58+-++x1="
WRONG = "1:5+8=4,8-4=4,4+4=8,4+8=2\n#82"  # 5+8 is 3; everything after it follows from what is written
BROKEN = "1:5+8+3"  # a sign for "="


def truth_of(task, prompt, *texts):
  """The oracle's arrays over texts that end with the stop token."""
  rows = [chain.TOKENIZER.encode([*text, chain.EOS]) for text in texts]
  H = max(map(len, rows))
  response = np.array([row + [0] * (H - len(row)) for row in rows])
  return truth(
    task, [prompt] * len(rows), response, np.arange(H) < np.array([[len(r)] for r in rows]), chain.TOKENIZER.ids
  )


def at(flags) -> list[int]:
  """The places of the flags that are set."""
  return np.flatnonzero(flags).tolist()


def test_a_wrong_fact_stands_on_the_path_and_what_follows_it_does_not():
  found = truth_of(chain.CHAIN, PROMPT, WRONG)
  n = len(WRONG) + 1
  assert at(~found.right[0]) == [6]
  assert found.token[0, 6] == chain.TOKENIZER.ids["3"]
  assert at(found.off_path[0]) == list(range(7, n))
  assert at(found.known[0]) == list(range(n))


def test_only_results_are_decisive():
  assert at(truth_of(chain.CHAIN, PROMPT, WRONG).decisive[0]) == [6, 12, 18, 24]


def test_letters_are_decisive_too():
  p = next(p for p in chain.SHORT_PHASE.problems(50, seed=1) if p.prompt.endswith("x3>"))
  found = truth_of(chain.SHORT_PHASE, p.prompt, p.solution)
  assert found.right[0].all()
  assert not found.off_path.any()
  results = [i for i, symbol in enumerate(p.solution) if p.solution[i - 1] == "="]
  letters = [i for i, symbol in enumerate(p.solution) if symbol in chain.LETTERS]
  assert len(letters) >= 2
  assert at(found.decisive[0]) == sorted(results + letters)


def test_nothing_is_right_after_the_format_is_left():
  found = truth_of(chain.CHAIN, PROMPT, WRONG, BROKEN)
  assert at(found.known[1]) == list(range(6))
  assert at(found.right[1]) == list(range(5))
  assert at(found.off_path[1]) == [6, 7], "to the end of the row and not into its padding"


def test_a_token_of_no_symbol_leaves_the_format():
  response = np.array([[*chain.TOKENIZER.encode("1:5"), 99, *chain.TOKENIZER.encode("8=3")]])
  found = truth(chain.CHAIN, [PROMPT], response, np.ones(response.shape, bool), chain.TOKENIZER.ids)
  assert at(found.known[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize(("tokens", "rows"), [(0, [0, 1, 2]), (2, [0, 1, 2]), (3, [0, 2]), (5, [2]), (6, [])])
def test_survivors_have_every_token_up_to_there(tokens, rows):
  assert at(survivors(by_hand([4, 2, 5], 6), tokens)) == rows

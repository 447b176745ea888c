"""Subset sums: problems, their verification, the scripted teacher and what the student is pre-trained on."""

import collections
import itertools
import random

import numpy as np
import pytest

from opd_jax.tasks import generator, pretrain, subsets
from opd_jax.tasks.subsets import OTHER_SUBSETS, SUBSETS

TASKS = (SUBSETS, OTHER_SUBSETS)
ANSWER = "05,18,11,02>16"


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_problem_has_a_solution_that_fits(task):
  longest_prompt = longest_response = 0
  for problem in task.problems(300, seed=1):
    assert task.verify(problem.solution, problem.answer)
    longest_prompt = max(longest_prompt, len(subsets.TOKENIZER.encode(problem.prompt)))
    longest_response = max(longest_response, len(subsets.TOKENIZER.encode(problem.solution)) + 1)
  assert (longest_prompt, longest_response) == (task.max_prompt, task.max_response)
  assert generator(task.name) is task


def test_tiers_come_in_turn_and_are_of_their_size():
  problems = SUBSETS.problems(9, seed=0)
  assert [problem.domain for problem in problems] == ["easy", "medium", "hard"] * 3
  assert [len(subsets.read(problem.prompt)[0]) for problem in problems[:3]] == [4, 6, 8]
  assert problems == SUBSETS.problems(9, seed=0)
  assert problems != SUBSETS.problems(9, seed=1)


def test_what_is_held_out_is_never_trained_on():
  trained = {problem.prompt for problem in SUBSETS.problems(2000, seed=0)}
  held_out = {problem.prompt for problem in SUBSETS.problems(500, seed=0, held_out=True)}
  assert not trained & held_out


@pytest.mark.parametrize(
  ("response", "right"),
  [
    ("y05n05y16n16", True),
    ("y05n05y15n15", False),  # adds up wrongly
    ("y05n05y16n17", False),
    ("n00n00n00n00", False),  # another goal
    ("y05n05y16", False),  # one is not chosen of
    ("y05n05y16n16n16", False),
    ("y05n05y16n1", False),
    ("x05n05y16n16", False),
    ("y05 n05y16n16", False),
    ("", False),
  ],
)
def test_a_response_is_right_where_it_adds_up_to_the_goal(response, right):
  assert SUBSETS.verify(response, ANSWER) is right
  assert not SUBSETS.verify(response, ANSWER, ended=False)


def test_a_sum_beyond_two_digits_is_no_way_around():
  numbers, goal = (40, 40, 40, 20), 40
  over = subsets.trace(numbers, [True, True, True, True])
  assert over.endswith("y40"), "140, in two digits"
  assert not SUBSETS.verify(over, subsets.written(numbers, goal).rstrip("="))


def test_solutions_are_drawn_from_all_that_there_are():
  numbers, goal = (3, 5, 8, 2, 6, 1), 11
  ways = {
    subsets.trace(numbers, choices)
    for choices in itertools.product((False, True), repeat=len(numbers))
    if sum(n for n, taken in zip(numbers, choices, strict=True) if taken) == goal
  }
  rng = random.Random(0)
  drawn = collections.Counter(subsets.solve(rng, numbers, goal) for _ in range(200 * len(ways)))
  assert drawn.keys() == ways
  assert min(drawn.values()) > 130
  assert max(drawn.values()) < 270


def test_whoever_sees_further_is_right_more_often():
  problems = [problem for problem in SUBSETS.problems(600, seed=3) if problem.domain == "medium"]
  rng, rates = random.Random(0), []
  for sees in (0, 2, 4, None):
    found = [SUBSETS.verify(subsets.solve(rng, *subsets.read(p.prompt), sees), p.answer) for p in problems]
    rates.append(float(np.mean(found)))
  assert rates == sorted(rates)
  assert rates[0] < 0.15
  assert rates[-1] == 1.0


def test_the_solver_is_right_four_times_out_of_five_and_repeats_itself():
  problems = SUBSETS.problems(300, seed=4)
  asked = {"max_tokens": 25, "temperature": 1.0, "seed": 7}
  written = subsets.solver([p.prompt for p in problems], 4, **asked)
  assert [len(texts) for texts in written] == [4] * 300
  right = np.mean(
    [SUBSETS.verify(text, p.answer) for p, texts in zip(problems, written, strict=True) for text in texts]
  )
  assert subsets.SKILL < right < subsets.SKILL + 0.05, "a guess is right now and then"
  assert subsets.solver([p.prompt for p in problems], 4, **asked) == written
  assert subsets.solver([p.prompt for p in problems], 4, **asked | {"seed": 8}) != written


def test_a_wrong_response_is_well_formed():
  rng = random.Random(0)
  for problem in SUBSETS.problems(60, seed=5):
    numbers, goal = subsets.read(problem.prompt)
    text = subsets.wrong(rng, numbers, goal)
    assert not SUBSETS.verify(text, problem.answer)
    assert SUBSETS.verify(text, subsets.written(numbers, int(text[-2:])).rstrip("="))


@pytest.mark.parametrize("cut", range(13))
def test_a_beginning_is_gone_on_with(cut):
  numbers, solution = (5, 18, 11, 2), "y05n05y16n16"
  text = subsets.guess(random.Random(cut), numbers, solution[:cut])
  assert text.startswith(solution[:cut])
  assert SUBSETS.verify(text, subsets.written(numbers, int(text[-2:])).rstrip("="))


def test_candidates_are_read_in_pretraining_and_never_said_to_be_right():
  plain, wide = itertools.islice(pretrain.subset_batches(2048, seed=0), 2)
  repeated = collections.Counter()
  for tokens, weights in (plain, wide):
    assert tokens.shape[1] == weights.shape[1] + 1
    for ids, weight in zip(tokens, weights, strict=True):
      learned = np.flatnonzero(weight)
      text = "".join(subsets.SYMBOLS[i] for i in ids[: learned[-1] + 2])
      before, response = text[: learned[0] + 1], text[learned[0] + 1 :]
      assert before.endswith("=")
      assert response.endswith(subsets.EOS)
      if before.count(":") == 2 and not before.endswith("!="):
        right, wrong = sorted(
          before.rstrip("=").split(":")[1:], key=lambda t: not SUBSETS.verify(t, before.partition("=")[0])
        )
        assert SUBSETS.verify(right, before.partition("=")[0])
        repeated["right" if response[:-1] == right else "wrong" if response[:-1] == wrong else "neither"] += 1
  assert repeated["neither"] == 0
  assert abs(repeated["right"] / repeated.total() - 0.5) < 0.07

"""4 x 4 sudokus and countdowns: problems that are repeatable and solvable, and what counts as a solution."""

import re

import pytest

from opd_jax import tasks
from opd_jax.tasks import puzzles
from opd_jax.tasks.puzzles import COUNTDOWN, SUDOKU, cells, grids


@pytest.mark.long
@pytest.mark.parametrize("task", [SUDOKU, COUNTDOWN], ids=lambda task: task.name)
def test_problems_are_repeatable_held_out_and_solved(task):
  train, held_out = task.problems(300, seed=0), task.problems(300, seed=0, held_out=True)
  assert train == task.problems(300, seed=0)
  assert not {p.prompt for p in train} & {p.prompt for p in held_out}
  assert len({p.prompt for p in train}) > 250
  assert tasks.generator(task.name) is task
  for problem in train + held_out:
    assert len(problem.prompt) <= task.max_prompt
    assert len(problem.solution) + 1 <= task.max_response
    assert task.verify(problem.solution, problem.answer)
    assert not task.verify(problem.solution, problem.answer, ended=False)
    assert set(problem.prompt + problem.solution) <= set(puzzles.SYMBOLS)


def test_grids_are_all_there_and_all_different_in_rows_columns_and_boxes():
  assert len(set(grids())) == 288
  for grid in grids():
    for unit in [grid[i : i + 4] for i in (0, 4, 8, 12)] + [grid[i::4] for i in range(4)]:
      assert set(unit) == set("1234")
    for corner in (0, 2, 8, 10):
      assert {grid[corner + i] for i in (0, 1, 4, 5)} == set("1234")


def test_a_countdown_is_held_out_in_every_order():
  def problems(held_out: bool) -> set[str]:
    found = [p.prompt[:-1].partition(">") for p in COUNTDOWN.problems(400, seed=0, held_out=held_out)]
    return {f"{sorted(numbers)}>{goal}" for numbers, _, goal in found}

  assert not problems(True) & problems(False)


def test_a_sudoku_has_one_solution():
  for problem in SUDOKU.problems(50, seed=1):
    pattern = re.compile(problem.prompt[:-1])  # a dot is any cell
    assert [grid for grid in grids() if pattern.fullmatch(grid)] == [problem.answer]
    assert problem.prompt.count(".") == SUDOKU.blanks


def test_cells_tell_near_from_far():
  assert cells("4321214313423214", "4321214313423214") == 1.0
  assert cells("4321214313423241", "4321214313423214") == 14 / 16
  assert cells("43", "4321214313423214") == 2 / 16


@pytest.mark.parametrize(
  ("response", "right"),
  [
    ("3+5=8,8*8=64", True),
    ("5+3=8,8*8=64", True),
    ("8*8=64,3+5=8", False),  # 8 is there once
    ("3+5=8,8*8=63", False),
    ("3+5=9,8*8=64", False),
    ("8*8=64", False),
    ("3+5=8,8*8=64,", False),
    ("3+5=8,8+8=16", False),
    ("3+3=6,8*8=64", False),
    ("3+5=8,8*8=64,64-0=64", False),
    ("", False),
  ],
)
def test_a_countdown_uses_each_number_once_and_ends_at_the_goal(response, right):
  assert COUNTDOWN.verify(response, "3,8,5>64") is right


@pytest.mark.parametrize(
  ("text", "ended", "state"),
  [
    ("", False, "3,5,8>64"),
    ("3+5=8,", False, "8,8>64"),
    ("5+3=8,", False, "8,8>64"),
    ("8*3=24,8", False, "5,24>64"),
    ("8*8=64,", False, None),
    ("3+5=9,", False, None),
    ("3+,", False, None),
    ("3+5=8,8*8=64", True, "64>64."),
    ("5+3=8,8*8=64", True, "64>64."),
    ("3+5=8,8*8=63", True, None),
    ("3+5=8", True, "8,8>64."),
    ("3+5=8,", True, None),
  ],
)
def test_a_countdowns_state_is_what_is_left(text, ended, state):
  assert puzzles.remaining("3,8,5>64=", text, ended) == state


def test_countdowns_with_four_numbers_are_solved_by_the_steps_that_made_them():
  task = puzzles.COUNTDOWN_4
  for held_out in (False, True):
    for problem in task.problems(200, 3, held_out):
      assert len(problem.prompt) <= task.max_prompt
      assert len(problem.solution) + 1 <= task.max_response
      assert task.verify(problem.solution, problem.answer)
      assert not task.verify(problem.solution.rpartition(",")[0], problem.answer)
  assert {p.answer for p in task.problems(200, 3)}.isdisjoint(p.answer for p in task.problems(200, 3, True))

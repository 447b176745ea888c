"""What is revealed to a teacher of its own finished answer, and where the two are compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.context.self_future import COMPARED, SelfFuture, recorded

H, BLOCK, STEPS = 16, 8, 4  # two tokens a step
TOTAL = H // BLOCK * STEPS


def commits(rows: int = 5) -> np.ndarray:
  """Random steps of each position, block by block, two positions a step."""
  rng = np.random.default_rng(0)
  by_block = [rng.permuted(np.tile(np.repeat(np.arange(STEPS), 2) + STEPS * b, (rows, 1)), axis=1) for b in range(2)]
  return np.concatenate(by_block, axis=1)


def chosen(future: SelfFuture, t: int, committed_at, first_stop: int = H, key: int = 0, rounding: float = 0.0):
  """R and K at step t, as sets of positions of every row."""
  rows = len(committed_at)
  step, block = jnp.full(rows, t), jnp.full(rows, t // STEPS)
  order, confidence = (jax.random.uniform(jax.random.key(key + i), (rows, H)) for i in range(2))
  committed_at = jnp.asarray(committed_at)
  revealed = future.revealed(committed_at, step, block, jnp.full(rows, first_stop), order, jnp.full(rows, rounding))
  candidates = future.candidates(committed_at, step, block, revealed)
  positions, valid = future.choose(candidates, committed_at, step, confidence, 2)
  of_row = [{int(p) for p in row[ok]} for row, ok in zip(np.asarray(positions), np.asarray(valid), strict=True)]
  return [set(np.flatnonzero(row)) for row in np.asarray(revealed)], of_row, np.asarray(confidence)


@pytest.mark.parametrize("reveal", ["any", "ahead", "prefix"])
@pytest.mark.parametrize("compared", COMPARED)
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("in_block", [False, True])
def test_what_is_compared_is_masked_and_not_revealed(reveal, compared, share, in_block):
  committed_at, total = commits(), np.zeros(5, int)
  for t in range(TOTAL):
    revealed, found, _ = chosen(SelfFuture(reveal, share, compared, in_block, BLOCK), t, committed_at)
    for row in range(5):
      masked = set(np.flatnonzero(committed_at[row] >= t))
      assert revealed[row] <= masked
      assert found[row] <= masked - revealed[row]
      total[row] += len(found[row])
      if compared == "all" and not in_block:
        assert found[row] == masked - revealed[row]
      if in_block and compared != "student":
        assert {i // BLOCK for i in found[row]} <= {t // STEPS}
      if share == 0 or reveal == "prefix":
        assert not revealed[row]
  if compared != "all":
    assert (total == H).all()  # as many as there are positions, over all steps


def test_of_any_masks_a_share_is_revealed_that_leaves_what_the_step_commits():
  committed_at = commits()
  future = SelfFuture("any", 0.25, "teacher", False, BLOCK)
  numbers = [len(chosen(future, t, committed_at)[0][0]) for t in range(TOTAL)]
  assert numbers == [4, 3, 3, 2, 2, 1, 1, 0]  # a quarter of 16, 14, ..., 2, rounded down
  up = [len(chosen(future, t, committed_at, rounding=0.9)[0][0]) for t in range(TOTAL)]
  assert up == [4, 4, 3, 3, 2, 2, 1, 0], "up where the fraction is above what is drawn, but never what is set aside"
  everything = SelfFuture("any", 1.0, "teacher", False, BLOCK)
  assert [len(chosen(everything, t, committed_at)[0][0]) for t in range(TOTAL)] == [14, 12, 10, 8, 6, 4, 2, 0]


def test_ahead_is_behind_the_block_and_nothing_once_that_is_behind_the_stop_token():
  committed_at = commits()
  future = SelfFuture("ahead", 1.0, "teacher", True, BLOCK)
  revealed, found, _ = chosen(future, 1, committed_at)
  assert revealed[0] == set(range(BLOCK, H))
  assert found[0] <= set(range(BLOCK))
  assert chosen(future, 1, committed_at, first_stop=BLOCK)[0][0]
  assert not chosen(future, 1, committed_at, first_stop=BLOCK - 1)[0][0]
  assert not chosen(future, STEPS, committed_at)[0][0]  # there is no next block


def test_the_teacher_chooses_where_it_is_surest():
  committed_at = commits()
  for in_block in (False, True):
    future = SelfFuture("any", 0.25, "teacher", in_block, BLOCK)
    revealed, found, confidence = chosen(future, 1, committed_at)
    for row in range(5):
      left = set(np.flatnonzero(committed_at[row] >= 1)) - revealed[row]
      left = {i for i in left if i < BLOCK} if in_block else left
      assert found[row] == set(sorted(left, key=lambda i, row=row: -confidence[row, i])[:2])


def test_what_the_student_commits_is_never_revealed():
  committed_at = commits()
  for t in range(TOTAL):
    revealed, found, _ = chosen(SelfFuture("any", 1.0, "student", False, BLOCK), t, committed_at)
    for row in range(5):
      assert found[row] == set(np.flatnonzero(committed_at[row] == t))
      assert revealed[row] == set(np.flatnonzero(committed_at[row] > t))


def test_canvases_that_are_recorded():
  """Of one row: a stop token at 5, which is committed at step 2; what stands before it is whole after step 3."""
  committed_at = np.array([[0, 0, 1, 1, 3, 2, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7]])
  stops = np.zeros((1, H), bool)
  stops[0, 5] = True
  found = recorded(jnp.asarray(committed_at), jnp.asarray(stops), jnp.arange(TOTAL), STEPS, TOTAL, "unended")
  assert np.asarray(found)[0].tolist() == [True, True, True, True, False, False, False, False]
  later = recorded(jnp.asarray(committed_at), jnp.asarray(stops), jnp.arange(TOTAL), STEPS, 3 * STEPS, "unended")
  assert np.asarray(later)[0].tolist() == [True, True, True, True, False, False, False, False]
  none = recorded(jnp.asarray(committed_at), jnp.zeros((1, H), bool), jnp.arange(TOTAL), STEPS, 3 * STEPS, "unended")
  assert np.asarray(none)[0].all()
  assert np.asarray(
    recorded(jnp.asarray(committed_at), jnp.asarray(stops), jnp.arange(TOTAL), STEPS, TOTAL, "all")
  ).all()


def test_a_canvas_that_its_step_leaves_as_it_is_is_not_recorded():
  """Steps 0, 2 and 4 of a schedule without blocks commit nothing; the answer is whole from step 4 on."""
  committed_at, stops = np.array([[1, 1, 3, 5]]), np.array([[False, False, True, False]])
  arguments = jnp.asarray(committed_at), jnp.asarray(stops), jnp.arange(6), 0, 6
  assert np.asarray(recorded(*arguments, "all"))[0].tolist() == [False, True, False, True, False, True]
  assert np.asarray(recorded(*arguments, "unended"))[0].tolist() == [False, True, False, True, False, False]

"""The bench of rows of unequal length: what is simulated, counted by hand, and that all variants make the same."""

import numpy as np
import pytest

from opd_jax import bench
from opd_jax.benchmarks import lengths

ROWS, FIXED, CACHE = lengths.StepCost(), lengths.StepCost(fixed=1), lengths.StepCost(cache=2.0)


def test_a_batch_shrinks_at_segment_ends():
  """Four rows of 1, 2, 5 and 8 tokens, segments of 4: four steps of four rows, then two rows up to the eighth."""
  batch = np.array([1, 2, 5, 8])
  assert lengths.shrunk(batch, 4, 8, (), ROWS) == 8 * 4
  assert lengths.shrunk(batch, 4, 8, (2,), ROWS) == 4 * 4 + 4 * 2
  assert lengths.shrunk(batch, 4, 8, (2, 4), FIXED) == 4 * 5 + 4 * 3, "and a step's own cost at every step"
  assert lengths.shrunk(batch, 4, 8, (), CACHE) == 4 * 4 * 2 + 4 * 4 * 3, "caches of four slots, then of eight"


def test_waiting_rows_take_the_places_of_those_that_have_ended():
  """Two at a time: 1 and 8 begin, 5 takes the place of 1 at step 4, and both end within five steps more."""
  rows = np.array([1, 8, 5])
  assert lengths.replaced(rows, 2, 4, (), ROWS) == 4 * 2 + 4 * 2 + 1 * 2
  assert lengths.replaced(rows, 2, 4, (2,), ROWS) == 4 * 2 + 4 * 2 + 1 * 1
  assert lengths.replaced(rows, 2, 4, (), CACHE) == 3 * lengths.replaced(rows, 2, 4, (), ROWS), "full caches at once"


def test_rows_of_all_batches_are_put_together():
  """Of six rows two live after four tokens: three batches of two, then one."""
  rows = np.array([1, 2, 5, 8, 3, 4])
  assert lengths.compacted(rows, 2, 4, 8, ROWS) == 4 * 6 + 4 * 2


@pytest.mark.long
def test_all_variants_draw_the_same_tokens_and_are_timed(capsys):
  """The command raises where one does not."""
  sizes = ["--batch=4", "--n=2", "--prompt=8", "--horizon=40", "--repeat=1"]
  assert bench.main(["lengths", "--student=builtin:student", *sizes]) == 0
  out = capsys.readouterr().out
  for name in (*lengths.ROLLOUTS, *lengths.updates(8)):
    assert name in out


def test_the_simulation_is_a_command(capsys):
  assert bench.main(["lengths", "--simulate"]) == 0
  assert "replacement, then shrink 2, 4" in capsys.readouterr().out

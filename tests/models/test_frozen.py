"""Which teacher each prompt listens to."""

import jax
import numpy as np
import pytest

from opd_jax.errors import InputError
from opd_jax.models import frozen

THREE = ("builtin:teacher", "/models/math", "code/")


def requested(directories, mixture, chosen, prompts):
  """`teacher.weights` of prompts that stand on lines 1, 2, ..."""
  lines = [(name, f"train.jsonl:{i + 1}") for i, name in enumerate(chosen)]
  return frozen.teacher_weights(directories, mixture, lines, prompts)


def shares(*args) -> np.ndarray:
  """Of more than one teacher."""
  found = requested(*args)
  assert found is not None
  return found


def test_one_teacher_needs_no_shares():
  assert requested(["a"], (), (), 5) is None
  assert requested(["a"], (2.0,), (), 5) is None
  assert requested(["a"], (), ("a", "0"), 2) is None
  with pytest.raises(InputError, match="the teacher 'nobody'"):
    requested(["a"], (), ("nobody",), 1)


def test_a_mixture_is_equal_or_weighted_and_sums_to_one():
  equal = shares(THREE, (), (), 4)
  np.testing.assert_allclose(equal, np.full((4, 3), 1 / 3), rtol=1e-6)
  weighted = shares(THREE, (1, 3, 0), (), 2)
  np.testing.assert_allclose(weighted, [[0.25, 0.75, 0]] * 2)
  assert weighted.dtype == np.float32


def test_a_chosen_teacher_is_heard_alone():
  """By the last name of its directory or by its index, and not by weights."""
  chosen = ("math", "0", "teacher", "code", "2")
  want = np.eye(3)[[1, 0, 0, 2, 2]]
  np.testing.assert_array_equal(shares(THREE, (), chosen, 5), want)
  np.testing.assert_array_equal(shares(THREE, (1, 3, 0), chosen, 5), want)


def test_directories_of_one_name_are_told_apart_by_index():
  same = ("a/model", "b/model", "c/other")
  np.testing.assert_array_equal(shares(same, (), ("1", "other", "0"), 3), np.eye(3)[[1, 2, 0]])
  with pytest.raises(InputError, match=r"train.jsonl:2 asks for the teacher 'model'.*only one has"):
    requested(same, (), ("1", "model"), 2)


@pytest.mark.parametrize("name", ["history", "3", "-1", "", "Math", "1.0"])
def test_a_teacher_that_is_none_of_them_is_refused(name):
  with pytest.raises(InputError) as refusal:
    requested(THREE, (), ("math", "1", name), 3)
  for piece in (
    f"train.jsonl:3 asks for the teacher {name!r}",
    "config.data.teacher_field",
    "0 (teacher), 1 (math), 2 (code)",
  ):
    assert piece in str(refusal.value)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0, 1.0), (1.0, -0.5, 1.0), (0, 0, 0), (float("nan"), 1, 1)])
def test_weights_that_do_not_fit_are_refused(weights):
  for chosen in ((), ("math",)):
    with pytest.raises(InputError, match=r"config\.teacher_weights is .* each of the 3 teacher"):
      requested(THREE, weights, chosen, 1)


def test_weights_of_one_teacher_are_looked_at_too():
  for weights in ((1.0, 1.0), (0.0,), (-1.0,)):
    with pytest.raises(InputError, match=r"config\.teacher_weights"):
      requested(["a"], weights, (), 1)


def test_a_precision_that_does_not_exist_is_no_other_one():
  with pytest.raises(ValueError, match="'int4' is neither compute nor int8"):
    frozen.in_precision("int4", {}, jax.make_mesh((1,), ("data",)), "teacher:fsdp")

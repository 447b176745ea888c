"""Advantages: rewards of whole responses, relative to the others of their prompt."""

import numpy as np
import pytest

from opd_jax.objectives import advantage


def test_against_the_mean_of_the_prompts_own_rollouts():
  got = advantage.group_relative(np.array([1, 0, 0, 1, 1, 0, 0, 0]), 4)
  np.testing.assert_allclose(got, [0.5, -0.5, -0.5, 0.5, 0.75, -0.25, -0.25, -0.25])
  got = advantage.group_relative(np.array([1, 0, 0, 1, 1, 0, 0, 0]), 2)
  np.testing.assert_allclose(got, [0.5, -0.5, -0.5, 0.5, 0.5, -0.5, 0, 0])
  assert got.dtype == np.float32


def test_divided_by_the_standard_deviation():
  """Every mixed group then has length one: sqrt(3) and -1/sqrt(3) for one in four."""
  got = advantage.group_relative(np.array([1, 0, 0, 1, 1, 0, 0, 0]), 4, std=True)
  np.testing.assert_allclose(got, [1, -1, -1, 1, *(np.array([3, -1, -1, -1]) / np.sqrt(3))], rtol=1e-5)


@pytest.mark.parametrize("std", [False, True])
@pytest.mark.parametrize("reward", [0.0, 1.0, -0.5, 0.1, 0.3, 5.3])
def test_equal_rewards_have_no_advantage(reward, std):
  np.testing.assert_array_equal(advantage.group_relative(np.full(6, reward), 3, std=std), np.zeros(6))
  np.testing.assert_array_equal(advantage.group_relative(np.full(7, reward), 7, std=std), np.zeros(7))
  np.testing.assert_array_equal(advantage.group_relative(np.full(3, reward), 1, std=std), np.zeros(3))


@pytest.mark.parametrize("std", [False, True])
def test_advantages_of_a_prompt_sum_to_zero_whatever_is_added_to_its_rewards(std):
  reward = np.random.default_rng(0).normal(size=(5, 4))
  got = advantage.group_relative(reward.reshape(-1), 4, std=std)
  np.testing.assert_allclose(got.reshape(5, 4).sum(axis=1), 0, atol=1e-5)
  shifted = reward + np.arange(5)[:, None]
  np.testing.assert_allclose(advantage.group_relative(shifted.reshape(-1), 4, std=std), got, rtol=1e-4, atol=1e-5)
  assert np.all(np.sign(got.reshape(5, 4)) == np.sign(reward - reward.mean(axis=1, keepdims=True)))


def test_the_rewards_stay_as_they_were():
  reward = np.array([1, 0], np.float32)
  advantage.group_relative(reward, 2, std=True)
  np.testing.assert_array_equal(reward, [1, 0])


def test_a_batch_that_is_no_whole_number_of_prompts_is_refused():
  with pytest.raises(ValueError, match="reshape"):
    advantage.group_relative(np.zeros(5), 2)


GROUPS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0])


@pytest.mark.parametrize(
  ("kind", "of_mixed"),
  [
    ("group", [0.75, -0.25, -0.25, -0.25]),
    ("group_std", [3**0.5, *[-(3**-0.5)] * 3]),
    ("leave_one_out", [1, *[-1 / 3] * 3]),
    ("reinforce_pp", [3, -1, -1, -1]),
    ("reinforce_pp_nontrivial", [3**0.5, *[-(3**-0.5)] * 3]),
  ],
)
def test_of_a_solved_an_unsolved_and_a_mixed_group_only_the_last_has_advantages(kind, of_mixed):
  got = advantage.of_rewards(kind, GROUPS, 4)
  np.testing.assert_array_equal(got[:8], 0)
  np.testing.assert_allclose(got[8:], of_mixed, rtol=1e-4)


def test_groups_that_teach_nothing_inflate_the_others_by_the_root_of_their_share():
  both = [advantage.of_rewards(k, GROUPS, 4)[8:] for k in ("reinforce_pp", "reinforce_pp_nontrivial")]
  np.testing.assert_allclose(both[0] / both[1], 3**0.5, rtol=1e-4)


@pytest.mark.parametrize("kind", advantage.KINDS)
def test_a_process_with_part_of_the_batch_computes_what_one_with_all_of_it_does(kind):
  reward = np.random.default_rng(0).normal(size=12)
  parts = [advantage.of_rewards(kind, part, 4, batch=reward) for part in (reward[:4], reward[4:])]
  np.testing.assert_array_equal(np.concatenate(parts), advantage.of_rewards(kind, reward, 4))


@pytest.mark.parametrize("kind", advantage.KINDS)
def test_a_batch_that_teaches_nothing_has_advantages_of_exactly_0(kind):
  np.testing.assert_array_equal(advantage.of_rewards(kind, np.full(8, 0.3), 4), 0)


def test_the_only_rollout_of_a_prompt_has_no_others():
  with pytest.raises(ValueError, match="two rollouts"):
    advantage.of_rewards("leave_one_out", np.ones(3), 1)


def test_which_groups_teach():
  np.testing.assert_array_equal(advantage.teaches(GROUPS, 4), [False, False, True])

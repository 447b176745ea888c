"""What is said of a run's updates at its end, and what a checkpoint keeps of it."""

import dataclasses

import pytest

from opd_jax.runtime.outcome import Outcome


def after(*records) -> Outcome:
  outcome = Outcome()
  for record in records:
    outcome.count({"updated": 1, "skipped": 0, "empty": 0, "response_length": 9.0} | record)
  return outcome


def test_nothing_is_said_of_a_run_in_which_all_went_well():
  assert list(after({}, {"reward": 0.5}).lines()) == []
  assert not after({}).learned_nothing


def test_a_run_of_skipped_updates_has_learned_nothing():
  outcome = after(*({"updated": 0, "skipped": i} for i in (1, 2, 3)))
  assert outcome.learned_nothing
  (line,) = outcome.lines()
  assert line.startswith("nothing was learned: in 3 steps every update was skipped, because of a NaN or Inf")


def test_a_run_of_zero_gradients_has_learned_nothing():
  outcome = after({"updated": 0, "empty": 1}, {"updated": 0, "empty": 2})
  assert outcome.learned_nothing
  (line,) = outcome.lines()
  assert line.startswith("nothing was learned: in 2 steps every update was left out")


def test_single_updates_that_were_not_made_are_counted():
  outcome = after({}, {"updated": 0, "skipped": 1}, {"updated": 0, "empty": 1}, {"empty": 1})
  assert not outcome.learned_nothing
  assert list(outcome.lines()) == [
    "1 of 4 steps skipped an update, because of a NaN or Inf",
    "1 updates were left out, because the gradient was exactly zero",
  ]


def test_rollouts_and_rewards_that_teach_nothing_are_told():
  short, same = after({"response_length": 1.0, "reward": 0.0}, {"reward": 0.0}).lines()
  assert short.startswith("in 1 of 2 steps every rollout ended with its first token")
  assert same.startswith("all rollouts of every step had the same reward")


def test_a_reward_that_never_tells_rollouts_apart_is_told_once_with_the_mend():
  step = {"reward": 0.0, "teaching_groups": 0.0, "groups_by_solve_rate": [8, 0, 0, 0, 0]}
  (line,) = after(step, step).lines()
  assert line.startswith("no group ever taught: in 2 steps all rollouts of each prompt earned the same; take prompts")
  assert list(after(step, step | {"teaching_groups": 0.125}).lines()) == []
  mixed = {"reward": 0.5, "teaching_groups": 0.0}  # half of the prompts always solved, half never
  assert len(list(after(mixed).lines())) == 1


@pytest.mark.parametrize(("timeouts", "errors", "told"), [(64, 0, False), (65, 0, True), (40, 25, True)])
def test_verifications_of_which_most_fail_are_told(timeouts, errors, told):
  good = {"reward": 0.5, "verified": 32, "teaching_groups": 0.6}
  bad = good | {"verified": 64, "verifier_timeouts": timeouts, "verifier_errors": errors}
  outcome = after(good, bad, good)
  assert outcome.verified == 32 + 64 + 32
  lines = list(outcome.lines())
  assert [line.split(" and count")[0] for line in lines] == (
    ["65 of 128 verifications timed out or raised,"] if told else []
  )


def test_a_method_without_counts_of_its_own_is_judged_by_what_it_skips():
  outcome = Outcome()
  outcome.count({"loss": 1.0, "step_tokens": 3})
  assert not outcome.learned_nothing


def test_counts_are_kept_and_former_checkpoints_have_none():
  outcome = after({}, {"updated": 0, "skipped": 1})
  assert Outcome.of_checkpoint({"step": 2, "outcome": dataclasses.asdict(outcome)}) == outcome
  assert not Outcome.of_checkpoint({"step": 2}).learned_nothing
  assert list(Outcome.of_checkpoint({"step": 2}).lines()) == []

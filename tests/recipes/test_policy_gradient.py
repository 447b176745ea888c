"""Policy gradients from end to end: groups that teach, mini-batches, a run that was killed, models without a teacher."""

import jax
import numpy as np
import pytest

from opd_jax import config as configs
from opd_jax import tasks
from opd_jax.errors import InputError
from opd_jax.recipes.policy_gradient import replacements
from opd_jax.trainer import open_run, train, train_run
from tests.helpers.runs import read, without_time

CHANGES = {
  "recipe": "policy_gradient",
  "teacher": "",
  "mixture.divergence": 0.0,
  "mixture.reward": 1.0,
  "eval.every": 0,
  "rollouts_per_prompt": 4,
  "mini_batches": 2,
  "surrogate.kind": "drpo",
  "checkpoint.every": 2,
}


def even(response: str, answer: str = "", **_) -> bool:
  """Random weights never answer right, so here a response whose characters add up to an even number is right."""
  return sum(map(ord, response)) % 2 == 0


def even_for_some(response: str, answer: str, **_) -> bool:
  """The others' prompts are never solved, and teach nothing."""
  return even(response) and answer[0] in "01234"


@pytest.fixture(autouse=True)
def even_is_right(monkeypatch):
  monkeypatch.setitem(tasks.VERIFIERS, "chain", even)


@pytest.fixture
def config(tiny):
  """A small config of the recipe: config(steps=4, **{"groups.equal": "drop"})."""

  def make(**changes):
    c = configs.default("policy_gradient")
    sizes = {"batch": 4, "horizon.max": 12, "student": tiny["student"], "optimizer.lr": 1e-3, "log.tensorboard": False}
    return configs.override(c, sizes | {"steps": 2} | {k: v for k, v in CHANGES.items() if k != "recipe"} | changes)

  return make


def test_every_step_makes_an_update_of_each_mini_batch(config, tmp_path):
  run = train(config(updates_per_rollout=2), tmp_path / "w")
  assert int(run.state.step) == 2 * 2 * 2
  for record in read(tmp_path / "w", "train"):
    assert sum(record["groups_by_solve_rate"]) == 4
    assert len(record["groups_by_solve_rate"]) == 5
    assert record["gradient_weight_min"] <= record["gradient_weight"] <= record["gradient_weight_max"]
    assert record["logprob_gap"] < 1e-4 < record["moved"]
    assert "kl" not in record
    assert len(record["moved_by_mu"]) == 10
    assert record["step_tokens"] == sum(record["by_position"]["count"])


@pytest.mark.long
def test_killed_between_two_mini_batches_and_resumed_it_is_the_run_that_never_stopped(config, tmp_path, monkeypatch):
  whole = train(config(steps=4), tmp_path / "whole")
  run = open_run(config(steps=4), tmp_path / "parts")
  recipe, updates = run.recipe, []
  update = recipe._update

  def die(*args):
    if len(updates) == 5:  # in the third step, behind its first mini-batch
      raise KeyboardInterrupt
    updates.append(args[-1])
    return update(*args)

  monkeypatch.setattr(recipe, "_update", die)
  with pytest.raises(KeyboardInterrupt):
    train_run(run)
  assert updates == [0, 1, 0, 1, 0]
  again = open_run(config(steps=4), tmp_path / "parts")
  assert again.resumed_from == 2
  train_run(again)
  jax.tree.map(np.testing.assert_array_equal, again.state.params, whole.state.params)
  records = [[without_time(r) for r in read(tmp_path / w, "train")] for w in ("whole", "parts")]
  assert records[0] == records[1]


@pytest.mark.long
@pytest.mark.parametrize(
  "normaliser", ["token", *(pytest.param(n, marks=pytest.mark.long) for n in ("sequence", "constant"))]
)
def test_equal_groups_are_dropped_from_the_mean(normaliser, config, tmp_path, monkeypatch):
  """Only the first prompt's rollouts differ in what they earn; kept, the others make its update smaller."""
  monkeypatch.setitem(tasks.VERIFIERS, "chain", even_for_some)
  norms = {}
  for equal in ("keep", "drop"):
    changes = {"groups.equal": equal, "objective.normaliser": normaliser}
    run = train(config(steps=1, mini_batches=1, **changes), tmp_path / equal)
    (record,) = read(tmp_path / equal, "train")
    norms[equal] = record["grad_norm"], record["teaching_groups"]
    assert (record["trained"] < record["step_tokens"]) == (equal == "drop")
  (kept, share), (dropped, same) = norms["keep"], norms["drop"]
  assert share == same
  assert 0 < share < 1
  assert dropped > kept
  assert run.state is not None


@pytest.mark.long
def test_resampled_groups_teach_and_their_discarded_tokens_count(config, tmp_path, monkeypatch):
  monkeypatch.setitem(tasks.VERIFIERS, "chain", even_for_some)
  changes = {"groups.equal": "resample", "groups.rounds": 5}
  train(config(steps=2, **changes), tmp_path / "w")
  for record in read(tmp_path / "w", "train"):
    assert record["teaching_groups"] == 1
    assert record["resampled"] > 0
    assert record["discarded_tokens"] > 0
    groups, of_all = record["groups_by_solve_rate"], record["groups_by_solve_rate_sampled"]
    assert groups[0] == groups[-1] == 0 < of_all[0] + of_all[-1]
    assert sum(of_all) == sum(groups) + record["resampled"]
    assert record["reward_sampled"] == pytest.approx(np.dot(of_all, np.arange(5)) / (4 * sum(of_all)))
    assert record["step_tokens"] == sum(record["by_position"]["count"]) + record["discarded_tokens"]
  again = train(config(steps=4, **changes), tmp_path / "w")
  whole = train(config(steps=4, **changes), tmp_path / "whole")
  jax.tree.map(np.testing.assert_array_equal, again.state.params, whole.state.params)


@pytest.mark.long
def test_resampling_ends_where_no_group_ever_teaches(config, tmp_path, monkeypatch):
  monkeypatch.setitem(tasks.VERIFIERS, "chain", lambda response, answer, **_: False)
  run = train(config(steps=1, **{"groups.equal": "resample", "groups.rounds": 3}), tmp_path / "w")
  (record,) = read(tmp_path / "w", "train")
  assert (record["resampled"], record["teaching_groups"]) == (2 * 4, 0)
  assert int(run.state.empty) == 2


@pytest.mark.long
def test_failures_of_discarded_rollouts_are_counted(config, tmp_path, monkeypatch):
  def fails(response: str, answer: str, **_) -> bool:
    raise RuntimeError("always")

  monkeypatch.setitem(tasks.VERIFIERS, "chain", fails)
  run = train(config(steps=1, **{"groups.equal": "resample", "groups.rounds": 3}), tmp_path / "w")
  assert (run.outcome.verified, run.outcome.not_verified) == (3 * 16, 3 * 16)
  assert any("48 of 48 verifications timed out or raised" in line for line in run.outcome.lines())


@pytest.mark.long
def test_a_mini_batch_without_numbers_is_told_and_left_out_of_the_means(config, tmp_path, monkeypatch):
  run = open_run(config(steps=1), tmp_path / "w")
  update, stats = run.recipe._update, []

  def broken_first(run, experience, credit, part):
    if part == 0:
      nan = jax.tree.map(lambda a: a * np.nan, run.state.params)
      whole, run.state = run.state, run.state.replace(params=nan)
      stats.append(update(run, experience, credit, part))
      run.state = run.state.replace(params=whole.params)
      return stats[-1]
    return update(run, experience, credit, part)

  monkeypatch.setattr(run.recipe, "_update", broken_first)
  train_run(run)
  (record,) = read(tmp_path / "w", "train")
  assert np.isnan(float(stats[0]["loss"]))
  assert record["skipped"] == 1
  assert np.isfinite(record["loss"])
  assert run.outcome.skipped == 1


def test_a_place_is_taken_by_a_group_of_the_same_device():
  teaches = np.array([True, False, False, False, True, True, False, True])
  others = np.array([True, True, False, True, False, False, True, True])
  np.testing.assert_array_equal(replacements(teaches, others, 4), [-1, 0, 1, 3, -1, -1, 2, -1])
  np.testing.assert_array_equal(replacements(teaches, others, 2), [-1, 0, 1, -1, -1, -1, 0, -1])
  np.testing.assert_array_equal(replacements(~teaches, np.zeros(8, bool), 4), [-1] * 8)


@pytest.mark.long
def test_topk_distances_come_with_what_the_sampler_recorded(config, tmp_path):
  dppo = {"surrogate.kind": "dppo", "surrogate.divergence": "topk_tv", "surrogate.k": 3, "surrogate.threshold": 1e-4}
  train(config(updates_per_rollout=3, **dppo), tmp_path / "w")
  records = read(tmp_path / "w", "train")
  assert all(r["topk_distance"] > 0 and r["beyond"] > 0 for r in records)
  assert all(r["gradient_weight_min"] == 0 for r in records)


@pytest.mark.long
def test_a_teacher_beside_the_reward(config, tiny, tmp_path):
  both = {"teacher": tiny["teacher"], "mixture.divergence": 1.0, "horizon.kind": "truncated", "horizon.ratio": 0.5}
  train(config(**both), tmp_path / "w")
  records = read(tmp_path / "w", "train")
  assert all(r["kl"] > 0 and r["importance"] > 0 and r["reward"] >= 0 for r in records)


@pytest.mark.long
def test_rewards_of_the_teacher_go_through_the_surrogate_too(config, tiny, tmp_path):
  """TOP-D: the log-ratio to a proximal teacher as the advantage of PPO's clip."""
  topd = {
    "teacher": tiny["teacher"],
    "mixture.divergence": 1.0,
    "objective.support": "sampled",
    "objective.kind": "proximal",
    "objective.beta": 0.1,
    "objective.future": "mean",
    "objective.standardise": True,
    "surrogate.kind": "ppo_clip",
  }
  train(config(**topd), tmp_path / "w")
  records = read(tmp_path / "w", "train")
  assert all(0 < r["ratio"] < 2 and 0 < r["moved"] < 1 for r in records)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mixture.reward": 0.0, "surrogate.kind": "importance"}, r"config\.mixture"),
    ({"mini_batches": 3}, r"config\.mini_batches is 3; it has to divide the 4 prompts"),
    ({"groups.equal": "resample", "rollout.ahead": True}, r"config\.rollout\.ahead=False"),
    ({"mixture.divergence": 1.0}, r"config\.teacher is '', and config\.mixture\.divergence is 1\.0"),
    ({"weights.kind": "gap"}, r"config\.weights\.kind is 'gap', which weighs the tokens of the divergence"),
    ({"surrogate.kind": "truncated"}, r"config\.surrogate\.cap is 0"),
    ({"advantage.kind": "group", "mixture.reward_std": True}, r"config\.mixture\.reward_std is True"),
    (
      {"horizon.kind": "drift", "horizon.start": 4, "horizon.measure": "gap", "horizon.threshold": 0.1, "log.bins": 3},
      r"config\.teacher is '', and config\.horizon\.kind is 'drift'",
    ),
  ],
)
def test_what_does_not_go_together_is_refused(config, changes, message, tmp_path):
  with pytest.raises(InputError, match=message):
    open_run(config(**changes), tmp_path / "w")
  assert not (tmp_path / "w").exists()

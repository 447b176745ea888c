"""Rewards: verdicts and weights, and responses that the limit cuts."""

import numpy as np
import pytest

from opd_jax import checks, config
from opd_jax.errors import InputError
from opd_jax.rewards.pool import VerifierPool
from opd_jax.rewards.reward import Rewards, soft_overlong
from opd_jax.rewards.verdicts import batched
from opd_jax.tasks import gsm8k
from opd_jax.tasks.problem import Response
from tests.helpers import own_verifiers

TEXTS = ("#### 18", "It is 17", "#### 18, in more words than the others", "#### 1")
ENDED = (True, True, True, False)
LENGTHS = np.array([4, 8, 9, 10])
MODULE = """
def brief(response, answer):
  if response == "It is 17":
    raise ValueError("seventeen")
  return 1.0 - len(response.split()) / 10
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
  return own_verifiers.write(tmp_path, monkeypatch, "own_reward", MODULE)


def rewards(names=("gsm8k",), workers=0, **changes) -> Rewards:
  c = config.override(config.default(), {f"reward.{key}": value for key, value in changes.items()})
  return Rewards.from_config(c, names, VerifierPool(workers))


def record(made: Rewards, limit=10, answer="18"):
  responses = [Response(text, ended) for text, ended in zip(TEXTS, ENDED, strict=True)]
  return made.submit(responses, [answer] * len(TEXTS), LENGTHS, limit).result()


def test_one_verifier_alone_is_its_verdict():
  found = record(rewards())
  np.testing.assert_array_equal(found.reward, np.array([1, 0, 1, 0], np.float32))
  assert found.reward.dtype == np.float32
  np.testing.assert_array_equal(found.solved, [True, False, True, False])
  assert not found.masked.any()
  same = {"reward": 0.5, "same_reward": False, "verifier_timeouts": 0, "verifier_errors": 0, "verified": 4}
  assert found.metrics() == same


def test_several_verifiers_are_weighed_and_the_first_says_what_is_solved(module, capsys):
  brief = f"{module}:brief"
  found = record(rewards(("gsm8k", brief), weights=(2.0, -0.5)))
  verdicts = np.array([0.8, 0.0, 0.2, 0.8])
  np.testing.assert_array_equal(found.verdicts[brief], verdicts.astype(np.float32))
  np.testing.assert_allclose(found.reward, 2 * np.array([1, 0, 1, 0]) - 0.5 * verdicts, rtol=1e-6)
  np.testing.assert_array_equal(found.solved, [True, False, True, False])
  assert found.errors.tolist() == [0, 1, 0, 0]
  metrics = found.metrics(np.concatenate([found.columns(), found.columns()]))
  assert (metrics["verifier_errors"], metrics["verifier_timeouts"]) == (2, 0)
  assert (metrics["reward/gsm8k"], metrics[f"reward/{brief}"]) == (0.5, pytest.approx(0.45))
  assert metrics["reward"] == pytest.approx(0.775)
  assert record(rewards((brief, "gsm8k"))).solved.tolist() == [True, False, False, True]
  assert "(ValueError: seventeen)" in capsys.readouterr().err


def test_a_failure_is_told_once(module, capsys):
  made = rewards((f"{module}:brief",))
  record(made)
  record(made)
  assert capsys.readouterr().err.count("failed on a response, which counts as wrong") == 1


def test_the_number_of_processes_changes_no_bit(module):
  names = (f"{module}:brief", "gsm8k")
  first, *others = (record(rewards(names, workers, weights=(0.3, 0.7))) for workers in (0, 1, 2))
  for other in others:
    np.testing.assert_array_equal(other.columns(), first.columns())
    np.testing.assert_array_equal(other.solved, first.solved)


@pytest.mark.parametrize(("overlong", "reward"), [("judge", 1), ("wrong", 0)])
def test_a_cut_response_that_stated_its_answer_counts_by_key(overlong, reward):
  """The built-in verifier counts no answer that might go on, and one that was closed."""
  assert record(rewards(overlong=overlong), answer="1").reward.tolist() == [0, 0, 0, 0]
  cut = [Response("so it is \\boxed{1}, since", ended=False), Response("#### 1")]
  found = rewards(overlong=overlong).submit(cut, ["1", "1"], LENGTHS[:2], 10).result()
  assert found.reward.tolist() == [reward, 1]
  assert found.solved.tolist() == [bool(reward), True]
  assert not found.masked.any()


def test_the_rows_of_cut_responses_are_masked():
  found = record(rewards(overlong="mask"))
  assert found.reward.tolist() == [1, 0, 1, 0]
  assert found.masked.tolist() == [False, False, False, True]


def test_the_reward_falls_before_the_limit():
  """Limit 10, buffer 4: 6 tokens lose nothing, 8 a half, 9 three quarters, 10 all of the penalty."""
  found = record(rewards(overlong="soft", overlong_buffer=4, overlong_penalty=0.5))
  assert found.reward.tolist() == [1, -0.25, 1 - 0.375, -0.5]
  assert found.solved.tolist() == [True, False, True, False]
  assert record(rewards(overlong="soft", overlong_buffer=4), limit=20).reward.tolist() == [1, 0, 1, 0]


def test_the_soft_punishment_is_the_equation():
  """arXiv:2503.14476, equation 13, piece by piece, with its numbers."""
  longest, cache = 20480, 4096
  for length in (0, 16383, 16384, 16385, 18432, 20479, 20480):
    wanted = 0.0 if length <= longest - cache else ((longest - cache) - length) / cache
    assert soft_overlong(np.array([length]), longest, cache).tolist() == [wanted]


def test_a_plain_function_is_a_batch_verifier_too():
  assert [v.value for v in batched(gsm8k.verify).submit([Response("#### 2")] * 2, ["2", "3"]).result()] == [1, 0]


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"weights": (1.0, 2.0)}, "weights has 2 numbers for 1 verifier"),
    ({"verifiers": ("gsm8k", "chain"), "weights": (1.0,)}, "weights has 1 numbers for 2 verifier"),
    ({"verifiers": ("gsm8k", "gsm8k")}, "names one twice"),
    ({"overlong": "soft"}, "overlong_buffer=0; give it between 1 and the first horizon of 256 tokens"),
    ({"overlong": "soft", "overlong_buffer": 257}, "overlong_buffer=257; give it"),
    ({"workers": -2}, "reward.workers is -2"),
  ],
)
def test_rewards_that_cannot_be_meant(changes, says):
  c = config.override(config.default(), {f"reward.{key}": value for key, value in changes.items()})
  with pytest.raises(InputError, match=says):
    checks.check(c)

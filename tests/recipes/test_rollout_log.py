"""config.log.rollouts: training rollouts token by token, which change nothing of a run."""

import json

import numpy as np
import pytest

from opd_jax import config as configs
from opd_jax import trainer
from opd_jax.data import scored
from opd_jax.errors import StopRequested
from opd_jax.runtime import workdir
from tests.conftest import small_config
from tests.helpers.runs import leaves, read

pytestmark = [pytest.mark.usefixtures("shared_programs"), pytest.mark.long]


@pytest.fixture(scope="module")
def config(tiny):
  changes = {"steps": 4, "eval.every": 0, "rollouts_per_prompt": 2, "log.every": 2, "log.rollouts": 1000}
  return small_config(tiny, "popd", **changes)


@pytest.fixture(scope="module")
def logged(config, tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "logged"
  return path, trainer.train(config, path)


def test_the_weights_and_the_digest_are_those_of_a_run_that_writes_none(config, logged, tmp_path):
  _, run = logged
  silent = configs.override(config, {"log.rollouts": 0})
  other = trainer.train(silent, tmp_path / "silent")
  for a, b in zip(leaves(run.state), leaves(other.state), strict=True):
    np.testing.assert_array_equal(a, b)
  assert run.digest == other.digest
  assert not (tmp_path / "silent" / scored.ROLLOUTS).exists()
  assert workdir.check(run.workdir, silent) == [
    {"step": 4, "key": "log.rollouts", "from": 1000, "to": 0}
  ]  # and may go on


def test_every_token_of_a_logged_step_is_there_once(config, logged):
  path, _ = logged
  found = scored.read(path / scored.ROLLOUTS)
  records = {record["step"]: record for record in read(path, "train")}
  assert records.keys() == {2, 4}
  for step, record in records.items():
    responses = [response for response in found if response.step == step]
    assert len(responses) == config.batch * config.rollouts_per_prompt
    assert sum(len(response.tokens) for response in responses) == record["step_tokens"]
    for name, mean in (("divergence", "kl"), ("student_entropy", "student_entropy")):
      values = np.concatenate([np.array(getattr(response, name), float) for response in responses])
      np.testing.assert_allclose(values.mean(), record[mean], rtol=1e-4)
    ended = np.mean([response.ended for response in responses])
    assert ended == pytest.approx(record["ended"])
    assert [responses[i].prompt for i in range(0, 8, 2)] == [responses[i].prompt for i in range(1, 8, 2)]
    assert all(np.array(response.logprob, float).max() <= 0 for response in responses)


def test_as_many_rollouts_are_written_as_were_asked_for(config, tmp_path):
  trainer.train(configs.override(config, {"log.rollouts": 3, "steps": 2}), tmp_path / "three")
  assert [response.step for response in scored.read(tmp_path / "three" / scored.ROLLOUTS)] == [2, 2, 2]


def test_a_run_that_is_resumed_has_no_line_twice(config, logged, tmp_path):
  path = tmp_path / "stopped"

  def stop(run, experience, metrics):
    if run.step == 3:  # the rollouts of step 4 are written again, those of step 2 are before the checkpoint
      (path / scored.ROLLOUTS).open("a").write('{"of": "cut sho')
      raise StopRequested("here", 75)

  with pytest.raises(StopRequested):
    trainer.train(config, path, on_step=stop)
  trainer.train(config, path)
  assert (path / scored.ROLLOUTS).read_bytes() == (logged[0] / scored.ROLLOUTS).read_bytes()


def test_rollouts_that_were_written_stay_where_a_run_goes_on_without(config, tmp_path):
  path = tmp_path / "run"
  trainer.train(configs.override(config, {"steps": 2}), path)
  before = (path / scored.ROLLOUTS).read_bytes()
  trainer.train(configs.override(config, {"log.rollouts": 0}), path)
  assert (path / scored.ROLLOUTS).read_bytes() == before
  trainer.train(configs.override(config, {"steps": 6}), path)
  assert (path / scored.ROLLOUTS).read_bytes().startswith(before)
  assert [response.step for response in scored.read(path / scored.ROLLOUTS)] == [2] * 8 + [6] * 8


def test_a_reward_alone_has_no_divergence(tiny, tmp_path):
  changes = {"steps": 1, "eval.every": 0, "log.rollouts": 1, "horizon.max": 12, "teacher": "", "reward.workers": 0}
  trainer.train(small_config(tiny, "grpo", **changes), tmp_path / "grpo")
  (line,) = (tmp_path / "grpo" / scored.ROLLOUTS).read_text().splitlines()
  record = json.loads(line)
  assert (record["divergence"], record["teacher_logprob"], record["kind"]) == (None, None, "")
  assert len(record["logprob"]) == len(record["tokens"]) > 0
  assert scored.read(tmp_path / "grpo" / scored.ROLLOUTS)[0].divergence is None


def test_programs_are_listed_by_their_name(logged):
  info = json.loads((logged[0] / "run.json").read_text())
  assert "score" in {program["name"] for program in info["programs"]}

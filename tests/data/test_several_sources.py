"""Runs on several sources: what they read, what they say of it, and that they resume."""

import json
import re

import numpy as np
import pytest

from opd_jax import inputs
from opd_jax.data.problems import joined
from opd_jax.errors import InputError
from opd_jax.runtime.programs import ProgramCache
from opd_jax.trainer import open_run, train
from tests.helpers.runs import leaves, read, without_time


@pytest.fixture(scope="module")
def programs() -> ProgramCache:
  return {}


@pytest.fixture
def two(tmp_path):
  """Two files of one prompt width, of which the second has commas and a colon in its name, and GSM8K's fields."""
  a, b = tmp_path / "a.jsonl", tmp_path / "b, c:0.5.json"
  a.write_text("".join(json.dumps({"prompt": f"{i}3+", "answer": str(i)}) + "\n" for i in range(3)))
  b.write_text(json.dumps([{"question": f"{i}5-", "answer": f"#### {i}"} for i in range(10, 15)]))
  return str(a), str(b)


def of(paths, **more):
  return {"data.paths": paths, "data.chat_template": False, "eval.every": 0, "batch": 4} | more


def texts(found):
  return [found.tokenizer.decode(row) for row in found.train.ids]


def test_sources_are_joined_in_their_order(small, two):
  found = inputs.load(small("opd", **of(two, **{"data.weights": (0.75, 0.25)})))
  assert texts(found) == ["03+", "13+", "23+", *(f"{i}5-" for i in range(10, 15))]
  assert found.train.answers == ["0", "1", "2", *map(str, range(10, 15))]
  assert found.train.mixture == ((3, 0.75), (5, 0.25))
  told = f"prompts are drawn from 2 sources: 75.00% {two[0]} (3 prompts, weight 0.75), 25.00% {two[1]} (5 prompts, weight 0.25)"
  assert told in found.warnings
  assert any(w.startswith(f"{two[1]} has GSM8K-style records") for w in found.warnings)


def test_batches_have_the_proportions(small, two):
  found = inputs.load(small("opd", **of(two, **{"data.weights": (3, 1)})))
  stream = found.prompts(np.arange(4))
  for _ in range(10):
    next(stream)
    assert sorted(stream.index < 3) == [False, True, True, True]


def test_without_weights_all_prompts_are_one_source(small, two, tmp_path):
  found = inputs.load(small("opd", **of(two)))
  assert found.train.mixture == ()
  assert f"37.50% {two[0]} (3 prompts), 62.50%" in "".join(found.warnings)
  one = tmp_path / "one.jsonl"
  one.write_text("".join(json.dumps({"prompt": text, "answer": "1"}) + "\n" for text in texts(found)))
  alone = inputs.load(small("opd", **of((), **{"data.path": str(one)})))
  streams = [i.prompts(np.arange(4)) for i in (found, alone)]
  assert streams[0].fingerprint == streams[1].fingerprint
  for _ in range(5):
    joined_files, one_file = (next(stream).prompt for stream in streams)
    np.testing.assert_array_equal(joined_files, one_file)


def test_one_of_several_paths_alone_is_as_data_path(small, two):
  one = inputs.load(small("opd", **of(two[:1], **{"data.weights": (0.3,)})))
  same = inputs.load(small("opd", **of((), **{"data.path": two[0]})))
  assert one.train == same.train
  assert one.warnings == same.warnings


@pytest.mark.long
def test_a_run_that_was_killed_reads_on_where_it_stopped(small, two, tmp_path, programs):
  changes = of(two, **{"data.weights": (0.7, 0.3), "checkpoint.every": 2})
  straight = train(small("opd", steps=5, **changes), tmp_path / "straight", programs)
  train(small("opd", steps=2, **changes), tmp_path / "w", programs)
  run = train(small("opd", steps=5, **changes), tmp_path / "w", programs)
  assert run.resumed_from == 2
  for a, b in zip(leaves(run.state), leaves(straight.state), strict=True):
    np.testing.assert_array_equal(a, b)
  records = [[without_time(r) for r in read(tmp_path / name, "train")] for name in ("w", "straight")]
  assert records[0] == records[1]
  assert run.prompts.fingerprint["mixture"] == [[3, 7], [5, 3]]
  with pytest.raises(InputError, match=r"belongs to another config: data\.weights: \[0\.7, 0\.3\] -> \[0\.5, 0\.5\]"):
    open_run(small("opd", steps=6, **changes | {"data.weights": (0.5, 0.5)}), tmp_path / "w")
  other = open_run(
    small("opd", steps=6, **changes | {"data.weights": (0.5, 0.5)}), tmp_path / "w", allow_change=["data"]
  )
  assert other.prompts.fingerprint["mixture"] == [[3, 1], [5, 1]]


def test_skipped_lines_are_counted_by_source(small, two):
  with open(two[0], "a") as file:
    file.write("{\n")
  found = inputs.load(small("opd", **of(two, **{"data.on_bad_line": "skip"})))
  assert f"1 unusable line(s) of {two[0]} were left out" in found.warnings
  assert found.train.skipped == 1


def test_rewards_need_one_verifier_for_all(small, two):
  paths = ("task:chain", two[0])
  rewarded = {"mixture.reward": 1.0, "rollouts_per_prompt": 2, "data.weights": (1, 1)}
  with pytest.raises(InputError, match=r"verified by 'chain' and 'gsm8k', .*name it in config\.data\.verifier"):
    inputs.load(small("opd", **of(paths, **rewarded)))
  assert inputs.load(small("opd", **of(paths, **rewarded, **{"data.verifier": "gsm8k"}))).rewards
  assert inputs.load(small("opd", **of(paths))).train.sources, "without a reward nothing is verified"


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"data.weights": (1, 2)}, "data.weights has 2 numbers for 0 of config.data.paths"),
    ({"data.paths": ("a", "b"), "data.weights": (1,)}, "data.weights has 1 numbers for 2"),
    ({"data.paths": ("a", "b"), "data.weights": (1, 0)}, "data.weights holds 0"),
    ({"data.paths": ("a", "b", "a")}, "data.paths names 'a' twice"),
    ({"data.paths": ("task:chain", "task:phase"), "eval.every": 1}, "eval.path is empty"),
    ({"data.paths": ("task:chain", "missing.jsonl")}, "no file missing.jsonl"),
    ({"data.paths": ("a", "task:chain"), "data.teacher_field": "who"}, "task:chain is a built-in task"),
    ({"data.paths": ("a", "task:chain"), "rollout.by": "data"}, "config.data.solution_field"),
  ],
)
def test_what_does_not_go_together_is_refused(small, changes, says):
  with pytest.raises(InputError, match=re.escape(says)):
    inputs.load(small("opd", **{"eval.every": 0} | changes))


def test_joining_keeps_what_problems_have(small, two):
  found = [inputs.load(small("opd", **of((path,)))).train for path in two]
  together = joined(small("opd"), two, found)
  assert together.prompt_lens == found[0].prompt_lens
  assert set(together.origin) == set(found[0].origin)
  assert together.origin["data file"] not in (found[0].origin["data file"], found[1].origin["data file"])

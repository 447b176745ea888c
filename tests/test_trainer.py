"""The loop: stages, programs, resuming, and what a run leaves behind."""

import dataclasses
import importlib
import json
import pathlib
import shutil
import types
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from opd_jax import checks, config
from opd_jax.data import pipeline
from opd_jax.errors import NOTHING_LEARNED, InputError
from opd_jax.models import frozen, hf
from opd_jax.recipes.opd import OPD
from opd_jax.runtime import cli, workdir
from opd_jax.trainer import open_run, train, train_run
from opd_jax.training import checkpoint
from tests.conftest import small_config
from tests.helpers.damage import contents
from tests.helpers.runs import leaves, read, without_time

pytestmark = pytest.mark.usefixtures("shared_programs")
command, export = map(
  importlib.import_module, ("opd_jax.train", "opd_jax.export")
)  # the package has functions of these names


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny):
  """A POPD run over three widths, never interrupted: its directory and last state."""
  path = tmp_path_factory.mktemp("runs") / "whole"
  run = open_run(small_config(tiny), path)
  train_run(run)
  return path, run


def test_run_goes_through_its_stages(whole):
  path, _ = whole
  records = read(path, "train")
  assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
  assert [r["limit"] for r in records] == [4, 7, 10, 13, 16, 19]
  assert [r["width"] for r in records] == [8, 8, 16, 16, 16, 20]
  assert [r["step"] for r in read(path, "eval")] == [0, 3, 6]
  for r in records:
    assert r["response_length"] <= r["limit"]
    assert r["ended"] + r["cut"] == pytest.approx(1)
    assert sum(r["by_position"]["count"]) == r["step_tokens"]
    assert sum(r["by_position"]["count"][r["limit"] // 4 + 1 :]) == 0
  assert np.cumsum([r["step_tokens"] for r in records]).tolist() == [r["tokens"] for r in records]


def test_as_many_programs_as_stages(whole):
  path, _ = whole
  info = json.loads((path / "run.json").read_text())
  assert [s["width"] for s in info["stages"]] == [8, 16, 20]
  made = sorted((p["name"], p["width"]) for p in info["programs"])
  expected = [(name, width) for name in ("rollout", "update") for width in (8, 16, 20)]
  assert made == sorted([*expected, ("evaluate", 20)])


def test_training_moves_the_student_and_not_the_teacher(whole, tiny):
  _, run = whole
  start = hf.load(hf.resolve(tiny["student"]), run.inputs.student.cfg)
  assert any(
    (np.asarray(a) != np.asarray(b)).any()
    for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(run.state.params), strict=True)
  )
  teacher = hf.load(hf.resolve(tiny["teacher"]), run.inputs.teachers[0].cfg)
  jax.tree.map(np.testing.assert_array_equal, run.frozen.teachers, (teacher,))


@pytest.mark.parametrize(
  "stop",
  [pytest.param(2, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long), 5],
  ids=lambda s: f"after step {s}",
)
def test_killed_and_resumed_is_uninterrupted(stop, whole, small, tmp_path):
  """Bit for bit, across stage boundaries (steps 2 and 5), from the last checkpoint before the end."""
  path, run = whole

  def die(run, experience, metrics):
    if run.step == stop:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    train(small(), tmp_path / "w", on_step=die)
  again = open_run(small(), tmp_path / "w")
  assert again.resumed_from == stop // 2 * 2
  train_run(again)
  for mine, theirs in zip(leaves(again.state), leaves(run.state), strict=True):
    np.testing.assert_array_equal(mine, theirs)
  assert [without_time(r) for r in read(tmp_path / "w")] == [without_time(r) for r in read(path)]


def test_finished_run_is_left_as_it_is(whole, small, capsys):
  """It says that there is nothing to do, and what would make it go on, and not how little is left to compile."""
  path, _ = whole
  before = (path / "metrics.jsonl").read_bytes()
  again = open_run(small(), path)
  train_run(again)
  assert again.resumed_from == 6
  assert (path / "metrics.jsonl").read_bytes() == before
  said = capsys.readouterr().err
  assert f"{path} is complete: 6 of 6 steps; raise --config.steps above 6 to go on" in said
  assert "shape(s)" not in said
  assert "note:" not in said


def test_counts_of_updates_stay_with_the_run(whole):
  """In run.json for a report, and in the checkpoint for a run that goes on."""
  path, run = whole
  assert json.loads((path / "run.json").read_text())["outcome"] == dataclasses.asdict(run.outcome)
  assert (run.outcome.steps, run.outcome.updated, run.outcome.learned_nothing) == (6, 6, False)
  checkpoints = checkpoint.Checkpoints(path, 2)
  assert checkpoints.restore(run.recipe.abstract_state())[1]["outcome"] == dataclasses.asdict(run.outcome)
  checkpoints.close()


@pytest.mark.long
@pytest.mark.parametrize(
  ("changes", "why"),
  [
    ({"optimizer.lr": float("inf")}, "every update was skipped, because of a NaN or Inf"),
    (
      {"mixture.divergence": 0.0, "mixture.reward": 1.0, "rollouts_per_prompt": 2},
      "every update was left out, since the gradient was exactly zero",
    ),
  ],
)
def test_a_run_that_learned_nothing_says_so_and_has_a_status_of_its_own(
  changes, why, small, tmp_path, capsys, monkeypatch
):
  """Its student can be exported, unchanged, with the same words; and so again when it is started again."""
  monkeypatch.setattr(checks, "check", lambda config: None)  # which refuses a rate that is not finite
  path = tmp_path / "w"
  c = small("topd", steps=2, **{"horizon.ratio": 0.5, "eval.every": 0} | changes)
  for _ in range(2):
    assert (
      command.run(cli.parse(["train", f"--workdir={path}"], "", command.define, cli.of_method)[0], c) == NOTHING_LEARNED
    )
    assert f"nothing was learned: in 2 steps {why}" in capsys.readouterr().err
  values: Any = types.SimpleNamespace(
    workdir=str(path), out=str(tmp_path / "out"), step=None, merge=False, dtype="float32"
  )
  export.run(values, workdir.load_config(path))
  assert "nothing was learned in this run" in capsys.readouterr().out
  params = hf.load(tmp_path / "out")
  jax.tree.map(np.testing.assert_array_equal, params, hf.load(hf.resolve(c.student)))
  (path / "run.json").write_text("[]")
  values.out = str(tmp_path / "other")
  with pytest.raises(InputError, match=r"run\.json holds a list"):
    export.run(values, workdir.load_config(path))
  assert not (tmp_path / "other").exists(), "what cannot be read is read before anything is written"


def test_weights_that_are_not_finite_are_neither_saved_nor_resumed(whole, tmp_path, monkeypatch):
  _, run = whole
  good = jax.device_get(run.state)
  broken = dataclasses.replace(good, params=good.params | {"norm": good.params["norm"] * np.nan})
  checkpoints = checkpoint.Checkpoints(epath.Path(tmp_path), 2)
  with pytest.raises(InputError, match="weights 'params/norm' have a NaN or Inf after step 3, so they are not saved"):
    checkpoints.save(3, broken, {})
  with monkeypatch.context() as former:  # a version that did not look
    former.setattr(checkpoint, "first_broken_weights", lambda state: None)
    checkpoints.save(3, broken, {"step": 3})
    checkpoints.wait()
  with pytest.raises(InputError, match=r"checkpoint of step 3 .* has a NaN or Inf in the weights 'params/norm'"):
    checkpoints.restore(run.recipe.abstract_state())
  checkpoints.close()


@pytest.mark.long
def test_a_run_goes_on_with_another_rate_other_data_and_another_batch(small, tmp_path):
  """The optimiser's state stays, the prompts begin anew; killed before its next checkpoint, it does the same again."""
  path, seen = tmp_path / "w", []
  train(small("topd", steps=2, **{"optimizer.warmup": 0}), path)
  data = tmp_path / "other.jsonl"
  data.write_text("".join(f'{{"prompt": "{n}8+-++x3=", "answer": "1"}}\n' for n in range(1, 8)))
  other = small(
    "topd",
    **{
      "data.path": str(data),
      "batch": 2,
      "optimizer.lr": 0.5,
      "optimizer.warmup": 0,
      "eval.path": str(data),
      "eval.every": 0,
    },
  )
  with pytest.raises(
    InputError, match=r"belongs to another config: batch: 4 -> 2; data.path.*--allow-change=batch,data"
  ):
    train(other, path)

  def die(run, experience, metrics):
    seen.append((run.step, experience.index.tolist(), metrics["lr"]))
    if run.step == 3:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    train(other, path, on_step=die, allow_change=["batch", "data", "optimizer.lr"])
  run = train(other, path, on_step=lambda run, e, m: seen.append((run.step, e.index.tolist(), m["lr"])))
  order = pipeline.Prompts(run.inputs.train.ids, 2, run.inputs.prompt_widths, 0, other.seed)
  batches = [(next(order), order.index.tolist())[1] for _ in range(4)]
  assert seen[0] == seen[1], "the same command, now without --allow-change, repeats the step that was lost"
  assert [(step, index) for step, index, _ in seen[1:]] == list(zip(range(3, 7), batches, strict=True))
  assert {rate for _, _, rate in seen} == {0.5}
  assert int(run.state.step) == 6
  counts = [leaf for leaf in jax.tree.leaves(run.state.opt_state) if leaf.dtype == np.int32]
  assert all(int(count) == 6 for count in counts), "the optimiser went on"
  changes = json.loads((path / "run.json").read_text())["changes"]
  assert {c["key"]: c["step"] for c in changes} == dict.fromkeys(
    ("batch", "data.path", "eval.every", "eval.path", "optimizer.lr", "steps"), 2
  )
  again = open_run(other, path)
  assert again.resumed_from == 6
  assert again.prompts.state() == run.prompts.state()


def test_a_run_that_cannot_go_on_leaves_its_workdir_as_it_was(whole, small, tmp_path):
  path = pathlib.Path(shutil.copytree(whole[0], tmp_path / "w"))
  metadata = path / "checkpoints" / "6" / "position" / "metadata"
  position = json.loads(metadata.read_text())
  metadata.write_text(json.dumps(position | {"prompts": position["prompts"] | {"order": {"next_index": "six"}}}))
  before = contents(path)
  with pytest.raises(InputError, match=r"The checkpoint of step 6 .* is damaged"):
    open_run(small(steps=9), path)
  assert contents(path) == before


def test_a_run_goes_on_where_lines_of_its_metrics_are_lost(whole, small, tmp_path):
  """The file is not filled up to its former length."""
  path = pathlib.Path(shutil.copytree(whole[0], tmp_path / "w"))
  first = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0]
  (path / "metrics.jsonl").write_bytes(first)
  (path / "samples.jsonl").unlink()
  open_run(small(), path)
  assert ((path / "metrics.jsonl").read_bytes(), (path / "samples.jsonl").read_bytes()) == (first, b"")


@pytest.mark.long
def test_a_longer_run_goes_on(whole, small, tmp_path):
  """Raising `steps` on a finished run gives what the longer run would have been."""
  short = open_run(small(steps=4), tmp_path / "w")
  train_run(short)
  again = open_run(small(), tmp_path / "w")
  assert again.resumed_from == 4
  train_run(again)
  for mine, theirs in zip(leaves(again.state), leaves(whole[1].state), strict=True):
    np.testing.assert_array_equal(mine, theirs)


def test_seed_and_step_give_other_tokens(small, tmp_path):
  """Two seeds differ; two steps of one run differ although the prompts are the same."""
  responses = {}
  for seed in (0, 1):
    run = open_run(small(seed=seed, steps=2, **{"eval.every": 0}), tmp_path / str(seed))
    first = run.next_prompts(0)
    run.next_prompts = lambda step, first=first: first
    responses[seed] = [np.asarray(run.recipe.collect(run, step).rollout.response) for step in (0, 0, 1)]
    run.compiled.close()
  assert (responses[0][0] == responses[0][1]).all()
  assert (responses[0][0] != responses[0][2]).any()
  assert (responses[0][0] != responses[1][0]).any()


@pytest.mark.long
def test_second_step_traces_and_compiles_nothing(small, tmp_path):
  events = []
  jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: events.append(event))
  counts = []

  def count(run, experience, metrics):
    counts.append(sum("compile" in e or "trace" in e for e in events))

  train(small("opd", steps=4, **{"eval.every": 0, "optimizer.warmup": 2}), tmp_path / "w", {}, on_step=count)
  assert counts[0] > 0, "the listener hears nothing"
  assert counts == [counts[0]] * 4


AHEAD = {"rollout.ahead": True, "mixture.reward": 0.5, "rollouts_per_prompt": 2, "checkpoint.every": 3, "eval.every": 0}


@pytest.mark.long
def test_a_rollout_ahead_is_one_update_old_and_weighted_for_it(small, tmp_path, monkeypatch):
  """Step k + 1 is sampled before update k, but not across a checkpoint: there the student is heard as it is."""
  collected, collect = [], OPD.collect
  monkeypatch.setattr(
    OPD, "collect", lambda self, run, step: collected.append((step, run.step)) or collect(self, run, step)
  )
  train(small("topd", steps=6, **AHEAD | {"horizon.ratio": 0.5}), tmp_path / "w")
  assert collected == [(0, 0), (1, 0), (2, 1), (3, 3), (4, 3), (5, 4)]
  mean = [r["importance"] for r in read(tmp_path / "w", "train")]
  assert [abs(m - 1) > 1e-4 for m in mean] == [False, True, True, False, True, True]


@pytest.mark.long
def test_a_run_ahead_resumes_as_if_it_had_never_stopped(small, tmp_path):
  changes = AHEAD | {"horizon.ratio": 0.5}
  whole = open_run(small("topd", steps=6, **changes), tmp_path / "whole")
  train_run(whole)
  train(small("topd", steps=3, **changes), tmp_path / "w")
  again = open_run(small("topd", steps=6, **changes), tmp_path / "w")
  train_run(again)
  for mine, theirs in zip(leaves(again.state), leaves(whole.state), strict=True):
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.long
def test_prompts_of_different_length_have_programs_of_their_own(small, tmp_path):
  """Short batches are not padded to the longest prompt, and a shape is compiled once."""
  data = tmp_path / "data.jsonl"
  rows = [{"prompt": "1" * n, "answer": "1"} for n in (5, 5, 5, 60)]
  data.write_text("".join(json.dumps(r) + "\n" for r in rows))
  changes = {"data.path": str(data), "batch": 1, "eval.every": 0, "horizon.ratio": 0.5, "data.chat_template": False}
  run = open_run(small("topd", steps=8, **changes), tmp_path / "w")
  assert {run.prompts.prompt_len(k) for k in range(8)} == {16, 64}
  train_run(run)
  made = sorted((p["name"], p["prompt"]) for p in json.loads((tmp_path / "w" / "run.json").read_text())["programs"])
  assert made == [("rollout", 16), ("rollout", 64), ("update", 16), ("update", 64)]


@pytest.mark.long
def test_runs_share_programs_where_everything_static_is_the_same(small, tmp_path):
  kept = {}

  def compiled(name, **changes) -> dict[str, float]:
    c = small("topd", **{"steps": 1, "horizon.ratio": 0.5, "eval.every": 0} | changes)
    train(c, tmp_path / name, kept, compile_all=True)
    programs = json.loads((tmp_path / name / "run.json").read_text())["programs"]
    return {p["name"]: p["seconds"] for p in programs}

  assert min(compiled("first").values()) > 0
  assert set(compiled("other seed", seed=1, **{"data.max_prompt": 900}).values()) == {0}
  for name, changes in {
    "rate": {"optimizer.lr": 3e-3},
    "slices": {"micro_batch": 2},
    "width": {"horizon.ratio": 0.25},
    "loss": {"objective.kind": "jsd"},
  }.items():
    assert min(compiled(name, **changes).values()) > 0, name


@pytest.mark.long
def test_gradient_accumulation_gives_the_same_run(small, tmp_path):
  losses = {}
  for name, changes in {"whole": {}, "parts": {"micro_batch": 2}}.items():
    train(small("topd", steps=3, **{"horizon.ratio": 0.5, "eval.every": 0} | changes), tmp_path / name)
    losses[name] = [r["loss"] for r in read(tmp_path / name, "train")]
  np.testing.assert_allclose(losses["parts"], losses["whole"], rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("support", ["sampled", "student_topk"])
def test_the_papers_estimators_train(support, small, tmp_path):
  """The student comes nearer to the teacher on what it says itself, batch by batch noisy, over forty steps plain."""
  changes = {
    "steps": 40,
    "horizon.ratio": 0.5,
    "objective.support": support,
    "objective.k": 4,
    "optimizer.lr": 3e-2,
    "optimizer.warmup": 0,
    "eval.every": 0,
    "checkpoint.every": 0,
    "rollouts_per_prompt": 2,
    "updates_per_rollout": 2,
  }
  train(small("topd", **changes), tmp_path / "w")
  records = read(tmp_path / "w", "train")
  assert all(np.isfinite(r["loss"]) for r in records)
  kl = [r["kl"] for r in records]
  assert 0 < np.mean(kl[-5:]) < 0.85 * np.mean(kl[:5]), kl


def test_run_stops_after_too_many_broken_updates(small, tmp_path, monkeypatch):
  """A teacher that answers NaN: updates are skipped, counted, and at last the run stops with a sentence."""
  external = frozen.external
  monkeypatch.setattr(frozen, "external", lambda *a: jax.tree.map(lambda x: x * np.nan, external(*a)))
  run = open_run(small("opd", steps=9, **{"optimizer.max_skipped": 3, "eval.every": 0}), tmp_path / "w")
  start = [np.asarray(a) for a in jax.tree.leaves(run.state.params)]
  with pytest.raises(InputError, match=r"3 updates in a row .*\(step 2\)"):
    train_run(run)
  for mine, theirs in zip(jax.tree.leaves(run.state.params), start, strict=True):
    np.testing.assert_array_equal(mine, theirs)
  assert [r["skipped"] for r in read(tmp_path / "w", "train")] == [1, 2, 3]


def test_tensorboard_files_are_written(small, tmp_path):
  train(small("opd", steps=1, **{"log.tensorboard": True, "eval.every": 0}), tmp_path / "w")
  assert list((tmp_path / "w" / "tensorboard").glob("events*"))


def test_checkpoint_of_another_version_is_not_called_broken(whole):
  """Whoever reads it with other fields is told so, and not to delete it."""
  path, run = whole
  like = run.recipe.abstract_state()
  other = dataclasses.replace(like, opt_state={})
  checkpoints = checkpoint.Checkpoints(path, 2)
  with pytest.raises(InputError, match="another version of opd_jax") as refusal:
    checkpoints.restore(other)
  checkpoints.close()
  assert "delete" not in str(refusal.value)


def test_a_key_that_is_new_belongs_to_no_old_run():
  """Runs from before it had what is its default now."""
  c = config.load("opd")
  saved = json.loads(config.to_json(c))
  del saved["data"]["widths"], saved["recipe"]
  old = config.from_saved(saved)
  assert config.different(old, c) == {}
  other = config.override(c, {"data.widths": 2.0})
  assert config.different(old, other) == {"data.widths": (1.5, 2.0)}
  assert config.changed(other).keys() - config.changed(c).keys() == {"data.widths"}

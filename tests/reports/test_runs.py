"""Workdirs loaded, sound and damaged, and their arms named."""

import io
import json

import pytest
from rich.console import Console

from opd_jax.errors import InputError
from opd_jax.reports import table
from opd_jax.reports.comparison import compare
from opd_jax.reports.runs import below, load
from tests.helpers.report_runs import workdir


class TestLabels:
  def labels(self, *paths):
    return [run.label for run in load(paths)]

  @pytest.mark.parametrize(
    ("horizon", "label"),
    [
      ({"kind": "full"}, "OPD"),
      ({"kind": "progressive", "start": 10}, "POPD"),
      ({"kind": "truncated", "ratio": 0.1}, "TOPD 10%"),
      ({"kind": "truncated", "ratio": 0.125}, "TOPD 12.5%"),
      ({"kind": "truncated", "length": 4}, "TOPD 10%"),
      ({"kind": "truncated", "length": 7}, "TOPD 7 tokens"),
    ],
  )
  def test_method(self, tmp_path, horizon, label):
    assert self.labels(workdir(tmp_path / "a", [0.1, 0.9], **horizon)) == [label]

  def test_other_recipes_have_their_names(self, tmp_path):
    a = workdir(tmp_path / "a", [0.1, 0.9], config={"recipe": "self_distillation"})
    b = workdir(tmp_path / "b", [0.1, 0.9], kind="truncated", ratio=0.1, config={"recipe": "my.module.my_method"})
    assert self.labels(a, b) == ["self-distillation", "my-method, TOPD 10%"]

  def test_two_models_of_a_run_are_two_arms(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    of_both = [
      r | {"model": model, "accuracy": r["accuracy"] / (1 + (model == "peer"))}
      for r in records
      if r["kind"] == "eval"
      for model in ("student", "peer")
    ]
    steps = [r | {"model": "student" if r["step"] <= 5 else "peer"} for r in records if r["kind"] == "train"]
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps + of_both)))
    found = {run.label: run for run in load([path])}
    assert {label: (run.accuracy, len(run.train)) for label, run in found.items()} == {
      "OPD: student": (0.9, 5),
      "OPD: peer": (0.45, 5),
    }

  def test_seeds_are_one_arm(self, tmp_path):
    a = workdir(tmp_path / "a", [0.1, 0.9], seed=0)
    b = workdir(tmp_path / "b", [0.1, 0.9], seed=1, config={"checkpoint.every": 7})
    assert self.labels(a, b) == ["OPD", "OPD"]

  def test_differing_keys_are_named(self, tmp_path):
    a = workdir(tmp_path / "a", [0.1, 0.9], kind="truncated", ratio=0.1)
    b = workdir(tmp_path / "b", [0.1, 0.9], kind="truncated", ratio=0.1, config={"optimizer.lr": 3e-4})
    c = workdir(tmp_path / "c", [0.1, 0.9])
    assert self.labels(a, b, c) == ["TOPD 10%, lr 1e-4", "TOPD 10%, lr 3e-4", "OPD"]

  def test_a_leaf_that_is_not_unique_keeps_its_parent(self, tmp_path):
    a = workdir(tmp_path / "a", [0.1, 0.9])
    b = workdir(tmp_path / "b", [0.1, 0.9], config={"objective.kind": "jsd"})
    assert self.labels(a, b) == ["OPD, objective.kind reverse_kl", "OPD, objective.kind jsd"]

  def test_a_horizon_key_needs_no_parent(self, tmp_path):
    a = workdir(tmp_path / "a", [0.1, 0.9], kind="progressive", every=10)
    b = workdir(tmp_path / "b", [0.1, 0.9], kind="progressive", start=20)
    assert self.labels(a, b) == ["POPD, start 0", "POPD, start 20"]

  def test_a_directory_given_twice_counts_once(self, tmp_path):
    a = workdir(tmp_path / "a", [0.1, 0.9])
    assert self.labels(a, a / ".." / "a") == ["OPD"]


class TestLoad:
  def test_missing_directory(self, tmp_path):
    with pytest.raises(InputError, match=r"no directory .*gone"):
      load([tmp_path / "gone"])

  def test_no_metrics(self, tmp_path):
    with pytest.raises(InputError, match=r"has no metrics\.jsonl"):
      load([tmp_path])

  def test_no_config(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    (path / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
      load([path])

  def test_config_of_something_else(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    for text, match in (
      ("{", "is not JSON"),
      ("[]", "holds a list where a JSON object belongs"),
      ("{}", r"no horizon\.kind"),
    ):
      (path / "config.json").write_text(text)
      with pytest.raises(InputError, match=match):
        load([path])

  def test_no_evaluations(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    lines = [line for line in (path / "metrics.jsonl").read_text().splitlines() if '"kind": "train"' in line]
    (path / "metrics.jsonl").write_text("\n".join(lines))
    (run,) = load([path])
    assert run.notes == ["there is no evaluation, so no accuracy is known: train with eval.every above 0"]
    (path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no step and no evaluation yet"):
      load([path])

  def test_a_directory_above_runs_stands_for_all_of_them(self, tmp_path):
    a, b = workdir(tmp_path / "deep" / "a", [0.1, 0.9]), workdir(tmp_path / "b", [0.1, 0.9], seed=1)
    workdir(a / "inside", [0.1, 0.9], seed=2)  # a run's own files are not searched
    empty = workdir(tmp_path / "c", [0.1, 0.9])
    (empty / "metrics.jsonl").write_text("")
    assert [run.path for run in load([tmp_path])] == [b, a]
    assert [run.path for run in load([a, tmp_path])] == [a, b]
    assert below(tmp_path).empty == [empty]
    assert below(a) == ([a], [])

  def test_broken_last_line_is_noted(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    with (path / "metrics.jsonl").open("a") as f:
      f.write('{"kind": "train", "st')
    (run,) = load([path])
    assert run.step == 10
    assert "last line of metrics.jsonl was cut short" in run.notes[0]

  def test_a_run_without_a_step_is_noted_on_the_terminal_too(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1], total=10)
    (run,) = load([path])
    assert run.notes == ["no step is made yet: the accuracy is that of the untrained student"]
    out = io.StringIO()
    table.show(compare([run]), Console(file=out, width=80))
    assert f"note: {path}: {run.notes[0]}" in out.getvalue()

  def test_what_a_run_did_not_learn_is_noted(self, tmp_path):
    """Skipped and empty updates are counted, and answers that the last evaluation's own limit cut."""
    path = workdir(tmp_path / "a", [0.0, 0.0], info={"outcome": {"steps": 10, "updated": 0, "skipped": 1, "empty": 9}})
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    records[-1] |= {"prompts": 128, "ended": 0.125, "length": {"max": 128}}
    records[-2] |= {"skipped": 1, "empty": 9}
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (run,) = load([path])
    assert run.notes == [
      "1 logged step(s) skipped an update because of a NaN or Inf",
      "9 update(s) were left out because the gradient was exactly zero",
      "nothing was learned: every update was skipped or left out, so the student is as it was",
      "at the last evaluation 112 of 128 answers were cut at 128 tokens: raise eval.max_tokens",
    ]

  @pytest.mark.parametrize("line", ['{"kind": "tr', '{"kind": "eval", "step": 1}', "3"])
  def test_broken_line_in_the_middle_is_refused(self, tmp_path, line):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(f"{line}\n{text}")
    with pytest.raises(InputError, match="Line 1 of"):
      load([path])

  def test_repeated_steps_of_a_resumed_run_count_once(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.5, 0.9])
    lines = (path / "metrics.jsonl").read_text().splitlines()
    again = [json.loads(line) for line in lines if json.loads(line)["step"] > 15]
    (path / "metrics.jsonl").write_text("\n".join(lines + [json.dumps(r | {"accuracy": 0.7}) for r in again]))
    (run,) = load([path])
    assert [r["step"] for r in run.train] == list(range(1, 21))
    assert [e["accuracy"] for e in run.evals] == [0.1, 0.5, 0.7]

  def test_parts_of_logged_steps_stand_for_all_steps(self, tmp_path):
    path = workdir(tmp_path / "o", [0.1, 0.8], seconds=4.0)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    logged = [r for r in lines if r["kind"] == "eval" or r["step"] % 5 == 0]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in logged))
    (run,) = load([path])
    assert run.elapsed == 40.0
    assert run.seconds["rollout"] == pytest.approx(20.0)
    assert sum(run.seconds[k] for k in ("rollout", "verify", "update", "other")) == pytest.approx(40.0)

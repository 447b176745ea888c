"""Reports from workdirs made by hand, whose numbers can be checked on paper."""

import base64
import io
import itertools
import json
import re
import struct
import subprocess
import sys

import pytest
from rich.console import Console

from opd_jax import figures, report
from opd_jax.errors import InputError

EDGES = [0, 10, 20, 40]


def workdir(
  path, accuracy, *, seconds=1.0, tokens=100, seed=0, every=10, total=None, config=None, info=None, **horizon
):
  """A run with an evaluation every `every` steps; each step costs `seconds` and `tokens`, and the first 2 s to compile."""
  path.mkdir(parents=True)
  horizon = {"kind": "full", "max": 40, "length": 0, "ratio": 0.0, "start": 0} | horizon
  steps = every * (len(accuracy) - 1)
  saved = {
    "seed": seed,
    "steps": steps if total is None else total,
    "student": "builtin:student",
    "horizon": horizon,
    "objective": {"kind": "reverse_kl"},
    "optimizer": {"kind": "adamw", "lr": 1e-4},
    "eval": {"every": every},
    "checkpoint": {"every": 50},
  }
  for key, value in (config or {}).items():
    *parents, leaf = key.split(".")
    at = saved
    for parent in parents:
      at = at[parent]
    at[leaf] = value
  limit = {"full": 40, "truncated": horizon["length"] or round(40 * horizon["ratio"]), "progressive": 30}[
    horizon["kind"]
  ]
  count = [max(0, min(limit, hi) - lo) * 4 for lo, hi in itertools.pairwise(EDGES)]
  records = []
  for step in range(steps + 1):
    at = {"step": step, "tokens": tokens * step, "elapsed": seconds * step, "wall": 2 * seconds * step + 3}
    if step:
      parts = {"rollout": 0.5, "score": 0.125, "update": 0.25, "other": 0.125}
      records.append(
        at
        | {"kind": "train", "limit": limit, "width": 40, "skipped": 0, "peak_memory": 2**20}
        | {"response_length": 0.9 * limit, "ended": 0.4, "cut": 0.6}
        | {"seconds": {k: v * seconds for k, v in parts.items()} | {"compile": 2.0 if step == 1 else 0.0}}
        | {"by_position": {"edges": EDGES, "count": count, "kl": [0.5 / step if n else None for n in count]}}
      )
    if step % every == 0:
      a = accuracy[step // every]
      value = {"value": a, "low": a - 0.05, "high": a + 0.04}
      records.append(
        at
        | {
          "kind": "eval",
          "accuracy": a,
          "low": a - 0.05,
          "high": a + 0.04,
          "k": 1,
          "seconds": 0.5,
          "pass": {"1": value},
        }
      )
  programs = [{"name": "rollout", "width": 40, "seconds": 1.5}, {"name": "update", "width": 40, "seconds": 2.5}]
  default = {"versions": {"jax": "0.10.0"}, "commit": "0123456789abcdef", "devices": "2 x cpu", "programs": programs}
  (path / "config.json").write_text(json.dumps(saved))
  (path / "run.json").write_text(json.dumps(default | (info or {})))
  (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """Three arms of three seeds; targets at 0.95 x 0.96 = 0.912."""
  root = tmp_path_factory.mktemp("study")
  opd = {"seconds": 4.0, "tokens": 1000}
  topd = {"seconds": 1.0, "tokens": 100, "kind": "truncated", "ratio": 0.1}
  popd = {"seconds": 2.0, "tokens": 400, "kind": "progressive", "start": 10}
  return [
    workdir(root / "t0", [0.1, 0.5, 0.92, 0.93], seed=0, **topd),
    workdir(root / "t1", [0.1, 0.95, 0.90, 0.91], seed=1, **topd),
    workdir(root / "t2", [0.1, 0.5, 0.6, 0.915], seed=2, **topd),
    workdir(root / "o0", [0.1, 0.5, 0.8, 0.92], seed=0, **opd),
    workdir(root / "o1", [0.1, 0.5, 0.93, 0.96], seed=1, **opd),
    workdir(root / "o2", [0.1, 0.5, 0.90, 0.94], seed=2, **opd),
    workdir(root / "p0", [0.1, 0.92, 0.93, 0.94], seed=0, **popd),
    workdir(root / "p1", [0.1, 0.3, 0.6, 0.9], seed=1, **popd),
    workdir(root / "p2", [0.1, 0.3, 0.6, 0.9], seed=2, **popd),
  ]


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
  return report.write(report.load(study), tmp_path_factory.mktemp("out") / "deep" / "report")


class TestSummary:
  def test_arms_and_baseline(self, study):
    rows = report.summary(report.load(study))
    assert [(r["label"], r["runs"], r["baseline"]) for r in rows] == [
      ("OPD", 3, True),
      ("TOPD 10%", 3, False),
      ("POPD", 3, False),
    ]

  def test_target_comes_from_the_best_baseline_run(self, study):
    assert report.summary(report.load(study))[0]["target"] == pytest.approx(0.95 * 0.96)

  def test_median_and_range(self, study):
    opd, topd, _ = report.summary(report.load(study))
    # First evaluations at or above 0.912: OPD at steps 30, 20, 30; TOPD at steps 20, 10, 30, the dip afterwards ignored.
    assert opd["seconds_to_target"] == {"median": 120.0, "min": 80.0, "max": 120.0}
    assert topd["seconds_to_target"] == {"median": 20.0, "min": 10.0, "max": 30.0}
    assert topd["tokens_to_target"] == {"median": 2000, "min": 1000, "max": 3000}
    assert topd["steps_to_target"] == {"median": 20, "min": 10, "max": 30}
    assert topd["reached"] == 3

  def test_speedup(self, study):
    opd, topd, _ = report.summary(report.load(study))
    assert (opd["speedup"], opd["token_saving"]) == (1.0, 1.0)
    assert topd["speedup"] == pytest.approx(120 / 20)
    assert topd["token_saving"] == pytest.approx(30000 / 2000)

  def test_runs_that_never_get_there_count_as_last(self, study):
    popd = report.summary(report.load(study))[2]
    assert popd["reached"] == 1
    assert popd["seconds_to_target"] == {"median": None, "min": 20.0, "max": None}
    assert popd["speedup"] is None
    assert report.spread(popd, "seconds_to_target", report.seconds) == "not reached (20.0–not reached)"

  def test_final_accuracy(self, study):
    opd = report.summary(report.load(study))[0]
    assert opd["accuracy"] == pytest.approx((0.92 + 0.96 + 0.94) / 3)
    assert (opd["low"], opd["high"]) == (0.92, 0.96)

  def test_one_run_has_the_interval_of_its_evaluation(self, study):
    (row,) = report.summary(report.load(study[3:4]))
    assert (row["low"], row["high"]) == (pytest.approx(0.87), pytest.approx(0.96))

  def test_costs(self, study):
    opd = report.summary(report.load(study))[0]
    assert opd["train_seconds"] == 120.0
    assert opd["tokens"] == 30000
    assert (opd["compile_seconds"], opd["compile_wait"], opd["programs"]) == (4.0, 2.0, 2)
    assert opd["eval_seconds"] == 2.0

  def test_given_target(self, study):
    opd, topd, popd = report.summary(report.load(study), target=0.5)
    assert opd["rule"] == "given"
    assert (opd["seconds_to_target"]["median"], topd["seconds_to_target"]["median"]) == (40.0, 10.0)
    assert popd["seconds_to_target"]["median"] == 40.0  # steps 10, 20, 20

  @pytest.mark.parametrize("target", [0, -0.1, 1.5, float("nan")])
  def test_impossible_target(self, study, target):
    with pytest.raises(InputError, match="above 0 and at most 1"):
      report.summary(report.load(study), target=target)

  def test_not_reached(self, tmp_path):
    runs = report.load(
      [workdir(tmp_path / "o", [0.1, 0.8]), workdir(tmp_path / "t", [0.1, 0.2], kind="truncated", length=8)]
    )
    _, topd = report.summary(runs)
    assert topd["label"] == "TOPD 20%"
    assert (topd["reached"], topd["speedup"]) == (0, None)
    assert report.spread(topd, "tokens_to_target", report.count) == "not reached"

  def test_nothing_learnt_matches_nothing(self, tmp_path):
    rows = report.summary(report.load([workdir(tmp_path / "o", [0.0, 0.0])]))
    assert (rows[0]["reached"], rows[0]["speedup"]) == (0, None)
    assert "--target" in report.headline(rows)

  def test_reached_before_training_has_no_speedup(self, tmp_path):
    runs = report.load([workdir(tmp_path / "o", [0.5, 0.8]), workdir(tmp_path / "p", [0.5, 0.8], kind="progressive")])
    assert [r["speedup"] for r in report.summary(runs, target=0.3)] == [None, None]

  def test_parts_of_logged_steps_stand_for_all_steps(self, tmp_path):
    path = workdir(tmp_path / "o", [0.1, 0.8], seconds=4.0)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    kept = [r for r in lines if r["kind"] == "eval" or r["step"] % 5 == 0]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    (run,) = report.load([path])
    assert run.elapsed == 40.0
    assert run.seconds["rollout"] == pytest.approx(20.0)
    assert sum(run.seconds[k] for k in ("rollout", "score", "update", "other")) == pytest.approx(40.0)


class TestHeadline:
  def test_says_what_the_numbers_say(self, study):
    assert report.headline(report.summary(report.load(study))) == (
      "An accuracy of 0.912 was reached after 20.0 s of training by TOPD 10% (speed-up 6.0x) and 120 s by OPD; "
      "POPD reached it in only 1 of 3 runs (medians over 3 seeds)."
    )

  def test_baseline_that_does_not_get_there(self, study):
    assert report.headline(report.summary(report.load([study[0], study[3]]), target=0.93)) == (
      "An accuracy of 0.93 was reached after 30.0 s of training by TOPD 10%; "
      "OPD did not reach it in 120 s of training (one run each)."
    )

  def test_nobody_gets_there(self, study):
    assert report.headline(report.summary(report.load(study[3:4]), target=1.0)) == (
      "OPD did not reach an accuracy of 1 in 120 s of training (one run)."
    )

  def test_slower_is_said(self, tmp_path):
    slow = workdir(tmp_path / "p", [0.1, 0.9], seconds=8.0, kind="progressive")
    rows = report.summary(report.load([slow, workdir(tmp_path / "o", [0.1, 0.9], seconds=4.0)]))
    assert "80.0 s of training by POPD (speed-up 0.5x) and 40.0 s by OPD" in report.headline(rows)

  def test_some_seeds_miss(self, study):
    rows = report.summary(report.load(study[3:6]), target=0.93)
    assert "120 s of training by OPD (2 of 3 runs)" in report.headline(rows)


class TestLabels:
  def of(self, *paths):
    return [run.label for run in report.load(paths)]

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
    assert self.of(workdir(tmp_path / "a", [0.1, 0.9], **horizon)) == [label]

  def test_seeds_are_one_arm(self, tmp_path):
    a = workdir(tmp_path / "a", [0.1, 0.9], seed=0)
    b = workdir(tmp_path / "b", [0.1, 0.9], seed=1, config={"checkpoint.every": 7})
    assert self.of(a, b) == ["OPD", "OPD"]

  def test_differing_keys_are_named(self, tmp_path):
    a = workdir(tmp_path / "a", [0.1, 0.9], kind="truncated", ratio=0.1)
    b = workdir(tmp_path / "b", [0.1, 0.9], kind="truncated", ratio=0.1, config={"optimizer.lr": 3e-4})
    c = workdir(tmp_path / "c", [0.1, 0.9])
    assert self.of(a, b, c) == ["TOPD 10%, lr 1e-4", "TOPD 10%, lr 3e-4", "OPD"]

  def test_a_leaf_that_is_not_unique_keeps_its_parent(self, tmp_path):
    a = workdir(tmp_path / "a", [0.1, 0.9])
    b = workdir(tmp_path / "b", [0.1, 0.9], config={"objective.kind": "jsd"})
    assert self.of(a, b) == ["OPD, objective.kind reverse_kl", "OPD, objective.kind jsd"]

  def test_a_horizon_key_needs_no_parent(self, tmp_path):
    a = workdir(tmp_path / "a", [0.1, 0.9], kind="progressive", every=10)
    b = workdir(tmp_path / "b", [0.1, 0.9], kind="progressive", start=20)
    assert self.of(a, b) == ["POPD, start 0", "POPD, start 20"]

  def test_a_directory_given_twice_counts_once(self, tmp_path):
    a = workdir(tmp_path / "a", [0.1, 0.9])
    assert self.of(a, a / ".." / "a") == ["OPD"]

  def test_without_a_full_horizon_the_first_arm_is_the_baseline(self, tmp_path):
    a = workdir(tmp_path / "a", [0.1, 0.9], kind="progressive")
    b = workdir(tmp_path / "b", [0.1, 0.9], kind="truncated", ratio=0.1)
    assert next(iter(report.arms(report.load([a, b])))) == "POPD"


class TestLoad:
  def test_missing_directory(self, tmp_path):
    with pytest.raises(InputError, match=r"no directory .*gone"):
      report.load([tmp_path / "gone"])

  def test_no_metrics(self, tmp_path):
    with pytest.raises(InputError, match=r"has no metrics\.jsonl"):
      report.load([tmp_path])

  def test_no_config(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    (path / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
      report.load([path])

  def test_config_of_something_else(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    for text, match in (("{", "is not JSON"), ("[]", "does not hold an object"), ("{}", r"no horizon\.kind")):
      (path / "config.json").write_text(text)
      with pytest.raises(InputError, match=match):
        report.load([path])

  def test_no_evaluations(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    lines = [line for line in (path / "metrics.jsonl").read_text().splitlines() if '"kind": "train"' in line]
    (path / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"holds no evaluation: set eval\.every"):
      report.load([path])

  def test_broken_last_line_is_noted(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    with (path / "metrics.jsonl").open("a") as f:
      f.write('{"kind": "train", "st')
    (run,) = report.load([path])
    assert run.step == 10
    assert "last line of metrics.jsonl was cut short" in run.notes[0]

  @pytest.mark.parametrize("line", ['{"kind": "tr', '{"kind": "eval", "step": 1}', "3"])
  def test_broken_line_in_the_middle_is_refused(self, tmp_path, line):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(f"{line}\n{text}")
    with pytest.raises(InputError, match="Line 1 of"):
      report.load([path])

  def test_repeated_steps_of_a_resumed_run_count_once(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.5, 0.9])
    lines = (path / "metrics.jsonl").read_text().splitlines()
    again = [json.loads(line) for line in lines if json.loads(line)["step"] > 15]
    (path / "metrics.jsonl").write_text("\n".join(lines + [json.dumps(r | {"accuracy": 0.7}) for r in again]))
    (run,) = report.load([path])
    assert [r["step"] for r in run.train] == list(range(1, 21))
    assert [e["accuracy"] for e in run.evals] == [0.1, 0.5, 0.7]

  def test_unfinished_run(self, tmp_path):
    runs = report.load(
      [workdir(tmp_path / "a", [0.1, 0.5], total=100), workdir(tmp_path / "b", [0.1, 0.5], total=100, seed=1)]
    )
    (row,) = report.summary(runs)
    assert not row["finished"]
    assert report.steps(row) == "step 10 of 100"
    assert report.headline(report.summary(runs, target=0.9)) == (
      "OPD has not reached an accuracy of 0.9 by step 10 of 100 (medians over 2 seeds)."
    )


class TestTable:
  @pytest.mark.parametrize("width", [60, 80, 100, 200])
  def test_fits(self, study, width):
    out = io.StringIO()
    report.print_table(report.load(study), Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= min(width, 100)
    assert "TOPD 10%" in text
    assert "…" not in text
    assert "6.0x" in text


class TestPage:
  def test_needs_nothing_outside_itself(self, page):
    text = page.read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert "<script" not in text
    assert "<link" not in text
    assert "url(" not in text
    sources = re.findall(r'src="([^"]{0,40})', text)
    assert len(sources) == 6
    assert all(s.startswith("data:image/png;base64,") for s in sources)

  def test_pictures(self, page):
    names = {"result", "accuracy", "horizon", "kl_by_position", "responses", "time"}
    assert {p.stem for p in page.parent.glob("*.png")} == names
    for name in names:
      data = (page.parent / f"{name}.png").read_bytes()
      width, height = struct.unpack(">II", data[16:24])
      assert data.startswith(b"\x89PNG")
      assert len(data) > 10_000
      assert 600 < width < 2100
      assert height > 300
      assert base64.b64encode(data).decode() in page.read_text()
    assert struct.unpack(">I", (page.parent / "result.png").read_bytes()[16:20])[0] <= 1600

  def test_says_how_it_was_made(self, page, study):
    text = page.read_text()
    assert "An accuracy of 0.912 was reached after 20.0 s of training by TOPD 10%" in text
    assert "95% of the best final accuracy of OPD" in text
    assert "without interpolation" in text
    assert "Compiling and evaluation are left out" in text
    assert "not reached" in text
    assert "0123456789ab" in text
    assert "jax 0.10.0" in text
    assert all(str(path) in text for path in study)
    assert "<th>horizon.ratio</th>" in text
    assert "optimizer.lr = 1e-4" in text

  def test_warnings(self, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda *_: [])
    a = workdir(
      tmp_path / "a", [0.1, 0.9], info={"devices": "1 x tpu", "commit": "ff"}, config={"student": "<b>other</b>"}
    )
    b = workdir(tmp_path / "b", [0.1, 0.9], total=50, kind="truncated", ratio=0.1)
    c = workdir(tmp_path / "c", [0.1, 0.9], total=50, kind="truncated", ratio=0.1, seed=0)
    (c / "run.json").unlink()
    text = report.write(report.load([a, b, c]), tmp_path / "out").read_text()
    assert "made on different devices" in text
    assert "different commits" in text
    assert "differ in more than the horizon: steps, student." in text
    assert "runs of the same seed" in text
    assert "at step 10 of 50, running or cut short" in text
    assert "run.json is missing" in text
    assert "single run" in text
    assert "&lt;b&gt;other" in text
    assert "<b>" not in text

  def test_before_the_first_step(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1], total=50)
    out = report.write(report.load([path]), tmp_path / "out", target=0.9)
    assert "OPD has not reached an accuracy of 0.9 by step 0 of 50" in out.read_text()
    assert {p.stem for p in out.parent.glob("*.png")} == {"result", "accuracy", "time"}

  def test_out_is_a_file(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot be made a directory"):
      report.write(report.load([path]), tmp_path / "out")


class TestMain:
  def test_writes(self, study, tmp_path, capsys):
    assert report.main([str(study[0]), str(study[3]), f"--out={tmp_path / 'r'}", "--target=0.5"]) == 0
    assert (tmp_path / "r" / "index.html").is_file()
    assert "index.html" in capsys.readouterr().out

  def test_mistake_is_one_sentence(self, tmp_path, capsys):
    assert report.main([str(tmp_path / "gone")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "gone" in captured.err
    assert "Traceback" not in captured.err

  def test_neither_jax_nor_transformers(self):
    code = (
      "import sys, opd_jax.report, opd_jax.figures; print([m for m in ('jax', 'transformers') if m in sys.modules])"
    )
    assert (
      subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )

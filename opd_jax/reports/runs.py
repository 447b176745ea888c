"""Workdirs as a report loads them: finished, running or interrupted."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from opd_jax.config import expanded_path
from opd_jax.errors import InputError
from opd_jax.reports import records
from opd_jax.reports.labels import arm_labels, show
from opd_jax.runtime.json_files import is_whole
from opd_jax.runtime.outcome import Outcome, answers_cut

RECORDS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True)
class Run:
  """The records of one workdir, as they were found; of a run that trains several models, those of one of them."""

  path: pathlib.Path  # as given
  config: dict[str, Any]  # config.json, with dotted keys
  info: dict[str, Any]  # run.json; empty where the run has not written it
  train: list[dict]  # one record per logged step, by step
  evals: list[dict]  # one record per evaluation, by step; with none there is a training record
  notes: list[str]  # what the page has to say about this workdir
  label: str = ""  # of the arm; `load` gives it
  model: str = ""  # which of several; "" where there is one

  @property
  def seed(self) -> Any:
    return self.config.get("seed")

  @property
  def changes(self) -> list[str]:
    """The keys that had other values in the beginning, with the step from which they changed."""
    return [
      f"from step {c['step']}: {c['key']} {show(c['from'])} -> {show(c['to'])}" for c in self.info.get("changes", ())
    ]

  @property
  def step(self) -> int:
    """The last step that was made."""
    return self._last("step")

  @property
  def steps(self) -> int:
    """The steps that the config asks for."""
    return self.config.get("steps", self.step)

  @property
  def finished(self) -> bool:
    return self.step >= self.steps

  @property
  def accuracy(self) -> float:
    """The accuracy of the last evaluation; NaN where there is none."""
    return self.evals[-1]["accuracy"] if self.evals else math.nan

  @property
  def tokens(self) -> int:
    """All generated tokens of training."""
    return self._last("tokens")

  @property
  def elapsed(self) -> float:
    """Training seconds: rollout, verifying, update and the rest of the loop, without compiling and evaluation."""
    return self._last("elapsed")

  @property
  def wall(self) -> float:
    """Seconds of the whole run, with everything; 0 where they are not known."""
    return self._last("wall")

  def _last(self, key: str) -> Any:
    return max(found[-1].get(key) or 0 for found in (self.train, self.evals) if found)

  @property
  def seconds(self) -> dict[str, float]:
    """Seconds by part of the run. Parts of the logged steps are scaled to all steps where not every step was logged."""

    def logged(part: str) -> float:
      return sum(r["seconds"].get(part, 0.0) for r in self.train)

    parts: dict[str, float] = {part: logged(part) for part in ("rollout", "verify", "probe", "update", "other")}
    if total := sum(parts.values()):
      parts = {part: value * self.elapsed / total for part, value in parts.items()}
    return parts | {"compile": logged("compile"), "eval": sum(r.get("seconds", 0.0) for r in self.evals)}

  @property
  def compile_seconds(self) -> float:
    """Seconds that all programs took to compile, including those compiled in the background of training."""
    programs = self.info.get("programs")
    return sum(p.get("seconds", 0.0) for p in programs) if programs else self.seconds["compile"]


def load(dirs: Iterable[str | pathlib.Path]) -> list[Run]:
  """Load workdirs and name their arms. A directory given twice counts once; one that is none stands for all below it.

  Raises:
    InputError: a directory, a file or a field that the report needs is not there.
  """
  paths = {}
  for path in map(expanded_path, dirs):
    for workdir in below(path).begun or [path]:
      paths.setdefault(workdir.resolve(), workdir)
  if not paths:
    raise InputError("No workdir was named: give the directories that opd_jax.train wrote.")
  runs = [run for path in paths.values() for run in _models(_read(path))]
  labels = arm_labels([run.config for run in runs])
  named = (f"{label}: {run.model}" if run.model else label for run, label in zip(runs, labels, strict=True))
  return [dataclasses.replace(run, label=label) for run, label in zip(runs, named, strict=True)]


def _models(run: Run) -> list[Run]:
  """Split a run that has evaluated several models into one for each of them, with its own steps."""
  names = list(dict.fromkeys(r["model"] for r in run.evals if r.get("model")))
  if not names:
    return [run]
  train = {name: [r for r in run.train if r.get("model", name) == name] for name in names}
  evals = {name: [r for r in run.evals if r.get("model") == name] for name in names}
  notes = {names[0]: run.notes}  # once for all
  return [
    dataclasses.replace(run, train=train[name], evals=evals[name], notes=notes.get(name, []), model=name)
    for name in names
  ]


class Below(NamedTuple):
  """The workdirs in a directory and its subdirectories, by name."""

  begun: list[pathlib.Path]  # with a record, of a step or of an evaluation
  empty: list[pathlib.Path]  # without one yet


def below(path: pathlib.Path) -> Below:
  """Find the workdirs below a directory; a workdir itself has none but itself."""
  if (path / RECORDS).is_file() or (path / "config.json").is_file():
    return Below([path], [])
  found = Below([], [])
  for folder, folders, files in os.walk(path):
    folders.sort()
    if RECORDS in files and "config.json" in files:
      folders.clear()  # what a run writes has no run in it
      workdir = pathlib.Path(folder)
      (found.begun if (workdir / RECORDS).stat().st_size else found.empty).append(workdir)
  return found


def tenth(records: list[dict], at_share: float) -> list[dict]:
  """Select a tenth of the records, from the first ones at share 0 to the last ones at share 1."""
  if len(records) < 3 and at_share < 1:
    return []  # too few for an early and a middle
  size = max(1, len(records) // 10)
  start = round(at_share * (len(records) - size))
  return records[start : start + size]


def _read(path: pathlib.Path) -> Run:
  if not path.is_dir():
    raise InputError(f"There is no directory {path}: name a workdir that opd_jax.train has written.")
  if not (path / RECORDS).is_file():
    raise InputError(f"{path} has no metrics.jsonl: name a workdir in which opd_jax.train has made at least one step.")
  config = records.read_config(path / "config.json")
  notes = []
  info = records.read_info(path / "run.json")
  if not info:
    notes.append("run.json is missing: versions, devices and compiled programs are not known")
  train, evals, cut_short = records.read_records(path / "metrics.jsonl")
  if not evals and not train:
    raise InputError(f"{path} holds no step and no evaluation yet: wait for the first of them.")
  if not evals:
    notes.append("there is no evaluation, so no accuracy is known: train with eval.every above 0")
  if not train:
    notes.append("no step is made yet: the accuracy is that of the untrained student")
  if cut_short:
    notes.append("the last line of metrics.jsonl was cut short and is left out")
  if skipped := sum(bool(r.get("skipped")) for r in train):
    notes.append(f"{skipped} logged step(s) skipped an update because of a NaN or Inf")
  if train and (empty := train[-1].get("empty")):
    notes.append(f"{empty} update(s) were left out because the gradient was exactly zero")
  outcome = _outcome(info)
  if outcome.learned_nothing:
    notes.append("nothing was learned: every update was skipped or left out, so the student is as it was")
  notes += outcome.reward_lines()
  if evals and (cut := _answers_cut(evals[-1])):
    notes.append(f"at the last evaluation {cut}")
  return Run(path, config, info, train, evals, notes)


def _outcome(info: dict[str, Any]) -> Outcome:
  """The counts of run.json; none of a run from before there were any."""
  counts, names = info.get("outcome") or {}, {field.name for field in dataclasses.fields(Outcome)}
  return Outcome(**{name: n for name, n in counts.items() if name in names and is_whole(n)})


def _answers_cut(record: dict[str, Any]) -> str:
  """What its own limit did to an evaluation; "" of a record from before there were lengths."""
  return answers_cut(record) if {"k", "prompts", "ended", "length"} <= record.keys() else ""

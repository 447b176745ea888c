"""What a run reports while it trains: a progress bar on a terminal or in a notebook, JSON lines, and trackers (trackers.py).

`metrics.jsonl` is the record that everything else is drawn from: one object per line, of kind "train" or "eval".
"""

import html
import json
import pathlib
import resource
import sys
import time
from typing import Any, ClassVar

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from opd_jax.config import Config
from opd_jax.runtime.outcome import answers_cut
from opd_jax.runtime.trackers import Callback, OnRecord, RunFacts, Trackers


class Clock:
  """A clock by part of the work: every second since the start belongs to one of the named parts.

  `elapsed` is what training itself costs: all parts but "compile" and "eval".
  """

  PARTS = ("converse", "rollout", "verify", "probe", "update", "compile", "other", "eval")

  def __init__(self, totals: dict[str, float] | None = None):
    self.totals = dict.fromkeys(self.PARTS, 0.0) | (totals or {})
    self.start()

  def start(self) -> None:
    """Forgets the time since the last lap: what came before the first step is nobody's."""
    self._mark = time.perf_counter()
    self._step_began = dict(self.totals)

  def lap(self, part: str) -> None:
    """Books the time since the last call under this part."""
    now = time.perf_counter()
    self.totals[part] += now - self._mark
    self._mark = now

  def move(self, seconds: float, part: str, to: str) -> None:
    """Books seconds of one part under another."""
    self.totals[part] -= seconds
    self.totals[to] += seconds

  def step(self) -> dict[str, float]:
    """Returns the seconds by part since the last call, without evaluation."""
    spent = {p: round(self.totals[p] - self._step_began[p], 6) for p in self.PARTS if p != "eval"}
    self._step_began = dict(self.totals)
    return spent

  @property
  def elapsed(self) -> float:
    """The seconds of training, without compilation and evaluation."""
    return sum(s for part, s in self.totals.items() if part not in ("compile", "eval"))

  @property
  def wall(self) -> float:
    """The seconds of all parts together."""
    return sum(self.totals.values())


class Metrics:
  """The writers of one run's metrics and samples. Only the first process of several writes.

  Args:
    lengths: bytes of each file at the checkpoint that the run goes on from; what was written later is cut off.
    name: of the run.
  """

  FILES = ("metrics.jsonl", "samples.jsonl", "rollouts.jsonl", "canvases.jsonl", "graphs.jsonl")
  OF_ROLLOUTS: ClassVar = {
    "denoising": "canvases.jsonl",
    "graph": "graphs.jsonl",
  }  # by the part of a config that only such runs have

  def __init__(self, workdir: pathlib.Path, config: Config, first_step: int, lengths: dict[str, int], name: str):
    self._on = jax.process_index() == 0
    self._every = config.log.every
    if not self._on:
      return
    self._files = {}
    of_rollouts = next((f for part, f in self.OF_ROLLOUTS.items() if part in config), "rollouts.jsonl")
    wanted = {"metrics.jsonl", "samples.jsonl", *([of_rollouts] if config.log.rollouts else ())}
    for file in self.FILES:
      path = workdir / file
      if file not in wanted and not path.exists():
        continue
      path.touch()
      with path.open("r+b") as f:
        f.truncate(min(lengths.get(file, 0), path.stat().st_size))  # never longer, where lines were lost
      self._files[file] = path.open("a", encoding="utf-8")
    bar = NotebookBar if in_notebook() else ProgressBar
    self._bar = bar(config.steps, first_step, name)
    self._trackers = Trackers(RunFacts(name, workdir, config, first_step), self._bar.say)

  def train(self, record: dict[str, Any]) -> None:
    """Shows a step's record, and writes every `log.every`-th."""
    if self._on:
      self._bar.step(record)
      if self.logs(record["step"]):
        self._write("metrics.jsonl", {"kind": "train", **record})
        self._trackers.record("train", record)

  def evaluation(self, record: dict[str, Any], samples: list[dict]) -> None:
    """Shows and writes an evaluation's record, and writes its samples."""
    if self._on:
      self._bar.evaluation(record)
      self._write("metrics.jsonl", {"kind": "eval", **record})
      self._trackers.record("eval", record)
      self._trackers.samples(record["step"], samples)
      for sample in samples:
        self._write("samples.jsonl", {"step": record["step"], **sample})

  def logs(self, step: int) -> bool:
    """Tells whether the record of a step is written; the same on every process."""
    return step % self._every == 0

  def rollouts(self, records: list[dict[str, Any]]) -> None:
    """Writes rollouts of a step, token by token; see data/scored.py."""
    if self._on:
      for record in records:
        self._write("rollouts.jsonl", record)

  def canvases(self, records: list[dict[str, Any]]) -> None:
    """Writes rollouts of a step that were denoised, canvas by canvas; see data/denoised.py."""
    if self._on:
      for record in records:
        self._write("canvases.jsonl", record)

  def graphs(self, records: list[dict[str, Any]]) -> None:
    """Writes rollouts of a step that branch, a prompt's graph each; see data/branched.py."""
    if self._on:
      for record in records:
        self._write("graphs.jsonl", record)

  def track(self, on_record: OnRecord) -> None:
    """Gives a function every record from now on, see trackers.Callback."""
    if self._on:
      self._trackers.add("on_record", Callback(on_record))

  def say(self, text: str) -> None:
    """Prints a line above the progress bar."""
    if self._on:
      self._bar.say(text)

  def lengths(self) -> dict[str, int]:
    """Returns the bytes of each file by now, for the checkpoint."""
    if not self._on:
      return {}
    for f in self._files.values():
      f.flush()
    return {name: f.tell() for name, f in self._files.items()}

  def close(self, error: type[BaseException] | None = None) -> None:
    """Closes the bar, all files and trackers, with what ended the run; None where it came to its end."""
    if not self._on:
      return
    self._bar.close()
    for f in self._files.values():
      f.close()
    self._trackers.close(error)

  def _write(self, file: str, record: dict) -> None:
    self._files[file].write(json.dumps(_plain(record), ensure_ascii=False) + "\n")
    self._files[file].flush()


class ProgressBar:
  """A progress bar on a terminal; a line now and then elsewhere."""

  SECONDS = 15.0  # between two lines where there is no terminal
  LINE = 100  # columns of such a line

  def __init__(self, steps: int, first_step: int, name: str):
    self._console = Console(stderr=True, highlight=False)
    self._steps, self._name = steps, name
    self._last_line = 0.0
    self._bar = None
    if self._console.is_terminal:
      columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
      )
      self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
      self._task = self._bar.add_task(name, total=steps, completed=first_step, text="")
      self._bar.start()

  def step(self, record: dict[str, Any]) -> None:
    """Shows a training step's loss, horizon and speed; of a run with a reward also that, before the others."""
    if self._bar:
      self._bar.update(self._task, completed=record["step"], text=_progress(record, self._room))
    elif time.monotonic() - self._last_line > self.SECONDS or record["step"] == self._steps:
      self._last_line = time.monotonic()
      left = record["elapsed"] / record["step"] * (self._steps - record["step"])
      before, after = f"{self._name} step {record['step']}/{self._steps} ", f" left {left:.0f} s"
      self.say(f"{before}{_progress(record, self.LINE - len(before + after))}{after}")

  @property
  def _room(self) -> int:
    """The columns that the terminal leaves to the text beside name, bar, steps and two times, with spaces between."""
    others = (self._name, " " * 20, f"{self._steps}/{self._steps}", "0:00:00", "0:00:00", "")
    return self._console.width - len(" ".join(others))

  def evaluation(self, record: dict[str, Any]) -> None:
    """Prints an evaluation's accuracy and the cost so far."""
    model = f" ({record['model']})" if record.get("model") else ""
    cut = f", prompts that lost their beginning: {record['prompts_cut']}" if record.get("prompts_cut") else ""
    greedy = f"(greedy {record['greedy']['accuracy']:.3f}) " if "greedy" in record else ""
    self.say(
      f"{self._name}{model} step {record['step']} accuracy "
      f"{record['accuracy']:.3f} [{record['low']:.3f}, {record['high']:.3f}] {greedy}"
      f"avg@{record['k']} on {record['prompts']} problems, mean length {record['length']['mean']:.0f}, "
      f"{record['elapsed']:.1f} s of training, {record['tokens']:,} tokens{cut}"
    )
    if cut := answers_cut(record):
      self.say(f"  note: {cut}")

  def say(self, text: str) -> None:
    """Prints a line above the bar."""
    self._console.print(text, soft_wrap=True, markup=False, emoji=False)  # it may quote a prompt

  def close(self) -> None:
    """Leaves the terminal to others."""
    if self._bar:
      self._bar.stop()


class NotebookBar(ProgressBar):
  """A progress bar in a notebook's cell, updated in place; messages stand below it."""

  UPDATE = 0.2  # seconds between two updates, which all travel to the browser

  def __init__(self, steps: int, first_step: int, name: str):
    from IPython import display  # in a notebook it is there

    self._steps, self._name = steps, name
    self._html, self._began, self._first = display.HTML, time.monotonic(), first_step
    self._shown, self._latest = 0.0, (first_step, "")
    self._handle = display.display(self._html(self._markup()), display_id=True)

  def step(self, record: dict[str, Any]) -> None:
    """Shows a training step's loss, horizon, speed and the time that is left."""
    self._latest = record["step"], _progress(record, self.LINE)
    if time.monotonic() - self._shown >= self.UPDATE or record["step"] == self._steps:
      self._update()

  def say(self, text: str) -> None:
    """Prints a line below the bar."""
    print(text)

  def close(self) -> None:
    """Shows the last step, which may have come too soon after the one before."""
    self._update()

  def _update(self) -> None:
    self._shown = time.monotonic()
    self._handle.update(self._html(self._markup()))

  def _markup(self) -> str:
    step, text = self._latest
    spent = time.monotonic() - self._began
    made = step - self._first
    left = f", {spent / made * (self._steps - step):.0f} s left" if made > 0 and step < self._steps else ""
    text = html.escape(f"{self._name} step {step}/{self._steps} {text}, {spent:.0f} s{left}")
    return f'<progress value="{step}" max="{max(self._steps, 1)}"></progress> <code>{text}</code>'


def in_notebook() -> bool:
  """Tells whether a cell of a notebook shows what is printed, as rich tells it: Jupyter, Colab, Databricks."""
  return Console().is_jupyter


def _progress(record: dict[str, Any], room: int) -> str:
  """Writes a step's numbers; where it has a reward, no more of the others than there is room for, in columns."""
  speed = record["step_tokens"] / max(sum(record["seconds"].values()) - record["seconds"]["compile"], 1e-9)
  parts = {"loss": f"loss {record['loss']:.4f}"}
  if record.get("reward") is not None:
    parts["reward"] = f"reward {record['reward']:.3f}"
    if record.get("teaching_groups") is not None:
      parts["groups"] = f"teaching {record['teaching_groups']:.0%}"
  if record.get("kl") is not None:
    parts["kl"] = f"kl {record['kl']:.4f}"
  if "limit" in record:
    parts["horizon"] = f"horizon {record['limit']}"
  parts["speed"] = f"{speed:,.0f} tokens/s"
  if "reward" in parts:
    for name in ("kl", "horizon", "loss", "speed"):  # of a policy gradient the loss says least
      if len(" ".join(parts.values())) > room:
        parts.pop(name, None)
  return " ".join(parts.values())


# Statistics of a token that compare student and teacher, or are the teacher's alone.
OF_TEACHER = frozenset({"divergence", "kl", "teacher_logprob", "teacher_entropy", "overlap", "clipped", "opposed"})
_COUNTS = ("count", "compared")  # of generated tokens, and of those that a teacher was shown something for


def _count_of(name: str, sums: dict[str, np.ndarray]) -> np.ndarray:
  """Returns how many tokens of each bin a sum is over."""
  return np.asarray(sums["compared" if name in OF_TEACHER and "compared" in sums else "count"], np.float64)


def by_position(sums: dict[str, np.ndarray], max_horizon: int) -> dict[str, list]:
  """Computes means by position bin from sums; None where nothing was generated, or compared."""
  bins = len(sums["count"])
  # A bin holds the positions i with i * bins // max_horizon equal to its index.
  edges = [-(-b * max_horizon // bins) for b in range(bins + 1)]
  means: dict[str, list] = {"edges": edges, "count": [int(n) for n in sums["count"]]}
  for name, total in sums.items():
    if name not in _COUNTS:
      pairs = zip(np.asarray(total, np.float64), _count_of(name, sums), strict=True)
      means[name] = [float(t / n) if n else None for t, n in pairs]
  return means


def means(sums: dict[str, np.ndarray]) -> dict[str, float]:
  """Computes means over all generated tokens, and over all compared ones, from sums by position bin."""
  return {
    name: float(np.sum(total, dtype=np.float64) / max(float(np.sum(_count_of(name, sums))), 1.0))
    for name, total in sums.items()
    if name not in _COUNTS
  }


def peak_memory() -> int:
  """Returns the fullest device's peak in bytes, or the process's where devices do not count."""
  stats = [d.memory_stats() or {} for d in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  if peaks:
    return max(peaks)
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _plain(x):
  """Replaces numbers that are not finite by None, since JSON has no NaN."""
  if isinstance(x, dict):
    return {k: _plain(v) for k, v in x.items()}
  if isinstance(x, (list, tuple)):
    return [_plain(v) for v in x]
  if isinstance(x, float) and not np.isfinite(x):
    return None
  return x

"""Tables and figures from finished, running or interrupted workdirs.

    python -m opd_jax.report DIR... [--out=report] [--target=0.9]

Workdirs whose configs differ only in the seed are one *arm*. The baseline is the arm with the full horizon, or the
first one. The page compares arms at a matched accuracy that the baseline defines, so that no arm can be flattered
by the choice, and says of every arm whether it got there.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from opd_jax.errors import InputError

MATCH = 0.95  # of the baseline's best final accuracy, where no target is given
MIN_WIDTH, WIDE, MAX_WIDTH = 60, 96, 100  # terminal columns; below WIDE the table leaves out three of its own

# Keys that tell two runs apart without changing what they learn or how fast.
FREE = ("seed", "workdir", "compile_cache", "checkpoint.", "log.tensorboard", "log.wandb", "log.samples")
_TRAIN_KEYS = ("step", "tokens", "elapsed", "limit", "width", "seconds")
_EVAL_KEYS = ("step", "tokens", "elapsed", "accuracy", "low", "high")


@dataclasses.dataclass(frozen=True)
class Run:
  """One workdir, as it was found."""

  path: pathlib.Path  # as given
  config: dict[str, Any]  # config.json
  info: dict[str, Any]  # run.json; empty where the run has not written it
  train: list[dict]  # one record per logged step, by step
  evals: list[dict]  # one record per evaluation, by step; at least one
  label: str  # of the arm
  notes: tuple[str, ...] = ()  # what a reader has to know about this workdir

  @property
  def seed(self) -> Any:
    return self.config.get("seed")

  @property
  def step(self) -> int:
    return max(self.evals[-1]["step"], self.train[-1]["step"] if self.train else 0)

  @property
  def steps(self) -> int:
    return self.config.get("steps", self.step)

  @property
  def finished(self) -> bool:
    return self.step >= self.steps

  @property
  def tokens(self) -> int:
    return max(r[-1]["tokens"] for r in (self.train, self.evals) if r)

  @property
  def elapsed(self) -> float:
    """Training seconds: rollout, score, update and the rest of the loop, without compiling and evaluation."""
    return max(r[-1]["elapsed"] for r in (self.train, self.evals) if r)

  @property
  def seconds(self) -> dict[str, float]:
    """Where the time went. Parts of the logged steps are scaled to all steps where not every step was logged."""
    parts: dict[str, float] = {
      name: sum(r["seconds"].get(name, 0.0) for r in self.train) for name in ("rollout", "score", "update", "other")
    }
    logged = sum(parts.values())
    if logged > 0:
      parts = {name: value * self.elapsed / logged for name, value in parts.items()}
    parts["compile"] = sum(r["seconds"].get("compile", 0.0) for r in self.train)
    parts["eval"] = sum(r.get("seconds", 0.0) for r in self.evals)
    return parts

  @property
  def compile_seconds(self) -> float:
    """Of all programs, those that were compiled in the background while training went on included."""
    programs = self.info.get("programs")
    return sum(p.get("seconds", 0.0) for p in programs) if programs else self.seconds["compile"]


def load(dirs: Iterable[str | pathlib.Path]) -> list[Run]:
  """Reads workdirs and names their arms. A directory given twice counts once.

  Raises:
    InputError: a directory, a file or a field that the report needs is not there.
  """
  paths = {}
  for d in map(pathlib.Path, dirs):
    paths.setdefault(d.resolve(), d)
  if not paths:
    raise InputError("No workdir was named: give the directories that opd_jax.train wrote.")
  runs = [_read(path) for path in paths.values()]
  return [dataclasses.replace(run, label=label) for run, label in zip(runs, _labels(runs), strict=True)]


def _read(path: pathlib.Path) -> Run:
  if not path.is_dir():
    raise InputError(f"There is no directory {path}: name a workdir that opd_jax.train has written.")
  if not (path / "metrics.jsonl").is_file():
    raise InputError(f"{path} has no metrics.jsonl: name a workdir in which opd_jax.train has made at least one step.")
  config = _read_json(path / "config.json")
  if not isinstance(config.get("horizon"), dict) or "kind" not in config["horizon"]:
    raise InputError(f"{path / 'config.json'} has no horizon.kind: name a workdir that opd_jax.train has written.")
  notes = []
  info = _read_json(path / "run.json") if (path / "run.json").is_file() else {}
  if not info:
    notes.append("run.json is missing: versions, devices and compiled programs are not known")
  train, evals = {}, {}
  lines = (path / "metrics.jsonl").read_text(errors="replace").splitlines()
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except ValueError:
      record = None
    where = f"Line {number} of {path / 'metrics.jsonl'}"
    if not isinstance(record, dict):
      if number < len(lines):
        raise InputError(f"{where} is not a JSON object: delete the line, or train again into a new workdir.")
      notes.append("the last line of metrics.jsonl was cut short and is left out")
      continue
    if record.get("kind") not in ("train", "eval"):
      continue
    into, needed = (train, _TRAIN_KEYS) if record["kind"] == "train" else (evals, _EVAL_KEYS)
    for key in needed:
      if record.get(key) is None:
        raise InputError(f"{where} has no value for {key!r}: train again with this version of opd_jax.")
    into[record["step"]] = record  # a resumed run may repeat steps: the later record is the one that went on
  if not evals:
    raise InputError(f"{path} holds no evaluation: set eval.every above 0 and train, or wait for the first evaluation.")
  skipped = sum(bool(r.get("skipped")) for r in train.values())
  if skipped:
    notes.append(f"{skipped} logged step(s) skipped an update because of a NaN or Inf")
  by_step = lambda records: [records[s] for s in sorted(records)]
  return Run(path, config, info, by_step(train), by_step(evals), "", tuple(notes))


def _read_json(path: pathlib.Path) -> dict:
  try:
    value = json.loads(path.read_text())
  except FileNotFoundError:
    raise InputError(f"{path.parent} has no {path.name}: name a workdir that opd_jax.train has written.") from None
  except ValueError:
    raise InputError(f"{path} is not JSON: train again into a new workdir, or restore the file.") from None
  if not isinstance(value, dict):
    raise InputError(f"{path} does not hold an object: train again into a new workdir, or restore the file.")
  return value


def _labels(runs: Sequence[Run]) -> list[str]:
  """'OPD', 'TOPD 10%', 'POPD', and the keys that differ where that does not tell two arms apart."""
  configs = [flat(r.config) for r in runs]
  identities = [{k: v for k, v in c.items() if not k.startswith(FREE)} for c in configs]
  methods = [_method(r.config["horizon"]) for r in runs]
  labels = []
  for method, identity in zip(methods, identities, strict=True):
    keys = differing([i for m, i in zip(methods, identities, strict=True) if m == method])
    leaf = lambda key: key.rsplit(".", 1)[-1]
    leaves = [leaf(k) for k in identity]
    short = {k: leaf(k) if k.startswith("horizon.") or leaves.count(leaf(k)) == 1 else k for k in keys}
    labels.append(", ".join([method, *(f"{short[k]} {show(identity.get(k))}" for k in keys)]))
  return labels


def _method(horizon: dict) -> str:
  if horizon["kind"] != "truncated":
    return {"full": "OPD", "progressive": "POPD"}.get(horizon["kind"], str(horizon["kind"]))
  if horizon.get("ratio"):
    return f"TOPD {100 * horizon['ratio']:g}%"
  length, longest = horizon.get("length", 0), horizon.get("max", 0)
  return f"TOPD {100 * length // longest}%" if longest and 100 * length % longest == 0 else f"TOPD {length} tokens"


def flat(tree: dict, prefix: str = "") -> dict[str, Any]:
  """Nested config -> dotted keys."""
  out = {}
  for k, v in tree.items():
    out |= flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v}
  return out


def differing(configs: Sequence[dict[str, Any]]) -> list[str]:
  """The dotted keys that do not have the same value in all flat configs."""
  keys = sorted({k for c in configs for k in c})
  return [k for k in keys if len({show(c.get(k)) for c in configs}) > 1]


def show(value: Any) -> str:
  """A value of a config; small numbers as 1e-4."""
  if not isinstance(value, float):
    return str(value)
  mantissa, exponent = f"{value:.9e}".split("e")
  return f"{float(mantissa):g}e{int(exponent)}" if value and int(exponent) < -2 else f"{value:.9g}"


def arms(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """Runs by arm: the baseline first, the others in the order given."""
  grouped: dict[str, list[Run]] = {}
  for run in runs:
    grouped.setdefault(run.label, []).append(run)
  baseline = next((k for k, rs in grouped.items() if rs[0].config["horizon"]["kind"] == "full"), next(iter(grouped)))
  return {baseline: grouped.pop(baseline), **grouped}


def summary(runs: Sequence[Run], target: float | None = None) -> list[dict[str, Any]]:
  """One row per arm, the baseline first: plain numbers, None where there is none.

  `seconds_to_target` and `tokens_to_target` hold the median, min and max over the arm's runs of the first evaluation
  at or above the target. A run that never got there counts as later than all others: dropping it would flatter the
  arm. `speedup` and `token_saving` are the baseline's median over the arm's.
  """
  groups = arms(runs)
  baseline = next(iter(groups))
  rule = "given"
  if target is None:
    target = MATCH * max(run.evals[-1]["accuracy"] for run in groups[baseline])
    rule = f"{MATCH:.0%} of the best final accuracy of {baseline}"
  elif not 0 < target <= 1:
    raise InputError(f"--target is {target:g}; an accuracy is above 0 and at most 1.")
  rows = []
  for label, members in groups.items():
    last = [run.evals[-1] for run in members]
    hits = [next((e for e in run.evals if target and e["accuracy"] >= target), None) for run in members]
    accuracy = [e["accuracy"] for e in last]
    one = len(members) == 1
    row = {
      "label": label,
      "baseline": label == baseline,
      "runs": len(members),
      "seeds": [run.seed for run in members],
      "step": min(run.step for run in members),
      "last_step": max(run.step for run in members),
      "steps": members[0].steps,
      "finished": all(run.finished for run in members),
      "accuracy": statistics.fmean(accuracy),
      "low": last[0]["low"] if one else min(accuracy),
      "high": last[0]["high"] if one else max(accuracy),
      "pass": {k: statistics.fmean(e["pass"][k]["value"] for e in last) for k in last[0].get("pass") or {} if k != "1"},
      "target": target,
      "rule": rule,
      "reached": sum(hit is not None for hit in hits),
      "seconds_to_target": _spread(hits, "elapsed"),
      "tokens_to_target": _spread(hits, "tokens"),
      "steps_to_target": _spread(hits, "step"),
      "tokens": statistics.median(run.tokens for run in members),
      "train_seconds": statistics.median(run.elapsed for run in members),
      "compile_seconds": statistics.median(run.compile_seconds for run in members),
      "compile_wait": statistics.median(run.seconds["compile"] for run in members),
      "eval_seconds": statistics.median(run.seconds["eval"] for run in members),
      "programs": round(statistics.median(len(run.info.get("programs", ())) for run in members)),
    }
    rows.append(row)
  for row in rows:
    row["speedup"] = _ratio(rows[0]["seconds_to_target"]["median"], row["seconds_to_target"]["median"])
    row["token_saving"] = _ratio(rows[0]["tokens_to_target"]["median"], row["tokens_to_target"]["median"])
  return rows


def _spread(hits: Sequence[dict | None], key: str) -> dict[str, float | None]:
  values = [math.inf if hit is None else hit[key] for hit in hits]
  found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
  return {k: v if math.isfinite(v) else None for k, v in found.items()}


def _ratio(a: float | None, b: float | None) -> float | None:
  return a / b if a and b else None


def headline(rows: Sequence[dict[str, Any]]) -> str:
  """What was found, in one sentence made of the rows of `summary` and of nothing else."""
  baseline, target = rows[0], rows[0]["target"]
  if not target:
    return f"No run of {baseline['label']} ended with an accuracy above 0: give a --target to compare the arms at."
  middle = lambda r: r["seconds_to_target"]["median"]
  there = sorted((r for r in rows if middle(r) is not None), key=lambda r: (r["baseline"], middle(r)))
  reached = []
  for r in there:
    said = [f"{'' if reached else 'speed-up '}{times(r['speedup'])}"] if r["speedup"] and not r["baseline"] else []
    said += [f"{r['reached']} of {r['runs']} runs"] if r["reached"] < r["runs"] else []
    aside = f" ({', '.join(said)})" if said else ""
    reached.append(f"{seconds(middle(r))} s {'' if reached else 'of training '}by {r['label']}{aside}")
  parts = [f"An accuracy of {target:.3g} was reached after {_join(reached)}"] if reached else []
  for r in (r for r in rows if middle(r) is None):
    it = "it" if parts else f"an accuracy of {target:.3g}"
    if r["reached"]:
      parts.append(f"{r['label']} reached {it} in only {r['reached']} of {r['runs']} runs")
    else:
      did, when = "did not reach", f"in {seconds(r['train_seconds'])} s of training"
      if not r["finished"]:
        did, when = "has not reached", f"by {steps(r)}"
      parts.append(f"{r['label']} {did} {it} {when}")
  fewest, most = min(r["runs"] for r in rows), max(r["runs"] for r in rows)
  if most > 1:
    kind = "runs" if any(repeated(r) for r in rows) else "seeds"
    over = f"medians over {most if fewest == most else f'{fewest} to {most}'} {kind}"
  else:
    over = "one run each" if rows[1:] else "one run"
  return "; ".join(parts) + f" ({over})."


def repeated(row: dict[str, Any]) -> bool:
  """Whether two runs of the arm share a seed."""
  return len(set(map(str, row["seeds"]))) < row["runs"]


def _join(items: Sequence[str]) -> str:
  return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def seconds(value: float) -> str:
  return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def count(value: float) -> str:
  """1234567 -> '1.23M'."""
  for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if value >= size:
      return f"{value / size:.3g}{unit}"
  return f"{value:.0f}"


def steps(row: dict[str, Any]) -> str:
  if row["finished"]:
    return f"{row['steps']}"
  done = f"{row['step']}" if row["step"] == row["last_step"] else f"{row['step']}–{row['last_step']}"
  return f"step {done} of {row['steps']}"


def spread(row: dict[str, Any], key: str, show) -> str:
  """'8.1 (7.9–8.4)', and 'not reached' wherever that is what happened."""
  s = row[key]
  if s["min"] is None:
    return "not reached"
  middle, last = (show(v) if v is not None else "not reached" for v in (s["median"], s["max"]))
  return middle if row["runs"] == 1 else f"{middle} ({show(s['min'])}–{last})"


def interval(row: dict[str, Any]) -> str:
  return f"{row['accuracy']:.3f} ({row['low']:.3f}–{row['high']:.3f})"


def times(value: float | None) -> str:
  return "–" if value is None else f"{value:.1f}x"


def print_table(runs: Sequence[Run], console: Console | None = None, target: float | None = None) -> None:
  """The comparison of arms, in at most 100 columns."""
  console = console or Console()
  rows = summary(runs, target)
  width = max(MIN_WIDTH, min(console.width, MAX_WIDTH))
  goal = f"{rows[0]['target']:.3g}"
  table = Table(box=box.SIMPLE_HEAD, show_edge=False, show_lines=True, padding=(0, 1, 0, 0))
  table.add_column("arm", overflow="fold")
  heads = ["final\naccuracy", "training\ns", f"training s\nto {goal}", "speed-up"]
  heads += ["tokens", "compile s\n(programs)", f"tokens\nto {goal}"] if width >= WIDE else []
  for head in heads:
    table.add_column(head, justify="right", overflow="fold")
  for r in rows:
    cells = [interval(r), seconds(r["train_seconds"]), spread(r, "seconds_to_target", seconds), times(r["speedup"])]
    cells += [
      count(r["tokens"]),
      f"{seconds(r['compile_seconds'])} ({r['programs']})",
      spread(r, "tokens_to_target", count),
    ]
    members = f"{r['runs']} run{'s' if r['runs'] > 1 else ''}, {steps(r)}{' steps' if r['finished'] else ''}"
    table.add_row(f"{r['label']}\n{members}", *(cell.replace(" (", "\n(") for cell in cells[: len(heads)]))
  console.print(table, width=width)
  console.print(headline(rows) + "\n", width=width, highlight=False, markup=False)


def write(runs: Sequence[Run], out_dir: str | pathlib.Path, target: float | None = None) -> pathlib.Path:
  """Writes index.html, which holds everything, and the same pictures as PNG files. Returns the page's path."""
  from opd_jax import figures, page  # here, so that a table alone does not wait for matplotlib

  rows = summary(runs, target)
  out = pathlib.Path(out_dir)
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(f"{out} cannot be made a directory ({e.strerror}): choose another --out.") from None
  pictures = figures.draw(arms(runs), rows[0]["target"], out)
  path = out / "index.html"
  path.write_text(page.render(runs, rows, pictures), encoding="utf-8")
  return path


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m opd_jax.report", description="Tables and figures from workdirs.")
  parser.add_argument("dirs", nargs="+", metavar="DIR", help="a workdir of opd_jax.train")
  parser.add_argument("--out", default="report", metavar="DIR", help="where the page and the pictures go (report)")
  parser.add_argument("--target", type=float, help="accuracy at which arms are compared (95%% of the baseline's best)")
  args = parser.parse_args(argv)
  try:
    runs = load(args.dirs)
    print_table(runs, target=args.target)
    path = write(runs, args.out, args.target)
  except InputError as e:
    print(e, file=sys.stderr)
    return 2
  print(f"wrote {path}")
  return 0


if __name__ == "__main__":
  sys.exit(main())

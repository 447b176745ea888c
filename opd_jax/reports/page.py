"""The page of a report: one HTML file that needs nothing outside itself."""

import base64
import html
import pathlib
from collections.abc import Sequence

from opd_jax.config import expanded_path
from opd_jax.data import branched, denoised, scored
from opd_jax.errors import InputError
from opd_jax.reports import buffers, canvases, figures, graphs, reward, tokens
from opd_jax.reports.comparison import Arm, Comparison
from opd_jax.reports.labels import FREE, differing, show
from opd_jax.reports.runs import Run
from opd_jax.reports.words import accuracy, count, headline, seconds, spread, steps, times

MOST_RESPONSES = 12  # of a run that are shown token by token


def write(comparison: Comparison, folder: str | pathlib.Path) -> pathlib.Path:
  """Write index.html, which holds everything, and its pictures as PNG files; return the page's path.

  Raises:
    InputError: the folder cannot be made.
  """
  folder = make_folder(folder)
  page = folder / "index.html"
  page.write_text(_render(comparison, figures.draw(comparison, folder)), encoding="utf-8")
  return page


def make_folder(folder: str | pathlib.Path) -> pathlib.Path:
  """Make the folder of a page, where it is not there, and return its path.

  Raises:
    InputError: it cannot be made.
  """
  folder = expanded_path(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(f"{folder} cannot be made a directory ({e.strerror}): choose another --out.") from None
  return folder


def _render(comparison: Comparison, pictures: Sequence[figures.Picture]) -> str:
  runs = comparison.runs
  keys = differing([run.config for run in runs])
  shared = [f"{k} = {show(v)}" for k, v in sorted(runs[0].config.items()) if k not in keys]
  return _PAGE.format(
    style=STYLE + tokens.STYLE + canvases.STYLE + graphs.STYLE,
    question=_QUESTIONS[all(map(reward.learns_from_reward, runs))],
    headline=html.escape(headline(comparison)),
    arms=table([_arm_cells(comparison, arm) for arm in comparison.arms]) + _reward(comparison) + _buffers(comparison),
    cost=table([_cost_cells(arm) for arm in comparison.arms]),
    tokens=_token_by_token(runs),
    figures="\n".join(map(figure, pictures)),
    notes="".join(f"<li>{html.escape(note)}</li>" for note in _notes(comparison)),
    runs=table([_run_cells(run) for run in runs], "text"),
    made=table([_made_cells(run) for run in runs], "text"),
    differing=table([{"workdir": str(run.path)} | {k: show(run.config.get(k)) for k in keys} for run in runs], "text"),
    shared=html.escape("\n".join(shared)),
  )


def _reward(comparison: Comparison) -> str:
  """Write the section on what a verifier's reward did, first and last; nothing where no run has one."""
  rows = reward.table_rows(comparison.arms)
  return f"\n<h2>What the reward did</h2>\n<p>{html.escape(_REWARD)}</p>\n{table(rows)}" if rows else ""


def _buffers(comparison: Comparison) -> str:
  """Write the section on hard questions that are visited again; nothing where no run has a buffer."""
  parts = ((buffers.HISTORY, buffers.history_rows), (buffers.ASKED, buffers.asked_rows))
  found = [(told, rows(comparison.arms)) for told, rows in parts]
  sections = [f"<p>{html.escape(told)}</p>\n{table(rows)}" for told, rows in found if rows]
  return "\n<h2>Hard questions</h2>\n" + "\n".join(sections) if sections else ""


_REWARD = (
  "Means over the first and the last tenth of the logged steps, over all runs of the arm: first → last. A group is the rollouts "
  "of one prompt, and teaches where they do not all earn the same; mu is the probability that a token was drawn with, pi the one "
  "that it has when it is learned from."
)


def _token_by_token(runs: Sequence[Run]) -> str:
  """Write the responses that `python -m opd_jax.view` and log.rollouts left in the workdirs; nothing where there are none."""
  parts = []
  for run in {run.path: run for run in runs}.values():  # several models of a run share its files
    viewed = scored.read(run.path / scored.VIEW)[:MOST_RESPONSES]
    rollouts = scored.read(run.path / scored.ROLLOUTS, ends=True)
    for what, found in (("answers", viewed), ("first and last training rollouts", rollouts)):
      if found:
        summary = html.escape(f"{run.path}: {what}")
        parts.append(f"<details><summary>{summary}</summary>{tokens.sections(found)}</details>")
    if found := denoised.read(run.path / denoised.FILE):
      summary = html.escape(f"{run.path}: first and last training rollouts, canvas by canvas")
      parts.append(f"<details><summary>{summary}</summary>{canvases.sections(found)}</details>")
    if found := branched.read(run.path / branched.FILE):
      summary = html.escape(f"{run.path}: first and last training rollouts, as graphs")
      parts.append(f"<details><summary>{summary}</summary>{graphs.sections(found)}</details>")
  return "<h2>Token by token</h2>\n" + "\n".join(parts) if parts else ""


_QUESTIONS = ("How far must the student speak?", "What does the reward teach?")  # the second where every run has one


def figure(picture: figures.Picture) -> str:
  """Write a picture with its title and caption, the picture in the page itself."""
  data = base64.b64encode(picture.path.read_bytes()).decode()
  title, caption = html.escape(picture.title), html.escape(picture.caption)
  image = f'<img alt="{title}" width="{picture.width}" src="data:image/png;base64,{data}">'
  return f"<h2>{title}</h2>\n<figure>{image}<figcaption>{caption}</figcaption></figure>"


def table(rows: Sequence[dict[str, str]], kind: str = "numbers") -> str:
  """Write an HTML table from rows of cells by head; a column that is empty in every row is left out.

  Args:
    kind: class of the table, see `STYLE`.
  """
  heads = list(dict.fromkeys(k for row in rows for k in row if any(r.get(k) for r in rows)))
  head = "".join(f"<th>{html.escape(k)}</th>" for k in heads)
  body = "".join("<tr>" + "".join(f"<td>{html.escape(row.get(k, ''))}</td>" for k in heads) + "</tr>\n" for row in rows)
  return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _arm_cells(comparison: Comparison, arm: Arm) -> dict[str, str]:
  alone = len(comparison.arms) == 1
  return {
    "arm": arm.label + (" (baseline)" if arm is comparison.baseline and not alone else ""),
    "runs": str(len(arm.runs)),
    "steps": steps(arm),
    **(_accuracy_cells(comparison, arm) if any(each.evaluated for each in comparison.arms) else {}),
  }


def _accuracy_cells(comparison: Comparison, arm: Arm) -> dict[str, str]:
  goal = f"{comparison.target:.3g}"
  return {
    "final accuracy": accuracy(arm),
    **{f"pass@{k}": f"{v:.3f}" for k, v in arm.pass_at.items()},
    f"runs that reached {goal}": f"{arm.reached} of {len(arm.runs)}",
    f"training s to {goal}": spread(arm.seconds_to_target, seconds),
    f"tokens to {goal}": spread(arm.tokens_to_target, count),
    f"steps to {goal}": spread(arm.steps_to_target, count),
    "speed-up": times(comparison.speedup(arm)),
    "fewer tokens": times(comparison.token_saving(arm)),
  }


def _cost_cells(arm: Arm) -> dict[str, str]:
  return {
    "arm": arm.label,
    "generated tokens": count(arm.tokens),
    "sequences through a model": _forwards(arm),
    "training s": seconds(arm.train_seconds),
    "compiling s (waited for)": f"{seconds(arm.compile_seconds)} ({seconds(arm.compile_wait)})",
    "programs": str(arm.programs),
    "evaluation s": seconds(arm.eval_seconds),
  }


def _forwards(arm: Arm) -> str:
  """Counts the rollouts and updates of a masked diffusion model, and the sequences that each put through a model, forward; "" for others."""
  found = {}
  for key in ("rollouts", "rollout_forwards", "updates", "update_forwards"):
    logged = [[r[key] * run.config.get("log.every", 1) for r in run.train if key in r] for run in arm.runs]
    found[key] = sum(map(sum, logged)) / max(1, len(arm.runs))
  if not found["rollout_forwards"]:
    return ""
  counts = {key: count(number) for key, number in found.items()}
  return "{rollouts} rollouts: {rollout_forwards}, {updates} updates: {update_forwards}".format_map(counts)


def _run_cells(run: Run) -> dict[str, str]:
  last = f"{run.accuracy:.3f} at step {run.evals[-1]['step']}" if run.evals else "–"
  return {
    "workdir": str(run.path),
    "arm": run.label,
    "seed": str(run.seed),
    "step": f"{run.step} of {run.steps}" + ("" if run.finished else " (running or cut short)"),
    "last evaluation": last,
    "training s": seconds(run.elapsed),
    "all s": seconds(run.wall) if run.wall else "–",
    "changed on the way": "; ".join(run.changes),
    "notes": "; ".join(run.notes),
  }


def _made_cells(run: Run) -> dict[str, str]:
  """How a run was computed: memory, programs, machine and versions."""
  memory = max((p.get("bytes") or 0 for p in run.info.get("programs", []) if p.get("name") != "evaluate"), default=0)
  programs = [f"{p.get('name')} {p.get('width')}: {p.get('seconds', 0):.1f}" for p in run.info.get("programs", ())]
  versions = run.info.get("versions") or {}
  return {
    "workdir": str(run.path),
    "largest program": f"{memory / 2**20:,.0f} MiB" if memory else "–",
    "compiled (width: s)": ", ".join(programs),
    "devices": str(run.info.get("devices", "–")),
    "commit": str(run.info.get("commit") or "–")[:12],
    "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) or "–",
  }


def _notes(comparison: Comparison) -> list[str]:
  """List how the numbers were made, and what in these runs forbids comparing them."""
  runs, arms, target = comparison.runs, comparison.arms, comparison.target
  every = sorted({show(run.config.get("eval.every")) for run in runs})
  notes = [
    "Training time is rollout, scoring, update and the rest of the loop. Compiling and evaluation are left out of it "
    "and have columns of their own; compiling counts all programs, in brackets the part that training had to wait for.",
  ]
  matched = [
    f"Matched accuracy: {target:.4g} ({comparison.rule}). It is set by the baseline or by hand, never by the arm that "
    "is compared.",
    "An arm reaches it at the first evaluation at or above it, without interpolation, so times are known to one "
    f"evaluation interval ({', '.join(every)} steps).",
    "Of several runs: times, tokens and steps are the median (min–max); a run that never got there counts as later "
    "than all others, and final accuracy is the mean (min–max) of the last evaluations. Of a single run: the last "
    "evaluation with its own interval.",
    "Speed-up and fewer tokens: the baseline's median divided by the arm's.",
  ]
  first = [run.evals[0] for run in runs if run.evals]
  notes += matched if first else []
  if len(arms) > 1 and any(len(arm.runs) == 1 for arm in arms):
    notes.append("At least one arm has a single run: a difference between arms may be chance. Train with other seeds.")
  if target and any(e["step"] == 0 and e["accuracy"] >= target for e in first):
    notes.append("At least one run was at the matched accuracy before training: the target is too low to compare by.")
  for arm in arms:
    if arm.repeated:
      notes.append(f"{arm.label} has runs of the same seed: they are repeats of one run, not independent ones.")
  if len({str(run.info.get("devices")) for run in runs}) > 1:
    notes.append("The runs were made on different devices: their times are not comparable.")
  if len({str(run.info.get("commit")) for run in runs}) > 1:
    notes.append("The runs were made at different commits of the code.")
  if also := [k for k in differing([run.config for run in runs]) if not k.startswith(("horizon.", *FREE))]:
    notes.append(f"The arms differ in more than the horizon: {', '.join(also)}.")
  notes += [f"{run.path}: at step {run.step} of {run.steps}, running or cut short." for run in runs if not run.finished]
  return notes + [f"{run.path}: {note}." for run in runs for note in run.notes]


STYLE = """body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
.lead { font-size: 1.15rem; max-width: 60rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid #ddd; }
th { vertical-align: bottom; border-bottom: 2px solid #888; }
td { min-width: 3.5rem; max-width: 22rem; }
.text td { overflow-wrap: anywhere; }
.text th, .text td, th:first-child, td:first-child { text-align: left; }
figure { margin: 0; } img { max-width: 100%; height: auto; }
figcaption, li { font-size: .9rem; color: #444; max-width: 60rem; }
pre { font-size: .8rem; background: #f6f6f6; padding: .8rem; overflow-x: auto; }
summary { cursor: pointer; }
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>opd_jax report</title>
<style>
{style}</style></head><body>
<h1>{question}</h1>
<p class="lead">{headline}</p>
<h2>Arms</h2>
{arms}
<h2>What it cost</h2>
{cost}
{figures}
{tokens}
<h2>How to read this</h2>
<ul>{notes}</ul>
<h2>Runs</h2>
{runs}
<h2>How they were computed</h2>
{made}
<h2>Where the configs differ</h2>
{differing}
<details><summary>Config that all runs share</summary><pre>{shared}</pre></details>
</body></html>
"""

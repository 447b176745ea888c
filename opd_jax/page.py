"""The HTML page of a report: one file that needs nothing outside itself."""

import base64
import html
from collections.abc import Sequence
from typing import Any

from opd_jax.figures import Picture
from opd_jax.report import (
  FREE,
  Run,
  count,
  differing,
  flat,
  headline,
  interval,
  repeated,
  seconds,
  show,
  spread,
  steps,
  times,
)


def render(runs: Sequence[Run], rows: Sequence[dict[str, Any]], pictures: Sequence[Picture]) -> str:
  """The page, from the rows of `report.summary`; the pictures are read from their files."""
  shown = []
  for picture in pictures:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    title, caption = html.escape(picture.title), html.escape(picture.caption)
    image = f'<img alt="{title}" width="{picture.width}" src="data:image/png;base64,{data}">'
    shown.append(f"<h2>{title}</h2>\n<figure>{image}<figcaption>{caption}</figcaption></figure>")
  notes = "".join(f"<li>{html.escape(note)}</li>" for note in _notes(runs, rows))
  return _PAGE.format(
    headline=html.escape(headline(rows)),
    arms=_html_table(_arm_cells(rows)),
    figures="\n".join(shown),
    notes=notes,
    runs=_html_table(_run_cells(runs), "text"),
    **_config_tables(runs),
  )


def _arm_cells(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
  goal = f"{rows[0]['target']:.3g}"
  return [
    {
      "arm": r["label"] + (" (baseline)" if r["baseline"] and rows[1:] else ""),
      "runs": str(r["runs"]),
      "steps": steps(r),
      "final accuracy": interval(r),
      **{f"pass@{k}": f"{v:.3f}" for k, v in r["pass"].items()},
      "generated tokens": count(r["tokens"]),
      "training s": seconds(r["train_seconds"]),
      "compiling s (waited for)": f"{seconds(r['compile_seconds'])} ({seconds(r['compile_wait'])})",
      "programs": str(r["programs"]),
      "evaluation s": seconds(r["eval_seconds"]),
      f"runs that reached {goal}": f"{r['reached']} of {r['runs']}",
      f"training s to {goal}": spread(r, "seconds_to_target", seconds),
      f"tokens to {goal}": spread(r, "tokens_to_target", count),
      f"steps to {goal}": spread(r, "steps_to_target", count),
      "speed-up": times(r["speedup"]),
      "fewer tokens": times(r["token_saving"]),
    }
    for r in rows
  ]


def _run_cells(runs: Sequence[Run]) -> list[dict[str, str]]:
  cells = []
  for run in runs:
    versions = run.info.get("versions") or {}
    wall = max(r[-1].get("wall") or 0.0 for r in (run.train, run.evals) if r)
    memory = max((r.get("peak_memory") or 0 for r in run.train), default=0)
    cells.append(
      {
        "workdir": str(run.path),
        "arm": run.label,
        "seed": str(run.seed),
        "step": f"{run.step} of {run.steps}" + ("" if run.finished else " (running or cut short)"),
        "last evaluation": f"{run.evals[-1]['accuracy']:.3f} at step {run.evals[-1]['step']}",
        "training s": seconds(run.elapsed),
        "all s": seconds(wall) if wall else "–",
        "peak memory": f"{memory / 2**20:,.0f} MiB" if memory else "–",
        "compiled (width: s)": ", ".join(
          f"{p.get('name')} {p.get('width')}: {p.get('seconds', 0):.1f}" for p in run.info.get("programs", ())
        ),
        "devices": str(run.info.get("devices", "–")),
        "commit": str(run.info.get("commit") or "–")[:12],
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) or "–",
        "notes": "; ".join(run.notes),
      }
    )
  return cells


def _config_tables(runs: Sequence[Run]) -> dict[str, str]:
  """Keys that differ between runs as a table, and those that all share."""
  configs = [flat(run.config) for run in runs]
  keys = differing(configs)
  rows = [{"workdir": str(run.path)} | {k: show(c.get(k)) for k in keys} for run, c in zip(runs, configs, strict=True)]
  shared = "\n".join(f"{k} = {show(v)}" for k, v in sorted(configs[0].items()) if k not in keys)
  return {"differing": _html_table(rows, "text"), "shared": html.escape(shared)}


def _html_table(rows: Sequence[dict[str, str]], kind: str = "numbers") -> str:
  heads = list(dict.fromkeys(k for row in rows for k in row if any(r.get(k) for r in rows)))
  head = "".join(f"<th>{html.escape(k)}</th>" for k in heads)
  body = "".join("<tr>" + "".join(f"<td>{html.escape(row.get(k, ''))}</td>" for k in heads) + "</tr>\n" for row in rows)
  return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _notes(runs: Sequence[Run], rows: Sequence[dict[str, Any]]) -> list[str]:
  """How the numbers were made, and what in these runs speaks against comparing them."""
  target, rule = rows[0]["target"], rows[0]["rule"]
  every = sorted({show(flat(run.config).get("eval.every")) for run in runs})
  notes = [
    "Training time is rollout, scoring, update and the rest of the loop. Compiling and evaluation are left out of it and have columns of their own; "
    "compiling counts all programs, in brackets the part that training had to wait for.",
    f"Matched accuracy: {target:.4g} ({rule}). It is set by the baseline or by hand, never by the arm that is compared.",
    f"An arm reaches it at the first evaluation at or above it, without interpolation, so times are known to one evaluation interval ({', '.join(every)} steps).",
    "Of several runs: times, tokens and steps are the median (min–max); a run that never got there counts as later than all others, "
    "and final accuracy is the mean (min–max) of the last evaluations. Of a single run: the last evaluation with its own interval.",
    "Speed-up and fewer tokens: the baseline's median divided by the arm's.",
  ]
  if any(r["runs"] == 1 for r in rows) and rows[1:]:
    notes.append("At least one arm has a single run: a difference between arms may be chance. Train with other seeds.")
  if any(e["step"] == 0 and target and e["accuracy"] >= target for run in runs for e in run.evals[:1]):
    notes.append("At least one run was at the matched accuracy before training: the target is too low to compare by.")
  for r in rows:
    if repeated(r):
      notes.append(f"{r['label']} has runs of the same seed: they are repeats of one run, not independent ones.")
  if len({str(run.info.get("devices")) for run in runs}) > 1:
    notes.append("The runs were made on different devices: their times are not comparable.")
  if len({str(run.info.get("commit")) for run in runs}) > 1:
    notes.append("The runs were made at different commits of the code.")
  keys = differing([flat(run.config) for run in runs])
  if also := [k for k in keys if not k.startswith(("horizon.", *FREE))]:
    notes.append(f"The arms differ in more than the horizon: {', '.join(also)}.")
  notes += [f"{run.path}: at step {run.step} of {run.steps}, running or cut short." for run in runs if not run.finished]
  return notes + [f"{run.path}: {note}." for run in runs for note in run.notes]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>opd_jax report</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin: 0 0 .5rem; }} h2 {{ font-size: 1.15rem; margin: 2.4rem 0 .6rem; }}
.lead {{ font-size: 1.15rem; max-width: 60rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid #ddd; }}
th {{ vertical-align: bottom; border-bottom: 2px solid #888; }}
td {{ min-width: 3.5rem; max-width: 22rem; }}
.text th, .text td, th:first-child, td:first-child {{ text-align: left; }}
figure {{ margin: 0; }} img {{ max-width: 100%; height: auto; }}
figcaption, li {{ font-size: .9rem; color: #444; max-width: 60rem; }}
pre {{ font-size: .8rem; background: #f6f6f6; padding: .8rem; overflow-x: auto; }}
summary {{ cursor: pointer; }}
</style></head><body>
<h1>How far must the student speak?</h1>
<p class="lead">{headline}</p>
<h2>Arms</h2>
{arms}
{figures}
<h2>How to read this</h2>
<ul>{notes}</ul>
<h2>Runs</h2>
{runs}
<h2>Where the configs differ</h2>
{differing}
<details><summary>Config that all runs share</summary><pre>{shared}</pre></details>
</body></html>
"""

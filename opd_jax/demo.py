"""OPD, TOPD and POPD from the same student on the built-in task, then the report; minutes on a CPU.

    python -m opd_jax.demo                       one seed
    python -m opd_jax.demo --seeds=3             with the spread between seeds
    python -m opd_jax.demo --task=phase          the twin on which TOPD has to fail
    python -m opd_jax.demo --short               a few steps of everything, to see that it works

The three runs are configs/opd.py, topd.py and popd.py as they stand. What is printed and drawn is what was measured
just now; a run that is already complete in --out is not repeated.
"""

import argparse
import pathlib
import time

from rich.console import Console

from opd_jax import config as configs
from opd_jax.reports import page, table
from opd_jax.reports.comparison import compare
from opd_jax.reports.runs import load
from opd_jax.runtime import cli

METHODS = ("opd", "topd", "popd")
SHORT = {  # tasks of at most 140 tokens, so that a few seconds hold whole answers
  "student": "builtin:short-student",
  "teacher": "builtin:short-teacher",
  "steps": 8,
  "batch": 16,
  "optimizer.lr": 3e-4,
  "optimizer.warmup": 0,
  "horizon.max": 140,
  "eval.every": 4,
  "eval.prompts": 64,
  "eval.batch": 64,
}
STUDENTS = {"chain": "builtin:student", "phase": "builtin:phase-student"}


def config_of(method: str, task: str, seed: int, short: bool):
  """Loads configs/METHOD.py at the cpu scale, on this task and with this seed."""
  changes: dict = {"seed": seed, "data.path": f"task:{task}", "student": STUDENTS[task]}
  if short:
    changes |= SHORT | {"data.path": f"task:{task}-short"}
    if method == "popd":
      changes |= {"horizon.start": 14, "horizon.growth": 18, "horizon.quantum": 70}
  return configs.override(configs.load(method), changes)


def run(out: pathlib.Path, task: str, seeds: int, short: bool) -> None:
  """Trains every method with every seed, and writes the report into `out`."""
  from opd_jax.trainer import train  # a wrong flag is answered before JAX is imported

  began = time.perf_counter()
  kind = f"{task}-short" if short else task
  paths = []
  for seed in range(seeds):
    for method in METHODS:
      paths.append(out / f"{kind}-{method}-seed{seed}")
      train(config_of(method, task, seed, short), paths[-1])
  comparison = compare(load(paths))
  index = page.write(comparison, out / f"report-{kind}")
  console = Console(highlight=False)
  table.show(comparison, console)
  console.print(f"{time.perf_counter() - began:.0f} s in all, report in {index}", soft_wrap=True)


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m opd_jax.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--out", type=configs.expanded_path, default=pathlib.Path("runs/demo"), help="runs and report (runs/demo)"
  )
  parser.add_argument("--task", choices=("chain", "phase"), default="chain", help="which built-in task (chain)")
  parser.add_argument("--seeds", type=int, default=1, help="runs of each method, seeds 0, 1, ... (1)")
  parser.add_argument("--short", action="store_true", help="a few steps of everything")
  args = parser.parse_args()
  if args.seeds < 1:
    parser.error(f"--seeds is {args.seeds}; it has to be at least 1")
  cli.quiet()
  with cli.reporting_the_end("stopped; the same command goes on"):
    run(args.out, args.task, args.seeds, args.short)


if __name__ == "__main__":
  main()

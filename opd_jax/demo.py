"""OPD, TOPD and POPD from the same student on the built-in task, then the report; minutes on a CPU.

    python -m opd_jax.demo                       one seed
    python -m opd_jax.demo --seeds=3             with the spread between seeds
    python -m opd_jax.demo --task=phase          the twin on which TOPD has to fail
    python -m opd_jax.demo --short               a few steps of everything, to see that it works

The three runs are configs/opd.py, topd.py and popd.py as they stand. What is printed and drawn is what was measured
just now; a run that is already complete in --out is not repeated.
"""

import pathlib
import time

from absl import flags

from opd_jax import cli
from opd_jax import config as configs

METHODS = ("opd", "topd", "popd")


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("out", "runs/demo", "where the runs and the report go", flag_values=values)
  flags.DEFINE_integer("seeds", 1, "runs of each method, seeds 0, 1, ...", lower_bound=1, flag_values=values)
  flags.DEFINE_enum("task", "chain", ["chain", "phase"], "which built-in task", flag_values=values)
  flags.DEFINE_bool("short", False, "a few steps of everything", flag_values=values)


def config_of(method: str, task: str, seed: int, short: bool):
  """configs/METHOD.py at the cpu scale, on this task and with this seed."""
  changes = {
    "seed": seed,
    "data.path": f"task:{task}",
  }
  if short:
    changes |= {"steps": 4, "batch": 8, "eval.every": 2, "eval.prompts": 16, "eval.batch": 16, "horizon.max": 64}
    if method == "popd":
      changes |= {"horizon.start": 8, "horizon.growth": 16, "horizon.quantum": 32}
  return configs.override(configs.load(method), changes)


def run(values: flags.FlagValues, c) -> None:
  del c  # the demo has three configs of its own
  from rich.console import Console

  from opd_jax.reports import page, table
  from opd_jax.reports.comparison import compare
  from opd_jax.reports.runs import load
  from opd_jax.trainer import train

  began = time.perf_counter()
  out, task, short = pathlib.Path(values.out), values.task, values.short
  console = Console(highlight=False)
  paths = []
  for seed in range(values.seeds):
    for method in METHODS:
      path = out / f"{task}-{method}-seed{seed}{'-short' if short else ''}"
      train(config_of(method, task, seed, short), path)
      paths.append(path)
  comparison = compare(load(paths))
  index = page.write(comparison, out / f"report-{task}{'-short' if short else ''}")
  table.show(comparison, console)
  console.print(f"{time.perf_counter() - began:.0f} s in all, report in {index}", soft_wrap=True)


if __name__ == "__main__":
  cli.main(run, __doc__ or "", define)

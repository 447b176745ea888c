"""Are full rollouts necessary? The founding question, asked of many small runs; studies/claims.py has the rules.

    python -m opd_jax.study horizon                    five seeds of every arm, some hours on two cores
    python -m opd_jax.study horizon --short            three seeds of a few arms
    python -m opd_jax.study horizon --only=opd,popd    these arms; the verdicts of the others say that they were not run

What is complete in --out is not repeated: stop it whenever you like, and give the same command to go on.
"""

import argparse
import pathlib
import sys
import time

from etils import epath
from rich.console import Console

from opd_jax import cli
from opd_jax.errors import RESUME, InputError, Leave
from opd_jax.studies import horizon, page


def run(out: pathlib.Path, names: list[str], seeds: list[int]) -> None:
  from opd_jax.programs import use_cache  # a wrong flag is answered before JAX is imported
  from opd_jax.studies import measures, report
  from opd_jax.studies.run import check_all, train_all

  began = time.perf_counter()
  arms = [arm for arm in horizon.ARMS if arm.name in names]
  check_all(horizon.ARMS, seeds, out)  # the report reads all of them
  use_cache(str((out / ".jax_cache").resolve()), epath.Path(out))  # for the analyses, where nothing is left to train
  train_all(arms, seeds, out)
  measures.measure_all(horizon.ARMS, seeds, out)
  written, verdicts = report.write(out, seeds)
  console = Console(highlight=False)
  page.terminal(verdicts, console)
  console.print(f"{time.perf_counter() - began:.0f} s in all, report in {written}", soft_wrap=True)


def arms(named: str) -> list[str]:
  """The arms of --only, in the study's order."""
  known = [arm.name for arm in horizon.ARMS]
  if unknown := [name for name in named.split(",") if name not in known]:
    raise InputError(f"There is no arm {unknown[0]!r}; the arms are: {', '.join(known)}.")
  return [name for name in known if name in named.split(",")]


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m opd_jax.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("study", choices=("horizon",))
  parser.add_argument("--out", type=pathlib.Path, help="runs, analyses and report (runs/study, runs/study-short)")
  parser.add_argument("--seeds", type=int, help=f"how many, from seed {horizon.FIRST_SEED} on (5; 3 with --short)")
  parser.add_argument("--short", action="store_true", help=f"only {', '.join(horizon.SHORT)}")
  parser.add_argument("--only", default="", help="arms, with commas between")
  parser.add_argument("--list", action="store_true", help="the arms and what each changes; runs nothing")
  args = parser.parse_args()
  n = args.seeds if args.seeds is not None else 3 if args.short else 5
  if n < 1:
    parser.error(f"--seeds is {n}; it has to be at least 1")
  seeds = [horizon.FIRST_SEED + i for i in range(n)]
  out = args.out or pathlib.Path("runs/study-short" if args.short else "runs/study")
  cli.quiet()
  try:
    names = arms(args.only or ",".join(horizon.SHORT if args.short else [arm.name for arm in horizon.ARMS]))
    if args.list:
      for arm in (arm for arm in horizon.ARMS if arm.name in names):
        print(f"{arm.name}: {arm.label}; " + ", ".join(f"{key}={value}" for key, value in arm.changes.items()))
      return
    run(out, names, seeds)
  except InputError as e:
    print(f"error: {e}", file=sys.stderr)
    sys.exit(2)
  except Leave as e:
    print(f"{e}; the same command goes on", file=sys.stderr)
    sys.exit(RESUME)


if __name__ == "__main__":
  main()

"""Claims tested on many small runs; the rules by which they are decided are in studies/NAME/claims.py.

    python -m opd_jax.study horizon                    are full rollouts necessary? five seeds of every arm
    python -m opd_jax.study ccopd                      the same answer, told at once or turn by turn? likewise
    python -m opd_jax.study drpo                       which trust region for stale rollouts? likewise
    python -m opd_jax.study opcod                      can two students tutor each other by comments? likewise
    python -m opd_jax.study geometry                   which weights move, and do these suffice? likewise
    python -m opd_jax.study diffusion                  does it help to be shown one's own future? likewise
    python -m opd_jax.study graph                      what does a graph of states add to a tree? likewise
    python -m opd_jax.study zone                       does a teacher in the prompt teach hard questions? likewise
    python -m opd_jax.study vision                     does the whole picture learn what its crop shows? likewise
    python -m opd_jax.study healing --model=DIR --drop-layers=20-23     a real model is cut and healed; any directory, hours on two cores
    python -m opd_jax.study horizon --short            three seeds of a few arms
    python -m opd_jax.study horizon --only=opd,popd    these arms; the verdicts of the others say that they were not run
    python -m opd_jax.study drpo --dry-run             what would be trained; checks every config, and trains nothing

What is complete in --out is not repeated: stop it whenever you like, and give the same command to go on.
"""

import argparse
import importlib
import pathlib
import time
from types import ModuleType
from typing import Any

from etils import epath
from rich.console import Console

from opd_jax.config import expanded_path
from opd_jax.errors import InputError
from opd_jax.runtime import cli

STUDIES = ("horizon", "ccopd", "drpo", "opcod", "geometry", "diffusion", "graph", "zone", "vision", "healing")


def part(study: str, name: str) -> ModuleType:
  """Import a module of a study, see studies/__init__.py."""
  return importlib.import_module(f"opd_jax.studies.{study}.{name}")


def run(
  study: str, out: pathlib.Path, names: list[str], seeds: list[int], changes: dict[str, Any] | None = None
) -> None:
  """Train and measure what is missing of these arms, then decide the claims and write OUT/report.

  Args:
    changes: to the config of every arm.

  Raises:
    InputError: a workdir in `out` belongs to another config.
    StopRequested: the process was asked to stop; the run's state is saved.
  """
  from opd_jax.runtime.programs import use_cache  # a wrong flag is answered before JAX is imported
  from opd_jax.studies import verdict_page
  from opd_jax.studies.results import Results, workdir
  from opd_jax.studies.run import check_all, done, train_all
  from opd_jax.studies.verdicts import decide

  began = time.perf_counter()
  every = part(study, "arms").ARMS
  check_all(every, seeds, out, changes)  # the report reads all of them
  use_cache(str((out / ".jax_cache").resolve()), epath.Path(out))  # for the analyses, where nothing is left to train
  measures = part(study, "measures")
  after_run = getattr(measures, "after_run", None)
  train_all([arm for arm in every if arm.name in names], seeds, out, changes, after_run)
  if after_run is not None:  # of runs behind which the process was killed
    for arm, seed in [(arm, seed) for seed in seeds for arm in every if done(workdir(out, arm.name, seed))]:
      after_run(arm, seed, out, changes)
  measures.measure_all(every, seeds, out, changes)
  results, sections = Results(out, seeds), part(study, "sections")
  verdicts = decide(part(study, "claims").CLAIMS, results)
  page = verdict_page.write(sections.TITLE, sections.INTRO, verdicts, sections.sections(results), out / "report")
  console = Console(highlight=False)
  verdict_page.terminal(verdicts, console)
  console.print(f"{time.perf_counter() - began:.0f} s in all, report in {page}", soft_wrap=True)


def dry_run(
  study: str, out: pathlib.Path, names: list[str], seeds: list[int], changes: dict[str, Any] | None = None
) -> None:
  """Check the configs and workdirs of these arms, and print the runs that `run` would train, in its order.

  Args:
    changes: to the config of every arm.

  Raises:
    InputError: a config is refused, or a workdir in `out` belongs to another config.
  """
  from opd_jax import checks, inputs
  from opd_jax.recipes import base as recipes
  from opd_jax.runtime import mesh as meshes
  from opd_jax.studies.run import check_all, config_of, missing

  chosen = [arm for arm in part(study, "arms").ARMS if arm.name in names]
  for arm in chosen:
    config = config_of(arm, seeds[0], out, changes)
    checks.check(config)
    recipes.make(inputs.load_student(config, meshes.for_reading(config.mesh)))  # what a recipe refuses by itself
  check_all(chosen, seeds, out, changes)
  todo = missing(chosen, seeds, out)
  for arm, seed in todo:
    print(f"{arm.name}, seed {seed}")
  print(f"{len(todo)} of {len(chosen) * len(seeds)} runs are missing in {out}")


def arms(study: str, named: str) -> list[str]:
  """The names of the arms of --only, in the study's order.

  Raises:
    InputError: there is no arm of a name.
  """
  known = [arm.name for arm in part(study, "arms").ARMS]
  if unknown := [name for name in named.split(",") if name not in known]:
    raise InputError(f"There is no arm {unknown[0]!r}; the arms are: {', '.join(known)}.")
  return [name for name in known if name in named.split(",")]


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m opd_jax.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("study", choices=STUDIES)
  parser.add_argument("--out", type=expanded_path, help="runs, analyses and report (runs/study-NAME[-short])")
  parser.add_argument("--seeds", type=int, help="how many, from the study's first on (5; 3 with --short)")
  parser.add_argument("--short", action="store_true", help="only the arms of a first look")
  parser.add_argument("--only", default="", help="arms, with commas between")
  parser.add_argument("--list", action="store_true", help="the arms and what each changes; runs nothing")
  parser.add_argument(
    "--dry-run",
    action="store_true",
    help="check all configs and list what is missing; trains nothing (healing prunes its model)",
  )
  healing = parser.add_argument_group("of the study healing")
  healing.add_argument("--model", default="", help="the directory of the original model")
  healing.add_argument("--drop-layers", default="", help="layers that the student lacks, such as 20-23")
  healing.add_argument("--bits", type=int, default=0, help="bits that the student's matrices are rounded to, 2 to 8")
  healing.add_argument("--data", default="", help="a file of more prompts to train on, such as GSM8K's train.jsonl")
  args = parser.parse_args()
  if args.study != "healing" and (args.model or args.drop_layers or args.bits or args.data):
    parser.error("--model, --drop-layers, --bits and --data are of the study healing")
  seed_count = args.seeds
  if seed_count is None:
    seed_count = 3 if args.short else 5
  if seed_count < 1:
    parser.error(f"--seeds is {seed_count}; it has to be at least 1")
  study = part(args.study, "arms")
  seeds = [study.FIRST_SEED + i for i in range(seed_count)]
  out = args.out or pathlib.Path("runs") / f"study-{args.study}{'-short' if args.short else ''}"
  cli.quiet()
  with cli.reporting_the_end("stopped; the same command goes on"):
    names = arms(args.study, args.only or ",".join(study.SHORT if args.short else [arm.name for arm in study.ARMS]))
    if args.list:
      for arm in (arm for arm in study.ARMS if arm.name in names):
        print(f"{arm.name}: {arm.label}; " + ", ".join(f"{key}={value}" for key, value in arm.changes.items()))
      return
    changes = None
    if args.study == "healing":
      changes = study.prepare(out, args.model, args.drop_layers, args.bits, args.data)
    (dry_run if args.dry_run else run)(args.study, out, names, seeds, changes)


if __name__ == "__main__":
  main()

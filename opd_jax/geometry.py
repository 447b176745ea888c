"""Which weights did training move? The update W1 - W0 by norm, sparsity, spectrum and subspace, each beside its nulls.

    python -m opd_jax.geometry BEFORE AFTER [--against OTHER] [--out=geometry]

BEFORE, AFTER and OTHER are Hugging Face directories of one architecture, workdirs of opd_jax.train, or built-in models
(builtin:NAME). AFTER and OTHER may also be adapters of BEFORE: PEFT directories, or workdirs with config.lora. --against compares the
coordinates that two runs from the same start have moved.

Every statistic is also computed of two updates without structure, added to the same weights and rounded alike: the update permuted within
each tensor, and a Gaussian one of its norm. Only what is beyond them is more than rounding. --out gets index.html, its pictures and
geometry.json, which has the numbers of every tensor.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from opd_jax.errors import InputError
from opd_jax.runtime import cli

GROUPS = ("coordinates", "spectra", "subspaces", "rotation")
FILE = "geometry.json"


def compare(
  before: str,
  after: str,
  against: str | None = None,
  *,
  steps: Sequence[int | None] = (None, None, None),
  **options: Any,
) -> dict[str, Any]:
  """Compare two models, with a progress bar on standard error.

  Args:
    before, after, against: as on the command line.
    steps: of the checkpoints of those that are workdirs, in that order; None: the last.
    options: `model` of a workdir with several, and fields of analysis.geometry.measure.Options.

  Returns:
    The record of analysis.geometry.compare.compare.

  Raises:
    InputError: what is named is no model, or the models are not of one architecture.
  """
  from rich.console import Console
  from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

  from opd_jax.analysis.geometry import compare as comparison
  from opd_jax.analysis.geometry import sources
  from opd_jax.analysis.geometry.measure import Options

  model = options.pop("model", None)
  first, second, third = steps
  start = sources.open_source(before, step=first, model=model)
  end = sources.open_source(after, before, step=second, model=model)
  other = sources.open_source(against, before, step=third, model=model) if against else None
  pairs = sources.match(start, end, other)
  columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
  with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
    task = bar.add_task("tensors", total=sum(p.size for p in pairs))
    return comparison.compare(
      start, end, other, Options(**options), lambda name, size: bar.update(task, advance=size, description=name)
    )


def write(record: dict[str, Any], out: str | pathlib.Path) -> pathlib.Path:
  """Write geometry.json, the page and its pictures into a directory, and return the page's path.

  Raises:
    InputError: the directory cannot be made or written.
  """
  from opd_jax.reports import geometry

  folder = cli.output_directory(str(out))
  (folder / FILE).write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
  return geometry.write(record, folder)


def main(argv: Sequence[str] | None = None) -> int:
  args = _parser().parse_args(argv)
  cli.quiet()
  with cli.reporting_the_end():
    groups = _checked(args)
    cli.output_directory(args.out)
    from opd_jax.reports import geometry

    record = compare(
      args.before,
      args.after,
      args.against,
      steps=(args.before_step, args.step, args.against_step),
      model=args.model,
      mantissa=args.mantissa,
      exact=args.exact,
      draws=args.draws,
      seed=args.seed,
      groups=groups,
    )
    path = write(record, args.out)
    geometry.show(record)
    print(f"wrote {path} and {path.parent / FILE}")
  return 0


def _checked(args: argparse.Namespace) -> tuple[str, ...]:
  """Refuse numbers that mean nothing, and return the groups that are asked for."""
  if not 1 <= args.mantissa <= 23:
    raise InputError(f"--mantissa={args.mantissa} is no number of fp32's mantissa bits: give 1 to 23; 7 is bfloat16.")
  if args.draws < 0 or args.exact < 0 or args.seed < 0:
    raise InputError("--draws, --exact and --seed are counts: give 0 or more.")
  groups = tuple(filter(None, args.groups.split(",")))
  if unknown := [group for group in groups if group not in GROUPS]:
    raise InputError(f"--groups has {unknown[0]!r}; there are {', '.join(GROUPS)}, divided by commas.")
  return groups


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m opd_jax.geometry", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("before", metavar="BEFORE", help="the model before training")
  add("after", metavar="AFTER", help="the model after it, or an adapter")
  add(
    "--against", metavar="OTHER", help="another model after training, whose moved coordinates are compared with AFTER's"
  )
  add("--out", default="geometry", metavar="DIR", help="where the page, the pictures and geometry.json go (geometry)")
  add("--draws", type=int, default=3, help="draws of each null; their spread says what is beyond it (3)")
  add("--seed", type=int, default=0, help="of the nulls and of randomised spectra (0)")
  add(
    "--mantissa",
    type=int,
    default=7,
    metavar="BITS",
    help="mantissa bits that checkpoints are rounded to (7: bfloat16)",
  )
  add(
    "--exact",
    type=int,
    default=4096,
    metavar="SIDE",
    help="largest shorter side of matrices with an exact spectrum (4096)",
  )
  add("--groups", default=",".join(GROUPS), help="what is measured beside norms and sparsity (%(default)s)")
  add("--step", type=int, help="which checkpoint, where AFTER is a workdir (the last)")
  add("--before-step", type=int, help="likewise of BEFORE")
  add("--against-step", type=int, help="likewise of OTHER")
  add("--model", help="which model of a workdir that has several (student)")
  return parser


if __name__ == "__main__":
  sys.exit(main())

"""Tables and figures from finished, running or interrupted workdirs.

    python -m opd_jax.report DIR... [--out=report] [--target=0.9]

A DIR is a workdir, or a directory that holds some: all runs below it. Runs without evaluations are shown by their curves.
What `python -m opd_jax.view` and log.rollouts left in a workdir is shown token by token.

Runs that differ only in the seed are one *arm*. The baseline is the first arm with the full horizon, or the first of
all. Arms are compared at a matched accuracy that the baseline defines, and every arm is shown with the number of its
runs that got there.
"""

import argparse
import sys
from collections.abc import Sequence

from opd_jax.config import expanded_path
from opd_jax.reports import page, table
from opd_jax.reports.comparison import compare
from opd_jax.reports.runs import below, load
from opd_jax.runtime import cli


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m opd_jax.report", description="Tables and figures from workdirs.")
  parser.add_argument("dirs", nargs="+", metavar="DIR", help="a workdir of opd_jax.train, or a directory above some")
  parser.add_argument("--out", default="report", metavar="DIR", help="where the page and the pictures go (report)")
  parser.add_argument("--target", type=float, help="accuracy at which arms are compared (95%% of the baseline's best)")
  args = parser.parse_args(argv)
  with cli.reporting_the_end(prefix=""):
    for path in (path for name in args.dirs for path in below(expanded_path(name)).empty):
      print(f"left out: {path} has no record of a step yet")
    comparison = compare(load(args.dirs), args.target)
    table.show(comparison)
    path = page.write(comparison, args.out)
  print(f"wrote {path}")
  return 0


if __name__ == "__main__":
  sys.exit(main())

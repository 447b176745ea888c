"""A study's page: every claim with its verdict, then the pictures that they rest on."""

import pathlib
from collections.abc import Iterable

from opd_jax.studies import page
from opd_jax.studies.results import Results
from opd_jax.studies.verdicts import Verdict, decide


def write(claims, sections, out: pathlib.Path, seeds: Iterable[int]) -> tuple[pathlib.Path, list[Verdict]]:
  """Judges every claim and writes OUT/report. Returns the page's path and the verdicts.

  Args:
    claims, sections: the study's modules.
  """
  results = Results(out, seeds)
  verdicts = decide(claims.CLAIMS, results)
  return page.write(sections.TITLE, sections.INTRO, verdicts, sections.sections(results), out / "report"), verdicts

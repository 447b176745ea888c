"""What the study measures of its students beside their accuracy; made once per seed, from the runs' checkpoints."""

import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from etils import epath

from opd_jax import state
from opd_jax.analysis.advantage import variances
from opd_jax.analysis.continuation import continuation
from opd_jax.analysis.panel import Panel
from opd_jax.analysis.position import by_position
from opd_jax.config import Config
from opd_jax.programs import Kept
from opd_jax.studies.arms import Arm
from opd_jax.studies.horizon.arms import TENTH, T
from opd_jax.studies.results import workdir
from opd_jax.studies.run import digest, done, measure
from opd_jax.types import Params

PROBLEMS = 256
EDGES = tuple(range(0, T + 1, 7))
CONTINUED = ("untrained", "topd-10", "opd")
DRIFTING = (
  "untrained",
  "opd",
  "topd-10",
  "topd-10-long",
  "lr4-topd-10",
  "lr4-topd-10-initial",
  "lr4-look",
  "lr4-opd",
)
FROM = 105  # tokens that a row needs to be among those whose advantages are compared


def measure_all(
  arms: Iterable[Arm], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Every analysis whose runs are finished, and which was not made of the same runs before."""
  by_name, kept = {arm.name: arm for arm in arms}, {}
  for seed in seeds:
    of = Students(by_name, seed, out, changes or {}, kept)
    for name, (needed, how) in ANALYSES.items():
      if all(arm == "untrained" or (arm in by_name and done(workdir(out, arm, seed))) for arm in needed):
        measure(out, name, seed, of.digest(needed), lambda how=how, of=of: how(of))


class Students:
  """One seed's students by name, and the panel that reads them."""

  def __init__(self, arms: dict[str, Arm], seed: int, out: pathlib.Path, changes: dict[str, Any], kept: Kept):
    self._arms, self._seed, self._out, self._changes, self._kept = arms, seed, out, changes, kept
    self._panel: Panel | None = None

  @property
  def panel(self) -> Panel:
    if self._panel is None:
      self._panel = Panel(self.config("opd"), PROBLEMS, self._kept)
    return self._panel

  def __call__(self, name: str, step: int | None = None) -> Params:
    """An arm's student after its last step, or after `step`; "untrained" is where all of them began."""
    if name == "untrained":
      return self.panel.untrained()
    c = self.config(name)
    root = epath.Path(workdir(self._out, name, self._seed))
    student = self.panel.inputs.student
    return state.saved_params(c, student.path, student.cfg, self.panel.inputs.mesh, root, step)[0]

  def config(self, name: str) -> Config:
    return self._arms[name].config(self._seed, self._changes)

  def digest(self, names: Iterable[str]) -> str:
    """Of the configs of these students, and of OPD's, which the panel and the untrained student have."""
    return digest(self.config(name) for name in ("opd", *names) if name != "untrained")


def reliability(of: Students) -> dict[str, Any]:
  """By position, of rows that reach the last bin; before, half way through and after OPD.

  `teacher` and `student` are probabilities of the right symbol, means over the `decisive` tokens of a bin, where
  something has to be known; the other quantities are means over all of its `count` tokens.
  """
  steps = of.config("opd").steps
  students = {"0": of("untrained"), "half": of("opd", steps // 2), "last": of("opd", steps)}
  return {"edges": list(EDGES)} | {step: _flat(of.panel, params) for step, params in students.items()}


def _flat(panel: Panel, params: Params) -> dict[str, list]:
  found = by_position(panel.read(params), EDGES)["survivors"]["any"]
  decisive = found["decisive"]
  whole = {name: found[name] for name in ("kl", "teacher_entropy", "student_entropy", "overlap", "off_path")}
  return whole | {
    "teacher": decisive["teacher_right"],
    "student": decisive["student_right"],
    "count": found["count"],
    "decisive": decisive["count"],
  }


def continued(of: Students) -> dict[str, Any]:
  return {name: continuation(of.panel, of(name)) for name in CONTINUED}


def drift(of: Students) -> dict[str, Any]:
  """KL per token, nats, at positions that TOPD 10% sees and at those that it does not."""
  out = {}
  for name in DRIFTING:
    reading = of.panel.read(of(name))
    seen = np.arange(reading.mask.shape[1]) < TENTH
    mean = lambda where, reading=reading: float(np.mean(reading.kl[reading.mask & where], dtype=np.float64))
    out[name] = {"within": mean(seen), "beyond": mean(~seen)}
  return out


def advantage(of: Students) -> dict[str, Any]:
  """How well two laws explain the variance of the sequence-level advantages by position, before training.

  `cubic_variance` and `linear_variance` are their R^2. The first is proposition 1, for which a token's noise grows
  linearly with its position; in the second every token is as noisy.
  """
  found = variances(of.panel.read(of("untrained")), tokens=FROM)
  laws, exponent = found["laws"], found["exponent"]
  of_noise = {"linear": "cubic_variance", "constant": "linear_variance"}
  fits = {variance: laws[noise]["r2"] for noise, variance in of_noise.items()}
  return fits | {"exponent": math.nan if exponent is None else exponent}


ANALYSES: dict[str, tuple[tuple[str, ...], Callable[[Students], dict[str, Any]]]] = {
  "advantage": (("untrained",), advantage),
  "reliability": (("opd",), reliability),
  "continuation": (CONTINUED, continued),
  "drift": (DRIFTING, drift),
}

"""What the study measures of its students beside their accuracy; computed once per seed, from the runs' checkpoints."""

import functools
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from etils import epath

from opd_jax import inputs
from opd_jax.analysis.advantage_variance import variances
from opd_jax.analysis.continuation import continuation
from opd_jax.analysis.measurements import Measurements
from opd_jax.analysis.panel import Panel
from opd_jax.analysis.position import by_position
from opd_jax.config import Config
from opd_jax.recipes import base as recipes
from opd_jax.runtime.programs import ProgramCache
from opd_jax.studies.arm_spec import ArmSpec
from opd_jax.studies.horizon.arms import TENTH, T
from opd_jax.studies.results import workdir
from opd_jax.studies.run import digest, done, measure
from opd_jax.studies.students import accuracies as student_accuracies
from opd_jax.studies.students import load as load_student
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
TEMPERATURES = (1.0, 0.7, 0.5, 0.0)
FROM = 105  # tokens that a row needs to be among those whose advantages are compared


def measure_all(
  arms: Iterable[ArmSpec], seeds: Iterable[int], out: pathlib.Path, changes: dict[str, Any] | None = None
) -> None:
  """Compute every analysis whose runs are finished, unless it was made of the same runs before.

  Args:
    out: the study's directory.
    changes: to the config of every arm.
  """
  by_name = {arm.name: arm for arm in arms}
  program_cache: ProgramCache = {}
  for seed in seeds:
    students = Students(by_name, seed, out, changes or {}, program_cache)
    for name, (needed, compute) in ANALYSES.items():
      if all(students.available(arm) for arm in needed):
        measure(out, name, seed, students.digest(needed), functools.partial(compute, students))


class Students:
  """One seed's students by name, and the panel that they are measured on."""

  def __init__(
    self, arms: dict[str, ArmSpec], seed: int, out: pathlib.Path, changes: dict[str, Any], program_cache: ProgramCache
  ):
    self._arms, self._seed = arms, seed
    self._out, self._changes = out, changes
    self._program_cache = program_cache

  @functools.cached_property
  def panel(self) -> Panel:
    """The held-out problems of this seed's runs."""
    return Panel(self.config("opd"), PROBLEMS, self._program_cache)

  def available(self, name: str) -> bool:
    """Tell whether a student is there: that of a finished run, or the untrained one."""
    return name == "untrained" or (name in self._arms and done(workdir(self._out, name, self._seed)))

  def params(self, name: str, step: int | None = None) -> Params:
    """Load an arm's student after its last step, or after `step`; "untrained" is where all of them began."""
    if name == "untrained":
      return self.panel.untrained()
    config = self.config(name)
    root = epath.Path(workdir(self._out, name, self._seed))
    recipe = recipes.make(inputs.load_student(config, self.panel.inputs.mesh))
    return recipes.saved_models(recipe, root, step)[0]["student"]

  def config(self, name: str) -> Config:
    """The config of an arm's run."""
    return self._arms[name].config(self._seed, self._changes)

  def digest(self, names: Iterable[str]) -> str:
    """Hash the configs of these students, and OPD's, which the panel and the untrained student have."""
    return digest(self.config(name) for name in ("opd", *names) if name != "untrained")


def reliability(students: Students) -> dict[str, Any]:
  """Measure OPD's student by position before, half way through and after training, on rows that reach the last bin.

  `teacher` and `student` are probabilities of the right symbol, means over the `decisive` tokens of a bin, where
  something has to be known; the other quantities are means over all of its `count` tokens.
  """
  steps = students.config("opd").steps
  by_step = {
    "0": students.params("untrained"),
    "half": students.params("opd", steps // 2),
    "last": students.params("opd", steps),
  }
  return {"edges": list(EDGES)} | {step: _survivors_by_position(students.panel, p) for step, p in by_step.items()}


def _survivors_by_position(panel: Panel, params: Params) -> dict[str, list]:
  found = by_position(panel.measure(params), EDGES)["survivors"]["any"]
  decisive = found["decisive"]
  names = ("kl", "teacher_entropy", "student_entropy", "overlap", "off_path")
  return {name: found[name] for name in names} | {
    "teacher": decisive["teacher_right"],
    "student": decisive["student_right"],
    "count": found["count"],
    "decisive": decisive["count"],
  }


def continued(students: Students) -> dict[str, Any]:
  """Measure the accuracy of some students behind a beginning by the teacher, by its share of the response."""
  return {name: continuation(students.panel, students.params(name)) for name in CONTINUED}


def drift(students: Students) -> dict[str, Any]:
  """Measure the KL per token, nats, "within" the positions that TOPD 10% trains and "beyond" them."""
  return {name: _drift(students.panel.measure(students.params(name))) for name in DRIFTING}


def _drift(measured: Measurements) -> dict[str, float]:
  within = np.arange(measured.mask.shape[1]) < TENTH
  parts = {"within": measured.mask & within, "beyond": measured.mask & ~within}
  return {name: float(np.mean(measured.kl[part], dtype=np.float64)) for name, part in parts.items()}


def advantage(students: Students) -> dict[str, Any]:
  """Measure how well two laws explain the variance of the sequence-level advantages by position, before training.

  `cubic_variance` and `linear_variance` are their R^2. The first is proposition 1, for which a token's noise grows
  linearly with its position; in the second every token is as noisy.
  """
  found = variances(students.panel.measure(students.params("untrained")), tokens=FROM)
  laws, exponent = found["laws"], found["exponent"]
  return {
    "cubic_variance": laws["linear"]["r2"],  # of noise that grows linearly
    "linear_variance": laws["constant"]["r2"],
    "exponent": math.nan if exponent is None else exponent,
  }


def untrained(students: Students) -> dict[str, Any]:
  """Measure the accuracy before training by task, "chain" and "phase", and by temperature, "0" for greedy answers."""
  return {task: _by_temperature(students.config(arm)) for task, arm in (("chain", "opd"), ("phase", "phase-opd"))}


def _by_temperature(config: Config) -> dict[str, float]:
  asked = {"eval.prompts": 2 * PROBLEMS, "eval.batch": 2 * PROBLEMS}
  found = student_accuracies(load_student(config, None), TEMPERATURES, asked, {})
  return {f"{temperature:g}": accuracy for temperature, accuracy in found.items()}


ANALYSES: dict[str, tuple[tuple[str, ...], Callable[[Students], dict[str, Any]]]] = {
  "advantage": (("untrained",), advantage),
  "untrained": (("untrained",), untrained),
  "reliability": (("opd",), reliability),
  "continuation": (CONTINUED, continued),
  "drift": (DRIFTING, drift),
}

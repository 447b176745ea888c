"""What a study trains: one arm is one config with several seeds."""

from typing import Any, NamedTuple

from opd_jax import config as configs
from opd_jax.config import Config

UNTRAINED = "untrained"  # the student before training
# OPD's null, after arXiv:2608.31046: the rarest fifth of a response's tokens become rarer, whatever a teacher says.
NULL: dict[str, Any] = {
  "objective.support": "sampled",
  "objective.kind": "suppress",
  "objective.advantage": -0.5,
  "weights.kind": "rare",
  "weights.fraction": 0.2,
}


class ArmSpec(NamedTuple):
  """The config of runs that differ in the seed alone.

  Attributes:
    name: of the directory of its runs.
    label: what the page calls it.
    changes: to the config of `method`, after the study's own in `base`; dotted keys.
    method: names configs/METHOD.py.
    mask_from: the arm whose run of the same seed is `subnetwork.mask_from`; it is trained before; "": none.
    keeps: keys that what a study changes in every arm does not change in this one.
  """

  name: str
  label: str
  changes: dict[str, Any]
  base: dict[str, Any]
  method: str = "opd"
  mask_from: str = ""
  keeps: tuple[str, ...] = ()

  def config(self, seed: int, changes: dict[str, Any] | None = None) -> Config:
    """The config of one run; `changes` come last."""
    last = {key: value for key, value in (changes or {}).items() if key not in self.keeps}
    return configs.override(configs.load(self.method), self.base | self.changes | {"seed": seed} | last)

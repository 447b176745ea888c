"""What a study trains."""

from typing import Any, NamedTuple

from opd_jax import config as configs
from opd_jax.config import Config


class Arm(NamedTuple):
  """Runs that differ in the seed alone.

  Attributes:
    changes: to the config of `method`, after the study's own in `base`.
  """

  name: str
  label: str
  changes: dict[str, Any]
  base: dict[str, Any]
  method: str = "opd"

  def config(self, seed: int, changes: dict[str, Any] | None = None) -> Config:
    return configs.override(configs.load(self.method), self.base | self.changes | {"seed": seed} | (changes or {}))

"""On-policy distillation in JAX: the student generates, and the teacher scores every token.

What a notebook or a script needs is here by name; `opd_jax/docs/quickstart.ipynb` uses all of it:

    load_config, train, read_metrics             a run: its config, the training, the records of its workdir
    load_model, generate, evaluate, export       a model: its weights, its responses, its accuracy, its directory
    score, token_divergence                      what student and teacher make of every token of a response
    InputError                                   what a wrong input raises

A name loads its module when it is first used, so this import is cheap and leaves JAX alone.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from opd_jax.runtime.version import __version__ as __version__

if TYPE_CHECKING:
  from opd_jax.analysis.accuracy import evaluate
  from opd_jax.analysis.exporting import export
  from opd_jax.analysis.loaded import load_model
  from opd_jax.analysis.notebook import generate, load_config, read_metrics
  from opd_jax.analysis.score import score, token_divergence
  from opd_jax.analysis.trained import train
  from opd_jax.errors import InputError

_MODULES = {
  "InputError": "opd_jax.errors",
  "evaluate": "opd_jax.analysis.accuracy",
  "export": "opd_jax.analysis.exporting",
  "generate": "opd_jax.analysis.notebook",
  "load_config": "opd_jax.analysis.notebook",
  "load_model": "opd_jax.analysis.loaded",
  "read_metrics": "opd_jax.analysis.notebook",
  "score": "opd_jax.analysis.score",
  "token_divergence": "opd_jax.analysis.score",
  "train": "opd_jax.analysis.trained",
}
__all__ = [
  "InputError",
  "evaluate",
  "export",
  "generate",
  "load_config",
  "load_model",
  "read_metrics",
  "score",
  "token_divergence",
  "train",
]


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
  """Keeps the functions `train`, `evaluate` and `export` where the modules of the commands, of the same names, are imported.

  Python binds an imported submodule in its package; these are reached by `python -m` and importlib.import_module.
  """

  def __setattr__(self, name: str, value: Any) -> None:
    if not (name in _MODULES and isinstance(value, types.ModuleType)):
      super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

"""On-policy distillation in JAX: the student generates, and the teacher scores every token.

What a notebook or a script needs is here by name; `opd_jax/docs/quickstart.ipynb` uses all of it:

    load_config, train, read_metrics             a run: its config, the training, the records of its workdir
    load_model, generate, evaluate               a model: its weights, its responses, its accuracy
    token_divergence                             how far student and teacher are apart at every token of a response
    InputError                                   what a wrong input raises

A name loads its module when it is first used, so this import is cheap and leaves JAX alone.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from opd_jax.runtime.version import __version__ as __version__

if TYPE_CHECKING:
  from opd_jax.analysis.notebook import evaluate, generate, load_config, load_model, read_metrics, token_divergence
  from opd_jax.errors import InputError
  from opd_jax.trainer import train

__all__ = [
  "InputError",
  "evaluate",
  "generate",
  "load_config",
  "load_model",
  "read_metrics",
  "token_divergence",
  "train",
]

_MODULES = dict.fromkeys(__all__, "opd_jax.analysis.notebook")
_MODULES |= {"InputError": "opd_jax.errors", "train": "opd_jax.trainer"}


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
  """Keeps the functions `train` and `evaluate` where the modules of the commands, of the same names, are imported.

  Python binds an imported submodule in its package; these two are reached by `python -m` and importlib.import_module.
  """

  def __setattr__(self, name: str, value: Any) -> None:
    if not (name in _MODULES and isinstance(value, types.ModuleType)):
      super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

"""Which libtpu is installed, and which one the installed jax was made with."""

import importlib.metadata

from packaging.requirements import Requirement


def version() -> str | None:
  """Returns the version of libtpu; None where it is not installed."""
  try:
    return importlib.metadata.version("libtpu")
  except importlib.metadata.PackageNotFoundError:
    return None


def mismatch() -> str:
  """Says that libtpu is another one than jax's extra "tpu" asks for; "" where it is that one, or there is none."""
  found = version()
  if found is None:
    return ""
  for requirement in map(Requirement, importlib.metadata.requires("jax") or ()):
    wanted = requirement.name == "libtpu" and requirement.marker and requirement.marker.evaluate({"extra": "tpu"})
    if wanted and not requirement.specifier.contains(found, prereleases=True):
      jax = importlib.metadata.version("jax")
      return (
        f"libtpu {found} is installed, and jax {jax} was made with libtpu{requirement.specifier}: programs may be refused, or "
        f'be others than on a TPU; pip install "jax[tpu]=={jax}"'
      )
  return ""

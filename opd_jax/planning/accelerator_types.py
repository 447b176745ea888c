"""Names of accelerator types, such as gcloud and `tpu_scripts/create.sh --type` take them, as topologies.

v5litepod-8 and v6e-8 are 8 chips; v4-8 and v5p-8 are 8 TensorCores, two on each of 4 chips. Sources: the per-version pages of the
Cloud TPU documentation for the slices of v5e and v6e; "TPU types and topologies" there for v4 and v5p, whose default shape for
a number of chips is the one most like a cube, with sides of at most 4 or of multiples of 4.
"""

import re

from opd_jax.errors import InputError

EXAMPLES = "v5litepod-8, v6e-32, v5p-128 or v4-64"
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}  # by chips
VERSIONS = {"v5litepod": "v5e", "v5e": "v5e", "v6e": "v6e", "v5p": "v5p", "v4": "v4"}
CORES = {"v4": 2, "v5p": 2}  # of a chip, where types count them
LARGEST = {"v4": 4096, "v5p": 8960}  # chips of a pod


def topology(name: str) -> str:
  """Returns VERSION:AxB of an accelerator type, and any other name as it is.

  Raises:
    InputError: there is no slice of that many chips.
  """
  found = re.fullmatch(r"(v\d\w*)-(\d{1,6})", name)
  version = VERSIONS.get(found[1]) if found else None
  if not found or version is None:
    return name
  chips, rest = divmod(int(found[2]), CORES.get(version, 1))
  if version in CORES:
    shape = None if rest else _cube(chips, LARGEST[version])
    if shape is None:
      raise InputError(
        f"--topology={name} is no slice of {version}: the number counts TensorCores, two on a chip, and begins with 8; write "
        f"the topology, such as {version}:4x4x4 for {version}-128."
      )
    return f"{version}:{shape}"
  if chips not in FLAT:
    raise InputError(
      f"--topology={name} is no slice of {version}: the number counts chips, and can be {', '.join(map(str, FLAT))}."
    )
  return f"{version}:{FLAT[chips]}"


def _cube(chips: int, largest: int) -> str | None:
  """The shape of so many chips that is most like a cube; None where there is none."""
  if chips == 4:
    return "2x2x1"
  sides = [s for s in range(2, 25) if s <= 4 or s % 4 == 0]
  shapes = [(a, b, chips // (a * b)) for a in sides for b in sides if chips % (a * b) == 0]
  fitting = [shape for shape in shapes if shape[0] <= shape[1] <= shape[2] and shape[2] in sides]
  if not fitting or chips > largest:
    return None
  return "x".join(map(str, min(fitting, key=lambda shape: shape[2] / shape[0])))

"""What accelerators can do per chip, as published: dense bfloat16, and bytes per second of memory and links.

An estimate from these is a bound that nobody reaches. A link rate is that of one ring of collectives: both directions
of one axis of a TPU's torus, or the sending direction of a GPU's NVLink.

Sources: the per-version pages of the Cloud TPU documentation for FLOPs and memory (v4, v5e, v5p, v6e, TPU7x); "How to
Scale Your Model" (the JAX scaling book), part 2, for what a torus axis carries, PCIe and the data-centre network;
NVIDIA's data sheets of the A100 80GB SXM, H100 SXM and H200 SXM (dense, without sparsity).
"""

import dataclasses
from types import SimpleNamespace

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip's published rates, or those of one of its devices where it has several.

  Attributes:
    kinds: what JAX calls it (`device_kind`), every name.
    flops: bfloat16 FLOPs per second.
    capacity: bytes of memory.
    memory: bytes per second of it.
    link: bytes per second that a device sends in a ring; 0 where there is nothing to send over.
    host: bytes per second to the host's memory.
    network: bytes per second to other slices or nodes.
    devices: that JAX shows for one chip. All numbers here are of one device.
    source: where the numbers are from.
  """

  name: str
  kinds: tuple[str, ...]
  flops: float
  capacity: float
  memory: float
  link: float
  host: float
  network: float
  devices: int = 1
  source: str = ""

  @property
  def matrix(self):
    """The rate of matrix products in the form of `runtime.machine.Machine`, for `roofline.seconds`."""
    return SimpleNamespace(best=self.flops)

  def bandwidth(self, size: float) -> float:
    """Return the bytes per second at which an array of any size is read: from memory, not from a cache."""
    return self.memory


TPU_PAGE = "Cloud TPU documentation, {}; links, PCIe and network: How to Scale Your Model, part 2"
DATA_SHEET = "NVIDIA {} data sheet; NVLink in one direction, PCIe and one network port of 400 or 200 Gbit/s"

CHIPS = (
  Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 1.2e12, 9e10, 1.6e10, 6.25e9, source=TPU_PAGE.format("TPU v4")),
  Chip(
    "v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16e9, 819e9, 9e10, 1.6e10, 3.125e9, source=TPU_PAGE.format("TPU v5e")
  ),
  Chip(
    "v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2.765e12, 1.8e11, 1.6e10, 6.25e9, source=TPU_PAGE.format("TPU v5p")
  ),
  Chip(
    "v6e",
    ("TPU v6 lite", "TPU v6e"),
    918e12,
    32e9,
    1.638e12,
    1.8e11,
    3.2e10,
    1.25e10,
    source=TPU_PAGE.format("TPU v6e"),
  ),
  Chip(
    "tpu7x",
    ("TPU7x", "TPU v7", "TPU v7x"),
    2307e12 / 2,
    192 * GIB / 2,
    7.38e12 / 2,
    1.8e11 / 2,
    1.6e10 / 2,
    1.25e10 / 2,
    devices=2,
    source=TPU_PAGE.format("TPU7x (Ironwood)") + "; a chip is two devices, each with half",
  ),
  Chip(
    "A100",
    ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-40GB"),
    312e12,
    80e9,
    2.039e12,
    3e11,
    3.2e10,
    2.5e10,
    source=DATA_SHEET.format("A100 80GB SXM"),
  ),
  Chip(
    "H100",
    ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100"),
    989e12,
    80e9,
    3.35e12,
    4.5e11,
    6.4e10,
    5e10,
    source=DATA_SHEET.format("H100 SXM"),
  ),
  Chip("H200", ("NVIDIA H200",), 989e12, 141e9, 4.8e12, 4.5e11, 6.4e10, 5e10, source=DATA_SHEET.format("H200 SXM")),
)


def by_device_kind(kind: str) -> Chip | None:
  """The chip that JAX names so, or None; by the longest name that `kind` begins with, since some begin alike."""
  names = {name: chip for chip in CHIPS for name in chip.kinds if kind.startswith(name)}
  return names[max(names, key=len)] if names else None


def by_name(name: str) -> Chip | None:
  """The chip of this name in CHIPS, such as "v5e", or None."""
  return next((chip for chip in CHIPS if chip.name == name), None)

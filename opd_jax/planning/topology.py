"""The devices to compile for: of a TPU topology that need not be here, or those of this machine.

A TPU topology is described by libtpu, which is a wheel that runs anywhere Linux does; no TPU is touched.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from opd_jax.errors import InputError
from opd_jax.planning import accelerator_types, chips
from opd_jax.planning.chips import Chip

LOCAL = "local"
EXAMPLES = "v5e:4x4, v5e:16x16, v6e:16x16, v5p:4x4x4, v5p:16x16x16, v4:4x4x4 or tpu7x:2x2x1"
ENVIRONMENT = {  # read by libtpu when it is loaded: no machine to ask, and no chips to look for
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "TPU_MIN_LOG_LEVEL": "4",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nobody owns chips here, so several plans may run beside each other
}
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
MEGACORE = ("v4",)  # two cores of a chip are one device, which libtpu has to be told


@dataclasses.dataclass(frozen=True)
class Target:
  """The devices to compile for, and their rates.

  Attributes:
    name: of --topology, with the number of slices where there are several.
    chip: rates of one device; measured on the spot where they are not published.
    capacity: bytes of memory that the compiler grants a device.
    slices: how many, joined by the data-centre network.
  """

  name: str
  devices: tuple[Any, ...]
  chip: Chip
  capacity: int
  slices: int = 1

  @property
  def chips(self) -> int:
    return len(self.devices) // self.chip.devices

  @property
  def local(self) -> bool:
    return self.name == LOCAL


def get(name: str, slices: int = 1) -> Target:
  """Gives the devices of a topology such as "v5e:4x4", or of this machine for "local".

  Raises:
    InputError: where libtpu is missing, or the name is none that it knows.
  """
  if name == LOCAL:
    return _this_machine()
  name = accelerator_types.topology(name)
  if not re.fullmatch(r"[a-z0-9]+:\d+x\d+(x\d+)?", name):
    raise InputError(
      f"--topology={name} is not written as VERSION:AxB or VERSION:AxBxC, such as {EXAMPLES}, and "
      f"is no accelerator type such as {accelerator_types.EXAMPLES}."
    )
  if importlib.util.find_spec("libtpu") is None:
    raise InputError(
      f'--topology={name} is compiled for with libtpu, which is not installed; pip install "jax[tpu]" (Linux, no '
      "TPU needed), or leave --topology out to plan for the devices of this machine."
    )
  version, _, shape = name.partition(":")
  chip = chips.by_name(version)
  if chip is None:
    known = ", ".join(c.name for c in chips.CHIPS if c.kinds[0].startswith("TPU"))
    raise InputError(f"--topology={name} names the TPU {version!r}; those with published rates here are {known}.")
  sizes = [int(n) for n in shape.split("x")]
  options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if version in MEGACORE:
    options["chip_config_name"] = "megacore"
  if math.prod(sizes) == 1:
    options["chips_per_host_bounds"] = (1, 1, 1)
  configure_libtpu()
  from jax.experimental import topologies

  try:
    devices = tuple(topologies.get_topology_desc(name, "tpu", **options).devices)
  except Exception as e:  # of the plugin, and of several kinds
    reason = " ".join(str(e).split()).removeprefix("INVALID_ARGUMENT: ")
    raise InputError(f"--topology={name} is none that libtpu knows ({reason[:160]}); examples: {EXAMPLES}.") from None
  title = f"{name} x {slices} slices" if slices > 1 else name
  return Target(title, devices, chip, memory_limit(devices) or int(chip.capacity), slices)


def configure_libtpu() -> None:
  """Sets the environment in which libtpu loads on a machine without a TPU; call it before JAX asks for any device."""
  for key, value in ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  if not os.environ.get("JAX_PLATFORMS") and not jax.config.values.get("jax_platforms"):
    jax.config.update("jax_platforms", "cpu")  # otherwise the installed libtpu is asked for chips


def memory_limit(devices: Sequence[Any]) -> int | None:
  """Return the bytes of memory that the compiler grants a program, less than the chip has; None where it is not known.

  The compiler's refusal of a program that no chip can hold states it.
  """
  side = 2**20
  sharding = jax.sharding.SingleDeviceSharding(devices[0])
  too_large = jax.ShapeDtypeStruct((side, side), jnp.float32, sharding=sharding)
  try:
    jax.jit(lambda x: jnp.sum(jnp.cumsum(jnp.sin(x) @ x, axis=0))).lower(too_large).compile()
  except Exception as e:
    found = re.search(r"available HBM \(([\d.]+)([KMGT])\)", str(e))
    return int(float(found[1]) * UNITS[found[2]]) if found else None
  return None


def _this_machine() -> Target:
  devices = tuple(jax.devices())
  kind = devices[0].device_kind
  chip = chips.by_device_kind(kind)
  limit = (devices[0].memory_stats() or {}).get("bytes_limit") if devices[0].platform != "cpu" else None
  if chip is None:
    from opd_jax.runtime import machine

    measured = machine.measure(jnp.dtype(jnp.float32), 2, small=True)
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    capacity = limit or host_bytes // len(devices)
    rate = measured.bandwidth(1e9)
    source = "measured on this machine in a second, see python -m opd_jax.bench for better"
    chip = Chip(kind, (kind,), measured.matrix.best, capacity, rate, 0.0, rate, 0.0, source=source)
  return Target(LOCAL, devices, chip, int(limit or chip.capacity))

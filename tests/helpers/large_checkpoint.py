"""Loads one eighth of a 16 GB checkpoint that takes no disk, and measures the host memory beyond the arrays themselves.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.helpers.large_checkpoint DIRECTORY

The process stands for one of eight hosts with a device each: only the first of the eight fake devices is its own. Measured is
anonymous memory (RssAnon of /proc/self/status) every 5 ms: what the process made, arrays included. Pages of the mapped files
are left out, since the kernel takes them back whenever it wants their memory. Prints one JSON object; sizes in bytes.
"""

import json
import math
import pathlib
import sys
import threading
import time

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from opd_jax.models import architectures, hf, hf_config, model_sharding, safetensors_io, tensor_places
from opd_jax.runtime import mesh as meshes


def write_sparse(directory: pathlib.Path) -> int:
  """Write Llama-3.1-8B with zeros for weights, as holes of its files; returns the bytes that it seems to have."""
  config = architectures.config("Llama-3.1-8B")
  directory.mkdir()
  (directory / "config.json").write_text(json.dumps(config))
  (directory / "tokenizer.json").write_text("{}")
  shapes = {}
  for leaf in jax.tree.leaves(tensor_places.parameter_leaves(hf_config.read(directory))):
    shapes |= leaf.tensors()
  header = safetensors_io.make_header(shapes, "BF16")
  size = len(header) + 2 * sum(map(math.prod, shapes.values()))
  with (directory / safetensors_io.FILE).open("wb") as f:
    f.write(header)
    f.truncate(size)
  return size


def anonymous() -> int:
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("RssAnon:"):
      return 1024 * int(line.split()[1])
  raise OSError("no RssAnon in /proc/self/status")


class Peak(threading.Thread):
  """The largest anonymous memory while it runs."""

  def __init__(self):
    super().__init__(daemon=True)
    self.value, self._stop_asked = 0, threading.Event()

  def run(self):
    while not self._stop_asked.is_set():
      self.value = max(self.value, anonymous())
      time.sleep(0.005)

  def end(self) -> int:
    self._stop_asked.set()
    self.join()
    return max(self.value, anonymous())


def main() -> None:
  directory = pathlib.Path(sys.argv[1])
  size = write_sparse(directory)
  hf.check_directory(directory)
  mesh = meshes.make(data=1, tensor=8)
  whole, own = NamedSharding.addressable_devices_indices_map, jax.devices()[0]
  setattr(NamedSharding, "addressable_devices_indices_map", lambda self, shape: {own: whole(self, shape)[own]})  # noqa: B010
  setattr(jax, "make_array_from_single_device_arrays", lambda shape, sharding, arrays: arrays[0])  # noqa: B010
  jax.block_until_ready(jnp.zeros(1024) + 1)
  before, began, peak = anonymous(), time.monotonic(), Peak()
  peak.start()
  params = hf.load(directory, None, model_sharding.parameter_shardings(mesh, hf_config.read(directory)), jnp.bfloat16)
  arrays = sum(a.nbytes for a in jax.tree.leaves(params))
  beyond = peak.end() - before - arrays
  print(json.dumps({"file": size, "arrays": arrays, "beyond": beyond, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
  main()

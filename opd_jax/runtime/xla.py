"""Settings of XLA for accelerators, in one place. They are read when JAX starts, and the user's environment says more.

A flag that XLA_FLAGS names already keeps the user's value; OPD_JAX_XLA=off leaves everything as it is. What stands here
is what XLA's and JAX's own guides advise; none of it has been measured by this project yet, on any accelerator.
"""

import os
import pathlib
import shutil

GPU_FLAGS = {
  # Collectives of an FSDP layer run beside the products of another one. https://docs.jax.dev/en/latest/gpu_performance_tips.html
  "xla_gpu_enable_latency_hiding_scheduler": "true",
}
GPU_ENVIRONMENT = {
  "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",  # of the GPU's memory for JAX; its own default is 0.75
}


def configure() -> None:
  """Sets what the environment leaves open; before the first import of JAX."""
  if os.environ.get("OPD_JAX_XLA") == "off" or not has_gpu() or os.environ.get("JAX_PLATFORMS") == "cpu":
    return
  given = os.environ.get("XLA_FLAGS", "")
  own = [f"--{name}={value}" for name, value in GPU_FLAGS.items() if f"--{name}" not in given]
  os.environ["XLA_FLAGS"] = " ".join([*own, *given.split()])
  for name, value in GPU_ENVIRONMENT.items():
    os.environ.setdefault(name, value)


def has_gpu() -> bool:
  """Tells whether this machine has an NVIDIA GPU."""
  return any(pathlib.Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None

"""What has to be known and done before JAX is there: whether this is one process of several, and who watches over it."""

import contextlib
import importlib.util
import os
import pathlib
import signal
import sys
from collections.abc import Iterator

from opd_jax.errors import RESUME


def clustered() -> bool:
  """Tells whether the environment looks like one process of several, which costs nothing to ask."""
  getenv = os.environ.get
  slurm = {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID"} <= os.environ.keys() and getenv("SLURM_NTASKS", "1") != "1"
  mpi = getenv("OMPI_COMM_WORLD_SIZE", "1") != "1"
  kubernetes = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
  return slurm or mpi or kubernetes or "JAX_COORDINATOR_ADDRESS" in os.environ or on_tpu()


def on_tpu() -> bool:
  """Tells whether this machine has TPU chips: older ones are /dev/accel0 ..., newer ones come through vfio."""
  if "TPU_WORKER_HOSTNAMES" in os.environ or any(pathlib.Path("/dev").glob("accel[0-9]*")):
    return True
  return any(pathlib.Path("/dev/vfio").glob("[0-9]*")) and importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def supervised(wanted: bool) -> Iterator[None]:
  """Runs the body in a child process, whose violent end becomes a sentence and a status that a launcher understands.

  JAX aborts a process whose coordinator is gone; nothing inside that process can say why. Signals are passed on.
  Has to come before the first use of JAX, since a process with threads cannot be forked.
  """
  if not wanted or not hasattr(os, "fork"):
    yield
    return
  child = os.fork()
  if not child:
    yield
    return
  for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, name), lambda number, _: os.kill(child, number))
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
  while True:
    with contextlib.suppress(InterruptedError):
      _, status = os.waitpid(child, 0)
      break
  code = os.waitstatus_to_exitcode(status)
  if code == -signal.SIGABRT:
    sys.stderr.write(
      "\nerror: JAX ended this process, most likely because another process of the run, or its coordinator, is gone (the "
      "lines above say what it saw); the same command, on all of them, goes on from the last checkpoint\n"
    )
    code = RESUME
  elif code < 0:
    sys.stderr.write(f"\nerror: this process was ended by {signal.Signals(-code).name}\n")
    code = 128 - code
  sys.stderr.flush()
  os._exit(code)

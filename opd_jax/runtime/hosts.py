"""Several processes as one run: how they find each other, what each of them holds, and how they leave together.

On a TPU slice, under Slurm or Open MPI, one process runs on every host (or device), all with the same command, and finds
the others by itself; elsewhere --coordinator, --processes and --process say it. A single process is the same code, in
which every question of this file has the obvious answer.

    start      joins the processes; before any other use of JAX
    to_global  host arrays -> one global array, of which a process makes the rows that its devices hold
    local_rows, all_gather_to_host          a global array's rows on this host, and all of it on every host
    assert_same_on_all_hosts, any_on_hosts  what has to be the same everywhere is; a flag of any process
    Watch      a process that falls silent is noticed, and the others leave with a sentence instead of a hang
    PreemptionWatcher                       SIGTERM and maintenance notices, obeyed by all before the same step
"""

import contextlib
import hashlib
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int

from opd_jax.errors import INTERRUPTED, RESUME, InputError, StopRequested
from opd_jax.runtime.supervise import clustered, on_tpu

SILENCE = 30.0  # seconds without a sign of life after which a process counts as lost
BEATS = 10  # signs of life in that time
METADATA = "http://{}/computeMetadata/v1/instance/{}?wait_for_change={}&timeout_sec=60"
NOTICES = {"maintenance-event": "TERMINATE", "preempted": "TRUE"}  # of Google's metadata server: what begins an end

_watch: "Watch | None" = None


def start(
  coordinator: str | None = None, processes: int | None = None, process: int | None = None, silence: float = SILENCE
) -> None:
  """Joins this process with the others of the run; does nothing where it is alone.

  Args:
    coordinator: HOST:PORT on the machine of process 0; None: found by itself on TPU slices, Slurm, Open MPI and
      Kubernetes.
    silence: seconds after which a process without a sign of life counts as lost.

  Raises:
    InputError: some of the three, but not all, or the coordinator cannot be reached.
    StopRequested: the others of a cluster did not come in time.
  """
  global _watch
  given = (coordinator, processes, process)
  if any(g is not None for g in given):
    if coordinator is None or processes is None or process is None:
      raise InputError(
        "Give --coordinator=HOST:PORT, --processes=N and --process=I together, the last one from 0 to N-1, or none of "
        "them where the cluster says it (TPU slices, Slurm, Open MPI)."
      )
    if not 0 <= process < processes or ":" not in coordinator:
      raise InputError(
        f"--coordinator={coordinator} --processes={processes} --process={process}: the coordinator is HOST:PORT, and the "
        "process is one of 0 to N-1."
      )
    if processes == 1:
      return
  elif not clustered():
    return
  try:
    jax.distributed.initialize(coordinator, processes, process)
  except ValueError as e:
    if coordinator is None and "coordinator_address" in str(e):
      return  # a cluster's environment without a cluster, such as a shell inside an allocation
    raise InputError(f"The processes cannot find each other: {e}.") from None
  except RuntimeError as e:
    reason = f"the processes cannot reach each other ({str(e).splitlines()[0]})"
    # Where a cluster starts them, the others may only be late.
    raise (StopRequested(reason) if coordinator is None else InputError(f"{reason[0].upper()}{reason[1:]}.")) from None
  if jax.process_count() > 1:
    _watch = Watch(silence)


def several() -> bool:
  """Tells whether the run has several processes."""
  return jax.process_count() > 1


def joined() -> bool:
  """Tells whether this process has joined others, and not finished."""
  return _watch is not None


def first() -> bool:
  """Tells whether this is the process that writes what is written once."""
  return jax.process_index() == 0


def to_global(tree, sharding: jax.sharding.Sharding, rows: Int[np.ndarray, " b"] | None = None, total: int = 0):
  """Makes global arrays of host arrays, of which this process makes what its devices hold.

  Args:
    rows: rising; which of `total` rows the arrays of this process have. None: they have all.
  """

  def convert(a: np.ndarray) -> jax.Array:
    a = np.asarray(a)
    shape = a.shape if rows is None else (total, *a.shape[1:])

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
      if rows is None or not index:
        return a[index or ()]
      first, last, _ = index[0].indices(total)
      at = np.searchsorted(rows, [first, last])
      return a[(slice(*at), *index[1:])]

    return jax.make_array_from_callback(shape, sharding, part)

  return jax.tree.map(convert, tree)


def rows_of(sharding: jax.sharding.Sharding, total: int) -> Int[np.ndarray, " b"]:
  """Lists which of `total` rows of an array this process's devices hold, rising."""
  parts = sharding.addressable_devices_indices_map((total,)).values()
  return np.unique(np.concatenate([np.arange(total)[index] for index in parts]))  # pyright: ignore[reportCallIssue]


def local_rows(tree):
  """Returns the rows of global arrays that this process holds, as host arrays in the order of `rows_of`."""

  def convert(a: jax.Array) -> np.ndarray:
    if a.is_fully_addressable:
      return np.asarray(a)
    parts = {part.index[0].indices(a.shape[0])[0]: part for part in a.addressable_shards}  # rows whole in each
    return np.concatenate([np.asarray(parts[first].data) for first in sorted(parts)])

  return jax.tree.map(convert, tree)


def all_gather_to_host(tree):
  """Gathers global arrays into host arrays, the same on every process."""
  if not several():
    return jax.device_get(tree)

  def gather(a: jax.Array) -> np.ndarray:
    return np.asarray(a) if a.is_fully_replicated else multihost_utils.process_allgather(a, tiled=True)

  return jax.tree.map(gather, tree)


def any_on_hosts(flags: np.ndarray) -> np.ndarray:
  """Combines boolean host arrays by "or" over all processes; every process gets the result."""
  return multihost_utils.process_allgather(flags).any(axis=0) if several() else flags


def assert_same_on_all_hosts(what: str, text: str) -> None:
  """Refuses to go on where the processes differ in `text`.

  Args:
    what: names the text, for the message.

  Raises:
    InputError: on every process, if one differs from the first.
  """
  if not several():
    return
  digest = np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], np.uint32)
  every = multihost_utils.process_allgather(digest)
  others = [i for i, theirs in enumerate(every) if not np.array_equal(theirs, every[0])]
  if others:
    raise InputError(
      f"Process {others[0]} and process 0 have different {what}; start every process with the same command, the same "
      "files and the same version."
    )


def on_first(f: Callable[[], None]) -> None:
  """Runs f on the first process only; all go on together, or raise what it raised."""
  if not several():
    return f()
  message = np.zeros(2048, np.uint8)
  if first():
    try:
      f()
    except InputError as e:
      text = str(e).encode()[: message.size]
      message[: len(text)] = np.frombuffer(text, np.uint8)
  message = np.asarray(multihost_utils.broadcast_one_to_all(message))
  if message.any():
    raise InputError(bytes(message[message > 0]).decode(errors="replace"))
  return None


def text_of_first(text: str) -> str:
  """Returns the text of the first process, on every process."""
  if not several():
    return text
  data = np.frombuffer(text.encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
  message = np.zeros(size, np.uint8)
  if first():
    message[:] = data
  return np.asarray(multihost_utils.broadcast_one_to_all(message)).astype(np.uint8).tobytes().decode()


def from_first(numbers: np.ndarray) -> np.ndarray:
  """Returns the first process's numbers on every process."""
  return np.asarray(multihost_utils.broadcast_one_to_all(numbers)) if several() else numbers


def finish() -> None:
  """Waits for the others to have finished too."""
  global _watch
  if _watch:
    _watch.finish()
    _watch = None
    jax.distributed.shutdown()


def leave(error: BaseException) -> None:
  """Says why this process ends before its time, so that the others end too, and ends it if another one is the reason.

  An error inside a collective is most often another process's death, seen from here; so it is reported only if no
  process turns out to be lost.
  """
  if not _watch:
    return
  if isinstance(error, (InputError, KeyboardInterrupt)):
    _watch.report_stop(str(error) or "interrupted")
    return
  _watch.wait_for_verdict()
  _watch.report_stop(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


class Watch(threading.Thread):
  """Notices that another process of the run is gone, and leaves then.

  Every process writes a growing number to the coordinator's store. Process 0 reads them, and its verdict on the first
  that stops growing is what all act on, itself included. Where process 0 itself cannot be reached any more, that is
  the verdict. A process that ends with an error says so there.
  """

  def __init__(self, silence: float):
    super().__init__(daemon=True, name="watch")
    self._silence, self._period = silence, silence / BEATS
    from jax._src import distributed  # the coordinator's store has no public name; orbax uses it in the same way

    self._store: Any = distributed.global_state.client
    self._index, self._count = jax.process_index(), jax.process_count()
    self._parent = os.getppid()
    self._over = threading.Event()
    self.start()

  def run(self) -> None:
    last_beats: dict[str, tuple[str, float]] = {}
    beats, failing = 0, 0.0
    while not self._over.wait(self._period):
      beats += 1
      try:
        self._put(f"alive/{self._index}", str(beats))
        if self._index == 0:
          self._check_beats(last_beats)
        verdict = dict(self._store.key_value_dir_get("opd_jax/verdict")).get("opd_jax/verdict/all")
        failing = 0.0
      except Exception:
        failing = failing or time.monotonic()
        verdict = None
        if time.monotonic() - failing > 3 * self._period:
          verdict = "process 0, which all others report to, cannot be reached any more"
      if verdict and not self._over.is_set():
        self._leave(verdict)
      if os.getppid() != self._parent:
        self._leave("the process that started this one is gone")

  def wait_for_verdict(self) -> None:
    """Sleeps until the loss of another process would have been noticed, which ends this one meanwhile."""
    time.sleep(self._silence + 3 * self._period)

  def finish(self) -> None:
    """Stops watching: from here on, silence of this process is no loss."""
    self._over.set()
    self.join(self._period)  # a thread in the store's code while Python ends would abort the process
    with contextlib.suppress(Exception):
      self._put(f"alive/{self._index}", "done")

  def report_stop(self, why: str) -> None:
    """Publishes that this process stops, and waits until the others can have read it."""
    self._over.set()
    with contextlib.suppress(Exception):
      self._put("verdict/all", f"process {self._index} stopped ({why})")
      time.sleep(2 * self._period if self._index == 0 else 0)

  def _check_beats(self, last_beats: dict[str, tuple[str, float]]) -> None:
    now = time.monotonic()
    beats = dict(self._store.key_value_dir_get("opd_jax/alive"))
    for i in range(self._count):
      key = f"opd_jax/alive/{i}"
      beat = beats.get(key, "")
      if key not in last_beats or last_beats[key][0] != beat:
        last_beats[key] = (beat, now)
      elif beat != "done" and now - last_beats[key][1] > self._silence:
        self._put("verdict/all", f"process {i} of {self._count} has given no sign of life for {self._silence:.0f} s")
        return

  def _put(self, key: str, value: str) -> None:
    self._store.key_value_set(f"opd_jax/{key}", value, allow_overwrite=True)

  def _leave(self, verdict: str) -> None:
    sys.stderr.write(
      f"\nerror: {verdict}, so process {self._index} of {self._count} leaves too; the same command, on all of them, goes "
      "on from the last checkpoint\n"
    )
    sys.stderr.flush()
    if self._index == 0:
      time.sleep(2 * self._period)  # until the others can have read it: with this process the store goes
    os._exit(RESUME)


class PreemptionWatcher:
  """A watcher for the wish that a run stops: a SIGTERM, a maintenance notice of a Google machine, or Ctrl-C.

  Several processes may hear it at different steps, or only one of them may. JAX's preemption service agrees on a step
  that none has reached yet; before that step all of them stop.
  """

  def __init__(self):
    self._requested = threading.Event()
    self._interrupted = False
    self._before = None
    # With several processes JAX has a handler of its own, which a handler here would replace.
    if not several() and threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, lambda *_: self.request())
    if on_tpu() and "TPU_SKIP_MDS_QUERY" not in os.environ:
      for event, value in NOTICES.items():
        threading.Thread(target=_listen, args=(event, value), daemon=True, name=event).start()

  def reached_sync_point(self, step: int) -> bool:
    """Tells whether the run stops before this step; asked by all processes before every step."""
    return multihost_utils.reached_preemption_sync_point(step) if several() else self._requested.is_set()

  def request(self) -> None:
    """Asks the run of this process to stop, as a SIGTERM does."""
    self._requested.set()

  def interrupt(self) -> None:
    """Asks the run to stop after Ctrl-C; of several processes, all of them."""
    self._interrupted = True
    if several():
      os.kill(os.getpid(), signal.SIGTERM)  # which JAX's preemption service handles
    else:
      self.request()

  def status(self) -> int:
    """Returns the status to leave with: INTERRUPTED where any process got Ctrl-C. All ask, at the same step."""
    return INTERRUPTED if any_on_hosts(np.array([self._interrupted]))[0] else RESUME

  @property
  def requested(self) -> bool:
    """True once a run of one process is asked to stop, for work inside a step; see also `reached_sync_point`."""
    return self._requested.is_set()

  def close(self) -> None:
    """Gives SIGTERM back to the handler before this one."""
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)


def _listen(event: str, value: str) -> None:
  """Sends this process a SIGTERM when the metadata server comes to announce the event.

  What it announced before this process began is no reason to end it again.
  """
  server = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
  wait = "false"  # what it is now, and then whatever it becomes
  while True:
    request = urllib.request.Request(METADATA.format(server, event, wait), headers={"Metadata-Flavor": "Google"})
    try:
      with urllib.request.urlopen(request, timeout=90) as answer:
        now = answer.read().decode().strip().upper()
    except (OSError, urllib.error.URLError, ValueError):
      time.sleep(30)
      continue
    if wait == "true" and now.startswith(value):
      sys.stderr.write(f"note: the machine announces {event} {now}; the run saves before its next step and leaves\n")
      os.kill(os.getpid(), signal.SIGTERM)
      return
    wait = "true"

"""Where the records of a run go beside its own files: TensorBoard, Weights & Biases, MLflow, a function of the user.

Each is a `Tracker`. One that fails is reported once and left out from then on; training goes on. What a server knows a run by is kept in the
workdir (trackers.json), so that a run that resumes, from wherever the workdir has moved to, goes on there as the same run.
"""

import dataclasses
import hashlib
import json
import pathlib
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.runtime import json_files, workdir

Record = dict[str, Any]
OnRecord = Callable[[str, Record], None]  # ("train" or "eval", record)
FILE = "trackers.json"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"  # how a run ends


@dataclasses.dataclass(frozen=True)
class RunFacts:
  """What a tracker receives of a run when it begins.

  Attributes:
    workdir: on this machine.
    first_step: after which this session goes on; 0: the run is new.
  """

  name: str
  workdir: pathlib.Path
  config: Config
  first_step: int

  def described(self) -> dict[str, Any]:
    """Returns the whole config by dotted key, and under run/ the versions, commit and devices."""
    provenance = workdir.provenance()
    versions = provenance.pop("versions")
    about = {f"run/{key}": value for key, value in (versions | provenance).items()}
    return configs.flat(self.config) | about | {"run/workdir": self.workdir.name}


class Tracker:
  """One place that records go to. What it does not override it does without."""

  def record(self, kind: str, record: Record) -> None:
    """Takes the record of a logged step ("train") or of an evaluation ("eval"), as docs/metrics.md describes them."""

  def samples(self, step: int, samples: list[Record]) -> None:
    """Takes the responses of an evaluation, as samples.jsonl has them."""

  def close(self, end: str) -> None:
    """Ends the session: FINISHED, STOPPED or FAILED."""


class Trackers:
  """All trackers of a run.

  Args:
    warn: prints a line.
  """

  def __init__(self, facts: RunFacts, warn: Callable[[str], None]):
    self._warn = warn
    self._trackers: dict[str, Tracker] = {}
    log = facts.config.log
    wanted = {"TensorBoard": (log.tensorboard, TensorBoard), "Weights & Biases": (log.wandb, Wandb)}
    for name, (on, kind) in (wanted | {"MLflow": (log.mlflow, MLflow)}).items():
      if on:
        self._try(name, lambda name=name, kind=kind: self.add(name, kind(facts)))

  def add(self, name: str, tracker: Tracker) -> None:
    """Gives the records from now on to another tracker, too."""
    self._trackers[name] = tracker

  def record(self, kind: str, record: Record) -> None:
    """Hands a record to all."""
    self._each(lambda tracker: tracker.record(kind, record))

  def samples(self, step: int, samples: list[Record]) -> None:
    """Hands the samples of an evaluation to all."""
    self._each(lambda tracker: tracker.samples(step, samples))

  def close(self, error: type[BaseException] | None = None) -> None:
    """Ends all, with what ended the run: None where it came to its end."""
    end = FINISHED if error is None else FAILED if issubclass(error, Exception) else STOPPED
    self._each(lambda tracker: tracker.close(end))
    self._trackers.clear()

  def _each(self, call: Callable[[Tracker], None]) -> None:
    for name, tracker in list(self._trackers.items()):
      self._try(name, lambda tracker=tracker: call(tracker))

  def _try(self, name: str, call: Callable[[], None]) -> None:
    """Calls, and leaves the tracker out where it fails: a run of days does not end because a server is away."""
    try:
      call()
    except Exception as e:
      self._trackers.pop(name, None)
      why = " ".join(f"{type(e).__name__}: {e}".split())[:300]
      self._warn(f"  warning: {name} failed and gets nothing more of this run, which goes on ({why})")


class Callback(Tracker):
  """A function that gets every record; that of an evaluation with its `samples`."""

  def __init__(self, function: OnRecord):
    self._function, self._evaluation = function, {}

  def record(self, kind: str, record: Record) -> None:
    if kind == "eval":
      self._evaluation = dict(record)  # its samples come next
    else:
      self._function(kind, dict(record))

  def samples(self, step: int, samples: list[Record]) -> None:
    self._function("eval", self._evaluation | {"samples": [dict(sample) for sample in samples]})


class TensorBoard(Tracker):
  """TensorBoard's files, in the workdir."""

  def __init__(self, facts: RunFacts):
    from tensorboardX import SummaryWriter

    path = str(facts.workdir / "tensorboard")
    self._writer = SummaryWriter(path, purge_step=facts.first_step + 1, flush_secs=30)

  def record(self, kind: str, record: Record) -> None:
    for name, value in scalars(kind, record).items():
      self._writer.add_scalar(name, value, record["step"])

  def close(self, end: str) -> None:
    self._writer.close()


class Wandb(Tracker):
  """A run of Weights & Biases, in the project `log.wandb`."""

  def __init__(self, facts: RunFacts):
    import wandb

    self._table = wandb.Table
    project = facts.config.log.wandb
    saved = _saved(facts.workdir, "wandb", {"project": project})
    # Sessions from before trackers.json took the workdir's path.
    former = hashlib.sha256(str(facts.workdir.resolve()).encode()).hexdigest()[:12] if facts.first_step else ""
    run_id = saved.get("id") or former or uuid.uuid4().hex[:12]
    self._run = wandb.init(
      project=project, dir=str(facts.workdir), name=facts.name, id=run_id, resume="allow", job_type=facts.config.recipe
    )
    self._run.config.update(facts.described(), allow_val_change=True)
    _save(facts.workdir, "wandb", {"project": project, "id": run_id})

  def record(self, kind: str, record: Record) -> None:
    self._run.log(scalars(kind, record), step=record["step"])

  def samples(self, step: int, samples: list[Record]) -> None:
    if samples:
      columns = list(dict.fromkeys(key for sample in samples for key in sample))
      rows = [[_cell(sample.get(key)) for key in columns] for sample in samples]
      self._run.log({"samples": self._table(columns=columns, data=rows)}, step=step)

  def close(self, end: str) -> None:
    self._run.finish(exit_code=0 if end == FINISHED else 1)


class MLflow(Tracker):
  """A run of MLflow, in the experiment `log.mlflow`, where MLFLOW_TRACKING_URI says."""

  BATCH, MOST = 100, 1000  # params and metrics that a server takes in one request

  def __init__(self, facts: RunFacts):
    import mlflow
    from mlflow import entities

    self._entities, self._client = entities, mlflow.MlflowClient()
    name = facts.config.log.mlflow
    where = {"experiment": name, "server": mlflow.get_tracking_uri()}
    saved = _saved(facts.workdir, "mlflow", where)
    if "id" in saved:
      self._id = saved["id"]
      self._client.update_run(self._id, status="RUNNING")
    else:
      found = self._client.get_experiment_by_name(name)
      experiment = found.experiment_id if found else self._client.create_experiment(name)
      self._id = self._client.create_run(experiment, run_name=facts.name).info.run_id
      _save(facts.workdir, "mlflow", where | {"id": self._id})
    known = self._client.get_run(self._id).data.params
    described = {key.replace("/", "."): _cell(value) for key, value in facts.described().items()}
    params = [entities.Param(key, str(value)[:500]) for key, value in described.items() if key not in known]
    for first in range(0, len(params), self.BATCH):  # a param cannot be given another value: the first session's stand
      self._client.log_batch(self._id, params=params[first : first + self.BATCH])
    self._client.log_text(self._id, json.dumps(described, indent=2), f"config/from_step_{facts.first_step}.json")

  def record(self, kind: str, record: Record) -> None:
    now, metric = int(time.time() * 1000), self._entities.Metric
    metrics = [metric(name, float(value), now, record["step"]) for name, value in scalars(kind, record).items()]
    for first in range(0, len(metrics), self.MOST):
      self._client.log_batch(self._id, metrics=metrics[first : first + self.MOST])

  def samples(self, step: int, samples: list[Record]) -> None:
    if samples:
      columns = list(dict.fromkeys(key for sample in samples for key in sample))
      rows = [[_cell(sample.get(key)) for key in columns] for sample in samples]
      table = json.dumps({"columns": columns, "data": rows})  # as mlflow.log_table writes it, which needs pandas
      self._client.log_text(self._id, table, f"samples/step_{step}.json")

  def close(self, end: str) -> None:
    status = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}[end]
    self._client.set_terminated(self._id, status=status)


def scalars(kind: str, record: Mapping[str, Any]) -> dict[str, float]:
  """Returns the numbers of a record by name, such as train/seconds/rollout; lists by index, without those that are not known."""
  return {f"{kind}/{name}": value for name, value in _flat(record).items() if name != "step"}


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
  out = {}
  for k, v in record.items():
    if isinstance(v, dict):
      out |= _flat(v, f"{prefix}{k}/")
    elif isinstance(v, list) and k != "edges":
      out |= {f"{prefix}{k}/{i:02d}": x for i, x in enumerate(v) if x is not None}
    elif isinstance(v, (int, float)):
      out[f"{prefix}{k}"] = v
  return out


def _cell(value: Any) -> Any:
  """Makes a value that every server takes: a number, a text, or the JSON of anything else."""
  return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value, default=str)


def _saved(path: pathlib.Path, tracker: str, where: Mapping[str, str]) -> dict[str, Any]:
  """Reads what a former session of this run has saved of a tracker in the same place; {} where there is nothing."""
  try:
    found = json_files.parse((path / FILE).read_bytes())[tracker]
    same = found["id"] and isinstance(found["id"], str) and all(found.get(key) == v for key, v in where.items())
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return {}
  return found if same else {}


def _save(path: pathlib.Path, tracker: str, saved: Mapping[str, str]) -> None:
  """Saves what the next session needs, beside what other trackers have saved."""
  try:
    before = json_files.parse((path / FILE).read_bytes())
  except (OSError, ValueError):
    before = {}
  text = json.dumps((before if isinstance(before, dict) else {}) | {tracker: dict(saved)}, indent=2)
  part = path / f"{FILE}.part"
  part.write_text(text + "\n", encoding="utf-8")
  part.replace(path / FILE)

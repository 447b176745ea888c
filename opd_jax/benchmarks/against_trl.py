"""A whole step beside one of TRL's DistillationTrainer: rollout, teacher and update on the same shapes and sizes.

TRL runs in an environment of its own, as a process of the interpreter that --against-python names; see trl_step.py for
what it does there. Our seconds are those of the rollout and the update that the bench measures in the same command.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from opd_jax import config as configs
from opd_jax.benchmarks import trl_step
from opd_jax.benchmarks.subject import Case, Subject
from opd_jax.config import Config
from opd_jax.errors import InputError, first_line
from opd_jax.models import hf, roofline
from opd_jax.runtime import timing
from opd_jax.runtime.machine import cores
from opd_jax.training import specs
from opd_jax.types import Params

INSTALL = "pip install torch==2.13.0 trl==1.16.0 accelerate datasets"
SAME_WORK = {
  "objective.kind": "reverse_kl",
  "objective.support": "full",
  "mixture.reward": 0.0,
  "mixture.initial": 0.0,
  "context.kind": "same",
  "teacher_precision": "compute",
  "lora.rank": 0,
}


def check(config: Config, parts: Sequence[str], python: str | None) -> pathlib.Path:
  """Refuses what TRL cannot be compared on, and an interpreter that cannot import it; returns the interpreter.

  Args:
    parts: what is measured of rollout and update.
    python: --against-python.

  Raises:
    InputError: in any of these cases.
  """
  if len(parts) < 2:
    raise InputError(f"--against=trl times whole steps; leave out {parts[0]!r}, or --against.")
  for key, value in SAME_WORK.items():
    if configs.get(config, key) != value:
      raise InputError(
        f"--against=trl needs config.{key}={value}, so that both do the same work, but it is "
        f"{configs.get(config, key)}; set --config.{key}={value}, or leave --against out."
      )
  if len(configs.teacher_names(config)) > 1:
    raise InputError("--against=trl needs a config with one teacher; name one with --teacher, or leave --against out.")
  if python is None:
    raise InputError(
      "--against=trl needs --against-python=VENV/bin/python, the interpreter of an environment of TRL's own, made "
      f"with: {INSTALL}."
    )
  path = configs.expanded_path(python)
  if not path.is_file() or not os.access(path, os.X_OK):
    raise InputError(
      f"--against-python={python} is no file that can be run; give the python of an environment made with: {INSTALL}."
    )
  _run(path.absolute(), {}, "cannot import TRL's DistillationTrainer")
  return path.absolute()


class TrlSteps:
  """Steps of TRL on models with the subject's shapes.

  It is a context: the models stand in a directory that goes with it.
  """

  def __init__(self, subject: Subject, params: Params, python: pathlib.Path):
    """Writes the models.

    Args:
      params: the student's.
      python: see `check`.
    """
    self._subject, self._python = subject, python
    self._directory = tempfile.TemporaryDirectory()
    there = pathlib.Path(self._directory.name)
    self.student, self.teacher = there / "student", there / "teacher"
    hf.write(self.student, subject.student, params, pad_id=0, eos_id=None, dtype="float32")
    hf.write(self.teacher, subject.teachers[0], subject.params(1), pad_id=0, eos_id=None, dtype=subject.dtype.name)

  def __enter__(self) -> "TrlSteps":
    return self

  def __exit__(self, *_: object) -> None:
    self._directory.cleanup()

  def measure(self, case: Case, repeat: int) -> dict[str, Any]:
    """Times TRL's steps of the case's sizes; the answer of trl_step.py.

    Raises:
      InputError: TRL ended with an error.
      RuntimeError: it did other work than ours.
    """
    subject, c = self._subject, self._subject.config(case)
    rows = np.repeat(np.asarray(subject.prompts(case).prompt), case.n, axis=0)
    sizes = trl_step.Sizes(
      student=str(self.student),
      teacher=str(self.teacher),
      vocab=subject.student.vocab,
      prompts=rows.tolist(),
      horizon=case.horizon,
      micro_batch=specs.micro_batch(c, subject.mesh),
      checkpointing=c.remat != "none",
      learning_rate=c.optimizer.lr,
      temperature=c.sampling.temperature,
      top_p=c.sampling.top_p,
      top_k=c.sampling.top_k,
      repeat=repeat,
      device="cuda" if jax.default_backend() == "gpu" else "cpu",
      dtype=subject.dtype.name,
      threads=list(dict.fromkeys((cores(), 1))),
    )
    answer = _run(self._python, dataclasses.asdict(sizes), f"could not run TRL's steps of {case}")
    parameters = [roofline.parameter_count(cfg) for cfg in (subject.student, subject.teachers[0])]
    if answer["parameters"] != parameters:
      raise RuntimeError(f"TRL's models have {answer['parameters']} parameters and ours {parameters}")
    if answer["tokens"] != [case.rows * case.horizon] * repeat:
      raise RuntimeError(f"TRL generated {answer['tokens']} tokens, not {case.rows * case.horizon} in each step")
    return answer


def compare(case: Case, theirs: dict[str, Any], rollout: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
  """Makes one record for the JSON, with the ratio of the medians.

  Args:
    theirs: see `TrlSteps.measure`.
    rollout, update: our records.
  """
  tokens = case.rows * case.horizon
  sums = {key: rollout[key] + update[key] for key in ("seconds", "min_seconds")}
  ours = sums | {"rollout_seconds": rollout["seconds"], "update_seconds": update["seconds"]}
  summary = timing.summary(theirs["step_seconds"]) | {"rollout_seconds": statistics.median(theirs["rollout_seconds"])}
  return {
    **case.sizes,
    "against": "trl",
    **{key: theirs[key] for key in ("device", "threads", "versions")},
    **{
      name: spent | {"tokens_per_second": tokens / spent["seconds"]}
      for name, spent in (("ours", ours), ("theirs", summary))
    },
    "ratio": summary["seconds"] / ours["seconds"],
  }


def _run(python: pathlib.Path, sizes: dict[str, Any], fault: str) -> dict[str, Any]:
  """Runs trl_step.py in the other environment and returns its answer.

  Args:
    fault: the message about an interpreter that gives no answer.
  """
  with tempfile.TemporaryDirectory() as there:
    answer = pathlib.Path(there) / "answer.json"
    # Isolated: neither this environment's PYTHONPATH nor the modules beside the script are in the way of TRL's imports.
    command = [str(python), "-I", str(pathlib.Path(trl_step.__file__).absolute()), str(answer)]
    try:
      ended = subprocess.run(command, input=json.dumps(sizes), capture_output=True, encoding="utf-8", errors="replace")
      printed = ended.stderr
      if ended.returncode == 0 and answer.is_file():
        return json.loads(answer.read_text(encoding="utf-8"))
    except OSError as e:
      printed = str(e)
  lines = [line for line in printed.splitlines() if line.strip()]
  why = first_line(RuntimeError(lines[-1] if lines else "it gave no answer"))
  raise InputError(f"--against-python={python} {fault} ({why}); in that environment: {INSTALL}.")

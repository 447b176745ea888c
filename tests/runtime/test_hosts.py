"""Several processes as one run, for real: processes of their own on this machine, with CPU collectives.

They train the same run as one process does, and are killed, stopped and resumed on other numbers of processes.
"""

import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.conftest import small_config
from tests.helpers.eight_devices import with_devices
from tests.rollout.test_endpoint import Server

pytestmark = pytest.mark.usefixtures("shared_programs")

SILENCE = 8.0  # seconds


class Run:
  """One run of several processes, each with devices of its own."""

  def __init__(self, entry: str, processes: int, devices: int, *arguments: str, of: dict[int, list[str]] | None = None):
    """`of`: further arguments of single processes."""
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    env = os.environ | with_devices(devices)
    joined = (f"--coordinator=localhost:{port}", f"--processes={processes}", f"--silence={SILENCE}")
    joined = joined if processes > 1 else ()
    self.processes = [
      subprocess.Popen(
        [
          sys.executable,
          "-m",
          f"opd_jax.{entry}",
          *joined,
          *([f"--process={i}"] * bool(joined)),
          *arguments,
          *(of or {}).get(i, []),
        ],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
      )
      for i in range(processes)
    ]

  def end(self, timeout: float = 240) -> list[tuple[int, str]]:
    """Status and output of each process, once all have ended."""
    try:
      output = [p.communicate(timeout=timeout)[0] for p in self.processes]
    finally:
      for p in self.processes:
        if p.poll() is None:
          os.killpg(p.pid, signal.SIGKILL)
    return [(p.returncode, text) for p, text in zip(self.processes, output, strict=True)]

  def kill(self, process: int) -> None:
    """As a machine goes: at once, with its supervisor."""
    os.killpg(self.processes[process].pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def arguments(tiny) -> list[str]:
  """A run of twelve steps that saves after each, with a verifier and several rollouts per prompt."""
  c = {
    "student": tiny["student"],
    "teacher": tiny["teacher"],
    "steps": 12,
    "batch": 4,
    "rollouts_per_prompt": 2,
    "mixture.reward": 0.1,
    "horizon.kind": "full",
    "horizon.max": 12,
    "eval.every": 6,
    "eval.prompts": 6,
    "eval.batch": 8,
    "eval.temperature": 0.0,
    "checkpoint.every": 1,
    "optimizer.lr": 1e-3,
    "log.tensorboard": False,
    "compile_cache": "off",
  }
  return ["--config=opd", *(f"--config.{key}={value}" for key, value in c.items())]


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory) -> pathlib.Path:
  """The workdir of the same run in one process on one device."""
  path = tmp_path_factory.mktemp("alone") / "run"
  [(status, output)] = Run("train", 1, 1, f"--workdir={path}", *arguments).end()
  assert status == 0, output
  return path


def records(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def saved(path: pathlib.Path) -> int:
  """The last complete checkpoint."""
  steps = [int(p.name) for p in (path / "checkpoints").glob("[0-9]*") if p.name.isdigit()]
  return max(steps, default=0)


def wait_for(path: pathlib.Path, step: int, run: Run) -> None:
  began = time.monotonic()
  while saved(path) < step:
    assert time.monotonic() - began < 200, "no checkpoint in time"
    assert all(p.poll() is None for p in run.processes), run.end()
    time.sleep(0.05)


def same(path: pathlib.Path, alone: pathlib.Path) -> None:
  """The records of both runs are equal, but for seconds and rounding."""
  mine, theirs = records(path), records(alone)
  assert [(r["kind"], r["step"]) for r in mine] == [(r["kind"], r["step"]) for r in theirs]
  for a, b in zip(mine, theirs, strict=True):
    if a["kind"] == "train":
      assert (a["tokens"], a["reward"], a["cut"]) == (b["tokens"], b["reward"], b["cut"])
      np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    else:
      assert (a["accuracy"], a["length"], a["ended"]) == (b["accuracy"], b["length"], b["ended"])
  assert (path / "samples.jsonl").read_text() == (alone / "samples.jsonl").read_text()


@pytest.mark.long
def test_killed_stopped_and_resumed_on_other_processes(arguments, alone, tmp_path):
  """Four processes of which one is killed; all of them again, until one hears SIGTERM; then two with two devices each."""
  path = tmp_path / "run"
  here = (f"--workdir={path}", *arguments)

  run = Run("train", 4, 1, *here)
  wait_for(path, 2, run)
  run.kill(2)
  killed = time.monotonic()
  ended = run.end()
  assert time.monotonic() - killed < 60
  for i in (0, 1, 3):
    status, output = ended[i]
    assert status == 75, output
    # Where the CPU's collectives abort a process before the verdict is out, its supervisor speaks.
    assert "process 2 of 4 has given no sign of life for 8 s" in output or "JAX ended this process" in output
    assert "the same command, on all of them, goes on from the last checkpoint" in output

  run = Run("train", 4, 1, *here)
  wait_for(path, saved(path) + 2, run)
  run.processes[1].send_signal(signal.SIGTERM)
  ended = run.end()
  last = saved(path)
  assert last < 12, "the run ended before it could be stopped"
  for status, output in ended:
    assert status == 75, output
    assert f"asked to stop: saved after step {last} of 12" in output

  ended = Run("train", 2, 2, *here, "--config.mesh.tensor=2").end()
  assert [status for status, _ in ended] == [0, 0], ended
  assert f"resumed after step {last}" in ended[0][1]
  assert "4 device(s) (data 2 x tensor 2) in 2 processes" in ended[0][1]
  assert "resumed" not in ended[1][1], "only the first process reports"
  same(path, alone)

  out = tmp_path / "export"
  for entry, more in (("evaluate", ()), ("export", (f"--out={out}", "--dtype=float32"))):
    for status, output in Run(entry, 2, 1, f"--workdir={path}", *more).end():
      assert status == 0, output
  assert json.loads((path / "evaluation.json").read_text())["accuracy"] == records(path)[-1]["accuracy"]
  assert (out / "model.safetensors").is_file()


@pytest.mark.long
@pytest.mark.parametrize("pressed", [(0, 1), (1,)], ids=["on all", "on one"])
def test_ctrl_c_saves_before_the_same_step_on_all(pressed, arguments, tmp_path):
  """A terminal sends it to each process and its supervisor; by hand it may reach one. All leave with 130, and none twice."""
  path = tmp_path / "run"
  run = Run("train", 2, 1, f"--workdir={path}", *arguments, "--config.steps=400", "--config.checkpoint.every=3")
  wait_for(path, 3, run)
  for i in pressed:
    os.killpg(run.processes[i].pid, signal.SIGINT)
  ended = run.end()
  for status, output in ended:
    assert status == 130, output
    assert f"asked to stop: saved after step {saved(path)} of 400" in output
  assert all("stopping after this step" in ended[i][1] for i in pressed)


@pytest.mark.long
def test_the_coordinator_is_killed(arguments, alone, tmp_path):
  """JAX aborts a process whose coordinator is gone; its supervisor says so, and what to do."""
  path = tmp_path / "run"
  run = Run("train", 2, 1, f"--workdir={path}", *arguments, "--config.steps=400")
  wait_for(path, 1, run)
  run.kill(0)
  killed = time.monotonic()
  status, output = run.end()[1]
  assert time.monotonic() - killed < 60
  assert status == 75, output
  assert "is gone" in output or "cannot be reached any more" in output
  assert "the same command, on all of them, goes on from the last checkpoint" in output


@pytest.mark.long
def test_processes_of_different_configs_are_refused(arguments, tmp_path):
  run = Run("train", 2, 1, f"--workdir={tmp_path / 'run'}", *arguments, of={1: ["--config.optimizer.lr=0.5"]})
  for status, output in run.end():
    assert status == 2, output
    assert "Process 1 and process 0 have different configs, prompts or versions" in output


def test_a_stop_signal_saves_before_the_next_step(tiny, tmp_path):
  """One process: SIGTERM ends the run at a step boundary, and the same command goes on as if nothing had been."""
  from opd_jax import trainer
  from opd_jax.errors import StopRequested
  from opd_jax.runtime import hosts

  c = small_config(tiny, "topd", steps=4, **{"checkpoint.every": 0, "eval.every": 0, "rollout.ahead": True})
  trainer.train(c, tmp_path / "whole")

  def stop_after_the_second_step(run, experience, metrics):
    if run.step == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(StopRequested, match="saved after step 2 of 4"):
    trainer.train(c, tmp_path / "stopped", on_step=stop_after_the_second_step)
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  assert [r["step"] for r in records(tmp_path / "stopped")] == [1, 2]
  trainer.train(c, tmp_path / "stopped")
  assert [r["step"] for r in records(tmp_path / "stopped")] == [1, 2, 3, 4]
  assert hosts.several() is False


class Metadata(http.server.BaseHTTPRequestHandler):
  """Google's metadata server: nothing at first, and maintenance for those who wait for a change."""

  def do_GET(self):
    assert self.headers["Metadata-Flavor"] == "Google"
    event = "maintenance-event" in self.path and "wait_for_change=true" in self.path
    self.send_response(200)
    self.end_headers()
    self.wfile.write(b"TERMINATE_ON_HOST_MAINTENANCE" if event else b"NONE")

  def log_message(self, *_):
    pass


def test_a_maintenance_notice_stops_the_run(monkeypatch):
  from opd_jax.runtime import hosts

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
  monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
  monkeypatch.setattr(hosts, "on_tpu", lambda: True)
  monkeypatch.setattr(hosts, "NOTICES", {"maintenance-event": "TERMINATE"})
  notice = hosts.PreemptionWatcher()
  try:
    until = time.monotonic() + 20
    while not notice.reached_sync_point(1) and time.monotonic() < until:
      time.sleep(0.02)
    assert notice.reached_sync_point(1)
  finally:
    notice.close()
    server.shutdown()


@pytest.mark.parametrize(
  ("given", "output"),
  [
    (("localhost:1", None, 0), "together"),
    (("localhost:1", 2, 2), "one of 0 to N-1"),
    (("localhost", 2, 0), "HOST:PORT"),
  ],
)
def test_processes_that_cannot_join(given, output):
  from opd_jax.errors import InputError
  from opd_jax.runtime import hosts

  with pytest.raises(InputError, match=output):
    hosts.start(*given)


@pytest.mark.parametrize(
  ("env", "found"),
  [
    ({}, False),
    ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
    ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, False),  # a shell inside an allocation
    ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, False),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ({"KUBERNETES_SERVICE_HOST": "h", "JOB_COMPLETION_INDEX": "0"}, True),
    ({"KUBERNETES_SERVICE_HOST": "h"}, False),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
  ],
)
def test_clusters_are_known_by_their_environment(env, found, monkeypatch):
  from opd_jax.runtime import supervise

  for name in list(os.environ):
    if name.startswith(("SLURM", "OMPI", "KUBERNETES", "JOB_COMPLETION", "TPU_", "JAX_COORD")):
      monkeypatch.delenv(name)
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  assert supervise.clustered() is found


@pytest.mark.long
def test_two_students_in_two_processes_comment_on_the_same_rows(arguments, tiny, tmp_path):
  changes = {"codistillation.peer": tiny["teacher"], "codistillation.phase_steps": 1, "codistillation.gate": "always"}
  changes |= {"codistillation.validation_prompts": 4, "codistillation.validation_k": 1, "steps": 2, "eval.every": 2}
  changes |= {"comment.anchor": "", "comment.max_tokens": 24, "comment.max_prompt": 32, "context.max_tokens": 80}
  changes |= {
    "context.feedback": "always",
    "context.feedback_template": ">{text}",
    "context.template": "{prompt}{solution}{feedback}=",
  }
  changes |= {
    "teacher": "initial",
    "data.max_prompt": 16,
    "context.widths": 0.0,
    "mixture.reward": 0.0,
    "log.samples": 4,
  }
  given = [a for a in arguments if not a.startswith(("--config=", "--config.teacher="))]
  given = ["--config=opcod", *given, *(f"--config.{key}={value}" for key, value in changes.items())]
  paths = [tmp_path / "one", tmp_path / "two"]
  for processes, path in enumerate(paths, 1):
    ended = Run("train", processes, 1, f"--workdir={path}", *given).end()
    assert [status for status, _ in ended] == [0] * processes, ended
  same(paths[1], paths[0])
  comments = [[r["comments"] for r in records(path) if r["kind"] == "train"] for path in paths]
  assert comments[0] == comments[1]
  assert sum(record.get("kept", 0) for record in comments[0]) > 0
  assert any(r["loss"] > 0 for r in records(paths[0]) if r["kind"] == "train")


@pytest.mark.long
def test_a_model_that_denoises_learns_the_same_in_two_processes(tmp_path):
  """Each verifies its own rows, and both choose the same rollouts, learn from the same canvases and write the same ones."""
  c = {
    "batch": 4,
    "rollouts_per_prompt": 4,
    "steps": 2,
    "eval.every": 2,
    "eval.prompts": 6,
    "eval.batch": 8,
    "eval.k": 1,
  }
  c |= {"eval.pass_at": "(1,)", "eval.greedy": False, "eval.temperature": 0.0, "checkpoint.every": 0, "log.rollouts": 3}
  c |= {"optimizer.lr": 1e-3, "log.tensorboard": False, "compile_cache": "off"}
  given = ["--config=d_opsd", *(f"--config.{key}={value}" for key, value in c.items())]
  paths = [tmp_path / "one", tmp_path / "two"]
  for processes, path in enumerate(paths, 1):
    ended = Run("train", processes, 1, f"--workdir={path}", *given).end()
    assert [status for status, _ in ended] == [0] * processes, ended
  same(paths[1], paths[0])
  alone, together = ([r for r in records(path) if r["kind"] == "train"] for path in paths)
  counted = ("accepted", "accepted_rollouts", "canvases", "rollout_forwards", "update_forwards", "trained")
  assert [[r[name] for name in counted] for r in alone] == [[r[name] for name in counted] for r in together]
  assert all(0 < r["accepted_rollouts"] < 1 and r["loss"] > 0 for r in alone)
  canvases = [[json.loads(line) for line in (path / "canvases.jsonl").read_text().splitlines()] for path in paths]
  assert len(canvases[0]) == len(canvases[1]) == 2 * 3
  for mine, theirs in zip(*canvases, strict=True):
    divergence = [[list(of_canvas.values()) for of_canvas in r.pop("divergence")] for r in (mine, theirs)]
    assert mine == theirs
    np.testing.assert_allclose(np.hstack(divergence[0]), np.hstack(divergence[1]), atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("teacher", ["on the devices", "at an endpoint"])
def test_hard_questions_in_two_processes_are_those_of_one(teacher, arguments, tmp_path):
  """Plain and reformulated prompts, the buffer, and what a teacher writes, which at an endpoint the first process asks for alone."""
  verifier = tmp_path / "even.py"
  verifier.write_text("def verify(response, answer):\n  return sum(map(ord, response)) % 2 == 0\n")
  changes = {"steps": 4, "eval.every": 4, "horizon.max": 12, "rollouts_per_prompt": 4, "mini_batches": 2, "batch": 4}
  changes |= {"mixture.divergence": 0.0, "mixture.reward": 1.0, "data.verifier": f"{verifier}:verify"}
  changes |= {"data.path": "task:chain", "data.max_prompt": 16, "optimizer.lr": 1e-2, "optimizer.warmup": 0}
  changes |= {"zone.replay": 0.5, "zone.augment": 0.5, "zone.tau": 0.75, "zone.capacity": 3, "zone.teacher_prompt": 64}
  changes |= {
    "candidates.compressor": "teacher",
    "candidates.request": "{prompt}{response}x",
    "candidates.block": ":{text}",
  }
  changes |= {"candidates.bcq": "{prompt}{candidates}=", "candidates.ncq": "{prompt}{candidates}#"}
  changes |= {
    "candidates.max_tokens": 12,
    "candidates.max_prompt": 48,
    "candidates.widths": 2.0,
    "zone.teacher_function": "",
  }
  server = Server()

  def behave(handler, body):
    n = body.get("n", 1)
    texts = [str(22 + (body["seed"] + i) % 7) for i in range(n)]
    choices = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in enumerate(texts)]
    handler.send({"choices": choices, "usage": {"prompt_tokens": 10, "completion_tokens": 2 * n}})

  server.behave = behave
  if teacher == "at an endpoint":
    changes |= {"teacher": "", "zone.teacher_url": server.url, "zone.teacher_model": "m"}
  taken = tuple(f"--config.{key}=" for key in changes)
  given = [a for a in arguments if not a.startswith(("--config=", *taken))]
  given = ["--config=zppo", *given, *(f"--config.{key}={value}" for key, value in changes.items())]
  paths, requests = [tmp_path / "one", tmp_path / "two"], []
  for processes, path in enumerate(paths, 1):
    ended = Run("train", processes, 1, f"--workdir={path}", *given).end(timeout=900)
    assert [status for status, _ in ended] == [0] * processes, ended
    requests.append(len(server.bodies) - sum(requests))
  server.close()
  assert requests[0] == requests[1]
  assert (requests[0] > 0) == (teacher == "at an endpoint")
  same(paths[1], paths[0])
  one, two = ([r for r in records(path) if r["kind"] == "train"] for path in paths)
  whole = ("buffer", "buffer_history", "replayed", "empty_places", "hard", "prompts_bcq", "prompts_ncq", "plain_tokens")
  whole += ("reformulated_tokens", "teacher_tokens", "compression_tokens", "groups_by_solve_rate")
  for a, b in zip(one, two, strict=True):
    assert a.keys() == b.keys()
    assert {name: a[name] for name in whole} == {name: b[name] for name in whole}
    for name in (name for name in a if name.startswith(("reward_", "teaching_", "bcq_", "ncq_"))):
      assert a[name] == pytest.approx(b[name])
  assert sum(r["prompts_bcq"] for r in one) > 0
  assert sum(r["prompts_ncq"] for r in one) > 0
  assert sum(r["replayed"] for r in one) > 0
  assert sum(r["buffer_evicted"] for r in one) > 0
  assert any(r["grad_norm"] > 0 for r in one)

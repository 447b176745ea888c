"""What the scripts do on the workers of a TPU VM: a gcloud that runs the remote commands in home directories here."""

import json
import shutil
import subprocess

import pytest

from tests.helpers import cloud as stand_in
from tests.helpers.cloud import AWKWARD, LOCATION, ROOT, TRAIN, commit, wait_until

checkout, cloud = stand_in.checkout, stand_in.cloud  # fixtures
pytestmark = pytest.mark.skipif(
  not all(map(shutil.which, ("bash", "flock", "setsid", "tail"))), reason="the workers' side needs bash and util-linux"
)


def put(home):
  """What setup.sh leaves on a worker."""
  (home / "opd_jax" / "tpu_scripts").mkdir(parents=True)
  shutil.copy(ROOT / "tpu_scripts" / "worker.sh", home / "opd_jax" / "tpu_scripts")
  (home / "opd_jax" / ".venv" / "bin").mkdir(parents=True)
  stand_in.write_program(home / "opd_jax" / ".venv" / "bin" / "python", stand_in.PYTHON)


@pytest.fixture
def homes(cloud):
  """homes(nodes, workers): workers with opd_jax set up, whose runs end with the test."""
  made = []

  def make(nodes=("opd",), workers=1):
    if nodes == ("opd",):
      cloud.has_tpu(workers=workers)
    else:
      cloud.has_slices(*["READY"] * len(nodes), workers=workers)
    made.extend(cloud.homes(nodes, workers))
    for home in made:
      put(home)
    return made

  yield make
  for home in made:
    leader = home / "opd_jax" / "logs" / "pid"
    if leader.exists() and not (leader.parent / "status").exists():
      subprocess.run(["kill", "-KILL", "--", f"-{leader.read_text().strip()}"], stderr=subprocess.DEVNULL)


def python(home):
  """What Python was asked there since the last time."""
  lines = (home / "python.jsonl").read_text().splitlines()
  (home / "python.jsonl").unlink()
  return [json.loads(line) for line in lines]


def trained(home):
  """The arguments of each start of the trainer."""
  return [call[2:] for call in python(home) if call[:2] == ["-m", "opd_jax.train"]]


def test_setup_installs_what_is_committed(cloud, checkout):
  cloud.has_tpu()
  (home,) = cloud.homes()
  assert cloud.run("setup", *LOCATION).returncode == 0
  there = home / "opd_jax"
  assert (there / "old.py").exists()
  asked = python(home)
  assert asked[1] == ["-m", "venv", ".venv"]
  assert ["-m", "pip", "install", "--quiet", "--editable", ".[tpu]"] in asked
  (there / "runs").mkdir()
  (checkout / "old.py").unlink()
  (checkout / "new.py").write_text("")
  commit(checkout)
  (checkout / "later.py").write_text("")
  result = cloud.run("setup", *LOCATION)
  assert result.returncode == 0
  assert "Not committed, so not copied:\n?? later.py\n" in result.stderr
  assert {p.name for p in there.iterdir()} >= {"new.py", "runs", ".venv", "tpu_scripts"}
  assert not {p.name for p in there.iterdir()} & {"old.py", "later.py"}
  assert ["-m", "venv", ".venv"] not in python(home)
  assert [p.name for p in home.iterdir()] == ["opd_jax"]


def test_a_run_from_launch_to_logs(cloud, homes):
  (home,) = homes()
  result = cloud.run("launch", *LOCATION, "--", *AWKWARD)
  assert result.returncode == 0
  assert "hello from the trainer" in result.stdout
  assert "ended with status 0 (finished)." in result.stderr
  assert trained(home) == [AWKWARD]
  for flags in ((), ("--once",)):
    result = cloud.run("logs", *LOCATION, *flags)
    assert (result.returncode, result.stdout) == (0, "hello from the trainer\n")


def test_a_run_that_fails_at_once(cloud, homes):
  homes()
  result = cloud.run("launch", *LOCATION, "--", "--fail")
  assert result.returncode == 4
  assert "error: a wrong input" in result.stdout
  assert "ended with status 4 (failed)." in result.stderr


def test_a_run_that_stays(cloud, homes, checkout):
  (home,) = homes()
  result = cloud.run("launch", *LOCATION, "--watch=0", "--", "--forever")
  assert result.returncode == 0
  assert "Running on" in result.stdout
  for command in (("launch", *LOCATION, *TRAIN), ("setup", *LOCATION)):
    again = cloud.run(*command)
    assert again.returncode == 2
    assert "in progress" in again.stderr
  wait_until(lambda: "hello" in (home / "opd_jax" / "logs" / "latest.log").read_text())
  assert cloud.run("status", *LOCATION).stdout.splitlines()[1:] == ["opd w-0: running: hello from the trainer"]
  stopped = cloud.run("launch", *LOCATION, "--stop")
  assert (stopped.returncode, "ended with status 130 (interrupted)" in stopped.stderr) == (0, True)
  assert cloud.run("logs", *LOCATION).stdout == "hello from the trainer\nstopped\n"
  assert "No run is in progress" in cloud.run("launch", *LOCATION, "--stop").stdout
  assert trained(home) == [["--forever"]]


def test_save(cloud, homes):
  """The trainer leaves with 75, which is not a reason to start it again when somebody asked for it."""
  (home,) = homes()
  cloud.run("launch", *LOCATION, "--watch=0", "--pause=0", "--", "--forever")
  wait_until(lambda: "hello" in (home / "opd_jax" / "logs" / "latest.log").read_text())
  saved = cloud.run("launch", *LOCATION, "--save")
  assert (saved.returncode, "ended with status 75 (left to be resumed)." in saved.stderr) == (0, True)
  assert cloud.run("status", *LOCATION).stdout.endswith("w-0: ended with status 75 (left to be resumed): saved\n")
  assert len(trained(home)) == 1


@pytest.mark.parametrize(
  ("ends", "restarts", "starts", "words"),
  [
    ("75,-9,-6,0", 3, 4, "ended with status 0 (finished), started again 3 time(s)"),
    ("75,-9,0", 1, 2, "ended with status 137 (died of signal 9), started again 1 time(s)"),
    ("75,0", 0, 1, "ended with status 75 (left to be resumed)."),
    ("75,2,0", 3, 2, "ended with status 2 (wrong input), started again 1 time(s)"),
    ("130,0", 3, 1, "ended with status 130 (interrupted)."),
    ("-2,0", 3, 1, "ended with status 130 (interrupted)."),
    ("1,0", 3, 1, "ended with status 1 (failed)."),
  ],
)
def test_restarts(cloud, homes, ends, restarts, starts, words):
  """The same command again after 75 and after a death by signal, but not more often than asked for."""
  (home,) = homes()
  flags = ("--pause=0", f"--restarts={restarts}")
  result = cloud.run("launch", *LOCATION, *flags, "--", f"--ends={ends}", "it's")
  assert words in result.stderr
  assert trained(home) == [[f"--ends={ends}", "it's"]] * starts
  log = (home / "opd_jax" / "logs" / "latest.log").read_text()
  assert log.count("of the same command in 0 seconds") == starts - 1


def test_stop_before_a_restart(cloud, homes):
  (home,) = homes()
  cloud.run("launch", *LOCATION, "--watch=0", "--pause=60", "--", "--ends=75,0")
  wait_until((home / "opd_jax" / "logs" / "restarts").exists)
  stopped = cloud.run("launch", *LOCATION, "--stop")
  assert (stopped.returncode, "ended with status 75" in stopped.stderr) == (0, True)
  assert len(trained(home)) == 1


def test_status_of_each_worker(cloud, homes):
  done, killed, _, bare = homes(workers=4)
  shutil.rmtree(bare / "opd_jax" / ".venv")
  for home, ends in ((done, "0"), (killed, "75,75")):
    logs = home / "opd_jax" / "logs"
    command = ("train", "0", "1", "0", f"--ends={ends}") if home is done else ("train", "0", "1", "60", "--forever")
    subprocess.run(
      ["bash", "opd_jax/tpu_scripts/worker.sh", *command], cwd=home, env={"HOME": str(home), "PATH": "/usr/bin:/bin"}
    )
    wait_until((logs / ("status" if home is done else "trainer")).exists)
  leader = (killed / "opd_jax" / "logs" / "pid").read_text().strip()
  wait_until(lambda: "hello" in (killed / "opd_jax" / "logs" / "latest.log").read_text())
  subprocess.run(["kill", "-KILL", "--", f"-{leader}"], check=True)
  with (done / "opd_jax" / "logs" / "latest.log").open("a") as log:
    log.write("step 1\rstep 2\rstep 3 " + "x" * 500)
  result = cloud.run("status", *LOCATION)
  assert result.returncode == 0
  node, *workers = result.stdout.splitlines()
  assert node == "opd: READY (v5litepod-8, 4 worker(s))"
  assert sorted(workers) == [
    "opd w-0: ended with status 0 (finished): step 3 " + "x" * 193,
    "opd w-1: was killed: hello from the trainer",
    "opd w-2: never started a run",
    "opd w-3: never started a run",
  ]


def test_all_workers_of_all_slices(cloud, homes):
  every = homes(("opd-0", "opd-1"), workers=2)
  result = cloud.run("launch", *LOCATION, "--shared-workdir", *TRAIN, "it's")
  assert result.returncode == 0, result.stderr
  assert [trained(home) for home in every] == [[[*TRAIN[1:], "it's"]]] * 4
  shutil.rmtree(every[2] / "opd_jax")
  result = cloud.run("launch", *LOCATION, "--", "--fail")
  assert result.returncode == 4  # of the first slice
  assert "opd_jax is not installed on the TPU opd-1; run setup.sh first." in result.stderr
  lines = cloud.run("status", *LOCATION).stdout.splitlines()
  assert lines[:3] == ["request opd: ACTIVE", *(f"opd-{i}: READY (v5litepod-16, 2 worker(s))" for i in range(2))]
  assert sorted(lines[3:]) == [
    f"opd-{s} w-{w}: ended with status 4 (failed): error: a wrong input" for s, w in ((0, 0), (0, 1), (1, 1))
  ]


def test_before_setup_and_before_launch(cloud, homes):
  (home,) = homes()
  refusal = cloud.run("logs", *LOCATION)
  assert (refusal.returncode, "No run was started" in refusal.stderr) == (2, True)
  shutil.rmtree(home / "opd_jax" / ".venv")
  refusal = cloud.run("launch", *LOCATION, *TRAIN)
  assert (refusal.returncode, "run setup.sh first" in refusal.stderr) == (2, True)
  shutil.rmtree(home / "opd_jax")
  refusal = cloud.run("launch", *LOCATION, *TRAIN)
  assert (refusal.returncode, "run setup.sh first" in refusal.stderr) == (127, True)

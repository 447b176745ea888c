"""slurm.sh: the script that it submits, run here with stand-ins for srun and scontrol."""

import os
import shutil

import pytest

from tests.helpers import cloud as stand_in
from tests.helpers.cloud import AWKWARD, TRAIN, assert_refused

bare, cloud = stand_in.bare, stand_in.cloud  # fixtures
pytestmark = pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="the scripts need bash")

JOB = ("--name=opd", "--nodes=2", "--gpus=4")

SRUN = r"""
printf '%s\0' "${0##*/}" "$JAX_LOCAL_DEVICE_IDS" "$@" >"$STANDIN/calls/$$"
case $0 in *srun) exit "$STATUS" ;; esac
"""


@pytest.fixture
def job(cloud):
  """job(script, status, count): runs the script as Slurm does, srun ending with a status; the job's own, and calls."""
  for tool in ("srun", "scontrol"):
    stand_in.write_program(cloud.bin / tool, SRUN, "/bin/sh")

  def run(script, status=0, count=None):
    environment = {"SLURM_JOB_ID": "17", "STATUS": str(status)}
    if count is not None:
      environment["SLURM_RESTART_COUNT"] = str(count)
    result = cloud.shell(["env", *(f"{k}={v}" for k, v in environment.items()), "bash", "-s"], stdin=script)
    return result.returncode, cloud.calls()

  return run


def script(cloud, *args):
  result = cloud.run("slurm", *args, "--dry-run", *TRAIN)
  assert (result.returncode, result.stderr, cloud.calls()) == (0, "", [])
  return result.stdout


def directives(text):
  return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_script(cloud):
  text = script(cloud, *JOB)
  assert text.startswith("#!/bin/bash\n#SBATCH ")
  assert directives(text) == [
    *("--job-name=opd", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--signal=TERM@600", "--requeue"),
    *("--open-mode=append", "--output=opd-%j.log", "--dependency=singleton"),
  ]
  more = ("--per-node", "--cpus=16", "--time=1-12:00:00", "--ahead=300", "--sbatch=--partition=gpu", "--sbatch=-A me")
  wanted = {
    "--ntasks-per-node=1",
    "--cpus-per-task=16",
    "--time=1-12:00:00",
    "--signal=TERM@300",
    "--partition=gpu",
    "-A me",
  }
  assert wanted <= set(directives(script(cloud, *JOB, *more)))


def test_submit(cloud):
  result = cloud.run("slurm", *JOB, *TRAIN)
  assert (result.returncode, result.stderr) == (0, "+ sbatch\n")
  assert cloud.calls() == [["sbatch", script(cloud, *JOB)]]
  cloud.answers["sbatch"] = {"status": 3, "err": "sbatch: error: invalid partition specified: x\n"}
  result = cloud.run("slurm", *JOB, *TRAIN)
  assert (result.returncode, "invalid partition" in result.stderr) == (3, True)


@pytest.mark.parametrize(
  ("flags", "devices", "steps"),
  [((), "", []), (("--per-node", "--cpus=16", "--python=.venv/bin/python"), "0,1,2,3", ["--cpus-per-task=16"])],
)
def test_arguments_reach_the_trainer_exactly(cloud, job, flags, devices, steps):
  """A process of a Slurm job gets one device from JAX unless it is told of the others."""
  text = cloud.run("slurm", *JOB, *flags, "--dry-run", "--", *AWKWARD).stdout
  status, calls = job(text)
  python = ".venv/bin/python" if flags else "python"
  srun = ["srun", devices, "--kill-on-bad-exit=0", "--wait=0", *steps, python, "-u", "-m", "opd_jax.train"]
  assert (status, calls) == (0, [[*srun, *AWKWARD]])


def test_back_into_the_queue(cloud, job):
  """After 75 and a death by signal, as often as asked for; not after an end, a wrong input or an interrupt."""
  text = script(cloud, *JOB, "--restarts=2")
  for status, count in ((75, None), (75, 1), (137, 0)):
    result, (_, *calls) = job(text, status, count)
    assert (result, calls) == (0, [["scontrol", "", "requeue", "17"]])
  for status, count in ((75, 2), (139, 2), (0, None), (1, 0), (2, 0), (130, 0)):
    result, (_, *calls) = job(text, status, count)
    assert (result, calls) == (status, [])


@pytest.mark.parametrize(
  ("args", "words"),
  [
    (("--name=opd", *TRAIN), ("--gpus=N",)),
    (("--name=my job", "--gpus=8", *TRAIN), ("--name=my job",)),
    ((*JOB, "--gpus=0", *TRAIN), ("--gpus=0",)),
    ((*JOB, "--time=tomorrow", *TRAIN), ("--time=tomorrow", "24:00:00")),
    ((*JOB, "--ahead=70000", *TRAIN), ("65535",)),
    ((*JOB, "--sbatch=gpu", *TRAIN), ("--sbatch=gpu", "--partition=gpu")),
    ((*JOB, "--sbatch=-p a\nrm -rf x", *TRAIN), ()),
    ((*JOB, "--cpu=3", *TRAIN), ("slurm.sh does not know --cpu=3",)),
    (JOB, ("after --",)),
  ],
)
def test_wrong_input(cloud, args, words):
  result = cloud.run("slurm", *args)
  assert (result.returncode, result.stdout, result.stderr[:7]) == (2, "", "error: ")
  assert all(word in result.stderr for word in words)
  assert cloud.calls() == []


def test_help_and_missing_sbatch(cloud, bare):
  shown = cloud.run("slurm", "--help", path=bare)
  assert (shown.returncode, shown.stderr) == (0, "")
  assert "tpu_scripts/slurm.sh --name=opd" in shown.stdout
  assert_refused(cloud.run("slurm", *JOB, *TRAIN, path=bare), "sbatch is not on PATH", "--dry-run")
  assert cloud.run("slurm", *JOB, "--dry-run", *TRAIN, path=bare).returncode == 0

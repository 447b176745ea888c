"""gke.sh: the JobSet as Kubernetes reads it, and what xpk and kubectl are given."""

import json
import os
import shlex
import shutil
import subprocess

import pytest
import yaml

from tests.helpers import cloud as stand_in
from tests.helpers.cloud import AWKWARD, TRAIN, assert_refused

bare, cloud = stand_in.bare, stand_in.cloud  # fixtures
pytestmark = pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="the scripts need bash")

JOB = ("--name=opd", "--type=v6e", "--topology=4x4", "--image=us-docker.pkg.dev/p/r/opd:1")
POPD = ("--", "--config=configs/popd.py", "--workdir=gs://bucket/popd")
STRANGE = [*AWKWARD, "$", "$$", "$$(A)", "a$(TPU_WORKER_ID)b$", "\x01\x1f\x7f", "a\u2028b\u2029c\x85d", '\\"$', "😀"]


def kubernetes(text):
  """What Kubernetes makes of a command or argument where no variable is defined: $$ is $, and $(NAME) stays."""
  out, i = "", 0
  while i < len(text):
    step = 2 if text[i : i + 2] == "$$" else 1
    out, i = out + text[i], i + step
  return out


def jobset(cloud, *args):
  result = cloud.run("gke", *args)
  assert (result.returncode, result.stderr) == (0, "")
  return yaml.safe_load(result.stdout)


def test_manifest(cloud):
  made = jobset(cloud, *JOB, "--slices=3", "--restarts=5", "--grace=900", *POPD)
  assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  topology = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
  assert made["metadata"] == {"name": "opd", "annotations": topology}
  failure = made["spec"]["failurePolicy"]
  assert failure == {"maxRestarts": 5, "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]}
  (job,) = made["spec"]["replicatedJobs"]
  assert (job["name"], job["replicas"]) == ("slice", 3)
  spec = job["template"]["spec"]
  assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (4, 4, 0)
  rules = spec["podFailurePolicy"]["rules"]
  codes = {tuple(r["onExitCodes"]["values"]): r["action"] for r in rules if "onExitCodes" in r}
  assert codes == {(2, 3, 130): "FailJob", (75,): "Ignore"}
  assert rules[2] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
  pod = spec["template"]["spec"]
  assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 900)
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
    "cloud.google.com/gke-tpu-topology": "4x4",
  }
  (container,) = pod["containers"]
  assert all(r["onExitCodes"]["containerName"] == container["name"] for r in rules[:2])
  assert container["image"] == "us-docker.pkg.dev/p/r/opd:1"
  assert container["command"] == ["python", "-u", "-m", "opd_jax.train"]
  assert container["args"] == list(POPD[1:])
  assert container["resources"] == {"limits": {"google.com/tpu": 4}}


@pytest.mark.parametrize(
  ("kind", "topology", "flags", "accelerator", "hosts", "chips"),
  [
    ("v4", "2x2x4", (), "tpu-v4-podslice", 4, 4),
    ("v5e", "2x4", ("--chips=8",), "tpu-v5-lite-podslice", 1, 8),
    ("v5p", "2x2x1", (), "tpu-v5p-slice", 1, 4),
    ("v6e", "1x1", (), "tpu-v6e-slice", 1, 1),
    ("tpu7x", "4x4x4", (), "tpu7x", 16, 4),
  ],
)
def test_hosts_and_chips(cloud, kind, topology, flags, accelerator, hosts, chips):
  made = jobset(cloud, "--name=no", f"--type={kind}", f"--topology={topology}", "--image=i", *flags, *POPD)
  assert made["metadata"]["name"] == "no"  # which YAML would take for a boolean
  assert ("annotations" in made["metadata"]) == (hosts > 1)  # hosts of their own share a node pool
  spec = made["spec"]["replicatedJobs"][0]["template"]["spec"]
  pod = spec["template"]["spec"]
  assert spec["completions"] == hosts
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == accelerator
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
  assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips


def test_arguments_reach_the_trainer_exactly(cloud):
  made = jobset(cloud, *JOB, "--", *STRANGE)
  args = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
  assert [kubernetes(arg) for arg in args] == STRANGE


def test_apply(cloud):
  printed = cloud.run("gke", *JOB, *POPD).stdout
  dry = cloud.run("gke", *JOB, "--apply", "--dry-run", "--", *STRANGE)
  assert (dry.returncode, dry.stderr, cloud.calls()) == (0, "", [])
  for shell in filter(shutil.which, ("bash", "dash", "zsh")):
    assert cloud.shell([shell, "-c", dry.stdout]).returncode == 0
    assert cloud.calls() == [["kubectl", "apply", "-f", "-", cloud.run("gke", *JOB, "--", *STRANGE).stdout]]
  assert cloud.run("gke", *JOB, "--apply", *POPD).returncode == 0
  assert cloud.calls() == [["kubectl", "apply", "-f", "-", printed]]


@pytest.mark.parametrize(
  ("message", "status", "words"),
  [
    ('no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"', 2, "install it"),
    ("The JobSet is invalid: spec.replicatedJobs: Invalid value: field is immutable", 2, "kubectl delete jobset opd"),
    ("Unable to connect to the server", 5, "Unable to connect"),
  ],
)
def test_kubectl_fails(cloud, message, status, words):
  cloud.answers["kubectl"] = {"status": 5, "err": f"error: {message}\n"}
  result = cloud.run("gke", *JOB, "--apply", *POPD)
  assert result.returncode == status
  assert words in result.stderr.splitlines()[-1]


def test_xpk(cloud):
  flags = ("--xpk", "--cluster=my-cluster", "--zone=us-east5-b", "--project=p", "--slices=2", "--restarts=4")
  printed = cloud.run("gke", *JOB, *flags, "--", *STRANGE)
  assert (printed.returncode, printed.stderr, cloud.calls()) == (0, "", [])
  assert cloud.run("gke", *JOB, *flags, "--apply", "--", *STRANGE).returncode == 0
  (call,) = cloud.calls()
  assert shlex.split(printed.stdout) == call
  assert call[:-1] == [
    *("xpk", "workload", "create", "--cluster=my-cluster", "--zone=us-east5-b", "--project=p", "--workload=opd"),
    *("--tpu-type=v6e-4x4", "--num-slices=2", "--docker-image=us-docker.pkg.dev/p/r/opd:1", "--max-restarts=4"),
    *("--restart-on-exit-codes=75", "--termination-grace-period-seconds=600"),
  ]
  command = call[-1].removeprefix("--command=")
  assert "\n" not in command  # xpk puts it into one line of its manifest, and that line into bash
  stand_in.write_program(cloud.bin / "python", 'import json, sys; print(json.dumps(["python", *sys.argv[1:]]))')
  run = cloud.shell(["bash", "-c", f"({kubernetes(command)}) & wait $!"])
  assert json.loads(run.stdout) == ["python", "-u", "-m", "opd_jax.train", *STRANGE]


@pytest.mark.parametrize(
  ("args", "words"),
  [
    ((*JOB[:3], *POPD), ("--image=IMAGE",)),
    (("--name=Opd", *JOB[1:], *POPD), ("--name=Opd", "lower-case")),
    (("--name=" + "o" * 41, *JOB[1:], *POPD), ("at most 40",)),
    ((*JOB, "--type=v5litepod-16", *POPD), ("--type=v5litepod-16", "v5e")),
    ((*JOB, "--topology=16", *POPD), ("--topology=16", "4x4")),
    ((*JOB, "--chips=5", *POPD), ("16 chips", "--chips")),
    ((*JOB, "--slices=0", *POPD), ("--slices=0",)),
    ((*JOB, "--image=a b", *POPD), ("--image=a b",)),
    ((*JOB, "--xpk", *POPD), ("--cluster=NAME",)),
    ((*JOB, "--sliced=2", *POPD), ("gke.sh does not know --sliced=2",)),
    (JOB, ("after --", "gs://")),
    ((*JOB, *TRAIN), ("--workdir=runs/popd", "gs://")),
  ],
)
def test_wrong_input(cloud, args, words):
  assert_refused(cloud.run("gke", *args), *words)
  assert cloud.calls() == []


def test_help_and_missing_tools(cloud, bare):
  shown = cloud.run("gke", "--help", path=bare)
  assert (shown.returncode, shown.stderr) == (0, "")
  assert "tpu_scripts/gke.sh --name=opd" in shown.stdout
  assert "--dry-run" in shown.stdout
  assert_refused(cloud.run("gke", *JOB, "--apply", *POPD, path=bare), "kubectl is not on PATH", "--dry-run")
  assert_refused(cloud.run("gke", *JOB, "--xpk", "--cluster=c", "--apply", *POPD, path=bare), "xpk is not on PATH")
  for flags in ((), ("--apply", "--dry-run"), ("--xpk", "--cluster=c")):
    assert subprocess.run(["bash", "-n"], input=cloud.run("gke", *JOB, *flags, *POPD, path=bare).stdout, text=True)

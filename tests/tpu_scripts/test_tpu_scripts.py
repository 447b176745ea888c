"""The scripts for TPU VMs, against a gcloud that records what it is asked and answers what the test says.

What happens on the workers is in test_tpu_workers.py, several slices and waiting for them in test_tpu_slices.py.
"""

import os
import shlex
import shutil
import subprocess

import pytest

from tests.helpers import cloud as stand_in
from tests.helpers.cloud import AWKWARD, DENIED, LOCATION, ROOT, SCRIPTS, TRAIN, assert_refused

bare, checkout, cloud = stand_in.bare, stand_in.checkout, stand_in.cloud  # fixtures
COMMANDS = ("create", "wait", "setup", "launch", "status", "logs", "delete")


pytestmark = pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="the scripts need bash")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_syntax(script):
  subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck(script):
  result = subprocess.run(["shellcheck", "-x", script.relative_to(ROOT)], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", COMMANDS)
def test_help_needs_nothing(cloud, bare, script):
  result = cloud.run(script, "--help", path=bare)
  assert (result.returncode, result.stderr) == (0, "")
  assert f"tpu_scripts/{script}.sh --name=opd" in result.stdout
  for flag in ("--name=", "--zone=", "--project=", "--type=", "--version=", "--dry-run"):
    assert flag in result.stdout


@pytest.mark.parametrize("script", COMMANDS)
def test_missing_gcloud(cloud, bare, checkout, script):
  args = TRAIN if script == "launch" else ()
  assert_refused(cloud.run(script, *LOCATION, *args, path=bare), "gcloud", "install", "--dry-run")
  dry = cloud.run(script, *LOCATION, "--dry-run", *args, path=bare)
  assert (dry.returncode, dry.stderr) == (0, "")
  assert "gcloud compute tpus tpu-vm describe opd --zone=us-west4-a" in dry.stdout


@pytest.mark.parametrize(
  ("script", "args"),
  [
    ("create", ()),
    ("create", ("--type=v6e-8", "--spot", "--project=my-project")),
    ("create", ("--type=v5p-8", "--queued", "--spot", "--version=mine")),
    ("create", ("--", "--network=a b", "--description=it's (mine)")),
    ("create", ("--slices=2",)),
    ("wait", ()),
    ("wait", ("--slices=2",)),
    ("setup", ()),
    ("launch", TRAIN),
    ("launch", ("--watch=0", "--", *AWKWARD)),
    ("launch", ("--slices=2", "--shared-workdir", *TRAIN)),
    ("launch", ("--stop",)),
    ("launch", ("--save",)),
    ("status", ()),
    ("logs", ("--worker=1", "--lines=5", "--once")),
    ("logs", ("--slices=2", "--slice=1")),
    ("delete", ("--yes",)),
    ("delete", ("--yes", "--slices=2")),
  ],
)
def test_dry_run_prints_what_would_run(cloud, checkout, script, args):
  """Nothing runs; what is printed, pasted into a shell, asks of gcloud what the script asks of it."""
  if script != "create":
    cloud.has_tpu()
    cloud.has_slices("READY", "READY")
  dry = cloud.run(script, *LOCATION, "--dry-run", *args)
  assert (dry.returncode, dry.stderr, cloud.calls()) == (0, "", [])
  assert not (checkout / "build").exists()
  real = cloud.run(script, *LOCATION, *args)
  assert real.returncode == 0, real.stderr
  asked = sorted(cloud.calls())  # slices are asked at once
  assert len(asked) >= (1 if script == "wait" else 2)
  for shell in filter(shutil.which, ("bash", "dash", "zsh") if "--" in args else ("sh",)):
    assert cloud.shell([shell, "-c", dry.stdout]).returncode == 0
    assert sorted(cloud.calls()) == asked


def test_arguments_reach_the_trainer_exactly(cloud):
  cloud.has_tpu()
  assert cloud.run("launch", *LOCATION, "--", *AWKWARD).returncode == 0
  ssh = cloud.calls()[-1]
  assert ssh[2:7] == ["tpu-vm", "ssh", "opd", "--zone=us-west4-a", "--worker=all"]
  command = ssh[7].removeprefix("--command=")
  assert shlex.split(command) == ["bash", "opd_jax/tpu_scripts/worker.sh", "train", "15", "3", "15", *AWKWARD]
  for shell in filter(shutil.which, ("bash", "dash", "zsh")):
    echo = f'set -- {command}; for a in "$@"; do printf "%s\\0" "$a"; done'
    assert cloud.shell([shell, "-c", echo]).stdout.split("\0")[6:-1] == AWKWARD


@pytest.mark.parametrize(
  ("kind", "version"),
  [
    ("", "v2-alpha-tpuv5-lite"),
    ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-8", "v2-alpha-tpuv5"),
    ("v6e-8", "v2-alpha-tpuv6e"),
    ("v4-8", "tpu-ubuntu2204-base"),
  ],
)
def test_create(cloud, kind, version):
  flags = [f"--type={kind}"] if kind else []
  assert cloud.run("create", *LOCATION, *flags).returncode == 0
  kind = kind or "v5litepod-8"
  label = "--labels=opd-jax=opd"
  where = ["opd", "--zone=us-west4-a"]
  create = ["compute", "tpus", "tpu-vm", "create", *where, f"--version={version}", f"--accelerator-type={kind}", label]
  assert cloud.calls()[2:] == [create]
  assert cloud.run("create", *LOCATION, *flags, "--queued", "--spot", "--project=p").returncode == 0
  request = cloud.calls()[-1]
  assert request[2:7] == ["queued-resources", "create", *where, "--project=p"]
  assert set(request[7:]) == {
    "--node-id=opd",
    f"--runtime-version={version}",
    f"--accelerator-type={kind}",
    label,
    "--spot",
  }


def test_create_twice(cloud):
  cloud.has_tpu()
  again = cloud.run("create", *LOCATION)
  assert again.returncode == 0
  expected = "The TPU opd is READY: there already (v5litepod-8 in us-west4-a), so nothing was created.\n"
  assert again.stderr == expected
  cloud.has_tpu(label="")
  assert "not made by create.sh" in cloud.run("create", *LOCATION).stderr
  assert_refused(cloud.run("create", *LOCATION, "--type=v6e-8"), "is a v5litepod-8", "delete.sh")
  cloud.has_tpu(state="PREEMPTED")
  assert_refused(cloud.run("create", *LOCATION), "PREEMPTED", "delete.sh --name=opd --zone=us-west4-a")
  assert set(cloud.verbs()) == {"tpu-vm describe"}


def test_create_queued_twice(cloud):
  cloud.has_request()
  for flags in ((), ("--queued",)):
    again = cloud.run("create", *LOCATION, *flags)
    assert again.returncode == 0
    assert "The queued request opd is WAITING_FOR_RESOURCES: there already" in again.stderr
  cloud.has_request(state="FAILED", error="no more capacity | in the zone")
  assert_refused(cloud.run("create", *LOCATION, "--queued"), "FAILED (no more capacity | in the zone)", "delete.sh")
  assert set(cloud.verbs()) == {"tpu-vm describe", "queued-resources describe"}


@pytest.mark.parametrize(
  ("message", "words"),
  [
    (
      "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZone' has been exceeded. Limit: 0",
      ("quota", "v6e-8"),
    ),
    ('There is no more capacity in the zone "us-west4-a"; you can try in another zone', ("no room", "--queued")),
    ("Insufficient capacity.", ("no room", "another --zone")),
  ],
)
def test_create_says_what_to_do_about_a_failure(cloud, message, words):
  cloud.answers["tpu-vm create"] = {"status": 1, "err": f"ERROR: (gcloud.compute.tpus.tpu-vm.create) {message}\n"}
  result = cloud.run("create", *LOCATION, "--type=v6e-8")
  assert result.returncode == 2
  shown, error, advice = result.stderr.splitlines()
  assert (shown[:2], error[:6], advice[:7]) == ("+ ", "ERROR:", "error: ")
  assert all(word in advice for word in words)
  assert cloud.verbs()[-1] == "tpu-vm create"


def test_create_keeps_its_label(cloud):
  assert_refused(cloud.run("create", *LOCATION, "--", "--labels=a=b"), "opd-jax=opd")
  assert cloud.calls() == []


def test_delete_asks(cloud):
  cloud.has_tpu()
  for answer in ("", "n\n", "\n", "yonder\n"):
    result = cloud.run("delete", *LOCATION, stdin=answer)
    assert result.returncode == 1
    assert "The TPU opd is READY (v5litepod-8 in us-west4-a). Delete it" in result.stderr
    assert "Nothing was deleted." in result.stderr
  assert set(cloud.verbs()) == {"tpu-vm describe"}
  assert cloud.run("delete", *LOCATION, stdin="y\n").returncode == 0
  assert cloud.calls()[-1] == ["compute", "tpus", "tpu-vm", "delete", "opd", "--zone=us-west4-a", "--quiet"]


@pytest.mark.parametrize("label", ["", "other", "opd2"])
def test_delete_refuses_what_others_made(cloud, label):
  cloud.has_tpu(label=label)
  assert_refused(cloud.run("delete", *LOCATION, "--yes"), "was not made by create.sh")
  cloud.has_tpu(request="another-request")
  assert_refused(cloud.run("delete", *LOCATION, "--yes"), "was not made by create.sh")
  del cloud.answers["tpu-vm describe"]
  cloud.has_request(label=label)
  assert_refused(cloud.run("delete", *LOCATION, "--yes"), "queued request", "was not made by create.sh")
  cloud.has_request(label="opd,other")  # of which one part is ours
  assert_refused(cloud.run("delete", *LOCATION, "--yes"), "was not made by create.sh")
  assert not any("delete" in verb for verb in cloud.verbs())


def test_delete_queued(cloud):
  """The request goes with the TPU that it brought; a request without a TPU goes alone."""
  delete = ["compute", "tpus", "queued-resources", "delete", "opd", "--zone=us-west4-a", "--force", "--quiet"]
  cloud.has_tpu(request="opd")
  assert cloud.run("delete", *LOCATION, "--yes").returncode == 0
  assert cloud.calls()[1:] == [delete]
  del cloud.answers["tpu-vm describe"]
  cloud.has_request()
  assert cloud.run("delete", *LOCATION, stdin="yes\n").returncode == 0
  assert cloud.calls()[2:] == [delete]


def test_delete_nothing(cloud):
  assert_refused(cloud.run("delete", *LOCATION, "--yes"), "no TPU and no queued request opd in us-west4-a")
  cloud.has_tpu()
  assert_refused(cloud.run("delete", *LOCATION, "--yes", "--type=v6e-8"), "is a v5litepod-8", "not deleted")


@pytest.mark.parametrize("script", COMMANDS)
def test_status_of_gcloud_is_the_status_of_the_script(cloud, checkout, script):
  args = TRAIN if script == "launch" else ("--yes",) if script == "delete" else ()
  cloud.answers["tpu-vm describe"] = DENIED
  result = cloud.run(script, *LOCATION, *args)
  assert (result.returncode, result.stderr) == (7, "ERROR: PERMISSION_DENIED: no permission\n")
  assert cloud.verbs() == ["tpu-vm describe"]
  if script == "create":
    del cloud.answers["tpu-vm describe"]
  else:
    cloud.has_tpu()
  verbs = {"create": ["create"], "wait": [], "setup": ["scp", "ssh"], "delete": ["delete"]}
  for verb in verbs.get(script, ["ssh"]):
    cloud.answers[f"tpu-vm {verb}"] = DENIED
    assert cloud.run(script, *LOCATION, *args).returncode == 7
    assert cloud.verbs()[-1] == f"tpu-vm {verb}"
    del cloud.answers[f"tpu-vm {verb}"]
  assert list((checkout).glob("build/*")) == []


@pytest.mark.parametrize("workdir", [("--workdir=runs/popd",), ("--workdir", "/mnt/disk/popd")])
def test_several_workers_need_a_shared_workdir(cloud, workdir):
  cloud.has_tpu(kind="v5litepod-16", workers=4)
  words = ("runs/popd" if len(workdir) == 1 else "/mnt/disk/popd", "gs://", "--shared-workdir")
  assert_refused(cloud.run("launch", *LOCATION, "--", *workdir), *words)
  assert cloud.verbs() == ["tpu-vm describe"]
  dry = cloud.run("launch", *LOCATION, "--type=v6e-16", "--dry-run", "--", *workdir)
  assert (dry.returncode, words[0] in dry.stderr) == (2, True)
  assert cloud.run("launch", *LOCATION, "--shared-workdir", "--", *workdir).returncode == 0
  assert cloud.run("launch", *LOCATION, "--", "--workdir=gs://bucket/popd").returncode == 0
  cloud.has_tpu()
  assert cloud.run("launch", *LOCATION, "--", *workdir).returncode == 0


@pytest.mark.parametrize("script", ["setup", "launch", "logs"])
def test_tpu_has_to_be_there_and_as_expected(cloud, checkout, script):
  args = TRAIN if script == "launch" else ()
  assert_refused(cloud.run(script, *LOCATION, *args), "no TPU opd in us-west4-a", "create.sh")
  cloud.has_tpu(state="CREATING")
  assert_refused(cloud.run(script, *LOCATION, *args), "CREATING, not READY")
  cloud.has_tpu()
  assert_refused(cloud.run(script, *LOCATION, "--type=v6e-8", *args), "is a v5litepod-8, not a v6e-8")
  assert_refused(cloud.run(script, *LOCATION, "--version=x", *args), "runs v2-alpha-tpuv5-lite, not x")
  cloud.has_tpu(state="STOPPED")
  assert_refused(cloud.run(script, *LOCATION, *args), "STOPPED, not READY", "tpu-vm start opd")
  assert set(cloud.verbs()) == {
    "tpu-vm describe",
    "queued-resources describe",
  }  # to learn whether it has several slices


@pytest.mark.parametrize(
  ("args", "words"),
  [
    (("create", "--name=opd"), ("--zone=ZONE",)),
    (("create", "--zone=z"), ("--name=NAME",)),
    (("create", "--name", "opd", "--zone=z"), ("--name=VALUE", "equals")),
    (("create", "--name=Opd", "--zone=z"), ("--name=Opd", "lower-case")),
    (("create", "--name=o,opd-jax=x", "--zone=z"), ("not a TPU name",)),
    (("create", *LOCATION, "--type=v5e-8"), ("v5litepod-8",)),
    (("create", *LOCATION, "--type=h100"), ("h100", "not a TPU type")),
    (("create", *LOCATION, "--sopt"), ("create.sh does not know --sopt",)),
    (("launch", *LOCATION), ("after --",)),
    (("launch", *LOCATION, "--"), ("after --",)),
    (("launch", *LOCATION, "--config=popd"), ("launch.sh does not know --config=popd",)),
    (("launch", *LOCATION, "--watch=x", *TRAIN), ("--watch=x",)),
    (("launch", *LOCATION, "--stop", *TRAIN), ("--stop",)),
    (("launch", *LOCATION, "--restarts=-1", *TRAIN), ("--restarts=-1", "0 or more")),
    (("launch", *LOCATION, "--pause", "3", *TRAIN), ("--pause=VALUE",)),
    (("create", *LOCATION, "--slices=0"), ("--slices=0", "1 or more")),
    (("wait", *LOCATION, "--timeout=1h"), ("--timeout=1h",)),
    (("wait", *LOCATION, "--interval=-1"), ("--interval=-1",)),
    (("status", *LOCATION, "--", "x"), ("nothing after --",)),
    (("logs", *LOCATION, "--worker=all"), ("--worker=all",)),
    (("logs", *LOCATION, "--slice=first"), ("--slice=first",)),
    (("logs", *LOCATION, "--lines=-1"), ("--lines=-1",)),
    (("setup", *LOCATION, "--", "x"), ("nothing after --",)),
    (("delete", *LOCATION, "opd"), ("does not know opd",)),
  ],
)
def test_wrong_input(cloud, args, words):
  assert_refused(cloud.run(*args), *words)
  assert cloud.calls() == []


def test_setup_needs_a_checkout(cloud, tmp_path):
  cloud.scripts = shutil.copytree(ROOT / "tpu_scripts", tmp_path / "unpacked" / "tpu_scripts")
  assert_refused(cloud.run("setup", *LOCATION), "git checkout")
  assert cloud.calls() == []

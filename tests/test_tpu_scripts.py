"""The TPU scripts, against a gcloud that records what it is asked and answers what the test says.

The end-to-end tests let that gcloud run the remote commands in an empty home directory, with a Python that records too.
"""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "tpu_scripts").glob("*.sh"))
COMMANDS = ("create", "setup", "launch", "logs", "delete")
HERE = ("--name=opd", "--zone=us-west4-a")
TRAIN = ("--", "--config=configs/popd.py", "--workdir=runs/popd")
DENIED = {"status": 7, "err": "ERROR: PERMISSION_DENIED: no permission"}
AWKWARD = [
  "--config.eval.pass_at=(1, 8)",
  "it's",
  'say "hi"',
  "",
  "two\nlines\n",
  "  two  spaces ",
  "tab\there",
  "$HOME `id` $(id) \\$x",
  "back\\slash\\",
  "*?[a]{b,c}~",
  "~",
  "a;b&c|d<e>f#g!h%i^j",
  "=ls",
  "--flag",
  "-",
  "été 蒸留",
]

pytestmark = pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="the scripts need bash")

GCLOUD = """
import json, os, pathlib, shutil, subprocess, sys
args = sys.argv[1:]
base = pathlib.Path(os.environ["STANDIN"])
with open(base / "calls.jsonl", "a") as f:
  f.write(json.dumps(args) + "\\n")
kind = " ".join(args[2:4])
missing = {"status": 1, "err": "ERROR: (gcloud) NOT_FOUND: Resource 'nodes/opd' was not found."}
answer = json.loads(os.environ["STANDIN_ANSWERS"]).get(kind, missing if kind.endswith("describe") else {})
print(answer.get("out", ""), end="")
print(answer.get("err", ""), end="", file=sys.stderr)
status = answer.get("status", 0)
home = base / "worker"
if home.is_dir() and status == 0:
  if kind == "tpu-vm scp":
    shutil.copy(args[4], home)
  if kind == "tpu-vm ssh":
    command = next(a for a in args if a.startswith("--command=")).split("=", 1)[1]
    status = subprocess.run(["sh", "-c", command], cwd=home, env=os.environ | {"HOME": str(home)}).returncode
sys.exit(status)
"""

PYTHON = """
import json, os, pathlib, shutil, signal, sys, time
args = sys.argv[1:]
with open(pathlib.Path(os.environ["HOME"]) / "python.jsonl", "a") as f:
  f.write(json.dumps(args) + "\\n")
if args[:2] == ["-m", "venv"]:
  (pathlib.Path(args[2]) / "bin").mkdir(parents=True)
  shutil.copy(sys.argv[0], pathlib.Path(args[2]) / "bin" / "python")
if args[:2] == ["-m", "opd_jax.train"]:
  print("hello from the trainer", flush=True)
  if "--fail" in args:
    print("error: a wrong input")
    sys.exit(3)
  try:
    while "--forever" in args:
      time.sleep(0.1)
  except KeyboardInterrupt:
    print("stopped")
    sys.exit(130)
"""


def program(path: pathlib.Path, text: str) -> None:
  path.write_text(f"#!{sys.executable} -IS\n{text}")
  path.chmod(0o755)


class Cloud:
  """Runs the scripts with the stand-in on PATH; `answers` says what it prints and how it ends, by group and verb."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.answers: dict[str, dict] = {}
    self.scripts = ROOT / "tpu_scripts"
    self.bin = path / "bin"
    self.bin.mkdir()
    program(self.bin / "gcloud", GCLOUD)

  def has_tpu(self, label="opd", state="READY", kind="v5litepod-8", workers=1, request=""):
    fields = (state, kind, "v2-alpha-tpuv5-lite", str(workers), request, label)
    self.answers["tpu-vm describe"] = {"out": "|".join(fields) + "\n"}

  def has_request(self, label="opd", state="WAITING_FOR_RESOURCES", nodes=1):
    self.answers["queued-resources describe"] = {"out": f"{state}|{nodes}|{label}\n"}

  def run(self, script, *args, stdin="", path=None):
    return self.shell([str(self.scripts / f"{script}.sh"), *args], stdin, path)

  def shell(self, command, stdin="", path=None):
    env = {
      "PATH": path or f"{self.bin}:{os.environ['PATH']}",
      "HOME": str(self.path),
      "LANG": "C.UTF-8",
      "STANDIN": str(self.path),
      "STANDIN_ANSWERS": json.dumps(self.answers),
    }
    return subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=120)

  def calls(self, name="calls.jsonl"):
    """What was asked since the last time."""
    path = self.path / name
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]

  def verbs(self):
    return [" ".join(call[2:4]) for call in self.calls()]


@pytest.fixture
def cloud(tmp_path):
  return Cloud(tmp_path)


@pytest.fixture
def bare(tmp_path):
  """A PATH with what the scripts use, and no gcloud."""
  path = tmp_path / "bare"
  path.mkdir()
  for tool in ("bash", "cat", "dirname", "env", "git", "sed"):
    if found := shutil.which(tool):
      (path / tool).symlink_to(found)
  return str(path)


@pytest.fixture
def checkout(cloud, tmp_path):
  """A committed checkout of the scripts, which setup.sh can copy."""
  if not shutil.which("git"):
    pytest.skip("setup.sh needs git")
  root = tmp_path / "a checkout"
  shutil.copytree(ROOT / "tpu_scripts", root / "tpu_scripts")
  (root / ".gitignore").write_text("build/\n")
  (root / "old.py").write_text("")
  cloud.scripts = root / "tpu_scripts"
  commit(root, "init", "-q")
  return root


def commit(root, *first):
  if first:
    subprocess.run(["git", *first], cwd=root, check=True)
  subprocess.run(["git", "add", "-A"], cwd=root, check=True)
  who = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
  subprocess.run(["git", *who, "commit", "-q", "-m", "x"], cwd=root, check=True)


def refused(result, *words, status=2):
  """One sentence on stderr, and nothing else."""
  assert result.returncode == status
  assert result.stdout == ""
  assert result.stderr.startswith("error: ")
  assert result.stderr.count("\n") == 1
  for word in words:
    assert word in result.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_syntax(script):
  subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck():
  if not shutil.which("shellcheck"):
    pytest.skip("shellcheck is not installed")
  names = [str(p.relative_to(ROOT)) for p in SCRIPTS]
  result = subprocess.run(["shellcheck", "-x", *names], cwd=ROOT, capture_output=True, text=True)
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
  refused(cloud.run(script, *HERE, *args, path=bare), "gcloud", "install", "--dry-run")
  dry = cloud.run(script, *HERE, "--dry-run", *args, path=bare)
  assert (dry.returncode, dry.stderr) == (0, "")
  assert "gcloud compute tpus tpu-vm describe opd --zone=us-west4-a" in dry.stdout


@pytest.mark.parametrize(
  ("script", "args"),
  [
    ("create", ()),
    ("create", ("--type=v6e-8", "--spot", "--project=my-project")),
    ("create", ("--type=v5p-8", "--queued", "--spot", "--version=mine")),
    ("create", ("--", "--network=a b", "--description=it's (mine)")),
    ("setup", ()),
    ("launch", TRAIN),
    ("launch", ("--watch=0", "--", *AWKWARD)),
    ("launch", ("--stop",)),
    ("logs", ("--worker=1", "--lines=5", "--once")),
    ("delete", ("--yes",)),
  ],
)
def test_dry_run_prints_what_would_run(cloud, checkout, script, args):
  """Nothing runs; what is printed, pasted into a shell, asks of gcloud what the script asks of it."""
  if script != "create":
    cloud.has_tpu()
  dry = cloud.run(script, *HERE, "--dry-run", *args)
  assert (dry.returncode, dry.stderr, cloud.calls()) == (0, "", [])
  assert not (checkout / "build").exists()
  real = cloud.run(script, *HERE, *args)
  assert real.returncode == 0, real.stderr
  asked = cloud.calls()
  assert len(asked) >= 2
  for shell in filter(shutil.which, ("bash", "dash", "zsh")):
    assert cloud.shell([shell, "-c", dry.stdout]).returncode == 0
    assert cloud.calls() == asked


def test_arguments_reach_the_trainer_exactly(cloud):
  cloud.has_tpu()
  assert cloud.run("launch", *HERE, "--", *AWKWARD).returncode == 0
  ssh = cloud.calls()[-1]
  assert ssh[2:7] == ["tpu-vm", "ssh", "opd", "--zone=us-west4-a", "--worker=all"]
  command = ssh[7].removeprefix("--command=")
  assert shlex.split(command) == ["bash", "opd_jax/tpu_scripts/worker.sh", "train", "15", *AWKWARD]
  for shell in filter(shutil.which, ("bash", "dash", "zsh")):
    echo = f'set -- {command}; for a in "$@"; do printf "%s\\0" "$a"; done'
    assert cloud.shell([shell, "-c", echo]).stdout.split("\0")[4:-1] == AWKWARD


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
  assert cloud.run("create", *HERE, *flags).returncode == 0
  kind = kind or "v5litepod-8"
  label = "--labels=opd-jax=opd"
  where = ["opd", "--zone=us-west4-a"]
  create = ["compute", "tpus", "tpu-vm", "create", *where, f"--version={version}", f"--accelerator-type={kind}", label]
  assert cloud.calls()[1:] == [create]
  assert cloud.run("create", *HERE, *flags, "--queued", "--spot", "--project=p").returncode == 0
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
  again = cloud.run("create", *HERE)
  assert again.returncode == 0
  assert again.stderr == "The TPU opd exists already in us-west4-a (v5litepod-8, READY).\n"
  cloud.has_tpu(label="")
  assert "was not made by create.sh" in cloud.run("create", *HERE).stderr
  refused(cloud.run("create", *HERE, "--type=v6e-8"), "as a v5litepod-8", "delete.sh")
  cloud.has_tpu(state="PREEMPTED")
  refused(cloud.run("create", *HERE), "PREEMPTED", "delete.sh --name=opd --zone=us-west4-a")
  assert set(cloud.verbs()) == {"tpu-vm describe"}


def test_create_queued_twice(cloud):
  cloud.has_request()
  again = cloud.run("create", *HERE, "--queued")
  assert again.returncode == 0
  assert "already in the queue of us-west4-a (WAITING_FOR_RESOURCES)" in again.stderr
  cloud.has_request(state="FAILED")
  refused(cloud.run("create", *HERE, "--queued"), "FAILED", "delete.sh")
  assert set(cloud.verbs()) == {"tpu-vm describe", "queued-resources describe"}


def test_create_keeps_its_label(cloud):
  refused(cloud.run("create", *HERE, "--", "--labels=a=b"), "opd-jax=opd")
  assert cloud.calls() == []


def test_delete_asks(cloud):
  cloud.has_tpu()
  for answer in ("", "n\n", "\n", "yonder\n"):
    result = cloud.run("delete", *HERE, stdin=answer)
    assert result.returncode == 1
    assert "Delete the TPU opd (v5litepod-8, READY) in us-west4-a" in result.stderr
    assert "Nothing was deleted." in result.stderr
  assert set(cloud.verbs()) == {"tpu-vm describe"}
  assert cloud.run("delete", *HERE, stdin="y\n").returncode == 0
  assert cloud.calls()[-1] == ["compute", "tpus", "tpu-vm", "delete", "opd", "--zone=us-west4-a", "--quiet"]


@pytest.mark.parametrize("label", ["", "other", "opd2"])
def test_delete_refuses_what_others_made(cloud, label):
  cloud.has_tpu(label=label)
  refused(cloud.run("delete", *HERE, "--yes"), "was not made by create.sh")
  cloud.has_tpu(request="another-request")
  refused(cloud.run("delete", *HERE, "--yes"), "was not made by create.sh")
  del cloud.answers["tpu-vm describe"]
  cloud.has_request(label=label)
  refused(cloud.run("delete", *HERE, "--yes"), "queued request", "was not made by create.sh")
  cloud.has_request(nodes=2)
  refused(cloud.run("delete", *HERE, "--yes"), "was not made by create.sh")
  assert not any("delete" in verb for verb in cloud.verbs())


def test_delete_queued(cloud):
  """The request goes with the TPU that it brought; a request without a TPU goes alone."""
  delete = ["compute", "tpus", "queued-resources", "delete", "opd", "--zone=us-west4-a", "--force", "--quiet"]
  cloud.has_tpu(request="opd")
  assert cloud.run("delete", *HERE, "--yes").returncode == 0
  assert cloud.calls()[1:] == [delete]
  del cloud.answers["tpu-vm describe"]
  cloud.has_request()
  assert cloud.run("delete", *HERE, stdin="yes\n").returncode == 0
  assert cloud.calls()[2:] == [delete]


def test_delete_nothing(cloud):
  refused(cloud.run("delete", *HERE, "--yes"), "no TPU and no queued request opd in us-west4-a")
  cloud.has_tpu()
  refused(cloud.run("delete", *HERE, "--yes", "--type=v6e-8"), "is a v5litepod-8", "not deleted")


@pytest.mark.parametrize("script", COMMANDS)
def test_status_of_gcloud_is_the_status_of_the_script(cloud, checkout, script):
  args = TRAIN if script == "launch" else ("--yes",) if script == "delete" else ()
  cloud.answers["tpu-vm describe"] = DENIED
  result = cloud.run(script, *HERE, *args)
  assert (result.returncode, result.stderr) == (7, "ERROR: PERMISSION_DENIED: no permission\n")
  assert cloud.verbs() == ["tpu-vm describe"]
  if script == "create":
    del cloud.answers["tpu-vm describe"]
  else:
    cloud.has_tpu()
  verbs = {"create": ["create"], "setup": ["scp", "ssh"], "launch": ["ssh"], "logs": ["ssh"], "delete": ["delete"]}
  for verb in verbs[script]:
    cloud.answers[f"tpu-vm {verb}"] = DENIED
    assert cloud.run(script, *HERE, *args).returncode == 7
    assert cloud.verbs()[-1] == f"tpu-vm {verb}"
    del cloud.answers[f"tpu-vm {verb}"]
  assert list((checkout).glob("build/*")) == []


def test_launch_refuses_a_slice_of_several_workers(cloud):
  cloud.has_tpu(kind="v5litepod-16", workers=2)
  refused(cloud.run("launch", *HERE, *TRAIN), "has 2 workers", "single host")
  refused(cloud.run("launch", *HERE, "--type=v6e-16", "--dry-run", *TRAIN), "v6e-16", "single host")
  assert cloud.verbs() == ["tpu-vm describe"]


@pytest.mark.parametrize("script", ["setup", "launch", "logs"])
def test_tpu_has_to_be_there_and_as_expected(cloud, checkout, script):
  args = TRAIN if script == "launch" else ()
  refused(cloud.run(script, *HERE, *args), "no TPU opd in us-west4-a", "create.sh")
  cloud.has_tpu(state="CREATING")
  refused(cloud.run(script, *HERE, *args), "CREATING, not READY")
  cloud.has_tpu()
  refused(cloud.run(script, *HERE, "--type=v6e-8", *args), "is a v5litepod-8, not a v6e-8")
  refused(cloud.run(script, *HERE, "--version=x", *args), "runs v2-alpha-tpuv5-lite, not x")
  assert set(cloud.verbs()) == {"tpu-vm describe"}


@pytest.mark.parametrize(
  ("args", "words"),
  [
    (("create", "--name=opd"), ("--zone=ZONE",)),
    (("create", "--zone=z"), ("--name=NAME",)),
    (("create", "--name", "opd", "--zone=z"), ("--name=VALUE", "equals")),
    (("create", "--name=Opd", "--zone=z"), ("--name=Opd", "lower-case")),
    (("create", "--name=o,opd-jax=x", "--zone=z"), ("not a TPU name",)),
    (("create", *HERE, "--type=v5e-8"), ("v5litepod-8",)),
    (("create", *HERE, "--type=h100"), ("h100", "not a TPU type")),
    (("create", *HERE, "--sopt"), ("create.sh does not know --sopt",)),
    (("launch", *HERE), ("after --",)),
    (("launch", *HERE, "--"), ("after --",)),
    (("launch", *HERE, "--config=popd"), ("launch.sh does not know --config=popd",)),
    (("launch", *HERE, "--watch=x", *TRAIN), ("--watch=x",)),
    (("launch", *HERE, "--stop", *TRAIN), ("--stop",)),
    (("logs", *HERE, "--worker=all"), ("--worker=all",)),
    (("logs", *HERE, "--lines=-1"), ("--lines=-1",)),
    (("setup", *HERE, "--", "x"), ("nothing after --",)),
    (("delete", *HERE, "opd"), ("does not know opd",)),
  ],
)
def test_wrong_input(cloud, args, words):
  refused(cloud.run(*args), *words)
  assert cloud.calls() == []


def test_setup_needs_a_checkout(cloud, tmp_path):
  cloud.scripts = shutil.copytree(ROOT / "tpu_scripts", tmp_path / "unpacked" / "tpu_scripts")
  refused(cloud.run("setup", *HERE), "git checkout")
  assert cloud.calls() == []


@pytest.fixture
def worker(cloud, checkout, tmp_path):
  """A READY TPU whose worker is a directory of this machine, with opd_jax set up."""
  if not all(map(shutil.which, ("flock", "setsid", "tail"))):
    pytest.skip("the worker's side needs util-linux")
  program(cloud.bin / "python3.13", PYTHON)
  cloud.has_tpu()
  home = tmp_path / "worker"
  home.mkdir()
  result = cloud.run("setup", *HERE)
  assert result.returncode == 0, result.stderr
  yield home
  pid = home / "opd_jax" / "logs" / "pid"
  if pid.exists() and not (pid.parent / "status").exists():
    subprocess.run(["kill", "-KILL", "--", f"-{pid.read_text().strip()}"])


def test_setup_installs_what_is_committed(cloud, checkout, worker):
  there = worker / "opd_jax"
  assert (there / "old.py").exists()
  asked = cloud.calls("worker/python.jsonl")
  assert asked[1] == ["-m", "venv", ".venv"]
  assert ["-m", "pip", "install", "--quiet", "--editable", ".[tpu]"] in asked
  (there / "runs").mkdir()
  (checkout / "old.py").unlink()
  (checkout / "new.py").write_text("")
  commit(checkout)
  (checkout / "later.py").write_text("")
  result = cloud.run("setup", *HERE)
  assert result.returncode == 0
  assert "Not committed, so not copied:\n?? later.py\n" in result.stderr
  assert {p.name for p in there.iterdir()} >= {"new.py", "runs", ".venv", "tpu_scripts"}
  assert not {p.name for p in there.iterdir()} & {"old.py", "later.py"}
  assert ["-m", "venv", ".venv"] not in cloud.calls("worker/python.jsonl")
  assert [p.name for p in worker.iterdir()] == ["opd_jax"]


def test_a_run_from_launch_to_logs(cloud, worker):
  result = cloud.run("launch", *HERE, "--", *AWKWARD)
  assert result.returncode == 0
  assert "hello from the trainer" in result.stdout
  assert "ended with status 0" in result.stderr
  assert cloud.calls("worker/python.jsonl")[-1] == ["-m", "opd_jax.train", *AWKWARD]
  for flags in ((), ("--once",)):
    result = cloud.run("logs", *HERE, *flags)
    assert (result.returncode, result.stdout) == (0, "hello from the trainer\n")


def test_a_run_that_fails_at_once(cloud, worker):
  result = cloud.run("launch", *HERE, "--", "--fail")
  assert result.returncode == 3
  assert "error: a wrong input" in result.stdout
  assert "ended with status 3" in result.stderr


def test_a_run_that_stays(cloud, worker):
  result = cloud.run("launch", *HERE, "--watch=0", "--", "--forever")
  assert result.returncode == 0
  assert "Running on" in result.stdout
  for command in (("launch", *HERE, *TRAIN), ("setup", *HERE)):
    again = cloud.run(*command)
    assert again.returncode == 2
    assert "in progress" in again.stderr
  deadline = time.time() + 30
  while "hello" not in cloud.run("logs", *HERE, "--once").stdout and time.time() < deadline:
    time.sleep(0.1)
  stopped = cloud.run("launch", *HERE, "--stop")
  assert (stopped.returncode, "ended with status 130" in stopped.stderr) == (0, True)
  assert cloud.run("logs", *HERE).stdout == "hello from the trainer\nstopped\n"
  assert "No run is in progress" in cloud.run("launch", *HERE, "--stop").stdout


def test_before_setup_and_before_launch(cloud, worker):
  refusal = cloud.run("logs", *HERE)
  assert (refusal.returncode, "No run was started" in refusal.stderr) == (2, True)
  shutil.rmtree(worker / "opd_jax")
  refusal = cloud.run("launch", *HERE, *TRAIN)
  assert (refusal.returncode, "run setup.sh first" in refusal.stderr) == (127, True)

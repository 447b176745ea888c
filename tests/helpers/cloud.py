"""Stand-ins for gcloud and the other programs that the scripts in tpu_scripts/ call, and the fixtures around them.

A stand-in records its arguments and its input, and prints the answers of the test. Where the test gives workers a home
directory, ssh and scp go there, and a Python that records its arguments takes the trainer's place.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "tpu_scripts").glob("*.sh"))
LOCATION = ("--name=opd", "--zone=us-west4-a")
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

# In sh, because the tests call it hundreds of times. $STANDIN/calls has a file a call, its arguments each with a NUL; in
# $STANDIN/answers/KIND are 1.out, 1.err, 1.status, and 2.* and so on for the times after, of which the last is for ever.
STAND_IN = r"""
tool=${0##*/} status=0
case $tool in
  gcloud) kind="$3 $4" && printf '%s\0' "$@" ;;
  xpk) kind=$tool && printf '%s\0' $tool "$@" ;;
  *) kind=$tool && printf '%s\0' $tool "$@" && cat && printf '\0' ;;
esac >"$STANDIN/calls/$$"
answers=$STANDIN/answers/$kind nth=1
if [ -d "$answers" ]; then
  if [ -e "$answers/2.out" ]; then
    set -C # so that two calls at once get different answers
    until true >"$answers/nth $nth"; do nth=$((nth + 1)); done 2>/dev/null
    while ! [ -e "$answers/$nth.out" ]; do nth=$((nth - 1)); done
  fi
  cat "$answers/$nth.out"
  cat "$answers/$nth.err" >&2
  read -r status <"$answers/$nth.status"
elif [ "$4" = describe ]; then
  echo "ERROR: (gcloud) NOT_FOUND: Resource 'nodes/opd' was not found." >&2
  status=1
fi
for word in "$@"; do
  case $word in
    --worker=all) worker='*' ;;
    --worker=*) worker=${word#*=} ;;
    --command=*) command=${word#*=} ;;
  esac
done
if [ "$status" = 0 ]; then
  case $kind in
    'tpu-vm scp')
      for home in "$STANDIN/homes/${6%:}"/*; do [ ! -d "$home" ] || cp "$5" "$home"; done
      ;;
    'tpu-vm ssh')
      for home in "$STANDIN/homes/$5"/$worker; do
        [ -d "$home" ] || continue
        (cd "$home" && HOME=$home HOSTNAME=w-${home##*/} exec sh -c "$command") &
        ssh="$ssh $!"
      done
      for pid in $ssh; do
        ended=0
        wait $pid || ended=$?
        if [ $status = 0 ]; then status=$ended; fi
      done
      ;;
  esac
fi
exit $status
"""

# The trainer of a worker. --ends=75,-9,0 is how it ends each time it is started, a negative one by that signal. With
# --forever a child trains, as in opd_jax/runtime/supervise.py: the parent passes SIGTERM on, and ignores SIGINT.
PYTHON = """
import json, os, signal, sys, time
args = sys.argv[1:]
with open(os.environ["HOME"] + "/python.jsonl", "a") as f:
  f.write(json.dumps(args) + "\\n")
if args[:2] == ["-m", "venv"]:
  os.makedirs(args[2] + "/bin")
  os.link(sys.argv[0], args[2] + "/bin/python")
def leave(text, status):
  print(text, flush=True)
  os._exit(status)
if args[:2] == ["-m", "opd_jax.train"]:
  both = {signal.SIGINT, signal.SIGTERM}
  signal.pthread_sigmask(signal.SIG_BLOCK, both)
  child = os.fork() if "--forever" in args else 0
  if child:
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
  signal.signal(signal.SIGTERM, lambda *_: leave("saved", 75))
  signal.signal(signal.SIGINT, lambda *_: leave("stopped", 130))
  signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
  print("hello from the trainer", flush=True)
  ends = next((a.removeprefix("--ends=") for a in args if a.startswith("--ends=")), "")
  if "--fail" in args:
    leave("error: a wrong input", 4)
  if ends:
    restarts = int(open("logs/restarts").read()) if os.path.exists("logs/restarts") else 0
    end = int(ends.split(",")[restarts])
    if end < 0:
      os.kill(os.getpid(), -end)
    sys.exit(end)
  while "--forever" in args:
    time.sleep(0.02)
"""


def write_program(path: pathlib.Path, text: str, interpreter: str = f"{sys.executable} -IS") -> None:
  path.write_text(f"#!{interpreter}\n{text}")
  path.chmod(0o755)


class Cloud:
  """Runs the scripts with the stand-ins on PATH.

  Attributes:
    answers: what a stand-in prints and how it ends, {"out", "err", "status"}, or a list of them for successive calls;
      for gcloud by group and verb ("tpu-vm ssh"), for the others by the program's name.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.answers: dict[str, dict | list[dict]] = {}
    self.scripts = ROOT / "tpu_scripts"
    self.bin = path / "bin"
    self.bin.mkdir()
    for tool in ("gcloud", "kubectl", "xpk", "sbatch"):
      write_program(self.bin / tool, STAND_IN, "/bin/sh")
    (path / "calls").mkdir()

  def has_tpu(self, label="opd", state="READY", kind="v5litepod-8", workers=1, request=""):
    fields = (state, kind, "v2-alpha-tpuv5-lite", str(workers), request, label)
    self.answers["tpu-vm describe"] = {"out": "|".join(fields) + "\n"}

  def has_request(self, label="opd", state="WAITING_FOR_RESOURCES", slices=1, error=""):
    count = slices if slices > 1 else ""
    fields = (state, "1", str(count), label, "v5litepod-16" if count else "v5litepod-8", "v2-alpha-tpuv5-lite", error)
    self.answers["queued-resources describe"] = {"out": "|".join(fields) + "\n"}

  def has_slices(self, *states, request="ACTIVE", label="opd", workers=4, error=""):
    """Answers with a request for as many slices as there are states; "" is a missing slice."""
    self.has_request(label, request, len(states), error)
    rows = [f"opd-{i}|{state}|{workers}\n" for i, state in enumerate(states) if state]
    self.answers["tpu-vm list"] = {"out": "".join(reversed(rows))}

  def run(self, script, *args, stdin="", path=None):
    return self.shell([str(self.scripts / f"{script}.sh"), *args], stdin, path)

  def shell(self, command, stdin="", path=None):
    shutil.rmtree(self.path / "answers", ignore_errors=True)
    for kind, answers in self.answers.items():
      (self.path / "answers" / kind).mkdir(parents=True)
      for nth, answer in enumerate(answers if isinstance(answers, list) else [answers], 1):
        for part in ("out", "err", "status"):
          (self.path / "answers" / kind / f"{nth}.{part}").write_text(
            f"{answer.get(part, 0 if part == 'status' else '')}"
          )
    env = {
      "PATH": path or f"{self.bin}:{os.environ['PATH']}",
      "HOME": str(self.path),
      "LANG": "C.UTF-8",
      "STANDIN": str(self.path),
    }
    return subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=120)

  def calls(self):
    """The arguments of every call of a stand-in since the last time, in their order."""
    files = sorted((self.path / "calls").iterdir(), key=lambda file: (file.stat().st_mtime_ns, int(file.name)))
    calls = [file.read_bytes().decode().split("\0")[:-1] for file in files]
    for file in files:
      file.unlink()
    return calls

  def verbs(self):
    return [" ".join(call[2:4]) for call in self.calls()]

  def homes(self, nodes=("opd",), workers=1):
    """Gives workers home directories, in which their commands run from then on."""
    paths = [self.path / "homes" / node / str(worker) for node in nodes for worker in range(workers)]
    for path in paths:
      path.mkdir(parents=True)
    write_program(self.bin / "python3.13", PYTHON)
    return paths


@pytest.fixture
def cloud(tmp_path):
  return Cloud(tmp_path)


@pytest.fixture
def bare(tmp_path):
  """A PATH with the tools that the scripts use, and none of the programs that they call."""
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


def assert_refused(result, *words, status=2):
  """Asserts that a script printed one sentence on standard error and nothing else, with all the words."""
  assert (result.returncode, result.stdout) == (status, ""), result
  assert result.stderr.startswith("error: "), result.stderr
  assert result.stderr.count("\n") == 1, result.stderr
  for word in words:
    assert word in result.stderr, result.stderr


def wait_until(condition, seconds=30):
  """Waits until condition() is true, and fails after so many seconds."""
  deadline = time.time() + seconds
  while not condition():
    assert time.time() < deadline
    time.sleep(0.05)

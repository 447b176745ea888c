"""The comparison with TRL: what is asked of its interpreter, and what is made of the answer; TRL itself is not run."""

import json
import pathlib
import stat
import subprocess
import sys

import pytest

from opd_jax import bench, config
from opd_jax.benchmarks import against_trl, trl_step
from opd_jax.benchmarks.subject import Case
from opd_jax.errors import InputError
from opd_jax.models import hf_config, roofline
from opd_jax.training.specs import SMALLEST

SIZES = ["--smallest", "--batch=2", "--n=3", "--prompt=8", "--horizon=4", "--repeat=3"]

# In the place of an interpreter: it answers at once as trl_step.py would, and keeps what it was asked.
INTERPRETER = """#!{python}
import json, pathlib, sys
flag, script, answer = sys.argv[1:]
assert flag == "-I" and pathlib.Path(script).name == "trl_step.py" and pathlib.Path(script).is_file()
print("what TRL prints is not read")
sizes = json.load(sys.stdin)
found = {{"versions": {{"trl": "1.16.0"}}}}
if sizes:
  pathlib.Path(__file__).with_name("sizes.json").write_text(json.dumps(sizes))
  for name in ("student", "teacher"):
    assert (pathlib.Path(sizes[name]) / "config.json").is_file()
    assert list(pathlib.Path(sizes[name]).glob("*.safetensors"))
  found |= {{"step_seconds": [3.0, 9.0, 4.0], "rollout_seconds": [2.0, 1.0, 2.5], "device": "cpu", "threads": 2}}
  found |= {{"tokens": [len(sizes["prompts"]) * sizes["horizon"]] * 3, "parameters": [{parameters}] * 2}}
found |= {changes}
pathlib.Path(answer).write_text(json.dumps(found))
"""


def interpreter(directory: pathlib.Path, changes: dict | None = None, text: str = INTERPRETER) -> pathlib.Path:
  """Writes a file that can be run, whose answers are changed in these fields."""
  path = directory / "python"
  parameters = roofline.parameter_count(SMALLEST)
  path.write_text(text.format(python=sys.executable, parameters=parameters, changes=changes or {}))
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return path


def refusal(arguments: list[str], capsys) -> str:
  """What the bench prints on standard error when it refuses the arguments."""
  with pytest.raises(SystemExit) as stopped:
    bench.main(arguments)
  assert stopped.value.code == 2
  return capsys.readouterr().err


@pytest.mark.long
def test_a_step_of_trl_stands_beside_ours(tmp_path):
  python = interpreter(tmp_path)
  arguments = [*SIZES, "--config.micro_batch=3", "--config.remat=layer", f"--out={tmp_path}"]
  assert bench.main([*arguments, "--against=trl", f"--against-python={python}"]) == 0
  record = json.loads((tmp_path / "bench.json").read_text())
  (r,), (step,) = record["against"], record["step"]
  assert (r["against"], r["batch"], r["n"], r["rows"], r["prompt"], r["horizon"]) == ("trl", 2, 3, 6, 8, 4)
  assert r["theirs"] == {"seconds": 4.0, "min_seconds": 3.0, "rollout_seconds": 2.0, "tokens_per_second": 6.0}
  assert r["ours"]["seconds"] == step["seconds"] == r["ours"]["rollout_seconds"] + r["ours"]["update_seconds"]
  assert r["ours"]["min_seconds"] == step["min_seconds"]
  assert r["ratio"] == pytest.approx(4.0 / step["seconds"])
  text = (tmp_path / "bench.txt").read_text()
  assert "trl step 2 x 3 x (8 + 4)" in text
  assert "step 2 x 3 x (8 + 4): trl 1.16.0 on cpu (threads: 2) 4.000 s, ours" in text

  asked = json.loads((tmp_path / "sizes.json").read_text())
  prompts = asked["prompts"]
  assert (len(prompts), {len(ids) for ids in prompts}) == (6, {8})
  assert prompts[0] == prompts[2] != prompts[3] == prompts[5], "each prompt stands once for each of its rollouts"
  assert (asked["micro_batch"], asked["checkpointing"], asked["repeat"], asked["dtype"]) == (3, True, 3, "float32")
  assert asked.keys() == trl_step.Sizes.__annotations__.keys()
  assert not pathlib.Path(asked["student"]).exists(), "the models go when the bench is done"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "needs --against-python=VENV/bin/python"),
    (["--against-python=nowhere"], "--against-python=nowhere is no file that can be run"),
    (["--against-python=."], "--against-python=. is no file that can be run"),
  ],
)
def test_no_interpreter(arguments, message, capsys):
  err = refusal([*SIZES, "--against=trl", *arguments], capsys)
  assert message in err
  assert f"{against_trl.INSTALL}." in err
  assert err.count("\n") == 1


@pytest.mark.parametrize(
  ("text", "why"),
  [
    ("#!{python}\nimport of_no_such_name\n", "ModuleNotFoundError: No module named 'of_no_such_name'"),
    ("#!{python}\nprint('{{}}')\n", "it gave no answer"),
    ("neither a program nor a script of one", "Exec format error"),
  ],
)
def test_an_interpreter_without_trl(text, why, tmp_path, capsys):
  python = interpreter(tmp_path, text=text)
  err = refusal([*SIZES, "--against=trl", f"--against-python={python}"], capsys)
  assert f"{python} cannot import TRL's DistillationTrainer (" in err
  assert why in err
  assert f"{against_trl.INSTALL}." in err
  assert err.count("\n") == 1


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["rollout", *SIZES, "--against=trl"], "--against=trl times whole steps; leave out 'rollout'"),
    (["update", *SIZES, "--against=trl"], "--against=trl times whole steps; leave out 'update'"),
    ([*SIZES, "--against-python=python"], "add --against=trl"),
    ([*SIZES, "--against=trl", "--config.objective.kind=jsd"], "set --config.objective.kind=reverse_kl"),
    ([*SIZES, "--against=trl", "--config.lora.rank=2"], "set --config.lora.rank=0"),
  ],
)
def test_what_is_not_compared(arguments, message, capsys):
  err = refusal(arguments, capsys)
  assert message in err
  assert err.count("\n") == 1


def test_several_teachers_are_not_compared(tmp_path):
  c = config.override(config.load("opd"), {"teachers": ("a", "b")})
  with pytest.raises(InputError, match="one teacher"):
    against_trl.check(c, bench.PARTS, str(interpreter(tmp_path)))


@pytest.mark.long
@pytest.mark.parametrize(
  ("changes", "message"),
  [({"tokens": [24, 24, 23]}, "generated"), ({"parameters": [1, 1]}, "parameters and ours")],
)
def test_other_work_is_not_compared(changes, message, tmp_path):
  python = interpreter(tmp_path, changes)
  with pytest.raises(RuntimeError, match=message):
    bench.main([*SIZES, "--against=trl", f"--against-python={python}"])


def test_the_ratio_is_of_medians():
  theirs = {
    "step_seconds": [1.0, 2.0, 9.0],
    "rollout_seconds": [1.0, 1.0, 1.0],
    "device": "cpu",
    "threads": 1,
    "versions": {},
  }
  ours = {"seconds": 0.5, "min_seconds": 0.25}
  r = against_trl.compare(Case(2, 8, 16, 4), theirs, ours, ours)
  assert r["ratio"] == 2.0
  assert r["ours"]["tokens_per_second"] == 128
  assert r["theirs"]["tokens_per_second"] == 64


def test_the_script_needs_nothing_of_the_package(tmp_path):
  """It compiles and starts under an interpreter that finds no package at all, and then misses TRL's alone."""
  ended = subprocess.run(
    [sys.executable, "-I", "-S", trl_step.__file__, str(tmp_path / "answer")],
    input="{}",
    capture_output=True,
    text=True,
  )
  assert ended.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'trl'"


@pytest.mark.parametrize(
  ("numbers", "seconds", "used"),
  [
    ([4, 1], [9.0, 2.0, 3.0], [4, 4, 1, 4]),
    ([4, 1], [1.0, 3.0, 2.0], [4, 4, 1, 1]),
    ([1], [1.0], [1, 1]),
  ],
)
def test_threads_are_chosen_after_a_step_with_each_number(numbers, seconds, used):
  calls = []
  threads = trl_step.Threads(numbers, calls.append)
  assert threads.tried_until == len(seconds)
  for done in range(len(seconds)):
    threads.next_step(seconds[: done + 1])
  threads.next_step([*seconds, 0.1])
  assert calls == used
  assert threads.used == used[-1]


def test_tokens_that_are_generated_are_counted():
  """The clock sees sequences with their prompts in front."""

  class Sequences:
    def __init__(self, *shape: int):
      self.shape = shape

  clock = trl_step.Clock(lambda: None)
  generate = clock.timed(lambda input_ids: Sequences(3, input_ids.shape[1] + 5))
  assert generate(input_ids=Sequences(3, 2)).shape == (3, 7)
  clock.end_step()
  assert clock.tokens == [15]
  assert clock.steps[0] >= clock.rollouts[0] >= 0


def test_the_models_are_ours(tmp_path):
  """What TRL loads is written with the architecture of the subject, and the teacher has other weights."""
  from opd_jax.benchmarks.subject import Subject

  subject = Subject.load(config.load("opd"), smallest=True)
  with against_trl.TrlSteps(subject, subject.params(), tmp_path) as steps:
    assert hf_config.read(steps.student) == subject.student
    assert hf_config.read(steps.teacher) == subject.teachers[0]
    files = [(path / "model.safetensors").read_bytes() for path in (steps.student, steps.teacher)]
  assert files[0] != files[1]

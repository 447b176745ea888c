"""What is told of problems before they are used: references that no response can match, and prompts that were cut."""

import importlib
import json

import pytest

from opd_jax import inputs
from opd_jax.data.problems import Problems, read_references
from opd_jax.runtime import cli

evaluate = importlib.import_module("opd_jax.evaluate")  # the command, not the function

PROMPTS = ["2+-3:", "3-+4:", "5++1:", "9--2:"]


def write(path, *answers):
  lines = (json.dumps({"prompt": p, "answer": a}) for p, a in zip(PROMPTS, answers, strict=False))
  path.write_text("\n".join(lines))
  return str(path)


def test_references_are_reduced_to_their_final_answers():
  problems = Problems([[1], [2], [3]], ["9 * 2 = <<9*2=18>>18\n#### 18", "The answer is 5.", ""])
  found = read_references(problems, "gsm8k", "x.jsonl", verified=False)
  assert found.answers == ["18", "5", ""]
  assert found.notes == ()


def test_references_that_no_response_matches_are_counted_and_one_is_shown():
  problems = Problems([[1], [2], [3]], ["18", "She sold 18 eggs.", "She sold 5 eggs."])
  (note,) = read_references(problems, "gsm8k", "x.jsonl", verified=True).notes
  assert "responses to 2 of 3 problems of x.jsonl count only if they repeat" in note
  assert "'She sold 18 eggs.'" in note
  assert read_references(problems, "gsm8k", "x.jsonl", verified=False).notes == ()


def test_the_answers_of_a_built_in_task_stay():
  problems = Problems([[1]], ["42>ab"])
  assert read_references(problems, "phase", "task:phase", verified=True) is problems


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_run_says_so_before_its_first_step(small, tmp_path, reward):
  """Of training data where their answers are a reward, of evaluation data always."""
  train = write(tmp_path / "train.jsonl", "She sold 18 eggs.", "5")
  test = write(tmp_path / "test.jsonl", "#### 18", "a lot, about 3 times", "Answer: 5")
  changes = {"data.path": train, "eval.path": test, "mixture.reward": reward, "rollouts_per_prompt": 2}
  loaded = inputs.load(small("opd", **changes))
  notes = [warning for warning in loaded.warnings if "count only if" in warning]
  assert len(set(loaded.warnings)) == len(loaded.warnings), "nothing is said twice"
  assert [path for path in (train, test) if any(path in note for note in notes)] == [train, test][reward == 0 :]
  assert loaded.evaluation.problems.answers == ["18", "a lot, about 3 times", "5"]


def test_prompts_that_lose_their_beginning_are_counted(small, tmp_path):
  path = write(tmp_path / "train.jsonl", "1", "2", "3")
  changes = {
    "data.path": path,
    "eval.path": path,
    "eval.prompts": 2,
    "data.max_prompt": 4,
    "data.on_bad_line": "truncate",
  }
  warnings = inputs.load(small("opd", **changes)).warnings
  told = f"prompts of {path} lost their beginning, as data.on_bad_line says: they are longer than data.max_prompt=4"
  assert {f"3 of 3 {told}", f"2 of 2 {told}"} <= set(warnings)


def test_evaluate_says_so_before_its_numbers(tiny, tmp_path, capsys):
  path, out = write(tmp_path / "test.jsonl", "She sold 18 eggs.", "The answer is 18."), tmp_path / "result.json"
  changes = {"eval.path": path, "eval.prompts": 4, "eval.batch": 2, "horizon.max": 20, "compile_cache": "off"}
  argv = ["evaluate", f"--model={tiny['student']}", "--config=opd", f"--out={out}"]
  argv += [f"--config.{key}={value}" for key, value in changes.items()]
  evaluate.run(*cli.parse(argv, "", evaluate.define, cli.of_workdir))
  printed, result = capsys.readouterr().out, json.loads(out.read_text())
  assert 0 <= printed.index("note: responses to 1 of 2 problems") < printed.index("avg@1")
  assert len(result["notes"]) == 1
  assert [sample["answer"] for sample in result["samples"]] == ["She sold 18 eggs.", "18"]

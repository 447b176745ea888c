"""Conversations as a file: what is counted, what a model may change, and that training reads it."""

import json
import sys

import pytest

from opd_jax import make_conversations
from opd_jax.context.split_problem import from_example
from opd_jax.data import sources, styles
from opd_jax.data.conversation import Conversation

PROBLEMS = [
  {"question": "Tom has 3 apples. He eats 1. How many are left?", "answer": "2"},
  {"question": "No question here.", "answer": "0"},
  {"question": "Ann has 4 pens. If she buys 5 more, how many has she?", "answer": "9"},
]


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "problems.jsonl"
  path.write_text("\n".join(map(json.dumps, PROBLEMS)))
  return path


def run_command(monkeypatch, capsys, *args) -> str:
  """What the command prints."""
  monkeypatch.setattr(sys, "argv", ["make_conversations", *map(str, args)])
  make_conversations.main()
  return capsys.readouterr().out


def test_the_figures_and_the_file(file, tmp_path, monkeypatch, capsys):
  out = tmp_path / "out.jsonl"
  text = run_command(monkeypatch, capsys, f"--data={file}", "--prompt-field=question", f"--out={out}")
  assert "2 of 3 problems" in text
  assert "left out: 1 (no question)" in text
  assert "3: 2" in text
  fields = styles.Fields("messages", "answer", canonical="canonical")
  examples, *_ = sources.read_examples(out, fields, "refuse", need_answer=True)
  conversations = [from_example(e) for e in examples]
  alone = [from_example(sources.Example(p["question"], p["answer"], "")) for p in (PROBLEMS[0], PROBLEMS[2])]
  assert [c.turns for c in conversations] == [c.turns for c in alone]
  assert [c.full for c in conversations] == [({"role": "user", "content": PROBLEMS[i]["question"]},) for i in (0, 2)]


def test_nothing_is_overwritten(file, monkeypatch, capsys):
  with pytest.raises(SystemExit) as e:
    run_command(monkeypatch, capsys, f"--data={file}", "--prompt-field=question", f"--out={file}")
  assert e.value.code == 2


@pytest.mark.parametrize("args", ["no", "[1]", '{"tools": 1}', '{"x": null}'])
def test_what_a_template_cannot_be_told_is_refused_before_the_file_is_read(args, monkeypatch, capsys):
  with pytest.raises(SystemExit) as e:
    run_command(monkeypatch, capsys, "--data=/no/file", f"--template-args={args}")
  assert e.value.code == 2
  assert capsys.readouterr().err.startswith("error: --template-args")


def test_a_turn_stays_where_a_model_changes_its_numbers():
  turns = ("How many?", "Tom has 3 apples.", "He eats 1."), ("How?", "It is 2.5.")
  responses = ["So how many?", "3 apples are Tom's.", "He ate one.", "", "2.5, it is"]
  prompts = []

  def generate(new_prompts):
    prompts.extend(new_prompts)
    return responses

  rephrased, unchanged = make_conversations.rephrase([Conversation("", t) for t in turns], generate)
  assert rephrased == [("So how many?", "3 apples are Tom's.", "He eats 1."), ("How?", "2.5, it is")]
  assert unchanged == 2
  assert prompts[1].endswith("Tom has 3 apples.")

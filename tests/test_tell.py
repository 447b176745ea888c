"""Conversations as a file: what is counted, what a model may change, and that training reads it."""

import json
import sys

import pytest

from opd_jax import tell
from opd_jax.context.conversation import Conversation, from_example
from opd_jax.data import sources

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


def said(monkeypatch, capsys, *args):
  monkeypatch.setattr(sys, "argv", ["tell", *map(str, args)])
  tell.main()
  return capsys.readouterr().out


def test_the_figures_and_the_file(file, tmp_path, monkeypatch, capsys):
  out = tmp_path / "out.jsonl"
  text = said(monkeypatch, capsys, f"--data={file}", "--prompt-field=question", f"--out={out}")
  assert "2 of 3 problems" in text
  assert "left out: 1 (no question)" in text
  assert "3: 2" in text
  examples, _ = sources.read_jsonl(out, "messages", "answer", "refuse", True, canonical_field="canonical")
  talks = [from_example(e) for e in examples]
  alone = [from_example(sources.Example(p["question"], p["answer"], "")) for p in (PROBLEMS[0], PROBLEMS[2])]
  assert [t.turns for t in talks] == [t.turns for t in alone]
  assert [t.full for t in talks] == [({"role": "user", "content": PROBLEMS[i]["question"]},) for i in (0, 2)]


def test_nothing_is_overwritten(file, monkeypatch, capsys):
  with pytest.raises(SystemExit) as e:
    said(monkeypatch, capsys, f"--data={file}", "--prompt-field=question", f"--out={file}")
  assert e.value.code == 2


def test_a_model_keeps_the_numbers_or_is_not_heard():
  talks = [Conversation("", ("How many?", "Tom has 3 apples.", "He eats 1.")), Conversation("", ("How?", "It is 2.5."))]
  answers = ["So how many?", "3 apples are Tom's.", "He ate one.", "", "2.5, it is"]
  asked = []

  def speak(prompts):
    asked.extend(prompts)
    return answers

  turns, stayed = tell.rephrase(talks, speak)
  assert turns == [("So how many?", "3 apples are Tom's.", "He eats 1."), ("How?", "2.5, it is")]
  assert stayed == 2
  assert asked[1].endswith("Tom has 3 apples.")

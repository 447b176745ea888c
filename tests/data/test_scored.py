"""Scored responses on disk, and the texts of single tokens."""

import dataclasses
import json

import numpy as np
import pytest

from opd_jax.data import scored
from opd_jax.data.scored import ScoredResponse
from opd_jax.errors import InputError
from tests.helpers import seeing_models

ONE = ScoredResponse(
  of="student",
  prompt="p",
  tokens=["a", "b"],
  ids=[3, 4],
  ended=True,
  kind="reverse_kl",
  divergence=[0.25, None],
  logprob=[-1.0, -2.0],
  teacher_logprob=[-1.5, -2.5],
  student_entropy=[1.0, 0.5],
  teacher_entropy=[1.0, 0.5],
  teacher_top=[[("a", 0.5)], [("b", 0.75)]],
  step=3,
)


def test_what_is_written_is_read_again(tmp_path):
  infinite = dataclasses.replace(ONE, divergence=[float("inf"), float("nan")], teacher_top=None)
  scored.write(tmp_path / "x.jsonl", [ONE, infinite])
  first, second = scored.read(tmp_path / "x.jsonl")
  assert first.to_json() == json.loads(json.dumps(ONE.to_json()))
  assert second.divergence == [None, None]
  assert scored.read(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize(
  "change",
  [
    {"tokens": ["a"]},
    {"ids": [3, -4]},
    {"ended": 1},
    {"divergence": ["0.1", 0]},
    {"logprob": None},
    {"teacher_top": [[["a"]], []]},
    {"step": "3"},
  ],
)
def test_a_line_that_no_run_writes_is_refused(tmp_path, change):
  path = tmp_path / "x.jsonl"
  path.write_text(json.dumps(ONE.to_json() | change) + "\n")
  with pytest.raises(InputError, match=r"Line 1 of .*x\.jsonl is no response"):
    scored.read(path)


def test_a_line_that_was_cut_short_at_the_end_is_left_out(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text(json.dumps(ONE.to_json()) + '\n{"of": "stu')
  assert [r.tokens for r in scored.read(path)] == [["a", "b"]]
  assert [r.step for r in scored.read(path, ends=True)] == [3]
  path.write_text('{"of": "stu\n' + json.dumps(ONE.to_json()) + "\n")
  with pytest.raises(InputError, match="Line 1"):
    scored.read(path)


@pytest.mark.parametrize(
  ("names", "kind"),
  [({"divergence": 0.5, "kl": 0.25}, "jsd"), ({"kl": 0.25}, "reverse_kl"), ({}, "")],
)
def test_a_rollout_has_the_divergence_that_there_is(names, kind):
  mask = np.array([[True, True, False], [True, False, False]])
  found = {
    name: np.where(mask, value, 0.0) for name, value in (names | {"logprob": -1.0, "student_entropy": 2.0}).items()
  }
  found |= {"mask": mask, "response": np.array([[0, 1, 9], [3, 9, 9]]), "ended": np.array([False, True])}
  found |= {"prompt": np.array([[9, 3]]), "prompt_mask": np.array([[False, True]])}
  first, second = scored.of_rollouts(found, Words(), 2, "jsd", "student", 7)
  expected = list(names.values())[:1]
  assert (first.kind, first.divergence) == (kind, expected * 2 or None)
  assert (second.divergence, second.logprob, second.ended, second.step) == (expected or None, [-1.0], True, 7)
  assert (first.tokens, second.tokens, first.prompt) == (["the", " cat"], ["s"], "s")


class Words:
  """A tokenizer that drops the space of a first word, and has half characters."""

  WORDS = ("▁the", "▁cat", "�", "s")

  def decode(self, ids, **_):
    return "".join(self.WORDS[i] for i in ids).replace("▁", " ").removeprefix(" ")

  def convert_ids_to_tokens(self, token):
    return {2: "<0xC3>"}.get(token, "")


def test_a_token_is_the_text_that_it_adds():
  assert scored.pieces(Words(), [0, 1, 3, 2]) == ["the", " cat", "s", "<0xC3>"]


def test_what_stands_for_an_image_is_written_once():
  fast = seeing_models.tokenizer()
  (ids,) = fast(["a<|vision_start|>" + "<|image_pad|>" * 12 + "<|vision_end|>" + "b" * 9])["input_ids"]
  text = scored.prompt_text(fast, ids).replace(" ", "")
  assert text == "a<|vision_start|><|image_pad|>x12<|vision_end|>" + "b" * 9
  assert scored.prompt_text(fast, []) == ""

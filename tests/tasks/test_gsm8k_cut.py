"""Of a response that a limit cut counts only what reads the same whatever would have followed."""

import json

import pytest

from opd_jax.tasks.gsm8k import extract_answer, gold, number, verify
from tests.tasks.test_gsm8k import GSM8K, RIGHT, WRONG, needs_gsm8k

FOLLOWING = (
  "",
  "5",
  " 5",
  ".5",
  "/2",
  " or 20.",
  "\n5 eggs",
  " and a half",
  " million",
  "x",
  "! = 120",
  ". Add up 9",
  "}",
)


@pytest.mark.parametrize(("text", "answer"), [*RIGHT, *WRONG, ("#### 3. Add up the 9\nThe answer is 12. So", "12")])
def test_a_cut_that_counts_counts_with_everything_that_may_follow(text, answer):
  for n in range(len(text) + 1):
    cut = text[:n]
    for wanted in {answer, *(gold(answer)[:k] for k in range(1, len(gold(answer))))} - {""}:
      if verify(cut, wanted, ended=False):
        assert [more for more in FOLLOWING if not verify(cut + more, wanted)] == [], (cut, wanted)
    claim = extract_answer(cut, ended=False)
    if claim is not None:
      assert {number(extract_answer(cut + more) or "") for more in FOLLOWING} == {number(claim)}, cut


@pytest.mark.parametrize(
  ("cut", "answer"),
  [
    ("#### 3. Add up", "3"),  # a heading
    ("#### 3. ", "3"),
    ("The answer is St. Louis", "St"),
    ("The answer is Mary. Ann", "Mary"),
    ("The answer is 5! = 120", "5"),
    (r"\boxed{1} is one of them, and \ans", "1"),
    ("The answer is 18.\n" + r"\boxed{}", "18"),
    ("The answer is 18.\n<think>Is it", "18"),
    ("So 18", "18"),
    ("So 18.\n", "18"),
    (r"\boxed{18", "18"),
  ],
)
def test_what_may_turn_out_otherwise_does_not_count(cut, answer):
  assert not verify(cut, answer, ended=False)


@pytest.mark.parametrize(
  ("cut", "answer"),
  [
    (r"\boxed{b}", "b"),
    (r"\fbox{18} and", "18"),
    (r"\boxed 18 and", "18"),
    ("The answer is Mary.\nShe", "Mary"),
    ("#### 18 eggs\nThe", "18"),
    ("<think>It is 4.</think>The answer is 18. As", "18"),
  ],
)
def test_what_is_stated_to_the_end_counts(cut, answer):
  assert verify(cut, answer, ended=False)


@pytest.mark.parametrize(
  "response", ["9*2=18. The answer is", "9*2=18. **Answer:**", "9*2=18\n####", "It is 18. <answer>", "18\nAnswer:\n\n"]
)
def test_an_announcement_without_an_answer_is_not_answered_by_an_earlier_number(response):
  assert not verify(response, "18")
  assert extract_answer(response) is None


@pytest.mark.parametrize("control", ["<|im_start|>", "<s>", "</s>", "<｜User｜>", "[/INST]", "<end_of_turn>"])
def test_control_tokens_are_no_part_of_an_answer_and_join_nothing(control):
  for right in (
    f"{control}#### 18{control}",
    f"The answer is 18{control}",
    f"It is 18{control}",
    rf"\boxed{{18}}{control}",
  ):
    assert verify(right, "18"), right
  for apart in (f"#### 1{control}8", f"The answer is 1{control}8", f"It is 1{control}8"):
    assert not verify(apart, "18"), apart


@needs_gsm8k
def test_no_cut_inside_gsm8ks_answers_counts():
  """Every prefix of every final answer, and of the steps before it."""
  with (GSM8K / "test.jsonl").open(newline="\n") as file:
    answers = [json.loads(line)["answer"] for line in file]
  for answer in answers:
    body, final = answer.rsplit("####", 1)[0], gold(answer)
    for n in range(1, len(final)):
      assert not verify(f"{body}#### {final[:n]}", final[:n], ended=False), answer
    assert not verify(body, answer, ended=False), answer
    assert verify(f"{body}#### {final}\n", answer, ended=False), answer

"""Cutting problems into turns: nothing lost, nothing early, the same every time."""

import collections
import json
import pathlib

import pytest

from opd_jax.context.split_problem import CannotSplit, fault, split

GSM8K = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"

CASES = [
  (
    "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of it. How much did she earn?",
    ("How much did she earn?", "Weng earns $12 an hour for babysitting.", "Yesterday, she just did 50 minutes of it."),
  ),
  (
    "Tom has 3 apples. If he buys 2 more, how many apples does he have?",
    ("how many apples does he have?", "Tom has 3 apples.", "If he buys 2 more,"),
  ),
  (
    "Tom has 3 apples. How many are left if Ann eats 2?",
    ("How many are left?", "Tom has 3 apples.", "if Ann eats 2."),
  ),
  (
    "Gas costs $3. If it takes 2 gallons how much does a trip cost?",
    ("how much does a trip cost?", "Gas costs $3.", "If it takes 2 gallons"),
  ),
  (
    "Mr. Benson bought 12 tickets at $40.50 each. How much did Mr. Benson pay?",
    ("How much did Mr. Benson pay?", "Mr. Benson bought 12 tickets at $40.50 each."),
  ),
  (
    "Jar A has 28 marbles. Jar B has 12 more than jar A. Jar C is empty. How many are there?",
    ("How many are there?", "Jar A has 28 marbles.", "Jar B has 12 more than jar A.", "Jar C is empty."),
  ),
  (
    "She sold 48 clips in April, and then she sold half as many in May. How many did she sell?",
    ("How many did she sell?", "She sold 48 clips in April,", "and then she sold half as many in May."),
  ),
  (
    "A room has 4 walls. Each takes 2 hours. Calculate the time for the room.",
    ("Calculate the time for the room.", "A room has 4 walls.", "Each takes 2 hours."),
  ),
]


@pytest.mark.parametrize(("text", "turns"), CASES)
def test_question_first_then_the_facts_in_the_texts_order(text, turns):
  assert split(text).turns == turns


@pytest.mark.parametrize("text", ["Tom has 3 apples.", "What is fifteen more than a quarter of 48?", ""])
def test_texts_without_a_question_or_a_fact_are_refused(text):
  with pytest.raises(CannotSplit):
    split(text)


def test_more_facts_than_turns_are_joined_with_their_neighbours():
  text = "A is 1. Bob has 22 cats in his house. C is 3. D is 4. How many are there?"
  joined = split(text, 3)
  assert joined.facts == ("A is 1.", "Bob has 22 cats in his house.", "C is 3. D is 4.")


@pytest.mark.parametrize(
  ("turns", "why"),
  [
    (("How many?", "Tom has 3 apples."), "lost"),
    (("How many?", "Tom has 3 apples.", "He eats 1.", "He eats 1."), "not in the text as often"),
    (("Tom has 3 apples.", "How many?", "He eats 1."), "asks nothing"),
    (("Tom has 3 apples. How many?", "He eats 1."), "tells a fact"),
    (("How many?", "He eats 1.", "Tom has 3 apples."), "order"),
  ],
)
def test_fault_sees_what_is_lost_early_or_out_of_order(turns, why):
  text = "Tom has 3 apples. He eats 1. How many?"
  assert fault(text, ("How many?", "Tom has 3 apples.", "He eats 1.")) == ""
  assert why in fault(text, turns)


@pytest.mark.long
@pytest.mark.skipif(not GSM8K.is_file(), reason="no GSM8K at hand")
def test_gsm8k_comes_through_whole():
  """Facts preserved, by a count of words that knows nothing of the cut, and none before its turn."""
  out, facts = 0, collections.Counter()
  lines = [json.loads(line)["question"] for line in GSM8K.read_text().splitlines()]
  for text in lines:
    try:
      turns = split(text).turns
    except CannotSplit:
      out += 1
      continue
    facts[len(turns) - 1] += 1
    assert turns == split(text).turns

    def letters(s):
      return collections.Counter(c for c in s.lower() if c.isalnum())

    assert letters(" ".join(turns)) == letters(text)
    at = 0
    for turn in turns[1:]:
      at = text.lower().find(turn.rstrip("?.,").lower(), at) + 1
      assert at > 0
  assert len(lines) == 7473
  assert out / len(lines) < 0.01
  assert sum(n for k, n in facts.items() if k >= 2) / len(lines) > 0.9

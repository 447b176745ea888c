"""Answers that are no numbers: right ones are accepted, wrong ones and guesses are not."""

import pytest

from opd_jax import tasks
from opd_jax.data.problems import Problems, read_references
from opd_jax.errors import InputError

FENCE = "```"


@pytest.mark.parametrize(
  ("response", "answer", "right"),
  [
    ("Paris", "Paris", True),
    (" Paris\n", "Paris ", True),
    ("<think>London?</think>Paris", "Paris", True),
    ("paris", "Paris", False),
    ("It is Paris", "Paris", False),
    ("", "", False),
    ("<think>Paris", "Paris", False),
  ],
)
def test_exact_is_the_same_words(response, answer, right):
  assert tasks.verifier("exact")(response, answer) is right
  assert not tasks.verifier("exact")(response, answer, ended=False)


@pytest.mark.parametrize(
  ("pattern", "response", "answer", "right"),
  [
    (r"Answer: *(\S+)", "Answer: red", "red", True),
    (r"Answer: *(\S+)", "Answer: blue. Answer: red", "red", True),
    (r"Answer: *(\S+)", "Answer: red. Answer: blue", "red", False),
    (r"Answer: *(\S+)", "red", "red", False),
    (r"\d+", "3 and 18 eggs", "18", True),
    (r"= ([\d,.]+)", "= 1,800.0", "1800", True),
    (r"(x)|y", "y", "x", False),
    (r"Answer: *(\S+)", "<think>Answer: red</think>None.", "red", False),
    (r"a*", "b", "", False),
  ],
)
def test_a_pattern_finds_the_answer(pattern, response, answer, right):
  assert tasks.verifier("regex", pattern)(response, answer) is right


def test_a_match_that_might_go_on_does_not_count_where_a_limit_cut():
  verify = tasks.verifier("regex", r"Answer: *(\d+)")
  assert not verify("Answer: 1", "1", ended=False)
  assert verify("Answer: 1.", "1", ended=False)


@pytest.mark.parametrize(("pattern", "says"), [("", "answer_pattern is empty"), ("(", "no regular expression")])
def test_a_pattern_that_is_none_is_refused(pattern, says):
  with pytest.raises(InputError, match=says):
    tasks.verifier("regex", pattern)


CHOICES = {
  "B": True,
  "(B)": True,
  "**B**": True,
  "b)": True,
  "B) Paris": True,
  "B. Paris, since it is the capital.": True,
  "The answer is B.": True,
  "The answer is (B) Paris.": True,
  "The answer is B because of A.": True,
  "The answer is option B": True,
  "A is London.\nAnswer: B": True,
  "So \\boxed{B}": True,
  "So \\boxed{\\text{B}}.": True,
  "So \\boxed{\\text{(B) Paris}}.": True,
  "#### B": True,
  "It cannot be A.\n\nB": True,
  "<think>A or B?</think>(B)": True,
  "A": False,
  "The answer is A.": False,
  "The answer is A or B.": False,
  "The answer is B or C.": False,
  "(B) or (C)": False,
  "B, C": False,
  "Because of that": False,
  "I think that B could be right but": False,
  "The answer is Berlin.": False,
  "\\boxed{B": False,
  "<think>B": False,
  "": False,
}


@pytest.mark.parametrize("answer", ["B", "(B)", "B. Paris", "The answer is B", "#### B", "\\boxed{B}", "b"])
@pytest.mark.parametrize("response", CHOICES)
def test_a_choice_is_read_without_a_guess(response, answer):
  assert tasks.verifier("multiple_choice")(response, answer) is CHOICES[response]


@pytest.mark.parametrize(
  "response", ["The answer is a train.", "A train, since it is fast.", "A long way to go", "A cat"]
)
def test_an_article_is_no_choice(response):
  assert not tasks.verifier("multiple_choice")(response, "A")


def test_of_a_cut_response_only_a_finished_announcement_counts():
  verify = tasks.verifier("multiple_choice")
  assert verify("\\boxed{B} and", "B", ended=False)
  assert verify("Answer: B\nSo", "B", ended=False)
  assert not verify("Answer: B", "B", ended=False)
  assert not verify("B", "B", ended=False)


OBJECT = '{"name": "Ann", "age": 30, "tags": [1, 2.0, null, true]}'
OTHER_ORDER = '{"tags": [1.0, 2, null, true],\n "age": 3e1, "name": "\\u0041nn"}'


@pytest.mark.parametrize(
  ("response", "answer", "right"),
  [
    (OBJECT, OBJECT, True),
    (OTHER_ORDER, OBJECT, True),
    (f"Here:\n{FENCE}json\n{OTHER_ORDER}\n{FENCE}\nDone.", OBJECT, True),
    (f"{FENCE}\n[1]\n{FENCE}\nNo:\n{FENCE}\n[2]\n{FENCE}", "[2]", True),
    (f"{FENCE}\n[2]\n{FENCE}\nNo:\n{FENCE}\n[1]\n{FENCE}", "[2]", False),
    ("<think>[1]</think>[2]", "[2]", True),
    ('"Ann"', '"Ann"', True),
    ("[2, 1]", "[1, 2]", False),
    ("[1, 2, 3]", "[1, 2]", False),
    ("true", "1", False),
    ("1", "true", False),
    ("null", "false", False),
    ('{"a": 1, "b": 2}', '{"a": 1}', False),
    ("[1", "[1]", False),
    ("NaN", "NaN", False),
    ("[" * 100_000, "[]", False),
    ("Ann", '"Ann"', False),
    ("Ann", "Ann", False),
  ],
)
def test_json_is_compared_by_value(response, answer, right):
  assert tasks.verifier("json")(response, answer) is right


@pytest.mark.parametrize(
  ("response", "right"),
  [(OBJECT, True), ("3", True), (f"So:\n{FENCE}json\n[]\n{FENCE}", True), ("[1,]", False), ("", False), ("a", False)],
)
def test_valid_json_asks_for_no_answer(response, right):
  assert tasks.verifier("valid_json")(response, "anything") is right


def test_of_a_cut_response_only_a_closed_block_counts_as_json():
  for name in ("json", "valid_json"):
    assert not tasks.verifier(name)("[1]", "[1]", ended=False)
    assert tasks.verifier(name)(f"{FENCE}json\n[1]\n{FENCE}\nand", "[1]", ended=False)


@pytest.mark.parametrize(
  ("verifier", "answers", "says"),
  [
    (
      "multiple_choice",
      ["B", "Paris", "(C) x", "2"],
      "no response to 2 of 4 problems of x.jsonl can be right.*'Paris'",
    ),
    ("json", ["[1]", "Ann", "3"], "no response to 1 of 3 problems.*JSON, in which text stands in quotes.*'Ann'"),
  ],
)
def test_references_that_no_response_can_match_are_counted(verifier, answers, says):
  problems = Problems([[1]] * len(answers), answers)
  found = read_references(problems, verifier, "x.jsonl", verified=True)
  assert found.answers == answers
  (note,) = found.notes
  import re

  assert re.search(says, note)
  assert read_references(problems, verifier, "x.jsonl", verified=False) is problems


def test_math_is_gsm8k_by_another_name():
  assert tasks.verifier("math")("\\boxed{\\frac{1}{2}}", "... \\boxed{0.5}")
  problems = Problems([[1]], ["so \\boxed{18}"])
  assert read_references(problems, "math", "x.jsonl", verified=True).answers == ["18"]

"""What a teacher is shown beside the prompt: where the parts stand, and what is left out of a prompt that is too long."""

import pytest

from opd_jax import config as configs
from opd_jax.context.feedback import Feedback
from opd_jax.context.privileged import Privileged, with_solutions
from opd_jax.data.problems import Problems
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError
from opd_jax.tasks import chain

WRITTEN = Privileged("{prompt}{solution}{feedback}=", ":{text}", ">{text}", 12)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  from opd_jax.data import tokenizer as tokenizers

  path = tmp_path_factory.mktemp("symbols")
  chain.TOKENIZER.save(path)
  return tokenizers.load(path)


def test_parts_that_are_not_there_leave_nothing_behind():
  assert WRITTEN.text("12") == "12="
  assert WRITTEN.text("12", "3") == "12:3="
  assert WRITTEN.text("12", feedback="4") == "12>4="


def test_braces_in_the_data_are_left_alone():
  """A problem in TeX, or one that reads like a template."""
  template = Privileged("{prompt}|{solution}", "{text}!", "", 9)
  assert template.text(r"\frac{1}{2} {solution}", "{prompt}") == r"\frac{1}{2} {solution}|{prompt}!"


def test_a_chat_has_the_users_last_message_extended():
  messages = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "12"},
  ]
  found = WRITTEN.prompt(messages, "3")
  assert found[:3] == messages[:3]
  assert found[3] == {"role": "user", "content": "12:3="}
  assert messages[3]["content"] == "12", "the student's prompt stays"
  with pytest.raises(InputError, match="no message of the user"):
    WRITTEN.prompt([{"role": "system", "content": "S"}], "3")


def test_a_prompt_that_is_too_long_loses_the_feedback_and_then_its_place(tokenizer):
  rows, lost = WRITTEN.rows(
    [("12", "3", "4"), ("12", "34567", "123"), ("12", "3456789012345", "1"), ("12", "", ""), ("12", "", "4567890123")],
    tokenizer,
    Rendering(),
  )
  texts = [tokenizer.decode(row) for row in rows]
  assert [text.replace(" ", "") for text in texts] == ["12:3>4=", "12:34567=", "", "", ""]
  assert lost == [0, 1, 2, 0, 1]


def test_a_template_needs_the_place_of_its_part():
  c = configs.override(configs.default("self_distillation"), {"context.solution_template": "a solution"})
  with pytest.raises(InputError, match=r"config\.context\.solution_template has no \{text\}"):
    Privileged.from_config(c)


class TestReferenceSolutions:
  def config(self, **changes):
    templates = {"context.template": "{prompt}{solution}=", "context.solution_template": ":{text}"}
    return configs.override(configs.default("self_distillation"), templates | {"context.max_tokens": 8} | changes)

  def problems(self, *solutions: str) -> Problems:
    prompts = tuple("12" for _ in solutions)
    return Problems([[1, 2]] * len(solutions), ["3"] * len(solutions), solutions=solutions, prompts=prompts)

  def test_stand_in_the_teachers_prompts(self, tokenizer):
    found = with_solutions(self.problems("3", "45"), self.config(), tokenizer, Rendering())
    assert [tokenizer.decode(row).replace(" ", "") for row in found.teacher_ids] == ["12:3=", "12:45="]
    assert found.ids == [[1, 2]] * 2

  def test_have_to_be_there(self, tokenizer):
    missing = Problems([[1, 2]] * 2, ["3"] * 2, solutions=("3",), prompts=("12", "12"))
    with pytest.raises(InputError, match=r"data\.solution_field"):
      with_solutions(missing, self.config(), tokenizer, Rendering())

  def test_that_are_too_long_are_refused_or_skipped(self, tokenizer):
    problems = self.problems("3", "45678901", "4")
    with pytest.raises(InputError, match="1 of 3 problems have prompts of the teacher"):
      with_solutions(problems, self.config(), tokenizer, Rendering())
    found = with_solutions(problems, self.config(**{"data.on_bad_line": "skip"}), tokenizer, Rendering())
    assert (len(found.ids), found.solutions, found.skipped, len(found.teacher_ids)) == (2, ("3", "4"), 1, 2)


class TestFeedback:
  TEXTS = ("wrong", "right", "right too", "wrong again")
  SOLVED = (False, True, True, False)
  SAID = ("a", "", "", "d")

  def test_a_row_is_shown_the_first_right_response_that_is_not_its_own(self):
    shown = Feedback().of_group(self.TEXTS, self.SOLVED, self.SAID)
    assert shown == [("right", ""), ("right too", ""), ("right", ""), ("right", "")]

  def test_with_its_own_allowed_all_are_shown_the_first(self):
    shown = Feedback(own=True).of_group(self.TEXTS, self.SOLVED, self.SAID)
    assert {demonstration for demonstration, _ in shown} == {"right"}

  def test_what_was_said_of_a_response_goes_to_its_own_row_alone(self):
    shown = Feedback(demonstration=False).of_group(self.TEXTS, self.SOLVED, self.SAID)
    assert shown == [("", "a"), ("", ""), ("", ""), ("", "d")]

  def test_both_where_asked_for(self):
    shown = Feedback(feedback="always").of_group(self.TEXTS, self.SOLVED, self.SAID)
    assert shown[0] == ("right", "a")
    assert Feedback(feedback="none").of_group(self.TEXTS, [False] * 4, self.SAID) == [("", "")] * 4

  def test_a_group_without_a_right_response_has_what_was_said(self):
    assert Feedback().of_group(self.TEXTS, [False] * 4, self.SAID)[3] == ("", "d")

  def test_the_only_right_response_is_told_nothing(self):
    shown = Feedback().of_group(self.TEXTS, [False, True, False, False], self.SAID)
    assert shown[1] == ("", "")

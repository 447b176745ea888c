"""From rollouts to prompts: which responses become candidates, in which order they stand, and what answers they claim."""

import dataclasses

import pytest

from opd_jax.context.candidates import Candidates
from opd_jax.context.reformulate import HardQuestion, Reformulated, Reformulator
from opd_jax.data.rendering import Rendering
from opd_jax.tasks import chain, gsm8k
from opd_jax.tasks.problem import Response

CANDIDATES = Candidates(
  bcq="{prompt}{candidates}=",
  ncq="{prompt}{candidates}#",
  hint="{prompt}>{text}=",
  block=":{text}",
  request="{prompt}{response}x",
  max_tokens=9,
  max_prompt=40,
  blocks=3,
  same_length=True,
  shuffle=True,
  wrong_pair=False,
)
RIGHT, WRONG = Response("1+2=3"), Response("1+2=4")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  from opd_jax.data import tokenizer as tokenizers

  path = tmp_path_factory.mktemp("symbols")
  chain.TOKENIZER.save(path)
  return tokenizers.load(path)


@pytest.fixture(scope="module")
def reformulator(tokenizer) -> Reformulator:
  return Reformulator(CANDIDATES, ("bcq", "ncq"), 0.4, False, tokenizer, Rendering(), None)


def hard(number: int, right=(RIGHT,), wrong=(WRONG,)) -> HardQuestion:
  return HardQuestion(number, "12", right, wrong)


def test_the_order_of_candidates_is_balanced_over_keys_and_the_same_for_one(reformulator):
  drawn = [reformulator.draw([hard(number)], 1, seed)[0] for number in range(20) for seed in range(20)]
  first = sum(each.shown[0] is each.right for each in drawn)
  assert 160 < first < 240
  assert all(each.right.text == RIGHT.text for each in drawn)
  again = [reformulator.draw([hard(number)], 1, seed)[0] for number in range(20) for seed in range(20)]
  assert again == drawn


def test_what_a_question_draws_does_not_depend_on_the_others(reformulator):
  alone = reformulator.draw([hard(7)], 2, 3)
  assert reformulator.draw([hard(5), hard(7), hard(6)], 6, 3)[2:4] == alone


def test_cut_and_silent_responses_are_no_candidates(reformulator):
  cut, silent, thinking = Response("1+2=5", ended=False), Response(" "), Response("<think>1+2", ended=True)
  assert reformulator.draw([hard(1, wrong=(cut, silent, thinking))], 4, 0) == []
  assert [d.kind for d in reformulator.draw([hard(1, right=(cut,), wrong=(cut, WRONG))], 4, 0)] == ["ncq"]


def test_wrong_answers_stand_once_and_candidates_are_what_is_behind_thoughts(reformulator):
  thought = Response("<think>9</think>1+2=5")
  (drawn,) = reformulator.draw([hard(1, right=(), wrong=(WRONG, thought, WRONG))], 4, 0)
  assert [each.text for each in drawn.shown] == ["1+2=4", "1+2=5"]
  (asked,) = reformulator.write([drawn], {})
  assert (asked.right, asked.wrong) == ("", ("1+2=4", "1+2=5"))
  whole = dataclasses.replace(reformulator, whole=True)
  (drawn,) = whole.draw([hard(1, right=(), wrong=(thought,))], 4, 0)
  assert drawn.shown[0].text == thought.text
  assert list(whole.requests([drawn]).values()) == [f"12{thought.text}x"]
  (asked,) = whole.write([drawn], {})
  assert reformulator.tokenizer.decode(asked.ids) == "12:1+2=5#", "cut, it is what is behind the thoughts"


def test_candidates_of_a_prompt_are_all_made_short_or_all_cut(reformulator):
  (drawn, _) = reformulator.draw([hard(1)], 2, 0)
  short = {(1, RIGHT.text): "3", (1, WRONG.text): "4"}
  decode = reformulator.tokenizer.decode
  assert sorted(decode(reformulator.write([drawn], short)[0].ids)[3:-1].split(":")) == ["3", "4"]
  for lost in short:
    asked = reformulator.write([drawn], short | {lost: ""})[0]
    assert sorted(decode(asked.ids)[3:-1].split(":")) == [RIGHT.text, WRONG.text]


def test_answers_are_the_verifiers_where_it_can_tell_them(reformulator):
  with_extractor = dataclasses.replace(reformulator, extract=gsm8k.extract_answer)
  assert with_extractor.claim(Response("It is \\boxed{7}.")) == "7"
  assert with_extractor.claim(Response("I do not know.")) == ""
  assert reformulator.claim(Response(" 7 ")) == "7"
  asked = Reformulated("bcq", 1, [], right="7", wrong=("8", ""))
  assert asked.repeats(["7", "8", "", "9"]) == {
    "right": [True, False, False, False],
    "wrong": [False, True, False, False],
  }


def test_a_prompt_that_does_not_fit_is_left_out(reformulator):
  tight = dataclasses.replace(reformulator, candidates=dataclasses.replace(CANDIDATES, max_prompt=4))
  assert tight.write(tight.draw([hard(1)], 2, 0), {}) == []

"""What becomes of a wrong answer that the student gave before it was told everything."""

import pytest

from opd_jax.evaluation.multi_turn import anchored
from opd_jax.tasks import gsm8k, relay


def test_wrong_guesses_that_the_last_reply_repeats():
  replies = [("#5", "a=3#5"), ("#5", "a=3#?"), ("#4", "a=3#4"), ("#?", "#?"), ("#5", "a=3#8")]
  texts = ["b=3+1=4#5", "b=3+1=4#4", "b=3+1=4#4", "b=3+1=4#4", "b=3+1=4#5"]
  found = anchored(replies, texts, ["4"] * 5, relay.RELAY.verify, relay.RELAY.extract_answer)
  assert found.wrong == 3 / 5, "a right guess and none at all are not wrong ones"
  assert found.kept == 1 / 3, "the last guess counts, not one before it"


def test_without_a_wrong_guess_nothing_is_said():
  assert anchored([("#4",), ("#?",)], ["#4", "#5"], ["4", "4"], relay.RELAY.verify, relay.RELAY.extract_answer) == (
    0,
    None,
  )


@pytest.mark.parametrize(
  ("reply", "claim"),
  [
    ("So far the answer is 18.", "18"),
    ("9 * 2 = 18\n#### 18", "18"),
    (r"\boxed{18}", "18"),
    ("I need to know how many of the 18 eggs she eats.", None),
    ("The answer is not known yet.", None),
    ("", None),
  ],
)
def test_only_an_announced_number_is_a_claim(reply, claim):
  found = gsm8k.extract_answer(reply)
  assert (found and gsm8k.number(found)) == (claim and gsm8k.number(claim))


def test_guesses_in_words_are_compared_as_numbers():
  replies = [("Perhaps. The answer is $1,080.",), ("The answer is 7.",)]
  texts = ["It is 1080 dollars: #### 1080", "The answer is 12."]
  found = anchored(replies, texts, ["... #### 12", "... #### 12"], gsm8k.verify, gsm8k.extract_answer)
  assert found == (1.0, 0.5)

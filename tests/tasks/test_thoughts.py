"""Thoughts are no part of an answer, and one without an end leaves none."""

import pytest

from opd_jax.tasks import chain, gsm8k, relay, thoughts


@pytest.mark.parametrize(("opening", "closing"), thoughts.MARKS)
def test_the_conclusion_stands_behind_the_thought(opening, closing):
  assert thoughts.conclusion(f"{opening}It is 18.{closing}It is 20.") == "It is 20."
  assert thoughts.conclusion(f"It is 18.{closing}It is 20.", prompt=f"Q A {opening}\n") == "It is 20."
  assert thoughts.conclusion(f"a{opening}b{closing}c{opening}d") is None
  assert thoughts.conclusion("It is 18.", prompt=f"Q A {opening}\n") is None
  assert thoughts.unclosed(f"a{opening}b{closing}c{opening}d") == (opening, f"a{opening}b{closing}c")
  assert thoughts.unclosed(f"a{opening}b{closing}c") == ("", f"a{opening}b{closing}c")
  assert thoughts.opened_by(f"Q A {opening}\n") == f"{opening}\n"
  assert thoughts.kinds(f"b{closing}c") == {opening}


@pytest.mark.parametrize(
  "prompt", ["", "What does <think> mean?<bot>", "<bot><think>\n\n</think>\n\n", "Say <think> and </think>."]
)
def test_only_the_end_of_a_prompt_opens_a_thought(prompt):
  assert thoughts.opened_by(prompt) == ""
  assert thoughts.conclusion("It is 18.", prompt) == "It is 18."
  assert gsm8k.verify("It is 18.", "18", prompt=prompt)


def test_what_a_prompt_opens_is_given_back_with_its_white_space():
  assert thoughts.opened_by("<bot> <think>\n") == "<think>\n"


@pytest.mark.parametrize("ended", [True, False])
def test_a_thought_without_an_end_has_no_answer(ended):
  for response, prompt in (("The answer is 18.\n", "<think>\n"), ("<think>The answer is 18.\n", "")):
    assert not gsm8k.verify(response, "18", ended=ended, prompt=prompt)
    assert gsm8k.extract_answer(response, ended=ended, prompt=prompt) is None
  assert gsm8k.verify("So 20.</think>The answer is 18.\n", "18", ended=ended, prompt="<think>\n")


def test_only_its_own_mark_ends_a_thought():
  assert thoughts.conclusion("<think>Others write [/THINK]. It is 18.") is None
  assert thoughts.conclusion("Others write </thought>. It is 18.", prompt="<think>\n") is None
  assert thoughts.conclusion("<think>[THINK]</think>It is 20.") == "It is 20."
  assert thoughts.conclusion("<think>5</think>It is 20.", prompt="<think>\n") == "It is 20.", "opened twice"


def test_a_decoder_may_write_spaces_within_a_mark():
  said = "<|channel|> analysis <|message|> It is 18. <|end|> <|channel|> final <|message|> It is 20."
  assert thoughts.conclusion(said) == " It is 20."
  assert thoughts.conclusion(said.partition("<|end|>")[0]) is None


@pytest.mark.parametrize(
  ("verify", "response", "answer"),
  [(chain.CHAIN.verify, "#52", "52"), (chain.PHASE.verify, "#52>ef", "ef"), (relay.RELAY.verify, "a=3#5", "5")],
)
def test_built_in_tasks_read_no_thought_and_no_cut_response(verify, response, answer):
  assert verify(response, answer)
  assert verify(f"<think>#9</think>{response}", answer)
  assert verify(f"#9</think>{response}", answer, prompt="<think>\n")
  assert not verify(f"<think>{response}", answer)
  assert not verify(response, answer, prompt="<think>\n")
  assert not verify(response, answer, ended=False)


def test_a_cut_or_unfinished_reply_claims_nothing():
  claim = relay.RELAY.extract_answer
  assert claim("a=3#5") == claim("<think>#4</think>a=3#5") == "5"
  assert claim("a=3#5", ended=False) is claim("<think>a=3#5") is claim("a=3#5", prompt="<think>") is None

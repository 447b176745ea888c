"""The same evidence at once, in one message, and turn by turn."""

import dataclasses

import pytest

from opd_jax.context.conversation import LEADS, Conversation, from_example, phrase
from opd_jax.context.histories import converse
from opd_jax.context.shards import Unfit
from opd_jax.data.sources import Example

TEXT = "Tom has 3 apples. If he buys 2 more, how many does he have?"
TURNS = ("How many does he have?", "Tom has 3 apples.", "If he buys 2 more.")


def user(text):
  return {"role": "user", "content": text}


def said(text):
  return {"role": "assistant", "content": text}


def test_a_text_is_told_question_first():
  talk = from_example(Example(TEXT, "5", "here"), "plain")
  assert talk.turns == ("how many does he have?", "Tom has 3 apples.", "If he buys 2 more,")
  assert talk.full == TEXT
  assert talk.concat() == (user("\n".join(talk.turns)),)
  assert talk.raw(()) == (user(talk.turns[0]),)
  assert talk.raw(("5", "6")) == (user(talk.turns[0]), said("5"), user(talk.turns[1]), said("6"), user(talk.turns[2]))


def test_templates_put_words_around_facts_and_none_inside():
  talk = from_example(Example(TEXT, "5", "here"))
  assert talk.turns == from_example(Example(TEXT, "6", "elsewhere")).turns
  assert talk.turns[0] == TURNS[0]
  for turn, plain in zip(talk.turns[1:], TURNS[1:], strict=True):
    assert turn in [lead.format(plain) for lead in LEADS]
  assert {phrase("x", i, "seed") for i in range(1, 50)} == {lead.format("X") for lead in LEADS}
  assert {phrase("and then 3.", i, "seed") for i in range(1, 50)} == {"And then 3."}


def test_messages_of_several_turns_are_a_conversation_without_their_replies():
  messages = ({"role": "system", "content": "s"}, user("a?"), said("old"), user("b"))
  talk = from_example(Example(messages, "1", "here"))
  assert talk.turns == ("a?", "b")
  assert talk.full == ({"role": "system", "content": "s"}, user("a?\nb"))
  assert talk.raw(("new",)) == ({"role": "system", "content": "s"}, user("a?"), said("new"), user("b"))
  canonical = from_example(Example(messages, "1", "here", canonical="everything?"))
  assert canonical.full == ({"role": "system", "content": "s"}, user("everything?"))


def test_one_users_message_is_cut_like_a_text():
  talk = from_example(Example((user(TEXT),), "5", "here"), "plain")
  assert talk.turns[0] == "how many does he have?"
  assert talk.full == (user(TEXT),)


def test_a_tools_message_is_refused():
  with pytest.raises(Unfit):
    from_example(Example((user("a"), {"role": "tool", "content": "x"}, user("b")), "", "here"))


def test_a_system_message_stands_before_every_form():
  talk = Conversation("q", ("a", "b")).under("s")
  system = {"role": "system", "content": "s"}
  assert talk.full == (system, user("q"))
  assert talk.concat()[0] == talk.raw(())[0] == talk.misled("x")[0] == talk.hinted("x")[0] == system
  with pytest.raises(Unfit):
    talk.under("t")


def test_pollution_comes_after_everything_was_said():
  talk = Conversation("everything?", ("q?", "fact"))
  assert talk.misled("7") == (user("everything?"), said("The answer is 7."), user("q?"))
  assert talk.hinted("7") == (user("everything?\nI think that the answer is 7."),)
  brief = dataclasses.replace(talk, claims=("#{}", "{}!"))
  assert brief.misled("7")[1] == said("#7")
  assert brief.hinted("7") == (user("everything?\n7!"),)


def test_replies_are_asked_for_turn_by_turn_and_the_last_one_is_not():
  talks = [Conversation("", ("a", "b")), Conversation("", ("c", "d", "e")), Conversation("", ("f",))]
  asked = []

  def answer(prompts, turn, which):
    asked.append((turn, list(which), [tuple(m["content"] for m in p) for p in prompts]))
    return [f"{turn}:{p[-1]['content']}" for p in prompts]

  assert converse(talks, answer) == [("0:a",), ("0:c", "1:d"), ()]
  assert asked == [(0, [0, 1], [("a",), ("c",)]), (1, [1], [("c", "0:c", "d")])]

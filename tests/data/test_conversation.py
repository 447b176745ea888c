"""The same evidence at once, in one message, and turn by turn."""

import dataclasses

import pytest

from opd_jax.context.canonical import converse
from opd_jax.context.split_problem import LEADS, CannotSplit, from_example, phrase
from opd_jax.data.conversation import Conversation
from opd_jax.data.sources import Example

TEXT = "Tom has 3 apples. If he buys 2 more, how many does he have?"
TURNS = ("How many does he have?", "Tom has 3 apples.", "If he buys 2 more.")


def user(text):
  return {"role": "user", "content": text}


def assistant(text):
  return {"role": "assistant", "content": text}


def test_a_text_is_told_question_first():
  conversation = from_example(Example(TEXT, "5", "here"), "plain")
  assert conversation.turns == ("how many does he have?", "Tom has 3 apples.", "If he buys 2 more,")
  assert conversation.full == TEXT
  assert conversation.concat() == (user("\n".join(conversation.turns)),)
  assert conversation.raw(()) == (user(conversation.turns[0]),)
  assert conversation.raw(("5", "6")) == (
    user(conversation.turns[0]),
    assistant("5"),
    user(conversation.turns[1]),
    assistant("6"),
    user(conversation.turns[2]),
  )


def test_templates_put_words_around_facts_and_none_inside():
  conversation = from_example(Example(TEXT, "5", "here"))
  assert conversation.turns == from_example(Example(TEXT, "6", "elsewhere")).turns
  assert conversation.turns[0] == TURNS[0]
  for turn, plain in zip(conversation.turns[1:], TURNS[1:], strict=True):
    assert turn in [lead.format(plain) for lead in LEADS]
  assert {phrase("x", i, "seed") for i in range(1, 50)} == {lead.format("X") for lead in LEADS}
  assert {phrase("and then 3.", i, "seed") for i in range(1, 50)} == {"And then 3."}


def test_messages_of_several_turns_are_a_conversation_without_their_replies():
  messages = ({"role": "system", "content": "s"}, user("a?"), assistant("old"), user("b"))
  conversation = from_example(Example(messages, "1", "here"))
  assert conversation.turns == ("a?", "b")
  assert conversation.full == ({"role": "system", "content": "s"}, user("a?\nb"))
  assert conversation.raw(("new",)) == ({"role": "system", "content": "s"}, user("a?"), assistant("new"), user("b"))
  canonical = from_example(Example(messages, "1", "here", canonical="everything?"))
  assert canonical.full == ({"role": "system", "content": "s"}, user("everything?"))


def test_one_users_message_is_cut_like_a_text():
  conversation = from_example(Example((user(TEXT),), "5", "here"), "plain")
  assert conversation.turns[0] == "how many does he have?"
  assert conversation.full == (user(TEXT),)


def test_a_tools_message_is_refused():
  with pytest.raises(CannotSplit):
    from_example(Example((user("a"), {"role": "tool", "content": "x"}, user("b")), "", "here"))


def test_a_system_message_stands_before_every_form():
  conversation = Conversation("q", ("a", "b")).with_system("s")
  system = {"role": "system", "content": "s"}
  assert conversation.full == (system, user("q"))
  assert (
    conversation.concat()[0]
    == conversation.raw(())[0]
    == conversation.with_wrong_answer("x")[0]
    == conversation.with_wrong_hint("x")[0]
    == system
  )
  with pytest.raises(CannotSplit):
    conversation.with_system("t")


def test_pollution_comes_after_everything_was_said():
  conversation = Conversation("everything?", ("q?", "fact"))
  assert conversation.with_wrong_answer("7") == (user("everything?"), assistant("The answer is 7."), user("q?"))
  assert conversation.with_wrong_hint("7") == (user("everything?\nI think that the answer is 7."),)
  with_claims = dataclasses.replace(conversation, claims=("#{}", "{}!"))
  assert with_claims.with_wrong_answer("7")[1] == assistant("#7")
  assert with_claims.with_wrong_hint("7") == (user("everything?\n7!"),)


def test_replies_are_asked_for_turn_by_turn_and_the_last_one_is_not():
  conversations = [Conversation("", ("a", "b")), Conversation("", ("c", "d", "e")), Conversation("", ("f",))]
  calls = []

  def answer(prompts, turn, which):
    calls.append((turn, list(which), [tuple(m["content"] for m in p) for p in prompts]))
    return [f"{turn}:{p[-1]['content']}" for p in prompts]

  assert converse(conversations, answer) == [("0:a",), ("0:c", "1:d"), ()]
  assert calls == [(0, [0, 1], [("a",), ("c",)]), (1, [1], [("c", "0:c", "d")])]

"""The task for conversations: right by construction, the same at every call, and told without a fact too early."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.context.split_problem import from_example
from opd_jax.data import tokenizer as tokenizers
from opd_jax.data.chat import render
from opd_jax.data.rendering import Rendering
from opd_jax.data.sources import Example
from opd_jax.models import decoder, hf, hf_config
from opd_jax.tasks import relay


@pytest.mark.parametrize("task", [relay.RELAY, relay.TIMES, relay.LONG], ids=lambda t: t.name)
def test_solutions_are_right_and_fit(task):
  for p in task.problems(100, seed=0):
    assert task.verify(p.solution, p.answer)
    assert not task.verify(p.solution[:-1], p.answer)
    assert len(p.solution) + 1 <= task.max_response
    values = {}
    for step in p.solution.split("#")[0].split(","):
      name, _, expression = step.partition("=")
      *work, value = expression.split("=")
      values[name] = int(value)
      if work:
        assert eval(work[0]) % 10 == int(value)
    assert p.answer == str(values[p.turns[0][0]])


def test_held_out_problems_are_never_trained_on():
  seen = {p.prompt for p in relay.RELAY.problems(3000, seed=0)}
  held = {p.prompt for p in relay.RELAY.problems(300, seed=0, held_out=True)}
  assert not seen & held
  assert relay.RELAY.problems(5, seed=0) == relay.RELAY.problems(5, seed=0)


def test_turns_tell_the_question_first_and_the_facts_in_order():
  for p in relay.LONG.problems(50, seed=1):
    question, *facts = p.turns
    assert p.prompt == ";".join([*facts, question])
    assert 5 <= len(facts) <= 6


def test_a_reply_holds_only_what_the_turns_before_it_do():
  rng = random.Random(0)
  for p in relay.RELAY.problems(50, seed=2):
    replies = relay.replies(p.turns[1:], rng, drift=0.0)
    assert len(replies) == len(p.turns)
    assert replies[-1] == p.solution
    for known, reply in enumerate(replies[:-1]):
      steps = reply.split("#")[0]
      assert (steps.count("=") > 0) == (known > 0)
      assert p.solution.startswith(steps)
      assert len([s for s in steps.split(",") if s]) == known


def test_a_drifted_reply_falls_back_on_the_guess():
  rng = random.Random(1)
  fell = 0
  for p in relay.RELAY.problems(300, seed=3):
    *_, before, last = relay.replies(p.turns[1:], rng, drift=1.0)
    assert last[-1] == before[-1] == last.split("#")[0][-1]
    fell += not relay.RELAY.verify(last, p.answer)
  assert 0.85 < fell / 300 < 0.95, "nine of ten guesses are wrong"


def test_a_reply_that_waits_has_no_guess_to_fall_back_on():
  rng = random.Random(2)
  for p in relay.RELAY.problems(20, seed=4):
    *before, last = relay.replies(p.turns[1:], rng, drift=1.0, waits=1.0)
    assert before == [relay.WAIT] * (len(p.turns) - 1)
    assert last == p.solution


@pytest.mark.parametrize("kind", ["again", "hinted"])
def test_what_was_claimed_is_fallen_back_on(kind):
  rng = random.Random(3)
  for p in relay.RELAY.problems(50, seed=5):
    conversation = from_example(Example(p.prompt, p.answer, "here", turns=p.turns, claims=p.claims))
    for drift in (0.0, 1.0):
      *before, (user, reply) = relay.transcript(kind, p, rng, drift, waits=0.2)
      claim = before[0][1][-1] if before else user[-1]
      if before:
        assert conversation.with_wrong_answer(claim)[-2:] == (
          {"role": "assistant", "content": before[0][1]},
          {"role": "user", "content": user},
        )
      else:
        assert conversation.with_wrong_hint(claim) == ({"role": "user", "content": user},)
      assert reply[-1] == (claim if drift else p.answer)
      assert drift or reply == p.solution


def test_a_conversation_of_a_kind_that_does_not_exist_is_no_other_one():
  with pytest.raises(ValueError, match="no conversation of kind 'twice'"):
    relay.transcript("twice", relay.RELAY.problem(random.Random(0), held_out=False), random.Random(0), 0.0, 0.0)


def test_the_template_renders_what_the_model_was_pretrained_on(tmp_path):
  kinds = (*relay.TOLD_AT_ONCE, "raw")
  relay.TOKENIZER.save(tmp_path)
  tokenizer = tokenizers.load(tmp_path)
  (tokens, learned_masks), rng = next(relay.corpus(10, seed=0, drift=0.3, waits=0.2, kinds=kinds)), random.Random(0)
  learned = [
    "".join(relay.SYMBOLS[t] for t, m in zip(*row, strict=True) if m) for row in zip(tokens, learned_masks, strict=True)
  ]
  for row, kind in zip(learned, kinds * 2, strict=False):
    assert row.count(relay.EOS) == 1 or kind == "raw", "what is put into the assistant's mouth is not learned"
  p = relay.RELAY.problem(rng, held_out=False)
  conversation = from_example(Example(p.prompt, p.answer, "here", turns=p.turns))
  replies = relay.replies(p.turns[1:], rng, 0.0)
  ids = render(conversation.raw(replies[:-1]), tokenizer, Rendering())
  wanted = [s for user, reply in zip(p.turns, replies, strict=True) for s in ("U", *user, "A", *reply, relay.EOS)]
  assert ids == relay.TOKENIZER.encode(wanted)[: -len(replies[-1]) - 1]
  assert render(conversation.full, tokenizer, Rendering()) == relay.TOKENIZER.encode(["U", *p.prompt, "A"])
  assert render(conversation.concat(), tokenizer, Rendering()) == relay.TOKENIZER.encode(
    ["U", *"\n".join(p.turns), "A"]
  )
  assert np.array(tokens[0]).max() < len(relay.SYMBOLS)


@pytest.mark.long
@pytest.mark.parametrize("role", ["talker", "talker-2"])
def test_shipped_talkers_know_the_task_and_fall_back_in_conversations(role):
  """By what they find likeliest, symbol by symbol, behind right replies (FULL) and behind wrong guesses (RAW)."""
  path = hf.resolve(f"builtin:{role}")
  hf.check_directory(path)
  assert hf.stop_ids(path) == (relay.TOKENIZER.ids[relay.EOS],)
  cfg = hf_config.read(path)
  params, tokenizer = hf.load(path, cfg), tokenizers.load(path)
  choice = jax.jit(lambda p, x: jnp.argmax(decoder.unembed(p, decoder.hidden(p, cfg, x, jnp.ones_like(x, bool))), -1))
  problems, rng, right = relay.RELAY.problems(64, seed=0, held_out=True), random.Random(4), {"full": [], "raw": []}
  tokens = np.zeros((2 * len(problems), 192), np.int32)
  for row, p in enumerate(problems * 2):
    kind = "full" if row < len(problems) else "raw"
    conversation = from_example(Example(p.prompt, p.answer, "here", turns=p.turns, claims=p.claims))
    before = relay.replies(p.turns[1:], rng, drift=0.0)[:-1]
    ids = render(conversation.full if kind == "full" else conversation.raw(before), tokenizer, Rendering())
    tokens[row, : len(ids)] = ids
    tokens[row, len(ids) : len(ids) + len(p.solution)] = relay.TOKENIZER.encode(p.solution)
    right[kind].append(len(ids) + len(p.solution) - 2)
  chosen = np.array(choice(params, tokens))
  share = {}
  for first, (kind, ends) in zip((0, len(problems)), right.items(), strict=True):
    answers = [relay.TOKENIZER.encode(p.answer)[0] for p in problems]
    share[kind] = np.mean([chosen[first + i, end] == answers[i] for i, end in enumerate(ends)])
  assert share["full"] > 0.95
  assert share["raw"] < share["full"] - 0.15

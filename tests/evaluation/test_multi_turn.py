"""What becomes of wrong answers: the student's own from before it was told everything, and those put into a prompt."""

import functools
import types
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opd_jax import config
from opd_jax.analysis import deviation
from opd_jax.data import chat
from opd_jax.data.conversation import Conversation
from opd_jax.data.problems import Problems
from opd_jax.data.rendering import Rendering
from opd_jax.evaluate import summary_lines
from opd_jax.evaluation.inputs import EvaluationInputs
from opd_jax.evaluation.multi_turn import MultiTurnEvaluator, anchored, wrong_answers
from opd_jax.rollout.generate import Completions
from opd_jax.tasks import gsm8k, relay
from opd_jax.tasks.problem import Response


def finished(replies, last):
  return [[Response(text) for text in of_one] for of_one in replies], [Response(text) for text in last]


def test_wrong_guesses_that_the_last_reply_repeats():
  replies = [("#5", "a=3#5"), ("#5", "a=3#?"), ("#4", "a=3#4"), ("#?", "#?"), ("#5", "a=3#8")]
  texts = ["b=3+1=4#5", "b=3+1=4#4", "b=3+1=4#4", "b=3+1=4#4", "b=3+1=4#5"]
  found = anchored(*finished(replies, texts), ["4"] * 5, relay.RELAY.verify, relay.RELAY.extract_answer)
  assert found.wrong == 3 / 5, "a right guess and none at all are not wrong ones"
  assert found.kept == 1 / 3, "the last guess counts, not one before it"


def test_without_a_wrong_guess_nothing_is_said():
  replies, last = finished([("#4",), ("#?",)], ["#4", "#5"])
  assert anchored(replies, last, ["4", "4"], relay.RELAY.verify, relay.RELAY.extract_answer) == (0, None)


def test_a_reply_that_was_cut_claims_nothing():
  replies, last = finished([("#5",), ("#5",)], ["#5", "#5"])
  cut = [[replies[0][0]._replace(ended=False)], replies[1]]
  assert anchored(cut, last, ["4", "4"], relay.RELAY.verify, relay.RELAY.extract_answer) == (0.5, 1.0)
  cut = [last[0]._replace(ended=False), last[1]]
  assert anchored(replies, cut, ["4", "4"], relay.RELAY.verify, relay.RELAY.extract_answer) == (1.0, 0.5)


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
  found = anchored(*finished(replies, texts), ["... #### 12", "... #### 12"], gsm8k.verify, gsm8k.extract_answer)
  assert found == (1.0, 0.5)


def told(*answers):
  return [Conversation(f"problem {i}", ("how many?", "some")) for i, _ in enumerate(answers)], answers


def test_a_wrong_answer_is_the_next_one_that_is_not_right_here():
  conversations, answers = told("18", "$18.00", "3 apples", "5")
  assert wrong_answers(conversations, answers, gsm8k.verify) == ["3 apples", "3 apples", "5", "18"]


def test_where_all_answers_are_the_same_the_wrong_one_is_another_number():
  conversations, answers = told("0", "0.0", "0 dollars")
  assert wrong_answers(conversations, answers, gsm8k.verify) == ["1"] * 3
  conversations, answers = told("Mary", "Mary")
  assert wrong_answers(conversations, answers, gsm8k.verify) == ["0"] * 2


def test_a_wrong_answer_is_claimed_in_the_words_of_the_task():
  problems = relay.RELAY.problems(12, seed=0)
  conversations = [Conversation(p.prompt, p.turns, p.answer, claims=(relay.CLAIM, relay.CLAIM)) for p in problems]
  wrong = wrong_answers(conversations, [p.answer for p in problems], relay.RELAY.verify)
  for i, (conversation, problem, answer) in enumerate(zip(conversations, problems, wrong, strict=True)):
    others = [p.answer for p in problems[i + 1 :] + problems[:i]]
    assert answer == next(other for other in others if other != problem.answer)
    assert not relay.RELAY.verify(conversation.with_wrong_answer(answer)[-2]["content"], problem.answer)


TEMPLATE = (
  "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer():
  """A word is a token, and unknown words are one."""
  words = ["<unk>", "<user>", "<assistant>", "<eos>", "FIRST", "18", "36"]
  model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
  model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", eos_token="<eos>", chat_template=TEMPLATE)


class Generated:
  """Stands for a Generator: always replies with 18, and adds the prompts that it is given to `shown`."""

  def __init__(self, shown, *_, batch, prompt_lens, name, **__):
    self.batch, self.prompt_lens, self.name, self.compiled, self.shown = batch, tuple(prompt_lens), name, [], shown

  def prepare(self, params, prompt_len):
    pass

  def __call__(self, params, ids, key, numbers=None):
    assert max(map(len, ids)) <= self.prompt_lens[-1]
    self.shown.append(ids)
    return Completions(["18"] * len(ids), np.ones(len(ids), int), np.ones(len(ids), bool))


def evaluator(conversations, answers, monkeypatch, max_positions=512, shown=None):
  tok = tokenizer()
  c = config.override(
    config.load("ccopd"), {"eval.k": 2, "eval.batch": 4, "context.turn_tokens": 2, "data.widths": 0.0}
  )
  ids = chat.render_all([conversation.full for conversation in conversations], tok, Rendering())
  problems = Problems(ids, list(answers), conversations=tuple(conversations), prompt_lens=(16,))
  model = types.SimpleNamespace(cfg=types.SimpleNamespace(max_positions=max_positions))
  monkeypatch.setattr(EvaluationInputs, "generator_config", None)
  found: Any = EvaluationInputs(
    model=model,  # pyright: ignore[reportArgumentType]
    tokenizer=tok,
    problems=problems,
    verify=gsm8k.verify,
    max_tokens=4,
    extract_answer=gsm8k.extract_answer,
    **dict.fromkeys(("sampling", "segments", "attention", "mesh", "dtype")),  # pyright: ignore[reportArgumentType]
  )
  make_generator: Any = functools.partial(Generated, [] if shown is None else shown)
  return MultiTurnEvaluator(c, found, {}, make_generator=make_generator)


LONG = Conversation("FIRST" + " word" * 43, ("how many?", "some"))
SHORT = Conversation("FIRST word", ("how many?", "some"))


def test_prompts_with_a_wrong_answer_are_shown_whole(monkeypatch):
  """They are the longest of all: everything, the claim, and the question again."""
  shown: list = []
  made = evaluator([LONG, SHORT], ["18", "36"], monkeypatch, shown=shown)
  assert made.widths == (48,)
  found = made.pollution({})
  assert [len(rows[0]) for rows in shown] == [46 + 5 + 3, 46 + 7]
  assert all(ids[1] == tokenizer().convert_tokens_to_ids("FIRST") for rows in shown for ids in rows)
  assert [record["accuracy"] for record in found.values()] == [0.5, 0.5]
  assert not any("prompts_cut" in record for record in found.values())
  assert made.widths == (48,), "the forms are evaluated as they are in training"


def test_a_prompt_with_a_wrong_answer_that_no_position_is_left_for_is_counted(monkeypatch):
  made = evaluator([LONG, SHORT], ["18", "36"], monkeypatch, max_positions=52)
  found = made.pollution({})
  assert [record["prompts_cut"] for record in found.values()] == [2, 2], "two samples of one problem"
  record = {"of": "x", **made({})[0], "pollution": found}
  lines = list(summary_lines(config.override(config.load("ccopd"), {}), record, 0))
  assert sum(line.endswith("prompts that lost their beginning: 2") for line in lines) == 2


def test_every_form_counts_prompts_that_lose_their_beginning(monkeypatch):
  made = evaluator([SHORT, SHORT], ["18", "36"], monkeypatch)
  monkeypatch.setattr(made, "converse", lambda params: [("word " * 40,), ("no",), ("no",), ("no",)])
  forms = made({})[0]["forms"]
  assert forms["raw"]["prompts_cut"] == 1
  assert "prompts_cut" not in forms["full"] | forms["concat"]


def test_the_deviation_counts_prompts_that_lose_their_beginning(monkeypatch):
  made = evaluator([SHORT, SHORT], ["18", "36"], monkeypatch)
  monkeypatch.setattr(deviation, "_Programs", lambda evaluator: lambda *_: (np.ones(3), []))
  assert "prompts_cut" not in deviation.deviation(made, {})
  monkeypatch.setattr(made, "converse", lambda params: [("word " * 40,), ("no",), ("no",), ("no",)])
  assert deviation.deviation(made, {})["prompts_cut"] == 1

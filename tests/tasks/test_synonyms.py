"""The task of running sums: any word of the right digit is right, and many of the words are rare."""

import dataclasses
import random

import pytest

from opd_jax.data import tokenizer as tokenizers
from opd_jax.models import hf
from opd_jax.tasks import generator, pretrain, synonyms, verifier
from opd_jax.tasks.synonyms import MEANING, RUNNING_SUMS, WORDS


def test_solutions_are_accepted_and_fit():
  assert generator("synonyms") is RUNNING_SUMS
  for p in RUNNING_SUMS.problems(300, seed=1):
    assert verifier("synonyms")(p.solution, p.answer)
    assert len(synonyms.TOKENIZER.encode(p.prompt)) == RUNNING_SUMS.max_prompt
    assert len(synonyms.TOKENIZER.encode(p.solution)) + 1 == RUNNING_SUMS.max_response


def test_a_solution_read_aloud():
  (p,) = RUNNING_SUMS.problems(1, seed=3)
  digits = [int(symbol) for symbol in p.prompt[:-1].split("+")]
  meant = [int(MEANING[symbol]) for symbol in p.solution if symbol != "#"]
  assert meant[:-1:2] == digits[1:]
  assert meant[1:-1:2] == [sum(digits[: i + 1]) % 10 for i in range(1, len(digits))]
  assert meant[-1] == sum(digits) % 10 == int(p.answer)


@pytest.mark.parametrize(
  ("response", "right"),
  [
    (f"#{WORDS[8][0]}", True),
    (f"5{WORDS[3][7]}#{WORDS[8][49]}", True),
    (f"#{WORDS[7][0]}", False),
    ("8", False),
    ("#", False),
    ("", False),
    ("#88", False),
    ("#8#", False),
    ("#<pad>", False),
  ],
)
def test_any_word_of_the_right_digit_is_right(response, right):
  assert RUNNING_SUMS.verify(response, "8") is right
  assert not RUNNING_SUMS.verify(response, "8", ended=False)


def test_every_symbol_is_a_token_of_its_own():
  assert len(set(synonyms.SYMBOLS)) == len(synonyms.SYMBOLS) == 505
  assert {len(words) for words in WORDS} == {synonyms.SYNONYMS}
  assert all(len(symbol) == 1 for symbol in synonyms.SYMBOLS[2:])


def test_a_sixth_of_the_words_is_rarer_than_one_in_a_hundred():
  rng = random.Random(0)
  drawn = [WORDS[3].index(synonyms.word(rng, 3)) for _ in range(20_000)]
  total = sum(1 / k for k in range(1, synonyms.SYNONYMS + 1))
  assert drawn.count(0) / len(drawn) == pytest.approx(1 / total, abs=0.01)
  rare = sum(1 / (k + 1) / total < 0.01 for k in drawn) / len(drawn)
  assert rare == pytest.approx(0.18, abs=0.01)


def test_held_out_problems_are_never_trained_on():
  few = dataclasses.replace(RUNNING_SUMS, terms=2)
  train = {p.prompt for p in few.problems(2000, seed=0)}
  held_out = {p.prompt for p in few.problems(100, seed=0, held_out=True)}
  assert held_out
  assert not train & held_out


def test_the_right_digit_follows_what_is_written():
  (p,) = RUNNING_SUMS.problems(1, seed=5)
  written = [*p.solution, synonyms.EOS]
  right = RUNNING_SUMS.right(p.prompt, written)
  assert [MEANING.get(symbol, symbol) for symbol in written] == right
  wrong = str((int(right[1]) + 1) % 10)
  after_slip = RUNNING_SUMS.right(p.prompt, [written[0], wrong, *written[2:4]])
  assert after_slip[1] == right[1]
  assert int(after_slip[3]) == (int(wrong) + int(right[2])) % 10
  assert len(RUNNING_SUMS.right(p.prompt, ["#", *written])) == 1, "nothing is right beyond the format"


def test_misconceptions_are_soft_and_wrong():
  beliefs = synonyms.misconceptions()
  assert len(beliefs.facts) == 100 * synonyms.WRONG_SUMS
  for (a, _, b), (wrong, chance) in beliefs.facts.items():
    assert wrong != (a + b) % 10
    assert 0.4 <= chance <= 0.8
  solved = [RUNNING_SUMS.problem(random.Random(i), False, beliefs) for i in range(400)]
  assert 0.3 < sum(RUNNING_SUMS.verify(p.solution, p.answer) for p in solved) / 400 < 0.6


def test_a_teacher_reads_slips_and_does_not_learn_them():
  task, rows = RUNNING_SUMS, 64
  tokens, weights = next(pretrain.synonym_batches(synonyms.TRUTH, rows, seed=0, plain=0, slips=0.3))
  assert not weights[:, : task.max_prompt - 1].any()
  learned = weights[:, task.max_prompt - 1 :]
  for row in range(rows):
    symbols = [synonyms.SYMBOLS[i] for i in tokens[row]]
    prompt, response = "".join(symbols[: task.max_prompt]), symbols[task.max_prompt :]
    meant = [MEANING.get(symbol, symbol) for symbol in response]
    assert (learned[row] == [a == b for a, b in zip(meant, task.right(prompt, response), strict=True)]).all()
  assert 0.2 < 1 - learned[:, 1:10:2].mean() < 0.4, "slips are in the sums"
  assert learned[:, 0:10:2].all()


def test_a_plain_batch_has_one_word_for_each_digit():
  tokens, _ = next(pretrain.synonym_batches(synonyms.TRUTH, 8, seed=0, plain=1))
  assert {synonyms.SYMBOLS[i] for i in set(tokens.ravel().tolist())} <= {*"0123456789+=#", synonyms.EOS}


@pytest.mark.parametrize("role", ["synonyms-student", "synonyms-teacher"])
def test_shipped_models_read_the_task(role):
  path = hf.resolve(f"builtin:{role}")
  hf.check_directory(path)
  tokenizer = tokenizers.load(path)
  p = RUNNING_SUMS.problems(1, seed=0)[0]
  ids = tokenizer(p.prompt + p.solution)["input_ids"]
  assert ids == synonyms.TOKENIZER.encode(p.prompt + p.solution)
  assert tokenizer.decode(ids) == p.prompt + p.solution
  assert hf.stop_ids(path) == (synonyms.TOKENIZER.ids[synonyms.EOS],)
  assert sum(f.stat().st_size for f in path.iterdir()) < 1.5e6

"""avg@k, pass@k and their intervals."""

import importlib
import itertools

import numpy as np
import pytest

from opd_jax import config
from opd_jax.analysis import accuracy, loaded
from opd_jax.errors import InputError
from opd_jax.evaluation import single_turn
from opd_jax.rollout import generate
from opd_jax.runtime import cli, metrics, outcome

evaluate = importlib.import_module("opd_jax.evaluate")  # the command; the package has a function of this name


def test_pass_at_k_is_the_share_of_subsets_with_a_success():
  for n, correct, k in [(4, 1, 2), (5, 3, 2), (6, 0, 3), (6, 6, 1), (5, 2, 5)]:
    marks = [True] * correct + [False] * (n - correct)
    subsets = list(itertools.combinations(marks, k))
    assert single_turn.pass_at_k(n, correct, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_k_above_n_is_refused():
  with pytest.raises(InputError, match="pass@5 needs at least 5 samples"):
    single_turn.pass_at_k(4, 2, 5)


def test_summary_of_a_small_table():
  correct = np.array([[1, 1], [1, 0], [0, 0], [1, 0]], bool)
  r = single_turn.accuracy(correct, (1, 2))
  assert r["accuracy"] == r["pass"]["1"]["value"] == 0.5
  assert r["pass"]["2"]["value"] == 0.75
  assert r["low"] < 0.5 < r["high"]
  assert (r["k"], r["prompts"]) == (2, 4)


def test_interval_with_one_answer_each_is_wilsons():
  low, high = single_turn.interval(np.array([1.0] * 8 + [0.0] * 2))
  assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_interval_is_open_where_all_are_right():
  low, high = single_turn.interval(np.ones(50))
  assert 0.92 < low < 0.94
  assert high == pytest.approx(1.0)


def test_answers_to_one_problem_are_not_independent():
  """Four equal answers per problem say no more than one; four independent ones do."""
  each = np.random.default_rng(0).random(100) < 0.5
  equal = single_turn.interval(each.astype(float))
  independent = single_turn.interval(np.random.default_rng(1).binomial(4, 0.5, 100) / 4)
  assert equal[1] - equal[0] > 1.6 * (independent[1] - independent[0])


def test_interval_covers():
  """At least 92% of 500 intervals over 60 problems hold the true mean of 0.8."""
  rng = np.random.default_rng(0)
  hits = [
    low <= 0.8 <= high for low, high in (single_turn.interval((rng.random(60) < 0.8).astype(float)) for _ in range(500))
  ]
  assert np.mean(hits) > 0.92


def test_text_leaves_the_stop_token_out():
  class Tokenizer:
    def batch_decode(self, rows, skip_special_tokens):
      return [" ".join(map(str, row)) for row in rows]

  response, mask = np.array([[5, 6, 1, 0], [7, 8, 9, 9]]), np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
  assert generate.decode(Tokenizer(), response, mask, (1,)) == ["5 6", "7 8 9 9"]


def test_text_keeps_special_tokens_and_words_that_only_fill_rows():
  """Where a tokenizer has no padding token, the id that fills rows is a word of the vocabulary."""

  class Tokenizer:
    pad_token_id: int | None = None

    def batch_decode(self, rows, skip_special_tokens):
      assert not skip_special_tokens
      return [" ".join(map(str, row)) for row in rows]

  tokenizer, response, mask = Tokenizer(), np.array([[0, 5, 3, 1]]), np.ones((1, 4), bool)
  assert generate.decode(tokenizer, response, mask, (1,)) == ["0 5 3"]
  tokenizer.pad_token_id = 3
  assert generate.decode(tokenizer, response, mask, (1,)) == ["0 5"]


def test_a_deviation_needs_a_conversation():
  values, c = cli.parse(["evaluate", "--model=builtin:student", "--deviation"], "", evaluate.define, cli.of_method)
  with pytest.raises(InputError, match="--deviation"):
    evaluate.run(values, c)


def record(ended: float, **more):
  return {"k": 2, "prompts": 64, "ended": ended, "length": {"max": 128}} | more


def test_answers_that_the_limit_cut_are_told_where_they_are_many():
  """Of an accuracy of 0 nothing else says that the limit made it."""
  assert outcome.answers_cut(record(0.125)) == "112 of 128 answers were cut at 128 tokens: raise eval.max_tokens"
  assert outcome.answers_cut(record(0.95)) == ""
  turns = record(1.0, replies_cut=0.5)
  assert outcome.answers_cut(turns) == "50% of the earlier replies were cut: raise context.turn_tokens"


def test_an_evaluation_says_how_many_answers_were_cut(small, capsys):
  """In the log, in what the command prints, and sample by sample."""
  c = small("opd", **{"eval.max_tokens": 2, "eval.prompts": 4})
  model = loaded.load_model(c.student)
  found = accuracy.evaluate(model, c)
  assert [sample["ended"] for sample in found["samples"]] == [False, False]
  cut = "4 of 4 answers were cut at 2 tokens: raise eval.max_tokens"
  assert f"  {cut}" in list(evaluate.summary_lines(c, {"of": "x", **found}, 0))
  bar = metrics.ProgressBar(1, 0, "run")
  bar.evaluation(found | {"step": 0, "elapsed": 0.0, "tokens": 0})
  assert f"note: {cut}" in capsys.readouterr().err


@pytest.mark.long
def test_every_problem_is_answered_once_more_by_its_likeliest_tokens(small, capsys):
  """Beside samples at the temperature, which stay what they are; the same as an evaluation that is greedy alone."""
  c = small("opd", **{"eval.k": 2, "eval.max_tokens": 6, "eval.prompts": 4})
  model = loaded.load_model(c.student)
  both = accuracy.evaluate(model, config.override(c, {"eval.greedy": True}))
  alone = accuracy.evaluate(model, config.override(c, {"eval.temperature": 0.0, "eval.k": 1}))
  assert both.pop("greedy") == {name: alone[name] for name in ("accuracy", "low", "high")}
  assert both == accuracy.evaluate(model, c)
  already = accuracy.evaluate(model, config.override(c, {"eval.temperature": 0.0, "eval.greedy": True}))
  assert "greedy" not in already
  told = both | {"greedy": {"accuracy": 0.25, "low": 0.0, "high": 0.5}}
  assert "  greedy  0.2500  [0.0000, 0.5000]" in list(evaluate.summary_lines(c, {"of": "x", **told}, 0))
  bar = metrics.ProgressBar(1, 0, "run")
  bar.evaluation(told | {"step": 0, "elapsed": 0.0, "tokens": 0})
  assert "(greedy 0.250)" in capsys.readouterr().err

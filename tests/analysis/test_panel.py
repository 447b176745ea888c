"""What a panel reads: against one row and one token at a time, and twice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.analysis.panel import Panel
from opd_jax.errors import InputError
from opd_jax.models import decoder
from opd_jax.objectives import divergence
from opd_jax.objectives.divergence import Objective, Readout
from tests.analysis.conftest import PROBLEMS

FIELDS = ("kl", "forward_kl", "student_entropy", "teacher_entropy", "overlap", "logprob", "teacher_logprob")


@pytest.fixture(scope="module")
def dense(panel, shaken, reading) -> list[list[Readout]]:
  """What predicts every row's tokens, [1, tokens, D] of student and teacher, without padding between or before them."""
  cfg, rows = panel.inputs.student.cfg, []
  for i, ids in enumerate(panel.ids):
    rows.append([*ids, *reading.response[i, reading.mask[i]]])
  length = np.array(list(map(len, rows)))
  tokens = jnp.asarray([row + [0] * (length.max() - len(row)) for row in rows])
  run = jax.jit(lambda p: decoder.hidden(p, cfg, tokens, jnp.arange(length.max()) < length[:, None]))
  hidden = [run(shaken), run(panel.teacher)]
  heads = [decoder.head(shaken), decoder.head(panel.teacher)]
  cut = lambda i: slice(len(panel.ids[i]) - 1, length[i] - 1)
  return [[Readout(x[i : i + 1, cut(i)], head) for x, head in zip(hidden, heads, strict=True)] for i in range(PROBLEMS)]


def test_readings_are_the_dense_ones(panel, reading, dense):
  assert reading.kl.shape == (PROBLEMS, panel.horizon)
  assert reading.kl[reading.mask].mean() > 0.01, "the two have to differ"
  objective = Objective(panel.recipe.sampling.vocab, kind="forward_kl", overlap_k=panel.recipe.loss.objective.overlap_k)
  for i, (s, t) in enumerate(dense):
    there = reading.mask[i]
    token = jnp.asarray(reading.response[i, there])[None]
    found = divergence.read(objective, s, (t,), token, jnp.ones(token.shape, bool))
    found["forward_kl"] = found.pop("divergence")
    for name in FIELDS:
      got = getattr(reading, name)[i]
      np.testing.assert_allclose(got[there], found[name][0], atol=1e-5, rtol=1e-5, err_msg=name)
      assert not got[~there].any(), name


def test_right_symbols_are_read_at_their_places(panel, reading, dense):
  """The probability of the right symbol is that of the drawn token where it is right, and of another one elsewhere."""
  known, right = reading.known, reading.right
  assert (known & ~right).any()
  for name, drawn in (("student_right", "logprob"), ("teacher_right", "teacher_logprob")):
    np.testing.assert_array_equal(np.isnan(getattr(reading, name)), ~known)
    np.testing.assert_allclose(getattr(reading, name)[right], getattr(reading, drawn)[right], atol=1e-6)
  for i, pair in enumerate(dense):
    text = [panel.inputs.tokenizer.convert_ids_to_tokens(int(t)) for t in reading.response[i, reading.mask[i]]]
    expected = panel.task.right(panel.prompts[i], text)
    ids = np.array([panel.symbols[symbol] for symbol in expected])
    for name, r in zip(("student_right", "teacher_right"), pair, strict=True):
      log = np.asarray(jax.nn.log_softmax(divergence.logits(r, panel.recipe.sampling.vocab), axis=-1))[0]
      np.testing.assert_allclose(getattr(reading, name)[i, known[i]], log[np.arange(len(ids)), ids], atol=1e-4)


def test_answers_are_judged_and_match_the_oracle(reading, panel):
  assert 0 < reading.correct.sum() < PROBLEMS, "the test needs right and wrong answers"
  without_fault = (reading.right | ~reading.mask).all(axis=1)
  assert reading.correct[without_fault].all()
  assert without_fault.any()
  text = panel.inputs.tokenizer.decode(reading.response[0, reading.mask[0]], skip_special_tokens=True)
  assert reading.correct[0] == text.endswith("#" + panel.answers[0])


def test_the_same_student_gives_the_same_reading(panel, shaken, reading):
  again, other = panel.read(shaken), panel.read(panel.untrained())
  for f in dataclasses.fields(reading):
    np.testing.assert_array_equal(getattr(again, f.name), getattr(reading, f.name), err_msg=f.name)
  assert (other.response != reading.response).any()
  np.testing.assert_allclose(other.kl, 0, atol=1e-5)  # its own teacher


def test_panels_share_programs(panel, config_of, shaken, reading, monkeypatch):
  def nothing(*_, **__):
    raise AssertionError("compiled again")

  monkeypatch.setattr("jax.stages.Lowered.compile", nothing)
  other = Panel(config_of(**{"optimizer.lr": 1.0, "steps": 3}), PROBLEMS, panel.kept)
  np.testing.assert_array_equal(other.read(shaken).response, reading.response)
  with pytest.raises(AssertionError, match="compiled again"):
    Panel(config_of(**{"log.overlap_k": 3}), PROBLEMS, panel.kept)


def test_a_file_or_several_teachers_are_refused(config_of, tmp_path):
  path = tmp_path / "problems.jsonl"
  path.write_text('{"prompt": "58+-++x1=", "answer": "83"}\n')
  with pytest.raises(InputError, match="built-in task"):
    Panel(config_of(**{"data.path": str(path), "eval.every": 0}))
  with pytest.raises(InputError, match="one teacher"):
    Panel(config_of(teachers=("builtin:teacher", "builtin:teacher")))

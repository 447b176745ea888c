"""What a panel measures: against one row and one token at a time, and twice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.analysis.panel import Panel
from opd_jax.errors import InputError
from opd_jax.models import decoder
from opd_jax.objectives import divergence
from opd_jax.objectives.divergence import FrozenInputs, HiddenAndHead, Objective

FIELDS = ("kl", "forward_kl", "student_entropy", "teacher_entropy", "overlap", "logprob", "teacher_logprob")


@pytest.fixture(scope="module")
def dense(panel, shaken, measured) -> list[list[HiddenAndHead]]:
  """The hidden states that predict a row's tokens, [1, tokens, D] of student and teacher, without padding."""
  cfg, rows = panel.inputs.student.cfg, []
  for i, ids in enumerate(panel.ids):
    rows.append([*ids, *measured.response[i, measured.mask[i]]])
  length = np.array(list(map(len, rows)))
  tokens = jnp.asarray([row + [0] * (length.max() - len(row)) for row in rows])
  run = jax.jit(lambda p: decoder.hidden(p, cfg, tokens, jnp.arange(length.max()) < length[:, None]))
  hidden = [run(shaken), run(panel.teacher)]
  heads = [decoder.head(shaken), decoder.head(panel.teacher)]
  pairs = []
  for i, ids in enumerate(panel.ids):
    response = slice(len(ids) - 1, length[i] - 1)
    pairs.append([HiddenAndHead(x[i : i + 1, response], head) for x, head in zip(hidden, heads, strict=True)])
  return pairs


@pytest.mark.long
def test_measurements_are_the_dense_ones(panel, measured, dense):
  assert measured.kl.shape == (len(panel.ids), panel.horizon)
  assert measured.kl[measured.mask].mean() > 0.01, "the two have to differ"
  objective = Objective(panel.student_generator.sampling.vocab, kind="forward_kl", overlap_k=panel.overlap_k)
  for i, (s, t) in enumerate(dense):
    mask = measured.mask[i]
    token = jnp.asarray(measured.response[i, mask])[None]
    found = divergence.token_stats(objective, s, FrozenInputs((t,), token, jnp.ones(token.shape, bool)))
    found["forward_kl"] = found.pop("divergence")
    for name in FIELDS:
      got = getattr(measured, name)[i]
      np.testing.assert_allclose(got[mask], found[name][0], atol=1e-5, rtol=1e-5, err_msg=name)
      assert not got[~mask].any(), name


def test_right_symbols_are_measured_at_their_positions(panel, measured, dense):
  """The probability of the right symbol is that of the drawn token where it is right, and of another one elsewhere."""
  known, right = measured.known, measured.right
  assert (known & ~right).any()
  for name, drawn in (("student_right", "logprob"), ("teacher_right", "teacher_logprob")):
    np.testing.assert_array_equal(np.isnan(getattr(measured, name)), ~known)
    np.testing.assert_allclose(getattr(measured, name)[right], getattr(measured, drawn)[right], atol=1e-6)
  for i, pair in enumerate(dense):
    text = [panel.inputs.tokenizer.convert_ids_to_tokens(int(t)) for t in measured.response[i, measured.mask[i]]]
    expected = panel.task.right(panel.prompts[i], text)
    ids = np.array([panel.symbols[symbol] for symbol in expected])
    for name, r in zip(("student_right", "teacher_right"), pair, strict=True):
      log = np.asarray(jax.nn.log_softmax(divergence.logits(r, panel.student_generator.sampling.vocab), axis=-1))[0]
      np.testing.assert_allclose(getattr(measured, name)[i, known[i]], log[np.arange(len(ids)), ids], atol=1e-4)


def test_answers_are_verified_and_match_the_oracle(measured, panel):
  assert 0 < measured.correct.sum() < len(panel.ids), "the test needs right and wrong answers"
  without_fault = (measured.right | ~measured.mask).all(axis=1)
  assert measured.correct[without_fault].all()
  assert without_fault.any()
  text = panel.inputs.tokenizer.decode(measured.response[0, measured.mask[0]], skip_special_tokens=True)
  assert measured.correct[0] == text.endswith("#" + panel.answers[0])


def test_the_same_student_gives_the_same_measurements(panel, shaken, measured):
  again, other = panel.measure(shaken), panel.measure(panel.untrained())
  for f in dataclasses.fields(measured):
    np.testing.assert_array_equal(getattr(again, f.name), getattr(measured, f.name), err_msg=f.name)
  assert (other.response != measured.response).any()
  np.testing.assert_allclose(other.kl, 0, atol=1e-5)  # its own teacher


def test_panels_share_programs(panel, config_of, shaken, measured, monkeypatch):
  def nothing(*_, **__):
    raise AssertionError("compiled again")

  monkeypatch.setattr("jax.stages.Lowered.compile", nothing)
  other = Panel(config_of(**{"optimizer.lr": 1.0, "steps": 3}), len(panel.ids), panel.program_cache)
  np.testing.assert_array_equal(other.measure(shaken).response, measured.response)
  with pytest.raises(AssertionError, match="compiled again"):
    Panel(config_of(**{"log.overlap_k": 3}), len(panel.ids), panel.program_cache)


def test_a_file_or_several_teachers_are_refused(config_of, tmp_path):
  path = tmp_path / "problems.jsonl"
  path.write_text('{"prompt": "58+-++x1=", "answer": "83"}\n')
  with pytest.raises(InputError, match="built-in task"):
    Panel(config_of(**{"data.path": str(path), "eval.every": 0}))
  with pytest.raises(InputError, match="one teacher"):
    Panel(config_of(teachers=("builtin:teacher", "builtin:teacher")))

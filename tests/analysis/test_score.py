"""Numbers per token of given texts: against the whole distributions, in groups, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.analysis import loaded, notebook
from opd_jax.analysis import score as scoring
from opd_jax.analysis.score import AT_A_TIME, respond, score, score_ids
from opd_jax.data import pipeline
from opd_jax.errors import InputError
from opd_jax.models import decoder
from opd_jax.objectives.divergence import HiddenAndHead

PROMPTS = ["58+-++x3=", "12++--x2="]
RESPONSES = ["3:5+8=4,8-4=6", "4:1+2"]


@pytest.fixture(scope="module")
def student(tiny):
  return loaded.load_model(tiny["student"])


@pytest.fixture(scope="module")
def teacher(tiny):
  return loaded.load_model(tiny["teacher"])


def log_probabilities(model, prompt: str, response: list[int]) -> np.ndarray:
  """[n, V], of one row without padding."""
  prompts = jax.tree.map(jnp.asarray, pipeline.pad([model.tokenizer(prompt)["input_ids"]], len(prompt), 0))
  row, mask = jnp.array([response]), jnp.ones((1, len(response)), bool)
  hidden = decoder.response_hidden(model.params, model.spec.cfg, prompts.prompt, prompts.prompt_mask, row, mask)
  return np.asarray(jax.nn.log_softmax(decoder.unembed(model.params, hidden)))[0]


def array(values) -> np.ndarray:
  return np.array(values, float)


@pytest.mark.long
def test_every_number_is_that_of_the_whole_distributions(student, teacher):
  for prompt, response, found in zip(PROMPTS, RESPONSES, score(student, teacher, PROMPTS, RESPONSES, k=3), strict=True):
    ids = student.tokenizer(response)["input_ids"]
    s, t = (log_probabilities(model, prompt, ids) for model in (student, teacher))
    drawn = np.arange(len(ids)), ids
    np.testing.assert_allclose(array(found.divergence), (np.exp(s) * (s - t)).sum(axis=-1), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(array(found.logprob), s[drawn], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(array(found.teacher_logprob), t[drawn], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(array(found.teacher_entropy), -(np.exp(t) * t).sum(axis=-1), rtol=1e-3, atol=1e-5)
    for log, top in ((s, found.student_top or ()), (t, found.teacher_top or ())):
      best = np.sort(np.exp(log), axis=-1)[:, ::-1][:, :3]
      np.testing.assert_allclose([[p for _, p in at] for at in top], best, rtol=1e-3, atol=1e-5)
      assert [at[0][0] for at in top] == [student.tokenizer.decode([i]) for i in log.argmax(axis=-1)]
    assert "".join(found.tokens) == response
    assert (found.ids, found.prompt, found.kind, found.ended) == (ids, prompt, "reverse_kl", False)


@pytest.mark.parametrize("at_a_time", [1, 3, 7, 100])  # of 7 positions
def test_the_likeliest_ids_do_not_depend_on_how_many_positions_are_sought_together(at_a_time, monkeypatch):
  rows, vocab = 2, 11
  monkeypatch.setattr(scoring, "LOGITS", at_a_time * rows * vocab)
  hidden, head = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(rows, 7, 5), (vocab, 5)]))
  log, ids = scoring.likeliest(HiddenAndHead(hidden, head), vocab, 3)
  dense = np.asarray(jax.nn.log_softmax(hidden @ head.T))
  np.testing.assert_array_equal(ids, np.argsort(-dense, axis=-1)[..., :3])
  np.testing.assert_allclose(log, -np.sort(-dense, axis=-1)[..., :3], rtol=1e-5)


@pytest.mark.long
def test_a_response_has_the_same_numbers_whatever_stands_beside_it(student, teacher):
  many = score(student, teacher, [PROMPTS[1]] * (AT_A_TIME + 2), [*RESPONSES[1:] * (AT_A_TIME + 1), RESPONSES[0]])
  alone = score(student, teacher, PROMPTS[1:], RESPONSES[:1])[0]
  np.testing.assert_allclose(array(many[-1].divergence), array(alone.divergence), atol=1e-5)
  np.testing.assert_allclose(array(many[AT_A_TIME].divergence), array(many[0].divergence), atol=1e-5)


def test_a_second_response_compiles_nothing(student, monkeypatch):
  prompts = notebook.render_prompts(student, PROMPTS, None)
  first = respond(student, prompts, 7, 1.0)

  def refuse(*_):
    raise AssertionError("compiled again")

  monkeypatch.setattr("opd_jax.rollout.generate.GeneratorConfig.lower", refuse)
  assert respond(student, prompts, 7, 1.0) == first
  with pytest.raises(AssertionError, match="compiled again"):
    respond(student, prompts, 8, 1.0)


@pytest.mark.long
def test_a_sampled_response_keeps_its_stop_token(student, teacher):
  prompts = notebook.render_prompts(student, PROMPTS, None)
  ids = respond(student, prompts, 20, 1.0)
  assert ids == respond(student, prompts, 20, 1.0)
  texts = notebook.generate(student, PROMPTS, max_tokens=20).texts
  assert len(ids) == len(texts)
  ended = [row[-1] in student.spec.stop_ids for row in ids]
  assert all(done or len(row) == 20 for row, done in zip(ids, ended, strict=True))
  assert [r.ended for r in score_ids(student, teacher, prompts, ids, k=0)] == ended


@pytest.mark.parametrize(
  ("prompts", "responses", "options", "message"),
  [
    (PROMPTS, RESPONSES[:1], {}, "the same length"),
    ("3:", "3:", {}, "have to be lists"),
    (PROMPTS, ["3:", ""], {}, "empty"),
    (PROMPTS, RESPONSES, {"k": -1}, "k is -1"),
    (PROMPTS, RESPONSES, {"kind": "kl"}, "one of reverse_kl"),
  ],
)
def test_what_cannot_be_scored_is_refused(student, teacher, prompts, responses, options, message):
  with pytest.raises(InputError, match=message):
    score(student, teacher, prompts, responses, **options)

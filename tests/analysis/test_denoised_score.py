"""Numbers per token of denoised answers: against both models run on every canvas by itself, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.analysis import loaded, notebook, score
from opd_jax.analysis.denoised_score import denoise, denoiser_of, score_denoised
from opd_jax.data import pipeline
from opd_jax.errors import InputError
from opd_jax.models import decoder
from opd_jax.rollout.denoise import canvas_at
from opd_jax.trainer import train
from tests.helpers import masked_models
from tests.helpers.masked_models import CFG, MASK

pytestmark = [pytest.mark.usefixtures("shared_programs"), pytest.mark.long]
PROMPTS, LENGTH = ["58+-++x3=", "12++--x2="], 16


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> loaded.Model:
  """Of a run with two tokens a step."""
  path = tmp_path_factory.mktemp("masked")
  train(masked_models.small(masked_models.write(path / "model"), steps=1), path / "run")
  return loaded.load_model(path / "run")


def other(model: loaded.Model) -> loaded.Model:
  return dataclasses.replace(model, params=decoder.init(CFG, jax.random.key(9), scale=0.5))


def log_probabilities(model: loaded.Model, prompt: list[int], canvas: jax.Array) -> np.ndarray:
  """[H, V], of one row without padding."""
  batch = jax.tree.map(jnp.asarray, pipeline.pad([prompt], len(prompt), 0))
  hidden = decoder.canvas_hidden(model.params, model.spec.cfg, batch.prompt, batch.prompt_mask, canvas[None])
  return np.asarray(jax.nn.log_softmax(decoder.unembed(model.params, hidden)))[0]


@pytest.mark.parametrize("changes", [{}, {"schedule": "linear", "remasking": "origin", "block": 16, "steps": 6}])
def test_every_token_has_the_numbers_of_its_own_canvas(changes, student):
  """Also where a step commits several tokens or none."""
  teacher, denoiser = other(student), denoiser_of(student, LENGTH, 1.0)
  denoiser = dataclasses.replace(denoiser, denoising=dataclasses.replace(denoiser.denoising, **changes))
  prompts = notebook.render_prompts(student, PROMPTS, None)
  answers = denoise(student, denoiser, prompts, LENGTH)
  found = score_denoised(student, teacher, denoiser, prompts, answers, k=3, of="student")
  assert answers.committed_at is not None
  for row, record in enumerate(found):
    ids = np.asarray(answers.response)[row][np.asarray(answers.mask)[row]]
    assert record.ids == ids.tolist()
    assert record.ended == bool(answers.ended[row])
    assert len(record.divergence or ()) == len(ids)
    for j, x in enumerate(ids):
      t = int(answers.committed_at[row, j])
      canvas = canvas_at(jnp.asarray(answers.response[row]), jnp.asarray(answers.committed_at[row]), t, MASK)
      s, q = (log_probabilities(model, prompts[row], canvas)[j] for model in (student, teacher))
      numbers = [(record.divergence or ())[j], record.logprob[j], (record.teacher_logprob or ())[j]]
      np.testing.assert_allclose(
        np.array(numbers, float), [np.sum(np.exp(s) * (s - q)), s[x], q[x]], rtol=1e-3, atol=1e-5
      )
      for log, top in ((s, record.student_top or ()), (q, record.teacher_top or ())):
        np.testing.assert_allclose([p for _, p in top[j]], np.sort(np.exp(log))[::-1][:3], rtol=1e-3, atol=1e-5)


def test_two_models_answer_by_the_denoiser_of_one_and_a_model_has_nothing_to_learn_from_itself(student):
  prompts, denoiser = notebook.render_prompts(student, PROMPTS, None), denoiser_of(student, LENGTH, 0.0)
  own, others = (denoise(model, denoiser, prompts, LENGTH) for model in (student, other(student)))
  assert (np.asarray(own.response) != np.asarray(others.response)).any()
  for record in score_denoised(student, student, denoiser, prompts, own, k=0):
    np.testing.assert_allclose(np.array(record.divergence, float), 0.0, atol=1e-6)


def test_texts_are_not_scored_from_left_to_right_nor_two_kinds_of_models_compared(student, tiny):
  with pytest.raises(InputError, match="is a masked diffusion model, which gives a text no probabilities"):
    score.score(student, student, PROMPTS, ["1", "2"])
  with pytest.raises(InputError, match="is a masked diffusion model, which gives a text no probabilities"):
    score.token_divergence(student, student, PROMPTS[0], "1")
  causal, denoiser = loaded.load_model(tiny["teacher"], mesh=student.mesh), denoiser_of(student, LENGTH, 1.0)
  prompts = notebook.render_prompts(student, PROMPTS, None)
  with pytest.raises(InputError, match="writes from left to right, and is compared with a masked diffusion model"):
    score_denoised(student, causal, denoiser, prompts, denoise(student, denoiser, prompts, LENGTH))
  with pytest.raises(InputError, match="comes from no run, and how it denoises is for a run's config to say"):
    denoiser_of(dataclasses.replace(student, origin=None), LENGTH, 1.0)

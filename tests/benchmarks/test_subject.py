"""What is measured where prompts have images: an image at the beginning of each, of features or of patches."""

import jax
import numpy as np
import pytest

from opd_jax.benchmarks import rollout
from opd_jax.benchmarks.subject import Case, Subject
from tests.helpers import seeing_models, seeing_runs

CASE = Case(batch=2, prompt=40, horizon=6)
ROOM = 36  # features of 48 x 48 pixels, the largest image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return seeing_models.write_small(tmp_path_factory.mktemp("seeing") / "model")


def subject_of(model, *, tower: bool, **changes) -> Subject:
  """Vision-OPD, whose teacher reads a prompt of its own with another image."""
  return Subject.load(seeing_runs.crop_config(model, "none.jsonl", **{"vision.train": tower} | changes))


@pytest.mark.parametrize("tower", [False, True])
def test_prompts_with_images_are_what_the_programs_take(tower, model):
  subject = subject_of(model, tower=tower)
  prompts = subject.prompts(CASE)
  wanted = subject.recipe(CASE).abstract_prompts(subject.shape(CASE))
  assert jax.tree.map(lambda a: (a.shape, a.dtype), prompts) == jax.tree.map(lambda a: (a.shape, a.dtype), wanted)
  assert subject.most_features == ROOM
  assert prompts.teacher_images is not None
  for images in (prompts.images, *prompts.teacher_images):
    places = np.concatenate([np.arange(ROOM), np.full(images.index.shape[1] - ROOM, -1)])
    np.testing.assert_array_equal(images.index, np.broadcast_to(places, images.index.shape))
    assert (images.features is None, images.patches is None) == (tower, not tower)
    random = [images.patches.pixels] if tower else [images.features, images.taps]
    assert all(np.asarray(a).std() == pytest.approx(1, abs=0.1) for a in random)
    if tower:
      assert images.patches.image.shape == (2, 4 * ROOM)
      assert (np.asarray(images.patches.image) == 0).all(), "all of one image"
      assert len(set(np.asarray(images.patches.column)[0].tolist())) == 4 * ROOM


@pytest.mark.long
@pytest.mark.parametrize("tower", [False, True])
def test_what_is_measured_runs_on_them(tower, model):
  subject = subject_of(model, tower=tower)
  recipe, prompts, responses = subject.recipe(CASE), subject.prompts(CASE), subject.responses(CASE)
  state, frozen = recipe.init(), recipe.frozen()
  compiled, record = rollout.program(subject, CASE, state.params)
  assert record["bytes"] > 0
  sampled = compiled(state.params, prompts, jax.random.key(0), np.int32(CASE.horizon))
  assert np.asarray(sampled.mask).all()
  assert np.isfinite(sampled.behavior_logprob).all()
  update = dict(recipe.lower(subject.shape(CASE)))["update"].compile()
  _, metrics = update(state, frozen, prompts, responses, subject.credit(CASE), None)
  assert np.isfinite(metrics["loss"])

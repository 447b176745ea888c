"""The frozen tower at work: which programs it has, and that its features are those of the tower."""

import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import hf_vision, image_encoder, image_rows, vision
from opd_jax.models.image_encoder import ImageEncoder
from opd_jax.models.image_rows import Picture
from tests.helpers import seeing_models


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return seeing_models.write_small(tmp_path_factory.mktemp("seeing") / "model")


def encoder_of(model, widths) -> ImageEncoder:
  seeing = hf_vision.read(model)
  assert seeing is not None
  return ImageEncoder(model, seeing.tower, widths, 1e9, jnp.float32)


def widths_of(encoder: ImageEncoder) -> list[int]:
  return [program["width"] for program in encoder.compiled]


def pictures(encoder: ImageEncoder, sizes) -> list[Picture]:
  made = zip(seeing_models.patches_of(encoder.cfg, sizes), sizes, strict=True)
  return [Picture(pixels, *size) for pixels, size in made]


def test_each_width_that_expected_images_take_has_a_program(model):
  encoder = encoder_of(model, (8, 16, 32))
  encoder.expect([4, 8, 24])
  assert encoder.widths == (8, 32)
  encoder.expect([12, 40])
  assert encoder.widths == (8, 16, 32, 40)
  encoder.expect([])
  assert encoder.widths == (8, 16, 32, 40)


def test_programs_are_compiled_ahead_and_shared(model, monkeypatch):
  cache, encoder, other = {}, encoder_of(model, (8, 16)), encoder_of(model, (16,))
  encoder.expect([8, 16])
  other.expect([16])
  encoder.prepare(cache)
  monkeypatch.setattr(image_encoder, "lower", None)
  other.prepare(cache)
  encoder.prepare(cache)
  assert (widths_of(encoder), widths_of(other)) == ([8, 16], [16])
  (picture,) = pictures(encoder, [(2, 4)])
  encoder([("a", lambda: picture)])
  assert encoder.encoded == 1


def test_features_are_those_of_the_tower_whatever_was_expected(model):
  encoder = encoder_of(model, (8, 24))
  encoder.expect([8])
  encoder.prepare()
  made = pictures(encoder, [(2, 4), (4, 6)])
  found = encoder([(i, lambda picture=picture: picture) for i, picture in enumerate(made)])
  assert widths_of(encoder) == [8, 24]
  params = hf_vision.load(model, encoder.cfg)
  for picture, own in zip(made, found, strict=True):
    S = len(picture.pixels)
    features, taps = vision.encode(params, encoder.cfg, image_rows.patches([[picture]], S, encoder.cfg))
    # Features are as large as 20 here, and another CPU rounds otherwise.
    np.testing.assert_allclose(own.features, features[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(own.taps, taps[0], rtol=1e-5, atol=1e-4)

"""The vision towers and the decoders behind them, held to PyTorch's on random weights."""

import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.data import pipeline
from opd_jax.models import decoder, hf, hf_config, hf_vision, image_rows, vision
from opd_jax.models.image_rows import Encoding, Picture
from opd_jax.objectives.forward import Forward
from opd_jax.rollout import sample
from opd_jax.rollout.sample import Sampling
from opd_jax.runtime import mesh as meshes
from opd_jax.types import Rollout
from tests.helpers import seeing_models
from tests.helpers.seeing_models import IMAGE, SIZES, VOCAB, as_frames, patches_of, prompt_of

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, pt, tmp_path_factory):
  directory = tmp_path_factory.mktemp(request.param)
  theirs = seeing_models.make(pt, request.param, directory)
  seeing = hf_vision.read(directory)
  assert seeing is not None
  tower = seeing.tower
  cfg = hf_config.read(directory)
  return types.SimpleNamespace(
    family=request.param,
    directory=directory,
    theirs=theirs,
    seeing=seeing,
    tower=tower,
    cfg=cfg,
    params=hf.load(directory, cfg),
    sees=hf_vision.load(directory, tower),
    encode=jax.jit(lambda params, patches: vision.encode(params, tower, patches, block=16)),
  )


def pictures(model, sizes, seed=0):
  return [Picture(p, h, w) for p, (h, w) in zip(patches_of(model.tower, sizes, seed), sizes, strict=True)]


def encoded(model, images) -> list[Encoding]:
  """Each image alone."""
  if not images:
    return []
  out = model.encode(model.sees, image_rows.patches([[image] for image in images], 64, model.tower))
  found = []
  for i, image in enumerate(images):
    size = image.features(model.tower.merge)
    M = size[0] * size[1]
    found.append(Encoding(np.asarray(out.features[i, :M]), np.asarray(out.taps[i, :, :M]), size))
  return found


def batch_of(model, rows, width, room=48, ids=None):
  """A batch of prompts, each with images of these sizes; the ids and the pictures besides."""
  images = [pictures(model, sizes, seed) for seed, sizes in enumerate(rows)]
  ids = ids or [prompt_of(sizes, seed=seed) for seed, sizes in enumerate(rows)]
  encodings = [encoded(model, row) for row in images]
  placed = image_rows.placed(
    ids,
    encodings,
    width=width,
    room=room,
    image_id=IMAGE,
    taps=len(model.tower.taps),
    d_model=model.cfg.d_model,
  )
  batch = dataclasses.replace(pipeline.pad(ids, width, 0), images=placed)
  return jax.tree.map(jnp.asarray, batch), ids, images


def pytorch_inputs(pt, model, ids, images, width):
  """What transformers' model is given: left-padded prompts and all of their images."""
  torch, _ = pt
  batch = pipeline.pad(ids, width, 0)
  given = {
    "input_ids": torch.tensor(np.asarray(batch.prompt), dtype=torch.long),
    "attention_mask": torch.tensor(np.asarray(batch.prompt_mask)).long(),
    "mm_token_type_ids": torch.tensor(np.asarray(batch.prompt) == IMAGE).long(),
  }
  flat = [image for row in images for image in row]
  if flat:
    pixels = np.concatenate([as_frames(image.pixels, model.tower) for image in flat])
    given["pixel_values"] = torch.tensor(pixels)
    given["image_grid_thw"] = torch.tensor([[1, image.rows, image.columns] for image in flat])
  return given


def test_features_and_taps_are_those_of_pytorch(model, pt, record_property):
  torch, _ = pt
  images = pictures(model, SIZES)
  with torch.no_grad():
    given = torch.tensor(np.concatenate([as_frames(image.pixels, model.tower) for image in images]))
    out = model.theirs.model.visual(given, torch.tensor([[1, h, w] for h, w in SIZES]))
  expected = out.pooler_output.numpy()
  found = encoded(model, images)
  features = np.concatenate([image.features for image in found])
  record_property("features", float(np.abs(features - expected).max()))
  np.testing.assert_allclose(features, expected, atol=1e-5 * max(1, np.abs(expected).max()))
  assert expected.std() > 0.3
  taps = getattr(out, "deepstack_features", None) or []
  assert len(taps) == len(model.tower.taps)
  for k, tap in enumerate(taps):
    ours = np.concatenate([image.taps[k] for image in found])
    np.testing.assert_allclose(ours, tap.numpy(), atol=1e-5 * max(1, np.abs(tap.numpy()).max()))


def test_images_of_a_row_do_not_see_each_other(model):
  """Several images behind each other in a row have the features that each has alone, and padding changes nothing."""
  images = pictures(model, SIZES[:3])
  together = model.encode(model.sees, image_rows.patches([images], 96, model.tower))
  alone = np.concatenate([image.features for image in encoded(model, images)])
  np.testing.assert_allclose(together.features[0, : len(alone)], alone, atol=2e-5)


ROWS = [SIZES[:1], (), (SIZES[1], SIZES[2]), (SIZES[3],)]  # one image, none, two, one of another size


def test_logits_of_prompts_with_images_are_those_of_pytorch(model, pt, record_property):
  torch, _ = pt
  width = 44
  batch, ids, images = batch_of(model, ROWS, width)
  with torch.no_grad():
    expected = model.theirs(**pytorch_inputs(pt, model, ids, images, width)).logits.numpy()
  hidden = decoder.hidden(model.params, model.cfg, batch.prompt, batch.prompt_mask, images=batch.images)
  logits = np.asarray(decoder.unembed(model.params, hidden))
  mask = np.asarray(batch.prompt_mask)
  record_property("logits", float(np.abs(logits - expected)[mask].max()))
  np.testing.assert_allclose(logits[mask], expected[mask], atol=1e-4)
  assert expected[mask].std() > 0.3


@pytest.mark.long
def test_greedy_tokens_are_those_of_pytorch(model, pt):
  torch, _ = pt
  width = 44
  batch, ids, images = batch_of(model, ROWS, width)
  with torch.no_grad():
    given = pytorch_inputs(pt, model, ids, images, width)
    theirs = model.theirs.generate(**given, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
  ours = rollout(model, batch, Sampling((), 0, VOCAB, temperature=0.0), 8)
  np.testing.assert_array_equal(ours.response, theirs[:, width:].numpy())


def rollout(model, batch, sampling, tokens, n=1) -> Rollout:
  return sample.rollout(
    model.params,
    batch,
    jax.random.key(3),
    jnp.int32(tokens),
    cfg=model.cfg,
    sampling=sampling,
    response_len=tokens,
    n=n,
  )


@pytest.mark.parametrize("n", [1, 2])
def test_a_rollout_has_the_log_probabilities_of_whole_sequences(model, n):
  batch, _, _ = batch_of(model, ROWS, 44)
  drawn = rollout(model, batch, Sampling((), 0, VOCAB), 7, n)
  forward = Forward(meshes.make())
  hidden, head = forward(model.params, model.cfg, batch, drawn)
  logprob = jax.nn.log_softmax(jnp.einsum("bhd,vd->bhv", hidden, head))
  found = jnp.take_along_axis(logprob, drawn.response[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(found, drawn.behavior_logprob, atol=1e-5)


def test_what_is_seen_matters(model):
  """Another image, or the same two in the other order, gives another answer."""
  batch, _, _ = batch_of(model, [(SIZES[0], SIZES[0])], 44)
  images = batch.images
  assert images is not None
  half = SIZES[0][0] * SIZES[0][1] // 4

  def last(given):
    return np.asarray(decoder.hidden(model.params, model.cfg, batch.prompt, batch.prompt_mask, images=given)[:, -1])

  def swap(a):
    return jnp.concatenate([a[..., half : 2 * half, :], a[..., :half, :], a[..., 2 * half :, :]], axis=-2)

  swapped = dataclasses.replace(images, features=swap(images.features), taps=swap(images.taps))
  assert np.abs(last(images) - last(swapped)).max() > 1e-3


def test_the_tower_is_written_back_bit_for_bit(model, tmp_path):
  hf.write(tmp_path / "out", model.cfg, model.params, like=model.directory, dtype="float32")
  again = hf_vision.load(tmp_path / "out", model.tower)
  for before, after in zip(jax.tree.leaves(model.sees), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(before, after)


def as_released(directory):
  """Write a Qwen2.5-VL's config as the released ones have it: the decoder's keys at the top, and rotary sections as a scaling."""
  raw = json.loads((directory / "config.json").read_text())
  text = raw.pop("text_config")
  rope = text.pop("rope_parameters")
  raw |= {key: value for key, value in text.items() if key not in ("model_type", "dtype", "layer_types")}
  raw["rope_theta"] = rope["rope_theta"]
  raw["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
  (directory / "config.json").write_text(json.dumps(raw))


def test_a_model_whose_tower_was_trained_is_written_and_read_again(model, tmp_path):
  """A tower and a decoder that are no more those of the directory they come from."""
  written_and_read(model, model.directory, tmp_path / "out")
  if model.family == "qwen2_5_vl":
    like = tmp_path / "released"
    shutil.copytree(model.directory, like)
    as_released(like)
    assert hf_config.read(like) == model.cfg
    assert hf_vision.read(like) == model.seeing
    written_and_read(model, like, tmp_path / "like released")


def written_and_read(model, like, directory):
  cfg = dataclasses.replace(hf_config.read(like), tower=model.tower)
  before = hf.load(like, cfg)
  trained = jax.tree.map(lambda a: a + np.cos(np.arange(a.size, dtype=np.float32)).reshape(a.shape) / 4, before)
  hf.write(directory, cfg, trained, like=like, dtype="float32")
  assert dataclasses.replace(hf_config.read(directory), tower=model.tower) == cfg
  assert hf_vision.read(directory) == model.seeing
  again = hf.load(directory, cfg)
  assert jax.tree.structure(again) == jax.tree.structure(trained)
  read = jax.tree_util.tree_leaves_with_path(again)
  for (path, a), b, c in zip(read, jax.tree.leaves(trained), jax.tree.leaves(before), strict=True):
    np.testing.assert_array_equal(a, b, err_msg=str(path))
    assert np.any(a != c), path
  tower = hf_vision.load(directory, model.tower)
  for a, b in zip(jax.tree.leaves(tower), jax.tree.leaves(trained["vision"]), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_a_text_alone_needs_no_images(model, pt):
  torch, _ = pt
  batch, ids, _ = batch_of(model, [()], 16)
  with torch.no_grad():
    expected = model.theirs(**pytorch_inputs(pt, model, ids, [], 16)).logits.numpy()
  mask = np.asarray(batch.prompt_mask)
  hidden = decoder.hidden(model.params, model.cfg, batch.prompt, batch.prompt_mask)
  np.testing.assert_allclose(decoder.unembed(model.params, hidden)[mask], expected[mask], atol=1e-4)


@pytest.mark.long
def test_every_parameter_of_the_tower_has_a_gradient(model):
  rows = image_rows.patches([pictures(model, SIZES[2:3])], 64, model.tower)

  def loss(params, remat):
    out = vision.encode(params, model.tower, rows, remat=remat)
    real = slice(0, 15)
    return jnp.sum(jnp.sin(out.features[:, real])) + jnp.sum(jnp.sin(out.taps[:, :, real]))

  plain, again = (jax.grad(lambda p, r=remat: loss(p, r))(model.sees) for remat in (False, True))
  for path, leaf in jax.tree_util.tree_leaves_with_path(plain):
    assert np.abs(leaf).max() > 0, path
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1, float(jnp.abs(a).max())))

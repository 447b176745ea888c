"""Methods on prompts with images: Vision-OPD's crop, OPD with another teacher's eyes, a verifier's reward; encoded once, resumed, on a mesh."""

import base64
import dataclasses
import io
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from opd_jax import config as configs
from opd_jax import view as viewer
from opd_jax.context import crop
from opd_jax.data import scored
from opd_jax.data.image_refs import ImageRef
from opd_jax.errors import InputError
from opd_jax.models import hf, hf_config, hf_vision, image_encoder
from opd_jax.recipes import base as recipes
from opd_jax.runtime import cli
from opd_jax.trainer import open_run, train, train_run
from opd_jax.training import specs
from opd_jax.training.rows import Rows
from tests.helpers import seeing_models
from tests.helpers.eight_devices import json_from_eight_devices
from tests.helpers.runs import leaves, read, without_time
from tests.helpers.seeing_runs import crop_config, opd_config

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return seeing_models.write_small(tmp_path_factory.mktemp("student") / "model")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
  return seeing_models.write_scenes(tmp_path_factory.mktemp("scenes"), number=12)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
  """Questions about all of a picture, so that a crop that is not enlarged shows what the picture does."""
  return seeing_models.write_scenes(tmp_path_factory.mktemp("everything"), number=12, box=(0, 0, 40, 24))


UNCHANGED = {"context.zoom": 1.0, "data.draw_boxes": "none"}


def first_batch(run):
  """The prompts of the first step, with their images, on the host."""
  batch, index = run.next_prompts(0)
  return run.inputs.prompt_images.attach(batch, index, run.inputs.train), index


def rollout_on(run, host):
  """These prompts on the devices, with a rollout on them."""
  batch = jax.tree.map(jnp.asarray, host)
  return batch, run.recipe.step.rollout(run.state.params, batch, jax.random.key(0), jnp.int32(6), response_len=6)


def loss_on(run, rollout):
  """The loss of a rollout as a function of the train state, the frozen models and the prompts."""
  step = run.recipe.step
  weights = step.loss.token_weights(rollout.mask, jax.random.key(0), rollout.behavior_logprob)

  @jax.jit
  def loss(state, frozen, batch):
    moving = step.with_moving_teacher(state, frozen)
    return step.loss_of(state.params, moving, Rows(batch, rollout, weights, None))[1][0]

  return loss


def test_the_teacher_sees_the_crop_and_the_student_the_whole(model, scenes, tmp_path):
  run = open_run(crop_config(model, scenes), tmp_path / "w")
  batch, index = first_batch(run)
  (teacher,) = batch.teacher_images
  assert [(row >= 0).sum() for row in batch.images.index] == [15] * 8  # 40 x 24 pixels
  assert [(row >= 0).sum() for row in teacher.index] == [16] * 8  # 16 x 16, doubled
  views = {ref.view for (ref,) in run.inputs.train.images}, {ref.view for (ref,) in run.inputs.train.teacher_images}
  assert views == ({"marked"}, {"crop"})
  words = run.inputs.tokenizer.decode

  def text(ids, mask):
    return words(ids[mask]).replace(" ", "").replace("<|image_pad|>", "")

  for i in range(len(index)):
    assert text(batch.prompt[i], batch.prompt_mask[i]) == text(batch.teacher_prompt[i], batch.teacher_prompt_mask[i])


@pytest.mark.parametrize("tower", [False, True])
def test_an_image_that_is_deleted_during_a_run_ends_it_in_a_sentence(tower, model, tmp_path):
  path = seeing_models.write_scenes(tmp_path / "scenes", number=8)
  run = open_run(crop_config(model, path, **{"vision.train": tower}), tmp_path / "w")
  (path.parent / "scene3.png").unlink()
  with pytest.raises(InputError, match=r"An image cannot be read: there is no image .*scene3.png; paths are read from"):
    first_batch(run)


def test_boxes_are_drawn_where_the_config_says_so():
  ref = (ImageRef("a.png", ((1, 2, 3, 4),)), ImageRef("b.png"))
  assert [r.view for r in crop.whole(ref, drawn=True)] == ["marked", "whole"]
  assert [r.view for r in crop.whole(ref, drawn=False)] == ["whole", "whole"]
  assert [(r.view, r.zoom) for r in crop.crops(ref, 2.0)] == [("crop", 2.0), ("whole", 1.0)]


def test_a_run_learns_encodes_each_image_once_and_resumes(model, scenes, tmp_path):
  whole = train(crop_config(model, scenes), tmp_path / "whole")
  records = [without_time(r) for r in read(tmp_path / "whole", "train")]
  assert all(r["loss"] > 0 for r in records)
  images = whole.inputs.prompt_images
  assert images.student.encoder is images.teachers[0].encoder
  assert images.student.encoder.encoded <= 24  # twelve images, whole and cut
  train(crop_config(model, scenes, steps=2), tmp_path / "parts")
  again = open_run(crop_config(model, scenes), tmp_path / "parts")
  assert again.resumed_from == 2
  train_run(again)
  assert [without_time(r) for r in read(tmp_path / "parts", "train")] == records
  for a, b in zip(leaves(whole.state), leaves(again.state), strict=True):
    np.testing.assert_array_equal(a, b)


def test_what_encodes_is_compiled_before_the_first_step(model, scenes, tmp_path, monkeypatch, capsys):
  """Whole images have 60 patches and crops 64; those of the evaluation are as large as the whole ones."""
  lowered, before, lower = [], [], image_encoder.lower

  def counted(cfg, mesh, width, dtype):
    lowered.append(width)
    return lower(cfg, mesh, width, dtype)

  monkeypatch.setattr(image_encoder, "lower", counted)
  changes = {"eval.every": 3, "eval.path": str(scenes), "eval.prompts": 5, "eval.batch": 4, "eval.max_tokens": 4}
  run = open_run(crop_config(model, scenes, **changes), tmp_path / "w", {})
  evaluate = run.evaluate

  def evaluated():
    before.append((list(lowered), run.clock.totals["compile"]))
    evaluate()

  monkeypatch.setattr(run, "evaluate", evaluated)
  assert run.inputs.encode_programs == 2
  train_run(run)
  assert [sizes for sizes, _ in before] == [[60, 64]] * 2, "before the first step, and after the last"
  assert before[0][1] > 0, "the clock knows it as compiling"
  programs = json.loads((tmp_path / "w" / "run.json").read_text())["programs"]
  assert [p["width"] for p in programs if p["name"] == "encode"] == [60, 64, 60]
  assert " and 1 for evaluation and 2 to encode images; " in capsys.readouterr().err
  tower = open_run(crop_config(model, scenes, **{"vision.train": True}), tmp_path / "tower")
  assert tower.inputs.encoders == (), "which is a part of the student"


@pytest.mark.long
def test_encoded_once_is_encoded_every_time(model, scenes, tmp_path):
  twice = {"rollouts_per_prompt": 2}
  train(crop_config(model, scenes, **twice), tmp_path / "kept")
  forgetful = train(crop_config(model, scenes, **{"data.image_cache": 0.0} | twice), tmp_path / "not")
  assert forgetful.inputs.prompt_images.student.encoder.encoded > 24
  kept, not_kept = ([without_time(r) for r in read(tmp_path / name, "train")] for name in ("kept", "not"))
  assert kept == not_kept


def test_the_same_image_on_both_sides_and_a_current_teacher_is_exactly_zero(model, scenes, tmp_path):
  """Of a model that is its own teacher, now, and sees what it sees."""
  run = open_run(opd_config(model, scenes), tmp_path / "w")
  assert run.inputs.prompt_images.teachers == ()
  train_run(run)
  records = read(tmp_path / "w", "train")
  assert records[0]["loss"] == 0
  assert records[-1]["empty"] == 3, "updates without a gradient are left out"


@pytest.mark.long
def test_a_current_teacher_of_the_whole_image_is_exactly_zero(model, everything, tmp_path):
  """Of a student that is no more what it was, whose crops show all of the image."""
  changes = UNCHANGED | {"teacher_update.kind": "current"}
  run = open_run(crop_config(model, everything, **changes), tmp_path / "w")
  run.state = dataclasses.replace(run.state, params=jax.tree.map(lambda a: a * 1.3, run.state.params))
  train_run(run)
  records = read(tmp_path / "w", "train")
  assert [r["loss"] for r in records] == [0, 0, 0]
  assert records[-1]["empty"] == 3


@pytest.mark.long
def test_other_images_have_another_loss_and_padding_has_not(model, scenes, tmp_path):
  run = open_run(crop_config(model, scenes), tmp_path / "w")
  host, index = first_batch(run)
  batch, rollout = rollout_on(run, host)
  of_batch = loss_on(run, rollout)

  def loss_of(batch, **changes):
    return of_batch(run.state, run.frozen, dataclasses.replace(batch, **changes))

  loss = loss_of(batch)
  (teacher,) = batch.teacher_images

  def rolled(images):
    return dataclasses.replace(
      images, features=jnp.roll(images.features, 1, axis=0), taps=jnp.roll(images.taps, 1, axis=0)
    )

  def more(a):
    return jnp.pad(a, ((0, 0), (0, 8), (0, 0)), constant_values=3.0)

  assert abs(loss_of(batch, teacher_images=(rolled(teacher),)) - loss) > 1e-4
  assert abs(loss_of(batch, images=rolled(batch.images)) - loss) > 1e-4
  padded = dataclasses.replace(teacher, features=more(teacher.features), taps=jax.vmap(more, 1, 1)(teacher.taps))
  np.testing.assert_allclose(loss_of(batch, teacher_images=(padded,)), loss, rtol=1e-6)
  wide = {
    name: np.pad(getattr(host, name), ((0, 0), (5, 0)))
    for name in ("prompt", "prompt_mask", "teacher_prompt", "teacher_prompt_mask")
  }
  wide = run.inputs.prompt_images.attach(dataclasses.replace(host, **wide), index, run.inputs.train)
  assert wide.images.index.shape[1] == batch.images.index.shape[1] + 5
  np.testing.assert_allclose(loss_of(wide), loss, rtol=1e-5)


@pytest.mark.long
def test_prompts_of_several_widths_have_the_losses_of_one(model, tmp_path):
  """Of pictures of several sizes: two of ten prompts are long, and so one or two of an epoch's five batches."""
  sizes = ((24, 24), (24, 24), (24, 24), (24, 24), (48, 40))
  path = seeing_models.write_scenes(tmp_path / "scenes", number=10, sizes=sizes)
  losses = {}
  for widths in (0.0, 1.2):
    changes = {"data.widths": widths, "batch": 2, "steps": 5}
    run = train(crop_config(model, path, **changes), tmp_path / f"w{widths}")
    losses[widths] = [r["loss"] for r in read(tmp_path / f"w{widths}", "train")]
    assert (len(run.inputs.prompt_widths) > 1) == (widths > 0)
  np.testing.assert_allclose(losses[1.2], losses[0.0], rtol=1e-4)


@pytest.mark.long
def test_a_larger_teacher_sees_with_its_own_eyes(model, scenes, tmp_path):
  large = seeing_models.write_small(tmp_path / "large", seed=5, hidden_size=32, intermediate_size=40)
  run = train(opd_config(model, scenes, large), tmp_path / "w")
  (teacher,) = run.inputs.prompt_images.teachers
  assert (run.inputs.prompt_images.student.sizes.d_model, teacher.sizes.d_model) == (16, 32)
  assert all(r["loss"] > 0 for r in read(tmp_path / "w", "train"))


@pytest.mark.long
def test_a_verifiers_reward_needs_no_teacher(model, scenes, tmp_path):
  config = configs.load("drpo")
  keys = {name: opd_config(model, scenes)[name] for name in ("student", "steps", "batch", "compile_cache")}
  wanted = opd_config(model, scenes)
  keys |= {
    key: configs.get(wanted, key) for key in ("data.path", "data.image_field", "data.box_field", "data.verifier")
  }
  keys |= {"horizon.max": 6, "eval.every": 0, "rollouts_per_prompt": 2, "log.tensorboard": False, "batch": 4}
  train(configs.override(config, keys), tmp_path / "w")
  assert len(read(tmp_path / "w", "train")) == 3


def zone_config(model, teacher, scenes, folder, **changes):
  """ZPPO of a small model, by a verifier that both models please half of the time."""
  (folder / "even.py").write_text("def verify(response, answer):\n  return len(response) % 2 == 0\n")
  config = configs.override(
    configs.load("zppo"), {"student": str(model), "data.path": str(scenes), "teacher": str(teacher)}
  )
  wanted = {"data.image_field": "image", "data.box_field": "box", "data.verifier": f"{folder}/even.py:verify"}
  wanted |= {"zone.teacher_function": "", "zone.tau": 1.0, "zone.augment": 1.0, "zone.replay": 0.5}
  wanted |= {"candidates.compressor": "truncate", "candidates.max_prompt": 192, "candidates.max_tokens": 40}
  wanted |= {
    "candidates.bcq": "{prompt}:{candidates}",
    "candidates.ncq": "{prompt}#{candidates}",
    "candidates.block": ":{text}",
  }
  wanted |= {"batch": 4, "rollouts_per_prompt": 4, "mini_batches": 1, "steps": 2, "horizon.max": 40, "eval.every": 0}
  return configs.override(
    config, wanted | {"checkpoint.every": 1, "compile_cache": "off", "log.tensorboard": False} | changes
  )


@pytest.mark.long
@pytest.mark.parametrize("tower", [False, True])
def test_questions_asked_anew_keep_their_images(tower, model, scenes, tmp_path):
  """ZPPO: what was sampled with an image is scored with it, plain and with candidates, whoever holds the tower."""
  teacher = seeing_models.write_small(tmp_path / "teacher", seed=5)
  config = zone_config(model, teacher, scenes, tmp_path, **{"vision.train": tower, "log.rollouts": 2})
  run = train(config, tmp_path / "w")
  records = read(tmp_path / "w", "train")
  for record in records:
    assert record["reformulated_tokens"] > 0
    assert record["teacher_tokens"] > 0
    assert record["ratio_max"] == pytest.approx(1, abs=1e-4)
  assert run.recipe.teacher.sampler.tokens > 0
  first = scored.read(tmp_path / "w" / scored.ROLLOUTS)[0]
  assert shape_of(first.images[0]) == (40, 24)
  parts = tmp_path / "parts"
  train(configs.override(config, {"steps": 1}), parts)
  train(config, parts)
  assert [without_time(r) for r in read(parts, "train")] == [without_time(r) for r in records]


def test_a_teacher_elsewhere_is_asked_in_words_alone(model, scenes, tmp_path):
  config = zone_config(
    model, "", scenes, tmp_path, **{"zone.teacher_url": "http://127.0.0.1:1/v1", "zone.teacher_model": "x"}
  )
  with pytest.raises(InputError, match="in words alone"):
    open_run(config, tmp_path / "w")


def test_held_out_problems_are_answered_with_their_images(model, scenes, tmp_path):
  changes = {"eval.every": 3, "eval.path": str(scenes), "eval.prompts": 5, "eval.batch": 4, "eval.max_tokens": 4}
  run = train(crop_config(model, scenes, **changes), tmp_path / "w")
  first, last = read(tmp_path / "w", "eval")
  assert (first["prompts"], last["step"]) == (5, 3)
  views = {ref.view for (ref,) in run.inputs.evaluation.problems.images}
  assert views == {"whole"}, "boxes are drawn in training alone"
  (evaluator,) = run.evaluators.values()
  seen = run.inputs.evaluation.images
  assert seen.encoder.encoded == 5
  params = run.models()["student"]
  ids, images = run.inputs.evaluation.problems.ids, run.inputs.evaluation.problems.images
  generate = evaluator._generate
  answers = generate(params, ids, jax.random.key(0), images=images).texts
  others = generate(params, ids, jax.random.key(0), images=images[::-1]).texts
  assert answers != others


@pytest.mark.long
def test_text_alone_trains_such_a_model_and_leaves_its_tower(model, tmp_path):
  path = tmp_path / "words.jsonl"
  path.write_text('{"prompt": "what is 1?", "answer": "1"}\n' * 8)
  changes = {"data.image_field": "", "data.box_field": "", "data.path": str(path)}
  large = seeing_models.write_small(tmp_path / "large", seed=5, hidden_size=32, intermediate_size=40)
  run = train(opd_config(model, path, large, **changes), tmp_path / "w")
  cfg = hf_config.read(model)
  hf.write(tmp_path / "out", cfg, run.models()["student"], like=model, dtype="float32")
  before = safetensors.numpy.load_file(model / "model.safetensors")
  after = {}
  for file in (tmp_path / "out").glob("*.safetensors"):
    after |= safetensors.numpy.load_file(file)
  assert after.keys() == before.keys()
  for name, tensor in before.items():
    same = np.array_equal(tensor, after[name])
    assert same == name.startswith("model.visual."), name


@pytest.mark.long
def test_eight_devices_are_one(model, scenes, tmp_path):
  train(crop_config(model, scenes), tmp_path / "one")
  one = [r["loss"] for r in read(tmp_path / "one", "train")]
  many = json_from_eight_devices("tests.helpers.seeing_runs", model, scenes, tmp_path / "many")
  losses, shares = many["losses"], many["tower"]
  train(crop_config(model, scenes, **{"vision.train": True}), tmp_path / "tower")
  tower = [r["loss"] for r in read(tmp_path / "tower", "train")]
  for name, found in losses.items():
    np.testing.assert_allclose(found, tower if name == "tower" else one, rtol=1e-5)
  matrices = {name: share for name, share in shares.items() if "_norm" not in name and "bias" not in name}
  split = {name: share for name, share in matrices.items() if "'patch'" not in name and "'position'" not in name}
  assert len(split) == 3 * 8, "the parameters and both moments of four matrices of layers, and two of each merger"
  assert set(split.values()) == {1 / 4}, "over fsdp and tensor"


def test_a_plan_has_room_for_the_largest_image(model, scenes):
  planned = specs.from_architectures(crop_config(model, scenes, **{"data.max_prompt": 64}))
  assert [sizes.room for sizes in planned.images] == [36, 36]  # 48 x 48 pixels
  recipe = recipes.make(planned)
  batch = recipe.abstract_prompts(recipe.planned_shape(64, 6))
  assert batch.images is not None
  assert batch.teacher_images is not None
  assert batch.images.features.shape == (8, 36, 16)
  assert batch.teacher_images[0].index.shape[1] == recipe.config.context.max_tokens
  names = [name for name, _ in recipe.lower(recipe.planned_shape(64, 6)._replace(teacher_prompt=64))]
  assert names == ["update", "rollout"]


@pytest.mark.parametrize(
  ("changes", "why"),
  [
    ({"context.kind": "privileged"}, "shows text alone"),
    ({"data.box_field": ""}, "no images or no boxes"),
    ({"data.image_field": ""}, "no field has images"),
    ({"context.max_tokens": 20}, "more than context.max_tokens=20"),
    ({"data.max_prompt": 20}, "more than data.max_prompt=20"),
  ],
)
def test_what_does_not_go_together_is_refused(changes, why, model, scenes, tmp_path):
  with pytest.raises(InputError, match=why):
    open_run(crop_config(model, scenes, **changes), tmp_path / "w")


@pytest.mark.parametrize(
  ("method", "why"),
  [
    ("graphpo", "the recipe 'graph' reads text alone"),
    ("ccopd", "context.kind is 'canonical', which shows text alone"),
    ("d_opsd", "context.kind is 'self_future', which shows text alone"),
    ("opcod", "context.kind is 'feedback', which shows text alone"),
  ],
)
def test_methods_that_read_text_alone_say_so(method, why, model, scenes, tmp_path):
  wanted = {"student": str(model), "data.path": str(scenes), "data.image_field": "image", "eval.every": 0}
  config = configs.override(configs.load(method), wanted | {"data.max_prompt": 200})
  with pytest.raises(InputError, match=why):
    open_run(config, tmp_path / "w")


def test_a_teacher_of_other_patches_is_refused(model, scenes, tmp_path):
  other = seeing_models.write_small(tmp_path / "other", seed=5)
  (other / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 64, "longest_edge": 400}}')
  with pytest.raises(InputError, match="cuts images into other features"):
    open_run(opd_config(model, scenes, other), tmp_path / "w")


@pytest.mark.long
@pytest.mark.parametrize("scale", ["hf", "paper"])
def test_the_config_through_the_command_line(scale, model, scenes, tmp_path):
  """The method's own config, but for sizes: trained, resumed, evaluated and exported."""
  root = pathlib.Path(__file__).resolve().parents[2]
  sizes = {"steps": 2, "batch": 4, "rollouts_per_prompt": 2, "horizon.max": 6, "data.max_prompt": 200}
  sizes |= {"context.max_tokens": 200, "checkpoint.every": 1, "data.suffix": " ?", "data.verifier": "exact"}
  flags = [f"--config.{key}={value}" for key, value in sizes.items()]
  named = [f"--config.student={model}", f"--config.data.path={scenes}", f"--workdir={tmp_path / 'w'}"]
  command = [
    sys.executable,
    "-m",
    "opd_jax.train",
    f"--config={root / 'configs' / 'vision_opd.py'}:{scale}",
    *named,
    *flags,
  ]
  for more in ([], ["--config.steps=3"]):
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
  assert len(read(tmp_path / "w", "train")) == 3
  evaluated = [f"--config.eval.path={scenes}", "--config.eval.prompts=4", "--config.eval.max_tokens=4"]
  evaluated += ["--config.data.suffix="]
  export = ["opd_jax.export", f"--workdir={tmp_path / 'w'}", f"--out={tmp_path / 'out'}"]
  for arguments in (["opd_jax.evaluate", f"--workdir={tmp_path / 'w'}", *evaluated], export):
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
  assert (tmp_path / "out" / "preprocessor_config.json").is_file()


# The tower, trained with the rest.


def tower_of(run):
  return run.models()["student"]["vision"]


def changed(model, run) -> dict[str, float]:
  """How far each parameter of the tower has moved."""
  seeing = hf_vision.read(model)
  assert seeing is not None
  before = hf_vision.load(model, seeing.tower)
  paths = jax.tree_util.tree_leaves_with_path(before)
  moved = [float(jnp.abs(a - b).max()) for (_, a), b in zip(paths, jax.tree.leaves(tower_of(run)), strict=True)]
  return {jax.tree_util.keystr(path): far for (path, _), far in zip(paths, moved, strict=True)}


@pytest.mark.long
def test_a_tower_that_is_trained_moves_resumes_and_is_exported(model, scenes, tmp_path):
  changes = {"vision.train": True, "eval.path": str(scenes), "eval.every": 3, "eval.prompts": 4, "eval.max_tokens": 4}
  whole = train(crop_config(model, scenes, **changes), tmp_path / "whole")
  assert min(changed(model, whole).values()) > 0
  assert whole.inputs.prompt_images.student.encoder.encoded == 0, "features are made where they are read"
  train(crop_config(model, scenes, steps=2, **changes), tmp_path / "parts")
  again = open_run(crop_config(model, scenes, **changes), tmp_path / "parts")
  train_run(again)
  for a, b in zip(leaves(whole.state), leaves(again.state), strict=True):
    np.testing.assert_array_equal(a, b)
  cfg = whole.recipe.specs.student.cfg
  hf.write(tmp_path / "out", cfg, whole.models()["student"], like=model, dtype="float32")
  seeing = hf_vision.read(tmp_path / "out")
  for a, b in zip(
    jax.tree.leaves(hf_vision.load(tmp_path / "out", seeing.tower)), jax.tree.leaves(tower_of(whole)), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  assert hf_config.read(tmp_path / "out") == dataclasses.replace(cfg, tower=None)


@pytest.mark.long
def test_a_tower_without_a_rate_stays_and_learns_what_a_frozen_one_does(model, scenes, tmp_path):
  still = train(
    crop_config(model, scenes, **{"vision.train": True, "optimizer.vision_lr": 0.0, "optimizer.clip": 0.0}),
    tmp_path / "still",
  )
  assert set(changed(model, still).values()) == {0.0}
  train(crop_config(model, scenes, **{"optimizer.clip": 0.0}), tmp_path / "frozen")
  losses = [[r["loss"] for r in read(tmp_path / name, "train")] for name in ("still", "frozen")]
  np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.fixture(scope="module")
def rollout_on_everything(model, everything, tmp_path_factory):
  run = open_run(crop_config(model, everything, **UNCHANGED, **{"vision.train": True}), tmp_path_factory.mktemp("w"))
  return rollout_on(run, first_batch(run)[0])


def with_another_tower(params):
  """The same model, but for what it sees."""
  return params | {"vision": jax.tree.map(lambda a: a * 1.5, params["vision"])}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ema", "mix", "frozen", "current"])
def test_the_moving_teacher_sees_with_its_own_tower(kind, model, everything, rollout_on_everything, tmp_path):
  """Both see the same: a teacher agrees where it is the student, exactly but for a mix, and not where its tower alone is another."""
  changes = UNCHANGED | {"vision.train": True, "teacher_update.kind": kind, "teacher_update.rate": 0.5}
  run = open_run(crop_config(model, everything, **changes, remat="layer"), tmp_path / "w")
  batch, rollout = rollout_on_everything
  state, frozen, loss = run.state, run.frozen, loss_on(run, rollout)
  assert abs(loss(state, frozen, batch)) <= (1e-6 if kind == "mix" else 0)
  moved = dataclasses.replace(state, params=with_another_tower(state.params))
  if kind == "current":
    assert loss(moved, frozen, batch) == 0, "it follows"
    return
  assert loss(moved, frozen, batch) > 1e-4
  if kind == "ema":
    other = dataclasses.replace(state, teacher=with_another_tower(state.teacher)), frozen
  else:
    other = state, dataclasses.replace(frozen, teachers=tuple(map(with_another_tower, frozen.teachers)))
  assert loss(*other, batch) > 1e-4


@pytest.mark.long
def test_killed_before_an_update_and_resumed_it_is_the_run_that_never_stopped(model, scenes, tmp_path, monkeypatch):
  """With everything of Vision-OPD: crops, a moving average that teaches, JSD on the likeliest tokens, and a tower that is trained."""
  changes = {"teacher_update.kind": "ema", "teacher_update.rate": 0.5, "objective.kind": "jsd", "vision.train": True}
  changes |= {"objective.support": "student_topk", "objective.k": 10, "objective.tail": "bucket"}
  config = crop_config(model, scenes, **changes)
  whole = train(config, tmp_path / "whole")
  run = open_run(config, tmp_path / "parts")
  update = run.recipe._update

  def die(run, *args):
    if run.step == 1:
      raise KeyboardInterrupt
    return update(run, *args)

  monkeypatch.setattr(run.recipe, "_update", die)
  with pytest.raises(KeyboardInterrupt):
    train_run(run)
  again = open_run(config, tmp_path / "parts")
  assert again.resumed_from == 1
  train_run(again)
  records = [without_time(r) for r in read(tmp_path / "whole", "train")]
  assert [without_time(r) for r in read(tmp_path / "parts", "train")] == records
  assert len(records) == 3
  for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(again.state), strict=True):
    np.testing.assert_array_equal(a, b)
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), whole.state.teacher, whole.state.params)
  assert min(jax.tree.leaves(moved)) > 0, "the teacher is neither the student nor a copy"


@pytest.mark.long
def test_the_gradient_of_a_tower_is_that_of_finite_differences(model, scenes, tmp_path):
  run = open_run(crop_config(model, scenes, **{"vision.train": True}), tmp_path / "w")
  step, state = run.recipe.step, run.state
  batch, rollout = rollout_on(run, first_batch(run)[0])
  weights = step.loss.token_weights(rollout.mask, jax.random.key(0), rollout.behavior_logprob)
  part = Rows(batch, rollout, weights, None)

  @jax.jit
  def loss(params):
    return step.loss_of(params, run.frozen, part)[0]

  gradient = jax.grad(loss)(state.params)["vision"]["merger"]["merge_out_bias"]
  direction = gradient / jnp.linalg.norm(gradient)

  def at(far):
    params = jax.tree.map(lambda a: a, state.params)
    params["vision"]["merger"]["merge_out_bias"] = params["vision"]["merger"]["merge_out_bias"] + far * direction
    return float(loss(params))

  np.testing.assert_allclose((at(1e-2) - at(-1e-2)) / 2e-2, float(jnp.linalg.norm(gradient)), rtol=2e-2)


@pytest.mark.parametrize(
  ("changes", "why"),
  [
    ({"lora.rank": 4}, "trains a part of the weights"),
    ({"data.image_field": "", "data.box_field": "", "context.kind": "privileged"}, "no images for the tower"),
  ],
)
def test_a_tower_is_trained_with_all_or_not(changes, why, model, scenes, tmp_path):
  with pytest.raises(InputError, match=why):
    open_run(crop_config(model, scenes, **{"vision.train": True} | changes), tmp_path / "w")


def test_a_model_that_sees_nothing_has_no_tower(tiny, scenes, tmp_path):
  with pytest.raises(InputError, match="no directory of a model that sees images"):
    open_run(opd_config(tiny["student"], scenes, "initial", **{"vision.train": True}), tmp_path / "w")


@pytest.mark.long
@pytest.mark.parametrize("tower", [False, True])
def test_rollouts_and_views_show_what_was_seen(tower, model, scenes, tmp_path):
  config = crop_config(model, scenes, steps=2, **{"log.rollouts": 2, "vision.train": tower})
  path = tmp_path / "w"
  train(config, path)
  first = scored.read(path / scored.ROLLOUTS)[0]
  assert "<|image_pad|> x 15" in first.prompt
  assert first.divergence is not None
  assert [len(first.images), len(first.teacher_images)] == [1, 1]

  def view(*flags):
    viewer.run(*cli.parse(["view", f"--workdir={path}", "--prompts=2", *flags], "", viewer.define, cli.of_workdir))
    return scored.read(path / scored.VIEW)

  found = view()
  assert [r.of for r in found[:3]] == ["student before training", "student after step 2", "teacher"]
  assert all(r.images == found[0].images and r.teacher_images == found[0].teacher_images for r in found[:3])
  assert found[0].images != found[3].images
  assert shape_of(found[0].images[0]) == (40, 24)
  assert shape_of(found[0].teacher_images[0]) == (32, 32)
  assert np.array(found[0].divergence, float).min() > 0, (
    "the crop says something else, though both have the same weights"
  )
  page = (path / "view.html").read_text()
  assert page.count("<img") == 4
  image = scenes.parent / "scene1.png"
  own = view("--prompt=what is it?", f"--image={image}")
  assert np.array(own[0].divergence, float).max() < 1e-6, "student and teacher see the same here, and are the same"
  assert not own[0].teacher_images
  done = subprocess.run(
    [sys.executable, "-m", "opd_jax.report", str(path), f"--out={tmp_path / 'report'}"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert first.images[0] in (tmp_path / "report" / "index.html").read_text()


def shape_of(address: str) -> tuple[int, int]:
  return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).size


@pytest.mark.parametrize(
  ("flags", "why"),
  [
    (["--image=a.png"], "needs a --prompt for each"),
    (["--image=a.png", "--prompt=what?", "--prompt=where?"], "needs a --prompt for each"),
    (["--image=nowhere.png", "--prompt=what?"], "there is no image"),
  ],
)
@pytest.mark.long
def test_images_of_the_command_line_are_checked(flags, why, model, scenes, tmp_path):
  train(crop_config(model, scenes, steps=1), tmp_path / "w")
  with pytest.raises(InputError, match=why):
    viewer.run(*cli.parse(["view", f"--workdir={tmp_path / 'w'}", *flags], "", viewer.define, cli.of_workdir))


def test_boxes_of_others_are_another_regions():
  rows = [
    (ImageRef(f"{i}.png", (box,)), ImageRef("b.png"))
    for i, box in enumerate([(0, 0, 1, 1), (0, 0, 1, 1), (2, 2, 3, 3)])
  ]
  found = crop.of_others([*rows, (ImageRef("c.png"),)])
  assert [row[0].source for row in found] == ["0.png", "1.png", "2.png", "c.png"]
  assert [row[0].boxes for row in found] == [((2, 2, 3, 3),), ((2, 2, 3, 3),), ((0, 0, 1, 1),), ()]
  assert found[0][1] == rows[0][1]
  assert crop.of_others(rows[:2]) == rows[:2], "there is no other"


def test_a_control_shows_another_region_and_evaluations_the_crop(tmp_path):
  """On the built-in task, whose boxes differ."""
  config = configs.override(
    configs.load("vision_opd"),
    {"batch": 4, "eval.prompts": 4, "eval.batch": 4, "context.region": "other", "context.eval_view": "crop"},
  )
  run = open_run(config, tmp_path / "w")
  train, asked = run.inputs.train, run.inputs.evaluation.problems
  assert all(a.boxes != b.boxes for (a,), (b,) in zip(train.images, train.teacher_images, strict=True))
  assert {(a.view, b.view) for (a,), (b,) in zip(train.images, train.teacher_images, strict=True)} == {
    ("marked", "crop")
  }
  assert {ref.view for (ref,) in asked.images} == {"crop"}
  assert {len(row) for row in asked.ids} == {16 + 2 + 4}
  assert not any("stand in the training data" in warning for warning in run.inputs.warnings), (
    "questions are alike, and pictures are not"
  )

"""Images of data files: any format, damaged, hostile, and cut as transformers cuts them."""

import csv
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from opd_jax.config import load, override
from opd_jax.data import images, problems, sources
from opd_jax.data.image_prompts import ImagePrompts, expanded, with_marks
from opd_jax.data.image_refs import ImageFault, ImageRef
from opd_jax.data.images import ImageProcessor
from opd_jax.data.styles import Fields
from opd_jax.errors import InputError
from opd_jax.models import image_views
from opd_jax.models.vision import VisionConfig
from tests.helpers import seeing_models

GRADIENT = Image.fromarray(np.arange(30 * 20 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8))
PLAIN = VisionConfig(1, 8, 2, 8, 8, patch=16, grid=4)
WINDOWED = VisionConfig(1, 8, 2, 8, 8, patch=14, gated=True, window=8)


def encoded(image, kind="PNG", **options) -> bytes:
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def processor(tower=PLAIN, least=0, most=0):
  mean, std, low, high = images.DEFAULTS[tower.gated]
  return ImageProcessor(tower, 9, mean, std, least or low, most or high)


@pytest.mark.parametrize(
  ("width", "height", "grid", "tower", "limits"),
  [  # of the released models' limits
    (1920, 1080, (728, 1316), WINDOWED, (3136, 1003520)),
    (60, 100, (112, 56), WINDOWED, (3136, 1003520)),
    (1920, 1080, (1088, 1920), PLAIN, (0, 0)),
    (60, 100, (352, 224), PLAIN, (0, 0)),
    (5000, 5000, (4096, 4096), PLAIN, (0, 0)),
  ],
)
def test_images_are_scaled_to_whole_features(width, height, grid, tower, limits):
  rows, columns = processor(tower, *limits).grid(width, height)
  assert (rows * tower.patch, columns * tower.patch) == grid


def test_patches_are_those_of_transformers():
  """Of a picture that is scaled, in both families, but for the frames, which are all alike."""
  from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

  for tower in (PLAIN, WINDOWED):
    ours = processor(tower, 64 * 64, 128 * 128)
    theirs = Qwen2VLImageProcessorPil(
      size={"shortest_edge": 64 * 64, "longest_edge": 128 * 128},
      patch_size=tower.patch,
      image_mean=list(ours.mean),
      image_std=list(ours.std),
    )
    expected = theirs(images=[GRADIENT], return_tensors="np")
    picture = ours.picture(ImageRef(encoded(GRADIENT)))
    assert [1, picture.rows, picture.columns] == expected["image_grid_thw"][0].tolist()
    frames = expected["pixel_values"].reshape(len(picture.pixels), 3, 2, -1)
    np.testing.assert_array_equal(picture.pixels, frames[:, :, 0].reshape(len(picture.pixels), -1))
    np.testing.assert_array_equal(frames[:, :, 0], frames[:, :, 1])
    assert ours.features(ImageRef(encoded(GRADIENT)), decode=False) == picture.rows * picture.columns // 4


RELEASED = {  # what the released directories of each family say of images, with smaller limits
  "qwen2_5_vl": {
    "min_pixels": 3136,
    "max_pixels": 112 * 112,
    "patch_size": 14,
    "image_mean": images.CLIP[0],
    "image_std": images.CLIP[1],
    "image_processor_type": "Qwen2VLImageProcessor",
  },
  "qwen3_vl": {
    "size": {"shortest_edge": 4096, "longest_edge": 16384},
    "patch_size": 16,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "Qwen2VLImageProcessorFast",
  },
}
RELEASED["qwen3_5"] = RELEASED["qwen3_vl"]
OWN_FILTER = {"resample": 2, "rescale_factor": 0.01, "do_resize": True, "do_rescale": True, "do_normalize": True}


def family_directory(folder, family, said, nested=False):
  """Write config.json of a family of the released patches, and what is said of its images."""
  import transformers

  config = seeing_models.configs(transformers)[family].to_dict()
  config["vision_config"] |= {"patch_size": 14, "window_size": 112} if family == "qwen2_5_vl" else {"patch_size": 16}
  (folder / "config.json").write_text(json.dumps(config, default=str))
  said = {"merge_size": 2, "temporal_patch_size": 2} | said
  name = "processor_config.json" if nested else "preprocessor_config.json"
  (folder / name).write_text(json.dumps({"image_processor": said} if nested else said))
  return folder


@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@pytest.mark.parametrize("more", [{}, OWN_FILTER], ids=["", "own filter"])
@pytest.mark.parametrize("family", RELEASED)
def test_a_directorys_processor_is_that_of_transformers(family, more, nested, tmp_path):
  from transformers import AutoImageProcessor

  directory = family_directory(tmp_path, family, RELEASED[family] | more, nested)
  image = GRADIENT.resize((500, 260))
  expected = AutoImageProcessor.from_pretrained(directory, use_fast=False)(images=[image], return_tensors="np")
  picture = ImageProcessor.from_directory(directory).picture(ImageRef(encoded(image)))
  assert [1, picture.rows, picture.columns] == expected["image_grid_thw"][0].tolist()
  frames = expected["pixel_values"].reshape(len(picture.pixels), 3, 2, -1)
  np.testing.assert_array_equal(picture.pixels, frames[:, :, 0].reshape(len(picture.pixels), -1))


@pytest.mark.parametrize(
  ("said", "why"),
  [
    ({"do_resize": False}, "preprocessor_config.json: do_resize is false, and images are always"),
    ({"do_rescale": False}, "do_rescale is false"),
    ({"do_normalize": False}, "do_normalize is false"),
    ({"do_normalize": "no"}, "do_normalize is 'no'; it has to be true or false"),
    ({"resample": 9}, r"resample is 9; .* 3 \(bicubic\)"),
    ({"resample": "bicubic"}, "resample is 'bicubic'; "),
    ({"rescale_factor": 0}, "rescale_factor is 0; it has to be a number above 0"),
    ({"image_mean": 0.5}, "image_mean is 0.5; it has to be a list of 3 numbers"),
    ({"image_std": [0.5, 0.5]}, "image_std is .*; it has to be a list of 3 numbers"),
    ({"patch_size": 8}, "patch_size is 8, and the model's config.json has 16"),
  ],
)
def test_what_is_not_followed_of_a_directorys_processor_is_refused(said, why, tmp_path):
  directory = family_directory(tmp_path, "qwen3_vl", RELEASED["qwen3_vl"] | said)
  with pytest.raises(InputError, match=why):
    ImageProcessor.from_directory(directory)


def turned(orientation: int) -> bytes:
  exif = Image.Exif()
  exif[0x0112] = orientation
  return encoded(GRADIENT, "JPEG", exif=exif, quality=95)


def test_a_turned_photograph_stands_upright():
  for orientation in (1, 3, 6, 8):
    image = images.open_image(ImageRef(turned(orientation)))
    assert image.size == ((20, 30) if orientation > 4 else (30, 20))
    assert images.open_image(ImageRef(turned(orientation)), decode=False).size == image.size


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode):
  image = GRADIENT.convert(mode) if mode != "I;16" else Image.fromarray(np.full((5, 7), 65535, np.uint16))
  found = images.open_image(ImageRef(encoded(image, "JPEG" if mode == "CMYK" else "PNG")))
  assert found.mode == "RGB"
  if mode == "I;16":
    assert np.asarray(found).min() == 255


def test_what_is_transparent_is_white():
  found = images.open_image(ImageRef(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))))
  assert np.asarray(found).min() == 255


def bomb() -> bytes:
  """A PNG of a few bytes that says that it has 10^10 pixels."""

  def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


FRAMES = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
BAD = {
  "missing": ("no/such/file.png", "there is no image"),
  "text": (b"no image at all", "is no image that is read"),
  "empty": (b"", "is no image that is read"),
  "truncated": (encoded(GRADIENT.resize((300, 200)))[:3000], "is damaged"),
  "truncated jpeg": (encoded(GRADIENT.resize((300, 200)), "JPEG")[:1500], "is damaged"),
  "bomb": (bomb(), "more than 100,000,000 pixels"),
  "large": (encoded(Image.new("1", (12_000, 9_000))), "12000 x 9000 pixels, more than"),
  "animated": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "3 frames"),
  "narrow": (encoded(Image.new("RGB", (500, 2))), "200 times"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_said_in_a_sentence(name):
  source, why = BAD[name]
  with pytest.raises(ImageFault, match=why) as e:
    processor().features(ImageRef(source), decode=True)
  assert "\n" not in str(e.value)


def test_a_directory_is_no_image(tmp_path):
  with pytest.raises(ImageFault, match="directory"):
    images.open_image(ImageRef(str(tmp_path)))


def test_boxes_are_drawn_and_cut_out():
  white = ImageRef(encoded(Image.new("RGB", (40, 30), "white")), ((4, 6, 20, 16),))
  drawn = np.asarray(images.open_image(white._replace(view="marked")))
  red = np.all(drawn == image_views.RED, axis=-1)
  assert red[6, 4:20].all()
  assert red[6:16, 4].all()
  assert red[15, 19]
  assert not red[10, 10]
  assert not red[16:].any()
  crop = ImageRef(encoded(GRADIENT), ((4, 6, 20, 16), (2, 8, 6, 12)), "crop")
  np.testing.assert_array_equal(np.asarray(images.open_image(crop)), np.asarray(GRADIENT)[6:16, 2:20])
  assert images.open_image(crop._replace(zoom=2.0)).size == (36, 20)
  assert images.open_image(crop._replace(zoom=2.0), decode=False).size == (36, 20)


@pytest.mark.parametrize("box", [(0, 0, 31, 10), (5, 5, 5, 9), (-1, 0, 4, 4), (9, 0, 3, 4)])
def test_a_box_outside_is_refused(box):
  with pytest.raises(ImageFault, match="30 x 20"):
    images.open_image(ImageRef(encoded(GRADIENT), (box,), "crop"))


def test_an_image_stands_where_the_prompt_says_so():
  assert with_marks("what?", 2) == "<image><image>what?"
  assert with_marks("is <image> more than <image>?", 2) == "is <image> more than <image>?"
  chat = [{"role": "system", "content": "look"}, {"role": "user", "content": "what?"}]
  assert [dict(m)["content"] for m in with_marks(chat, 1)] == ["look", "<image>what?"]  # pyright: ignore[reportCallIssue,reportArgumentType]
  with pytest.raises(ImageFault, match="2 times, and has 1"):
    with_marks("<image><image>", 1)
  with pytest.raises(ImageFault, match="no message of the user"):
    with_marks([{"role": "system", "content": "look"}], 1)
  assert expanded([1, 9, 2, 9], [3, 1], 9) == [1, 9, 9, 9, 2, 9]
  with pytest.raises(ImageFault, match="1 places"):
    expanded([1, 9], [3, 1], 9)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return seeing_models.write_small(tmp_path_factory.mktemp("small") / "model")


def config_of(model, path, **changes):
  keys = {"student": str(model), "data.path": str(path), "data.image_field": "image", "data.box_field": "box"}
  return override(load("opd"), keys | {"eval.every": 0} | changes)


def load_problems(model, path, **changes):
  config = config_of(model, path, **changes)
  fast = seeing_models.tokenizer()
  return problems.load(
    config, str(path), fast, held_out=False, images=ImagePrompts.from_config(config, model, fast)
  ), fast


def test_a_file_of_prompts_with_images(model, tmp_path):
  path = seeing_models.write_scenes(tmp_path)
  found, fast = load_problems(model, path)
  image_id = fast.get_vocab()["<|image_pad|>"]
  assert len(found.ids) == 6
  assert all(row.count(image_id) == 15 for row in found.ids)  # 40 x 24 pixels: 5 x 3 features
  text = str(fast.decode(found.ids[0])).replace(" ", "")
  assert "user:<|vision_start|><|image_pad|>" in text
  assert found.images[0][0].boxes == ((8.0, 4.0, 24.0, 20.0),)
  assert found.images[0][0].source == str(tmp_path / "scene0.png")


def damaged(tmp_path):
  path = seeing_models.write_scenes(tmp_path)
  (tmp_path / "scene1.png").unlink()
  (tmp_path / "scene2.png").write_bytes((tmp_path / "scene2.png").read_bytes()[:100])
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  lines[3]["box"] = [0, 0, 900, 3]
  lines[4]["prompt"] = "<image> or <image>?"
  path.write_text("\n".join(map(json.dumps, lines)))
  return path


def test_bad_images_are_bad_lines(model, tmp_path):
  path = damaged(tmp_path)
  with pytest.raises(InputError, match=r"scenes.jsonl:2: there is no image .*skip"):
    load_problems(model, path)
  found, _ = load_problems(model, path, **{"data.on_bad_line": "skip"})
  assert found.skipped == 4
  assert [ref.name for (ref,) in found.images] == [str(tmp_path / f"scene{i}.png") for i in (0, 5)]


def test_headers_alone_are_fast_and_see_less(model, tmp_path):
  path = damaged(tmp_path)
  found, _ = load_problems(model, path, **{"data.on_bad_line": "skip", "data.decode_images": False})
  assert found.skipped == 3


def test_a_model_that_sees_nothing_is_refused(tiny, tmp_path):
  path = seeing_models.write_scenes(tmp_path)
  config = config_of(tiny["student"], path)
  with pytest.raises(InputError, match="sees no images"):
    ImagePrompts.from_config(config, problems.pathlib.Path(tiny["student"]), seeing_models.tokenizer())


@pytest.mark.parametrize(
  ("record", "why"),
  [
    ({"image": 3}, "write a path or the file's bytes"),
    ({"image": "a.png", "box": [1, 2, 3]}, r"\[left, top, right, bottom\]"),
    ({"image": "a.png", "box": "x"}, r"\[left, top, right, bottom\]"),
    ({"image": "a.png"}, "no field 'box'"),
    ({"box": [1, 2, 3, 4]}, "there is no image"),
  ],
)
def test_records_that_cannot_be_meant(record, why, tmp_path):
  path = tmp_path / "one.jsonl"
  path.write_text(json.dumps({"prompt": "?", "answer": "1"} | record))
  with pytest.raises(InputError, match=why):
    sources.read_examples(path, Fields(image="image", box="box"), "refuse", need_answer=False)


@pytest.mark.parametrize(
  ("cell", "boxes"),
  [
    ("[1, 2, 3, 4.5]", ((1.0, 2.0, 3.0, 4.5),)),
    ("[[1, 2, 3, 4], [0, 0, 5, 6]]", ((1.0, 2.0, 3.0, 4.0), (0.0, 0.0, 5.0, 6.0))),
  ],
)
@pytest.mark.parametrize("delimiter", [",", "\t"], ids=["csv", "tsv"])
def test_a_cell_of_a_table_holds_boxes_as_json(cell, boxes, delimiter, tmp_path):
  path = tmp_path / ("one.csv" if delimiter == "," else "one.tsv")
  with path.open("w", newline="") as file:
    csv.writer(file, delimiter=delimiter).writerows([["prompt", "answer", "image", "box"], ["?", "1", "a.png", cell]])
  fields = Fields(image="image", box="box")
  (example,) = sources.read_examples(path, fields, "refuse", need_answer=False).examples
  assert example.images == (ImageRef(str(tmp_path / "a.png"), boxes),)


@pytest.mark.parametrize("cell", ["1, 2, 3, 4", "[1, 2, 3]", "[[1, 2, 3, 4], 5]", "[]", "{}", "[1, 2, 3, NaN]"])
def test_a_cell_that_is_no_box_is_refused(cell, tmp_path):
  path = tmp_path / "one.csv"
  with path.open("w", newline="") as file:
    csv.writer(file).writerows([["prompt", "answer", "image", "box"], ["?", "1", "a.png", cell]])
  with pytest.raises(InputError, match=r"one.csv:2: the field 'box' has .* write \[left, top, right, bottom\]"):
    sources.read_examples(path, Fields(image="image", box="box"), "refuse", need_answer=False)


def test_images_in_tables_are_bytes(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq

  data = encoded(GRADIENT)
  path = tmp_path / "one.parquet"
  pq.write_table(pa.Table.from_pylist([{"prompt": "?", "answer": "1", "image": {"bytes": data, "path": None}}]), path)
  (example,) = sources.read_examples(path, Fields(image="image"), "refuse", need_answer=False).examples
  assert example.images == (ImageRef(data),)


@pytest.mark.parametrize("kept", ["bytes", "path"])
def test_images_of_a_directory_that_datasets_saved(kept, tmp_path):
  """Both ways in which `datasets` keeps an image: its bytes in the table, or a path beside it."""
  datasets = pytest.importorskip("datasets")
  data, file = encoded(GRADIENT), tmp_path / "one.png"
  file.write_bytes(data)
  value = {"bytes": data, "path": None} if kept == "bytes" else {"bytes": None, "path": str(file)}
  features = datasets.Features(
    {"prompt": datasets.Value("string"), "image": datasets.Image(), "box": datasets.List(datasets.Value("int32"))}
  )
  rows = {"prompt": ["?"], "image": [value], "box": [[1, 2, 6, 7]]}
  datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
  fields = Fields(image="image", box="box")
  (example,) = sources.read_examples(tmp_path / "set", fields, "refuse", need_answer=False).examples
  (ref,) = example.images
  assert ref.boxes == ((1.0, 2.0, 6.0, 7.0),)
  assert images.open_image(ref).size == images.open_image(ImageRef(data)).size

"""Images of a data file: found, checked, opened whatever their format, and cut into a tower's patches by transformers' processor.

What is wrong with an image is an `ImageFault`'s sentence without its full stop; the policy for bad lines decides what follows.
"""

import base64
import dataclasses
import functools
import importlib
import io
import pathlib
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from opd_jax.data.image_refs import ImageFault, ImageRef
from opd_jax.errors import InputError, brief, first_line
from opd_jax.models import directory as directories
from opd_jax.models import hf_values, hf_vision, image_views
from opd_jax.models.image_rows import Picture
from opd_jax.models.vision import VisionConfig
from opd_jax.runtime.json_files import is_number, is_whole
from opd_jax.types import Box

MOST_PIXELS = 100_000_000  # of an image as it is stored; one that claims more is taken for a decompression bomb
# Where a directory's preprocessor_config.json does not say: mean and standard deviation of each channel, and least and most pixels.
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DEFAULTS = {True: (*CLIP, 3136, 12_845_056), False: ((0.5,) * 3, (0.5,) * 3, 65_536, 16_777_216)}  # by tower.gated


def open_image(ref: ImageRef, *, decode: bool = True) -> Image.Image:
  """Open an image upright, as RGB, in the view that is asked for.

  Transparent parts are laid on white; of numbers of more than eight bits the upper eight stay.

  Args:
    decode: False reads the header alone: the result has the size of the view, and no pixels that may be read.

  Raises:
    ImageFault: there is none, it is damaged or too large, has several frames, or a box is not in it.
  """
  image = _opened(ref)
  try:
    if decode:
      image.load()
    turned = _orientation(image) in (5, 6, 7, 8)  # width and height change places
    width, height = image.size[::-1] if turned else image.size
    for box in ref.boxes:
      _check_box(box, width, height)
    if not decode:
      return Image.new("1", _size_of_view(ref, width, height))
    image = _as_rgb(ImageOps.exif_transpose(image))
  except ImageFault:
    raise
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    raise ImageFault(f"{ref.name} is damaged ({first_line(e)}); copy it anew") from None
  match ref.view:
    case "marked":
      return image_views.marked(image, ref.boxes)
    case "crop":
      return image_views.cropped(image, ref.boxes, ref.zoom)
  return image


def _opened(ref: ImageRef) -> Image.Image:
  ImageFile.LOAD_TRUNCATED_IMAGES = False
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a limit of our own
      image = Image.open(ref.source if isinstance(ref.source, str) else io.BytesIO(ref.source))
  except FileNotFoundError:
    raise ImageFault(ref.missing) from None
  except IsADirectoryError:
    raise ImageFault(f"{ref.name} is a directory and no image; name the file") from None
  except UnidentifiedImageError:
    raise ImageFault(f"{ref.name} is no image that is read; write it as PNG or JPEG") from None
  except Image.DecompressionBombError:
    raise ImageFault(f"{ref.name} says that it has more than {MOST_PIXELS:,} pixels; shrink it") from None
  except (OSError, SyntaxError, ValueError) as e:
    raise ImageFault(f"{ref.name} cannot be opened ({first_line(e)}); copy it anew, or write it as PNG") from None
  if image.width * image.height > MOST_PIXELS:
    raise ImageFault(
      f"{ref.name} says that it is {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}; shrink it"
    )
  if getattr(image, "n_frames", 1) > 1:
    raise ImageFault(f"{ref.name} has {image.n_frames} frames; write the one that is meant as an image of its own")  # pyright: ignore[reportAttributeAccessIssue]
  return image


def _orientation(image: Image.Image) -> int:
  """How an image is turned, by its Exif; Pillow would decode a PNG to look for it behind the pixels."""
  return image.getexif().get(0x0112, 1) if image.format != "PNG" or "exif" in image.info else 1


def _as_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith("I") or image.mode == "F":
    numbers = np.asarray(image, np.float64)
    top = 65535.0 if image.mode.startswith("I") else max(float(numbers.max()), 1.0)
    return Image.fromarray(np.clip(numbers * (255.0 / top), 0, 255).astype(np.uint8)).convert("RGB")
  if "A" in image.mode or "transparency" in image.info:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
  return image.convert("RGB")


def _check_box(box: Box, width: int, height: int) -> None:
  left, top, right, bottom = box
  if not (0 <= left < right <= width and 0 <= top < bottom <= height):
    raise ImageFault(
      f"the box {brief(list(box))} is not in the image of {width} x {height} pixels; write left, top, right and bottom in pixels"
    )


PREVIEW = 256  # pixels, the longer side at most


def preview(ref: ImageRef) -> str:
  """Make a small copy of what is seen of an image, for pages: a data: address.

  Raises:
    ImageFault: it cannot be used.
  """
  image, file = open_image(ref), io.BytesIO()
  large = max(image.size) > PREVIEW
  image.thumbnail((PREVIEW, PREVIEW))
  kind = "jpeg" if large else "png"  # drawings stay exact
  image.save(file, kind, quality=85)
  return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _size_of_view(ref: ImageRef, width: int, height: int) -> tuple[int, int]:
  if ref.view != "crop":
    return width, height
  left, top, right, bottom = image_views.union(ref.boxes)
  return image_views.zoomed((right - left, bottom - top), ref.zoom)


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
  """How a model's images are scaled and cut into patches."""

  tower: VisionConfig
  image_id: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  min_pixels: int
  max_pixels: int
  resample: int = Image.Resampling.BICUBIC
  rescale: float = 1 / 255  # what pixels of 0 to 255 are multiplied by, before mean and std

  @classmethod
  def from_directory(cls, directory: pathlib.Path, min_pixels: int = 0, max_pixels: int = 0) -> "ImageProcessor":
    """Read what a model directory says of its images.

    Args:
      min_pixels, max_pixels: instead of the directory's; 0: these.

    Raises:
      InputError: the model sees no images, or its preprocessor_config.json is not of its tower, or asks for what is not followed.
    """
    seeing = hf_vision.read(directory)
    if seeing is None:
      raise InputError(
        f"{directory} is a model that sees no images; name one such as Qwen3.5, or leave data.image_field empty."
      )
    tower = seeing.tower
    path, raw = _preprocessing(pathlib.Path(directory))
    mean, std, least, most = DEFAULTS[tower.gated]
    for key, ours in (("patch_size", tower.patch), ("merge_size", tower.merge), ("temporal_patch_size", tower.frames)):
      if raw.get(key, ours) != ours:
        raise InputError(
          f"{path}: {key} is {brief(raw[key])}, and the model's config.json has {ours}; mend the one that is wrong."
        )
    try:
      resample, rescale = _scaling(raw)
      mean, std = _of_channels(raw, "image_mean", mean), _of_channels(raw, "image_std", std)
    except ValueError as e:
      raise InputError(f"{path}: {e}.") from None
    size = raw.get("size") if isinstance(raw.get("size"), dict) else {}
    least = raw.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or least  # pyright: ignore[reportOptionalMemberAccess]
    most = raw.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or most  # pyright: ignore[reportOptionalMemberAccess]
    if max_pixels and not min_pixels:
      least = min(least, max_pixels)
    return cls(tower, seeing.image_id, mean, std, min_pixels or least, max_pixels or most, resample, rescale)

  @functools.cached_property
  def _theirs(self) -> Any:
    return _transformers().Qwen2VLImageProcessorPil(
      size={"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
      patch_size=self.tower.patch,
      merge_size=self.tower.merge,
      temporal_patch_size=self.tower.frames,
      image_mean=list(self.mean),
      image_std=list(self.std),
      resample=self.resample,
      rescale_factor=self.rescale,
    )

  @property
  def most_features(self) -> int:
    """The features of the largest image."""
    return self.max_pixels // (self.tower.patch * self.tower.merge) ** 2

  @property
  def places(self) -> tuple[int, ...]:
    """What decides how many features an image has, and which token stands for one."""
    return self.tower.patch, self.tower.merge, self.image_id, self.min_pixels, self.max_pixels

  def grid(self, width: int, height: int) -> tuple[int, int]:
    """The rows and columns of patches of an image of so many pixels.

    Raises:
      ImageFault: its sides are too unequal.
    """
    side = self.tower.patch * self.tower.merge
    try:
      tall, wide = _transformers().smart_resize(height, width, side, self.min_pixels, self.max_pixels)
    except ValueError:
      raise ImageFault(
        f"the image is {width} x {height} pixels, and one side can be 200 times the other at most"
      ) from None
    return tall // self.tower.patch, wide // self.tower.patch

  def features(self, ref: ImageRef, *, decode: bool) -> int:
    """How many tokens an image takes in a prompt.

    Args:
      decode: look at all of it, and not at its header alone.

    Raises:
      ImageFault: it cannot be used.
    """
    try:
      rows, columns = self.grid(*open_image(ref, decode=decode).size)
    except ImageFault as e:
      raise ImageFault(str(e) if ref.name in str(e) else f"{ref.name}: {e}") from None
    return rows * columns // self.tower.merged

  def picture(self, ref: ImageRef) -> Picture:
    """Scale an image and cut it into patches.

    Raises:
      ImageFault: it cannot be used.
    """
    out = self._theirs(images=[open_image(ref)], return_tensors="np")
    _, rows, columns = map(int, out["image_grid_thw"][0])
    pixels = np.asarray(out["pixel_values"], np.float32)
    frames = pixels.reshape(len(pixels), self.tower.channels, self.tower.frames, -1)
    return Picture(frames[:, :, 0].reshape(len(pixels), -1), rows, columns)


def _preprocessing(directory: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
  """What a directory says of its images, and where: part of its processor_config.json where a new transformers wrote it."""
  joined = directory / "processor_config.json"
  if joined.is_file() and isinstance(own := directories.read_json(joined).get("image_processor"), dict):
    return joined, own
  path = directory / "preprocessor_config.json"
  return path, directories.read_json(path) if path.is_file() else {}


def _scaling(raw: dict[str, Any]) -> tuple[int, float]:
  """How a preprocessor_config.json has images resized, and by what their pixels are multiplied.

  Raises:
    ValueError: what is not followed, as a sentence without its full stop.
  """
  for key in ("do_resize", "do_rescale", "do_normalize"):
    if not hf_values.switch(raw, key, default=True):
      raise ValueError(f"{key} is false, and images are always resized, rescaled and normalised; set it to true")
  resample = raw.get("resample")
  resample = Image.Resampling.BICUBIC if resample is None else resample
  filters = {int(each): each.name.lower() for each in Image.Resampling}
  if not is_whole(resample, 0, max(filters)):
    known = ", ".join(f"{number} ({name})" for number, name in sorted(filters.items()))
    raise ValueError(f"resample is {brief(resample)}; it has to be one of Pillow's filters: {known}")
  return int(resample), hf_values.number(raw, "rescale_factor", 1 / 255)


def _of_channels(raw: dict[str, Any], key: str, default: tuple[float, ...]) -> tuple[float, ...]:
  """Read a number for each channel; null is the default too.

  Raises:
    ValueError: it is something else, as a sentence without its full stop.
  """
  value = default if raw.get(key) is None else raw[key]
  if not isinstance(value, list | tuple) or len(value) != len(default) or not all(map(is_number, value)):
    raise ValueError(f"{key} is {brief(value)}; it has to be a list of {len(default)} numbers")
  return tuple(map(float, value))


@functools.cache
def _transformers() -> Any:
  """The module of transformers that scales and cuts images by Pillow."""
  try:
    return importlib.import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
  except ImportError:
    raise InputError(
      "This version of transformers cannot cut images without torchvision; pip install -U transformers."
    ) from None

"""Prompts with images: where each stands in the text, and as many tokens for it as it has features.

"What is left of the <image>?"      an image stands where the text says so
"What is this?"                     and otherwise before the user's first words
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opd_jax.config import Config
from opd_jax.data import chat
from opd_jax.data.image_refs import ImageFault, ImageRef
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError
from opd_jax.models import directory as directories

if TYPE_CHECKING:
  from opd_jax.data.images import ImageProcessor

MARK = "<image>"
PromptWithImages = tuple[chat.Prompt, tuple[ImageRef, ...]]


@dataclasses.dataclass(frozen=True)
class ImagePrompts:
  """How a model's prompts show images.

  Attributes:
    processor: how images are scaled and cut.
    tokens: the text that stands for an image: where it begins, what is repeated, and where it ends.
    decode: look at all of every image, and not at its header alone.
  """

  processor: "ImageProcessor"
  tokens: str
  decode: bool = True

  @classmethod
  def from_config(cls, config: Config, directory: pathlib.Path, tokenizer: Any) -> "ImagePrompts | None":
    """Make what `config.data` asks for, of the model in a directory; None where the data have no images.

    Raises:
      InputError: the model sees no images, or its tokenizer has no tokens for them.
    """
    data = config.data
    if not data.image_field:
      return None
    from opd_jax.data.images import ImageProcessor  # Pillow is needed by those who have images

    processor = ImageProcessor.from_directory(directory, data.min_pixels, data.max_pixels)
    raw = directories.read_json(pathlib.Path(directory) / "config.json")
    ids = [raw.get("vision_start_token_id"), processor.image_id, raw.get("vision_end_token_id")]
    names = [tokenizer.convert_ids_to_tokens(i) for i in ids if i is not None]
    if None in names:
      raise InputError(
        f"The tokenizer of {directory} has no tokens for images, which its config.json names; copy the model's own."
      )
    return cls(processor, "".join(names), data.decode_images)

  def render_each(
    self, prompts: Sequence[PromptWithImages], tokenizer: Any, rendering: Rendering
  ) -> tuple[list[list[int] | None], list[str]]:
    """Tokenise prompts as `chat.render_each` does, with room for their images."""
    shown, faults = [], []
    for prompt, images in prompts:
      try:
        shown.append(_replaced(with_marks(prompt, len(images)), self.tokens))
        faults.append("")
      except ImageFault as e:
        shown.append(prompt)
        faults.append(str(e))
    rows, refusals = chat.render_each(shown, tokenizer, rendering)
    for i, ((_, images), row) in enumerate(zip(prompts, rows, strict=True)):
      if row is None or faults[i]:
        rows[i], refusals[i] = None, faults[i] or refusals[i]
        continue
      try:
        features = [self.processor.features(ref, decode=self.decode) for ref in images]
        rows[i] = expanded(row, features, self.processor.image_id)
      except ImageFault as e:
        rows[i], refusals[i] = None, str(e)
    return rows, refusals

  def render(
    self, prompt: chat.Prompt, images: tuple[ImageRef, ...], tokenizer: Any, rendering: Rendering
  ) -> list[int]:
    """Tokenise one prompt.

    Raises:
      ImageFault: it cannot be shown.
    """
    (row,), (fault,) = self.render_each([(prompt, images)], tokenizer, rendering)
    if row is None:
      raise ImageFault(fault)
    return row


def with_marks(prompt: chat.Prompt, images: int) -> chat.Prompt:
  """Put a mark for every image before the first words of the user, unless the prompt has its own.

  Raises:
    ImageFault: the prompt has other marks than images.
  """
  texts = [prompt] if isinstance(prompt, str) else [str(message["content"]) for message in prompt]
  marks = sum(text.count(MARK) for text in texts)
  if marks == images:
    return prompt
  if marks:
    raise ImageFault(f"the prompt says {MARK} {marks} times, and has {images} images; give it one for each")
  if isinstance(prompt, str):
    return MARK * images + prompt
  messages = [dict(message) for message in prompt]
  first = next((m for m in messages if m["role"] == "user"), None)
  if first is None:
    raise ImageFault(f"the prompt has images and no message of the user; say {MARK} where they stand")
  first["content"] = MARK * images + str(first["content"])
  return messages


def _replaced(prompt: chat.Prompt, tokens: str) -> chat.Prompt:
  """Write the model's own tokens in the place of every mark."""
  if isinstance(prompt, str):
    return prompt.replace(MARK, tokens)
  return [dict(message) | {"content": str(message["content"]).replace(MARK, tokens)} for message in prompt]


def expanded(row: Sequence[int], features: Sequence[int], image_id: int) -> list[int]:
  """Repeat the token of each image as often as it has features.

  Raises:
    ImageFault: the row has other places than images.
  """
  places = sum(token == image_id for token in row)
  if places != len(features):
    raise ImageFault(
      f"the prompt has {places} places for images once it is rendered, and {len(features)} images; the chat template has to show "
      "every message that has one, and no text may hold the token of an image"
    )
  counts, out = iter(features), []
  for token in row:
    out += [token] * (next(counts) if token == image_id else 1)
  return out

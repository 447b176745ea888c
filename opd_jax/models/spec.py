"""What is known of a model before its weights are read."""

import dataclasses
import pathlib

from opd_jax.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """A model directory whose headers have been checked, and whose weights have not been read.

  Attributes:
    path: the directory.
    cfg: sizes and variants of the architecture.
    stop_ids: token ids that end a response.
    name: what a config or a command line calls it.
    stop_note: what to tell of `stop_ids`, where their sources differ.
  """

  path: pathlib.Path
  cfg: DecoderConfig
  stop_ids: tuple[int, ...]
  name: str = ""
  stop_note: str = ""

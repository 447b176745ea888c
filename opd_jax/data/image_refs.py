"""What a record says of an image, before it is opened."""

import hashlib
import pathlib
from typing import NamedTuple

from opd_jax.types import Box


class ImageFault(ValueError):
  """What is wrong with an image, and the mend."""


class ImageRef(NamedTuple):
  """An image, and how it is shown."""

  source: str | bytes  # a path, or the file itself
  boxes: tuple[Box, ...] = ()  # the regions that a question is about
  view: str = "whole"  # or "marked": with the boxes drawn in red; "crop": what stands in them alone
  zoom: float = 1.0  # by which a crop is enlarged

  @property
  def name(self) -> str:
    """What messages call it."""
    return self.source if isinstance(self.source, str) else f"an image of {len(self.source):,} bytes"

  @property
  def key(self) -> str:
    """A digest of what is seen."""
    digest = hashlib.sha256()
    if isinstance(self.source, bytes):
      digest.update(self.source)
    else:
      path = pathlib.Path(self.source)
      digest.update(f"{path.resolve()}:{path.stat().st_mtime_ns}:{path.stat().st_size}".encode())
    digest.update(repr(self[1:]).encode())
    return digest.hexdigest()

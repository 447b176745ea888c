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
  def missing(self) -> str:
    """What is said where there is no such file."""
    return f"there is no image {self.name}; paths are read from the folder of the data file"

  @property
  def key(self) -> str:
    """A digest of what is seen.

    Raises:
      ImageFault: there is no such file.
    """
    digest = hashlib.sha256()
    if isinstance(self.source, bytes):
      digest.update(self.source)
    else:
      path = pathlib.Path(self.source)
      try:
        found = path.stat()
      except FileNotFoundError:
        raise ImageFault(self.missing) from None
      digest.update(f"{path.resolve()}:{found.st_mtime_ns}:{found.st_size}".encode())
    digest.update(repr(self[1:]).encode())
    return digest.hexdigest()

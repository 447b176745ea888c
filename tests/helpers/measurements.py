"""Measurements made by hand."""

import dataclasses

import numpy as np

from opd_jax.analysis.measurements import Measurements


def by_hand(lengths, H: int, **fields) -> Measurements:
  """Measurements of rows of these lengths; what is not given is 0 or false, every token known."""
  mask = np.arange(H) < np.array(lengths)[:, None]
  number, flag = np.zeros(mask.shape), np.zeros(mask.shape, bool)
  given = {
    f.name: flag if f.name in ("right", "decisive", "off_path") else number for f in dataclasses.fields(Measurements)
  }
  given |= {"mask": mask, "known": mask, "correct": np.zeros(len(lengths), bool), "response": number.astype(int)}
  return Measurements(**given | {name: np.asarray(value) for name, value in fields.items()})  # pyright: ignore[reportArgumentType]

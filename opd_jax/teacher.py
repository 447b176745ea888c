"""Who teaches: an external model that never changes.

A teacher is its parameters on the mesh and the configuration that reads them. It is kept in the compute type, since
nothing is ever added to it.
"""

import pathlib

import jax
import jax.numpy as jnp

from opd_jax import mesh as meshes
from opd_jax.models import decoder, hf
from opd_jax.types import Params


def external(directory: pathlib.Path, cfg: decoder.DecoderConfig, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> Params:
  """Reads a teacher's weights straight into their shards."""
  return hf.read(directory, cfg, meshes.parameter_shardings(mesh, cfg), dtype=dtype)

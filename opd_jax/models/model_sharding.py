"""How a model of given sizes lies on the mesh: its parameters' shardings, and what an axis does not divide.

The mesh itself, its axes and the table of layouts are in runtime/mesh.py, which knows no model.
"""

import dataclasses

import jax
from jax.sharding import Mesh

from opd_jax.models import decoder
from opd_jax.runtime import mesh as meshes


def parameter_shardings(mesh: Mesh, cfg: decoder.DecoderConfig, layout: str = "train"):
  """The sharding of every parameter of a model of these sizes, as a pytree, without its weights."""
  is_shape = lambda x: isinstance(x, tuple)
  arrays = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, "float32"), decoder.shapes(cfg), is_leaf=is_shape)
  return meshes.shardings(mesh, arrays, layout)


def uneven(mesh: Mesh, name: str, cfg: decoder.DecoderConfig) -> list[str]:
  """List what an axis does not divide, so that each of its devices does all of it, with sizes that would divide it.

  Returns one sentence for each of the heads, columns, ids and experts concerned.
  """
  tensor = mesh.shape["tensor"]
  notes = []
  parts = {"query heads": cfg.heads, "feed-forward columns": cfg.ff_width, "vocabulary ids": cfg.vocab}
  if not shares_heads(mesh, cfg) and cfg.kv_heads % tensor:
    parts["key/value heads"] = cfg.kv_heads
  if cfg.delta is not None:
    parts |= {
      "key heads of the delta rule": cfg.delta.key_heads,
      "value heads of the delta rule": cfg.delta.value_heads,
    }
  if cfg.moe and cfg.moe.experts % mesh.shape["expert"]:
    notes.append(
      f"config.mesh.expert={mesh.shape['expert']} does not divide the {cfg.moe.experts} experts of {name}, so each "
      "device has all of them"
    )
  for what, n in parts.items():
    if n % tensor:
      divisors = [t for t in range(1, 2 * tensor + 1) if n % t == 0]
      below = max(t for t in divisors if t <= tensor)
      above = [t for t in divisors if t > tensor][:1]
      notes.append(
        f"config.mesh.tensor={tensor} does not divide the {n} {what} of {name}, so each device works on all of them; "
        f"{' or '.join(map(str, [below, *above]))} would split them"
      )
  return notes


def shares_heads(mesh: Mesh, cfg: decoder.DecoderConfig) -> bool:
  """Tell whether the tensor axis is a multiple of the key/value heads, which its devices then share as copies."""
  tensor = mesh.shape["tensor"]
  return tensor > cfg.kv_heads and tensor % cfg.kv_heads == 0 and cfg.heads % tensor == 0


def for_rollout(mesh: Mesh, cfg: decoder.DecoderConfig) -> decoder.DecoderConfig:
  """The model with a key/value head for each device of the tensor axis, where it has fewer; tokens are the same."""
  return dataclasses.replace(cfg, kv_heads=mesh.shape["tensor"]) if shares_heads(mesh, cfg) else cfg

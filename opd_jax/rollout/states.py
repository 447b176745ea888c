"""Which nodes of a tree of rollouts are one state: by a key, by hidden states, at random, or none.

A node's state is kept on the node (rollout/branch.py): a hashable key, a unit vector, or None, which is like no other.
"""

import dataclasses
import functools
import math
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opd_jax.models import decoder, kernels, lookup, moe
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.rollout.branch import Branches
from opd_jax.types import Batch, Params

KINDS = ("hidden", "key", "none", "random")
ROUNDING = 1e-6  # of a cosine


@dataclasses.dataclass(frozen=True)
class SameState:
  """The rule by which nodes of a tree are one state.

  Attributes:
    kind: one of KINDS.
    kappa: of hidden: the least cosine of one state.
    rate: of random: the share of the nodes that join another.
    seed: of random.
  """

  kind: str
  kappa: float = 1.0
  rate: float = 0.0
  seed: int = 0

  @property
  def least(self) -> float:
    """The least similarity of one state."""
    return self.kappa if self.kind == "hidden" else 1.0

  def similarity(self, tree: Branches, new: Sequence[int], where: tuple[int, ...]) -> Float[np.ndarray, "new nodes"]:
    """Tell how similar new nodes are to all of a tree's; the prompt is like none.

    Args:
      where: numbers that random joins follow besides the seed: the step, the layer, the prompt.
    """
    out = np.full((len(new), len(tree.nodes)), -np.inf)
    rng = np.random.default_rng((self.seed % 2**32, *where))
    for row, node in zip(out, new, strict=True):
      if self.kind == "random" and rng.random() < self.rate:
        may = [i for i in range(1, node) if tree.classes.may_join(i, node)]
        row[rng.choice(may) if may else 0] = 1.0 if may else -np.inf
      elif tree.nodes[node].state is not None:
        row[1:node] = [alike(tree.nodes[node].state, tree.nodes[i].state) for i in range(1, node)]
    return out

  def to_parent(self, tree: Branches) -> Float[np.ndarray, " nodes"] | None:
    """Tell how similar every node's state is to its parent's, 0 where the parent is the prompt; None where states are no vectors."""
    if self.kind != "hidden":
      return None
    of_parent = [tree.nodes[node.parent].state if node.parent > 0 else None for node in tree.nodes]
    return np.array([0.0 if s is None else alike(node.state, s) for node, s in zip(tree.nodes, of_parent, strict=True)])


def alike(a: Hashable | np.ndarray, b: Hashable | np.ndarray) -> float:
  """Compute the similarity of two states: the cosine of unit vectors, 1 of equal keys, -inf of others.

  The cosine of two readings of one text is 1 but for rounding, and taken for 1: what a novelty gate leaves of its step would be
  rounding alone, which a group's standard deviation makes as large as any advantage.
  """
  if a is None or b is None:
    return -math.inf
  if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
    cosine = float(a @ b)
    return 1.0 if cosine > 1 - ROUNDING else cosine
  return 1.0 if a == b else -math.inf


def unit(x: Float[np.ndarray, "rows D"]) -> Float[np.ndarray, "rows D"]:
  """Divide each row by its length."""
  return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)


def last_hidden(
  params: Params,
  batch: Batch,
  *,
  cfg: DecoderConfig,
  mesh: jax.sharding.Mesh,
  attention: str,
  dtype: DTypeLike,
  layout: str,
) -> Float[Array, "rows D"]:
  """Compute a model's last hidden state behind each text, fp32.

  Args:
    batch: left-padded texts; the keys of a `Batch` for prompts.
    attention, layout: of the model, see models/kernels.py and runtime/mesh.py.
  """
  hidden = decoder.hidden(
    params,
    cfg,
    batch.prompt,
    batch.prompt_mask,
    dtype=dtype,
    attention_fn=functools.partial(kernels.attend, attention, mesh),
    moe_fn=functools.partial(moe.feed_forward, mesh),
    embed_fn=functools.partial(lookup.embed, mesh, layout),
  )
  return hidden[:, -1].astype(jnp.float32)

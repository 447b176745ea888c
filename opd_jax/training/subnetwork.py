"""Sparse subnetworks: which coordinates of the weights are trained (arXiv:2606.13657), and which others are a fair control.

    visible      those that another run moved by more than a threshold, both ends rounded to bfloat16: the paper's mask
    top          as many, those that it moved most, in fp32
    lowest       as many of every tensor, of the smallest |w| before training
    stratified   random, as many of every tensor and magnitude (a quarter of an octave of |w|)
    layer        random, as many of every layer
    tensor       random, as many of every tensor of every layer
    global       random, as many

Whether a coordinate moves visibly depends on its magnitude first, since bfloat16's steps grow with it: half a step at 0.02 is
6e-5, above what hundreds of updates of 1e-6 add up to. `stratified` and `lowest` are the controls that know this; `global` does not.

"As many" are those of `visible`, or, where a density is given, so many in all, divided as `visible` is where another run is named
and evenly where none is. Embedding and output head, norms and biases may be left out: trained or frozen as a whole, and not counted then.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.runtime import mesh as meshes
from opd_jax.training import masks, selection
from opd_jax.training.selection import Tensors
from opd_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Subnetwork:
  """How the coordinates are chosen; see `config.subnetwork` for the fields."""

  mask: str
  density: float = 0.0
  threshold: float = 1e-5
  mantissa: int = 7
  embeddings: str = "masked"
  norms: str = "masked"

  @classmethod
  def from_config(cls, config: Config) -> "Subnetwork | None":
    """Reads `config.subnetwork`; None: all coordinates are trained."""
    c = config.subnetwork
    if c.mask == "none":
      return None
    return cls(c.mask, c.density, c.threshold, c.mantissa, c.embeddings, c.norms)

  @property
  def needs_other(self) -> bool:
    """Tells whether another run has to be named."""
    return self.mask in ("visible", "top", "stratified") or not self.density

  def find(self, mesh: jax.sharding.Mesh, params: Params, other: Params | None, key: jax.Array) -> Params:
    """Finds the mask of a model, packed, with the layout that the model has.

    Args:
      params: before training, fp32.
      other: after another run that began with them; None: no other run is named.
      key: of random choices.

    Raises:
      InputError: no coordinate would be trained.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    ways = [self._way(path[-1].key) for path, _ in leaves]
    chosen = [i for i, way in enumerate(ways) if way == "masked"]
    tensors = Tensors([leaves[i][1] for i in chosen], tuple("layers" in _names(leaves[i][0]) for i in chosen))
    after = None if other is None else [jax.tree.leaves(other)[i] for i in chosen]
    found = dict(zip(chosen, self._choose(tensors, after, key), strict=True)) if chosen else {}

    def of(i: int, a: Array) -> Array:
      return found[i] if i in found else jnp.full_like(a, ways[i] == "trained", bool)

    marks = tree.unflatten([of(i, a) for i, (_, a) in enumerate(leaves)])
    layout = meshes.shardings(mesh, jax.eval_shape(masks.full, params))
    packed = jax.tree.map(lambda mark, sharding: _packing(sharding)(mark), marks, layout)
    if not sum(trained for trained, _ in masks.counts(packed, params).values()):
      raise InputError(self._nothing(other is not None))
    return packed

  def _way(self, name: str) -> str:
    """Tells whether a parameter is masked, trained or frozen."""
    return {"embeddings": self.embeddings, "norms": self.norms}.get(masks.part(name), "masked")

  def _choose(self, tensors: Tensors, after: list[Array] | None, key: jax.Array) -> list[Array]:
    """Marks the coordinates of the masked tensors that are trained."""
    before = tensors.arrays
    visible = None
    if after is not None:
      visible = selection.moved_visibly(before, after, self.threshold, self.mantissa)
      if self.mask == "visible":
        return visible
    if self.mask == "stratified":
      tensors = tensors.by_magnitude()
    groups, sizes = self._groups(tensors), tensors.sizes()
    profile = sizes if visible is None else tensors.count(visible)
    total = round(self.density * int(sizes.sum())) if self.density else int(profile.sum())
    profile, sizes = (np.bincount(groups, counts).astype(np.int64) for counts in (profile, sizes))
    quota = selection.apportion(profile, sizes, total)
    scores = [selection.at_random(before, key)]
    if self.mask == "top":
      assert after is not None
      scores = [selection.by_distance(before, after), *scores]
    elif self.mask == "lowest":
      scores = [selection.by_smallness(before), *scores]
    return selection.largest(tensors, scores, groups, quota)

  def _groups(self, tensors: Tensors) -> Int[np.ndarray, " C"]:
    """Numbers the group of every cell, within which coordinates are chosen."""
    cells = tensors.cells
    if self.mask in ("top", "global"):
      return np.zeros(sum(L * S for L, S in cells), np.int64)
    if self.mask == "layer":
      L = max((L for (L, _), stacked in zip(cells, tensors.stacked, strict=True) if stacked), default=0)
      own = [
        np.arange(n) if stacked else [L + i]
        for i, ((n, _), stacked) in enumerate(zip(cells, tensors.stacked, strict=True))
      ]
      return np.unique(np.concatenate(own), return_inverse=True)[1]
    return np.arange(sum(L * S for L, S in cells))

  def _nothing(self, has_other: bool) -> str:
    if has_other and not (self.density and self.mask != "visible"):
      return (
        f"No coordinate of config.subnetwork.mask_from moved by more than config.subnetwork.threshold={self.threshold:g} once rounded to "
        f"{self.mantissa} bits, so that nothing would be trained; lower the threshold, raise subnetwork.mantissa, or name another run."
      )
    return f"config.subnetwork.density is {self.density:g}, with which no coordinate would be trained; raise it."


def check(config: Config) -> None:
  """Refuses a mask that lacks its source or density, and keys of a mask where there is none.

  Raises:
    InputError: names the key.
  """
  c, rule = config.subnetwork, Subnetwork.from_config(config)
  if rule is None:
    unused = {"mask_from": "", "density": 0.0, "embeddings": "masked", "norms": "masked"}
    if key := next((key for key, value in unused.items() if c[key] != value), None):
      raise InputError(
        f"config.subnetwork.mask is 'none', and config.subnetwork.{key} is {c[key]!r}; choose a mask, or leave the key as it is by default."
      )
    return
  if config.lora.rank or config.lora.path:
    raise InputError(
      f"config.subnetwork.mask is {c.mask!r}, which chooses among the weights of the model, and config.lora trains an adapter beside them; "
      "set lora.rank=0 and no lora.path, or subnetwork.mask='none'."
    )
  if rule.needs_other and not c.mask_from:
    mend = "" if c.mask in ("visible", "top", "stratified") else ", or say how many in config.subnetwork.density"
    raise InputError(
      f"config.subnetwork.mask is {c.mask!r}, and config.subnetwork.mask_from names no run to find it from; name its workdir or model "
      f"directory{mend}."
    )
  if c.mask == "visible" and c.density:
    raise InputError(
      f"config.subnetwork.density is {c.density:g}, and of the mask 'visible' it is what moved; set it to 0, or take another mask ('top')."
    )


def lines(mask: Params, params: Params, config: Config, model: str) -> Iterator[str]:
  """Says of a model's mask how dense it is, in all and by part.

  Args:
    mask: packed.
    params: arrays or their shapes.
    model: its name, in the line; "" for none.
  """
  parts = masks.counts(mask, params)
  trained, size = (sum(numbers) for numbers in zip(*parts.values(), strict=True))
  names = {"norms": "norms and biases"}
  listed = ", ".join(f"{names.get(name, name)} {some / of:.2%} of {of:,}" for name, (some, of) in parts.items())
  of_model = f" of {model}" if model else ""
  yield f"  mask {config.subnetwork.mask}{of_model}: {trained:,} of {size:,} coordinates are trained, {trained / size:.2%} ({listed})"


@functools.lru_cache(maxsize=1024)
def _packing(sharding: jax.sharding.Sharding) -> Callable[[Array], Array]:
  return jax.jit(masks.pack, out_shardings=sharding)


def _names(path: tuple) -> list[str]:
  return [key.key for key in path]

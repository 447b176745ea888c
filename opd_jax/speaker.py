"""A model that answers lists of prompts, so many at a time: what evaluations and conversations are made of."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import hosts
from opd_jax import mesh as meshes
from opd_jax.data import pipeline
from opd_jax.models import decoder, kernels, moe
from opd_jax.programs import Kept, Shape, record
from opd_jax.rollout import cache, sample
from opd_jax.rollout.segments import Segments
from opd_jax.types import Batch, Params


class Speech(NamedTuple):
  """Responses: k to each prompt, in the prompts' order."""

  texts: list[str]  # without the stop token
  lengths: np.ndarray  # int[prompts k], tokens, the stop token included
  ended: np.ndarray  # bool[prompts k], by a stop token


@dataclasses.dataclass(frozen=True)
class Voice:
  """What is static about a model that speaks."""

  cfg: decoder.DecoderConfig
  sampling: sample.Sampling
  segments: Segments
  attention: str  # see models/kernels.py
  mesh: jax.sharding.Mesh
  dtype: Any

  def lower(
    self, params: Params, batch: int, width: int, max_tokens: int, k: int, numbered: bool = False
  ) -> jax.stages.Lowered:
    """The program that answers `batch` prompts of `width` tokens k times each, for parameters that lie as these do."""
    mesh = self.mesh
    run = functools.partial(
      sample.rollout,
      cfg=meshes.for_rollout(mesh, self.cfg),
      sampling=self.sampling,
      horizon=max_tokens,
      n=k,
      dtype=self.dtype,
      segments=self.segments,
      experts=functools.partial(moe.feed_forward, mesh),
      drawn=sample.draw_on(mesh, meshes.ROWS, "tensor"),
      attend=functools.partial(kernels.attend, self.attention, mesh),
      lay_out=lambda params, cfg, dtype: meshes.constrain(mesh, cache.lay_out(params, cfg, dtype), "rollout"),
    )
    row, everywhere = meshes.rows(mesh), meshes.replicated(mesh)
    spec = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    prompts = Batch(
      prompt=jax.ShapeDtypeStruct((batch, width), jnp.int32, sharding=row),  # pyright: ignore[reportArgumentType]
      prompt_mask=jax.ShapeDtypeStruct((batch, width), jnp.bool_, sharding=row),  # pyright: ignore[reportArgumentType]
      number=jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=row) if numbered else None,  # pyright: ignore[reportArgumentType]
    )
    params = jax.tree.map(lambda a: spec(a, a.sharding), params)
    limit = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    key = spec(jax.eval_shape(lambda: jax.random.key(0)), everywhere)
    return jax.jit(run, out_shardings=row).lower(params, prompts, key, limit)


class Speaker:
  """One model's programs by prompt width; a width is compiled when it is first needed, or taken from `kept`.

  Args:
    batch: prompts per call; rounded up to what the mesh's row shards divide.
    widths: rising, tokens; the last holds every prompt.
    max_tokens: of a response.
    k: responses to each prompt.
    numbered: prompts come with numbers, see `__call__`, and each runs at the width that holds it.
    kept: compiled programs, which runs of one process can share, see programs.py.

  Attributes:
    compiled: one programs.record per program.
  """

  def __init__(
    self,
    voice: Voice,
    tokenizer,
    *,
    batch: int,
    widths: Sequence[int],
    max_tokens: int,
    k: int = 1,
    name: str = "evaluate",
    numbered: bool = False,
    kept: Kept | None = None,
  ):
    shards = meshes.row_shards(voice.mesh)
    self.batch, self.widths, self.max_tokens, self.k = -(-batch // shards) * shards, tuple(widths), max_tokens, k
    self._voice, self._tokenizer, self._name, self._kept = voice, tokenizer, name, {} if kept is None else kept
    self._numbered = numbered
    self._mine: dict[Any, Any] = {}
    self.compiled: list[dict] = []

  def prepare(self, params: Params, width: int):
    """The program of a width, compiled for parameters that lie as these do."""
    lies = (jax.tree.structure(params), *((a.dtype, a.sharding) for a in jax.tree.leaves(params)))
    if (width, lies) not in self._mine:
      began = time.perf_counter()
      key = (self._name, self._voice, self.max_tokens, self.k, self.batch, width, self._numbered, lies)
      if key not in self._kept:
        lowered = self._voice.lower(params, self.batch, width, self.max_tokens, self.k, self._numbered)
        self._kept[key] = lowered.compile()
      self._mine[width, lies] = program = self._kept[key]
      self.compiled.append(record(self._name, Shape(width, self.max_tokens), time.perf_counter() - began, program))
    return self._mine[width, lies]

  def __call__(
    self, params: Params, ids: Sequence[Sequence[int]], key: jax.Array, numbers: Sequence[int] | None = None
  ) -> Speech:
    """Answers every prompt k times; each process gets all of the responses.

    Args:
      numbers: of the prompts, from 0: of a `numbered` speaker. What is said to a prompt then depends on the prompt, the
        key and its number, and not on which others are asked beside it. Without them a batch has the key of its place,
        and a row that of its place in the batch.
    """
    texts: list[str] = [""] * (len(ids) * self.k)
    lengths, ended = np.zeros(len(texts), np.int64), np.zeros(len(texts), bool)
    sampling = self._voice.sampling
    for width, places in self._by_width(ids):
      program = self.prepare(params, width)
      for first in range(0, len(places), self.batch):
        part = places[first : first + self.batch]
        padded = part + part[:1] * (self.batch - len(part))
        batch = pipeline.pad([ids[i] for i in padded], width, sampling.pad_id)
        if numbers is not None:
          batch = dataclasses.replace(batch, number=np.array([numbers[i] for i in padded], np.int32))  # pyright: ignore[reportArgumentType]
        batch = hosts.place(batch, meshes.rows(self._voice.mesh))
        said = program(
          params, batch, jax.random.fold_in(key, first) if numbers is None else key, np.int32(self.max_tokens)
        )
        said = hosts.whole(dataclasses.replace(said, behavior_logprob=said.ended))  # nobody asks for it here
        rows = len(part) * self.k
        at = (np.array(part)[:, None] * self.k + np.arange(self.k)).reshape(-1)
        for i, text in zip(
          at, decode(self._tokenizer, said.response[:rows], said.mask[:rows], sampling.stop_ids), strict=True
        ):
          texts[i] = text
        lengths[at], ended[at] = said.mask[:rows].sum(axis=1), said.ended[:rows]
    return Speech(texts, lengths, ended)

  def _by_width(self, ids: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """Places of the prompts that each width is the first to hold; all of them together where they have no numbers."""
    holds = lambda length: next(w for w in self.widths if w >= length)
    if not self._numbered:
      return [(holds(max(map(len, ids))), list(range(len(ids))))]
    of = [holds(len(row)) for row in ids]
    return [(w, [i for i, wide in enumerate(of) if wide == w]) for w in self.widths if w in of]


def decode(tokenizer, response: np.ndarray, mask: np.ndarray, stop_ids: Sequence[int]) -> list[str]:
  """Text of each row, without the stop token."""
  rows = [[int(t) for t in row[m] if t not in stop_ids] for row, m in zip(response, mask, strict=True)]
  return tokenizer.batch_decode(rows, skip_special_tokens=True)

"""Generation in batches: a model that answers lists of prompts, for evaluations and conversations."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.data import pipeline
from opd_jax.errors import InputError
from opd_jax.models import decoder, kernels, model_sharding, moe
from opd_jax.rollout import cache, prefix, sample
from opd_jax.rollout.segments import Segments
from opd_jax.runtime import hosts
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import ProgramCache, StepShape, record
from opd_jax.tasks.problem import Response
from opd_jax.types import Batch, Images, Params, Rollout


class Completions(NamedTuple):
  """The responses to a list of prompts, k to each, in the prompts' order."""

  texts: list[str]  # with the marks of thoughts, without the stop token
  lengths: np.ndarray  # int[prompts k], tokens, the stop token included
  ended: np.ndarray  # bool[prompts k], by a stop token
  prompt_ends: Sequence[str] = ()  # of each response's prompt the last tokens, as text; (): unknown

  @property
  def responses(self) -> list[Response]:
    """What verifiers are given."""
    ends = self.prompt_ends or [""] * len(self.texts)
    return [Response(*each) for each in zip(self.texts, map(bool, self.ended), ends, strict=True)]


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
  """The static settings of a model that generates: its shape, how it samples, and on which devices."""

  cfg: decoder.DecoderConfig
  sampling: sample.Sampling
  segments: Segments
  attention: str  # see models/kernels.py
  mesh: jax.sharding.Mesh
  dtype: Any

  def rollout(
    self,
    params: Params,
    batch: Batch,
    key: jax.Array,
    limit: jax.Array,
    *,
    response_len: int,
    n: int = 1,
    expand: jax.Array | None = None,
  ) -> Rollout:
    """Sample n responses to every prompt on the mesh, at most `limit` <= `response_len` tokens long.

    A pure function of its arrays, to be compiled by the caller; see `sample.rollout`.
    """
    return sample.rollout(params, batch, key, limit, response_len=response_len, n=n, expand=expand, **self._settings)

  def rollout_and_prefix(
    self,
    params: Params,
    before: Batch | prefix.Prefix,
    key: jax.Array,
    limit: jax.Array,
    expand: jax.Array,
    *,
    response_len: int,
  ) -> tuple[Rollout, prefix.Prefix]:
    """Sample from chosen prompts or prefixes on the mesh, and keep what is needed to go on; see `prefix.rollout_and_prefix`."""
    return prefix.rollout_and_prefix(params, before, key, limit, expand, response_len=response_len, **self._settings)

  @property
  def _settings(self) -> dict[str, Any]:
    mesh = self.mesh

    def prepare_decode_params(params, cfg, dtype):
      return meshes.constrain(mesh, cache.prepare_decode_params(params, cfg, dtype), "rollout")

    return {
      "cfg": model_sharding.for_rollout(mesh, self.cfg),
      "sampling": self.sampling,
      "dtype": self.dtype,
      "prepare_decode_params": prepare_decode_params,
      "segments": self.segments,
      "attention_fn": functools.partial(kernels.attend, self.attention, mesh),
      "moe_fn": functools.partial(moe.feed_forward, mesh),
      "sample_fn": sample.draw_on(mesh, meshes.ROWS, "tensor"),
    }

  def lower(
    self,
    params: Params,
    batch: int,
    prompt_len: int,
    response_len: int,
    n: int,
    numbered: bool = False,
    images: Images | None = None,
  ) -> jax.stages.Lowered:
    """Lower the program that samples n responses to each of `batch` prompts.

    Args:
      params: arrays, or their shapes and shardings, that the program's parameters will lie as.
      prompt_len, response_len: the compiled widths, tokens.
      numbered: prompts come with numbers, see `Generator.__call__`.
      images: the shapes of the prompts' images; None: there are none.
    """
    if not self.cfg.causal:
      raise InputError(NOT_CAUSAL)
    return lower_rollout(self.rollout, self.mesh, params, batch, prompt_len, response_len, n, numbered, images)


NOT_CAUSAL = (
  "The model is a masked diffusion model, which does not answer token by token; it is trained, evaluated and exported by a config of the recipe "
  "'diffusion', such as configs/d_opsd.py, and `python -m opd_jax.view --workdir=DIR` shows answers of a run of it."
)


def lower_rollout(
  rollout: Callable[..., Rollout],
  mesh: jax.sharding.Mesh,
  params: Params,
  batch: int,
  prompt_len: int,
  response_len: int,
  n: int,
  numbered: bool = False,
  images: Images | None = None,
) -> jax.stages.Lowered:
  """Lower the program that samples n responses to each of `batch` prompts; arguments as of `GeneratorConfig.lower`.

  Args:
    rollout: samples, with arguments as of `GeneratorConfig.rollout`.
  """
  rows, everywhere = meshes.rows(mesh), meshes.replicated(mesh)

  def abstract(shape, dtype, sharding) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  prompts = Batch(
    prompt=abstract((batch, prompt_len), jnp.int32, rows),
    prompt_mask=abstract((batch, prompt_len), jnp.bool_, rows),
    number=abstract((batch,), jnp.int32, rows) if numbered else None,
    images=images,
  )
  params = jax.tree.map(lambda a: abstract(a.shape, a.dtype, a.sharding), params)
  limit = abstract((), jnp.int32, everywhere)
  key = abstract((), jax.eval_shape(lambda: jax.random.key(0)).dtype, everywhere)
  program = functools.partial(rollout, response_len=response_len, n=n)
  return jax.jit(program, out_shardings=rows).lower(params, prompts, key, limit)


@runtime_checkable
class AnyGeneratorConfig(Protocol):
  """What a `Generator` asks of its config: a `GeneratorConfig`, or rollout.denoise.DenoiserConfig."""

  @property
  def sampling(self) -> sample.Sampling: ...

  @property
  def mesh(self) -> jax.sharding.Mesh: ...

  @property
  def lower(self) -> Callable[..., jax.stages.Lowered]:
    """Lower the program that answers, see `GeneratorConfig.lower`."""
    ...


@runtime_checkable
class SeenImages(Protocol):
  """How a model sees the images of prompts: a training.prompt_images.ModelImages."""

  @property
  def sizes(self) -> Any:
    """What is static about them; its `abstract` makes their shapes."""
    ...

  @property
  def dtype(self) -> Any: ...

  @property
  def place(self) -> Callable[..., Images]:
    """Put the images of prompts into arrays on the host."""
    ...


class Generator:
  """A model that answers lists of prompts, by one compiled program per prompt length.

  A program is compiled when it is first needed, or taken from `program_cache`.

  Args:
    batch: prompts per call; rounded up to what the mesh's row shards divide.
    prompt_lens: the compiled widths of prompts, ascending, tokens; the last holds every prompt.
    max_tokens: the most tokens of a response.
    k: responses to each prompt.
    name: the name of the programs in `compiled`.
    numbered: prompts come with numbers, see `__call__`, and each runs at the width that holds it.
    images: how the model sees the images of prompts; None: these have none.
    program_cache: compiled programs, which runs of one process can share, see programs.py.

  Attributes:
    config: how it generates.
    compiled: one programs.record per program.
  """

  def __init__(
    self,
    generator_config: AnyGeneratorConfig,
    tokenizer,
    *,
    batch: int,
    prompt_lens: Sequence[int],
    max_tokens: int,
    k: int = 1,
    name: str = "evaluate",
    numbered: bool = False,
    images: SeenImages | None = None,
    program_cache: ProgramCache | None = None,
  ):
    shards = meshes.row_shards(generator_config.mesh)
    self.batch = math.ceil(batch / shards) * shards
    self.prompt_lens = tuple(prompt_lens)
    self.max_tokens = max_tokens
    self.k = k
    self.compiled: list[dict] = []
    self.config = generator_config
    self._tokenizer = tokenizer
    self._name = name
    self._numbered = numbered
    self._images = images
    self._program_cache = {} if program_cache is None else program_cache
    self._programs: dict[Any, Any] = {}

  def prepare(self, params: Params, prompt_len: int):
    """Return the program of a prompt length, compiled for parameters that are sharded as these are."""
    layout = (jax.tree.structure(params), *((a.dtype, a.sharding) for a in jax.tree.leaves(params)))
    if (prompt_len, layout) not in self._programs:
      began = time.perf_counter()
      seen = self._images and self._images.sizes
      key = (self._name, self.config, self.max_tokens, self.k, self.batch, prompt_len, self._numbered, seen, layout)
      if key not in self._program_cache:
        self._program_cache[key] = self.lower(params, prompt_len).compile()
      self._programs[prompt_len, layout] = program = self._program_cache[key]
      shape = StepShape(prompt_len, self.max_tokens)
      self.compiled.append(record(self._name, shape, time.perf_counter() - began, program))
    return self._programs[prompt_len, layout]

  def lower(self, params: Params, prompt_len: int) -> jax.stages.Lowered:
    """Lower the program of a prompt length for parameters that lie as these, which may be their shapes alone."""
    sizes = (self.batch, prompt_len, self.max_tokens, self.k, self._numbered)
    if self._images is None:
      return self.config.lower(params, *sizes)
    rows = meshes.rows(self.config.mesh)
    seen = self._images.sizes.abstract(self.batch, prompt_len, self._images.dtype, rows)
    return self.config.lower(params, *sizes, seen)

  def __call__(
    self,
    params: Params,
    ids: Sequence[Sequence[int]],
    key: jax.Array,
    numbers: Sequence[int] | None = None,
    images: Sequence[Sequence[Any]] | None = None,
  ) -> Completions:
    """Sample k responses to every prompt; each process gets all of the responses.

    Args:
      ids: token ids of the prompts.
      numbers: for a `numbered` generator, a number of each prompt, from 0. The responses to a prompt then depend on the
        prompt, the key and its number, and not on the other prompts of the call. Without them a batch has the key of
        its place, and a row that of its place in the batch.
      images: those of each prompt, for a generator that sees them.
    """
    texts: list[str] = [""] * (len(ids) * self.k)
    lengths = np.zeros(len(texts), np.int64)
    ended = np.zeros(len(texts), bool)
    sampling = self.config.sampling
    for prompt_len, indices in self._by_prompt_len(ids):
      program = self.prepare(params, prompt_len)
      for first in range(0, len(indices), self.batch):
        part = indices[first : first + self.batch]
        padded = part + part[:1] * (self.batch - len(part))
        batch = pipeline.pad([ids[i] for i in padded], prompt_len, sampling.pad_id)
        if numbers is not None:
          number: Any = np.array([numbers[i] for i in padded], np.int32)
          batch = dataclasses.replace(batch, number=number)
        if self._images is not None:
          of_rows = [images[i] if images else () for i in padded]
          batch = dataclasses.replace(batch, images=self._images.place(batch.prompt, batch.prompt_mask, of_rows))
        batch = hosts.to_global(batch, meshes.rows(self.config.mesh))
        batch_key = jax.random.fold_in(key, first) if numbers is None else key
        rollout = program(params, batch, batch_key, np.int32(self.max_tokens))
        # The log-probabilities are not used, so something smaller travels in their place.
        rollout = hosts.all_gather_to_host(dataclasses.replace(rollout, behavior_logprob=rollout.ended))
        rows = slice(len(part) * self.k)
        response, mask = rollout.response[rows], rollout.mask[rows]
        at = (np.array(part)[:, None] * self.k + np.arange(self.k)).reshape(-1)
        for i, text in zip(at, decode(self._tokenizer, response, mask, sampling.stop_ids), strict=True):
          texts[i] = text
        lengths[at] = mask.sum(axis=1)
        ended[at] = rollout.ended[rows]
    ends = prompt_ends(self._tokenizer, ids)
    return Completions(texts, lengths, ended, [end for end in ends for _ in range(self.k)])

  def _by_prompt_len(self, ids: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """Group prompts, by index, under the first compiled width that holds them; one group where they have no numbers."""
    fit = lambda length: next(prompt_len for prompt_len in self.prompt_lens if prompt_len >= length)
    if not self._numbered:
      return [(fit(max(map(len, ids))), list(range(len(ids))))]
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(ids):
      groups.setdefault(fit(len(row)), []).append(i)
    return sorted(groups.items())


def decode(tokenizer, response: np.ndarray, mask: np.ndarray, stop_ids: Sequence[int]) -> list[str]:
  """Decode each row to text, without stop tokens and padding; other special tokens stay: they may mark thoughts."""
  left_out = {*stop_ids, getattr(tokenizer, "pad_token_id", None)}
  rows = [[int(t) for t in row[m] if int(t) not in left_out] for row, m in zip(response, mask, strict=True)]
  return tokenizer.batch_decode(rows, skip_special_tokens=False)


def prompt_ends(tokenizer, ids: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
  """Decode the end of every prompt, where a chat template may have opened a thought."""
  ends = [tuple(map(int, row[-END:])) for row in ids]
  texts = {end: tokenizer.decode(list(end), skip_special_tokens=False) for end in dict.fromkeys(ends)}
  return [texts[end] for end in ends]


END = 32  # tokens

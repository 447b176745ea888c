"""What a model reads of the nodes of a tree of rollouts (rollout/branch.py), so that its hidden states tell which of them are one state.

    the student      prompt and steps so far, as it has written them: the prefixes of the next layer
    or an encoder    a frozen model, in its own tokens: the same as text, without the beginning where it is too long
    or either of them, in the place of all that, a summary of it that the student writes (summaries.py)

A node that is not summarised, because it would be too long a prompt or nothing is written, has no state, and so joins no other.

Dimensions: p prompts, r rows of a prompt in a layer, D model width.
"""

import dataclasses
import functools
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from opd_jax.context.summaries import Summaries
from opd_jax.data import chat, pipeline
from opd_jax.data import tokenizer as tokenizers
from opd_jax.models import roofline
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.models.roofline import Cost
from opd_jax.models.spec import ModelSpec
from opd_jax.rollout.branch import NOBODY, Branches
from opd_jax.rollout.generate import GeneratorConfig
from opd_jax.rollout.layers import Layers
from opd_jax.rollout.states import last_hidden, unit
from opd_jax.runtime import hosts
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.run import Run
from opd_jax.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class HiddenStates:
  """How the hidden states of nodes are found: one program for each layer of the trees.

  Attributes:
    layers: of the trees.
    policy: the student as it generates.
    layout: of the weights that read, see runtime/mesh.py.
    encoder: the frozen model that reads; None: the student.
    encoder_tokens: the most that it reads.
    summaries: what is read in the place of prompt and steps; None: these are.
  """

  layers: Layers
  policy: GeneratorConfig
  layout: str
  encoder: ModelSpec | None = None
  encoder_tokens: int = 0
  summaries: Summaries | None = None

  @property
  def static(self) -> Hashable:
    """All that the programs depend on besides the trees, the student and the mesh."""
    sizes = self.summaries and (self.summaries.max_tokens, self.summaries.max_prompt)
    return self.encoder and (self.encoder.cfg, self.encoder_tokens), self.layout, sizes

  @property
  def reads_prefixes(self) -> bool:
    """Whether the student reads prompts and steps as they are."""
    return self.encoder is None and self.summaries is None

  @property
  def _reader(self) -> DecoderConfig:
    return self.policy.cfg if self.encoder is None else self.encoder.cfg

  @property
  def _longest(self) -> int:
    """The tokens that are read of a node, padded; 0: those of its prefix."""
    if self.encoder is not None:
      return self.encoder_tokens
    return self.summaries.max_tokens if self.summaries else 0

  def _width(self, layer: int, prompt_len: int) -> int:
    return self._longest or prompt_len + (layer + 1) * self.layers.step_tokens

  def lower(
    self, layer: int, params: Params, encoder: Params | None, prompt_len: int
  ) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Lower the programs of a layer, with their names.

    Args:
      params, encoder: arrays of the student and of the encoder, or their shapes and shardings.
      prompt_len: P.
    """
    rows = self.layers.prompts * self.layers.rows[layer]
    if self.summaries is not None:
      yield "summary", self.summaries.lower(self.policy, params, rows)
    settings = {"mesh": self.policy.mesh, "attention": self.policy.attention, "dtype": self.policy.dtype}
    states = functools.partial(last_hidden, cfg=self._reader, layout=self.layout, **settings)
    program = jax.jit(states, out_shardings=meshes.rows(self.policy.mesh))
    texts = self.layers.texts_of(rows, self._width(layer, prompt_len))
    yield "state", program.lower(params if encoder is None else encoder, texts)

  def tokens(self, prompt_len: int) -> int:
    """Count the tokens that go through models, forward, for a step's trees: what is read, and the prompts of summaries."""
    prompt = self.summaries.max_prompt if self.summaries else 0
    widths = [self._width(layer, prompt_len) + prompt for layer in range(len(self.layers.rows))]
    return self.layers.prompts * sum(rows * width for rows, width in zip(self.layers.rows, widths, strict=True))

  def costs(self, prompts: int, prompt_len: int, *, vocab: int, itemsize: int) -> list[Cost]:
    """Count what finding the states of so many trees needs, layer by layer: summaries, and reading."""
    found = []
    for layer, rows in enumerate(self.layers.rows):
      if self.summaries is not None:
        lengths = self.summaries.max_prompt, self.summaries.max_tokens
        found += roofline.rollout(self.policy.cfg, prompts * rows, 1, *lengths, vocab=vocab, itemsize=itemsize)
      found.append(roofline.reading(self._reader, prompts * rows, self._width(layer, prompt_len), itemsize=itemsize))
    return found

  def note(
    self,
    run: Run,
    programs: dict[str, jax.stages.Compiled],
    params: Params,
    prefixes: Batch | None,
    index: Int[np.ndarray, " p"],
    trees: Sequence[Branches],
  ) -> None:
    """Note the states of the nodes of the last layer, unit vectors, and their summaries.

    Args:
      programs: of the layer.
      params: of the student.
      prefixes: prompts and steps so far, a row for each node; None where nothing reads them.
      index: the numbers of the prompts.
    """
    if self.summaries is not None:
      self._summarise(run, self.summaries, programs["summary"], params, index, trees)
    rows, read = self._rows(run, index, trees), prefixes
    if rows is not None:
      read = self._to_devices(run, rows, self._longest, len(trees))
    if self.encoder is not None:
      params = run.frozen.encoder
    hidden = unit(hosts.local_rows(run.wait(programs["state"](params, read))))
    for i, (state, (_, tree, node)) in enumerate(zip(hidden, _frontiers(index, trees), strict=True)):
      if node != NOBODY and (rows is None or rows[i]):
        tree.nodes[node].state = state

  def _summarise(
    self,
    run: Run,
    summaries: Summaries,
    program: jax.stages.Compiled,
    params: Params,
    index: Int[np.ndarray, " p"],
    trees: Sequence[Branches],
  ) -> None:
    """Let the student summarise the nodes of the last layer; a row that none is asked for in has a prompt without steps."""
    prompts, frontiers = run.inputs.train.prompts, list(_frontiers(index, trees))
    parts = [(prompts[number], self._so_far(run, tree, node)) for number, tree, node in frontiers]
    rows = summaries.prompts(parts, run.inputs.tokenizer, run.inputs.rendering)
    width, limit = summaries.max_prompt, summaries.max_tokens
    read = self._to_devices(run, [row[-width:] for row in rows], width, len(trees))
    key = jax.random.key(0)  # greedy: nothing is drawn with it
    written = run.wait(program(params, read, key, np.int32(limit)))
    response, mask = hosts.local_rows((written.response, written.mask))
    for row, tokens, of_row, (_, tree, node) in zip(rows, response, mask, frontiers, strict=True):
      if node != NOBODY and len(row) <= width:
        tree.nodes[node].summary = tokens[of_row].tolist()

  def _rows(self, run: Run, index: Int[np.ndarray, " p"], trees: Sequence[Branches]) -> list[list[int]] | None:
    """Lay out what is read of each node, [] where there is nothing; None where prefixes are read."""
    if self.reads_prefixes:
      return None
    prompts, stop_ids = run.inputs.train.prompts, self.policy.sampling.stop_ids
    if self.summaries is not None:
      nodes = (tree.nodes[node].summary if node != NOBODY else [] for _, tree, node in _frontiers(index, trees))
      rows = [[token for token in summary if token not in stop_ids] for summary in nodes]
      if self.encoder is None:
        return rows
      texts = [run.inputs.tokenizer.decode(row, skip_special_tokens=False) for row in rows]
    else:
      texts = [
        f"{chat.last_text(prompts[number])}\n{self._so_far(run, tree, node)}"
        for number, tree, node in _frontiers(index, trees)
      ]
    return [ids[-self.encoder_tokens :] for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]

  def _to_devices(self, run: Run, rows: Sequence[list[int]], width: int, trees: int) -> Batch:
    filled = [row or [0] for row in rows]  # a row has a token
    return run.to_devices(pipeline.pad(filled, width, 0), len(rows) // trees)

  def _so_far(self, run: Run, tree: Branches, node: int) -> str:
    return "" if node == NOBODY else tree.text(node, run.inputs.tokenizer, self.policy.sampling.stop_ids)

  @functools.cached_property
  def _tokenizer(self) -> Any:
    assert self.encoder is not None
    return tokenizers.load(self.encoder.path)


def _frontiers(index: Int[np.ndarray, " p"], trees: Sequence[Branches]) -> Iterator[tuple[int, Branches, int]]:
  """The rows of a layer: the number of the prompt, its tree, and the node, NOBODY where a row is not used."""
  for number, tree in zip(index, trees, strict=True):
    for node in tree.frontier:
      yield int(number), tree, node

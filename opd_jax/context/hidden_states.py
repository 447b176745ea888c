"""What a model reads of the nodes of a tree of rollouts (rollout/branch.py), so that its hidden states tell which of them are one state.

    the student      prompt and steps so far, as it has written them: the prefixes of the next layer
    or an encoder    a frozen model, in its own tokens: the same as text, without the beginning where it is too long

Dimensions: p prompts, r rows of a prompt in a layer, D model width.
"""

import dataclasses
import functools
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from opd_jax.data import chat, pipeline
from opd_jax.data import tokenizer as tokenizers
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
  """

  layers: Layers
  policy: GeneratorConfig
  layout: str
  encoder: ModelSpec | None = None
  encoder_tokens: int = 0

  @property
  def static(self) -> Hashable:
    """All that the programs depend on besides the trees, the student and the mesh."""
    return self.encoder and (self.encoder.cfg, self.encoder_tokens), self.layout

  @property
  def reads_prefixes(self) -> bool:
    """Whether prompts and steps are read as they are, and not as an encoder's text."""
    return self.encoder is None

  def lower(
    self, layer: int, params: Params, encoder: Params | None, prompt_len: int
  ) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Lower the programs of a layer, with their names.

    Args:
      params, encoder: arrays of the student and of the encoder, or their shapes and shardings.
      prompt_len: P.
    """
    cfg = self.policy.cfg if self.encoder is None else self.encoder.cfg
    settings = {"mesh": self.policy.mesh, "attention": self.policy.attention, "dtype": self.policy.dtype}
    states = functools.partial(last_hidden, cfg=cfg, layout=self.layout, **settings)
    program = jax.jit(states, out_shardings=meshes.rows(self.policy.mesh))
    yield "state", program.lower(params if encoder is None else encoder, self._shapes(layer, prompt_len))

  def _shapes(self, layer: int, prompt_len: int) -> Batch:
    """The shapes of what is read, a row for each node of a layer."""
    found = self.layers.texts(layer + 1, prompt_len)
    return found if self.encoder is None else self.layers.texts_of(len(found.prompt), self.encoder_tokens)

  def tokens(self, prompt_len: int) -> int:
    """Count the tokens that go through the model that reads, forward, for a step's trees."""
    return sum(math.prod(self._shapes(layer, prompt_len).prompt.shape) for layer in range(len(self.layers.rows)))

  def note(
    self,
    run: Run,
    programs: dict[str, jax.stages.Compiled],
    params: Params,
    prefixes: Batch | None,
    index: Int[np.ndarray, " p"],
    trees: Sequence[Branches],
  ) -> None:
    """Note the states of the nodes of the last layer: unit vectors.

    Args:
      programs: of the layer.
      params: of the student.
      prefixes: prompts and steps so far, a row for each node; None where nothing reads them.
      index: the numbers of the prompts.
    """
    read = prefixes
    if self.encoder is not None:
      params, read = run.frozen.encoder, self._texts(run, index, trees)
    hidden = unit(hosts.local_rows(run.wait(programs["state"](params, read))))
    for tree, of_tree in zip(trees, hidden.reshape(len(trees), -1, hidden.shape[1]), strict=True):
      for node, state in zip(tree.frontier, of_tree, strict=True):
        if node != NOBODY:
          tree.nodes[node].state = state

  def _texts(self, run: Run, index: Int[np.ndarray, " p"], trees: Sequence[Branches]) -> Batch:
    """Lay out what the encoder reads, in its own tokens."""
    texts = [
      f"{chat.last_text(run.inputs.train.prompts[number])}\n{self._so_far(run, tree, node) if node != NOBODY else ''}"
      for number, tree in zip(index, trees, strict=True)
      for node in tree.frontier
    ]
    rows = [ids[-self.encoder_tokens :] for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return run.to_devices(pipeline.pad(rows, self.encoder_tokens, 0), len(rows) // len(trees))

  def _so_far(self, run: Run, tree: Branches, node: int) -> str:
    return tree.text(node, run.inputs.tokenizer, self.policy.sampling.stop_ids)

  @functools.cached_property
  def _tokenizer(self) -> Any:
    assert self.encoder is not None
    return tokenizers.load(self.encoder.path)

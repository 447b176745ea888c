"""GraphPO: rollouts branch, equal states share their outcomes, and each step earns a credit of its own (arXiv:2606.18954).

    for step k:
      layer h = 1 .. D:  b_u next steps of every living node u of the frontier, each behind its own prefix                  collect
        z = the hidden state behind a new node's steps, or behind a summary of them that the student writes
        a new node joins the earlier ones whose state is like its own by kappa at least, where classes stay in an order
        a node that joined gets half of its children in the next layer, and the others of its layer get the rest
      r = what the verifier gives each way to a leaf                                                                        learn
      S = outcomes below a node, with weight w those of the other nodes of its state
      A = correctness of a step, among all steps that leave its state, + lambda efficiency of the way to a state
      theta <- AdamW(theta, grad of the mean over steps of the mean over tokens of the surrogate of A)

The credit is objectives/graph_advantage.py's, the trees rollout/branch.py's. Every step is learned from once, behind its own true prefix:
the ways to the leaves are the rows of an update, and a step that several of them share counts in the first alone.

`graph.state` says what is one state: what the task says (key), the student's hidden state at the step's end (hidden), or none, which is a
plain tree (configs/treepo.py); random joins as many at random and is the control. With one layer of whole responses the credit is GRPO's.
lambda is ours, since the paper gives none; so are which pairs are tried first (the most similar), that the prompt joins no other, who gets
the children that are saved, and one loss of the summed advantage, which the text has, where the algorithm box has two.

A tree is grown again from its step's beginning when a run was killed in the middle of it: the same keys draw the same steps.

Dimensions: p prompts, n ways to leaves of each, B = p n rows, L tokens of a step, D layers, H = D L.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from opd_jax import config as configs
from opd_jax import tasks
from opd_jax.context.hidden_states import HiddenStates
from opd_jax.context.summaries import Summaries
from opd_jax.data import chat, pipeline
from opd_jax.errors import InputError
from opd_jax.models import hf, lora
from opd_jax.models.roofline import Cost
from opd_jax.models.spec import ModelSpec
from opd_jax.objectives import graph_advantage
from opd_jax.recipes.opd import OPD, Experience
from opd_jax.rewards.named import verifier_name
from opd_jax.rewards.reward import RewardRecord
from opd_jax.rollout import tree_records
from opd_jax.rollout.branch import NOBODY, Branches, Paths
from opd_jax.rollout.layers import Layers, check_sizes
from opd_jax.rollout.prefix import Prefix
from opd_jax.rollout.states import SameState
from opd_jax.runtime import hosts, keys
from opd_jax.runtime.programs import StepShape
from opd_jax.runtime.run import Run
from opd_jax.training import lowering
from opd_jax.training.distillation import DistillationStep
from opd_jax.training.specs import Specs, architecture
from opd_jax.types import Batch, Credit, FrozenModels, Rollout

KEYS = {
  "graph.widths": ((2, 2, 2), "children of a node, layer by layer; rollouts_per_prompt is their product", "[1, 10**4]"),
  "graph.step_tokens": (64, "longest step, tokens; horizon.max is as many times the number of layers", "[1, 2**20]"),
  "graph.delimiter": (
    "",
    "a step ends with a token that ends with this text; empty: when it has graph.step_tokens",
    "text",
  ),
  "graph.state": (
    "hidden",
    "which nodes are one state: hidden, by the student's hidden states; key, by the task; none: a tree; random: the control",
    "one of hidden, key, none, random",
  ),
  "graph.state_key": (
    "auto",
    "of key: auto, the task's; or the import path, or FILE.py:NAME, of a function (prompt, text so far, ended) -> state or None",
    "text",
  ),
  "graph.kappa": (0.92, "hidden: the least cosine of one state", "[-1, 2]"),
  "graph.encoder": (
    "",
    "hidden: a Hugging Face directory of a frozen model whose hidden states are compared; empty: the student's",
    "path",
  ),
  "graph.encoder_tokens": (
    512,
    "most tokens that it reads, the last ones of prompt and steps, or of a summary",
    "[1, 2**20]",
  ),
  "graph.summary_tokens": (
    0,
    "hidden: longest summary of the steps so far, which the student writes and which is read in their place; 0: none",
    "[0, 2**20]",
  ),
  "graph.summary_template": (
    "{prompt}\n\nA solution so far:\n{response}\n\nSummarise in one or two sentences what it has established and what is left to do. Do not "
    "go on with it.",
    "what the student reads for it; {prompt} and {response}, the steps so far, stand for the two",
    "text",
  ),
  "graph.summary_prompt": (
    4096,
    "longest prompt of a summary, tokens; a node with a longer one joins none",
    "[1, 2**24]",
  ),
  "graph.rate": (0.2, "random: the share of the nodes that join another", "[0, 1]"),
  "graph.weight": (0.7, "w, of the outcomes of a state's other nodes", "[0, 1]"),
  "graph.efficiency": (0.1, "lambda, of the advantage of short ways to a state", "[0, 10**6]"),
  "graph.novelty": (True, "a step to a state like the one before counts for less (needs hidden)", "True or False"),
  "graph.halve": (True, "nodes that joined a state get half of their children, and others the rest", "True or False"),
  "graph.prefixes": (
    "cached",
    "how a layer goes on from the one before: cached, from its keys and values; or recomputed, by reading prompt and steps again",
    "one of cached, recomputed",
  ),
  "graph.length_penalty": (
    0.0,
    "control: taken from a reward for a response of horizon.max tokens, in proportion",
    "[0, 10**6]",
  ),
}


class Graph(OPD):
  """The loop above; the update is a policy gradient's, with an advantage for each token."""

  reads_images = False
  cuts_rollouts = False  # the horizon is always full

  def __init__(self, specs: Specs):
    super().__init__(specs)
    _check(specs)
    self._trees: dict[int, list[Branches]] = {}  # by step, those of this process's prompts

  @functools.cached_property
  def step(self) -> DistillationStep:
    """The computations that are compiled, but for those of a layer."""
    step = DistillationStep.from_specs(self.specs)
    return dataclasses.replace(step, token_credit=True, sampling=dataclasses.replace(step.sampling, delimiters=()))

  # A step.

  def collect(self, run: Run, step: int) -> Experience:
    limit = self.config.horizon.max
    shape = self._shape(run, step, limit)
    prompts, index = self._prompts(run, step)
    ids = [run.inputs.train.ids[i] for i in index]
    trees = [Branches() for _ in ids]
    params = self.step.behavior_params(run.state.params, run.frozen)
    before: Batch | Prefix = self._prefixes(run, shape.prompt, 0, ids, trees)
    for layer, rows in enumerate(self._layers.rows):
      programs = run.programs(self._layer_shape(run, step, layer))
      source = np.stack([self._allocate(tree, layer) for tree in trees])
      key = run.key(keys.Use.BRANCHES, step * len(self._layers.rows) + layer)
      arguments = before, key, np.int32(self.config.graph.step_tokens), run.to_devices(np.maximum(source, 0))
      grown, kept = run.wait(programs["layer"](params, *arguments))
      parts = [
        a.reshape(len(trees), rows, -1) for a in hosts.local_rows((grown.response, grown.mask, grown.behavior_logprob))
      ]
      new = [tree.grow(*part, self.specs.sampling.stop_ids) for tree, *part in zip(trees, source, *parts, strict=True)]
      prefixes, by_next_layer = None, kept is None and layer + 1 < len(self._layers.rows)
      if by_next_layer or (self._hidden is not None and self._hidden.reads_prefixes):  # else nothing reads them
        prefixes = self._prefixes(run, shape.prompt, layer + 1, ids, trees)
      self._find_states(run, programs, prefixes, index, trees, new)
      for number, tree, nodes in zip(index, trees, new, strict=True):
        tree.join(nodes, self._same_state.similarity(tree, nodes, (step, layer, int(number))), self._same_state.least)
      before = kept or prefixes  # pyright: ignore[reportAssignmentType]: one of them is there
    self._trees[step] = trees
    return Experience(step, prompts, self._rollout(run, trees), index, limit, shape, run.programs(shape))

  def _allocate(self, tree: Branches, layer: int) -> Int[np.ndarray, " r"]:
    return tree.allocate(self.config.graph.widths[layer], self._layers.rows[layer], self.config.graph.halve)

  def _prefixes(
    self, run: Run, width: int, layers: int, ids: Sequence[Sequence[int]], trees: Sequence[Branches]
  ) -> Batch:
    """Lays out the prompts and steps of all frontiers on the devices; a row that is not used has its prompt alone."""
    rows = [
      [*prompt, *(tree.tokens(node) if node != NOBODY else ())]
      for prompt, tree in zip(ids, trees, strict=True)
      for node in tree.frontier
    ]
    batch = pipeline.pad(rows, width + layers * self.config.graph.step_tokens, self.specs.sampling.pad_id)
    return run.to_devices(batch, len(rows) // len(ids))

  def _rollout(self, run: Run, trees: Sequence[Branches]) -> Rollout:
    """Lays out the ways to all leaves as rows of an update."""
    paths = self._paths(trees)
    stacked = [np.concatenate([getattr(p, name) for p in paths]) for name in ("response", "mask", "logprob", "ended")]
    return run.to_devices(Rollout(*stacked), self.step.n)  # pyright: ignore[reportArgumentType]: numpy

  def _paths(self, trees: Sequence[Branches]) -> list[Paths]:
    return [Paths.of(tree, self.step.n, self.config.horizon.max, self.specs.sampling.pad_id) for tree in trees]

  # States.

  @functools.cached_property
  def _same_state(self) -> SameState:
    g = self.config.graph
    return SameState(g.state, g.kappa, g.rate, self.config.seed)

  @functools.cached_property
  def _encoder(self) -> ModelSpec | None:
    """The frozen model whose hidden states are compared; None: the student's."""
    g = self.config.graph
    if not g.encoder or g.state != "hidden":
      return None
    there = configs.expanded_path(g.encoder).is_dir() or g.encoder.startswith(configs.BUILTIN)
    return ModelSpec(
      hf.resolve(g.encoder) if there else pathlib.Path(g.encoder), architecture(g.encoder), (), g.encoder
    )

  @functools.cached_property
  def _hidden(self) -> HiddenStates | None:
    if self.config.graph.state != "hidden":
      return None
    # The base of an adapter lies as teachers do.
    layout = "train" if self._encoder is None and not lora.from_config(self.config.lora) else self.step.teacher_layout
    read = self._encoder, self.config.graph.encoder_tokens, self._summaries
    return HiddenStates(self._layers, self.specs.generator_config, layout, *read)

  @functools.cached_property
  def _summaries(self) -> Summaries | None:
    return Summaries.from_config(self.config, self.specs.student.cfg.max_positions)

  def frozen(self, *, teachers: bool = True) -> FrozenModels:
    found = super().frozen(teachers=teachers)
    if not teachers or self._encoder is None:
      return found
    return dataclasses.replace(found, encoder=self.specs.frozen_params(self._encoder))

  def _find_states(
    self,
    run: Run,
    programs: dict[str, jax.stages.Compiled],
    prefixes: Batch | None,
    index: Int[np.ndarray, " p"],
    trees: Sequence[Branches],
    new: Sequence[Sequence[int]],
  ) -> None:
    """Notes of every new node what its state is compared by."""
    if self.config.graph.state == "key":
      of_state, stop_ids = _state_key(self.specs), self.specs.sampling.stop_ids
      for number, tree, nodes in zip(index, trees, new, strict=True):
        prompt = chat.last_text(run.inputs.train.prompts[number])
        for node in nodes:
          text = tree.text(node, run.inputs.tokenizer, stop_ids)
          tree.nodes[node].state = of_state(prompt, text, tree.nodes[node].ended)
      run.clock.lap("verify")
    if self._hidden is not None:
      params = self.step.behavior_params(run.state.params, run.frozen)
      self._hidden.note(run, programs, params, prefixes, index, trees)

  # Credit.

  def _credit(self, run: Run, experience: Experience) -> tuple[Credit | None, dict[str, Any]]:
    found, trees = self._verify(run, experience), self._trees.pop(experience.step)
    g, n = self.config.graph, self.step.n
    advantage = np.zeros((len(trees) * n, self.config.horizon.max), np.float32)
    weight, of_rows, drawn = np.zeros_like(advantage), [], []
    for i, (tree, paths) in enumerate(zip(trees, self._paths(trees), strict=True)):
      rows = slice(i * n, (i + 1) * n)
      reward = found.reward[rows] - g.length_penalty * paths.mask.mean(axis=1)
      of_leaf = {leaf: float(r) for leaf, r in zip(paths.leaf, reward, strict=True) if leaf != NOBODY}
      earned = graph_advantage.credit(
        tree.tree(of_leaf),
        tree.classes.of_node,
        weight=g.weight,
        efficiency=g.efficiency,
        similarity_to_parent=self._same_state.to_parent(tree) if g.novelty else None,
      )
      lengths = np.array([max(1, len(node.tokens)) for node in tree.nodes])
      drawn.append((tree, of_leaf, earned))
      advantage[rows] = np.where(paths.mask, earned.advantage[paths.node], 0.0)
      weight[rows] = np.where(
        paths.first, 1.0 / lengths[paths.node], 0.0
      )  # a mean over steps of means over their tokens
      of_rows.append(tree_records.counts(tree, earned, n))
    self._write_graphs(run, experience, drawn)
    credit = Credit(advantage, np.ones(len(advantage), bool), token_weight=weight)  # pyright: ignore[reportArgumentType]: numpy
    return run.to_devices(credit, n), self._told(run, found, trees, np.concatenate(of_rows))

  def _write_graphs(self, run: Run, experience: Experience, drawn: Sequence[Any]) -> None:
    """Writes the graphs of a few prompts, with what their steps earn, where config.log.rollouts says so."""
    if not self.config.log.rollouts or not run.log.logs(experience.step + 1) or not hosts.first():
      return
    records, text = [], functools.partial(run.inputs.tokenizer.decode, skip_special_tokens=False)
    for number, (tree, of_leaf, earned) in zip(experience.index[: self.config.log.rollouts], drawn, strict=False):
      prompt = text(run.inputs.train.ids[number])
      records.append(tree_records.graph(experience.step + 1, prompt, tree, of_leaf, earned, text).to_json())
    run.log.graphs(records)
    run.clock.lap("eval")  # it looks at the run, and is no part of training

  def _write_rollouts(self, run: Run, step: int, experience: Experience, credit: Credit | None) -> None:
    """Graphs are written instead."""

  @property
  def _scored_prompts(self) -> int:
    return 0

  def _told(
    self, run: Run, found: RewardRecord, trees: Sequence[Branches], counts: Float[np.ndarray, "rows 10"]
  ) -> dict[str, Any]:
    """Makes the step's metrics of the trees of all processes."""
    used = np.concatenate([np.arange(self.step.n) < len(tree.leaves) for tree in trees])
    gathered = run.to_devices({"columns": found.columns(), "used": used, "counts": counts}, self.step.n)
    rows = hosts.all_gather_to_host(gathered)
    used = rows["used"]
    return found.metrics(rows["columns"][used]) | tree_records.metrics(
      rows["counts"], self.config.batch, int(used.sum()), summaries=self._summaries is not None
    )

  def _metrics(
    self, step: int, experience: Experience, seen: Any, earned: dict[str, Any], agreement: Any
  ) -> dict[str, Any]:
    found = super()._metrics(step, experience, seen, earned, agreement)
    if self._hidden is not None:  # what finding states reads, on top of what is generated
      found["state_tokens"] = self._hidden.tokens(experience.shape.prompt)
    return (
      found | earned
    )  # a step that several ways share is generated once, and a row without a response has no length

  def summary(self, run: Run) -> Iterator[str]:
    yield from super().summary(run)
    g, rows = self.config.graph, self._layers.rows
    ends = f", or {g.delimiter!r}" if g.delimiter else ""
    of = f", of summaries of {g.summary_tokens} tokens at most" if self._summaries else ""
    states = {"none": "no states in common", "random": f"{g.rate:g} joined at random", "key": "states by key"}
    yield (
      f"  trees of {' + '.join(map(str, rows))} steps at most, each of {g.step_tokens} tokens{ends}, with at most {sum(rows) * g.step_tokens:,} "
      f"tokens a prompt; {states.get(g.state, f'states alike by {g.kappa:g}{of}')}"
    )

  def preview(self, inputs: Any, prompt: int) -> Iterator[tuple[str, list[int]]]:
    yield from super().preview(inputs, prompt)
    if self._summaries is not None:
      steps = inputs.train.answers[prompt] or "1"
      (ids,) = self._summaries.prompts([(inputs.train.prompts[prompt], steps)], inputs.tokenizer, inputs.rendering)
      yield f"what the student reads to summarise, with {steps!r} in the place of the steps so far", ids

  # Programs.

  @property
  def static(self) -> Hashable:
    g = self.config.graph
    hidden = self._hidden and self._hidden.static
    return super().static, tuple(g.widths), g.step_tokens, self._layers.cached, self.specs.sampling, hidden

  @functools.cached_property
  def _layers(self) -> Layers:
    c, s = self.config, self.specs
    generator = dataclasses.replace(s.generator_config, sampling=s.sampling.of_step)
    longest = c.data.max_prompt + c.horizon.max
    return Layers(generator, c.batch, tuple(c.graph.widths), c.graph.step_tokens, c.graph.prefixes, longest)

  def _layer_shape(self, run: Run, step: int, layer: int) -> StepShape:
    return self._shape(run, step, (layer + 1) * self.config.graph.step_tokens)._replace(kind="layer")

  def _shapes_between(self, run: Run, first: int, end: int) -> list[StepShape]:
    every = range(first, end)
    layers = [self._layer_shape(run, step, layer) for step in every for layer in range(len(self._layers.rows))]
    return list(dict.fromkeys([*layers, *super()._shapes_between(run, first, end)]))

  def roofline_costs(self, name: str, prompts: int, n: int, prompt: int, response: int) -> list[Cost]:
    """Counts the layers of a rollout one after another, and then what finding their states needs."""
    if name != "rollout":
      return super().roofline_costs(name, prompts, n, prompt, response)
    parts = (self._layers, *filter(None, [self._hidden]))
    sizes = {"vocab": self.specs.sampling.vocab, "itemsize": self.specs.dtype.itemsize}
    return [cost for part in parts for cost in part.costs(prompts, prompt, **sizes)]

  def lower(self, shape: StepShape) -> Iterator[tuple[str, jax.stages.Lowered]]:
    state, frozen_models, batch = self.abstract_state(), self.abstract_frozen(), self.abstract_prompts(shape)
    if shape.kind != "layer":
      yield from lowering.step_programs(self.step, shape.width, state, frozen_models, batch, wanted=("update",))
      return
    layer, params = shape.width // self._layers.step_tokens - 1, self.step.behavior_params(state.params, frozen_models)
    yield "layer", self._layers.lower(layer, params, shape.prompt)
    if self._hidden is not None:
      yield from self._hidden.lower(layer, params, frozen_models.encoder, shape.prompt)


RECIPE = Graph


def _state_key(specs: Specs) -> tasks.StateKey:
  return tasks.state_key(specs.config.graph.state_key, verifier_name(specs.config, specs.config.data.path))


def _check(specs: Specs) -> None:
  """Refuses sizes that do not fit each other, and what rollouts that branch cannot have.

  Raises:
    InputError: says which key is wrong.
  """
  c, g = specs.config, specs.config.graph
  check_sizes(c)
  if g.state == "key":
    _state_key(specs)
  Summaries.from_config(c, specs.student.cfg.max_positions)
  fixed = {
    "horizon.kind": "full",
    "rollout.by": "student",
    "rollout.ahead": False,
    "rollout.precision": "compute",
    "advantage.kind": "auto",
    "mixture.divergence": 0.0,
  }
  configs.check_fixed(c, fixed)
  if not c.mixture.reward:
    raise InputError("config.mixture.reward is 0.0, and the recipe 'graph' learns from it; set it above 0.")
  if c.reward.overlong == "mask":
    raise InputError(
      "config.reward.overlong is 'mask', and cut ways of a tree share their steps with others; take judge, wrong or soft."
    )
  if c.surrogate.divergence.startswith("topk") and c.surrogate.kind in ("dppo", "drpo"):
    raise InputError(
      f"config.surrogate.divergence is {c.surrogate.divergence!r}, which the steps of a tree do not record; take 'tv' or 'kl' of single tokens."
    )

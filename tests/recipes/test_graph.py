"""GraphPO from end to end: what trees are grown, what their steps earn, runs that are killed, and pictures."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax import config as configs
from opd_jax import tasks
from opd_jax.data import branched
from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, hf_config, roofline
from opd_jax.objectives import advantage as advantages
from opd_jax.objectives import graph_advantage
from opd_jax.recipes import base
from opd_jax.reports import graphs
from opd_jax.rollout.branch import NOBODY, Paths
from opd_jax.trainer import open_run, train, train_run
from opd_jax.training import specs
from tests.helpers.credited_runs import SIZES, even, kept_credits
from tests.helpers.runs import leaves, read, without_time

pytestmark = pytest.mark.usefixtures("shared_programs", "some_are_right")
COMMA = ","
trees_of = functools.partial(kept_credits, "_trees")  # with what they earn


@pytest.fixture
def config(tiny):
  """A small config of the recipe: config(steps=1, **{"graph.state": "none"}); rows and horizon follow the tree."""

  def make(**changes):
    sizes = SIZES | {"student": tiny["student"], "teacher": ""}
    sizes |= {"graph.widths": (2, 2), "graph.step_tokens": 6, "graph.delimiter": COMMA, "graph.state": "hidden"}
    all_of = sizes | changes
    widths = all_of["graph.widths"]
    tree = {"rollouts_per_prompt": math.prod(widths), "horizon.max": len(widths) * all_of["graph.step_tokens"]}
    return configs.override(configs.default("graph"), tree | all_of)

  return make


@pytest.mark.long
def test_steps_end_at_the_delimiter_and_are_drawn_behind_their_own_prefixes(config, tmp_path, monkeypatch):
  run = open_run(config(), tmp_path / "w")
  found = trees_of(run, monkeypatch)
  train_run(run)
  comma = run.inputs.tokenizer.encode(COMMA, add_special_tokens=False)
  assert run.recipe.specs.sampling.delimiters == tuple(comma)
  steps = [node for trees, *_ in found for tree in trees for node in tree.nodes[1:]]
  assert any(node.tokens[-1] in comma for node in steps)
  for node in steps:
    assert 1 <= len(node.tokens) <= 6
    assert not set(node.tokens[:-1]) & {*comma, *run.recipe.specs.sampling.stop_ids}
    assert len(node.tokens) == 6 or node.ended or node.tokens[-1] in comma
  for record in read(tmp_path / "w", "train"):
    assert record["logprob_gap"] < 1e-4, "the ratio is 1: the tokens that were drawn are scored where they were drawn"
    assert record["responses"] <= 4 * 4
    assert record["steps_sampled"] <= 4 * (2 + 4)
    assert record["step_tokens"] <= 4 * (2 + 4) * 6
    assert record["state_tokens"] == 4 * (
      2 * (run.inputs.prompt_widths[-1] + 6) + 4 * (run.inputs.prompt_widths[-1] + 12)
    )
  assert sum(len(node.tokens) for node in steps) == read(tmp_path / "w", "train")[-1]["tokens"]
  assert any(record["grad_norm"] > 0 for record in read(tmp_path / "w", "train"))


@pytest.mark.long
def test_every_step_is_learned_from_once_with_the_credit_of_its_graph(config, tmp_path, monkeypatch):
  c = config(steps=2, **{"graph.weight": 0.5, "graph.efficiency": 0.3, "graph.kappa": 0.5})
  run = open_run(c, tmp_path / "w")
  found = trees_of(run, monkeypatch)
  train_run(run)
  joined = 0
  for trees, experience, credit in found:
    advantage, weight = np.asarray(credit.advantage), np.asarray(credit.token_weight)
    texts = run.recipe._responses(run, experience)
    for i, tree in enumerate(trees):
      paths = Paths.of(tree, 4, 12, run.recipe.specs.sampling.pad_id)
      rewards = {leaf: float(even(texts[4 * i + row].text)) for row, leaf in enumerate(paths.leaf) if leaf != NOBODY}
      similarity = [0.0] + [
        float(node.state @ tree.nodes[node.parent].state) if node.parent > 0 else 0.0 for node in tree.nodes[1:]
      ]
      earned = graph_advantage.credit(
        tree.tree(rewards),
        tree.classes.of_node,
        weight=0.5,
        efficiency=0.3,
        similarity_to_parent=np.array(similarity),
      )
      of_step = np.zeros(len(tree.nodes))
      for row in range(4):
        for t in np.flatnonzero(paths.mask[row]):
          node = paths.node[row, t]
          assert advantage[4 * i + row, t] == pytest.approx(earned.advantage[node], abs=1e-5)
          of_step[node] += weight[4 * i + row, t]
      np.testing.assert_allclose(of_step[1:], 1, rtol=1e-6)  # each step once, as a mean over its tokens
      joined += sum(len(tree.classes.members(node)) > 1 for node in range(1, len(tree.nodes)))
  assert joined > 0


def test_one_layer_of_whole_responses_has_grpos_advantages(config, tmp_path, monkeypatch):
  c = config(**{"graph.widths": (6,), "graph.step_tokens": 8, "graph.delimiter": "", "graph.state": "none"})
  run = open_run(c, tmp_path / "w")
  found = trees_of(run, monkeypatch)
  train_run(run)
  for _, experience, credit in found:
    reward = np.array([even(response.text) for response in run.recipe._responses(run, experience)], float)
    wanted = advantages.of_rewards("group_std", reward, 6)
    mask = np.asarray(experience.rollout.mask)
    np.testing.assert_allclose(np.asarray(credit.advantage), np.where(mask, wanted[:, None], 0), atol=1e-4)
    np.testing.assert_allclose(np.asarray(credit.token_weight).sum(axis=1), 1, rtol=1e-6)


RANDOM = {"graph.state": "random", "graph.rate": 0.5}
SUMMARIES = {"graph.summary_tokens": 5, "graph.summary_template": "{prompt}{response}x", "graph.summary_prompt": 40}


@pytest.mark.long
@pytest.mark.parametrize(("layer", "states"), [(0, RANDOM), (1, RANDOM), (1, SUMMARIES | {"graph.kappa": 0.5})])
def test_killed_between_two_layers_and_resumed_it_is_the_run_that_never_stopped(
  layer, states, config, tmp_path, monkeypatch
):
  changes = {"mini_batches": 2} | states
  whole = train(config(**changes), tmp_path / "whole")
  run = open_run(config(**changes), tmp_path / "parts")
  find_states, calls = run.recipe._find_states, []

  def die(*args):
    calls.append(args)
    if len(calls) == 2 * 2 + layer + 1:  # two a step: behind this layer of the third
      raise KeyboardInterrupt
    return find_states(*args)

  monkeypatch.setattr(run.recipe, "_find_states", die)
  with pytest.raises(KeyboardInterrupt):
    train_run(run)
  again = open_run(config(**changes), tmp_path / "parts")
  assert again.resumed_from == 2
  train_run(again)
  records = [without_time(r) for r in read(tmp_path / "whole", "train")]
  assert [without_time(r) for r in read(tmp_path / "parts", "train")] == records
  assert any(record["joined"] > 0 for record in records)
  for a, b in zip(leaves(whole.state), leaves(again.state), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_layers_that_go_on_from_caches_are_those_that_read_their_prefixes_again(config, tmp_path, monkeypatch):
  """The same trees, but for the order of sums; and the same plan, but for what is read again."""
  found = {}
  for prefixes in ("cached", "recomputed"):
    run = open_run(config(steps=1, **{"graph.prefixes": prefixes}), tmp_path / prefixes)
    found[prefixes] = trees_of(run, monkeypatch)
    train_run(run)
  ((cached, *_),), ((recomputed, *_),) = found.values()
  for a, b in zip(cached, recomputed, strict=True):
    assert [node.tokens for node in a.nodes] == [node.tokens for node in b.nodes]
    for one, other in zip(a.nodes, b.nodes, strict=True):
      np.testing.assert_allclose(one.logprob, other.logprob, atol=1e-5)
  assert len({len(node.tokens) for tree in cached for node in tree.nodes[1:]}) > 1, "steps of several lengths"


def of_length(prompt: str, text: str, ended: bool) -> int | None:
  """A state key: responses of one length are one state, those that have ended none."""
  return None if ended else len(text)


@pytest.mark.long
def test_states_by_a_function_of_the_users(config, tmp_path, monkeypatch):
  key = "tests.recipes.test_graph:of_length"
  run = open_run(config(steps=1, **{"graph.state": "key", "graph.state_key": key}), tmp_path / "w")
  found = trees_of(run, monkeypatch)
  train_run(run)
  classes = 0
  for tree in (tree for trees, *_ in found for tree in trees):
    for u in range(1, len(tree.nodes)):
      others = tree.classes.members(u)
      lengths = {len(tree.tokens(v)) for v in others}
      assert len(lengths) == 1
      assert len(others) == 1 or not any(tree.nodes[v].ended for v in others)
      classes += len(others) > 1
  assert classes > 0


@pytest.mark.long
def test_states_by_a_frozen_encoder(config, tiny, tmp_path, monkeypatch):
  """Its last hidden states behind prompt and steps, read in its own tokens; it is no part of what is trained."""
  changes = {"graph.encoder": tiny["teacher"], "graph.encoder_tokens": 20, "data.max_prompt": 16}
  run = open_run(config(steps=1, **changes), tmp_path / "w")
  found = trees_of(run, monkeypatch)
  train_run(run)
  cfg, params = hf_config.read(tiny["teacher"]), hf.load(tiny["teacher"])
  tokenizer = run.inputs.tokenizer  # the same as the teacher's
  ((trees, experience, _),) = found
  for number, tree in list(zip(experience.index, trees, strict=True))[:2]:
    for node in range(1, len(tree.nodes)):
      steps = [token for token in tree.tokens(node) if token not in run.recipe.specs.sampling.stop_ids]
      text = f"{run.inputs.train.prompts[number]}\n{tokenizer.decode(steps)}"
      ids = jnp.array([tokenizer(text, add_special_tokens=False)["input_ids"][-20:]])
      hidden = np.asarray(decoder.hidden(params, cfg, ids, jnp.ones_like(ids, bool)))[0, -1]
      np.testing.assert_allclose(tree.nodes[node].state, hidden / np.linalg.norm(hidden), atol=1e-4)
  (record,) = read(tmp_path / "w", "train")
  assert record["state_tokens"] == 4 * (2 + 4) * 20
  with pytest.raises(InputError, match="nowhere"):
    open_run(config(**{"graph.encoder": "nowhere"}), tmp_path / "none")


def greedy(params, cfg, sampling):
  """What writes the most likely tokens behind others, each found by reading all of them again: write(ids, most)."""
  width, nobodys = 64, {token for first, end in sampling.never for token in range(first, end)}
  nobodys |= set(range(sampling.vocab, cfg.vocab))

  @jax.jit
  def logits(tokens, mask):
    hidden = decoder.hidden(params, cfg, tokens[None], mask[None])[0]
    return decoder.unembed(params, hidden[mask.sum() - 1])

  def write(ids: list[int], most: int) -> list[int]:
    found = []
    while len(found) < most and not set(found) & set(sampling.stop_ids):
      row = [*ids, *found]
      scores = np.array(logits(jnp.array(row + [0] * (width - len(row))), np.arange(width) < len(row)))
      scores[sorted(nobodys)] = -np.inf
      found.append(int(scores.argmax()))
    return found

  return write


@pytest.mark.long
@pytest.mark.parametrize("reader", ["student", "teacher"])
def test_states_of_summaries_that_the_student_writes(reader, config, tiny, tmp_path, monkeypatch):
  """Token by token and node by node; what is too long is not summarised, and is no state; all of it is counted."""
  changes = SUMMARIES | {"graph.summary_prompt": 18, "graph.kappa": 0.5, "graph.step_tokens": 6, "log.rollouts": 4}
  if reader == "teacher":
    changes |= {"graph.encoder": tiny["teacher"], "graph.encoder_tokens": 3}
  run = open_run(config(steps=1, **changes), tmp_path / "w")
  found = trees_of(run, monkeypatch)
  train_run(run)
  tokenizer, sampling = run.inputs.tokenizer, run.recipe.specs.sampling
  write = greedy(hf.load(tiny["student"]), run.recipe.specs.student.cfg, sampling)
  cfg, params = hf_config.read(tiny[reader]), hf.load(tiny[reader])
  ((trees, experience, _),) = found
  lengths, written = [], 0
  for number, tree in zip(experience.index, trees, strict=True):
    for i, node in enumerate(tree.nodes[1:], 1):
      steps = tokenizer.decode(tree.tokens(i), skip_special_tokens=True)
      ids = tokenizer(f"{run.inputs.train.prompts[number]}{steps}x", add_special_tokens=False)["input_ids"]
      lengths.append(len(ids))
      summary = write(ids, 5) if len(ids) <= 18 else []
      assert node.summary == summary
      written += len(summary)
      words = [token for token in summary if token not in sampling.stop_ids]
      if reader == "teacher":
        words = words[-3:]
      if not words:
        assert node.state is None
        assert tree.classes.members(i) == [i]
        continue
      hidden = np.asarray(decoder.hidden(params, cfg, jnp.array([words]), jnp.ones((1, len(words)), bool)))[0, -1]
      np.testing.assert_allclose(node.state, hidden / np.linalg.norm(hidden), atol=1e-4)
  assert min(lengths) <= 18 < max(lengths)
  (record,) = read(tmp_path / "w", "train")
  assert record["summary_tokens"] == written > 0
  assert record["unsummarised"] == sum(node.state is None for tree in trees for node in tree.nodes[1:]) > 0
  assert record["joined"] > 0
  steps = sum(len(node.tokens) for tree in trees for node in tree.nodes)
  assert record["tokens"] == record["step_tokens"] == steps + written
  assert record["state_tokens"] == 4 * (2 + 4) * (18 + (5 if reader == "student" else 3))
  drawn = branched.read(tmp_path / "w" / branched.FILE)
  assert [step.summary for step in drawn[0].steps] == [tokenizer.decode(node.summary) for node in trees[0].nodes]
  assert graphs.sections(drawn).count("summary: ") == sum(bool(step.summary) for graph in drawn for step in graph.steps)


@pytest.mark.long
def test_programs_of_summaries_are_compiled_ahead_and_listed(config, tmp_path):
  train(config(steps=2, **SUMMARIES), tmp_path / "w")
  programs = json.loads((tmp_path / "w" / "run.json").read_text())["programs"]
  assert sorted((p["name"], p["width"]) for p in programs if p["name"] != "update") == [
    (name, width) for name in ("layer", "state", "summary") for width in (6, 12)
  ]


@pytest.mark.long
def test_a_tree_has_no_state_in_common_and_random_ones_are_as_many_as_asked_for(config, tmp_path):
  train(config(steps=2, **{"graph.state": "none"}), tmp_path / "tree")
  assert all(record["joined"] == 0 for record in read(tmp_path / "tree", "train"))
  assert all("state_tokens" not in record for record in read(tmp_path / "tree", "train"))
  train(config(**{"graph.state": "random", "graph.rate": 1.0}), tmp_path / "random")
  for record in read(tmp_path / "random", "train"):
    assert record["states"] < record["steps_sampled"]
    assert record["joined"] > 0.5, "but the first, and those that may join none"


@pytest.mark.long
def test_a_length_penalty_takes_from_long_responses(config, tmp_path, monkeypatch):
  """A control for what short ways earn: with nothing else to tell responses apart, shorter ones have the higher scores."""
  monkeypatch.setitem(tasks.VERIFIERS, "chain", lambda *_, **__: True)
  changes = {"graph.widths": (8,), "graph.step_tokens": 12, "graph.state": "none", "graph.length_penalty": 0.5}
  run = open_run(config(steps=1, **changes), tmp_path / "w")
  found = trees_of(run, monkeypatch)
  train_run(run)
  ((trees, _, credit),) = found
  for i, tree in enumerate(trees):
    length = [len(tree.tokens(leaf)) for leaf in tree.leaves]
    advantage = np.asarray(credit.advantage)[8 * i : 8 * i + 8, 0]
    order = np.argsort(length, kind="stable")
    assert (np.diff(advantage[order]) <= 1e-5).all()


@pytest.mark.long
def test_written_graphs_are_drawn_and_change_nothing(config, tmp_path):
  runs = {n: train(config(steps=2, **{"log.rollouts": n}), tmp_path / str(n)) for n in (0, 3)}
  for a, b in zip(leaves(runs[0].state), leaves(runs[3].state), strict=True):
    np.testing.assert_array_equal(a, b)
  assert branched.read(tmp_path / "0" / branched.FILE) == []
  found = branched.read(tmp_path / "3" / branched.FILE)
  assert [graph.step for graph in found] == [1, 1, 1, 2, 2, 2]
  page = graphs.sections(found)
  steps = sum(len(graph.steps) for graph in found)
  assert page.count("<svg") == 6
  assert page.count("<line") == steps - 6
  assert page.count("<circle") + page.count("<rect") == steps
  assert page.count('class="same"') == sum(step.state != i for g in found for i, step in enumerate(g.steps))
  first = found[0].steps[1]
  hostile = dataclasses.replace(
    found[0], prompt="<b>", steps=[found[0].steps[0], dataclasses.replace(first, text="<i>", state=1)]
  )
  assert "<b>" not in graphs.sections([hostile])
  assert "<i>" not in graphs.sections([hostile])


def test_a_plan_counts_each_layer(config):
  """Behind a prompt of 16 tokens two steps, and behind each of these two: with their prefixes read again, once for their children; or from
  caches, with one token of each row."""
  costs = {}
  for prefixes in ("cached", "recomputed"):
    recipe = base.make(specs.from_architectures(config(**{"graph.prefixes": prefixes}), stop_ids=(1,)))
    costs[prefixes] = recipe.roofline_costs("rollout", 4, 4, 16, 12)
  cfg, sizes = recipe.specs.student.cfg, {"vocab": recipe.specs.sampling.vocab, "itemsize": 4}
  first, second = (roofline.rollout(cfg, 4 * rows, 2, 16 + 6 * layer, 6, **sizes) for layer, rows in enumerate((1, 2)))
  states = [roofline.reading(cfg, rows, 16 + 6 * layer, itemsize=4) for layer, rows in ((1, 8), (2, 16))]
  assert costs["recomputed"] == [*first, *second, *states]
  assert costs["cached"] == [*first, roofline.decode_step(cfg, 16, 1, 21, 1, **sizes), *second[1:], *states]


@pytest.mark.parametrize("reader", ["student", "teacher"])
def test_a_plan_counts_summaries_and_what_reads_them(reader, config, tiny):
  """The FLOPs of whole texts by those of single tokens; a summary's last token is not read where it is written."""
  encoder = {"graph.encoder": tiny["teacher"], "graph.encoder_tokens": 7} if reader == "teacher" else {}
  of_states = []
  for changes in (SUMMARIES | encoder, {"graph.state": "none", "graph.novelty": False}):
    recipe = base.make(specs.from_architectures(config(**changes), stop_ids=(1,)))
    of_states.append(sum(cost.flops for cost in recipe.roofline_costs("rollout", 4, 4, 16, 12)))
  cfg, of_reader, V = recipe.specs.student.cfg, hf_config.read(tiny[reader]), recipe.specs.sampling.vocab

  def token(cfg, seen: int) -> float:
    return roofline.layer_flops(cfg, 1, seen)

  written = sum(token(cfg, t) for t in range(1, 40 + 5)) + 5 * roofline.head_flops(cfg, 1, V)
  read = sum(token(of_reader, t) for t in range(1, (7 if reader == "teacher" else 5) + 1))
  assert of_states[0] - of_states[1] == pytest.approx(4 * (2 + 4) * (written + read))


@pytest.mark.parametrize("line", ["[]", '{"step": 1}', '{"step": 1, "prompt": "", "steps": []}', "no JSON"])
def test_a_damaged_line_of_graphs_is_named(line, tmp_path):
  path = tmp_path / branched.FILE
  path.write_text(line + "\n")
  with pytest.raises(InputError, match="line 1 is no graph of a run"):
    branched.read(path)
  path.write_text(line)  # that a killed run was writing
  assert branched.read(path) == []


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rollouts_per_prompt": 3}, r"config.graph.widths \(2, 2\) make 4 ways"),
    ({"horizon.max": 13}, "2 layers of config.graph.step_tokens=6 are 12 tokens"),
    ({"graph.widths": (), "rollouts_per_prompt": 2, "horizon.max": 6}, "config.graph.widths is"),
    ({"graph.state": "key"}, "'chain' does not say what one state is; the tasks that do are countdown"),
    ({"graph.state": "key", "graph.state_key": "nothing"}, "config.graph.state_key is 'nothing'"),
    ({"graph.state": "key", "graph.state_key": "tests.recipes.test_graph:none"}, "The state key .* has no 'none'"),
    ({"graph.state": "none", "graph.summary_tokens": 4}, "config.graph.state is 'none', which reads no summary"),
    ({"graph.state": "random", "graph.summary_tokens": 4}, "config.graph.state is 'random', which reads no summary"),
    (
      {"graph.summary_tokens": 4, "graph.summary_template": "{prompt}"},
      "config.graph.summary_template has no {response}",
    ),
    ({"graph.summary_tokens": 512}, "config.graph.summary_tokens is 512, and the student has 512 positions"),
    ({"graph.delimiter": "no such text"}, "with which no token of the student ends"),
    ({"mixture.reward": 0.0, "surrogate.kind": "importance"}, "config.mixture"),
    ({"reward.overlong": "mask"}, "config.reward.overlong is 'mask'"),
    ({"rollout.ahead": True}, "config.rollout.ahead is True"),
    ({"horizon.kind": "truncated", "horizon.ratio": 0.5}, "config.horizon.kind is 'truncated'"),
    ({"surrogate.kind": "dppo", "surrogate.divergence": "topk_tv"}, "the steps of a tree do not record"),
  ],
)
def test_configs_that_cannot_be_meant(changes, message, config, tmp_path):
  with pytest.raises(InputError, match=message):
    open_run(config(**changes), tmp_path / "w")

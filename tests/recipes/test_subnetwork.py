"""Runs that train a part of the coordinates: what is frozen, killed and resumed, by every recipe, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from opd_jax import config as configs
from opd_jax import tasks
from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, hf_config
from opd_jax.planning import dry_run
from opd_jax.planning.stages import bytes_per_device
from opd_jax.recipes import base as recipes
from opd_jax.trainer import open_run, train, train_run
from opd_jax.training import masks, specs
from opd_jax.types import MaskedAveragedTrainState, MaskedTrainState
from tests.conftest import small_config
from tests.helpers import conversation_runs
from tests.helpers.runs import leaves, read, without_time

pytestmark = pytest.mark.usefixtures("shared_programs")
SHORT = {
  "steps": 4,
  "horizon.max": 8,
  "eval.every": 0,
  "checkpoint.every": 2,
  "optimizer.lr": 1e-3,
  "optimizer.weight_decay": 0.1,
  "log.optimizer": True,
}
HALF = {"subnetwork.mask": "global", "subnetwork.density": 0.5}
SELF = {
  "teacher": "initial",
  "batch": 4,
  "horizon.max": 8,
  "steps": 2,
  "eval.every": 0,
  "log.tensorboard": False,
  "compile_cache": "off",
  "log.bins": 4,
  "optimizer.lr": 1e-2,
  "context.template": "{prompt}{solution}{feedback}=",
  "context.solution_template": ":{text}",
  "context.feedback_template": ">{text}",
}


@pytest.fixture(scope="module")
def short(tiny):
  """A four-step run: short(steps=2, **{"subnetwork.mask": "top"})."""
  return lambda **changes: small_config(tiny, "opd", **(SHORT | changes))


@pytest.fixture(scope="module")
def first(short, shared_programs, tmp_path_factory):
  """The workdir of a run of all coordinates, and the run."""
  path = tmp_path_factory.mktemp("first") / "run"
  return path, train(short(), path)


def same(a, b) -> bool:
  """Bit for bit."""
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def check_frozen(state, start) -> None:
  """Frozen coordinates are those of the start, bit for bit, and their moments 0; others have moved."""
  mask = masks.of(state)
  moments = [a for a in jax.tree.leaves(state.opt_state) if a.ndim]
  some = 0
  for m, a, b in zip(*map(jax.tree.leaves, (mask, start, state.params)), strict=True):
    m, a, b = np.asarray(m), np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32)
    np.testing.assert_array_equal(a[~m], b[~m])
    some += (a[m] != b[m]).sum()
  assert some > 0
  assert moments
  for m, moment in zip(jax.tree.leaves(mask) * 2, moments, strict=False):  # SGD has one of each
    assert not np.asarray(moment)[~np.asarray(m)].any()


@pytest.mark.long
def test_the_visible_mask_of_a_run_is_retrained_alone(first, short, tmp_path, capsys):
  path, whole = first
  run = open_run(short(**{"subnetwork.mask": "visible", "subnetwork.mask_from": str(path)}), tmp_path / "w")
  start = jax.device_get(run.state.params)
  found = jax.tree.map(lambda m: np.asarray(m), masks.of(run.state))

  def moves(a, b):
    stored = a.astype("bfloat16").astype(a.dtype)  # a run that is read from bf16 begins there
    return np.asarray((stored + (b - a)).astype("bfloat16").astype(a.dtype) != stored)

  moved = jax.tree.map(moves, start, jax.device_get(whole.state.params))
  # At these sizes half a step of bfloat16 is above the threshold almost everywhere.
  differ = sum((a != b).sum() for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(moved), strict=True))
  assert differ < 0.01 * sum(m.size for m in jax.tree.leaves(found))
  train_run(run)
  check_frozen(run.state, start)
  saved, _ = recipes.saved_models(run.recipe, run.workdir.root)
  assert same(saved["student"], run.state.params)
  trained, size = (sum(n) for n in zip(*masks.counts(run.state.mask, start).values(), strict=True))
  assert 0 < trained < size
  said = capsys.readouterr().err
  assert f"mask visible: {trained:,} of {size:,} coordinates are trained, {trained / size:.2%} (embeddings " in said
  assert all(part in said for part in ("norms and biases", "attention", "MLP"))


def test_a_full_mask_trains_as_none_does(first, short, tmp_path):
  path, whole = first
  run = train(short(**HALF | {"subnetwork.density": 1.0}), tmp_path / "w")
  assert isinstance(run.state, MaskedTrainState)
  assert not isinstance(whole.state, MaskedTrainState)
  assert same(leaves(run.state), leaves(whole.state))
  records = [[without_time(r) for r in read(p, "train")] for p in (tmp_path / "w", path)]
  differing = {name for a, b in zip(*records, strict=True) for name in a if a[name] != b[name]}
  assert differing <= {"second_moment_spread"}, "whose count of coordinates is summed"
  of_both = ([r["second_moment_spread"] for r in of_run] for of_run in records)
  np.testing.assert_allclose(*of_both, rtol=1e-5)


def test_how_the_optimiser_goes_with_the_gradient_is_logged(first):
  records = read(first[0], "train")
  assert records[0]["momentum_cosine"] is None
  assert all(0 < abs(r["momentum_cosine"]) <= 1 for r in records[1:])
  assert all(r["second_moment_spread"] > 0 for r in records)


@pytest.mark.long
def test_killed_it_goes_on_without_the_run_that_its_mask_is_from(first, short, tmp_path):
  other = tmp_path / "first"
  shutil.copytree(first[0], other)
  changes = {"subnetwork.mask": "stratified", "subnetwork.mask_from": str(other)}
  whole = train(short(**changes), tmp_path / "whole")

  def die(run, experience, metrics):
    if run.step == 3:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    train(short(**changes), tmp_path / "w", on_step=die)
  shutil.rmtree(other)
  run = train(short(**changes), tmp_path / "w")
  assert run.resumed_from == 2
  assert same(run.state, whole.state)
  with pytest.raises(InputError, match="the checkpoint holds the mask"):
    train(short(**changes | {"subnetwork.mask": "layer"}), tmp_path / "w", allow_change=["subnetwork.mask"])


def test_a_model_directory_may_be_named(first, short, tiny, tmp_path):
  cfg = hf_config.read(tiny["student"])
  hf.write(tmp_path / "model", cfg, first[1].state.params, pad_id=0, eos_id=1, dtype="float32")
  both = []
  for source in (first[0], tmp_path / "model"):
    c = short(**{"subnetwork.mask": "top", "subnetwork.mask_from": str(source), "subnetwork.density": 0.1})
    both.append(open_run(c, tmp_path / "w").state.mask)
  assert same(*both)


def test_another_mask_is_no_other_program(short, tmp_path):
  """It is an argument."""
  one = train(short(**HALF), tmp_path / "one")
  two = train(short(**HALF | {"subnetwork.density": 0.25}), tmp_path / "two")
  assert not same(one.state.mask, two.state.mask)
  compiled = json.loads((tmp_path / "two" / "run.json").read_text())["programs"]
  assert {p["name"] for p in compiled} == {"rollout", "update"}
  assert all(p["seconds"] == 0 for p in compiled)


def test_another_seed_is_another_mask(short, tmp_path):
  a, b = (open_run(short(seed=seed, **HALF), tmp_path / f"{seed}").state.mask for seed in (0, 1))
  assert not same(a, b)


# Every recipe.


@pytest.fixture
def some_are_right(monkeypatch):
  """Random weights never answer right."""
  monkeypatch.setitem(tasks.VERIFIERS, "chain", lambda response, answer="", **_: sum(map(ord, response)) % 2 == 0)


def trained_states(run) -> dict:
  """The train states of a run's models, by name."""
  return run.state["students"] if "students" in getattr(run.state, "keys", tuple)() else {"student": run.state}


def trained_half(c, path):
  run = open_run(c, path)
  starts = {name: jax.device_get(state.params) for name, state in trained_states(run).items()}
  train_run(run)
  for name, state in trained_states(run).items():
    trained, size = (sum(n) for n in zip(*masks.counts(state.mask, state.params).values(), strict=True))
    assert trained == round(size / 2)
    check_frozen(state, starts[name])
  return run


@pytest.mark.long
def test_a_policy_gradient_by_sgd(tiny, some_are_right, tmp_path):
  changes = {
    "teacher": "",
    "mixture.divergence": 0.0,
    "mixture.reward": 1.0,
    "rollouts_per_prompt": 4,
    "mini_batches": 2,
  }
  changes |= {"student": tiny["student"], "optimizer.kind": "sgd", "optimizer.momentum": 0.9}
  own = {k: v for k, v in SELF.items() if not k.startswith("context.")}
  run = trained_half(configs.override(configs.default("policy_gradient"), own | changes | HALF), tmp_path / "w")
  assert len([a for a in jax.tree.leaves(run.state.opt_state) if a.ndim]) == len(jax.tree.leaves(run.state.params))


@pytest.mark.long
def test_self_distillation_whose_teacher_follows(tiny, tmp_path):
  c = configs.default("self_distillation")
  changes = {
    "student": tiny["student"],
    "teacher_update.kind": "ema",
    "teacher_update.rate": 0.5,
    "context.max_tokens": 256,
  }
  run = trained_half(configs.override(c, SELF | changes | {"context.feedback": "none"} | HALF), tmp_path / "w")
  assert isinstance(run.state, MaskedAveragedTrainState)


def test_a_method_that_knows_nothing_of_masks(tiny, tmp_path):
  """It makes its train states as all do, and is given their masks."""
  own = {k: v for k, v in SELF.items() if not k.startswith("context.")}
  c = configs.override(configs.default("tests.recipes.made_up"), own | {"student": tiny["student"]} | HALF)
  run = open_run(c, tmp_path / "w")
  trained, size = (
    sum(n) for n in zip(*masks.counts(run.state["student"].mask, run.state["teacher"]).values(), strict=True)
  )
  assert trained == round(size / 2)
  assert sum("mask global" in line for line in run.recipe.summary(run)) == 1


@pytest.mark.long
def test_conversations(tmp_path):
  changes = {"lora.rank": 0, "steps": 2, "eval.every": 0}
  trained_half(
    conversation_runs.small(conversation_runs.write_talker(tmp_path / "talker"), **changes | HALF), tmp_path / "w"
  )


@pytest.mark.long
def test_codistillation_where_each_student_has_its_own(tiny, some_are_right, tmp_path):
  shutil.copytree(tiny["student"], tmp_path / "peer")  # of one architecture, so that they share programs
  sizes = {"student": tiny["student"], "codistillation.peer": str(tmp_path / "peer"), "steps": 4}
  sizes |= {
    "rollouts_per_prompt": 2,
    "data.max_prompt": 16,
    "eval.prompts": 4,
    "eval.batch": 4,
    "teacher_update.kind": "ema",
  }
  sizes |= {"context.max_tokens": 48, "context.widths": 0.0, "context.feedback": "always"}
  sizes |= {"comment.template": "{prompt}{response}=", "comment.anchor": "", "comment.max_tokens": 6}
  sizes |= {"comment.max_prompt": 32, "codistillation.phase_steps": 1, "codistillation.gate": "always"}
  sizes |= {"codistillation.validation_prompts": 4, "codistillation.validation_k": 1}
  c = configs.override(configs.default("codistillation"), SELF | sizes | HALF)
  run = trained_half(c, tmp_path / "one")
  of_both = trained_states(run)
  assert not same(of_both["student"].mask, of_both["peer"].mask)
  changes = {"subnetwork.mask": "visible", "subnetwork.density": 0.0, "subnetwork.mantissa": 23}
  changes["subnetwork.mask_from"] = str(tmp_path / "one")
  again = open_run(configs.override(c, changes), tmp_path / "two")
  for name, state in trained_states(again).items():
    earlier = masks.of(of_both[name])
    for m, trained in zip(*map(jax.tree.leaves, (masks.of(state), earlier)), strict=True):
      assert not (np.asarray(m) & ~np.asarray(trained)).any(), "nothing else had moved"
  changes["codistillation.peer_mask_from"] = tiny["teacher"]
  with pytest.raises(InputError, match="whose architecture is not that of"):
    open_run(configs.override(c, changes), tmp_path / "three")


# Plans, and what is refused.


def test_a_plan_counts_the_bits(short):
  without, with_mask = (
    bytes_per_device(recipes.make(specs.from_architectures(c)).abstract_state()) for c in (short(), short(**HALF))
  )
  shapes = decoder.shapes(hf_config.read(short().student))
  bits = [
    np.prod(s[:-1], dtype=int) * -(-s[-1] // 8) for s in jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple))
  ]
  assert with_mask - without == sum(bits)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"subnetwork.mask": "visible"}, "config.subnetwork.mask_from names no run"),
    ({"subnetwork.mask": "layer"}, "or say how many in config.subnetwork.density"),
    ({"subnetwork.mask": "global", "subnetwork.density": 1.5}, "config.subnetwork.density is 1.5; it has to be"),
    ({"subnetwork.mask": "visible", "subnetwork.mask_from": "FIRST", "subnetwork.density": 0.5}, "it is what moved"),
    ({"subnetwork.mask_from": "FIRST"}, "config.subnetwork.mask is 'none'"),
    ({"subnetwork.density": 0.5}, "config.subnetwork.mask is 'none'"),
    ({"subnetwork.norms": "frozen"}, "config.subnetwork.mask is 'none'"),
    (HALF | {"lora.rank": 2}, "config.lora trains an adapter beside them"),
    (
      {"subnetwork.mask": "top", "subnetwork.mask_from": "nowhere"},
      "neither a workdir with checkpoints nor a model: There is no",
    ),
    ({"subnetwork.mask": "top", "subnetwork.mask_from": "TEACHER"}, "whose architecture is not that of"),
    (
      {"subnetwork.mask": "top", "subnetwork.mask_from": "FIRST", "student": "COPY"},
      "which began with .*student, and student begins",
    ),
    ({"subnetwork.mask": "visible", "subnetwork.mask_from": "STUDENT"}, "No coordinate of .*mask_from moved by more"),
  ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_written(changes, message, first, short, tiny, tmp_path):
  shutil.copytree(tiny["student"], tmp_path / "copy")
  names = {
    "FIRST": str(first[0]),
    "TEACHER": tiny["teacher"],
    "STUDENT": tiny["student"],
    "COPY": str(tmp_path / "copy"),
  }
  c = short(**{k: names.get(v, v) if isinstance(v, str) else v for k, v in changes.items()})
  with pytest.raises(InputError, match=message) as refused:
    open_run(c, tmp_path / "w")
  assert "\n" not in str(refused.value)
  assert not (tmp_path / "w").exists()


def test_a_run_with_an_adapter_is_no_source(first, short, tmp_path):
  shutil.copytree(first[0], tmp_path / "adapter")
  saved = tmp_path / "adapter" / "config.json"
  saved.write_text(configs.to_json(short(**{"lora.rank": 2})))
  c = short(**{"subnetwork.mask": "visible", "subnetwork.mask_from": str(tmp_path / "adapter")})
  with pytest.raises(InputError, match="export it with --merge"):
    open_run(c, tmp_path / "w")
  with pytest.raises(InputError, match="export it with --merge"):
    list(dry_run.lines(c))

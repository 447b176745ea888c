"""Embeddings with rows that no token has: none of their ids is drawn, by anything that draws."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

import opd_jax
from opd_jax import inputs, make_conversations
from opd_jax.data import tokenizer as tokenizers
from opd_jax.models import decoder, hf
from opd_jax.rollout import generate
from opd_jax.rollout.generate import Generator
from opd_jax.tasks import chain
from opd_jax.trainer import train
from tests.conftest import STUDENT

pytestmark = pytest.mark.usefixtures("shared_programs")

KNOWN = len(chain.SYMBOLS)
PADDED = KNOWN + 40  # most of what random weights give lies on the padding
HOLE = chain.TOKENIZER.ids["e"]  # in no prompt
SOFT = {"objective.support": "sampled", "objective.kind": "forward_kl", "objective.estimator": "nll"}


@pytest.fixture(scope="module")
def padded(tmp_path_factory) -> dict[str, str]:
  """A student and a teacher whose tokenizer lacks one id in the middle and those at the end."""
  root = tmp_path_factory.mktemp("padded")
  cfg = dataclasses.replace(STUDENT, vocab=PADDED, layers=1)
  for seed, role in enumerate(("student", "teacher")):
    params = decoder.init(cfg, jax.random.key(seed), scale=0.4)
    hf.write(root / role, cfg, params, pad_id=0, eos_id=1, dtype="float32")
    chain.TOKENIZER.save(root / role)
    path = root / role / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["model"]["vocab"] = {token: i for token, i in raw["model"]["vocab"].items() if i != HOLE}
    path.write_text(json.dumps(raw))
  return {role: str(root / role) for role in ("student", "teacher")}


def without_token(ids) -> set[int]:
  return {int(i) for i in np.ravel(ids) if i >= KNOWN or i == HOLE}


def test_a_run_draws_and_evaluates_over_tokens_and_compares_over_all_ids(small, padded):
  loaded = inputs.load(small(**padded))
  assert loaded.evaluation
  for sampling in (loaded.sampling, loaded.evaluation.sampling):
    assert sampling.vocab == PADDED
    assert {i for first, end in sampling.never for i in range(first, end)} == {HOLE, *range(KNOWN, PADDED)}
  (note,) = [w for w in loaded.warnings if "belong to no token" in w]
  assert note.startswith(f"41 of the {PADDED} ids")
  assert note.endswith(f"they are never drawn; the loss is over all {PADDED}")


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"objective.support": "sampled"}, "(the sampled tokens leave out what lies on these ids)"),
    ({"updates_per_rollout": 2}, "(importance ratios are lower by the probability that the student gives them"),
  ],
  ids=["sampled", "importance"],
)
def test_what_drawn_tokens_make_of_it_is_told(changes, says, small, padded):
  assert any(says in warning for warning in inputs.load(small(**padded, **changes, **{"eval.every": 0})).warnings)


def test_nothing_is_told_where_nothing_is_padded(small):
  loaded = inputs.load(small(**{"eval.every": 0}))
  assert loaded.sampling.never == ()
  assert not any("belong to no token" in warning for warning in loaded.warnings)


@pytest.mark.parametrize("by", ["student", pytest.param("teacher", marks=pytest.mark.long)])
def test_training_learns_from_tokens_alone(by, small, padded, tmp_path):
  """With log-probabilities of the draw: without the ids that are never drawn."""
  seen = []
  changes = {"steps": 1, "eval.every": 0, "checkpoint.every": 0, "rollout.by": by} | (SOFT if by == "teacher" else {})
  train(
    small("opd", **padded, **changes),
    tmp_path / "w",
    on_step=lambda run, experience, metrics: seen.append(jax.device_get(experience.rollout)),
  )
  (rollout,) = seen
  assert rollout.mask.sum() > 20
  assert not without_token(rollout.response[rollout.mask])
  assert np.exp(rollout.behavior_logprob[rollout.mask]).mean() > 1.5 / PADDED


def test_generation_and_conversations_draw_tokens_alone(padded, monkeypatch):
  drawn, decode = [], generate.decode
  monkeypatch.setattr(generate, "decode", lambda tok, ids, *rest: drawn.append(ids) or decode(tok, ids, *rest))
  model = opd_jax.load_model(padded["student"])
  found = opd_jax.generate(model, ["58+-++x3=", "12++--x2="] * 4, max_tokens=24)
  assert found.lengths.sum() > 20
  assert not without_token(drawn)

  configs, made = [], Generator.__init__
  monkeypatch.setattr(Generator, "__init__", lambda self, c, *a, **k: configs.append(c) or made(self, c, *a, **k))
  monkeypatch.setattr(Generator, "__call__", lambda *_: found)
  make_conversations.load_rephraser(padded["student"])(["1+1="])
  never = tokenizers.ids_without_token(tokenizers.load(pathlib.Path(padded["student"])), PADDED)
  assert configs[0].sampling.never == never != ()

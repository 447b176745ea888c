"""Who says which token, and how much of an answer's attention they get."""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.analysis import looks
from opd_jax.context.chat import render
from opd_jax.context.conversation import from_example
from opd_jax.data import tokenizer as tokenizers
from opd_jax.data.sources import Example
from opd_jax.models import decoder
from opd_jax.tasks import relay
from opd_jax.types import Batch, Rollout
from tests.conftest import STUDENT


def test_every_token_of_a_conversation_has_its_speaker(tmp_path):
  relay.save_tokenizer(tmp_path)
  tokenizer = tokenizers.load(tmp_path)
  p = relay.RELAY.problem(random.Random(0), held_out=False)
  talk = from_example(Example(p.prompt, p.answer, "here", turns=p.turns))
  replies = ["#5"] * (len(p.turns) - 1)
  messages = talk.raw(replies)
  ids, who = looks.speakers(messages, tokenizer)
  assert ids == render(messages, tokenizer, chat_template=True)
  wanted = []
  for turn, reply in zip(p.turns, [*replies, None], strict=True):
    wanted += [0] + [looks.USER] * len(turn) + [0]
    wanted += [] if reply is None else [looks.OWN] * len(reply) + [0]
  assert who == wanted


@pytest.fixture
def rows():
  rng = np.random.default_rng(0)
  prompt_mask = np.arange(9) >= np.array([0, 3, 2])[:, None]
  mask = np.arange(5) < np.array([5, 2, 3])[:, None]
  batch = Batch(prompt=jnp.asarray(rng.integers(2, 37, (3, 9))), prompt_mask=jnp.asarray(prompt_mask))
  said = Rollout(jnp.asarray(rng.integers(2, 37, (3, 5))), jnp.asarray(mask), jnp.zeros((3, 5)), jnp.zeros(3, bool))
  who = jnp.asarray(np.array([[1, 1, 2, 2, 1, 0, 2, 1, 0]] * 3))
  return batch, said, who


def test_the_ratio_is_that_of_the_attention_written_out(student, rows):
  """Softmax of the first layer's scores, head by head and token by token."""
  batch, said, who = rows
  found = looks.ratios(student, batch, said, who, cfg=STUDENT, dtype=jnp.float32)
  assert found.shape == (3, STUDENT.layers)
  w = jax.tree.map(lambda a: a[0], student["layers"])
  for row in range(3):
    there = np.asarray(batch.prompt_mask[row])
    answer = np.asarray(said.response[row])[np.asarray(said.mask[row])]
    tokens = jnp.asarray(np.concatenate([np.asarray(batch.prompt[row])[there], answer])[None])
    speakers = np.concatenate([np.asarray(who[row])[there], np.zeros(len(answer), int)])
    rope = decoder.rope_tables(STUDENT, jnp.arange(tokens.shape[1])[None])
    q, k, _ = map(np.asarray, decoder.qkv(decoder.embed(student, tokens, jnp.float32), w, STUDENT, rope))
    total = {looks.USER: [], looks.OWN: []}
    for n in range(STUDENT.heads):
      for t in range(tokens.shape[1] - len(answer), tokens.shape[1]):
        scores = k[0, : t + 1, n * STUDENT.kv_heads // STUDENT.heads] @ q[0, t, n] / np.sqrt(STUDENT.head_width)
        weight = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        for one in total:
          total[one].append(weight[speakers[: t + 1] == one].mean())
    wanted = np.log(np.mean(total[looks.USER]) + looks.EPS) - np.log(np.mean(total[looks.OWN]) + looks.EPS)
    assert found[row, 0] == pytest.approx(wanted, abs=1e-4)


def test_attention_to_everything_is_one(student, rows):
  batch, _, who = rows
  everything = jnp.stack([who >= 0, who < 0], axis=-1)
  seen = looks.masses(student, batch.prompt, batch.prompt_mask, everything, cfg=STUDENT)
  real = np.asarray(batch.prompt_mask)
  np.testing.assert_allclose(seen[:, real, 0], 1, atol=1e-5)
  np.testing.assert_array_equal(seen[:, real, 1], 0)


def test_who_said_nothing_has_no_ratio(student, rows):
  batch, said, who = rows
  silent = dataclasses.replace(said, mask=said.mask.at[2].set(False))
  alone = who.at[0].set(jnp.where(who[0] == looks.OWN, 0, who[0]))
  found = looks.ratios(student, batch, silent, alone, cfg=STUDENT, dtype=jnp.float32)
  assert np.isnan(found[:, 0]).tolist() == [True, False, True]


def test_speakers_stand_where_their_tokens_do():
  assert looks.in_columns([[1, 2], [1, 2, 1, 2]], 3).tolist() == [[0, 1, 2], [2, 1, 2]]

"""The speaker of every token, and how much of an answer's attention user and student get."""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.analysis import attention_ratio
from opd_jax.context.split_problem import from_example
from opd_jax.data import tokenizer as tokenizers
from opd_jax.data.chat import render
from opd_jax.data.rendering import Rendering
from opd_jax.data.sources import Example
from opd_jax.models import decoder, decoder_config
from opd_jax.tasks import relay
from opd_jax.types import Batch, Rollout
from tests.conftest import STUDENT
from tests.helpers.reciter import DROPS, template, write_reciter


def test_every_token_of_a_conversation_has_its_speaker(tmp_path):
  relay.TOKENIZER.save(tmp_path)
  tokenizer = tokenizers.load(tmp_path)
  p = relay.RELAY.problem(random.Random(0), held_out=False)
  talk = from_example(Example(p.prompt, p.answer, "here", turns=p.turns))
  replies = ["#5"] * (len(p.turns) - 1)
  messages = talk.raw(replies)
  ids, speakers = attention_ratio.speakers(messages, tokenizer, Rendering())
  assert ids == render(messages, tokenizer, Rendering())
  wanted = []
  for turn, reply in zip(p.turns, [*replies, None], strict=True):
    wanted += [0] + [attention_ratio.USER] * len(turn) + [0]
    wanted += [] if reply is None else [attention_ratio.OWN] * len(reply) + [0]
  assert speakers == wanted


def test_of_a_turn_without_its_thought_the_conclusion_is_the_students_own(tmp_path):
  """The template leaves the thought out, so the turn does not stand in the text word by word."""
  tokenizer = tokenizers.load(write_reciter(tmp_path / "m", "Q F Yes No", chat_template=template(DROPS)))
  messages = [("user", "Q"), ("assistant", "<think> No </think> Yes"), ("user", "F")]
  ids, speakers = attention_ratio.speakers(
    [{"role": role, "content": text} for role, text in messages], tokenizer, Rendering()
  )
  assert tokenizer.convert_ids_to_tokens(ids) == ["<user>", "Q", "<bot>", "Yes", "<eos>", "<user>", "F", "<bot>"]
  assert speakers == [0, attention_ratio.USER, 0, attention_ratio.OWN, 0, 0, attention_ratio.USER, 0]


@pytest.fixture
def rows():
  rng = np.random.default_rng(0)
  prompt_mask = np.arange(9) >= np.array([0, 3, 2])[:, None]
  mask = np.arange(5) < np.array([5, 2, 3])[:, None]
  batch = Batch(prompt=jnp.asarray(rng.integers(2, 37, (3, 9))), prompt_mask=jnp.asarray(prompt_mask))
  rollout = Rollout(jnp.asarray(rng.integers(2, 37, (3, 5))), jnp.asarray(mask), jnp.zeros((3, 5)), jnp.zeros(3, bool))
  speaker = jnp.asarray(np.array([[1, 1, 2, 2, 1, 0, 2, 1, 0]] * 3))
  return batch, rollout, speaker


def test_the_ratio_is_that_of_the_attention_written_out(student, rows):
  """Softmax of the first layer's scores, head by head and token by token."""
  batch, rollout, speaker = rows
  found = attention_ratio.ratios(student, batch, rollout, speaker, cfg=STUDENT, dtype=jnp.float32)
  assert found.shape == (3, STUDENT.layers)

  @jax.jit
  def queries_and_keys(tokens):
    w = jax.tree.map(lambda a: a[0], student["layers"])
    rope = decoder_config.rope_tables(STUDENT, jnp.arange(tokens.shape[1])[None])
    return decoder.qkv(decoder.embed(student, tokens, jnp.float32), w, STUDENT, rope)[:2]

  for row in range(3):
    mask = np.asarray(batch.prompt_mask[row])
    answer = np.asarray(rollout.response[row])[np.asarray(rollout.mask[row])]
    tokens = jnp.asarray(np.concatenate([np.asarray(batch.prompt[row])[mask], answer])[None])
    speakers = np.concatenate([np.asarray(speaker[row])[mask], np.zeros(len(answer), int)])
    q, k = map(np.asarray, queries_and_keys(tokens))
    total = {attention_ratio.USER: [], attention_ratio.OWN: []}
    for n in range(STUDENT.heads):
      for t in range(tokens.shape[1] - len(answer), tokens.shape[1]):
        scores = k[0, : t + 1, n * STUDENT.kv_heads // STUDENT.heads] @ q[0, t, n] / np.sqrt(STUDENT.head_width)
        weight = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        for who in total:
          total[who].append(weight[speakers[: t + 1] == who].mean())
    user, own = (np.mean(total[who]) + attention_ratio.EPS for who in (attention_ratio.USER, attention_ratio.OWN))
    wanted = np.log(user) - np.log(own)
    assert found[row, 0] == pytest.approx(wanted, abs=1e-4)


def test_attention_to_everything_is_one(student, rows):
  batch, _, speaker = rows
  everything = jnp.stack([speaker >= 0, speaker < 0], axis=-1)
  mass = attention_ratio.attention_mass(student, batch.prompt, batch.prompt_mask, everything, cfg=STUDENT)
  mask = np.asarray(batch.prompt_mask)
  np.testing.assert_allclose(mass[:, mask, 0], 1, atol=1e-5)
  np.testing.assert_array_equal(mass[:, mask, 1], 0)


def test_a_row_without_an_answer_or_a_speaker_has_no_ratio(student, rows):
  batch, rollout, speaker = rows
  silent = dataclasses.replace(rollout, mask=rollout.mask.at[2].set(False))
  alone = speaker.at[0].set(jnp.where(speaker[0] == attention_ratio.OWN, 0, speaker[0]))
  found = attention_ratio.ratios(student, batch, silent, alone, cfg=STUDENT, dtype=jnp.float32)
  assert np.isnan(found[:, 0]).tolist() == [True, False, True]


def test_speakers_stand_where_their_tokens_do():
  assert attention_ratio.pad_left([[1, 2], [1, 2, 1, 2]], 3).tolist() == [[0, 1, 2], [2, 1, 2]]

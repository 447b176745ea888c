"""Second answers behind comments, with a generator and a verifier that are written by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from opd_jax import config as configs
from opd_jax import inputs
from opd_jax.context.comments import Comment, Outcome
from opd_jax.data import tokenizer as tokenizers
from opd_jax.evaluation import commented
from opd_jax.rollout.generate import Completions
from opd_jax.runtime import mesh as meshes


@pytest.fixture
def evaluator(tiny, monkeypatch):
  """Attempts are right in every other row; a second answer is right where the comment says "1"."""
  changes = {
    "student": tiny["student"],
    "data.path": "task:operators",
    "eval.prompts": 4,
    "eval.k": 2,
    "horizon.max": 8,
    "context.template": "{prompt}{solution}{feedback}=",
    "context.feedback_template": ">{text}",
    "context.solution_template": ":{text}",
    "context.max_tokens": 24,
  }
  config = configs.override(configs.default("self_distillation"), changes)
  model, mesh = inputs.learner(config), meshes.for_reading(config.mesh)
  tokenizer = tokenizers.load(model.path)
  loaded = inputs.load_evaluation(config, model, tokenizer, mesh, model.cfg.vocab)
  loaded = dataclasses.replace(loaded, verify=lambda response, answer, **_: response.endswith("1"))
  asked = []

  class ByHand:
    def __init__(self, *_, k, **__):
      self.k = k

    def __call__(self, params, ids, key):
      asked.append(ids)
      if self.k > 1:
        texts = [f"{'01'[i % 2]}" for i in range(len(ids) * self.k)]
      else:
        texts = [tokenizer.decode(row)[-2] for row in ids]
      return Completions(texts, np.ones(len(texts), int), np.ones(len(texts), bool))

  monkeypatch.setattr(commented, "Generator", ByHand)
  return commented.CommentedEvaluator(config, loaded), asked, loaded


def say(*texts):
  """Comment on rows by these texts in turn; "" is one that was dropped."""

  def source(prompts, responses, key):
    said = [texts[i % len(texts)] for i in range(len(responses))]
    return [Comment(text, Outcome.KEPT if text else Outcome.FOREIGN) for text in said]

  return source


def test_a_comment_is_shown_behind_its_own_prompt_and_counted(evaluator):
  measure, asked, loaded = evaluator
  found = measure({}, {"right": say("1"), "wrong": say("0"), "some": say("1", ""), "none": say("")})
  decode = loaded.tokenizer.decode
  prompts = [decode(ids) for ids in asked[0]]
  assert [decode(ids) for ids in asked[1]] == prompts, "again, alone"
  assert [decode(ids) for ids in asked[2]] == [f"{prompt}>1=" for prompt in prompts for _ in range(2)]
  assert found["again"]["rows"] == 8
  assert found["again"]["broken"]["all"]["rate"] == 0, "the same answers, by hand"
  assert found["right"]["with"]["all"] == 1
  assert found["right"]["without"]["all"] == 0.5
  assert found["right"]["broken"]["all"]["rate"] == 0
  assert found["wrong"]["broken"]["all"] == {"rate": 1, "rows": 4} | {
    key: found["wrong"]["broken"]["all"][key] for key in ("low", "high")
  }
  assert found["wrong"]["broken_by_solved"].keys() == {"1"}, "one of two attempts at each problem was right"
  assert found["some"]["rows"] == 4
  assert found["some"]["without"]["all"] == 0, "of the rows that were commented"
  assert found["some"]["comments"] == {"foreign": 4, "kept": 4}
  assert found["none"] == {"comments": {"foreign": 8}, "rows": 0}
  assert set(found["right"]["with"]) == {"all", *loaded.problems.domains}


def test_shuffled_comments_are_those_on_another_row():
  rows = commented.shuffled(lambda prompts, texts, key: [Comment(t, Outcome.KEPT) for t in texts], 2)
  texts = [c.text for c in rows([""] * 4, list("abcd"), jax.random.key(0))]
  assert texts == list("cdab")

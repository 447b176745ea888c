"""The study of healing on a made-up model: its prompts, its arms, and a very small run from pruning to the page."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest

from opd_jax import checks, study
from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, hf_config
from opd_jax.studies.healing import arms, claims, curves, measures, prompts, sections
from opd_jax.studies.run import config_of, digest
from opd_jax.studies.verdicts import MISSING
from opd_jax.tasks import gsm8k

NAMES = [arm.name for arm in arms.ARMS]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  """A model of four layers that reads bytes, with random weights."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  directory = tmp_path_factory.mktemp("original") / "model"
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(["<eos>", "<pad>", *alphabet])}, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
  cfg = decoder.DecoderConfig(
    vocab=len(fast), d_model=16, layers=4, heads=2, kv_heads=1, head_width=8, ff_width=24, max_positions=512
  )
  import jax

  hf.write(directory, cfg, decoder.init(cfg, jax.random.key(0), 0.3), pad_id=1, eos_id=0, dtype="float32")
  fast.save_pretrained(directory)
  return directory


@pytest.fixture
def little(monkeypatch):
  """Four steps of two short rollouts."""
  few = {"steps": 4, "eval.every": 4, "checkpoint.every": 2, "batch": 2, "horizon.max": 12, "eval.batch": 4}
  short = {
    "horizon.kind": "full",
    "eval.prompts": 4,
    "eval.max_tokens": 8,
    "horizon.ratio": 0.0,
    "compile_cache": "off",
  }
  small = tuple(arm._replace(changes=arm.changes | few | short) for arm in arms.ARMS)
  monkeypatch.setattr(arms, "ARMS", small)
  monkeypatch.setattr(measures, "ASKED", 2)
  monkeypatch.setattr(measures, "T", 12)
  for module in (measures, curves, sections):
    monkeypatch.setattr(module, "EDGES", (0, 4, 12))
  monkeypatch.setattr(measures, "WORD_PROBLEMS", measures.WORD_PROBLEMS | {"eval.prompts": 4, "eval.max_tokens": 8})


def test_prompts_that_are_held_out_are_trained_in_no_form():
  trained, asked = prompts.instructions(held_out=False), prompts.instructions(held_out=True)
  assert len(trained) == len(set(trained)) == 500
  assert len(asked) == len(set(asked)) == 100
  assert not [text for topic in prompts.HELD_OUT for text in trained if re.search(rf"\b{topic}\b", text)]
  problems = prompts.word_problems(100, held_out=True)
  assert all(gsm8k.verify(f"The answer is {answer}.", answer) for _, answer in problems)
  assert {text for text, _ in problems}.isdisjoint({text for text, _ in prompts.word_problems(100, held_out=False)})
  assert all(int(answer) >= 0 for _, answer in problems)


def test_the_arms_cost_about_the_same():
  horizon = {"opd": arms.T, **{f"topd-{name}": ratio * arms.T for ratio, name in arms.RATIOS.items()}}
  steps = {arm.name: arm.config(0).steps for arm in arms.ARMS}
  for name, tokens in horizon.items():
    assert steps[name] * arms.cost(tokens) == pytest.approx(arms.FULL_STEPS, rel=0.15), name
  assert steps["opd-few-rows"] * arms.FEW_ROWS == steps["opd"] * arms.ROWS
  assert steps["topd-25-long"] == pytest.approx(2 * steps["topd-25"], rel=0.1)
  assert all(arm.config(0).steps % arm.config(0).checkpoint.every == 0 for arm in arms.ARMS)
  assert len({digest([arm.config(0)]) for arm in arms.ARMS}) == len(NAMES)


def test_every_arm_is_a_config_that_can_run(original, tmp_path):
  changes = arms.prepare(tmp_path, str(original), "1-2", 0, "")
  for arm in arms.ARMS:
    c = config_of(arm, 20, tmp_path, changes)
    checks.check(c)
    assert c.teacher == ("" if arm.name == "null" else str(original))
  assert hf_config.read(tmp_path / "pruned") == dataclasses.replace(hf_config.read(original), layers=2)
  assert arms.prepare(tmp_path, str(original), "1-2", 0, "") == changes
  with pytest.raises(InputError, match="another model or of other layers"):
    arms.prepare(tmp_path, str(original), "1", 0, "")
  (tmp_path / "healing.json").unlink()  # killed before it was written
  arms.prepare(tmp_path, str(original), "1", 0, "")
  assert hf_config.read(tmp_path / "pruned").layers == 3


@pytest.mark.parametrize(
  ("asked", "why"), [(("", "1", 0, ""), "needs a model"), (("DIR", "", 0, ""), "Nothing is pruned")]
)
def test_a_study_without_a_cut_model_is_refused(asked, why, tmp_path):
  with pytest.raises(InputError, match=why):
    arms.prepare(tmp_path, *asked)


def test_repeats_and_bins_by_hand():
  assert measures.repeats([1, 2, 3, 4, 1, 2, 3, 4, 9]) == [False] * 7 + [True, False]
  rows = [np.arange(20.0), np.arange(3.0)]
  means, counts = measures.binned(rows)
  assert (means[0], counts[0]) == (pytest.approx((sum(range(16)) + 3) / 19), 19)
  assert (means[1], counts[1]) == (pytest.approx((16 + 17 + 18 + 19) / 4), 4)
  assert means[2:] == [None] * 4
  assert counts[2:] == [0] * 4


@pytest.mark.long
def test_a_pruned_model_is_healed_measured_and_reported(original, little, tmp_path, monkeypatch):
  flags = [f"--model={original}", "--drop-layers=1", "--only=opd,sft,null", "--seeds=1", f"--out={tmp_path}"]
  monkeypatch.setattr(sys, "argv", ["study", "healing", *flags])
  study.main()
  found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("analysis/*/seed20.json")}
  assert found.keys() == {"asked-untrained", "asked-opd", "asked-sft", "asked-null"}
  assert [step["step"] for step in found["asked-opd"]["steps"]] == [2, 4]
  saved = [int(path.name) for path in (tmp_path / "runs" / "opd" / "seed20" / "checkpoints").glob("[0-9]*")]
  assert saved == [4], "the others are measured and deleted"
  for record in found.values():
    assert 0 <= record["steps"][-1]["agreement"] <= 1
    assert record["steps"][-1]["original"].keys() == {"length", "ended", "repeated"}
    for step in record["steps"]:
      assert step["kl"] > 0
      assert step["kl"] == pytest.approx(
        sum(x * n for x, n in zip(step["by_position"], step["tokens"], strict=True) if n) / sum(step["tokens"])
      )
  status = {v["claim"]: v["status"] for v in json.loads((tmp_path / "report" / "verdicts.json").read_text())}
  assert status["OPD heals"] != MISSING
  assert status["own words are better than the teacher's"] != MISSING
  assert status["POPD is sooner"] == MISSING
  (tmp_path / "analysis" / "asked-opd" / "seed20.json").rename(tmp_path / "kept.json")
  with pytest.raises(SystemExit):  # it cannot be measured again
    study.main()
  (tmp_path / "kept.json").rename(tmp_path / "analysis" / "asked-opd" / "seed20.json")
  made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/seed*.json")}
  study.main()
  assert made
  assert all(path.stat().st_mtime_ns == then for path, then in made.items())


def test_what_claims_and_pages_name_is_there():
  assert set(arms.SHORT) <= set(NAMES)
  assert len({claim.name for claim in claims.CLAIMS}) == len(claims.CLAIMS)
  assert list(sections.ASKED)[1:] == NAMES

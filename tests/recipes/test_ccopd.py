"""Conversations from end to end: what the student reads, what is kept, and a run that resumes."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from opd_jax import inputs
from opd_jax.analysis.deviation import deviation, placeholder
from opd_jax.context import canonical
from opd_jax.data import chat
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError, StopRequested
from opd_jax.evaluate import summary_lines
from opd_jax.models import hf, lora
from opd_jax.tasks import relay
from opd_jax.trainer import open_run, train, train_run
from tests.conftest import STUDENT
from tests.helpers.conversation_runs import small, write_talker
from tests.helpers.runs import leaves, read, without_time

pytestmark = [pytest.mark.usefixtures("shared_programs"), pytest.mark.long]


@pytest.fixture(scope="module")
def talker(tmp_path_factory) -> str:
  return write_talker(tmp_path_factory.mktemp("talker") / "model")


@pytest.fixture(scope="module")
def whole(talker, tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "whole"
  run = open_run(small(talker), path)
  train_run(run)
  return path, run


def test_the_student_reads_its_conversations_and_the_teacher_everything(whole, talker, tmp_path):
  path, _ = whole
  run = open_run(small(talker), tmp_path / "w")
  run.recipe.shapes(run, 0)  # generates the replies
  batch, conversations, decode = next(run.prompts), run.inputs.train.conversations, run.inputs.tokenizer.decode
  lines = [json.loads(line) for line in (path / "histories" / "00000000.jsonl").read_text().splitlines()]
  replies_of = {line["problem"]: line["replies"] for line in lines[1:]}
  assert sorted(replies_of) == run.prompts.indices_of_steps(0, 4)
  for i, problem in enumerate(run.prompts.index):
    conversation, replies = conversations[problem], replies_of[int(problem)]
    theirs = batch.of_teacher
    teacher = decode(np.asarray(theirs.prompt[i])[np.asarray(theirs.prompt_mask[i])])
    assert teacher == f"U{conversation.full}A"
    student = decode(np.asarray(batch.prompt[i])[np.asarray(batch.prompt_mask[i])])
    assert len(replies) == len(conversation.turns) - 1
    before = "".join(f"U{turn}A{reply}<eos>" for turn, reply in zip(conversation.turns, replies, strict=False))
    assert student == f"{before}U{conversation.turns[-1]}A"
    assert conversation.full not in student


def test_evaluations_have_all_forms_and_a_conversation_to_look_at(whole):
  path, _ = whole
  evaluations = read(path, "eval")
  assert [r["step"] for r in evaluations] == [0, 2, 4]
  for r in evaluations:
    assert set(r["forms"]) == {"full", "concat", "raw"}
    assert r["forms"]["raw"]["accuracy"] == r["accuracy"]
    assert set(r["anchored"]) == {"wrong", "kept"}
  shown = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
  roles = [m["role"] for m in shown[0]["messages"]]
  assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_deviation_is_what_the_other_prompt_and_own_words_add(whole, monkeypatch):
  """Zero where both sides read the same; all of it the own turns' where only they differ."""
  _, run = whole
  evaluator = run.evaluators["student"]
  silent = [(placeholder(talk),) * (len(talk.turns) - 1) for talk in evaluator.conversations]
  assert silent[0][0] == relay.WAIT
  as_told = [dataclasses.replace(t, full=t.raw(r)) for t, r in zip(evaluator.conversations, silent, strict=True)]
  monkeypatch.setattr(evaluator, "conversations", as_told)
  found = deviation(evaluator, run.models()["student"])
  assert found["neutral"] == 0
  assert found["own_turn"] == found["psi"] > 0
  monkeypatch.setattr(evaluator, "converse", lambda params: silent)
  found = deviation(evaluator, run.models()["student"])
  assert [found[name] for name in ("psi", "neutral", "own_turn")] == [0, 0, 0]
  assert len(found["looks"]) == STUDENT.layers


def test_only_the_adapter_is_trained_and_saved(whole, talker):
  _, run = whole
  assert set(run.state.params) == {"layers"}
  assert all(name[-2:] in ("_a", "_b") for name in run.state.params["layers"])
  assert run.frozen.teachers == (None,), "nothing is there for the teacher alone"
  assert run.frozen.teacher_params[0] is run.frozen.base
  on_disk = hf.load(hf.resolve(talker))
  jax.tree.map(np.testing.assert_array_equal, run.frozen.base, on_disk)


@pytest.mark.parametrize("refresh", [0, pytest.param(3, marks=pytest.mark.long)])
def test_stopped_and_resumed_is_uninterrupted(refresh, talker, whole, tmp_path):
  """Bit for bit; with new conversations every three steps, from a checkpoint inside and at the end of a talk."""
  if refresh:
    path, run = tmp_path / "whole", open_run(small(talker, **{"context.refresh": 3}), tmp_path / "whole")
    train_run(run)
    assert sorted(p.name for p in (path / "histories").glob("*.jsonl")) == ["00000000.jsonl", "00000003.jsonl"]
  else:
    path, run = whole
  changes = {"context.refresh": refresh}
  train(small(talker, steps=2, **changes), tmp_path / "w")
  again = open_run(small(talker, **changes), tmp_path / "w")
  assert again.resumed_from == 2
  train_run(again)
  for mine, theirs in zip(leaves(again.state), leaves(run.state), strict=True):
    np.testing.assert_array_equal(mine, theirs)

  def untimed(workdir):
    return [without_time(r) for r in read(workdir, "train")]

  assert untimed(tmp_path / "w") == untimed(path)


def test_lost_conversations_stop_a_run_that_cannot_have_them_again(talker, tmp_path):
  changes = {"context.refresh": 3, "eval.every": 0}
  train(small(talker, steps=2, **changes), tmp_path / "w")
  file = tmp_path / "w" / "histories" / "00000000.jsonl"
  file.write_text("{")
  with pytest.raises(InputError, match="damaged"):
    train(small(talker, **changes), tmp_path / "w")
  file.unlink()
  with pytest.raises(InputError, match="restore the file"):
    train(small(talker, **changes), tmp_path / "w")


def test_a_run_that_is_asked_to_stop_in_a_talk_keeps_what_was_said(talker, whole, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(canonical, "AT_A_TIME", 4)
  path = tmp_path / "w"
  run = open_run(small(talker), path)
  generate_replies = canonical.Histories.replies

  def interrupted(*args):
    run.preemption.request()
    return generate_replies(*args)

  with monkeypatch.context() as patched:
    patched.setattr(canonical.Histories, "replies", interrupted)
    with pytest.raises(StopRequested):
      train_run(run)
  assert "  4 of 16 conversations" in capsys.readouterr().err
  file = path / "histories" / "00000000.jsonl"
  had = file.read_text().splitlines()[1:]
  assert len(had) == 4
  again = open_run(small(talker), path)
  train_run(again)
  assert set(had) < set(file.read_text().splitlines())
  for mine, theirs in zip(leaves(again.state), leaves(whole[1].state), strict=True):
    np.testing.assert_array_equal(mine, theirs)


def test_conversations_that_lose_their_beginning_are_counted_and_said(whole, talker, tmp_path, monkeypatch, capsys):
  """Replies longer than what is reserved for them: the ends of the prompts stay, and a note says how many are cut."""
  long_reply = "#5" * 40

  def too_long(histories, problems, params, step):
    return [(long_reply,) * (len(histories.conversations[i].turns) - 1) for i in problems]

  run = open_run(small(talker), tmp_path / "w")
  capsys.readouterr()
  with monkeypatch.context() as patched:
    patched.setattr(canonical.Histories, "replies", too_long)
    run.recipe.shapes(run, 0)
  assert "note: 16 of 16 conversations lost their beginning" in capsys.readouterr().err
  batch = next(run.prompts)
  assert np.asarray(batch.prompt_mask).all(), "as long as the longest compiled prompt"
  ends = [run.inputs.train.conversations[i].turns[-1] for i in run.prompts.index]
  for ids, end in zip(np.asarray(batch.prompt), ends, strict=True):
    assert run.inputs.tokenizer.decode(ids).endswith(f"U{end}A")


def test_an_evaluation_counts_conversations_that_lose_their_beginning(whole, monkeypatch):
  _, run = whole
  evaluator, params = run.evaluators["student"], run.models()["student"]
  record, _ = evaluator(params)
  assert "prompts_cut" not in record
  first, *others = evaluator.converse(params)
  too_long = [("#5" * 40,) * len(first), *others]
  monkeypatch.setattr(evaluator, "converse", lambda params: too_long)
  record, _ = evaluator(params)
  assert record["prompts_cut"] == 1
  lines = list(summary_lines(run.config, {"of": "x", **record}, 0))
  assert any("1 of 4 conversations lost their beginning" in line for line in lines)


LEARNED = {"objective.support": "sampled", "objective.kind": "forward_kl", "objective.estimator": "nll"}
ANY_TURN = {"context.turns": "any", "horizon.kind": "truncated", "horizon.ratio": 0.5, "data.widths": 1.5}
REWARD = {"mixture.divergence": 0.0, "mixture.reward": 1.0, "rollouts_per_prompt": 2}


@pytest.mark.parametrize(
  "changes",
  [
    LEARNED | {"rollout.by": "data"},
    pytest.param(LEARNED | {"rollout.by": "teacher"}, marks=pytest.mark.long),
    pytest.param(ANY_TURN | {"lora.rank": 0}, marks=pytest.mark.long),
    pytest.param(REWARD, marks=pytest.mark.long),
  ],
  ids=["right answers", "the teacher's answers", "a random turn, all weights", "reward"],
)
def test_variants_run(changes, talker, tmp_path):
  train(small(talker, **({"steps": 1, "eval.every": 0, "checkpoint.every": 0} | changes)), tmp_path / "w")
  (record,) = read(tmp_path / "w", "train")
  assert np.isfinite(record["loss"])
  assert record["step_tokens"] > 0


def test_both_sides_end_a_turn_with_the_same_token(talker, tmp_path):
  """Where a reply is asked for, both prompts end alike; and a reply in a conversation ends as the student's own do."""
  i = inputs.load(small(talker))
  conversation = i.train.conversations[0]
  raw, full = chat.render_all(
    [conversation.raw(("#5",) * (len(conversation.turns) - 1)), conversation.full], i.tokenizer, Rendering()
  )
  assert raw[-1] == full[-1] == relay.TOKENIZER.ids[relay.ASSISTANT]
  assert (chat.end_of_turn(i.tokenizer, Rendering()) or [None])[0] in i.student.stop_ids
  assert not any("ends an assistant's turn" in warning for warning in i.warnings)
  other = pathlib.Path(shutil.copytree(talker, tmp_path / "other"))
  mended = {"eos_token_id": [relay.TOKENIZER.ids["\n"]]}
  for name in ("config.json", "generation_config.json"):
    (other / name).write_text(json.dumps(json.loads((other / name).read_text()) | mended))
  loaded = inputs.load(small(str(other)))
  assert any("is named differently" in warning and "'<eos>'" in warning for warning in loaded.warnings)
  assert set(loaded.student.stop_ids) == {relay.TOKENIZER.ids["\n"], relay.TOKENIZER.ids["<eos>"]}


@pytest.mark.parametrize(
  ("changes", "why"),
  [
    ({"rollout.by": "data"}, "nothing is on-policy"),
    (LEARNED, "no gradient"),
    ({"data.max_prompt": 40, "data.on_bad_line": "refuse"}, "may come to"),
    ({"data.max_prompt": 20}, "No conversation fits"),
    ({"data.path": "task:chain"}, "told turn by turn"),
    ({"data.chat_template": False}, "needs a chat template"),
    ({"teacher_offload": True}, "leave it False"),
    ({"context.turns": "first"}, "context.turns"),
  ],
  ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_meant_is_refused(changes, why, talker):
  with pytest.raises(InputError, match=why):
    inputs.load(small(talker, **changes))


def test_evaluate_and_export_an_adapters_run(whole, tmp_path):
  """As a PEFT directory that a run can begin with, and as a whole model that says the same."""
  path, run = whole

  def command(module, *args):
    done = subprocess.run(
      [sys.executable, "-m", f"opd_jax.{module}", *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  printed = command("evaluate", f"--workdir={path}", "--deviation")
  for form in ("full:", "concat:", "raw:", "a wrong solution:", "a wrong hint:", "deviation of raw"):
    assert form in printed
  command("export", f"--workdir={path}", f"--out={tmp_path / 'adapter'}")
  command("export", f"--workdir={path}", f"--out={tmp_path / 'merged'}", "--merge", "--dtype=float32")
  read_back = lora.load(tmp_path / "adapter", run.inputs.student.cfg, lora.read_config(tmp_path / "adapter"))
  jax.tree.map(np.testing.assert_array_equal, read_back, run.state.params)
  merged = lora.merge(run.models()["student"], run.inputs.student.cfg.adapter_scale)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), hf.load(tmp_path / "merged"), merged)
  begun = {"lora.path": str(tmp_path / "adapter"), "steps": 1, "eval.every": 0}
  with pytest.raises(InputError, match="--merge"):
    inputs.load(small(run.config.student, **begun))
  again = open_run(small(run.config.student, teacher=str(tmp_path / "merged"), **begun), tmp_path / "w")
  jax.tree.map(np.testing.assert_array_equal, again.state.params, run.state.params)

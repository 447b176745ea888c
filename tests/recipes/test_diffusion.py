"""d-OPSD: what an update computes against its formula, and runs that are killed, skip, are evaluated and exported."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opd_jax
from opd_jax import config as configs
from opd_jax import tasks
from opd_jax.data import denoised
from opd_jax.errors import InputError
from opd_jax.models import decoder, hf_config, roofline
from opd_jax.recipes import base
from opd_jax.reports import canvases
from opd_jax.reports import page as report_page
from opd_jax.reports.comparison import Arm
from opd_jax.reports.runs import load
from opd_jax.rewards.reward import RewardRecord
from opd_jax.rollout.denoise import canvas_at
from opd_jax.trainer import open_run, train, train_run
from opd_jax.training import diffusion_config, specs
from tests.helpers import masked_models
from tests.helpers.masked_models import CFG, MASK
from tests.helpers.runs import leaves, read, without_time

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="session")
def masked(tmp_path_factory) -> str:
  """The directory of a masked diffusion model."""
  return masked_models.write(tmp_path_factory.mktemp("masked") / "student")


@pytest.fixture
def config(masked):
  return functools.partial(masked_models.small, masked)


DREAM = {"denoising.schedule": "linear", "denoising.block": 16}


def even(response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
  return sum(map(ord, response)) % 2 == 0


@pytest.fixture
def some_are_right(monkeypatch):
  """Random weights never answer right."""
  monkeypatch.setitem(tasks.VERIFIERS, "chain", even)


@pytest.mark.long
@pytest.mark.parametrize(
  "target", ["teacher", *(pytest.param(name, marks=pytest.mark.long) for name in ("samples", "reward"))]
)
@pytest.mark.usefixtures("some_are_right")
def test_killed_and_resumed_is_uninterrupted(target, config, tmp_path):
  changes = {"diffusion.target": target}
  if target == "teacher":
    changes |= {"teacher_update.kind": "ema", "teacher_update.rate": 0.5, "diffusion.parts": 2, "diffusion.rows": 8}
  whole = train(config(**changes), tmp_path / "whole")
  train(config(steps=2, **changes), tmp_path / "parts")
  again = open_run(config(**changes), tmp_path / "parts")
  assert again.resumed_from == 2
  train_run(again)
  records = [without_time(r) for r in read(tmp_path / "whole", "train")]
  assert [without_time(r) for r in read(tmp_path / "parts", "train")] == records
  assert any(r["grad_norm"] > 0 for r in records)
  for a, b in zip(leaves(whole.state), leaves(again.state), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["current", "frozen"])
@pytest.mark.parametrize(
  "compared", ["teacher", *(pytest.param(name, marks=pytest.mark.long) for name in ("student", "all"))]
)
def test_a_teacher_that_is_shown_nothing_and_is_the_student_teaches_exactly_nothing(kind, compared, config, tmp_path):
  changes = {
    "context.share": 0.0,
    "teacher_update.kind": kind,
    "diffusion.accept": "all",
    "diffusion.compared": compared,
  }
  run = train(config(steps=1, **changes), tmp_path / "w")
  (record,) = read(tmp_path / "w", "train")
  assert record["loss"] == 0.0
  assert record["grad_norm"] == 0.0
  assert int(run.state.empty) == 1


@pytest.mark.long
def test_where_nothing_is_accepted_nothing_moves_and_it_is_counted(config, tmp_path, monkeypatch):
  """Neither parameters nor moments: not by momentum and decay either, behind a step that has learned."""
  changes = {"optimizer.weight_decay": 0.1, "context.share": 0.5}
  monkeypatch.setitem(tasks.VERIFIERS, "chain", lambda response, answer, **_: True)
  learned = train(config(steps=1, **changes), tmp_path / "w")
  assert not list(learned.outcome.lines())
  monkeypatch.setitem(tasks.VERIFIERS, "chain", lambda response, answer, **_: False)
  run = open_run(config(steps=3, **changes), tmp_path / "w")
  before = jax.tree.map(jnp.copy, run.state)
  assert any(np.abs(a).max() > 0 for a in jax.tree.leaves(before.opt_state) if a.ndim)
  train_run(run)
  assert int(run.state.empty) == 2
  jax.tree.map(np.testing.assert_array_equal, run.state.params, before.params)
  jax.tree.map(np.testing.assert_array_equal, run.state.opt_state, before.opt_state)
  assert [record["accepted"] for record in read(tmp_path / "w", "train")] == [1.0, 0.0, 0.0]


@pytest.mark.long
def test_a_run_of_which_nothing_is_accepted_says_that_it_has_learned_nothing(config, tmp_path, monkeypatch):
  monkeypatch.setitem(tasks.VERIFIERS, "chain", lambda response, answer, **_: False)
  assert train(config(steps=1), tmp_path / "w").outcome.learned_nothing


def experience_of(config, tmp_path, **changes):
  """A run, what its first step has collected, and which rollouts it learns from."""
  run = open_run(config(steps=1, **changes), tmp_path / "w")
  experience = run.wait(run.recipe.collect(run, 0))
  return run, experience, run.recipe._choose(run, experience)[0]


@pytest.mark.long
@pytest.mark.parametrize("reduction", ["mean", pytest.param("sum", marks=pytest.mark.long)])
@pytest.mark.usefixtures("some_are_right")
def test_the_loss_is_its_formula(reduction, config, tmp_path):
  """Of positions that the student committed, nothing revealed, toward another teacher: canvas by canvas, in numpy."""
  changes = {"context.share": 0.0, "diffusion.compared": "student", "diffusion.reduction": reduction}
  run, experience, chosen = experience_of(config, tmp_path, **changes)
  step, other = run.recipe.step, decoder.init(CFG, jax.random.key(5), scale=0.4)
  frozen = dataclasses.replace(run.frozen, teachers=(other,))
  params = jax.tree.map(jnp.copy, run.state.params)
  _, stats = experience.programs["update"](
    run.state, frozen, experience.prompts, experience.rollout, chosen, np.int32(8), np.int32(0), jax.random.key(0)
  )
  prompts, rollout = experience.prompts, experience.rollout
  losses = []
  for prompt in map(int, np.flatnonzero(chosen.weight)):
    row = prompt * step.n + int(chosen.number[prompt])
    for t in range(8):
      canvas = canvas_at(rollout.response[row], rollout.committed_at[row], t, MASK)[None]
      own, theirs = (
        jax.nn.log_softmax(
          decoder.unembed(
            w, decoder.canvas_hidden(w, CFG, prompts.prompt[prompt][None], prompts.prompt_mask[prompt][None], canvas)
          )[0, :, : step.objective.vocab]
        )
        for w in (params, other)
      )
      at = np.flatnonzero(rollout.committed_at[row] == t)
      kl = np.asarray(jnp.sum(jnp.exp(own) * (own - theirs), axis=-1))[at]
      losses.append(kl.mean() if reduction == "mean" else kl.sum())
  assert 0 < len(losses) < 4 * 8
  np.testing.assert_allclose(stats["loss"], np.mean(losses), rtol=1e-5)
  assert int(stats["canvases"]) == len(losses)
  assert int(stats["trained"]) == 2 * len(losses)


@pytest.mark.long
@pytest.mark.usefixtures("some_are_right")
def test_how_canvases_are_batched_changes_nothing(config, tmp_path):
  found = []
  for rows in (0, 4, 16):
    run, experience, chosen = experience_of(config, tmp_path / str(rows), **{"diffusion.rows": rows})
    arguments = experience.prompts, experience.rollout, chosen, np.int32(8), np.int32(0), jax.random.key(0)
    state, stats = experience.programs["update"](run.state, run.frozen, *arguments)
    found.append((float(stats["loss"]), leaves(state)))
  for loss, weights in found[1:]:
    np.testing.assert_allclose(loss, found[0][0], rtol=1e-5)
    for a, b in zip(weights, found[0][1], strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.long
@pytest.mark.usefixtures("some_are_right")
def test_a_horizon_learns_from_the_first_denoising_steps_alone(config, tmp_path):
  truncated = {"horizon.kind": "truncated", "horizon.ratio": 0.25}
  train(config(steps=1, **truncated), tmp_path / "w")
  (record,) = read(tmp_path / "w", "train")
  chosen = round(4 * record["accepted"])
  assert record["limit"] == record["width"] == 2
  assert record["canvases"] == 2 * chosen
  assert record["update_forwards"] == 2 * 4 * 2
  assert record["rollout_forwards"] == 4 * 2 * 8


@pytest.mark.long
def test_a_horizon_that_grows_learns_from_ever_more_denoising_steps(config, tmp_path):
  stairs = {"horizon.kind": "progressive", "horizon.start": 2, "horizon.growth": 2, "horizon.every": 1}
  train(config(**stairs, **{"horizon.quantum": 4, "diffusion.accept": "all"}), tmp_path / "w")
  records = read(tmp_path / "w", "train")
  assert [(record["limit"], record["width"]) for record in records] == [(2, 4), (4, 4), (6, 8), (8, 8)]
  assert [record["canvases"] for record in records] == [4 * 2, 4 * 4, 4 * 6, 4 * 8]


@pytest.mark.usefixtures("some_are_right")
def test_a_run_is_evaluated_exported_and_read_again(config, tmp_path):
  changes = {
    "eval.every": 2,
    "eval.prompts": 4,
    "eval.batch": 4,
    "eval.k": 2,
    "eval.max_tokens": 8,
    "eval.greedy": True,
  }
  train(config(steps=2, **changes), tmp_path / "w")
  evaluations = read(tmp_path / "w", "eval")
  assert [record["step"] for record in evaluations] == [0, 2]
  assert all(record["length"]["max"] <= 8 for record in evaluations)
  assert all(record["denoising_steps"] == 4 for record in evaluations)
  opd_jax.export(tmp_path / "w", tmp_path / "out")
  cfg = hf_config.read(tmp_path / "out")
  assert cfg == CFG
  of_directory = opd_jax.evaluate(
    opd_jax.load_model(tmp_path / "out"), config(**changes, **{"denoising.eval_steps": 8})
  )
  assert of_directory["length"]["max"] <= 8
  assert of_directory["denoising_steps"] == 8
  with pytest.raises(InputError, match=r"configs/d_opsd\.py"):
    opd_jax.evaluate(
      opd_jax.load_model(tmp_path / "out"),
      configs.override(configs.default(), {"data.path": "task:chain", "eval.max_tokens": 8}),
    )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"denoising.block": 5}, "config.denoising.block is 5, which does not divide a canvas of 16 tokens"),
    ({"horizon.max": 7}, "config.horizon.max gives 7 denoising steps for 2 block"),
    ({"horizon.max": 32}, "config.horizon.max gives 32 denoising steps"),
    ({"horizon.kind": "look", "horizon.start": 2}, "config.horizon.kind is 'look'"),
    ({"mixture.initial": 0.5}, "config.mixture.initial is 0.5"),
    ({"diffusion.parts": 3}, "config.diffusion.parts is 3"),
    ({"diffusion.target": "reward", "rollouts_per_prompt": 1}, "config.diffusion.target is 'reward'"),
    ({"objective.support": "sampled"}, "config.objective.support is 'sampled'"),
    (
      {"denoising.block": 16, "diffusion.states": "unended"},
      "config.diffusion.states is 'unended', which leaves out the last block",
    ),
    (
      {"diffusion.target": "samples", "diffusion.compared": "all", "context.share": 0.5},
      "config.context.share is 0.5, which does nothing",
    ),
    ({"eval.every": 1, "eval.max_tokens": 10}, "config.denoising.block is 8, which does not divide a canvas of 10"),
    (
      {"denoising.schedule": "linear"},
      "config.denoising.schedule is 'linear', which fills a canvas as a whole, and config.denoising.block is 8",
    ),
    ({"denoising.eps": 0.1}, "config.denoising.eps is 0.1, which is a time of the schedule 'linear'"),
    ({"denoising.remasking": "origin"}, "config.denoising.remasking is 'origin', which commits by the shares"),
    (DREAM | {"denoising.remasking": "origin", "denoising.eos": "last"}, "config.denoising.eos is 'last'"),
    (
      {"denoising.remasking": "random", "denoising.confidence_temperature": 0.5},
      "config.denoising.confidence_temperature is 0.5, and config.denoising.remasking 'random' asks for no confidence",
    ),
    (DREAM | {"context.reveal": "ahead"}, "config.context.reveal is 'ahead', which asks where a block ends"),
    (DREAM | {"diffusion.in_block": True}, "config.diffusion.in_block is True, which asks where a block ends"),
    (DREAM | {"horizon.max": 17}, r"config.horizon.max gives 17 denoising steps for 1 block\(s\) of 16 tokens"),
    ({"data.teacher_suffix": "="}, "reads prompts of its own"),
    ({"rollout.ahead": True, "diffusion.target": "reward"}, "config.rollout.ahead is True"),
    ({"reward.overlong": "mask"}, "config.reward.overlong is 'mask'"),
  ],
)
def test_what_cannot_be_meant_is_refused(changes, message, config, tmp_path):
  with pytest.raises(InputError, match=message):
    open_run(config(**changes), tmp_path / "w")


def test_models_that_write_from_left_to_right_and_those_that_do_not_are_told_apart(config, masked, tiny, tmp_path):
  with pytest.raises(InputError, match="writes from left to right, and the recipe 'diffusion'"):
    open_run(config(student=tiny["student"]), tmp_path / "a")
  c = configs.override(
    configs.default("opd"), {"student": masked, "teacher": masked, "eval.every": 0, "horizon.max": 16}
  )
  with pytest.raises(InputError, match="is a masked diffusion model, whose tokens are not written from left to right"):
    open_run(c, tmp_path / "b")


def test_a_plan_counts_canvases(config):
  """Forward passes over prompt and canvas, all tokens seeing each other: worked out here from the sizes."""
  recipe = base.make(specs.from_architectures(config(), stop_ids=(1,)))
  per_token = 2 * roofline.layer_parameters(CFG)
  rollout = recipe.roofline_costs("rollout", 4, 2, 16, 16)
  assert len(rollout) == 8
  pairs = 4 * 1 * 2 * 8 * 32**2  # two products of L N h numbers for each pair of tokens
  assert rollout[0].flops == 8 * (32 * per_token + pairs) + 8 * 8 * 2 * CFG.vocab * 16
  (update,) = recipe.roofline_costs("update", 4, 2, 16, 8)
  forward, head = 4 * 8 * (32 * per_token + pairs), 4 * 8 * 2 * CFG.vocab * 16
  assert update.flops == 3 * (forward + 2 * head) + forward + 16 * head


@pytest.mark.long
@pytest.mark.usefixtures("some_are_right")
def test_written_canvases_have_what_was_revealed_and_compared_and_the_report_draws_them(config, tmp_path):
  """And the weights are those of a run that writes none."""
  runs = {n: train(config(steps=2, **{"log.rollouts": n}), tmp_path / str(n)) for n in (0, 3)}
  for a, b in zip(leaves(runs[0].state), leaves(runs[3].state), strict=True):
    np.testing.assert_array_equal(a, b)
  found = denoised.read(tmp_path / "3" / denoised.FILE)
  assert [response.step for response in found] == [1, 1, 1, 2, 2, 2]
  for response in found:
    assert len(response.divergence) == len(response.revealed) == 8
    for t, (compared, revealed) in enumerate(zip(response.divergence, response.revealed, strict=True)):
      masked = {i for i, step in enumerate(response.committed_at) if step >= t}
      assert set(compared) <= masked - set(revealed)
      assert set(revealed) <= masked
      assert len(compared) == 2
  assert any(value for response in found for compared in response.divergence for value in compared.values())
  page = canvases.sections(found)
  assert page.count('<table class="canvas">') == 6
  assert page.count("<tr>") == 6 * 8
  assert page.count('<tr class="committed">') == 6
  of_first = re.search(r'<tr class="committed"><th>committed</th>(.*?)</tr>', page)
  assert of_first is not None
  cells = re.findall(r"hsl\(205 55% (\d+)%\)\">(\d+)<", of_first[1])
  assert [int(at) for _, at in cells] == list(found[0].committed_at)
  lightness = {int(at): int(light) for light, at in cells}
  assert [lightness[at] for at in sorted(lightness)] == sorted(lightness.values(), reverse=True)
  assert len(set(lightness.values())) == 8, "each step has a colour of its own"
  cost = report_page._cost_cells(Arm("d-opsd", load([tmp_path / "3"]), 0.0))
  assert cost["sequences through a model"] == f"{2 * 4 * 2} rollouts: {2 * 4 * 2 * 8}, 2 updates: {2 * 4 * 8 * 2}"
  hostile = dataclasses.replace(found[0], tokens=["<script>"] * 16, prompt="<b>")
  assert "<script>" not in canvases.sections([hostile])
  assert "<b>" not in canvases.sections([hostile])


@pytest.mark.parametrize("line", ["[]", '{"step": 1}', "no JSON"])
def test_a_damaged_line_of_canvases_is_named(line, tmp_path):
  path = tmp_path / denoised.FILE
  path.write_text(line + "\n")
  with pytest.raises(InputError, match="line 1 is no response of a run"):
    denoised.read(path)
  path.write_text(line)  # that a killed run was writing
  assert denoised.read(path) == []


def predictions(params, cfg, prompts, row: int, canvas) -> jax.Array:
  """The log-probabilities of one row's positions."""
  hidden = decoder.canvas_hidden(params, cfg, prompts.prompt[row][None], prompts.prompt_mask[row][None], canvas[None])
  return decoder.unembed(params, hidden)[0]


PLAIN = {"optimizer.kind": "sgd", "optimizer.lr": 1.0, "optimizer.clip": 0.0}  # an update is minus the gradient


def check_gradient(before, after, loss) -> None:
  """The update has subtracted the gradient of this loss of the parameters."""
  moved, gradient = jax.tree.map(jnp.subtract, before, after), jax.grad(loss)(before)
  assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) > 1e-3
  jax.tree.map(lambda m, g: np.testing.assert_allclose(m, g, rtol=1e-3, atol=2e-6), moved, gradient)


@pytest.mark.long
@pytest.mark.usefixtures("some_are_right")
def test_the_papers_loss_is_its_formula(config, tmp_path):
  """The teacher reads the canvas with the answer at R; K are the masks of which it is surest then; written out row by row."""
  run, experience, chosen = experience_of(config, tmp_path, **{"context.share": 0.5, "log.rollouts": 4} | PLAIN)
  step, other, key = run.recipe.step, decoder.init(CFG, jax.random.key(5), scale=0.4), jax.random.key(3)
  frozen, params = dataclasses.replace(run.frozen, teachers=(other,)), jax.tree.map(jnp.copy, run.state.params)
  arguments = experience.prompts, experience.rollout, chosen, np.int32(8)
  shape = experience.shape._replace(kind="score")
  seen = run.compiled.at(shape)["score"](run.state, frozen, *arguments, key)
  state, stats = experience.programs["update"](run.state, frozen, *arguments, np.int32(0), key)
  rollout, vocab, compared = experience.rollout, step.objective.vocab, []

  def divergence(w, prompt: int, canvas, theirs) -> jax.Array:
    own = jax.nn.log_softmax(predictions(w, CFG, experience.prompts, prompt, canvas)[:, :vocab])
    return jnp.sum(jnp.exp(own) * (own - theirs), axis=-1)

  for prompt in map(int, np.flatnonzero(chosen.weight)):
    row = prompt * step.n + int(chosen.number[prompt])
    answer, at = np.asarray(rollout.response[row]), np.asarray(rollout.committed_at[row])
    for t in range(8):
      masked, revealed = at >= t, np.asarray(seen["revealed"][t, prompt])
      canvas = np.where(masked, MASK, answer)
      assert (revealed <= masked).all()
      assert revealed.sum() in (masked.sum() // 2, masked.sum() - 2)
      shown = np.where(revealed, answer, canvas)
      theirs = jax.nn.log_softmax(predictions(other, CFG, experience.prompts, prompt, shown)[:, :vocab])
      sure = np.where(masked & ~revealed, np.exp(np.max(theirs, axis=-1)), -1)
      K = np.argsort(-sure, kind="stable")[:2]
      kl = np.asarray(divergence(params, prompt, canvas, theirs))
      compared.append((prompt, canvas, theirs, K))
      np.testing.assert_allclose(
        np.asarray(seen["divergence"][t, prompt])[np.sort(K)], kl[np.sort(K)], rtol=1e-4, atol=1e-6
      )

  def loss(w) -> jax.Array:
    return jnp.mean(jnp.array([jnp.mean(divergence(w, *of_canvas)[K]) for *of_canvas, K in compared]))

  np.testing.assert_allclose(stats["loss"], loss(params), rtol=1e-5)
  check_gradient(params, state.params, loss)


@pytest.mark.long
@pytest.mark.parametrize("target", ["samples", "reward"])
@pytest.mark.usefixtures("some_are_right")
def test_the_rivals_learn_the_answers_tokens(target, config, tmp_path):
  """Fine-tuning at all masks at temperature 1; a policy gradient on the canvas of masks, of the distribution that was drawn from."""
  changes = {"diffusion.target": target, "sampling.temperature": 0.8, "diffusion.prompt_masking": 0.0}
  changes |= {"diffusion.compared": "all"} if target == "samples" else {}
  run, experience, chosen = experience_of(config, tmp_path, **changes | PLAIN)
  params, rollout, n = jax.tree.map(jnp.copy, run.state.params), experience.rollout, run.recipe.step.n
  arguments = experience.prompts, rollout, chosen, np.int32(8), np.int32(0), jax.random.key(0)
  state, stats = experience.programs["update"](run.state, run.frozen, *arguments)
  vocab = run.recipe.step.objective.vocab

  def nll(w, prompt: int, row: int, canvas, temperature: float) -> jax.Array:
    logits = predictions(w, CFG, experience.prompts, prompt, canvas)[:, :vocab] / temperature
    return -jax.nn.log_softmax(logits)[np.arange(16), np.asarray(rollout.response[row])]

  def loss(w) -> jax.Array:
    parts = []
    if target == "samples":
      for prompt in map(int, np.flatnonzero(chosen.weight)):
        row = prompt * n + int(chosen.number[prompt])
        for t in range(8):
          masked = np.asarray(rollout.committed_at[row]) >= t
          canvas = np.where(masked, MASK, np.asarray(rollout.response[row]))
          parts.append(nll(w, prompt, row, canvas, 1.0)[masked].mean())
    else:
      for row in range(4 * n):
        counted = np.asarray(rollout.mask[row])
        parts.append(float(chosen.weight[row]) * nll(w, row // n, row, np.full(16, MASK), 0.8)[counted].mean())
    return jnp.mean(jnp.array(parts))

  np.testing.assert_allclose(stats["loss"], loss(params), rtol=1e-5, atol=1e-7)
  check_gradient(params, state.params, loss)


@pytest.mark.long
def test_of_all_rollouts_the_first_is_learned_from_and_of_verified_ones_the_first_that_is_right(config, tmp_path):
  for accept, number, weight in (("all", [0, 0, 0, 0], [1, 1, 1, 1]), ("verified", [1, 0, 0, 2], [1, 1, 0, 1])):
    run = open_run(config(steps=1, rollouts_per_prompt=3, **{"diffusion.accept": accept}), tmp_path / accept)
    right = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 1]], np.float32).reshape(-1)
    zeros = np.zeros(12, int)
    record = RewardRecord(right, {"chain": right}, right > 0, zeros > 0, zeros, zeros, [""] * 12)
    run.recipe._verify = lambda *_, record=record: record
    experience = run.wait(run.recipe.collect(run, 0))
    chosen, told = run.recipe._choose(run, experience)
    assert np.asarray(chosen.number).tolist() == number
    assert np.asarray(chosen.weight).tolist() == weight
    assert told["accepted"] == 0.75
    assert told["accepted_rollouts"] == pytest.approx(4 / 12)
    assert "teaching_groups" not in told


@pytest.mark.long
@pytest.mark.parametrize("shifted", [False, True])
def test_an_answer_behind_the_prompt_is_read_whatever_its_padding(shifted, config, tmp_path):
  """What stands behind the stop token is no part of it, and no position is predicted from padding."""
  run, experience, _ = experience_of(config, tmp_path, **{"context.reveal": "prefix"})
  step, params, cfg = run.recipe.step, run.state.params, dataclasses.replace(CFG, shifted=shifted)
  tokens, mask = np.asarray(experience.rollout.response)[:4], np.arange(16) < np.array([[5], [16], [1], [9]])
  read = step._with_answer(experience.prompts, jnp.asarray(tokens), jnp.asarray(mask))
  canvas = np.full((4, 16), MASK)
  found = decoder.canvas_hidden(params, cfg, read.prompt, read.prompt_mask, jnp.asarray(canvas))
  for row in range(4):
    prompt = np.asarray(experience.prompts.prompt[row])[np.asarray(experience.prompts.prompt_mask[row])]
    both = np.concatenate([prompt, tokens[row][mask[row]]])[None]
    alone = decoder.canvas_hidden(params, cfg, jnp.asarray(both), jnp.ones(both.shape, bool), jnp.asarray(canvas[:1]))
    np.testing.assert_allclose(found[row], alone[0], atol=1e-5)


@pytest.mark.long
@pytest.mark.usefixtures("some_are_right")
def test_parts_are_updates_of_their_own_and_none_is_made_where_no_canvas_is_learned_from(config, tmp_path):
  changes = {"diffusion.parts": 4, "updates_per_rollout": 2, "diffusion.states": "unended"}
  run = train(config(steps=1, **changes), tmp_path / "w")
  assert int(run.state.step) == 2 * 2, "the last block has the other two parts"
  assert int(run.state.empty) == 0
  (record,) = read(tmp_path / "w", "train")
  assert record["update_forwards"] == 2 * 2 * (2 * 4) * 2


@pytest.mark.long
@pytest.mark.parametrize("remasking", ["maskgit_plus", "origin"])
@pytest.mark.usefixtures("some_are_right")
def test_dreams_schedule_trains_and_evaluates_canvases_of_one_block(remasking, config, tmp_path):
  """Of 16 steps for 16 tokens the first commits nothing; evaluations of another length take as many tokens a step."""
  changes = DREAM | {"denoising.remasking": remasking, "horizon.max": 16, "diffusion.states": "unended"}
  changes |= {"eval.every": 1, "eval.prompts": 4, "eval.batch": 4, "eval.max_tokens": 8, "log.rollouts": 4}
  run = train(config(steps=1, **changes), tmp_path / "w")
  (record,) = read(tmp_path / "w", "train")
  assert record["loss"] > 0
  assert record["rollout_forwards"] == 4 * 2 * 16
  assert [e["length"]["max"] <= 8 for e in read(tmp_path / "w", "eval")] == [True, True]
  assert diffusion_config.of_evaluation(run.config, 8).block == 8
  counted = 0
  for response in denoised.read(tmp_path / "w" / denoised.FILE):
    for t, (compared, taught) in enumerate(zip(response.divergence, response.counted, strict=True)):
      committed = response.committed_at.count(t)
      assert len(compared) <= committed
      assert not (taught and not committed)
      counted += taught and response.learned
    if remasking == "maskgit_plus":
      assert [response.committed_at.count(t) for t in range(16)] == [0, *[1] * 14, 2]
  assert 0 < counted == record["canvases"]

"""d-OPSD: a masked diffusion model teaches itself, once it has been shown part of its own finished answer (arXiv:2606.18195).

    for step k:
      y_1 .. y_n ~ student(. | x) for every prompt x, each with the denoising step at which each position was committed     collect
      y = the first of them that the verifier accepts; without one x is left out                                            learn
      for every recorded canvas y_tau, tau < H_k:
        R_tau = a random share of its masks; the teacher reads y_tau with y's tokens at R_tau         context/self_future.py
        K_tau = the masks without R_tau of which the teacher is surest, as many as step tau commits
        l_tau = mean over K_tau of D(student_theta(. | x, y_tau), teacher(. | x, y_tau and R_tau))
      theta <- AdamW(theta, grad of the mean over x and tau of l_tau)

The teacher is the student itself: before training, its moving average, or as it is (teacher_update.kind). D is the objective's keys.
H_k is the horizon in denoising steps: `horizon.max` of them fill the canvas of `denoising.length` positions, and a shorter horizon
learns from the first ones alone (ours: TOPD's question, asked of diffusion). Rollouts are never cut, since a teacher is shown their end.

`diffusion.target` has two rivals: the accepted answers' own tokens at the same positions of the same canvases (samples: fine-tuning on
them), and a policy gradient of the reward, as diffu-GRPO's (reward). "accepted" is a threshold on the reward.

Dimensions: p prompts, n rollouts of each, B = p n rows, H positions of a canvas.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.context.self_future import SelfFuture
from opd_jax.data import denoised
from opd_jax.models import roofline
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.models.roofline import Cost
from opd_jax.models.spec import ModelSpec
from opd_jax.objectives import loss_config as losses
from opd_jax.recipes.opd import OPD, Experience
from opd_jax.rollout.denoise import DenoiserConfig
from opd_jax.rollout.generate import Generator, GeneratorConfig
from opd_jax.runtime import hosts, keys
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import StepShape
from opd_jax.runtime.run import Run
from opd_jax.training import diffusion_config, optim
from opd_jax.training.diffusion import Chosen, DiffusionStep
from opd_jax.training.specs import Specs
from opd_jax.training.teacher_update import TeacherUpdate
from opd_jax.training.update_stats import UpdateStats

KEYS = {
  "context.kind": (
    "self_future",
    "what the teacher reads: self_future, the student's canvas with part of its own finished answer",
    "one of self_future",
  ),
  "context.reveal": (
    "any",
    "which masks the teacher is shown: any of them (the paper), ahead: those from the next block on (its released code), prefix: none, and "
    "the whole answer behind the prompt",
    "one of any, ahead, prefix",
  ),
  "context.share": (0.25, "the share of those masks", "[0, 1]"),
  "denoising.length": (256, "positions of a response's canvas; horizon.max steps fill it", "[1, 2**20]"),
  "denoising.block": (32, "positions of a block; the blocks are filled from left to right", "[1, 2**20]"),
  "denoising.schedule": (
    "even",
    "how many masks a step commits: even, of each block as many in every step (LLaDA); linear, of all that are left the share that a linear "
    "noise schedule unmasks, without blocks (Dream)",
    "one of even, linear",
  ),
  "denoising.eps": (1e-3, "linear: the last of its times, which begin at 1", "(0, 1)"),
  "denoising.remasking": (
    "low_confidence",
    "which masks are committed first: low_confidence (LLaDA), maskgit_plus, margin or entropy (Dream), random; origin (Dream): each by itself, "
    "with the step's share as its probability",
    "one of low_confidence, maskgit_plus, margin, entropy, random, origin",
  ),
  "denoising.confidence_temperature": (
    0.0,
    "0: the masks of the highest confidence; above it they are drawn from the softmax of confidence over this (Dream's alg_temp)",
    "0 or [10**-6, 1000]",
  ),
  "denoising.eos": (
    "plain",
    "stop tokens: plain, as others; last, committed behind all others of their block; never drawn",
    "one of plain, last, never",
  ),
  "denoising.cache": (
    False,
    "rollouts read what is outside of a block as it was when the block was entered: faster, and an approximation",
    "True or False",
  ),
  "denoising.eval_steps": (
    0,
    "denoising steps of an evaluation; 0: as many tokens at a time as in training",
    "[0, 2**20]",
  ),
  "diffusion.target": (
    "teacher",
    "what is learned: teacher; samples, the accepted answers' own tokens; reward, a policy gradient (diffu-GRPO's)",
    "one of teacher, samples, reward",
  ),
  "diffusion.compared": (
    "teacher",
    "where: the masks of which the teacher is surest, those that the student committed (student), or all of them",
    "one of teacher, student, all",
  ),
  "diffusion.in_block": (
    False,
    "compare within the block that is being filled, as the released code does",
    "True or False",
  ),
  "diffusion.reduction": (
    "mean",
    "over the positions of a canvas: mean (the paper) or sum (its code)",
    "one of mean, sum",
  ),
  "diffusion.states": (
    "unended",
    "canvases that are learned from: all; or unended, without those of the last block, where there are blocks, and those whose answer is complete",
    "one of unended, all",
  ),
  "diffusion.accept": ("verified", "rollouts that are learned from: verified ones, or all", "one of verified, all"),
  "diffusion.score": (1.0, "verified: the least reward that is accepted", "[-10**6, 10**6]"),
  "diffusion.parts": (
    1,
    "updates on one rollout, each on as many of its denoising steps; one whose steps are all left out is not made",
    "[1, 10**4]",
  ),
  "diffusion.rows": (
    0,
    "canvases that go through the models at once, but never fewer than one of each row; 0: all of a part",
    "[0, 2**24]",
  ),
  "importance.kind": ("none", "diffusion: no update is weighed by how far the student has moved", "one of none"),
  "diffusion.prompt_masking": (0.15, "reward: the share of the prompt's tokens that is masked", "[0, 1)"),
}


class Diffusion(OPD):
  """The loop above; what a run holds and how it is evaluated is OPD's."""

  reads_images = False
  denoises, cuts_rollouts = True, False

  def __init__(self, specs: Specs):
    super().__init__(specs)
    diffusion_config.check(specs)

  @functools.cached_property
  def step(self) -> DiffusionStep:  # pyright: ignore[reportIncompatibleVariableOverride]
    """The computations that are compiled."""
    c, s = self.config, self.specs
    d, update = c.diffusion, TeacherUpdate.from_config(c)
    denoiser = DenoiserConfig(
      s.student.cfg, s.sampling, diffusion_config.denoising(c, c.denoising.length, c.horizon.max), s.mesh, s.dtype
    )
    return DiffusionStep(
      denoiser=denoiser,
      length=c.denoising.length,
      teachers=tuple(model.cfg for _, model in self._teachers()) if update.needs_initial else (),
      future=SelfFuture(c.context.reveal, c.context.share, d.compared, d.in_block, c.denoising.block),
      objective=dataclasses.replace(
        losses.from_config(c, s.sampling.vocab).objective,
        # Fine-tuning is of the distribution itself, a policy gradient of the one that was drawn from.
        sampling_temperature=1.0 if d.target == "samples" else c.sampling.temperature,
      ),
      optimizer=optim.make(c.optimizer),
      target=d.target,
      states=d.states,
      mean=d.reduction == "mean",
      prompt_masking=d.prompt_masking if d.target == "reward" else 0.0,
      n=c.rollouts_per_prompt,
      parts=d.parts,
      rows_at_a_time=d.rows,
      remat=c.remat,
      teacher_layout=f"teacher:{c.mesh.teacher}",
      bins=min(c.log.bins, c.horizon.max),
      teacher_update=update,
    )

  # A step.

  def collect(self, run: Run, step: int) -> Experience:
    limit, shape = self.horizon.limit(step), self._shape(run, step, self.horizon.width(step))
    programs = run.programs(shape)
    prompts, index = self._prompts(run, step)
    params = self.step.with_base(run.state.params, run.frozen)
    rollout = programs["rollout"](params, prompts, run.key(keys.Use.ROLLOUT, step))
    return Experience(step, prompts, rollout, index, limit, shape, programs)

  def learn(self, run: Run, step: int, experience: Experience) -> dict[str, Any]:
    chosen, earned = self._choose(run, experience)
    self._write_canvases(run, step, experience, chosen)
    frozen_models, seen, canvases = self._frozen_on_devices(run), UpdateStats(), {"canvases": 0, "passes": 0}
    parts = self._parts_with_canvases(experience)
    for again in range(self.config.updates_per_rollout):
      seen.begin_pass()
      for part in parts:
        arguments = experience.prompts, experience.rollout, chosen, np.int32(experience.limit), np.int32(part)
        key = self._key(run, step, again * self.step.parts + part)
        state, stats = experience.programs["update"](run.state, frozen_models, *arguments, key)
        run.state, stats = state, jax.device_get(stats)
        run.clock.lap("update")
        canvases = {name: n + int(stats[name]) for name, n in canvases.items()}
        seen.add(stats)
    cost = self._forwards(canvases, experience.shape.prompt) | {"updates": seen.updated}
    return self._metrics(step, experience, seen, earned, None) | cost

  def _parts_with_canvases(self, experience: Experience) -> list[int]:
    """Lists the parts that have denoising steps which are learned from: the horizon and the last block may leave some without."""
    step = self.step
    recorded = step.total - step.last_block if step.states == "unended" else step.total
    end, size = min(experience.limit, recorded), experience.shape.width // step.parts
    return [part for part in range(step.parts) if part * size < end] or [0]

  def _key(self, run: Run, step: int, update: int = 0) -> jax.Array:
    """Makes the key of what is revealed in an update of a step."""
    return run.key(keys.Use.REVEALED, step * self._updates_of_step + update)

  def _choose(self, run: Run, experience: Experience) -> tuple[Chosen, dict[str, Any]]:
    """Chooses the rollouts of this process that are learned from, and makes the step's metrics of it."""
    d, n = self.config.diffusion, self.step.n
    found = self._verify(run, experience._replace(limit=self.step.length))
    if d.target == "reward":
      credit, earned = self._credit_of(run, found)
      return Chosen(None, credit.advantage), earned
    _, earned = self._earned(run, found)
    # They ask whether a reward teaches, and here it only chooses.
    earned = {name: value for name, value in earned.items() if name != "teaching_groups"} | {"same_reward": 0}
    accepted = (found.reward >= d.score).reshape(-1, n)
    number, weight = accepted.argmax(axis=1), accepted.any(axis=1)
    if d.accept == "all":
      number, weight = np.zeros_like(number), np.ones_like(weight)
    chosen = run.to_devices(Chosen(number.astype(np.int32), weight.astype(np.float32)))  # pyright: ignore[reportArgumentType]: numpy
    of_all = hosts.all_gather_to_host(run.to_devices(accepted.astype(np.float32)))
    return chosen, earned | {"accepted": float(of_all.any(axis=1).mean()), "accepted_rollouts": float(of_all.mean())}

  def _write_canvases(self, run: Run, step: int, experience: Experience, chosen: Chosen) -> None:
    """Writes a few rollouts canvas by canvas, as they are before the student learns from them, where config.log.rollouts says so."""
    if not self._scored_prompts or not run.log.logs(step + 1):
      return
    run.clock.lap("other")
    program = run.compiled.at(experience.shape._replace(kind="score"))["score"]
    run.clock.lap("compile")
    arguments = experience.prompts, experience.rollout, chosen, np.int32(experience.limit), self._key(run, step)
    found = jax.device_get(program(run.state, self._frozen_on_devices(run), *arguments))
    if hosts.first():
      of_rows = denoised.of_rows(found, run.inputs.tokenizer, step + 1)
      run.log.canvases([row.to_json() for row in of_rows[: self.config.log.rollouts]])
    run.clock.lap("eval")  # it looks at the run, and is no part of training

  @property
  def _scored_prompts(self) -> int:
    return min(self.config.log.rollouts, self.config.batch)

  def _forwards(self, canvases: dict[str, int], prompt: int) -> dict[str, int]:
    """Counts what a step has cost: rollouts, and sequences that went through a model, forward alone.

    Args:
      prompt: tokens; with a cache of blocks most steps read a block and not the whole sequence.
    """
    rollouts, d = self.config.batch * self.step.n, self.step.denoiser.denoising
    whole = self.step.total
    if d.cache:
      blocks = self.step.length // d.block
      whole = blocks * (1 + (d.steps - 1) * d.block / (prompt + self.step.length))
    return {
      "rollouts": rollouts,
      "canvases": canvases["canvases"],
      "rollout_forwards": round(rollouts * whole),
      "update_forwards": canvases["passes"] * (1 + len(self._teachers_read)),
    }

  @property
  def _teachers_read(self) -> list[DecoderConfig]:
    """The architectures of the models that read a canvas beside the student that is trained."""
    kind, student = self.config.teacher_update.kind, self.specs.student.cfg
    return [student] * (2 if kind == "mix" else 1) if self.step.asks_teacher else []

  @property
  def _updates_of_step(self) -> int:
    return self.config.updates_per_rollout * self.config.diffusion.parts

  # Models.

  def _teachers(self) -> Iterator[tuple[str, ModelSpec]]:
    """The student before training, where it is asked anything."""
    d = self.config.diffusion
    if d.target == "teacher" or (d.target == "samples" and d.compared == "teacher"):
      yield from super()._teachers()

  def generator(self, model: str, config: GeneratorConfig, tokenizer: Any, **sizes: Any) -> Generator:
    how = diffusion_config.of_evaluation(self.config, sizes["max_tokens"])
    denoiser = DenoiserConfig(self.spec(model).cfg, config.sampling, how, config.mesh, config.dtype)
    return Generator(denoiser, tokenizer, **sizes)

  # Programs.

  def planned_shape(self, prompt: int, response: int) -> StepShape:
    return StepShape(prompt, response)

  def lower(self, shape: StepShape) -> Iterator[tuple[str, jax.stages.Lowered]]:
    step, mesh = self.step, self.specs.mesh
    row, everywhere = meshes.rows(mesh), meshes.replicated(mesh)
    state, frozen_models, batch = self.abstract_state(), self.abstract_frozen(), self.abstract_prompts(shape)
    key = meshes.abstract(jax.eval_shape(lambda: jax.random.key(0)), everywhere)
    params = step.with_base(state.params, frozen_models)
    rollout = meshes.abstract(jax.eval_shape(step.rollout, params, batch, key), row)
    prompts, rows = len(batch.prompt), len(rollout.ended)
    of_prompt, of_row = (lambda n, dtype: jax.ShapeDtypeStruct((n,), dtype, sharding=row),) * 2
    if step.target == "reward":
      chosen = Chosen(None, of_row(rows, jnp.float32))  # pyright: ignore[reportArgumentType]
    else:
      chosen = Chosen(of_prompt(prompts, jnp.int32), of_prompt(prompts, jnp.float32))  # pyright: ignore[reportArgumentType]
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    of_rollout = state, frozen_models, batch, rollout, chosen, number
    if shape.kind == "score":
      score = functools.partial(step.score, prompts=self._scored_prompts, width=shape.width)
      yield "score", jax.jit(score, out_shardings=everywhere).lower(*of_rollout, key)
      return
    update = functools.partial(step.update, width=shape.width)
    state_shardings = jax.tree.map(lambda a: a.sharding, state)
    program = jax.jit(update, donate_argnums=0, out_shardings=(state_shardings, everywhere))
    yield "update", program.lower(*of_rollout, number, key)
    yield "rollout", jax.jit(step.rollout, out_shardings=row).lower(params, batch, key)

  def roofline_costs(self, name: str, prompts: int, n: int, prompt: int, response: int) -> list[Cost]:
    """Counts a forward pass for every denoising step of a rollout, and of an update those of its canvases."""
    student, sizes = self.specs.student.cfg, {"vocab": self.specs.sampling.vocab, "itemsize": self.specs.dtype.itemsize}
    if name != "update":
      d = diffusion_config.of_evaluation(self.config, response) if name == "evaluate" else self.step.denoiser.denoising
      step = roofline.canvases(student, prompts * n, prompt + response, d.block, **sizes)
      return [step] * d.total(response)
    length, step = self.step.length, self.step
    rows, tokens = (prompts * n if step.target == "reward" else prompts * response), prompt + length
    everywhere = step.target == "reward" or step.future.compared == "all"
    of_student = roofline.canvases(
      student, rows, tokens, length if everywhere else step.denoiser.denoising.tokens, **sizes
    )
    of_teachers = [roofline.canvases(cfg, rows, tokens, length, **sizes) for cfg in self._teachers_read]
    flops = 3 * of_student.flops + sum(cost.flops for cost in of_teachers)
    read = 2 * of_student.weight_bytes + sum(cost.weight_bytes for cost in of_teachers)
    return [Cost(flops, read, 8 * roofline.FP32 * roofline.parameter_count(student))]

  # What is reported of a run.

  def summary(self, run: Run) -> Iterator[str]:
    yield from super().summary(run)
    d = self.step.denoiser.denoising
    how = f"blocks of {d.block}, {d.tokens} tokens a step"
    if d.schedule == "linear":
      how = f"a linear schedule, at most {d.tokens} tokens a step"
    yield f"  canvases of {self.step.length} tokens, filled in {self.step.total} steps: {how}, by {d.remasking}"


RECIPE = Diffusion

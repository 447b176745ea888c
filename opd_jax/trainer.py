"""The training loop, and the only place with mutable state.

    for step in range(steps):
      the student answers the next prompts, at most H_k tokens long
      a verifier judges the answers, where the loss has a reward
      the teacher reads them, and the student moves toward the teacher

What is not part of the sentence (logging, evaluating, saving, compiling the next stage) is one call each.
"""

import contextlib
import dataclasses
import json
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import (
  __version__,
  adaptive,
  announce,
  checkpoint,
  credit,
  horizon,
  hosts,
  inputs,
  metrics,
  optim,
  state,
  teacher,
  workdir,
)
from opd_jax import config as configs
from opd_jax import mesh as meshes
from opd_jax.bucket import Place
from opd_jax.config import Config
from opd_jax.context import canonical
from opd_jax.data import pipeline, problems
from opd_jax.errors import InputError, Leave
from opd_jax.evaluation import Evaluator
from opd_jax.models import lora
from opd_jax.multiturn import MultiTurnEvaluator
from opd_jax.objectives import loss as losses
from opd_jax.programs import Kept, Programs, Shape, use_cache
from opd_jax.recipes.distill import Distill
from opd_jax.speaker import decode
from opd_jax.types import Batch, Params, Rollout


class Turn(NamedTuple):
  """One step's prompts and what the student says to them."""

  limit: int  # tokens
  shape: Shape
  program: dict[str, jax.stages.Compiled]
  batch: Batch
  index: np.ndarray  # which prompts, of the rows that this process makes
  said: Rollout  # perhaps still being said
  before: dict[str, Any]  # the position among the prompts before these


class Trainer:
  """One run in one workdir, new or resumed.

  Everything is read and checked here, before the workdir is made and before any step function is compiled.

  Args:
    kept: compiled programs, which runs of one process can share.

  Raises:
    InputError: anything about the config, the models, the data or the workdir that cannot work.
  """

  def __init__(self, c: Config, path: str | os.PathLike, kept: Kept | None = None):
    self.c, self.place, self.kept = c, Place(path), {} if kept is None else kept
    self.path = self.place.path
    i = self.inputs = inputs.load(c)
    empty = state.abstract(c, i.student.cfg, i.mesh)
    hosts.on_first(lambda: self._open(state.size(empty)))
    use_cache(c.compile_cache, self.place.root)

    self.schedule = i.schedule
    self.stages = horizon.describe(self.schedule, c.steps, c.batch * c.rollouts_per_prompt)
    self.recipe = recipe(c, i)
    self.rows = meshes.rows(i.mesh)
    self.mine = hosts.rows_of(self.rows, c.batch)
    self.prompts = pipeline.Prompts(
      i.train.ids,
      c.batch,
      i.prompt_widths,
      i.sampling.pad_id,
      c.seed,
      rows=self.mine,
      teacher_ids=i.train.ids if i.train.conversations else None,
    )
    of = workdir.digest(c, self.prompts.source)
    self.histories = canonical.histories(c, i, self.place.root, self._initial, of, self.kept)
    self.solutions = problems.solutions(i.train, i.tokenizer, i.student.stop_ids) if c.rollout.by == "data" else []
    hosts.agree("configs, prompts or versions", json.dumps([configs.to_json(c), self.prompts.source, __version__]))
    self.judges = teacher.judges(c, i)
    self.key = jax.random.key(c.seed)
    self.checkpoints = checkpoint.Checkpoints(self.place.root, c.checkpoint.keep)
    if self.checkpoints.latest() is None:
      self.state = state.read(c, i.student.path, i.student.cfg, i.mesh)
      position = {"step": 0, "tokens": 0, "lengths": {}, "seconds": {}}
    else:
      self.state, position = self.checkpoints.restore(empty)
      self.prompts.restore(position["prompts"])
      self.schedule.restore(position.get("horizon", {}))
    self.step = self.resumed = position["step"]
    self.tokens = position["tokens"]
    self.clock = metrics.Clock(position["seconds"])
    self.told = 0  # the step up to which the student's prompts are known
    self.shapes: list[Shape] = []
    judges = teacher.on_devices(self.judges)
    lower = lambda s: self.recipe.programs(s.width, self.state, judges, self._abstract(s.prompt))
    given = (c.batch, self.prompts.teacher_width, lora.from_config(c.lora), c.teacher_offload, c.teacher_precision)
    static = (self.recipe, *given)
    self.programs = Programs(lower, self.kept, static)
    probed = (self.schedule.widths, c.horizon.probes)
    probe = lambda s: self.recipe.probe_program(*probed, self.state, judges, self._abstract(s.prompt))
    self.probes = Programs(probe, self.kept, (*static, probed))
    self.evaluator: Evaluator | MultiTurnEvaluator | None = None
    self.log = metrics.Metrics(self.path, c.log, c.steps, self.step, position["lengths"], self.path.name)

  def run(self, *, compiled: bool = False) -> None:
    """Trains from the last checkpoint, or from the beginning, to the last step.

    Args:
      compiled: have every program that the run may need before its first step, so that none shares the machine with the
        compiler; otherwise the first steps begin sooner.

    Raises:
      Leave: the run was asked to stop, and has saved.
    """
    with contextlib.ExitStack() as closing:
      self.notice = hosts.Notice()
      for part in (self.notice, self.checkpoints, self.programs, self.probes, self.log):
        closing.callback(part.close)
      try:
        self.clock.start()
        self._converse(self.step)
        if compiled:
          self._compile()
        self._run()
      except OSError as e:
        if (said := checkpoint.explain(e, self.path)) is e:
          raise
        raise said from e

  def _run(self) -> None:
    self._announce()
    self.clock.start()
    if self.step == 0:
      self._evaluate()
    turn = None
    for step in range(self.step, self.c.steps):
      if self.notice.before(step):
        self._leave(turn)
      turn = turn or self._speak(step)
      self._heard(turn)
      ahead = self._speak(step + 1) if self._may_run_ahead(step) else None
      advantage = self._verify(turn)
      self._probe(turn, step)
      for _ in range(self.c.updates_per_rollout):
        stats = self._update(turn, advantage)
      self.step = step + 1
      self._record(step, turn, stats)
      turn = ahead
      if self._due(self.c.eval.every, self.step):
        self._evaluate()
      if self._due(self.c.checkpoint.every, self.step):
        self._save()
    self.checkpoints.wait()

  def _speak(self, step: int) -> "Turn":
    """The student begins to answer the next prompts; nobody waits for it yet."""
    self._converse(step)
    c, pad = self.c, self.inputs.sampling.pad_id
    limit, shape = self.schedule.limit(step), Shape(self.prompts.width(step), self.schedule.width(step))
    before, program, batch = self.prompts.state(), self._programs(step, shape), self._next_batch()
    key = jax.random.fold_in(self.key, step)
    index = self.prompts.index
    if c.rollout.by == "data":
      said = self._on_devices(pipeline.given([self.solutions[i] for i in index], shape.width, limit, pad))
    else:
      said = program["rollout"](self.recipe.speaks(self.state.params, self.judges), batch, key, np.int32(limit))
    return Turn(limit, shape, program, batch, self.prompts.index, said, before)

  def _converse(self, step: int) -> None:
    """What the student reads from this step on: where that is a conversation, it may have to be had first."""
    if step < self.told or step >= self.c.steps:
      return
    first, self.told = 0, self.c.steps
    if self.histories:
      self.clock.lap("other")
      first, end = self.histories.block(step)
      wanted = self.prompts.upcoming(first, end or self.told)
      self.told = min(self.told, end or self.told)
      speak = self.histories.speak
      compiling = lambda: sum(record["seconds"] for record in speak.compiled)
      before = compiling()
      self.prompts.replace(self.histories.rows(first, self.student, wanted, step, self._talked))
      self.clock.lap("converse")
      self.clock.move(compiling() - before, "converse", "compile")
    self.shapes = self._shapes(step)

  def _talked(self, had: int, wanted: int) -> None:
    """Some of the conversations are written down; a run that is asked to stop does so here, and keeps them."""
    if wanted > canonical.AT_A_TIME:
      self.log.say(f"  {had} of {wanted} conversations")
    if had < wanted and self.notice.heard and not self.c.rollout.ahead:
      self._leave(None)

  @property
  def student(self) -> Params:
    return self.recipe.whole(self.state.params, self.judges)

  def _heard(self, turn: "Turn") -> None:
    jax.block_until_ready(turn.said)
    self.clock.lap("rollout")

  def _may_run_ahead(self, step: int) -> bool:
    """Not beyond an evaluation or a checkpoint, so that a run resumes as if it had never stopped."""
    c = self.c
    waits = self._due(c.eval.every, step + 1) or self._due(c.checkpoint.every, step + 1)
    return c.rollout.ahead and not waits

  def _verify(self, turn: "Turn") -> jax.Array | None:
    """Advantages of the rollouts whose answers are right, and of the others; None where the loss has no reward."""
    c, i = self.c, self.inputs
    if not i.verify:
      return None
    verify = i.verify
    response, mask = hosts.here((turn.said.response, turn.said.mask))
    texts = decode(i.tokenizer, response, mask, i.sampling.stop_ids)
    answers = [i.train.answers[p] for p in turn.index for _ in range(c.rollouts_per_prompt)]
    reward = np.array([verify(*pair) for pair in zip(texts, answers, strict=True)], np.float32)
    self.reward = float(np.mean(hosts.whole(self._on_devices(reward, c.rollouts_per_prompt))))
    advantage = credit.group_relative(reward, c.rollouts_per_prompt, std=c.mixture.reward_std)
    self.clock.lap("verify")
    return self._on_devices(advantage, c.rollouts_per_prompt)

  def _probe(self, turn: "Turn", step: int) -> None:
    """How far shorter horizons' gradients agree with the full one, where the horizon is chosen by that."""
    self.agreement: list[float] | None = None
    if not self.schedule.probes(step):
      return
    self.clock.lap("other")
    program = self.probes.at(Shape(turn.shape.prompt, self.schedule.max))["probe"]
    self.clock.lap("compile")
    judges = teacher.rise(self.judges) if self.c.teacher_offload else self.judges
    found = jax.device_get(program(self.state.params, judges, turn.batch, jax.random.fold_in(self.key, 2**22 + step)))
    self.tokens += int(found["tokens"])
    self.clock.lap("probe")
    self.agreement = [float(rho) for rho in found["agreement"]]

  def _update(self, turn: "Turn", advantage: jax.Array | None) -> dict[str, Any]:
    judges = teacher.rise(self.judges) if self.c.teacher_offload else self.judges
    self.state, stats = turn.program["update"](self.state, judges, turn.batch, turn.said, advantage)
    stats = jax.device_get(stats)
    self.clock.lap("update")
    return stats

  def _next_batch(self) -> Batch:
    batch, teacher_weight = next(self.prompts), self.inputs.teacher_weight
    if teacher_weight is not None:
      batch = dataclasses.replace(batch, teacher_weight=teacher_weight[self.prompts.index])  # pyright: ignore[reportArgumentType]: numpy
    batch = self._on_devices(batch)
    self.clock.lap("other")
    return batch

  def _on_devices(self, tree, per_prompt: int = 1):
    """Rows that this process has made, `per_prompt` for each of its prompts, as global arrays."""
    rows = (self.mine[:, None] * per_prompt + np.arange(per_prompt)).reshape(-1)
    return hosts.place(tree, self.rows, rows, self.c.batch * per_prompt)

  def _programs(self, step: int, shape: Shape):
    """This step's compiled programs; those of the next new shape begin to compile in the background."""
    self.clock.lap("other")
    programs = self.programs.at(shape)
    self.clock.lap("compile")
    self._prepare(shape)
    return programs

  def _prepare(self, now: Shape) -> None:
    """The next new shape begins to compile in the background; several processes begin them all, in the same order."""
    missing = [s for s in self.shapes if s not in self.programs]
    if isinstance(self.schedule, horizon.Adaptive):  # the nearest width may come first, rather the longer
      missing.sort(key=lambda s: (s.prompt != now.prompt, abs(s.width - now.width), -s.width))
    if hosts.several():
      for shape in self.shapes:
        self.programs.prepare(shape)
    elif missing and self.programs.idle:
      self.programs.prepare(missing[0])

  def _compile(self) -> None:
    for shape in self.shapes:
      self.programs.at(shape)
      if self.schedule.measured:
        self.probes.at(Shape(shape.prompt, self.schedule.max))

  def _record(self, step: int, turn: Turn, stats: dict[str, Any]) -> None:
    self.tokens += int(stats["tokens"])
    by_position = metrics.by_position(stats["sums"], self.c.horizon.max)
    if not int(stats["skipped"]):
      self.schedule.observe(step, adaptive.seen(turn.limit, by_position, float(stats["cut"]), self.agreement))
    rows = self.c.batch * self.c.rollouts_per_prompt
    self.clock.lap("other")
    self.log.train(
      {
        "step": self.step,
        "loss": float(stats["loss"]),
        **{name: value for name, value in metrics.means(stats["sums"]).items() if name != "loss"},
        "grad_norm": float(stats["grad_norm"]),
        "lr": optim.learning_rate(self.c.optimizer, step * self.c.updates_per_rollout),
        "skipped": int(stats["skipped"]),
        "empty": int(stats["empty"]),
        "trained": int(stats["trained"]),
        **({"reward": self.reward} if self.inputs.verify else {}),
        "tokens": self.tokens,
        "step_tokens": int(stats["tokens"]),
        "width": turn.shape.width,
        "limit": turn.limit,
        **({"agreement": self.agreement} if self.agreement else {}),
        "response_length": int(stats["tokens"]) / rows,
        "ended": float(stats["ended"]),
        "cut": float(stats["cut"]),
        "seconds": self.clock.step(),
        "elapsed": self.clock.elapsed,
        "wall": self.clock.wall,
        "peak_memory": metrics.peak_memory(),
        "by_position": by_position,
      }
    )
    if int(stats["skipped"]) >= self.c.optimizer.max_skipped:
      self.checkpoints.wait()
      last = self.checkpoints.latest()
      raise InputError(
        f"{int(stats['skipped'])} updates in a row had a NaN or Inf in the loss or the gradient (last: step {self.step}); the run "
        f"stops and keeps its last checkpoint ({'none yet' if last is None else f'step {last}'}) in {self.path}. "
        "Lower config.optimizer.lr or add warm-up."
      )

  def _evaluate(self) -> None:
    if self.inputs.evaluation is None:
      return
    self.clock.lap("other")
    if self.evaluator is None:
      kind = MultiTurnEvaluator if self.inputs.evaluation.problems.conversations else Evaluator
      self.evaluator = kind(self.c, self.inputs.evaluation, self.student, self.kept)
      self.clock.lap("compile")
    before = self.clock.totals["eval"]
    record, samples = self.evaluator(self.student)
    self.clock.lap("eval")
    at = {"step": self.step, "tokens": self.tokens, "elapsed": self.clock.elapsed, "wall": self.clock.wall}
    self.log.evaluation(at | record | {"seconds": self.clock.totals["eval"] - before}, samples)

  def _save(self, ahead: Turn | None = None) -> None:
    position = {
      "step": self.step,
      "tokens": self.tokens,
      "prompts": ahead.before if ahead else self.prompts.state(),
      "horizon": self.schedule.state(),
      "lengths": self.log.lengths(),
      "seconds": self.clock.totals,
    }
    self._describe(self._compiled())
    self.checkpoints.save(self.step, self.state, position)

  def _compiled(self) -> list[dict]:
    """Records of all programs so far."""
    parts = (self.programs, self.probes, self.evaluator, self.histories and self.histories.speak)
    return [record for part in parts if part for record in part.compiled]

  def _leave(self, ahead: Turn | None) -> None:
    """Saves, unless it has been done at this step, and ends the run."""
    if self.step > self.resumed and self.checkpoints.latest() != self.step:
      self._save(ahead)
    self.checkpoints.wait()
    raise Leave(f"asked to stop: saved after step {self.step} of {self.c.steps} in {self.place.name}")

  def _describe(self, programs: list[dict]) -> None:
    """run.json, and in a bucket all that was written so far."""
    if hosts.first():
      workdir.describe(self.path, self.stages, programs, self.resumed)
      self.place.push()

  def _open(self, state_bytes: int) -> None:
    """The workdir, checked and made."""
    self.place.fetch()
    workdir.check(self.place, self.c)
    checkpoint.check_space(self.place, state_bytes, self.c.checkpoint.keep)
    workdir.open_(self.path, self.c)

  def _initial(self) -> Params:
    """The student before training."""
    c, student = self.c, self.inputs.student
    untrained = state.untrained(c, student.path, student.cfg, self.inputs.mesh) if self.step else self.state.params
    return self.recipe.whole(untrained, self.judges)

  def _due(self, every: int, step: int) -> bool:
    """True every so many steps and after the last."""
    return step == self.c.steps or (every > 0 and step % every == 0)

  def _announce(self) -> None:
    c = self.c
    if self.step < c.steps:
      self._describe([])
    for line in announce.lines(c, self.inputs, self.student, self.judges, self.stages, self.shapes, self.place.name):
      self.log.say(line)
    if self.resumed:
      self.log.say(f"  resumed after step {self.resumed}")

  def _shapes(self, step: int) -> list[Shape]:
    """All that the steps from this on use whose prompts are known, by first use, or may use where the horizon is chosen."""
    any_of = self.schedule.widths if isinstance(self.schedule, horizon.Adaptive) else ()
    used = lambda k: any_of or (self.schedule.width(k),)
    steps = range(step, self.told)
    return list(dict.fromkeys(Shape(self.prompts.width(k), width) for k in steps for width in used(k)))

  def _abstract(self, prompt_width: int) -> Batch:
    """The batch that programs are compiled for."""
    shape, teacher_weight = (self.c.batch, prompt_width), self.inputs.teacher_weight
    Q = self.prompts.teacher_width
    theirs = lambda dtype: jax.ShapeDtypeStruct((shape[0], Q), dtype) if Q else None
    return Batch(
      prompt=jax.ShapeDtypeStruct(shape, jnp.int32),  # pyright: ignore[reportArgumentType]
      prompt_mask=jax.ShapeDtypeStruct(shape, jnp.bool_),  # pyright: ignore[reportArgumentType]
      teacher_weight=None
      if teacher_weight is None
      else jax.ShapeDtypeStruct((shape[0], teacher_weight.shape[1]), jnp.float32),  # pyright: ignore[reportArgumentType]
      teacher_prompt=theirs(jnp.int32),  # pyright: ignore[reportArgumentType]
      teacher_prompt_mask=theirs(jnp.bool_),  # pyright: ignore[reportArgumentType]
    )


def recipe(c: Config, i: inputs.Inputs) -> Distill:
  """The static part of the run that the config asks for."""
  return Distill(
    student=i.student.cfg,
    teachers=tuple(t.cfg for t in i.teachers),
    sampling=i.sampling,
    loss=losses.from_config(c, i.sampling.vocab),
    optimizer=optim.make(c.optimizer),
    mesh=i.mesh,
    speaker=c.rollout.by,
    n=c.rollouts_per_prompt,
    micro_batches=c.batch * c.rollouts_per_prompt // inputs.micro_batch(c, i.mesh),
    buckets=c.buckets,
    dtype=i.dtype,
    remat=c.remat,
    attention=i.attention,
    teacher_layout=f"teacher:{c.mesh.teacher}",
    segments=inputs.segments(c, i.mesh),
    max_horizon=c.horizon.max,
    bins=min(c.log.bins, c.horizon.max),
    seed=c.seed if c.weights.kind == "random" else 0,
  )


def train(c: Config, path: str | os.PathLike, kept: Kept | None = None) -> None:
  """Trains, or goes on training, in a workdir."""
  Trainer(c, path, kept).run()

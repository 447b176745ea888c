"""A run: everything that moves while a recipe trains, and belongs to no method.

Prompts and their position, the state on the devices, random keys, compiled programs, the clock, the log, checkpoints, and the
wish to stop. What it is made of is passed in (trainer.py), so this file knows no model, no data and no method.

    batch, index = run.next_prompts(step)            the next prompts, on the host
    programs = run.programs(shape)                   compiled, the next new shape begins to compile in the background
    run.state                                        what is trained; a recipe replaces it at every update
    run.key(Use.ROLLOUT, step)                       random numbers by purpose
    run.clock.lap("rollout")                         the seconds since the last lap were a rollout's
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jaxtyping import Int

from opd_jax.config import Config
from opd_jax.errors import RESUME, InputError, StopRequested
from opd_jax.runtime import hosts, interrupts, keys, metrics, startup_summary
from opd_jax.runtime import workdir as workdirs
from opd_jax.runtime.bucket import MirroredDir
from opd_jax.runtime.outcome import Outcome
from opd_jax.runtime.programs import CompiledSteps, ProgramCache, StepShape

PyTree = Any
# Names in a checkpoint's position; a recipe's state has others.
TAKEN = ("step", "tokens", "prompts", "lengths", "seconds", "outcome")


class Run:
  """One run in one workdir, new or resumed.

  Attributes:
    config: of the run.
    recipe: the method, see recipes/base.py.
    inputs: data, tokenizer, rewards and specs, see opd_jax/inputs.py; closed when the run ends.
    workdir: where it is written.
    prompts: an endless iterator over batches of prompts, see data/pipeline.py.
    state: all that is trained, as recipe.init makes it.
    frozen: the models that never change, as recipe.frozen loads them.
    step: steps that are finished.
    tokens: generated so far.
    outcome: what became of the updates so far.
    compiled: the step programs by shape.
    evaluators: of held-out problems, by model, as soon as one has been needed.
    program_cache: compiled programs, which runs of one process can share.
    digest: of all that a run may not be resumed without.
  """

  def __init__(
    self,
    *,
    config: Config,
    recipe: Any,
    inputs: Any,
    workdir: MirroredDir,
    prompts: Any,
    row_sharding: jax.sharding.Sharding,
    checkpoints: Any,
    state: PyTree,
    frozen: PyTree,
    position: dict[str, Any] | None,
    digest: str,
    program_cache: ProgramCache,
  ):
    """Opens the log, and goes on where a checkpoint left off; see trainer.open_run.

    Args:
      row_sharding: of rows of a batch.
      checkpoints: see training/checkpoint.py.
      position: of the checkpoint that `state` comes from; None: the run is new.
    """
    self.config, self.recipe, self.inputs, self.workdir = config, recipe, inputs, workdir
    self.prompts, self.state, self.frozen = prompts, state, frozen
    self.program_cache, self.digest = program_cache, digest
    new: dict[str, Any] = {"step": 0, "tokens": 0, "lengths": {}, "seconds": {}}
    position = new if position is None else position
    self.step = self.resumed_from = position["step"]
    self.tokens = position["tokens"]
    self.outcome = Outcome.of_checkpoint(position)
    self.clock = metrics.Clock(position["seconds"])
    self.log = metrics.Metrics(workdir.path, config, self.step, position["lengths"], workdir.path.name)
    self.compiled = CompiledSteps(recipe.lower, program_cache, recipe.static)
    self.expected: list[StepShape] = []  # shapes of the steps to come, by first use
    self.stages = recipe.stages()
    self._checkpoints, self._row_sharding = checkpoints, row_sharding
    self._local_rows = hosts.rows_of(row_sharding, config.batch)
    self._key = jax.random.key(config.seed)
    self._positions: dict[int, dict[str, Any]] = {}  # of the prompts, before those of steps that are not finished
    self.evaluators: dict[str, Any] = {}
    self.preemption: hosts.PreemptionWatcher | None = None  # while it is `running`
    self._program_sources: list[Any] = [self.compiled, *inputs.encoders]  # what has `compiled` records

  @contextlib.contextmanager
  def running(self):
    """Listens for the wish to stop meanwhile, and closes everything afterwards."""
    with contextlib.ExitStack() as closing:
      self.preemption = watcher = hosts.PreemptionWatcher()
      closing.callback(watcher.close)
      closing.callback(self._checkpoints.close)
      closing.callback(self.inputs.close)
      closing.push(lambda error, *_: self.compiled.close(wait=error is None))
      closing.push(lambda error, *_: self.log.close(error))
      closing.enter_context(interrupts.answered(self._kept, watcher.interrupt))
      yield

  def begin(self, *, compile_all: bool = False) -> None:
    """Prints the summary, and evaluates the untrained models of a new run.

    Args:
      compile_all: compiles every program that the run may need before its first step, so that none shares the machine
        with the compiler; otherwise the first steps begin sooner.
    """
    self.clock.start()
    self.expect(self.recipe.shapes(self, self.step))
    if compile_all:
      with self._free_to_leave():
        for shape in self.expected:
          self.compiled.at(shape)
        self._prepare_encoders()
    if self.step >= self.config.steps:
      made = f"{self.step} of {self.config.steps} steps" if self.step == self.config.steps else f"{self.step} steps"
      self.log.say(f"{self.workdir.name} is complete: {made}; raise --config.steps above {self.step} to go on")
      return
    self._describe([])
    for line in self.recipe.summary(self):
      self.log.say(line)
    self.log.say(startup_summary.prompt_line(self.inputs))
    if self.resumed_from:
      self.log.say(f"  resumed after step {self.resumed_from}")
    self.clock.start()
    with self._free_to_leave():
      self._prepare_encoders()
      self.clock.lap("compile")
      if self.step == 0:
        self.evaluate()

  def models(self) -> dict[str, Any]:
    """Returns the parameters of the recipe's models as they are now, by name."""
    return self.recipe.models(self.state, self.frozen)

  # What a recipe asks for.

  def key(self, use: keys.Use, step: int = 0) -> jax.Array:
    """Makes the random key of a purpose at a step."""
    return keys.named(self._key, use, step)

  def next_prompts(self, step: int) -> tuple[Any, Int[np.ndarray, " b"]]:
    """Returns the next batch of prompts on the host, and which prompts they are: the rows that this process makes."""
    self._positions.setdefault(step, self.prompts.state())
    return next(self.prompts), self.prompts.index

  def to_devices(self, tree: PyTree, per_prompt: int = 1) -> PyTree:
    """Makes global arrays of the rows that this process has made, `per_prompt` for each of its prompts."""
    rows = (self._local_rows[:, None] * per_prompt + np.arange(per_prompt)).reshape(-1)
    return hosts.to_global(tree, self._row_sharding, rows, self.config.batch * per_prompt)

  def programs(self, shape: StepShape) -> dict[str, jax.stages.Compiled]:
    """Returns a shape's compiled programs, by name; those of the next new shape begin to compile in the background."""
    self.clock.lap("other")
    with self._free_to_leave():
      programs = self.compiled.at(shape)
    self.clock.lap("compile")
    self._compile_ahead(shape)
    return programs

  def expect(self, shapes: Sequence[StepShape]) -> None:
    """Replaces the shapes of the steps to come, by first use; they are compiled ahead in this order."""
    self.expected = list(shapes)

  def count_programs_of(self, generator: Any) -> None:
    """Lists a generator's programs in run.json too."""
    self._program_sources.append(generator)

  def _prepare_encoders(self) -> None:
    """Compiles what encodes the images of prompts, which the first step and the first evaluation need at once."""
    for encoder in self.inputs.encoders:
      encoder.prepare(self.program_cache)

  def _compile_ahead(self, now: StepShape) -> None:
    """Begins to compile the next new shape in the background; several processes begin all of them, in the same order."""
    if hosts.several():
      for shape in self.expected:
        self.compiled.prepare(shape)
      return
    missing = [shape for shape in self.expected if shape not in self.compiled]
    if missing and self.compiled.idle:
      self.compiled.prepare(min(missing, key=now.distance))

  # The loop.

  def stop_if_asked(self, step: int) -> None:
    """Saves and leaves where the run is asked to stop; all processes ask before every step.

    Raises:
      StopRequested: the run has saved.
    """
    if self.preemption and self.preemption.reached_sync_point(step):
      self.save_and_stop()

  @property
  def stop_requested(self) -> bool:
    """Whether a run of one process is asked to stop, for long work inside a step; several processes agree on a step."""
    return self.preemption is not None and self.preemption.requested

  def wait(self, experience: PyTree) -> PyTree:
    """Waits for the rollouts of a step."""
    jax.block_until_ready(experience)
    self.clock.lap("rollout")
    return experience

  def may_run_ahead(self, step: int) -> bool:
    """Tells whether the next step's rollouts may begin before this one's update, with `rollout.ahead`.

    Not beyond an evaluation or a checkpoint, so that a run resumes as if it had never stopped.
    """
    waits = self._due(self.config.eval.every, step + 1) or self._due(self.config.checkpoint.every, step + 1)
    return self.config.rollout.ahead and not waits

  def finish_step(self, step: int, learned: dict[str, Any]) -> None:
    """Counts, logs, evaluates and saves after a step, as far as it is due.

    Args:
      learned: the step's metrics, of recipe.learn.

    Raises:
      InputError: too many updates in a row had a NaN or Inf.
    """
    self.step = step + 1
    self.tokens += learned["step_tokens"]
    self.outcome.count(learned)
    self._positions = {k: position for k, position in self._positions.items() if k > step}
    self.clock.lap("other")
    times = {"seconds": self.clock.step(), "elapsed": self.clock.elapsed, "wall": self.clock.wall}
    counts = {"step": self.step, "tokens": self.tokens}
    self.log.train(counts | learned | times | {"peak_memory": metrics.peak_memory()})
    if learned.get("skipped", 0) >= self.config.optimizer.max_skipped:
      self._stop_broken(learned["skipped"])
    if self._due(self.config.eval.every, self.step):
      self.evaluate()
    if self._due(self.config.checkpoint.every, self.step):
      self.save()

  def evaluate(self) -> None:
    """Evaluates every model on the held-out problems, and logs it."""
    if self.inputs.evaluation is None:
      return
    self.clock.lap("other")
    models = self.models()
    for name, params in models.items():
      if name not in self.evaluators:
        self.evaluators[name] = self.recipe.evaluator(name, params, self.inputs.evaluation, self.program_cache)
        self._program_sources.append(self.evaluators[name])
        self.clock.lap("compile")
      before = self.clock.totals["eval"]
      record, samples = self.evaluators[name](params)
      self.clock.lap("eval")
      counts = {"step": self.step, "tokens": self.tokens, "elapsed": self.clock.elapsed, "wall": self.clock.wall}
      which = {"model": name} if len(models) > 1 else {}
      self.log.evaluation(counts | which | record | {"seconds": self.clock.totals["eval"] - before}, samples)

  def save(self) -> None:
    """Begins to save a checkpoint of everything that the next step depends on."""
    remembered = self.recipe.state_dict()
    if clash := remembered.keys() & set(TAKEN):
      raise ValueError(f"a recipe's state_dict has {sorted(clash)}, names that a checkpoint uses itself")
    position = {
      "step": self.step,
      "tokens": self.tokens,
      "prompts": self._positions.get(self.step) or self.prompts.state(),
      "lengths": self.log.lengths(),
      "seconds": self.clock.totals,
      "outcome": dataclasses.asdict(self.outcome),
    }
    self._describe([record for part in self._program_sources for record in part.compiled])
    self._checkpoints.save(self.step, self.state, position | remembered)

  def finish(self) -> None:
    """Waits for the last checkpoint, and says how the run ended."""
    self._checkpoints.wait()
    if self.step > self.resumed_from:
      self.log.say(f"complete: {self.step} of {self.config.steps} steps, saved in {self.workdir.name}")
    for line in self.outcome.lines():
      self.log.say(f"  note: {line}")

  def save_and_stop(self) -> NoReturn:
    """Saves, unless it has been done at this step, and ends the run.

    Raises:
      StopRequested: always.
    """
    if self.step > self.resumed_from and self._checkpoints.latest() != self.step:
      self.save()
    self._checkpoints.wait()
    status = self.preemption.status() if self.preemption else RESUME
    if not self.step:
      raise StopRequested(f"asked to stop before the first step: nothing is saved in {self.workdir.name}", status)
    raise StopRequested(
      f"asked to stop: saved after step {self.step} of {self.config.steps} in {self.workdir.name}", status
    )

  def _kept(self) -> str:
    return workdirs.kept(self.workdir)

  def _free_to_leave(self) -> contextlib.AbstractContextManager[None]:
    """Lets Ctrl-C end the process at once meanwhile, where all finished steps are saved; several processes stop at a step.

    Raises:
      StopRequested: a run of one process has been asked before.
    """
    if hosts.several() or self.step not in (self.resumed_from, workdirs.last_checkpoint(self.workdir, local=True)):
      return contextlib.nullcontext()
    if self.stop_requested:
      self.save_and_stop()
    return interrupts.answered(self._kept)

  def _stop_broken(self, skipped: int) -> NoReturn:
    self._checkpoints.wait()
    last = self._checkpoints.latest()
    raise InputError(
      f"{skipped} updates in a row had a NaN or Inf in the loss, the gradient or the new weights (last: step {self.step}); the run "
      f"stops and keeps its last checkpoint ({'none yet' if last is None else f'step {last}'}) in {self.workdir.path}. "
      "Lower config.optimizer.lr or add warm-up."
    )

  def _describe(self, programs: list[dict]) -> None:
    """Writes run.json, and in a bucket all that was written so far."""
    if hosts.first():
      workdirs.describe(self.workdir.path, self.stages, programs, self.resumed_from, dataclasses.asdict(self.outcome))
      self.workdir.push()

  def _due(self, every: int, step: int) -> bool:
    """True every so many steps and after the last."""
    return step == self.config.steps or (every > 0 and step % every == 0)

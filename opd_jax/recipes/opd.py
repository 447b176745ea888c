"""On-policy distillation, with any horizon: OPD, TOPD, POPD (arXiv:2605.31490) and horizons chosen while training.

    for step k:
      y ~ student(. | x), at most H_k tokens                                          collect
      theta <- AdamW(theta, grad of the mean over all tokens n of                     learn
                     D(student_theta(. | x, y_<n), teacher(. | c, y_<n)))

H_k is the horizon (horizon/): T for OPD, a constant below it for TOPD, H_0 + dH floor(k / dk) for POPD. D is the objective
(objectives/), c the teacher's prompt: x itself, unless a recipe says otherwise. `mixture.reward` adds a policy gradient of
the verifier's reward, `mixture.initial` a KL to the student before training, and `mini_batches` updates on one part of the
prompts after the other. With `rollout.by` another one writes y, and
the same update is an off-policy baseline: the teacher (sequence-level distillation), or the data (SFT).

Dimensions: p prompts, n rollouts of each, B = p n rows, P prompt width, H response width, D model width.
"""

import dataclasses
import functools
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from opd_jax import config as configs
from opd_jax.data import pipeline, problems, scored
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError
from opd_jax.horizon import schedule as horizons
from opd_jax.horizon.adaptive import StepObservation
from opd_jax.models import frozen, lora
from opd_jax.models.spec import ModelSpec
from opd_jax.objectives import advantage as advantages
from opd_jax.recipes.base import Recipe
from opd_jax.rewards.reward import RewardRecord
from opd_jax.rollout.generate import decode, prompt_ends
from opd_jax.runtime import hosts, keys, metrics, startup_summary
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import StepShape
from opd_jax.runtime.run import Run
from opd_jax.tasks.problem import Response
from opd_jax.training import lowering, optim, prompt_images, specs, state
from opd_jax.training.distillation import DistillationStep
from opd_jax.training.teacher_update import TeacherUpdate
from opd_jax.training.update_stats import UpdateStats
from opd_jax.types import Batch, Credit, FrozenModels, Params, Rollout, TrainState


class Experience(NamedTuple):
  """One step's prompts and rollouts."""

  step: int
  prompts: Batch
  rollout: Rollout  # perhaps still being computed
  index: np.ndarray  # which prompts, of the rows that this process makes
  limit: int  # H_k, tokens
  shape: StepShape
  programs: dict[str, jax.stages.Compiled]


class OPD(Recipe):
  """The loop above, on the host; `DistillationStep` has the computations that are compiled."""

  denoises = False  # whether its models are masked diffusion models
  reads_images = True  # whether its prompts may have images

  def __init__(self, specs: specs.Specs):
    super().__init__(specs)
    if not self.denoises and (other := [model.name for model in specs.models if not model.cfg.causal]):
      raise InputError(
        f"{other[0]} is a masked diffusion model, whose tokens are not written from left to right, and the recipe {self.config.recipe!r} trains "
        "models that do; take a config of the recipe 'diffusion', such as configs/d_opsd.py."
      )
    if self.config.data.image_field and not self.reads_images:
      raise InputError(
        f"config.data.image_field is {self.config.data.image_field!r}, and the recipe {self.config.recipe!r} reads text alone; leave it empty, or "
        "take opd, self_distillation, policy_gradient or zone."
      )
    self.horizon = horizons.from_config(self.config.horizon)
    self._solutions: list[list[int]] = []  # token ids of the data's responses, where they are learned

  @functools.cached_property
  def step(self) -> DistillationStep:
    """The computations that are compiled."""
    return DistillationStep.from_specs(self.specs)

  # A step.

  def collect(self, run: Run, step: int) -> Experience:
    limit, shape = self.horizon.limit(step), self._shape(run, step, self.horizon.width(step))
    programs = run.programs(shape)
    prompts, index = self._prompts(run, step)
    if self.step.behavior == "data":
      rollout = self._data_rollout(run, index, shape.width, limit)
    else:
      params = self.step.behavior_params(self._trained(run).params, self._frozen(run))
      rollout = programs["rollout"](params, prompts, run.key(keys.Use.ROLLOUT, step), np.int32(limit))
    return Experience(step, prompts, rollout, index, limit, shape, programs)

  def learn(self, run: Run, step: int, experience: Experience) -> dict[str, Any]:
    credit, earned = self._credit(run, experience)
    self._write_rollouts(run, step, experience, credit)
    agreement = self._probe_gradient(run, step, experience)
    seen = UpdateStats()
    for _ in range(self.config.updates_per_rollout):
      seen.begin_pass()
      for part in range(self.config.mini_batches):
        seen.add(self._update(run, experience, credit, part))
    return self._metrics(step, experience, seen, earned, agreement)

  def _prompts(self, run: Run, step: int) -> tuple[Batch, np.ndarray]:
    """Returns the next prompts on the devices, with each one's weights of several teachers, and which they are."""
    batch, index = self._next_prompts(run, step)
    if run.inputs.teacher_weight is not None:
      batch = dataclasses.replace(batch, teacher_weight=run.inputs.teacher_weight[index])  # pyright: ignore[reportArgumentType]: numpy
    if run.inputs.prompt_images is not None:
      batch = run.inputs.prompt_images.attach(batch, index, run.inputs.train)
    batch = run.to_devices(batch)
    run.clock.lap("other")
    return batch, index

  def _next_prompts(self, run: Run, step: int) -> tuple[Batch, np.ndarray]:
    """Returns the next prompts on the host, and which they are."""
    return run.next_prompts(step)

  def _data_rollout(self, run: Run, index: np.ndarray, width: int, limit: int) -> Rollout:
    if not self._solutions:
      self._solutions = problems.solutions(
        run.inputs.train,
        run.inputs.tokenizer,
        self.specs.student.stop_ids,
        run.inputs.rendering,
      )
    rows = [self._solutions[i] for i in index]
    return run.to_devices(pipeline.rollout_from_data(rows, width, limit, self.specs.sampling.pad_id))

  def _credit(self, run: Run, experience: Experience) -> tuple[Credit | None, dict[str, Any]]:
    """Rewards the rollouts: the credit of each row, and the step's metrics of the rewards; None where the loss has none."""
    if not run.inputs.rewards:
      return None, {}
    return self._credit_of(run, self._verify(run, experience))

  def _credit_of(self, run: Run, found: RewardRecord) -> tuple[Credit, dict[str, Any]]:
    """Makes the advantages of what this process's rows have earned."""
    n, (reward, earned) = self.step.n, self._earned(run, found)
    advantage = advantages.of_rewards(advantages.kind(self.config), found.reward, n, batch=reward)
    credit = Credit(advantage, self._counted(found))  # pyright: ignore[reportArgumentType]: numpy
    return run.to_devices(credit, n), earned

  def _earned(self, run: Run, found: RewardRecord) -> tuple[Float[np.ndarray, " B"], dict[str, Any]]:
    """Gathers the rewards of all processes, and the step's metrics of them."""
    n = self.step.n
    rows = hosts.all_gather_to_host(run.to_devices({"columns": found.columns(), "solved": found.solved}, n))
    reward = rows["columns"][:, 0]
    solved = rows["solved"].reshape(-1, n).sum(axis=1)
    return reward, found.metrics(rows["columns"]) | {
      "teaching_groups": float(np.mean(advantages.teaches(reward, n))),
      "groups_by_solve_rate": np.bincount(solved, minlength=n + 1).tolist(),
    }

  def _counted(self, found: RewardRecord) -> Bool[np.ndarray, " b"]:
    """Tells which rows are in the mean of the reward's term."""
    return ~found.masked

  def _verify(self, run: Run, experience: Experience) -> RewardRecord:
    """Finds what the rollouts earn, of the rows that this process makes."""
    index = [i for i in experience.index for _ in range(self.step.n)]
    responses = run.inputs.train.with_records(self._responses(run, experience), index)
    answers = [run.inputs.train.answers[i] for i in index]
    lengths = hosts.local_rows(experience.rollout.mask).sum(axis=1)
    found = run.inputs.rewards.submit(responses, answers, lengths, experience.limit).result()
    run.clock.lap("verify")
    return found

  def _responses(self, run: Run, experience: Experience) -> list[Response]:
    """Decodes the rollouts of the rows that this process makes."""
    prompts, rollout = experience.prompts, experience.rollout
    response, mask, ended = hosts.local_rows((rollout.response, rollout.mask, rollout.ended))
    prompt, prompt_mask = hosts.local_rows((prompts.prompt, prompts.prompt_mask))
    texts = decode(run.inputs.tokenizer, response, mask, self.specs.sampling.stop_ids)
    ends = prompt_ends(run.inputs.tokenizer, [row[m] for row, m in zip(prompt, prompt_mask, strict=True)])
    return list(map(Response, texts, map(bool, ended), (end for end in ends for _ in range(self.step.n))))

  def _probe_gradient(self, run: Run, step: int, experience: Experience) -> list[float] | None:
    """Measures how far shorter horizons' gradients agree with the full one, where the horizon is chosen by that."""
    if not self.horizon.probes(step):
      return None
    run.clock.lap("other")
    program = run.compiled.at(self._probe_shape(experience.shape))["probe"]
    run.clock.lap("compile")
    key = run.key(keys.Use.GRADIENT_PROBE, step)
    probed = jax.device_get(program(self._trained(run), self._frozen_on_devices(run), experience.prompts, key))
    run.tokens += int(probed["tokens"])
    run.clock.lap("probe")
    return [float(cosine) for cosine in probed["agreement"]]

  def _write_rollouts(self, run: Run, step: int, experience: Experience, credit: Credit | None) -> None:
    """Writes a few rollouts token by token, as the student is before it learns from them, where config.log.rollouts says so."""
    if not self.config.log.rollouts or not run.log.logs(step + 1):
      return
    run.clock.lap("other")
    context = credit and credit.context
    width = 0 if context is None else context.prompt.shape[1]
    program = run.compiled.at(experience.shape._replace(kind="score", context=width))["score"]
    run.clock.lap("compile")
    arguments = self._trained(run), self._frozen_on_devices(run), experience.prompts, experience.rollout, context
    found, of = jax.device_get(program(*arguments)), f"{self._writer}, training step {step + 1}"
    if hosts.first():
      images, kind = self._seen_images(run, experience), self.step.loss.objective.kind
      responses = scored.of_rollouts(found, run.inputs.tokenizer, self.step.n, kind, of, step + 1, images)
      run.log.rollouts([response.to_json() for response in responses[: self.config.log.rollouts]])
    run.clock.lap("eval")  # it looks at the run, and is no part of training

  def _seen_images(self, run: Run, experience: Experience) -> list[tuple[list[str], list[str]]]:
    """Makes small copies of what student and teacher see of the first prompts, which are scored; [] where they have no images."""
    train = run.inputs.train
    shown = experience.index[: self._scored_prompts] if train.images else ()
    return [prompt_images.previews(train, i) for i in shown]

  @property
  def _writer(self) -> str:
    """Who writes the rollouts."""
    return self.step.behavior

  @property
  def _scored_prompts(self) -> int:
    """How many prompts have all the rollouts that are written; 0: none are."""
    return min(-(-self.config.log.rollouts // self.step.n), self.config.batch)

  def _update(self, run: Run, experience: Experience, credit: Credit | None, part: int = 0) -> dict[str, Any]:
    update, frozen_models = experience.programs["update"], self._frozen_on_devices(run)
    mini_batch = np.int32(part) if self.config.mini_batches > 1 else None
    state, stats = update(self._trained(run), frozen_models, experience.prompts, experience.rollout, credit, mini_batch)
    self._replace_trained(run, state)
    stats = jax.device_get(stats)
    run.clock.lap("update")
    return stats

  def _frozen_on_devices(self, run: Run) -> FrozenModels:
    found = self._frozen(run)
    return frozen.load_to_device(found) if self.config.teacher_offload else found

  # What of a run is this method's: all of it, unless it trains several models.

  def _trained(self, run: Run) -> TrainState:
    return run.state

  def _replace_trained(self, run: Run, state: TrainState) -> None:
    run.state = state

  def _frozen(self, run: Run) -> FrozenModels:
    return run.frozen

  @property
  def _updates_of_step(self) -> int:
    return self.config.updates_per_rollout * self.config.mini_batches

  def _steps_before(self, step: int) -> int:
    """Counts the steps before this one that trained the same model."""
    return step

  def _metrics(
    self, step: int, experience: Experience, seen: UpdateStats, earned: dict[str, Any], agreement: list[float] | None
  ) -> dict[str, Any]:
    """Makes the record of a step, and lets the horizon observe it."""
    last, tokens, cut = seen.last, seen.tokens, seen.cut
    by_position = metrics.by_position(seen.sums, self.config.horizon.max)
    if not seen.skipped:
      observation = StepObservation.from_metrics(experience.limit, by_position, cut, agreement)
      self.horizon.observe(step, observation)
    means = metrics.means(seen.sums)
    return {
      "loss": seen.loss,
      **{name: value for name, value in means.items() if name != "loss"},
      "grad_norm": float(last["grad_norm"]),
      **seen.optimizer,
      "lr": optim.learning_rate(
        self.config.optimizer,
        self._steps_before(step) * self._updates_of_step,
      ),
      "skipped": seen.skipped,
      "empty": int(last["empty"]),
      "updated": seen.updated,
      "trained": seen.trained,
      **seen.moves,
      **earned,
      "step_tokens": tokens + earned.get("discarded_tokens", 0),
      "width": experience.shape.width,
      "limit": experience.limit,
      **({"agreement": agreement} if agreement else {}),
      "response_length": tokens / (self.config.batch * self.step.n),
      "ended": 1 - cut,
      "cut": cut,
      "by_position": by_position,
    }

  # Models.

  def init(self) -> TrainState:
    return state.new(self.config, self.specs.mesh, self.specs.student_params())

  def frozen(self, *, teachers: bool = True) -> FrozenModels:
    """Loads teachers, reference and an adapter's base; a model that has several of these parts is read once."""
    config, load = self.config, self.specs.frozen_params

    def offloaded(params: Params) -> Params:
      offload = config.teacher_offload and not self.specs.random_weights
      return frozen.offload_to_host(params) if offload else params

    base = load(self.specs.student) if lora.from_config(config.lora) else None
    if not teachers:
      return FrozenModels((), None, base)
    params = tuple(
      None if base is not None and name == configs.INITIAL else offloaded(load(model, config.teacher_precision))
      for name, model in (self._teachers() if TeacherUpdate.from_config(config).needs_initial else ())
    )
    reference = None
    if config.mixture.initial:
      reference = offloaded(load(self.specs.student)) if base is None else base
    return FrozenModels(params, reference, base)

  def _teachers(self) -> Iterator[tuple[str, ModelSpec]]:
    return zip(configs.teacher_names(self.config), self.specs.teachers, strict=True)

  def models(self, state: TrainState, frozen: FrozenModels | None = None) -> dict[str, Params]:
    base = frozen and frozen.base
    return {"student": state.params if base is None else lora.join(base, state.params)}

  # Programs.

  @property
  def static(self) -> Hashable:
    c = self.config
    trained = lora.from_config(c.lora), c.subnetwork.mask != "none"
    seen = self.specs.images
    return self.step, c.batch, trained, c.teacher_offload, c.teacher_precision, self._probe, self._scored_prompts, seen

  def shapes(self, run: Run, step: int) -> list[StepShape]:
    return self._shapes_between(run, step, self.config.steps)

  def _shapes_between(self, run: Run, first: int, end: int) -> list[StepShape]:
    steps = [
      self._shape(run, step, width) for step in range(first, end) for width in self.horizon.possible_widths(step)
    ]
    probes = [self._probe_shape(shape) for shape in steps] if self.horizon.measured else []
    scores = [shape._replace(kind="score") for shape in steps] if self._scored_prompts else []
    return list(dict.fromkeys([*steps, *probes, *scores]))

  def _shape(self, run: Run, step: int, width: int) -> StepShape:
    return StepShape(run.prompts.prompt_len(step), width, run.prompts.teacher_prompt_len)

  def _probe_shape(self, shape: StepShape) -> StepShape:
    return shape._replace(width=self.horizon.max, kind="probe")

  def planned_shape(self, prompt: int, response: int) -> StepShape:
    own_prompt = self.config.context.kind != "same" or Rendering.from_config(self.config).teacher_differs
    # At most as long as the student's, or of about its length.
    return StepShape(prompt, response, prompt if own_prompt else 0)

  def lower(self, shape: StepShape) -> Iterator[tuple[str, jax.stages.Lowered]]:
    batch = self.abstract_prompts(shape)
    if shape.kind == "probe":
      yield lowering.probe_program(self.step, self._probe, self.abstract_state(), self.abstract_frozen(), batch)
    elif shape.kind == "score":
      models = self.abstract_state(), self.abstract_frozen()
      yield lowering.score_program(self.step, shape.width, self._scored_prompts, *models, batch, shape.context)
    else:
      yield from lowering.step_programs(self.step, shape.width, self.abstract_state(), self.abstract_frozen(), batch)

  @property
  def _probe(self) -> tuple[tuple[int, ...], int]:
    return self.horizon.widths, self.config.horizon.probes

  def abstract_prompts(self, shape: StepShape) -> Batch:
    batch, rows = super().abstract_prompts(shape), self.config.batch

    def array(columns: int, dtype: Any) -> Any:
      return jax.ShapeDtypeStruct((rows, columns), dtype, sharding=meshes.rows(self.specs.mesh))

    K, Q = len(self.specs.teachers), shape.teacher_prompt
    if self.specs.images:
      student, *teachers = self.specs.images
      settings = self.specs.dtype, meshes.rows(self.specs.mesh)
      seen = tuple(sizes.abstract(rows, Q or shape.prompt, *settings) for sizes in teachers)
      batch = dataclasses.replace(
        batch, images=student.abstract(rows, shape.prompt, *settings), teacher_images=seen or None
      )
    if K > 1:
      batch = dataclasses.replace(batch, teacher_weight=array(K, jnp.float32))
    if Q:
      batch = dataclasses.replace(batch, teacher_prompt=array(Q, jnp.int32), teacher_prompt_mask=array(Q, jnp.bool_))
    return batch

  # What is reported of a run, and remembered.

  def stages(self) -> list[dict[str, Any]]:
    return horizons.describe(self.horizon, self.config.steps, self.config.batch * self.step.n)

  def summary(self, run: Run) -> Iterator[str]:
    student = run.models()["student"]
    teachers = dict(zip(configs.teacher_names(self.config), run.frozen.teacher_params or (student,), strict=False))
    horizon = self.horizon.lines(self.stages(), configs.horizon_unit(self.config))
    yield from startup_summary.summary_lines(self.config, run, student, teachers, horizon, self.horizon.measured)
    yield from self.mask_lines(run)

  def state_dict(self) -> dict[str, Any]:
    return {"horizon": self.horizon.state()}

  def load_state_dict(self, saved: dict[str, Any]) -> None:
    self.horizon.restore(saved.get("horizon", {}))


RECIPE = OPD

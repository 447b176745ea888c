"""On-policy distillation, with any horizon: OPD, TOPD, POPD (arXiv:2605.31490) and horizons chosen while training.

    for step k:
      y ~ student(. | x), at most H_k tokens                                          collect
      theta <- AdamW(theta, grad of the mean over all tokens n of                     learn
                     D(student_theta(. | x, y_<n), teacher(. | c, y_<n)))

H_k is the horizon (horizon/): T for OPD, a constant below it for TOPD, H_0 + dH floor(k / dk) for POPD. D is the objective
(objectives/), c the teacher's prompt: x itself, unless a recipe says otherwise. `mixture.reward` adds a policy gradient of
the verifier's reward, `mixture.initial` a KL to the student before training. With `rollout.by` another one writes y, and
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

from opd_jax import config as configs
from opd_jax.data import pipeline, problems
from opd_jax.horizon import schedule as horizons
from opd_jax.horizon.adaptive import StepObservation
from opd_jax.models import frozen, lora
from opd_jax.objectives import advantage as advantages
from opd_jax.recipes.base import Recipe
from opd_jax.rollout.generate import decode, prompt_ends
from opd_jax.runtime import hosts, keys, metrics, startup_summary
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import StepShape
from opd_jax.runtime.run import Run
from opd_jax.training import optim, specs, state
from opd_jax.training.distillation import DistillationStep
from opd_jax.types import Batch, FrozenModels, Params, Rollout, TrainState


class Experience(NamedTuple):
  """One step's prompts and rollouts."""

  prompts: Batch
  rollout: Rollout  # perhaps still being computed
  index: np.ndarray  # which prompts, of the rows that this process makes
  limit: int  # H_k, tokens
  shape: StepShape
  programs: dict[str, jax.stages.Compiled]


class OPD(Recipe):
  """The loop above, on the host; `DistillationStep` has the computations that are compiled."""

  def __init__(self, specs: specs.Specs):
    super().__init__(specs)
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
      params = self.step.behavior_params(run.state.params, run.frozen)
      rollout = programs["rollout"](params, prompts, run.key(keys.Use.ROLLOUT, step), np.int32(limit))
    return Experience(prompts, rollout, index, limit, shape, programs)

  def learn(self, run: Run, step: int, experience: Experience) -> dict[str, Any]:
    advantage, reward = self._advantage(run, experience)
    agreement = self._probe_gradient(run, step, experience)
    updated = 0
    for _ in range(self.config.updates_per_rollout):
      stats = self._update(run, experience, advantage)
      updated += int(stats["updated"])
    stats["updated"] = updated
    return self._metrics(step, experience, stats, reward, agreement)

  def _prompts(self, run: Run, step: int) -> tuple[Batch, np.ndarray]:
    """Returns the next prompts on the devices, with each one's weights of several teachers, and which they are."""
    batch, index = run.next_prompts(step)
    if run.inputs.teacher_weight is not None:
      batch = dataclasses.replace(batch, teacher_weight=run.inputs.teacher_weight[index])  # pyright: ignore[reportArgumentType]: numpy
    batch = run.to_devices(batch)
    run.clock.lap("other")
    return batch, index

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

  def _advantage(self, run: Run, experience: Experience) -> tuple[jax.Array | None, float | None]:
    """Verifies the rollouts: group-relative advantages [B], and the mean reward; None where the loss has no reward."""
    verify, n = run.inputs.verify, self.step.n
    if not verify:
      return None, None
    rollout, train = experience.rollout, run.inputs.train
    response, mask, ended = hosts.local_rows((rollout.response, rollout.mask, rollout.ended))
    prompt, prompt_mask = hosts.local_rows((experience.prompts.prompt, experience.prompts.prompt_mask))
    texts = decode(run.inputs.tokenizer, response, mask, self.specs.sampling.stop_ids)
    ends = prompt_ends(run.inputs.tokenizer, [row[m] for row, m in zip(prompt, prompt_mask, strict=True)])
    answers = [train.answers[i] for i in experience.index for _ in range(n)]
    judged = zip(texts, answers, ended, [end for end in ends for _ in range(n)], strict=True)
    reward = np.array([verify(text, answer, ended=bool(e), prompt=end) for text, answer, e, end in judged], np.float32)
    mean = float(np.mean(hosts.all_gather_to_host(run.to_devices(reward, n))))
    advantage = advantages.group_relative(reward, n, std=self.config.mixture.reward_std)
    run.clock.lap("verify")
    return run.to_devices(advantage, n), mean

  def _probe_gradient(self, run: Run, step: int, experience: Experience) -> list[float] | None:
    """Measures how far shorter horizons' gradients agree with the full one, where the horizon is chosen by that."""
    if not self.horizon.probes(step):
      return None
    run.clock.lap("other")
    program = run.compiled.at(self._probe_shape(experience.shape))["probe"]
    run.clock.lap("compile")
    key = run.key(keys.Use.GRADIENT_PROBE, step)
    probed = jax.device_get(program(run.state.params, self._frozen_on_devices(run), experience.prompts, key))
    run.tokens += int(probed["tokens"])
    run.clock.lap("probe")
    return [float(cosine) for cosine in probed["agreement"]]

  def _update(self, run: Run, experience: Experience, advantage: jax.Array | None) -> dict[str, Any]:
    update, frozen_models = experience.programs["update"], self._frozen_on_devices(run)
    run.state, stats = update(run.state, frozen_models, experience.prompts, experience.rollout, advantage)
    stats = jax.device_get(stats)
    run.clock.lap("update")
    return stats

  def _frozen_on_devices(self, run: Run) -> FrozenModels:
    return frozen.load_to_device(run.frozen) if self.config.teacher_offload else run.frozen

  def _metrics(
    self, step: int, experience: Experience, stats: dict[str, Any], reward: float | None, agreement: list[float] | None
  ) -> dict[str, Any]:
    """Makes the record of a step, and lets the horizon observe it."""
    tokens, cut = int(stats["tokens"]), float(stats["cut"])
    by_position = metrics.by_position(stats["sums"], self.config.horizon.max)
    if not int(stats["skipped"]):
      observation = StepObservation.from_metrics(experience.limit, by_position, cut, agreement)
      self.horizon.observe(step, observation)
    means = metrics.means(stats["sums"])
    return {
      "loss": float(stats["loss"]),
      **{name: value for name, value in means.items() if name != "loss"},
      "grad_norm": float(stats["grad_norm"]),
      "lr": optim.learning_rate(self.config.optimizer, step * self.config.updates_per_rollout),
      "skipped": int(stats["skipped"]),
      "empty": int(stats["empty"]),
      "updated": int(stats["updated"]),
      "trained": int(stats["trained"]),
      **({} if reward is None else {"reward": reward}),
      "step_tokens": tokens,
      "width": experience.shape.width,
      "limit": experience.limit,
      **({"agreement": agreement} if agreement else {}),
      "response_length": tokens / (self.config.batch * self.step.n),
      "ended": float(stats["ended"]),
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
      for name, model in zip(configs.teacher_names(config), self.specs.teachers, strict=True)
    )
    reference = None
    if config.mixture.initial:
      reference = offloaded(load(self.specs.student)) if base is None else base
    return FrozenModels(params, reference, base)

  def models(self, state: TrainState, frozen: FrozenModels | None = None) -> dict[str, Params]:
    base = frozen and frozen.base
    return {"student": state.params if base is None else lora.join(base, state.params)}

  # Programs.

  @property
  def static(self) -> Hashable:
    c = self.config
    return self.step, c.batch, lora.from_config(c.lora), c.teacher_offload, c.teacher_precision, self._probe

  def shapes(self, run: Run, step: int) -> list[StepShape]:
    return self._shapes_between(run, step, self.config.steps)

  def _shapes_between(self, run: Run, first: int, end: int) -> list[StepShape]:
    steps = [
      self._shape(run, step, width) for step in range(first, end) for width in self.horizon.possible_widths(step)
    ]
    probes = [self._probe_shape(shape) for shape in steps] if self.horizon.measured else []
    return list(dict.fromkeys([*steps, *probes]))

  def _shape(self, run: Run, step: int, width: int) -> StepShape:
    return StepShape(run.prompts.prompt_len(step), width, run.prompts.teacher_prompt_len)

  def _probe_shape(self, shape: StepShape) -> StepShape:
    return shape._replace(width=self.horizon.max, kind="probe")

  def planned_shape(self, prompt: int, response: int) -> StepShape:
    own_prompt = self.config.context.kind != "same"  # at most as long as the student's
    return StepShape(prompt, response, prompt if own_prompt else 0)

  def lower(self, shape: StepShape) -> Iterator[tuple[str, jax.stages.Lowered]]:
    batch = self.abstract_prompts(shape)
    if shape.kind == "probe":
      yield self.step.lower_probe(self._probe, self.abstract_state(), self.abstract_frozen(), batch)
    else:
      yield from self.step.lower(shape.width, self.abstract_state(), self.abstract_frozen(), batch)

  @property
  def _probe(self) -> tuple[tuple[int, ...], int]:
    return self.horizon.widths, self.config.horizon.probes

  def abstract_prompts(self, shape: StepShape) -> Batch:
    batch, rows = super().abstract_prompts(shape), self.config.batch

    def array(columns: int, dtype: Any) -> Any:
      return jax.ShapeDtypeStruct((rows, columns), dtype, sharding=meshes.rows(self.specs.mesh))

    K, Q = len(self.specs.teachers), shape.teacher_prompt
    if K > 1:
      batch = dataclasses.replace(batch, teacher_weight=array(K, jnp.float32))
    if Q:
      batch = dataclasses.replace(batch, teacher_prompt=array(Q, jnp.int32), teacher_prompt_mask=array(Q, jnp.bool_))
    return batch

  # What is reported of a run, and remembered.

  def stages(self) -> list[dict[str, Any]]:
    return horizons.describe(self.horizon, self.config.steps, self.config.batch * self.step.n)

  def summary(self, run: Run) -> Iterator[str]:
    teachers = dict(zip(configs.teacher_names(self.config), run.frozen.teacher_params, strict=True))
    student = run.models()["student"]
    horizon = self.horizon.lines(self.stages())
    yield from startup_summary.summary_lines(self.config, run, student, teachers, horizon, self.horizon.measured)

  def state_dict(self) -> dict[str, Any]:
    return {"horizon": self.horizon.state()}

  def load_state_dict(self, saved: dict[str, Any]) -> None:
    self.horizon.restore(saved.get("horizon", {}))


RECIPE = OPD

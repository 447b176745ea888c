"""A method that nobody published, to hold the protocol to its word: self-distillation on new and on remembered prompts.

y1 ~ student(. | new prompts), y2 ~ student(. | prompts remembered since a response to them was cut)
theta <- AdamW(theta, KL to the moving average of theta, on y1), then on y2
"""

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.data import pipeline
from opd_jax.recipes.base import Recipe
from opd_jax.runtime import keys
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import StepShape
from opd_jax.training import lowering, state
from opd_jax.training.distillation import DistillationStep
from opd_jax.types import FrozenModels

KEYS = {"memory.size": (8, "prompts that are remembered"), "memory.decay": (0.9, "of the teacher's moving average")}


class MadeUp(Recipe):
  def __init__(self, specs):
    super().__init__(specs)
    self.remembered: list[int] = []

  def init(self):
    params = self.specs.student_params()
    average = jax.tree.map(jnp.copy, params)
    return {"student": state.new(self.config, self.specs.mesh, params), "teacher": average}

  def models(self, state, frozen=None):
    return {"student": state["student"].params, "teacher": state["teacher"]}

  def shapes(self, run, step):
    return [StepShape(run.inputs.prompt_widths[-1], self.config.horizon.max)] if step < self.config.steps else []

  def lower(self, shape):
    step, now, batch = DistillationStep.from_specs(self.specs), self.abstract_state(), self.abstract_prompts(shape)
    rollout, responses = lowering.rollout_program(step, shape.width, now["student"].params, batch)

    def update(state, batch, rollout, decay=self.config.memory.decay):
      student, stats = step.update(state["student"], FrozenModels((state["teacher"],)), batch, rollout)
      average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state["teacher"], student.params)
      return {"student": student, "teacher": average}, stats

    shardings = jax.tree.map(lambda a: a.sharding, now), meshes.replicated(self.specs.mesh)
    yield "update", jax.jit(update, donate_argnums=0, out_shardings=shardings).lower(now, batch, responses)
    yield "rollout", rollout()

  def collect(self, run, step):
    _, new = run.next_prompts(step)
    old = np.resize(np.array(self.remembered or new), len(new))
    (shape,) = self.shapes(run, step)
    programs, experience = run.programs(shape), []
    for number, index in enumerate((new, old)):
      prompts = pipeline.pad([run.inputs.train.ids[i] for i in index], shape.prompt, self.specs.sampling.pad_id)
      prompts, key = run.to_devices(prompts), jax.random.fold_in(run.key(keys.Use.ROLLOUT, step), number)
      sampled = programs["rollout"](run.state["student"].params, prompts, key, np.int32(shape.width))
      experience.append((prompts, sampled, index, programs["update"]))
    return experience

  def learn(self, run, step, experience):
    for prompts, rollout, index, update in experience:
      run.state, stats = update(run.state, prompts, rollout)
      cut = [int(i) for i, ended in zip(index, np.asarray(rollout.ended), strict=True) if not ended]
      self.remembered = (self.remembered + cut)[-self.config.memory.size :]
    tokens = sum(int(np.asarray(rollout.mask).sum()) for _, rollout, _, _ in experience)
    return {"loss": float(stats["loss"]), "step_tokens": tokens, "remembered": len(self.remembered)}

  def state_dict(self):
    return {"remembered": self.remembered}

  def load_state_dict(self, saved):
    self.remembered = saved["remembered"]


RECIPE = MadeUp

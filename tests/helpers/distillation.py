"""The distillation step of the tiny models, its compiled programs, and its loss by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from opd_jax.models import decoder
from opd_jax.objectives.divergence import Objective
from opd_jax.objectives.loss import Loss
from opd_jax.rollout.sample import Sampling
from opd_jax.runtime import mesh as meshes
from opd_jax.training.distillation import DistillationStep
from opd_jax.types import Batch, Credit, FrozenModels, Rollout, TrainState
from tests.conftest import STUDENT, TEACHER

H = 10
SGD = optax.sgd(1.0)  # the change of the parameters is the gradient
STEP = DistillationStep(
  student=STUDENT,
  teachers=(TEACHER,),
  sampling=Sampling(stop_ids=(1,), pad_id=0, vocab=37),
  loss=Loss(Objective(37, overlap_k=3)),
  optimizer=SGD,
  mesh=meshes.make(devices=jax.devices()[:1]),
  max_horizon=20,
  bins=5,
)


def fresh(params) -> TrainState:
  zero = jnp.int32(0)
  return TrainState(params=params, opt_state=SGD.init(params), step=zero, skipped=zero, empty=zero)


@functools.cache
def programs(step: DistillationStep, horizon: int = H):
  return jax.jit(functools.partial(step.rollout, response_len=horizon)), jax.jit(step.update)


def learn(step: DistillationStep, params, teacher, batch: Batch, said: Rollout, *, initial=None, advantage=None):
  """One update: its statistics and the gradient. `teacher`: parameters, or a tuple of several."""
  frozen_models = FrozenModels(teacher if isinstance(teacher, tuple) else (teacher,), initial)
  credit = None if advantage is None else Credit(advantage, jnp.ones(advantage.shape, bool))
  state, stats = programs(step)[1](fresh(params), frozen_models, batch, said, credit)
  return stats, jax.tree.map(lambda old, new: np.asarray(old - new), params, state.params)


@functools.cache
def predict(cfg):
  """Logits of one row, padded at its end."""
  return jax.jit(lambda params, tokens, there: decoder.unembed(params, decoder.hidden(params, cfg, tokens, there)))


def by_hand(student, teacher, batch, said, of_teacher=None) -> float:
  """Mean reverse KL over generated tokens, one row and one token at a time.

  Args:
    of_teacher: the prompts that the teacher reads; None: the same.
  """
  total, count = 0.0, 0
  for row in range(said.response.shape[0]):
    response = np.asarray(said.response[row])[np.asarray(said.mask[row])]
    logits = []
    for params, cfg, read in ((student, STUDENT, batch), (teacher, TEACHER, of_teacher or batch)):
      prompt = np.asarray(read.prompt[row])[np.asarray(read.prompt_mask[row])]
      tokens = np.concatenate([prompt, response])
      predicted = predict(cfg)(params, np.pad(tokens, (0, 24 - len(tokens)))[None], np.arange(24)[None] < len(tokens))
      found = np.asarray(predicted)[0, len(prompt) - 1 : len(tokens)]  # row i predicts response[i]
      logits.append(found.astype(np.float64))
    s, t = (
      x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True) for x in logits
    )
    for i in range(len(response)):
      total += float((np.exp(s[i]) * (s[i] - t[i])).sum())
      count += 1
  return total / count

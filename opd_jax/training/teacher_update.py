"""Who the teacher is after each update, where it starts as the student itself (`teacher="initial"`).

    frozen    theta_0, the student before training
    ema       an exponential moving average: phi <- (1 - rate) phi + rate theta after every update that moved the weights
    current   theta, without a gradient
    mix       the distribution whose logits are (1 - rate) of theta_0's + rate of theta's

The average starts at theta_0, in fp32; that of an adapter is an adapter. The mix is what SDPO (arXiv:2601.20802) calls a trust
region. Averages follow updates and not steps: of U updates a step each moves the teacher once, and one that was skipped does not.
"""

import dataclasses

import jax
import jax.numpy as jnp

from opd_jax.config import Config
from opd_jax.objectives.divergence import HiddenAndHead
from opd_jax.types import AveragedTrainState, Params, TrainState


@dataclasses.dataclass(frozen=True)
class TeacherUpdate:
  """How the teacher moves.

  Attributes:
    kind: see above.
    rate: of "ema" and "mix", in [0, 1].
  """

  kind: str = "frozen"
  rate: float = 0.05

  @classmethod
  def from_config(cls, config: Config) -> "TeacherUpdate":
    """Reads `config.teacher_update`; equal numbers compare as equal, so that programs are shared."""
    kind = config.teacher_update.kind
    return cls(kind, config.teacher_update.rate) if kind in ("ema", "mix") else cls(kind)

  @property
  def moves(self) -> bool:
    """Tells whether the teacher follows the student."""
    return self.kind != "frozen"

  @property
  def needs_initial(self) -> bool:
    """Tells whether the student before training is read too."""
    return self.kind in ("frozen", "mix")

  def begin(self, params: Params) -> Params | None:
    """Returns what the train state holds of the teacher before the first update."""
    return jax.tree.map(jnp.copy, params) if self.kind == "ema" else None

  def of(self, state: TrainState) -> Params | None:
    """Returns the parameters, of what is trained, that the teacher has in the next update; None: it does not move."""
    if self.kind == "frozen":
      return None
    return state.teacher if isinstance(state, AveragedTrainState) else state.params

  def follow(self, state: TrainState, updated: jax.Array) -> TrainState:
    """Moves an average after an update.

    Args:
      updated: bool[], whether the update moved the weights.
    """
    if not isinstance(state, AveragedTrainState):
      return state

    def moved(old: jax.Array, new: jax.Array) -> jax.Array:
      return jnp.where(updated, old + self.rate * (new - old), old)

    teacher = jax.tree.map(moved, state.teacher, state.params)
    return dataclasses.replace(state, teacher=teacher)

  def predict(self, initial: HiddenAndHead | None, current: HiddenAndHead) -> HiddenAndHead:
    """Returns what the moving teacher predicts.

    Logits are linear in hidden states beside each other, so a mix of two models is one of twice the width.

    Args:
      initial: what the student before training predicts, of "mix".
      current: what the parameters of `of` predict.
    """
    if initial is None:
      return current
    hidden = jnp.concatenate([(1 - self.rate) * initial.hidden, self.rate * current.hidden], axis=-1)
    head = jnp.concatenate([initial.head, current.head.astype(initial.head.dtype)], axis=-1)
    return HiddenAndHead(hidden, head)


FROZEN = TeacherUpdate()

"""The records that travel between the packages of the library.

Dimensions: B rows, P prompt width, Q prompt width of the teachers, H horizon (response width), K teachers or taps, M features of a row's images, D model
width, I rows of S patches of c numbers.
"""

from typing import Any

import flax.struct
import jax
from jaxtyping import Array, Bool, Float, Int

Params = dict[str, Any]  # a model's parameter pytree, see models/decoder.py
Box = tuple[float, float, float, float]  # a region of an image: left, top, right, bottom, in pixels


@flax.struct.dataclass
class Patches:
  """Images cut into patches; several may stand behind each other in a row, and padding behind them."""

  pixels: Float[Array, "I S c"]
  row: Int[Array, "I S"]  # in its image, patches from above
  column: Int[Array, "I S"]
  size: Int[Array, "I S 2"]  # of its image, rows and columns
  image: Int[Array, "I S"]  # which of the row's images; -1: padding


@flax.struct.dataclass
class Images:
  """The images of prompts, and where they stand in them; one row per prompt, see models/images.py.

  They are encoded, or cut into patches where the model that reads them has its vision tower with it.
  """

  features: Float[Array, "B M D"] | None  # of all of a prompt's images, in order
  taps: Float[Array, "B K M D"] | None  # added to the hidden states behind each of the decoder's first K layers
  index: Int[Array, "B P"]  # which feature stands in the place of a token; -1: none
  positions: Int[Array, "B P 3"]  # of every token, see models/mrope.py
  next_position: Int[Array, " B"]  # of the first token of a response
  patches: Patches | None = None  # None: they are encoded


@flax.struct.dataclass
class Batch:
  """Prompts of one step, one row per prompt; a prompt stands once for its n rollouts."""

  prompt: Int[Array, "B P"]  # left-padded token ids
  prompt_mask: Bool[Array, "B P"]  # true on real tokens
  teacher_weight: Float[Array, "B K"] | None = None  # with several teachers: the weight of each; rows sum to 1
  number: Int[Array, " B"] | None = None  # what a prompt's random numbers follow; None: its place in the batch
  teacher_prompt: Int[Array, "B Q"] | None = None  # what teachers read instead, left-padded to a width of its own
  teacher_prompt_mask: Bool[Array, "B Q"] | None = None
  images: Images | None = None  # None: no prompt of the run has any
  teacher_images: tuple[Images, ...] | None = None  # as each teacher sees them; None: as the student does

  @property
  def of_teacher(self) -> "Batch":
    """Returns the same rows with the teachers' prompts."""
    if self.teacher_prompt is None:
      return self
    return self.replace(prompt=self.teacher_prompt, prompt_mask=self.teacher_prompt_mask)  # pyright: ignore[reportAttributeAccessIssue]

  def seen_by(self, teacher: int) -> "Batch":
    """Returns the same rows with their images as a teacher sees them."""
    if self.teacher_images is None:
      return self
    return self.replace(images=self.teacher_images[teacher])  # pyright: ignore[reportAttributeAccessIssue]


@flax.struct.dataclass
class Rollout:
  """The responses of a step, cut by the horizon or ended by a stop token."""

  response: Int[Array, "B H"]  # pad after the last token
  mask: Bool[Array, "B H"]  # true up to and including the stop token; a cut row has no stop token
  behavior_logprob: Float[Array, "B H"]  # log-probability under the distribution sampled from; 0 outside the mask
  ended: Bool[Array, " B"]  # a stop token was produced
  recorded_ids: Int[Array, "B H k"] | None = (
    None  # the most likely ids of each draw, where Sampling.recorded asks for them
  )
  recorded_logprob: Float[Array, "B H k"] | None = None  # theirs, under the distribution sampled from


@flax.struct.dataclass
class RowContext:
  """What the teacher reads before each response, made of the rollouts themselves: one row per row, not per prompt."""

  prompt: Int[Array, "B Q"]  # left-padded token ids
  prompt_mask: Bool[Array, "B Q"]
  taught: Bool[Array, " B"]  # false: there is nothing to tell the teacher, and the row is not in the divergence's mean


@flax.struct.dataclass
class Credit:
  """What is known of each row beside its tokens: what a verifier's reward says of it, and what its teacher reads."""

  advantage: Float[Array, " B"] | Float[Array, "B H"] | None = None  # of all of a row's tokens, or of each
  counted: Bool[Array, " B"] | None = None  # false: the row is not in the mean of the reward's term
  context: RowContext | None = None
  token_weight: Float[Array, "B H"] | None = None  # in that mean, up to a factor; None: as objective.normaliser says


@flax.struct.dataclass
class FrozenModels:
  """The frozen models that score the student's rollouts."""

  teachers: tuple[Params | None, ...]  # None: `base` teaches, and a program is given its arrays once
  reference: Params | None = None  # the student before training, where the loss holds it near
  base: Params | None = None  # of a student that is an adapter, models/lora.py
  encoder: Params | None = None  # a model whose hidden states are compared, see recipes/graph.py
  speaker: Params | None = None  # a teacher that writes and scores nothing, see recipes/zone.py
  moving: Params | None = None  # a teacher that follows the student, as it is in this update; not kept between them

  @property
  def teacher_params(self) -> tuple[Params, ...]:
    """The teachers' parameters."""
    return tuple(self.base if params is None else params for params in self.teachers)  # pyright: ignore[reportReturnType]


@flax.struct.dataclass
class TrainState:
  """Everything on the device that the next step depends on."""

  params: Params  # fp32 master weights, train layout: of the whole model, or of its adapter
  opt_state: Any  # optax
  step: jax.Array  # int32[], updates applied or skipped so far
  skipped: jax.Array  # int32[], updates skipped in a row because of a NaN or Inf
  empty: jax.Array  # int32[], updates left out so far because the gradient was exactly zero


@flax.struct.dataclass
class AveragedTrainState(TrainState):
  """A train state with the moving average of the parameters that teaches, see training/teacher_update.py."""

  teacher: Params


@flax.struct.dataclass
class MaskedTrainState(TrainState):
  """A train state of which some coordinates alone are trained, see training/masks.py."""

  mask: Params  # of each parameter, under its name, a bit for every coordinate: uint8, the last axis packed by eight


@flax.struct.dataclass
class MaskedAveragedTrainState(MaskedTrainState, AveragedTrainState):
  """Both of them."""

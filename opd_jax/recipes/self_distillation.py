"""Self-distillation: the student teaches itself, once it has been shown more: OPSD (arXiv:2601.18734), SDPO (arXiv:2601.20802).

    for step k:
      y_1 .. y_n ~ student(. | x) for every prompt x                                           collect
      c_i = x and what row i's teacher is shown (context.kind):                                learn
        privileged   the reference solution of the data, the same for all rows of x               OPSD
        feedback     the first right one of the other y_j, or what the verifier says of y_i       SDPO
        crop         the region of the image that x asks about, in the image's place              Vision-OPD (arXiv:2605.18740)
      theta <- AdamW(theta, grad of the mean over the tokens of the rows that have a c_i of
                     D(student_theta(. | x, y_<n), teacher(. | c_i, y_<n)))

The teacher is the student itself: as it was, its moving average, as it is, or a mix (teacher_update.kind). A row that has no
context has no loss, and an update without any such row is left out and counted. What is compared, D, is the objective's keys;
`objective.entry_clip` bounds each entry of it, as OPSD does.

A step is OPD's otherwise. Contexts of `feedback` are made between rollout and update, and padded to the first of a few widths that
holds them all, so that the programs of a run are known before it begins.

Dimensions: p prompts, n rollouts of each, B = p n rows, Q width of the teachers' prompts.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from opd_jax.context.feedback import Feedback
from opd_jax.context.privileged import Privileged
from opd_jax.context.replies import control_tokens, final_text
from opd_jax.data import pipeline
from opd_jax.errors import InputError
from opd_jax.recipes.opd import OPD, Experience
from opd_jax.rewards.reward import RewardRecord
from opd_jax.runtime import hosts
from opd_jax.runtime.programs import StepShape
from opd_jax.runtime.run import Run
from opd_jax.tasks.problem import AnswerExtractor, Response
from opd_jax.training import lowering
from opd_jax.training.specs import Specs
from opd_jax.types import Credit, RowContext

KEYS = {
  "context.kind": (
    "privileged",
    "what the teacher is shown: privileged, beside the prompt the reference solution of the data (OPSD); feedback, right responses of "
    "the same group and what the verifier says (SDPO); crop, the box of the image alone (Vision-OPD)",
    "one of privileged, feedback, crop",
  ),
  "context.zoom": (2.0, "crop: by which the region is enlarged", "(0, 16]"),
  "context.region": (
    "question",
    "crop: what the teacher sees of an image: the question's box, or for a control the box of another problem (other)",
    "one of question, other",
  ),
  "context.eval_view": (
    "whole",
    "crop: what evaluations show: whole images, or their crops; the difference is the region gap",
    "one of whole, crop",
  ),
  "context.template": (
    "{prompt}{solution}{feedback}\n\nSolve the problem yourself, step by step.",
    "the teacher's prompt; {prompt}, {solution} and {feedback} stand for its parts",
    "text",
  ),
  "context.solution_template": ("\n\nA correct solution:\n{text}", "the words around a solution, {text}", "text"),
  "context.feedback_template": (
    "\n\nAbout an earlier attempt of yours:\n{text}",
    "the words around feedback, {text}",
    "text",
  ),
  "context.max_tokens": (
    4096,
    "longest prompt of a teacher; feedback is left out of a longer one, then the solution, and then the row is not trained",
    "[1, 2**24]",
  ),
  "context.demonstration": (True, "feedback: show the group's first right response", "True or False"),
  "context.own": (False, "feedback: a row may be shown its own response", "True or False"),
  "context.feedback": (
    "without_demonstration",
    "feedback: when a row's teacher is shown the verifier's comment on it",
    "one of none, without_demonstration, always",
  ),
  "context.widths": (
    2.0,
    "feedback: ratio of the widths that contexts are padded to; 0: one, context.max_tokens",
    "0 or (1, 10**6]",
  ),
}


class SelfDistillation(OPD):
  """OPD whose teacher is the student under another prompt."""

  def __init__(self, specs: Specs):
    super().__init__(specs)
    c = self.config
    if c.context.kind == "crop" and not (c.data.image_field and c.data.box_field):
      raise InputError(
        "config.context.kind is 'crop', and the data name no images or no boxes; set config.data.image_field and config.data.box_field."
      )
    self._privileged = Privileged.from_config(c)
    self._feedback = Feedback.from_config(c) if c.context.kind == "feedback" else None
    if self._feedback and c.rollouts_per_prompt < 2 and self._feedback.demonstration and not self._feedback.own:
      raise InputError(
        "config.rollouts_per_prompt is 1, and a row is shown right responses of the others of its prompt; set it to 2 or more, or "
        "context.own=True."
      )
    positions = min(model.cfg.max_positions for model in specs.models)
    if self._feedback and c.context.max_tokens + c.horizon.max > positions:
      raise InputError(
        f"config.context.max_tokens is {c.context.max_tokens} and config.horizon.max {c.horizon.max}, and the model has {positions} positions "
        "(max_position_embeddings); lower one of the two."
      )
    if c.rollout.ahead and self._feedback:
      raise InputError(
        "config.rollout.ahead is True, and contexts are made of a step's rollouts before it ends; set it to False."
      )
    if self.horizon.measured and self._feedback:
      raise InputError(
        f"config.horizon.kind is {c.horizon.kind!r}, which probes rollouts that have no contexts; take another rule or a fixed horizon."
      )

  # A step.

  def _credit(self, run: Run, experience: Experience) -> tuple[Credit | None, dict[str, Any]]:
    if self._feedback is None:
      return super()._credit(run, experience)
    found = self._verify(run, experience)
    credit, earned = self._credit_of(run, found)
    context, shares = self._contexts(run, experience, found)
    reward = (credit.advantage, credit.counted) if self.step.loss.reward else (None, None)
    return Credit(*reward, context), earned | shares

  def _contexts(self, run: Run, experience: Experience, found: RewardRecord) -> tuple[RowContext, dict[str, Any]]:
    """Makes what the teacher reads before each row of this process, and the step's metrics of it."""
    assert self._feedback
    n, train, tokenizer = self.step.n, run.inputs.train, run.inputs.tokenizer
    control, responses = control_tokens(tokenizer), self._responses(run, experience)
    concluded = [final_text(each, control) for each in responses]
    comments, counts = self._comments(run, experience, responses, found)
    parts = []
    for group, prompt in enumerate(experience.index):
      rows = slice(group * n, (group + 1) * n)
      shown = self._feedback.of_group(concluded[rows], found.solved[rows].tolist(), comments[rows])
      parts += [(train.prompts[prompt], *of_row) for of_row in shown]
    ids, lost = self._privileged.rows(parts, tokenizer, run.inputs.rendering.for_teacher())
    width = self._context_width(run, ids)
    padded = pipeline.pad(ids, width, self.specs.sampling.pad_id)
    taught = np.array([bool(row) for row in ids])
    context = run.to_devices(RowContext(padded.prompt, padded.prompt_mask, taught), n)  # pyright: ignore[reportArgumentType]: numpy
    of_rows = np.stack(
      [taught, [bool(d) for _, d, _ in parts], [bool(f) for _, _, f in parts], np.minimum(lost, 1)], axis=1
    )
    shares = hosts.all_gather_to_host(run.to_devices(of_rows.astype(np.float32), n)).mean(axis=0)
    names = ("with_context", "with_demonstration", "with_feedback", "contexts_cut")
    return context, dict(zip(names, map(float, shares), strict=True)) | {"context_width": width} | counts

  def _comments(
    self, run: Run, experience: Experience, responses: Sequence[Response], found: RewardRecord
  ) -> tuple[list[str], dict[str, Any]]:
    """Returns the feedback on each response of this process, "" for none, and the step's metrics of it."""
    verified = zip(responses, found.solved.tolist(), found.messages, strict=True)
    return [
      message or ("" if right else comment(each, run.inputs.extract_answer)) for each, right, message in verified
    ], {}

  def _context_width(self, run: Run, ids: Sequence[Sequence[int]]) -> int:
    longest = np.full(len(ids), max(map(len, ids)), np.int32)
    longest = int(hosts.all_gather_to_host(run.to_devices(longest, self.step.n)).max())
    return next(width for width in self.context_widths if width >= longest)

  def _update(self, run: Run, experience: Experience, credit: Credit | None, part: int = 0) -> dict[str, Any]:
    if credit is not None and credit.context is not None:
      shape = self._update_shape(experience.shape, credit.context.prompt.shape[1])
      run.clock.lap("other")
      experience = experience._replace(programs=run.compiled.at(shape))
      run.clock.lap("compile")
    return super()._update(run, experience, credit, part)

  def preview(self, inputs: Any, prompt: int) -> Iterator[tuple[str, list[int]]]:
    if self._feedback is None:
      return
    train = inputs.train
    answer = train.answers[prompt] or "1"  # in words that the tokenizer has
    solution = answer if self._feedback.demonstration else ""
    feedback = "" if self._feedback.feedback == "none" else answer
    parts = [(train.prompts[prompt], solution, feedback)]
    (ids,), _ = self._privileged.rows(parts, inputs.tokenizer, inputs.rendering.for_teacher())
    shown = " and ".join(name for name, part in (("a right response", solution), ("feedback", feedback)) if part)
    if ids:
      yield f"what a row's teacher reads, with {answer!r} in the place of {shown}", ids

  # Programs.

  @property
  def static(self) -> Hashable:
    return super().static, self._feedback is not None

  @property
  def context_widths(self) -> tuple[int, ...]:
    """The widths that contexts of rollouts are padded to, rising."""
    longest, ratio = self.config.context.max_tokens, self.config.context.widths
    return pipeline.rising_widths(longest, ratio, self.config.data.max_prompt)

  def _shapes_between(self, run: Run, first: int, end: int) -> list[StepShape]:
    shapes = super()._shapes_between(run, first, end)
    if self._feedback is None:
      return shapes
    with_context = [
      shape._replace(kind="update" if shape.kind == "step" else shape.kind, context=width)
      for shape in shapes
      for width in self.context_widths
    ]
    return list(dict.fromkeys([*(shape for shape in shapes if shape.kind == "step"), *with_context]))

  def _update_shape(self, shape: StepShape, context: int) -> StepShape:
    return shape._replace(kind="update", context=context)

  def planned_shape(self, prompt: int, response: int) -> StepShape:
    longest = self.config.context.max_tokens
    return StepShape(prompt, response, context=longest) if self._feedback else StepShape(prompt, response, longest)

  def lower(self, shape: StepShape) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Lowers the rollout of a step and the update of a width of contexts; for a plan both of one shape."""
    if self._feedback is None or shape.kind == "score":
      yield from super().lower(shape)
      return
    wanted = ("update",) if shape.kind == "update" else ("rollout",)
    if shape.kind == "step" and shape.context:
      wanted = ("update", "rollout")
    arguments = self.abstract_state(), self.abstract_frozen(), self.abstract_prompts(shape)
    yield from lowering.step_programs(self.step, shape.width, *arguments, shape.context, wanted)


RECIPE = SelfDistillation


def comment(response: Response, extract_answer: AnswerExtractor | None) -> str:
  """Says why a response counts as wrong, as far as its final answer tells."""
  answer = extract_answer and extract_answer(response.text, ended=response.ended, prompt=response.prompt)
  if answer is not None:
    return f"Its final answer, {answer}, is wrong."
  return "It has no final answer." if response.ended else "It was cut before it came to an answer."

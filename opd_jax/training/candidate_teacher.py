"""What a run asks its teacher of hard questions: responses, of which the right ones are kept, and its candidates, made short.

teacher = CandidateTeacher(specs, params, batch)
responses, counts = teacher.right(run, step, questions)     right responses to each question
short, tokens = teacher.short(run, step, requests)          of Reformulator.requests

A call's answers follow from the run's seed, the step and which of the two it is, so that a step that was killed gets the same ones again.
"""

from collections.abc import Callable, Sequence
from typing import Any

from opd_jax.context.privileged import rewritten
from opd_jax.data import chat
from opd_jax.data.image_refs import ImageRef
from opd_jax.rollout.endpoint import EndpointSampler, TeacherSampler
from opd_jax.rollout.generate import prompt_ends
from opd_jax.rollout.teacher_sampler import MeshTeacher, ask
from opd_jax.runtime import keys
from opd_jax.runtime.run import Run
from opd_jax.tasks.problem import Response
from opd_jax.training import writing_teacher
from opd_jax.training.specs import Specs
from opd_jax.training.verification import ResponseVerifier
from opd_jax.types import Params


class CandidateTeacher:
  """The teacher that writes candidates, as the keys zone.teacher_* and candidates.* say.

  Args:
    params: returns the parameters of a teacher on the devices, of a run.
    batch: prompts that such a one answers at once.

  Attributes:
    sampler: what answers; made with the first question unless it is given.
  """

  def __init__(self, specs: Specs, params: Callable[[Run], Params], batch: int):
    self.sampler: TeacherSampler | MeshTeacher | None = None
    self._specs, self._params, self._batch = specs, params, batch

  def right(
    self, run: Run, step: int, questions: Sequence[int], verifier: ResponseVerifier
  ) -> tuple[list[list[Response]], dict[str, Any]]:
    """Asks for responses to questions, by their numbers, and lists the right ones of each; and what is recorded of that."""
    config, train = self._specs.config, run.inputs.train
    z, longest = config.zone, config.zone.teacher_tokens or config.horizon.max
    with_suffix = run.inputs.rendering.for_teacher().with_suffix
    prompts = [rewritten(train.prompts[question], with_suffix) for question in questions]
    sizes = z.teacher_rollouts, longest, z.teacher_temperature
    written, tokens = self._ask(run, 2 * step, prompts, questions, *sizes)
    run.clock.lap("converse")
    ends = [""] * len(questions)
    if isinstance(self.sampler, MeshTeacher):  # where the chat template may have opened a thought
      ends = prompt_ends(run.inputs.tokenizer, [train.ids[question] for question in questions])
    found = verifier.right(written, questions, ends, longest)
    run.clock.lap("verify")
    share = sum(map(len, found)) / (len(questions) * z.teacher_rollouts)
    return found, {"teacher_tokens": tokens, "teacher_right": share}

  def short(self, run: Run, step: int, requests: dict[tuple[int, str], chat.Prompt]) -> tuple[list[list[str]], int]:
    """Has candidates made short, one text for each request, and counts the tokens of that."""
    c = self._specs.config.candidates
    prompts, questions = list(requests.values()), [question for question, _ in requests]
    return self._ask(run, 2 * step + 1, prompts, questions, 1, c.max_tokens, c.temperature)

  def metrics(self) -> dict[str, Any]:
    """Returns what the record has of an endpoint: {} of another teacher."""
    return self.sampler.metrics() if isinstance(self.sampler, EndpointSampler) else {}

  def _ask(
    self,
    run: Run,
    number: int,
    prompts: Sequence[chat.Prompt],
    questions: Sequence[int],
    n: int,
    max_tokens: int,
    temperature: float,
  ) -> tuple[list[list[str]], int]:
    """Has prompts answered n times each; the answers, and their tokens. What is drawn follows from the call's number."""
    if self.sampler is None:
      options = self._specs.config.zone
      self.sampler = writing_teacher.make(run, self._specs, options, lambda: self._params(run), self._batch)
    seed = keys.host_seed(run.key(keys.Use.SPEAKER, number))
    sizes: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    return ask(self.sampler, prompts, n, images=images_of(run, questions), **sizes)


def images_of(run: Run, questions: Sequence[int]) -> list[tuple[ImageRef, ...]]:
  """Lists the images of questions, by their numbers; none of any where prompts have none."""
  shown = run.inputs.train.images
  return [shown[question] for question in questions] if shown else [()] * len(questions)

"""CCOPD: the student reads a conversation, its frozen self everything at once (arXiv:2605.30251).

    for every problem, once or every `context.refresh` steps:
      h <- student's own replies to all turns of the user but the last               refresh_histories
    for step k:
      y ~ student(. | turns with replies h)                                          collect
      theta <- AdamW(theta, grad of the mean over the answer's tokens n of           learn
                     KL(student_theta(. | turns with h, y_<n) || student_0(. | everything at once, y_<n)))

Both score the same reply to the user's last turn, aligned by its own index; earlier replies stand in the student's prompt
and train nothing. They are saved in the workdir, so that a resumed run has the same ones. A step itself is OPD's.

`context.turns="any"` is the paper's warning as a control: the reply to a random turn is trained, against a teacher that
already knows what the conversation has not come to yet.
"""

from collections.abc import Sequence
from typing import Any

from opd_jax.context import canonical
from opd_jax.context.canonical import Histories
from opd_jax.context.replies import ReplyForm
from opd_jax.recipes.opd import OPD, Experience
from opd_jax.runtime import keys, outcome
from opd_jax.runtime.programs import StepShape
from opd_jax.runtime.run import Run
from opd_jax.training.specs import Specs
from opd_jax.types import Params

KEYS = {
  "context.kind": (
    "canonical",
    "what each side reads: the student a conversation, the teacher everything at once",
    "one of same, canonical",
  ),
  "context.turns": (
    "final",
    "whose reply is trained: final; any, a random turn's (what the paper warns of)",
    "one of final, any",
  ),
  "context.turn_tokens": (256, "longest reply to an earlier turn", "[1, 2**24]"),
  "context.refresh": (
    0,
    "steps until the student's replies are generated anew; 0: once, by the initial student",
    "[0, 10**9]",
  ),
  "context.max_turns": (8, "problems of more facts have neighbours joined", "[2, 1000]"),
  "context.user": (
    "templates",
    "what a user says around a fact: templates, plain (nothing)",
    "one of templates, plain",
  ),
  "context.min_turns": (2, "problems of fewer are left out", "[2, 1000]"),
}


class CCOPD(OPD):
  """OPD on conversations, whose earlier replies are the student's own."""

  reads_images = False

  def __init__(self, specs: Specs):
    super().__init__(specs)
    self._histories: Histories | None = None
    self._prompts_known_until = 0  # the step up to which the student's prompts are known

  def collect(self, run: Run, step: int) -> Experience:
    if step >= self._prompts_known_until:
      run.expect(self.shapes(run, step))
    return super().collect(run, step)

  def shapes(self, run: Run, step: int) -> list[StepShape]:
    """Lists the shapes of the steps whose prompts are known; refreshes the histories first, where the step needs it."""
    if self._prompts_known_until <= step < self.config.steps:
      self._refresh_histories(run, step)
    return self._shapes_between(run, step, self._prompts_known_until)

  def _refresh_histories(self, run: Run, step: int) -> None:
    """Replaces the student's prompts by conversations with its own replies, generated now or found in the workdir."""
    if self._histories is None:
      self._histories = self._open_histories(run)
    histories, steps = self._histories, self.config.steps
    run.clock.lap("other")
    first, end = histories.block(step)
    needed = run.prompts.indices_of_steps(first, end or steps)  # of the whole block: a longer run may go on in it
    compiling = _compile_seconds(histories.generate.compiled)

    def saved(done: int, total: int) -> None:
      self._on_histories_saved(run, done, total)

    known = len(histories.ended)
    student, cut_before, thoughts_before = run.models()["student"], histories.cut, histories.thoughts_cut
    run.prompts.replace(histories.prompts(first, student, needed, step, saved))
    if cut := histories.cut - cut_before:
      run.log.say(
        f"  note: {cut} of {len(needed)} conversations lost their beginning: their replies, tokenised again, need more "
        "tokens than context.turn_tokens reserves; a new run with a larger context.turn_tokens, and data.max_prompt to "
        "match, reserves more"
      )
    if cut := histories.thoughts_cut - thoughts_before:
      run.log.say(
        f"  note: {cut} replies to earlier turns were cut inside their thought, which is dropped or kept as the chat template "
        "does with thoughts that end; a new run with a larger context.turn_tokens cuts fewer"
      )
    ended = histories.ended[known:]
    if ended.count(False) > outcome.CUT * len(ended):
      run.log.say(
        f"  note: {ended.count(False)} of {len(ended)} earlier replies were cut at {self.config.context.turn_tokens} "
        "tokens; a new run with a larger context.turn_tokens, and data.max_prompt to match, lets them end"
      )
    self._prompts_known_until = min(steps, end or steps)
    run.clock.lap("converse")
    run.clock.move(_compile_seconds(histories.generate.compiled) - compiling, "converse", "compile")

  def _on_histories_saved(self, run: Run, done: int, total: int) -> None:
    """Reports progress; a run that is asked to stop does so here, and keeps the conversations that are saved."""
    if total > canonical.AT_A_TIME:
      run.log.say(f"  {done} of {total} conversations")
    if done < total and run.stop_requested and not self.config.rollout.ahead:
      run.save_and_stop()

  def _open_histories(self, run: Run) -> Histories:
    config, inputs = self.config, run.inputs
    generate = self.generator(
      "student",
      self.specs.generator_config,
      inputs.tokenizer,
      batch=min(config.eval.batch, len(inputs.train.ids)),
      prompt_lens=inputs.prompt_widths,
      max_tokens=config.context.turn_tokens,
      name="converse",
      numbered=True,
      program_cache=run.program_cache,
    )
    run.count_programs_of(generate)
    return Histories(
      conversations=inputs.train.conversations,
      generate=generate,
      tokenizer=inputs.tokenizer,
      rendering=inputs.rendering,
      key=run.key(keys.Use.HISTORIES),
      refresh=config.context.refresh,
      final=config.context.turns == "final",
      directory=run.workdir.root / "histories",
      initial_student=lambda: self._initial_student(run),
      digest=run.digest,
      reply_form=ReplyForm.of(inputs.tokenizer, inputs.rendering, inputs.train.conversations[0].system),
    )

  def _initial_student(self, run: Run) -> Params:
    """Returns the student before training, which a resumed run has to load again."""
    if not run.step:
      return run.models()["student"]
    return self.step.with_base(self.specs.student_params(), run.frozen)


RECIPE = CCOPD


def _compile_seconds(programs: Sequence[dict[str, Any]]) -> float:
  return sum(program["seconds"] for program in programs)

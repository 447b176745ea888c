"""Two students tutor each other by comments on their rollouts: OPCoD (arXiv:2606.14368).

    for round r:
      a_i[d] = accuracy of student i in domain d of the validation problems                      _begin_round
      gap_i = sum over d of (best_d - a_i[d]) / best_d,   best_d = max(a_1[d], a_2[d])
      tutors = frozen copies of both students
      for i in (1, 2), the other one j its tutor:                                                a phase
        for `codistillation.phase_steps` steps:
          y_1 .. y_n ~ student_i(. | x) for every prompt x                                       collect
          s = the first right one of the y; f_k = what is kept of tutor_j(. | x, y_k)            learn
              if gap_j <= tau, else none
          theta_i <- AdamW(theta_i, grad of the mean over the tokens of the rows that have s or f_k of
                           D(student_i(. | x, y_k,<m), average of student_i(. | x, s, f_k, y_k,<m)))

The teacher in the loss is the student's own moving average (`teacher_update`), never the peer: what passes from one to the other is
text. A phase's step is self-distillation's (self_distillation.py), with the tutor's comments in the place of the verifier's;
context/comments.py tells which are kept.

Choices of ours, where the paper leaves them open: a round in which no gate is open is plain self-distillation; averages go on from
phase to phase; a domain that neither student can do is left out of the gap; the horizon follows the steps of the run, and each
optimiser's schedule those of its own student. `codistillation.snapshot` has both of the paper's readings of when tutors are copied.

Dimensions: p prompts, n rollouts of each, B = p n rows.
"""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import config as configs
from opd_jax.context.comments import Comments
from opd_jax.context.tutor import Commented, Tutor
from opd_jax.data import chat, pipeline
from opd_jax.errors import InputError
from opd_jax.evaluation import EvaluationInputs, Evaluator, tutoring
from opd_jax.models.spec import ModelSpec
from opd_jax.recipes.base import Recipe
from opd_jax.recipes.opd import Experience
from opd_jax.recipes.self_distillation import SelfDistillation
from opd_jax.rewards.reward import RewardRecord
from opd_jax.rollout.generate import Generator, GeneratorConfig, decode
from opd_jax.runtime import hosts, keys, startup_summary
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.bucket import MirroredDir
from opd_jax.runtime.programs import StepShape
from opd_jax.runtime.run import Run
from opd_jax.tasks.problem import Response
from opd_jax.training import specs as specs_of
from opd_jax.training.specs import Specs
from opd_jax.types import Batch, FrozenModels, Params, TrainState

KEYS_OF = "self_distillation"
KEYS = {
  "context.kind": (
    "feedback",
    "what the teacher is shown beside the prompt: right responses of the group and comments",
    "one of feedback",
  ),
  "codistillation.peer": ("", "the second student, of the same tokenizer", "path"),
  "codistillation.peer_mask_from": (
    "",
    'where the peer\'s mask comes from, as subnetwork.mask_from; "": the run named there, which has a peer too',
    "path",
  ),
  "codistillation.phase_steps": (
    50,
    "steps of one student before it is the other one's turn; two phases are a round",
    "[1, 10**9]",
  ),
  "codistillation.gate": (
    "gap",
    "when a tutor comments: gap, in rounds in which it is at most tau behind; always; never; domain, on problems of the domains in which it "
    "is at least as good",
    "one of gap, always, never, domain",
  ),
  "codistillation.tau": (0.2, "gate=gap: the largest shortfall, relative and summed over domains", "[0, 1000]"),
  "codistillation.snapshot": (
    "round",
    "when tutors are copied: at the beginning of a round, or of each phase, so that the second student's tutor has already learned",
    "one of round, phase",
  ),
  "codistillation.tutor": ("peer", "who comments: peer; self, a control, the student's own copy", "one of peer, self"),
  "codistillation.shuffle": (
    False,
    "a control: each row is given the comment on a response to another prompt of the step",
    "True or False",
  ),
  "codistillation.shuffle_within": (
    False,
    "a control: each row is given the comment on another response to its own prompt",
    "True or False",
  ),
  "context.feedback": (
    "always",
    "when a row's teacher is shown the comment on it: always, or where its group has no right response to show",
    "one of without_demonstration, always",
  ),
  "codistillation.validation": ("", 'a file of problems to score by; "": those behind the evaluation\'s', "path"),
  "codistillation.validation_prompts": (120, "problems to score by", "[1, 10**6]"),
  "codistillation.validation_k": (4, "answers to each of them", "[1, 1000]"),
  "comment.template": (
    "{prompt}\n\nAnother student answered:\n{response}\n\nComment on this answer in a few sentences: is it sound, and where does it first go "
    "wrong? Do not state the final answer. Begin with the one concept of the problem that matters most, one to three words copied "
    "from it, between <concept> and </concept>.",
    "what a tutor reads; {prompt} and {response} stand for the two",
    "text",
  ),
  "comment.anchor": (
    "<concept>{text}</concept>",
    'marks of the concept that a comment begins with; "": none is asked for',
    "text",
  ),
  "comment.leaks": (
    "options",
    "what is removed of answers: options, letters of options and sentences that state an answer; answer, boxed numbers too; none",
    "one of options, answer, none",
  ),
  "comment.max_tokens": (1024, "longest comment; a longer one is dropped", "[1, 2**24]"),
  "comment.max_prompt": (4096, "longest prompt of a tutor, tokens; on longer ones it is not asked", "[1, 2**24]"),
  "comment.temperature": (1.0, "at which comments are drawn", "[0, 100]"),
}
STUDENTS = ("student", "peer")
Ask = Callable[[Run, Experience, int], Commented | None]


class CoDistillation(Recipe):
  """The loop above. Each student is a `Student`, whose steps are those of self-distillation."""

  def __init__(self, specs: Specs):
    super().__init__(specs)
    c = self.config
    if not c.codistillation.peer:
      raise InputError(
        "config.codistillation.peer is empty, and two students are trained; name the second one's directory."
      )
    if c.teacher != configs.INITIAL:
      raise InputError(f"config.teacher is {c.teacher!r}, and each student is its own teacher; set it to 'initial'.")
    if c.lora.path:
      raise InputError(
        "config.lora.path begins with one adapter, and two students would have it; merge each into its own directory (export --merge), or "
        "train new ones with config.lora.rank."
      )
    if (c.codistillation.shuffle and c.batch < 2) or (c.codistillation.shuffle_within and c.rollouts_per_prompt < 2):
      raise InputError(
        f"config.batch is {c.batch} and config.rollouts_per_prompt {c.rollouts_per_prompt}, so that there is no other comment to give a row; raise "
        "them, or leave codistillation.shuffle and shuffle_within False."
      )
    of_peer = _with_student(specs, specs.another(c.codistillation.peer))
    self.students = {
      name: Student(of_one, name, self._ask_for_comments)
      for name, of_one in zip(STUDENTS, (specs, of_peer), strict=True)
    }
    for student in self.students.values():
      positions, needed = student.specs.student.cfg.max_positions, c.comment.max_tokens + c.data.max_prompt
      if needed > positions:
        raise InputError(
          f"config.comment.max_tokens is {c.comment.max_tokens} and config.data.max_prompt {c.data.max_prompt}, and {student.specs.student.name} "
          f"has {positions} positions (max_position_embeddings); lower one of the two."
        )
    first, second = self.students.values()
    second.owner = first.owner if first.static == second.static else second.name
    self.comments = Comments.from_config(c)
    self.gate = tutoring.Gate(c.codistillation.gate, c.codistillation.tau)
    self._tutors: dict[str, Tutor] = {}
    self._evaluators: dict[str, Evaluator] = {}
    self._validation: EvaluationInputs | None = None
    self.history: list[dict[str, Any]] = []  # of each round that has begun: scores, shortfalls and whose gate is open
    self._told = 0  # rounds whose gates stand in a written record

  # A step.

  def collect(self, run: Run, step: int) -> Experience:
    if step % (2 * self._phase_steps) == 0:
      self._begin_round(run, step)
    elif step % self._phase_steps == 0 and self.config.codistillation.snapshot == "phase":
      self._copy_tutors(run)
    return self._tutee(step).collect(run, step)

  def learn(self, run: Run, step: int, experience: Experience) -> dict[str, Any]:
    tutee, gate = self._tutee(step), {}
    if self._told < len(self.history) and run.log.logs(step + 1):  # in the first record of the round that is written
      self._told, gate = len(self.history), {"gate": self.history[-1]}
    of_step = {"model": tutee.name, "round": step // (2 * self._phase_steps)}
    return tutee.learn(run, step, experience) | of_step | gate

  def _begin_round(self, run: Run, step: int) -> None:
    """Scores both students, opens or closes their gates, and copies the tutors."""
    scores = {name: self._score(run, name, params) for name, params in run.models().items()}
    pairs = {name: (scores[name], scores[_other(name)]) for name in STUDENTS}
    gaps = {name: tutoring.shortfall(*pair) for name, pair in pairs.items()}
    is_open = {name: self.gate.is_open(*pair) for name, pair in pairs.items()}
    self.history.append({"step": step, "scores": scores, "gap": gaps, "open": is_open})
    for name in STUDENTS:
      found = ", ".join(f"{domain or 'accuracy'} {value:.3f}" for domain, value in scores[name].items())
      state = "open" if is_open[name] else "closed"
      run.log.say(f"  round {len(self.history) - 1}, {name}: {found}, gap {gaps[name]:.3f}, gate {state}")
    self._copy_tutors(run)

  def _score(self, run: Run, name: str, params: Params) -> dict[str, float]:
    """Measures a student's accuracy by domain on the validation problems."""
    run.clock.lap("other")
    if name not in self._evaluators:
      self._evaluators[name] = self._evaluator(run, name, params)
      run.count_programs_of(self._evaluators[name])
      run.clock.lap("compile")
    record, _ = self._evaluators[name](params)
    run.clock.lap("eval")
    return tutoring.by_domain(record)

  def _evaluator(self, run: Run, name: str, params: Params) -> Evaluator:
    changes = {"eval.k": self.config.codistillation.validation_k, "eval.pass_at": (1,), "log.samples": 0}
    config = configs.override(self.config, changes)

    def generator(settings: GeneratorConfig, tokenizer: Any, **sizes: Any) -> Generator:
      return self.generator(name, settings, tokenizer, **sizes)

    return Evaluator(config, self._load_validation(run), params, run.program_cache, generator)

  def _load_validation(self, run: Run) -> EvaluationInputs:
    """Loads the problems that students are scored by, once.

    Raises:
      InputError: there are too few, or they do not tell the domains that are needed.
    """
    if self._validation is not None:
      return self._validation
    c = self.config.codistillation
    own_task = configs.data_paths(self.config)[0].startswith(configs.TASK)
    if not c.validation and not self.config.eval.path and not own_task:
      raise InputError(
        "config.codistillation.validation is empty, and students are scored at the beginning of each round; name a file of problems with answers."
      )
    found = self._validation = run.inputs.validation(c.validation, c.validation_prompts)
    unknown = set(run.inputs.train.domains) - set(found.problems.domains)
    if c.gate == "domain" and (unknown or not run.inputs.train.domains):
      lack = f"lack {sorted(unknown)[0]!r}" if unknown else "have no domains"
      raise InputError(
        f"config.codistillation.gate is 'domain', and the problems to score by {lack}; name the field of domains in "
        "config.data.domain_field, and have all of them among config.codistillation.validation_prompts."
      )
    return found

  def _copy_tutors(self, run: Run) -> None:
    trained = {name: run.state["students"][name].params for name in STUDENTS}
    run.state = run.state | {"tutors": _copy(trained)}

  def _ask_for_comments(self, run: Run, experience: Experience, n: int) -> Commented | None:
    """Has the tutor of a step's student comment on all of the step's rollouts; None: its gate is closed."""
    tutee, now = self._tutee(experience.step).name, self.history[-1]
    other = _other(tutee)
    if not now["open"][other]:
      return None
    name = tutee if self.config.codistillation.tutor == "self" else other
    if name not in self._tutors:
      self._tutors[name] = self._tutor(run, self.students[name])
    train, specs = run.inputs.train, self.students[tutee].specs
    prompts = hosts.all_gather_to_host(run.to_devices(np.asarray(experience.index, np.int32)))
    response, mask = hosts.all_gather_to_host((experience.rollout.response, experience.rollout.mask))
    texts = decode(run.inputs.tokenizer, response, mask, specs.sampling.stop_ids)
    of_rows = [int(i) for i in prompts for _ in range(n)]
    pair = now["scores"][other], now["scores"][tutee]
    wanted = [self.gate.admits(*pair, train.domains[i] if train.domains else "") for i in of_rows]
    params = self.students[name].step.with_base(run.state["tutors"][name], run.frozen[name])
    key = run.key(keys.Use.COMMENTS, experience.step)
    return self._tutors[name](params, [train.prompts[i] for i in of_rows], texts, key, wanted)

  def _tutor(self, run: Run, student: "Student") -> Tutor:
    """Makes what comments with the weights of a student's copy."""
    c, model = self.config, student.specs.student
    longest = min(c.comment.max_prompt, model.cfg.max_positions - c.comment.max_tokens)
    settings = student.specs.generator_config
    sampling = dataclasses.replace(settings.sampling, temperature=c.comment.temperature, top_p=1.0, top_k=0)
    generate = self.generator(
      student.name,
      dataclasses.replace(settings, sampling=sampling),
      run.inputs.tokenizer,
      batch=min(c.eval.batch, c.batch * c.rollouts_per_prompt),
      prompt_lens=pipeline.rising_widths(longest, c.context.widths, c.data.max_prompt),
      max_tokens=c.comment.max_tokens,
      name="comment",
      numbered=True,
      program_cache=run.program_cache,
    )
    run.count_programs_of(generate)
    return Tutor(generate, self.comments, run.inputs.tokenizer, run.inputs.rendering)

  @property
  def _phase_steps(self) -> int:
    return self.config.codistillation.phase_steps

  def _tutee(self, step: int) -> "Student":
    return self.students[STUDENTS[step // self._phase_steps % 2]]

  # Models.

  def init(self) -> dict[str, Any]:
    students = {name: student.init() for name, student in self.students.items()}
    return {"students": students, "tutors": _copy({name: state.params for name, state in students.items()})}

  def frozen(self, *, teachers: bool = True) -> dict[str, FrozenModels]:
    return {name: student.frozen(teachers=teachers) for name, student in self.students.items()}

  def models(self, state: dict[str, Any], frozen: dict[str, FrozenModels] | None = None) -> dict[str, Params]:
    found = {}
    for name, student in self.students.items():
      own = None if frozen is None else frozen[name]
      found[name] = student.models(state["students"][name], own)["student"]
    return found

  def spec(self, name: str) -> ModelSpec:
    return self.students[name].specs.student

  def mask_from(self, model: str) -> str:
    source = super().mask_from(model)
    if model != "peer" or self.config.codistillation.peer_mask_from:
      return self.config.codistillation.peer_mask_from if model == "peer" else source
    if source and not (MirroredDir(source).root / "checkpoints").is_dir():
      raise InputError(
        f"config.subnetwork.mask_from is {source}, a model's directory, which the student began as and its peer did not; name the peer's own in "
        "config.codistillation.peer_mask_from, or a run of two students."
      )
    return source

  # Programs.

  @property
  def static(self) -> Hashable:
    return tuple(student.static for student in self.students.values())

  def shapes(self, run: Run, step: int) -> list[StepShape]:
    self._load_validation(run)
    found, phase = [], self._phase_steps
    for first in range(step // phase * phase, self.config.steps, phase):
      end = min(first + phase, self.config.steps)
      found += self._tutee(first)._shapes_between(run, max(first, step), end)
    return list(dict.fromkeys(found))

  def planned_shape(self, prompt: int, response: int) -> StepShape:
    return self.students["student"].planned_shape(prompt, response)

  def abstract_prompts(self, shape: StepShape) -> Batch:
    return self.students[shape.model or "student"].abstract_prompts(shape)

  def lower(self, shape: StepShape) -> Iterator[tuple[str, jax.stages.Lowered]]:
    yield from self.students[shape.model or "student"].lower(shape)

  # What is reported of a run, and remembered.

  def stages(self) -> list[dict[str, Any]]:
    return self.students["student"].stages()

  def summary(self, run: Run) -> Iterator[str]:
    first, models = self.students["student"], run.models()
    horizon = first.horizon.lines(self.stages())
    teachers = {configs.INITIAL: models["student"]}
    yield from startup_summary.summary_lines(self.config, run, models["student"], teachers, horizon, False)
    c = self.config.codistillation
    yield f"  two students, {self.config.student} and {c.peer}, {c.phase_steps} steps each in turn; gate {c.gate}, tau {c.tau:g}"
    if self.config.steps % (2 * c.phase_steps):
      yield f"  note: {self.config.steps} steps are no whole number of rounds of 2 x {c.phase_steps}, so that one student has more of them"
    yield from self.mask_lines(run)

  def preview(self, inputs: Any, prompt: int) -> Iterator[tuple[str, list[int]]]:
    yield from self.students["student"].preview(inputs, prompt)
    answer = inputs.train.answers[prompt] or "1"
    request = self.comments.request(inputs.train.prompts[prompt], answer)
    what = f"what a tutor reads, with {answer!r} in the place of a response"
    yield what, chat.render(request, inputs.tokenizer, inputs.rendering)

  def state_dict(self) -> dict[str, Any]:
    return self.students["student"].state_dict() | {"gates": self.history, "gates_told": self._told}

  def load_state_dict(self, saved: dict[str, Any]) -> None:
    for student in self.students.values():
      student.load_state_dict(saved)
    self.history = [dict(each) for each in saved["gates"]]
    self._told = saved.get("gates_told", len(self.history))


class Student(SelfDistillation):
  """One of the two students: self-distillation on its part of the run's state, with a tutor's comments as feedback.

  Attributes:
    name: one of STUDENTS.
    owner: the student whose programs this one runs: itself, or one of the same architecture.
  """

  reads_images = False

  def __init__(self, specs: Specs, name: str, ask: Ask):
    """Makes the student.

    Args:
      ask: has its tutor comment on a step's rollouts.
    """
    super().__init__(specs)
    self.name = self.owner = name
    self._ask = ask

  def _with_random_weights(self) -> "Student":
    return Student(self.specs.with_random_weights(), self.name, self._ask)

  def _trained(self, run: Run) -> TrainState:
    return run.state["students"][self.name]

  def _replace_trained(self, run: Run, state: TrainState) -> None:
    run.state = run.state | {"students": run.state["students"] | {self.name: state}}

  def _frozen(self, run: Run) -> FrozenModels:
    return run.frozen[self.name]

  @property
  def _writer(self) -> str:
    return self.name

  def _steps_before(self, step: int) -> int:
    phase = self.config.codistillation.phase_steps
    return step // (2 * phase) * phase + step % phase

  def _shape(self, run: Run, step: int, width: int) -> StepShape:
    return super()._shape(run, step, width)._replace(model=self.owner)

  def _comments(
    self, run: Run, experience: Experience, responses: Sequence[Response], found: RewardRecord
  ) -> tuple[list[str], dict[str, Any]]:
    """Returns the tutor's comments on the rows of this process, and how many of all rows have which outcome."""
    run.clock.lap("other")
    commented = self._ask(run, experience, self.step.n)
    if commented is None:
      return [""] * len(responses), {"comments": {}}
    run.clock.lap("converse")
    comments, tokens = commented
    run.tokens += tokens
    counts = collections.Counter(comment.outcome.value for comment in comments)
    texts = [comment.text for comment in comments]
    if self.config.codistillation.shuffle:
      texts = np.roll(np.array(texts, object), self.step.n).tolist()  # those of the prompt before
    if self.config.codistillation.shuffle_within:
      by_prompt = np.array(texts, object).reshape(-1, self.step.n)
      texts = np.roll(by_prompt, 1, axis=1).reshape(-1).tolist()
    rows = hosts.rows_of(meshes.rows(self.specs.mesh), len(texts))
    stripped = sum(comment.stripped for comment in comments)
    return [texts[i] for i in rows.tolist()], {"comments": dict(sorted(counts.items())), "comments_stripped": stripped}


RECIPE = CoDistillation


def _other(name: str) -> str:
  """Returns the name of the other student."""
  return STUDENTS[1 - STUDENTS.index(name)]


def _with_student(specs: Specs, student: ModelSpec) -> Specs:
  """Puts another model in the student's place."""
  config = configs.override(specs.config, {"student": student.name})
  sampling = dataclasses.replace(
    specs.sampling, stop_ids=student.stop_ids, vocab=min(specs.sampling.vocab, student.cfg.vocab)
  )
  return dataclasses.replace(
    specs,
    config=config,
    student=student,
    teachers=(student,) * len(specs.teachers),
    sampling=sampling,
    attention=specs_of.attention(config, specs.mesh, [student.cfg]),
  )


@jax.jit
def _copy(params: Any) -> Any:
  return jax.tree.map(jnp.copy, params)

"""ZPPO: a teacher stands in the prompt and never in the gradient, and hard questions are visited until they are mastered (arXiv:2606.18216).

    for step k:
      X = new prompts, and rho_replay as many questions of the buffer                                                      collect
      y_1 .. y_n ~ student(. | x) for every x in X; r = what the verifier gives them; rbar_x = their mean
      X_hard = { x: rbar_x < tau }, of which the rho_aug hardest, as many as a share of the new prompts, are kept
      y+ ~ teacher(. | x) for every kept x, anew at each visit; the right ones are candidates
      question by question, the hardest first, until there are rho_aug prompts:
        BCQ(x) = x with one right candidate of the teacher's and one wrong one of the student's, in random order
        NCQ(x) = x with the student's wrong answers, and how they came about
      y_1 .. y_n ~ student(. | BCQ(x)), ~ student(. | NCQ(x)), with the verifier's rewards
      A_i = (r_i - mean of its group) / deviation over all groups whose rewards are not all equal                          learn
      for u in 1 .. U disjoint mini-batches of whole groups (mini_batches):
        theta <- AdamW(theta, grad of the mean over tokens of PPO's clip, each response under the prompt that it was drawn for)
      the buffer admits x with rbar_x < tau, and lets x with rbar_x >= tau go: by plain rollouts alone

x, BCQ(x) and NCQ(x) are three groups, which never share a baseline. A teacher's tokens stand in prompts, where nothing is learned.
A step has as many places for prompts always, and so the same programs: empty ones repeat a prompt, with weight 0. A step that was killed
begins again: the same keys draw the same questions, rollouts and candidates. What the paper leaves open, and is ours: docs/zone.md.

    context/candidates.py, reformulate.py    the prompts with candidates, and what they are made of
    data/replay.py                           the buffer
    training/candidate_teacher.py            the teacher, and what it is asked
    training/verification.py                 what responses earn, on all processes
    training/augmented_step.py               a step's credit and record
    training/placed_programs.py              its programs

Dimensions: s places for prompts, n rollouts of each, B = s n rows, P prompt width, Q that of prompts with candidates, H response width.
"""

import dataclasses
import functools
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from opd_jax import config as configs
from opd_jax.context.candidates import COMPARED, NEEDS_TEACHER, Candidates, check_positions, hardest
from opd_jax.context.reformulate import HardQuestion, Reformulated, Reformulator, renderer
from opd_jax.data import chat
from opd_jax.data.image_prompts import ImagePrompts
from opd_jax.data.replay import Replay
from opd_jax.errors import InputError
from opd_jax.models.roofline import Cost
from opd_jax.objectives import advantage as advantages
from opd_jax.recipes.opd import OPD, Experience
from opd_jax.runtime import hosts, keys, startup_summary
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import StepShape
from opd_jax.runtime.run import Run
from opd_jax.tasks.problem import Response
from opd_jax.training import lowering, writing_teacher
from opd_jax.training.augmented_step import AugmentedStep
from opd_jax.training.candidate_teacher import CandidateTeacher, images_of
from opd_jax.training.distillation import DistillationStep
from opd_jax.training.placed_programs import PlacedPrograms
from opd_jax.training.places import Places
from opd_jax.training.specs import Specs
from opd_jax.training.verification import ResponseVerifier, VerifiedResponses
from opd_jax.types import Batch, Credit, FrozenModels, Params, Rollout

KEYS = {
  "zone.tau": (
    0.5,
    "the mean reward of plain rollouts below which a question is hard, and from which it is mastered",
    "(0, 1]",
  ),
  "zone.replay": (
    0.25,
    "questions of the buffer in a step, a share of its new prompts (rho_replay); 0: none",
    "[0, 100]",
  ),
  "zone.capacity": (10000, "most questions of the buffer; the oldest leave it", "[1, 2**24]"),
  "zone.graduation": (
    "mastered",
    "who leaves the buffer: mastered; random, a control, as many of those that were visited, chosen at random",
    "one of mastered, random",
  ),
  "zone.augment": (
    0.25,
    "prompts with candidates in a step, a share of its new prompts (rho_aug); 0: none",
    "[0, 100]",
  ),
  "zone.kinds": (
    ("bcq", "ncq"),
    "how hard questions are asked anew, the first before the others: bcq, a right and a wrong candidate; ncq, the wrong answers; hint, "
    "the beginning of a right solution in the question; prefix, the same before the response",
    "some of bcq, ncq, hint, prefix",
  ),
  "zone.share": (0.4, "hint, prefix: how much of a right solution of the teacher is shown", "(0, 1]"),
  "zone.teacher_url": (
    "",
    "an endpoint in OpenAI's form that answers as the teacher, docs/endpoint.md; empty: config.teacher, on the devices of the run",
    "text",
  ),
  "zone.teacher_function": (
    "",
    "a function of your own that answers as the teacher, by its import path or its file, docs/zone.md",
    "text",
  ),
  "zone.teacher_model": ("", "of an endpoint, its model's name there", "text"),
  "zone.teacher_api": (
    "chat",
    "of an endpoint: a prompt is what the user says in a chat, or text that goes on",
    "one of chat, completions",
  ),
  "zone.teacher_key_env": (
    "OPENAI_API_KEY",
    "of an endpoint: the environment variable that holds its key, which is written nowhere; empty: none is sent",
    "text",
  ),
  "zone.teacher_options": (
    "",
    'of an endpoint: its other options as JSON, such as {"choices": 1, "extra": {"top_p": 0.95}}, docs/endpoint.md',
    "text",
  ),
  "zone.teacher_parallel": (8, "of an endpoint: requests at once", "[1, 1000]"),
  "zone.teacher_timeout": (600.0, "of an endpoint: seconds for a request", "(0, 10**6]"),
  "zone.teacher_retries": (5, "of an endpoint: requests after one that failed", "[0, 1000]"),
  "zone.teacher_budget_tokens": (0, "of an endpoint: most tokens, of prompts and answers; 0: no limit", "[0, 10**15]"),
  "zone.teacher_budget_cost": (0.0, "of an endpoint: most money, by the two prices; 0: no limit", "[0, 10**12]"),
  "zone.teacher_price_prompt": (0.0, "of an endpoint: of a million tokens of prompts", "[0, 10**9]"),
  "zone.teacher_price_completion": (0.0, "of an endpoint: of a million tokens of answers", "[0, 10**9]"),
  "zone.teacher_cache": ("", "of an endpoint: a directory that keeps its answers; empty: one in the workdir", "path"),
  "zone.teacher_on_failure": (
    "stop",
    "of an endpoint that gives no answer: stop, and go on from the last checkpoint later; continue without candidates of this question",
    "one of stop, continue",
  ),
  "zone.teacher_rollouts": (4, "responses of the teacher to each question that is asked anew (G_T)", "[1, 1000]"),
  "zone.teacher_tokens": (0, "the longest of them, tokens; 0: horizon.max", "[0, 2**20]"),
  "zone.teacher_temperature": (1.0, "of these", "[0, 1000]"),
  "zone.teacher_prompt": (
    4096,
    "the longest prompt of a teacher on the devices, tokens; it does not answer longer ones",
    "[1, 2**20]",
  ),
  "candidates.bcq": (
    "{prompt}\n\nHere are two candidate responses to the question above. One of them is right and one is wrong; use them as "
    "references.{candidates}\n\nThink first, between <think> and </think>, and then give your final answer in \\boxed{}.",
    "a prompt with a right and a wrong candidate; {prompt} and {candidates} stand for the two",
    "text",
  ),
  "candidates.ncq": (
    "{prompt}\n\nThe following answers to the question above are all wrong: {answers}. This is the wrong reasoning that led to "
    "them.{candidates}\n\nThink first, between <think> and </think>, and then give your final answer in \\boxed{}.",
    "a prompt with wrong candidates; {answers} stands for theirs, may be left out",
    "text",
  ),
  "candidates.hint": ("{prompt}\n\nA solution may begin like this:\n{text}", "a prompt with a hint, {text}", "text"),
  "candidates.block": ("\n\n<candidate>\n{text}\n</candidate>", "the words around a candidate, {text}", "text"),
  "candidates.compressor": (
    "teacher",
    "what makes candidates short: teacher, which writes them anew; truncate, which keeps their ends",
    "one of teacher, truncate",
  ),
  "candidates.request": (
    "{prompt}\n\nA response to the question above:\n{response}\n\nSummarise this response in at most five lines: the essential steps and its "
    "final answer, without exploration or self-correction. Do not solve the question again, and do not correct the response. End with "
    "its final answer in \\boxed{}.",
    "what the teacher reads to make a candidate short; {prompt} and {response} stand for the two",
    "text",
  ),
  "candidates.temperature": (
    0.0,
    "of the teacher when it makes candidates short; 0: the likeliest tokens",
    "[0, 1000]",
  ),
  "candidates.max_tokens": (512, "longest candidate, tokens", "[1, 2**20]"),
  "candidates.max_prompt": (
    4096,
    "longest prompt with candidates, tokens; they are shortened alike in a longer one",
    "[1, 2**20]",
  ),
  "candidates.widths": (
    2.0,
    "ratio of the widths that prompts with candidates are padded to; 0: one",
    "0 or (1, 10**6]",
  ),
  "candidates.blocks": (8, "most wrong candidates of a prompt, each with another answer", "[1, 1000]"),
  "candidates.same_length": (True, "the candidates of a prompt are cut to the length of the shortest", "True or False"),
  "candidates.shuffle": (
    True,
    "the order of a right and a wrong candidate is random; False, a control: the right one first",
    "True or False",
  ),
  "candidates.wrong_pair": (False, "a control: a bcq has two wrong candidates", "True or False"),
}


class Zone(OPD):
  """The loop above; the update is a policy gradient's, over plain groups and those of questions that are asked anew.

  Attributes:
    replay: the buffer.
    teacher: what writes candidates.
  """

  def __init__(self, specs: Specs):
    super().__init__(specs)
    _check(specs)
    c = self.config
    self.candidates = Candidates.from_config(c)
    self.replay = Replay(c.zone.capacity, c.zone.tau, c.rollouts_per_prompt + 1)
    self.teacher = CandidateTeacher(specs, lambda run: _speaker(self._frozen(run)), self.places.asked)
    self._image_prompts: ImagePrompts | None = None  # how prompts show images, read with the first step
    self._prompts_of_buffer = ""  # digest of the prompts whose numbers it has
    self._collected: dict[int, AugmentedStep] = {}  # by step

  @property
  def _replayed(self) -> int:
    """Questions of the buffer in a step, at most."""
    return _share(self.config.zone.replay, self.config.batch)

  @property
  def _augmented(self) -> int:
    """Prompts with candidates in a step, at most."""
    return _share(self.config.zone.augment, self.config.batch) if self.config.zone.kinds else 0

  # A step: rollouts.

  def collect(self, run: Run, step: int) -> Experience:
    questions, new = self._questions(run, step)
    width = run.inputs.prompt_widths[-1]
    ids = [run.inputs.train.ids[question] for question in questions]
    plain = self._answer(run, ids, questions, self._programs.plain(width), run.key(keys.Use.ROLLOUT, step))
    judged, asked, counts = self._judge(run, ids, questions, plain[1]), [], {}
    parts, of_asked, wide = [plain], None, width
    if self._augmented:
      asked, counts = self._reformulate(run, step, questions, judged)
      longest = max((len(each.ids) for each in asked), default=0)
      wide = next(w for w in self._programs.wide_widths(width) if w >= longest)
      key = run.key(keys.Use.REFORMULATED, step)
      numbers = [each.question for each in asked]
      parts.append(self._answer(run, [each.ids for each in asked], numbers, self._programs.asked(wide), key))
      of_asked = self._judge_asked(run, asked, parts[-1][1]) if asked else None
    order = self._programs.to_devices(self.places.order(len(questions), len(asked)))
    prompts, rollout = run.programs(self._programs.join(width, wide))["join"](parts, *order)
    self._collected[step] = AugmentedStep(questions, new, self.step.n, judged, asked, of_asked, counts)
    shape, index = self._programs.update(wide), np.array(questions[:new])
    return Experience(step, prompts, rollout, index, self.config.horizon.max, shape, run.programs(shape))

  def _questions(self, run: Run, step: int) -> tuple[list[int], int]:
    """Chooses what is asked in a step, as numbers of prompts, and how many are new: they come first."""
    digest = run.prompts.fingerprint["digest"]
    if self.replay.entries and self._prompts_of_buffer != digest:
      run.log.say("  note: the prompts are others than they were, and the buffer of hard questions begins anew")
      self.replay = Replay(self.replay.capacity, self.replay.tau, len(self.replay.history))
    self._prompts_of_buffer = digest
    _, index = run.next_prompts(step)
    new = hosts.all_gather_to_host(run.to_devices(np.asarray(index, np.int32))).tolist()
    rng = np.random.default_rng(keys.host_seed(run.key(keys.Use.REPLAYED, 2 * step)))
    return new + self.replay.draw(self._replayed, rng, without=set(new)), len(new)

  def _answer(
    self, run: Run, ids: Sequence[Sequence[int]], questions: Sequence[int], shape: StepShape, key: jax.Array
  ) -> tuple[Batch, Rollout]:
    """Lets the student answer prompts, with the images of their questions; without one nothing is sampled."""
    seen = run.inputs.prompt_images and run.inputs.prompt_images.student
    batch = self._programs.prompts(shape, ids, seen, images_of(run, questions))
    if not ids:
      return batch, self._programs.no_rollout(shape)
    params = self.step.behavior_params(self._trained(run).params, self._frozen(run))
    return batch, run.wait(run.programs(shape)["rollout"](params, batch, key, np.int32(shape.width)))

  # A step: what the responses earn.

  def _judge(
    self,
    run: Run,
    ids: Sequence[Sequence[int]],
    questions: Sequence[int],
    rollout: Rollout,
    prefixes: Sequence[str] = (),
  ) -> VerifiedResponses:
    found = self._verifier(run).rollouts(rollout, questions, ids, prefixes)
    run.clock.lap("verify")
    return found

  def _judge_asked(self, run: Run, asked: Sequence[Reformulated], rollout: Rollout) -> VerifiedResponses:
    questions = [each.question for each in asked]
    ids = [run.inputs.train.ids[each.question] if each.prefix else each.ids for each in asked]
    return self._judge(run, ids, questions, rollout, [each.prefix for each in asked])

  def _verifier(self, run: Run) -> ResponseVerifier:
    i, s = run.inputs, self.specs
    return ResponseVerifier(
      i.train, i.rewards, i.tokenizer, s.sampling.stop_ids, s.mesh, self.step.n, s.config.horizon.max
    )

  # A step: hard questions, asked anew.

  def _reformulate(
    self, run: Run, step: int, questions: Sequence[int], judged: VerifiedResponses
  ) -> tuple[list[Reformulated], dict[str, Any]]:
    """Makes the prompts with candidates of a step, and what is recorded of that."""
    z, n, train = self.config.zone, self.step.n, run.inputs.train
    rates, seed = judged.rates(n), keys.host_seed(run.key(keys.Use.CANDIDATES, step))
    kept = hardest(rates, z.tau, self._augmented, np.random.default_rng(seed))
    numbers = [questions[i] for i in kept]
    right, counts = self._right(run, step, numbers)
    wrong = [[judged.responses[row] for row in range(i * n, i * n + n) if not judged.solved[row]] for i in kept]
    each = zip(numbers, right, wrong, images_of(run, numbers), strict=True)
    hard = [HardQuestion(q, train.prompts[q], a, b, images) for q, a, b, images in each]
    reformulator = self._reformulator(run)
    drawn = reformulator.draw(hard, self._augmented, seed)
    short, tokens = self._short(run, step, reformulator.requests(drawn))
    asked = reformulator.write(drawn, short)
    run.clock.lap("converse")
    return asked, counts | {
      "compression_tokens": tokens,
      "hard": sum(rate < z.tau for rate in rates),
      "reformulations_too_long": len(drawn) - len(asked),
      "reformulations_cut": sum(each.cut for each in asked),
    }

  def _right(self, run: Run, step: int, questions: Sequence[int]) -> tuple[list[list[Response]], dict[str, Any]]:
    """Asks the teacher, where a kind of prompt needs it, and lists its right responses to each question."""
    if not questions or not set(self.config.zone.kinds) & set(NEEDS_TEACHER):
      return [[] for _ in questions], {"teacher_tokens": 0}
    return self.teacher.right(run, step, questions, self._verifier(run))

  def _short(
    self, run: Run, step: int, requests: dict[tuple[int, str], chat.Prompt]
  ) -> tuple[dict[tuple[int, str], str], int]:
    """Has the teacher make candidates short, by question and text, {} where they are cut; and the tokens of that."""
    if self.config.candidates.compressor != "teacher" or not requests:
      return {}, 0
    written, tokens = self.teacher.short(run, step, requests)
    return self._reformulator(run).short(requests, written), tokens

  def _reformulator(self, run: Run) -> Reformulator:
    z, i, whole = self.config.zone, run.inputs, self.config.candidates.compressor == "teacher"
    if self._image_prompts is None:
      self._image_prompts = ImagePrompts.from_config(self.config, i.student.path, i.tokenizer)
    shown = self._image_prompts
    return Reformulator(self.candidates, z.kinds, z.share, whole, i.tokenizer, i.rendering, i.extract_answer, shown)

  # A step: what is learned.

  def _credit(self, run: Run, experience: Experience) -> tuple[Credit | None, dict[str, Any]]:
    found, places = self._collected.pop(experience.step), self.places.update
    credit = self._programs.to_devices(found.credit(advantages.kind(self.config), places))
    kinds = self.config.zone.kinds if self._augmented else ()
    told = found.metrics(places, kinds, self._reformulator(run).claim, self.teacher.metrics())
    return credit, told | self._observe(run, experience.step, found)

  def _observe(self, run: Run, step: int, found: AugmentedStep) -> dict[str, Any]:
    """Lets questions enter and leave the buffer by their plain rollouts; returns what is recorded of that."""
    rng = None
    if self.config.zone.graduation == "random":
      rng = np.random.default_rng(keys.host_seed(run.key(keys.Use.REPLAYED, 2 * step + 1)))
    events = self.replay.observe(found.questions, found.plain.rates(self.step.n), found.solved_counts(), rng)
    return self.replay.metrics(events)

  def _metrics(
    self, step: int, experience: Experience, seen: Any, earned: dict[str, Any], agreement: Any
  ) -> dict[str, Any]:
    return super()._metrics(step, experience, seen, earned, agreement) | earned  # which knows the empty places

  # Models.

  def frozen(self, *, teachers: bool = True) -> FrozenModels:
    """Loads the teacher as one that writes: no update reads it."""
    found = super().frozen(teachers=teachers)
    return dataclasses.replace(found, teachers=(), speaker=next(iter(found.teachers), None))

  def _frozen_on_devices(self, run: Run) -> FrozenModels:
    return dataclasses.replace(super()._frozen_on_devices(run), speaker=None)  # no update knows the teacher

  # Programs.

  @functools.cached_property
  def places(self) -> Places:
    """The places for prompts, which are the same in every step."""
    c = self.config
    return Places.of(c.batch + self._replayed, self._augmented, meshes.row_shards(self.specs.mesh), c.mini_batches)

  @functools.cached_property
  def step(self) -> DistillationStep:
    """The computations that are compiled, for all places of a step; no teacher scores them."""
    config = configs.override(self.config, {"batch": self.places.update})
    return dataclasses.replace(DistillationStep.from_specs(dataclasses.replace(self.specs, config=config)), teachers=())

  @functools.cached_property
  def _programs(self) -> PlacedPrograms:
    c = self.config
    longest = c.candidates.max_prompt if self._augmented else 0
    images = self.specs.images[0] if self.specs.images else None
    widths = c.candidates.widths
    return PlacedPrograms(self.step, self.places, c.horizon.max, longest, widths, self._scored_prompts, images)

  @property
  def static(self) -> Hashable:
    return super().static, self.places

  def _shapes_between(self, run: Run, first: int, end: int) -> list[StepShape]:
    """Lists the shapes: the prompts of the buffer may be the longest of all, so that those without candidates have one width."""
    return self._programs.shapes(run.inputs.prompt_widths[-1]) if first < end else []

  def planned_shape(self, prompt: int, response: int) -> StepShape:
    """Returns the shape of a step of its new prompts alone: how many others there are depends on what the student can do."""
    return StepShape(prompt, response, kind="plan")

  def roofline_costs(self, name: str, prompts: int, n: int, prompt: int, response: int) -> list[Cost]:
    """Counts all places of a step, as if the prompts with candidates were as long as the others; the teacher is not counted."""
    if name == "evaluate":
      return super().roofline_costs(name, prompts, n, prompt, response)
    return self._programs.roofline_costs(name, n, prompt, response)

  def lower(self, shape: StepShape) -> Iterator[tuple[str, jax.stages.Lowered]]:
    state, frozen_models = self.abstract_state(), self.abstract_frozen()
    if shape.kind == "plan":
      step = dataclasses.replace(DistillationStep.from_specs(self.specs), teachers=())
      batch = self.abstract_prompts(shape)
      yield from lowering.step_programs(step, shape.width, state, frozen_models, batch)
      return
    yield from self._programs.lower(shape, state, dataclasses.replace(frozen_models, speaker=None))

  # What is reported of a run, and remembered.

  def summary(self, run: Run) -> Iterator[str]:
    z = self.config.zone
    teachers = {name: _speaker(run.frozen) for name in configs.teacher_names(self.config)}
    horizon = self.horizon.lines(self.stages(), configs.horizon_unit(self.config))
    yield from startup_summary.summary_lines(self.config, run, run.models()["student"], teachers, horizon, False)
    kinds = f"{self._augmented} with candidates ({', '.join(z.kinds)})" if self._augmented else "none with candidates"
    if self._augmented and (elsewhere := z.teacher_function or z.teacher_url):
      kinds += f", written with {elsewhere} as the teacher"
    yield (
      f"  {self.config.batch} new prompts a step, {self._replayed} at most of a buffer of {z.capacity:,} below tau {z.tau:g}, {kinds}: "
      f"{self.places.update} places, {self.config.mini_batches} mini-batches"
    )
    yield from self.mask_lines(run)

  def preview(self, inputs: Any, prompt: int) -> Iterator[tuple[str, list[int]]]:
    kinds, train = self.config.zone.kinds if self._augmented else (), inputs.train
    answer = train.answers[prompt] or "1"
    shown = ImagePrompts.from_config(self.config, inputs.student.path, inputs.tokenizer) if train.images else None
    render = renderer(shown, train.images[prompt] if train.images else (), inputs.tokenizer, inputs.rendering)
    yield from self.candidates.preview(kinds, train.prompts[prompt], answer, inputs.tokenizer, render)

  def state_dict(self) -> dict[str, Any]:
    return super().state_dict() | {"replay": self.replay.state() | {"prompts_digest": self._prompts_of_buffer}}

  def load_state_dict(self, saved: dict[str, Any]) -> None:
    super().load_state_dict(saved)
    self.replay.restore(saved["replay"])
    self._prompts_of_buffer = str(saved["replay"]["prompts_digest"])


RECIPE = Zone


def _speaker(frozen: FrozenModels) -> Params:
  """Returns the parameters of the teacher: those of an adapter's base, where that is the same."""
  return frozen.base if frozen.speaker is None else frozen.speaker  # pyright: ignore[reportReturnType]


def _share(share: float, number: int) -> int:
  """Rounds a share of a number down, but not for the sake of a float's last digit."""
  return math.floor(share * number + 1e-9)


def _check(specs: Specs) -> None:
  """Refuses what the recipe cannot have.

  Raises:
    InputError: says which key is wrong.
  """
  c, z = specs.config, specs.config.zone
  fixed = {"context.kind": "same", "horizon.kind": "full", "rollout.by": "student", "rollout.ahead": False}
  fixed |= {"mixture.divergence": 0.0, "teacher_offload": False, "teacher_precision": "compute"}
  configs.check_fixed(c, fixed | {"teacher_update.kind": "frozen"})
  if not c.mixture.reward:
    raise InputError("config.mixture.reward is 0.0, and the recipe 'zone' learns from it; set it above 0.")
  if c.surrogate.divergence.startswith("topk") and c.surrogate.kind == "dppo":
    raise InputError(
      f"config.surrogate.divergence is {c.surrogate.divergence!r}, which the recipe 'zone' does not record; take 'tv' or 'kl' of single tokens."
    )
  asks = bool(_share(z.augment, c.batch))
  needs = [kind for kind in z.kinds if kind in NEEDS_TEACHER]
  if c.candidates.compressor == "teacher" and set(z.kinds) & set(COMPARED):
    needs.append("config.candidates.compressor='teacher'")
  longest = max(z.teacher_tokens or c.horizon.max, c.candidates.max_tokens)
  writing_teacher.check(specs, "zone", needs * asks, longest * asks)
  if asks:
    check_positions(c, specs.student)

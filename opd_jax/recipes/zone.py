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
context/candidates.py writes the prompts, data/replay.py has the buffer, rollout/teacher_sampler.py the teacher.

Choices of ours, where the paper leaves them open: no entropy bonus; 1e-6 beside the deviation; mini-batches are all groups of a step
dealt out, so that each has as many of every kind; a question of the buffer that is a new prompt of the step is not drawn; the teacher is
asked about the kept questions alone, since no other's answers are used; a response that was cut is no candidate, since its missing end would
tell; where fewer prompts can be made than rho_aug there are fewer. A step has as many places for prompts always, and so the same programs: empty
ones repeat a prompt, with weight 0. Of hard questions of one rate it is drawn which are kept.

A step that was killed begins again: the same keys draw the same questions, rollouts and candidates.

Dimensions: s places for prompts, n rollouts of each, B = s n rows, P prompt width, Q that of prompts with candidates, H response width.
"""

import collections
import dataclasses
import functools
import json
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.context.candidates import Candidates, hardest
from opd_jax.context.privileged import rewritten
from opd_jax.context.reformulate import HardQuestion, Reformulated, Reformulator
from opd_jax.context.replies import control_tokens, final_text
from opd_jax.data import chat, pipeline
from opd_jax.data.replay import Replay
from opd_jax.errors import InputError
from opd_jax.models import roofline
from opd_jax.models.roofline import Cost
from opd_jax.objectives import advantage as advantages
from opd_jax.recipes.opd import OPD, Experience
from opd_jax.rollout.endpoint import EndpointOptions, EndpointSampler, TeacherSampler
from opd_jax.rollout.generate import Generator, decode, prompt_ends
from opd_jax.rollout.teacher_sampler import MeshTeacher
from opd_jax.runtime import hosts, keys, startup_summary
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import StepShape
from opd_jax.runtime.run import Run
from opd_jax.tasks.problem import Response
from opd_jax.training import lowering
from opd_jax.training.distillation import DistillationStep
from opd_jax.training.placed_programs import PlacedPrograms
from opd_jax.training.places import Places
from opd_jax.training.specs import Specs
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
ANSWERS = "teacher_answers"  # of a workdir, where the answers of an endpoint are kept
NEEDS_TEACHER = ("bcq", "hint", "prefix")


class Judged(NamedTuple):
  """Responses to some prompts, n to each, and what they earn; the same on every process."""

  responses: list[Response]
  columns: Float[np.ndarray, "rows columns"]  # of RewardRecord.columns
  solved: Bool[np.ndarray, " rows"]
  masked: Bool[np.ndarray, " rows"]
  summary: dict[str, Any]  # what the record of a step has of rewards
  tokens: int

  @property
  def reward(self) -> Float[np.ndarray, " rows"]:
    """What each response earns."""
    return self.columns[:, 0]


class Collected(NamedTuple):
  """What a step has beside the rollouts that are learned from; the same on every process."""

  questions: list[int]  # in their order, the new ones first
  new: int
  plain: Judged
  asked: list[Reformulated]
  of_asked: Judged | None
  counts: dict[str, Any]

  @property
  def judged(self) -> list[Judged]:
    """All responses, in the order of an update's places."""
    return [self.plain] if self.of_asked is None else [self.plain, self.of_asked]


class Zone(OPD):
  """The loop above; the update is a policy gradient's, over plain groups and those of questions that are asked anew.

  Attributes:
    replay: the buffer.
    teacher: what writes candidates; made with the first step unless it is given.
  """

  def __init__(self, specs: Specs):
    super().__init__(specs)
    _check(specs)
    c = self.config
    self.candidates = Candidates.from_config(c)
    self.replay = Replay(c.zone.capacity, c.zone.tau, c.rollouts_per_prompt + 1)
    self.teacher: TeacherSampler | MeshTeacher | None = None
    self._prompts_of_buffer = ""  # digest of the prompts whose numbers it has
    self._collected: dict[int, Collected] = {}  # by step

  @property
  def _replayed(self) -> int:
    """Questions of the buffer in a step, at most."""
    return _share(self.config.zone.replay, self.config.batch)

  @property
  def _augmented(self) -> int:
    """Prompts with candidates in a step, at most."""
    return _share(self.config.zone.augment, self.config.batch) if self.config.zone.kinds else 0

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

  # A step: rollouts.

  def collect(self, run: Run, step: int) -> Experience:
    questions, new = self._questions(run, step)
    width = run.inputs.prompt_widths[-1]
    ids = [run.inputs.train.ids[question] for question in questions]
    plain = self._answer(run, ids, self._programs.plain(width), run.key(keys.Use.ROLLOUT, step))
    judged, asked, counts = self._judge(run, ids, questions, plain[1]), [], {}
    parts, of_asked, wide = [plain], None, width
    if self._augmented:
      asked, counts = self._reformulate(run, step, questions, judged)
      longest = max((len(each.ids) for each in asked), default=0)
      wide = next(w for w in self._wide_widths(width) if w >= longest)
      key = run.key(keys.Use.REFORMULATED, step)
      parts.append(self._answer(run, [each.ids for each in asked], self._programs.asked(wide), key))
      of_asked = self._judge_asked(run, asked, parts[-1][1]) if asked else None
    order = self._to_devices(self.places.order(len(questions), len(asked)))
    prompts, rollout = run.programs(self._programs.join(width, wide))["join"](parts, *order)
    self._collected[step] = Collected(questions, new, judged, asked, of_asked, counts)
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
    rng = np.random.default_rng(_seed(run.key(keys.Use.REPLAYED, 2 * step)))
    return new + self.replay.draw(self._replayed, rng, without=set(new)), len(new)

  def _answer(self, run: Run, ids: Sequence[Sequence[int]], shape: StepShape, key: jax.Array) -> tuple[Batch, Rollout]:
    """Lets the student answer prompts; the places behind them repeat the first. Without a prompt nothing is sampled."""
    places = self.places.asked if shape.kind == "asked" else self.places.plain
    rows = [*ids, *[ids[0] if ids else [0]] * (places - len(ids))]
    batch = self._to_devices(pipeline.pad(rows, shape.prompt, self.specs.sampling.pad_id))
    if not ids:
      of_rows = [[0]] * (places * self.step.n)
      return batch, self._to_devices(pipeline.rollout_from_data(of_rows, shape.width, 0, self.specs.sampling.pad_id))
    params = self.step.behavior_params(self._trained(run).params, self._frozen(run))
    return batch, run.wait(run.programs(shape)["rollout"](params, batch, key, np.int32(shape.width)))

  def _to_devices(self, tree: Any) -> Any:
    """Makes global arrays of rows that every process has all of."""
    return hosts.to_global(tree, meshes.rows(self.specs.mesh))

  # A step: what the responses earn.

  def _judge(
    self,
    run: Run,
    ids: Sequence[Sequence[int]],
    questions: Sequence[int],
    rollout: Rollout,
    prefixes: Sequence[str] = (),
  ) -> Judged:
    """Verifies the responses to prompts, each process some of them.

    Args:
      ids: of the prompts, where a chat template may have opened a thought.
      questions: their numbers.
      prefixes: of each prompt's responses the beginning that stood in the prompt.
    """
    n, train, rows = self.step.n, run.inputs.train, len(questions) * self.step.n
    response, mask, ended = (
      a[:rows] for a in hosts.all_gather_to_host((rollout.response, rollout.mask, rollout.ended))
    )
    texts = decode(run.inputs.tokenizer, response, mask, self.specs.sampling.stop_ids)
    begins = [prefix for prefix in prefixes or [""] * len(questions) for _ in range(n)]
    ends = [end for end in prompt_ends(run.inputs.tokenizer, ids) for _ in range(n)]
    of_rows = [question for question in questions for _ in range(n)]
    parts = zip(begins, texts, ended, ends, strict=True)
    responses = [Response(begin + text, bool(over), end) for begin, text, over, end in parts]
    responses = list(train.with_records(responses, of_rows))
    mine = hosts.rows_of(meshes.rows(self.specs.mesh), rollout.mask.shape[0])
    mine = mine[mine < rows].tolist()
    lengths = mask.sum(axis=1)
    answers = [train.answers[of_rows[i]] for i in mine]
    found = run.inputs.rewards.submit([responses[i] for i in mine], answers, lengths[mine], self.config.horizon.max)
    found = found.result()
    columns = np.concatenate([found.columns(), found.solved[:, None], found.masked[:, None]], axis=1)
    every = np.zeros((rollout.mask.shape[0], columns.shape[1]), np.float32)
    every[mine] = columns
    every = hosts.all_gather_to_host(self._to_devices(every))[:rows]
    run.clock.lap("verify")
    columns, solved, masked = every[:, :-2], every[:, -2] > 0, every[:, -1] > 0
    return Judged(responses, columns, solved, masked, found.metrics(columns), int(mask.sum()))

  def _judge_asked(self, run: Run, asked: Sequence[Reformulated], rollout: Rollout) -> Judged:
    questions = [each.question for each in asked]
    ids = [run.inputs.train.ids[each.question] if each.prefix else each.ids for each in asked]
    return self._judge(run, ids, questions, rollout, [each.prefix for each in asked])

  # A step: hard questions, asked anew.

  def _reformulate(
    self, run: Run, step: int, questions: Sequence[int], judged: Judged
  ) -> tuple[list[Reformulated], dict[str, Any]]:
    """Makes the prompts with candidates of a step, and what is recorded of that."""
    z, n, train = self.config.zone, self.step.n, run.inputs.train
    rates = judged.reward.reshape(-1, n).mean(axis=1).tolist()
    seed = _seed(run.key(keys.Use.CANDIDATES, step))
    kept = hardest(rates, z.tau, self._augmented, np.random.default_rng(seed))
    right, counts = self._right(run, step, [questions[i] for i in kept])
    wrong = [[judged.responses[row] for row in range(i * n, i * n + n) if not judged.solved[row]] for i in kept]
    numbers = [questions[i] for i in kept]
    hard = [HardQuestion(q, train.prompts[q], a, b) for q, a, b in zip(numbers, right, wrong, strict=True)]
    reformulator = self._reformulator(run)
    drawn = reformulator.draw(hard, self._augmented, seed)
    short, tokens = self._short(run, step, reformulator.requests(drawn))
    asked = reformulator.write(drawn, short)
    run.clock.lap("converse")
    return asked, counts | {
      "compression_tokens": tokens,
      "hard": sum(rate < z.tau for rate in rates),
      "reformulations_too_long": len(drawn) - len(asked),
    }

  def _right(self, run: Run, step: int, questions: Sequence[int]) -> tuple[list[list[Response]], dict[str, Any]]:
    """Asks the teacher, and lists its right responses to each question."""
    z, train = self.config.zone, run.inputs.train
    if not questions or not set(z.kinds) & set(NEEDS_TEACHER):
      return [[] for _ in questions], {"teacher_tokens": 0}
    longest, with_suffix = z.teacher_tokens or self.config.horizon.max, run.inputs.rendering.for_teacher().with_suffix
    prompts = [rewritten(train.prompts[question], with_suffix) for question in questions]
    written, tokens = self._ask_teacher(run, 2 * step, prompts, z.teacher_rollouts, longest, z.teacher_temperature)
    run.clock.lap("converse")
    control, ends = control_tokens(run.inputs.tokenizer), [""] * len(questions)
    if isinstance(self.teacher, MeshTeacher):  # where the chat template may have opened a thought
      ends = prompt_ends(run.inputs.tokenizer, [train.ids[question] for question in questions])
    rows = [(i, Response(text, True, ends[i])) for i, texts in enumerate(written) for text in texts]
    rows = [(i, response) for i, response in rows if final_text(response, control).strip()]
    right = self._solved(run, [questions[i] for i, _ in rows], [response for _, response in rows], longest)
    found = [
      [response for (i, response), good in zip(rows, right, strict=True) if good and i == at]
      for at in range(len(questions))
    ]
    share = float(right.sum() / (len(questions) * z.teacher_rollouts))
    return found, {"teacher_tokens": tokens, "teacher_right": share}

  def _solved(
    self, run: Run, questions: Sequence[int], responses: Sequence[Response], limit: int
  ) -> Bool[np.ndarray, " rows"]:
    """Verifies responses of the teacher, on the first process."""
    solved = np.zeros(len(questions), bool)
    if questions and hosts.first():
      train, lengths = run.inputs.train, np.zeros(len(questions), np.int64)
      responses = train.with_records(responses, questions)
      answers = [train.answers[question] for question in questions]
      solved = run.inputs.rewards.submit(responses, answers, lengths, limit).result().solved
    run.clock.lap("verify")
    return hosts.from_first(solved)

  def _short(
    self, run: Run, step: int, requests: dict[tuple[int, str], chat.Prompt]
  ) -> tuple[dict[tuple[int, str], str], int]:
    """Has the teacher make candidates short, by question and text, {} where they are cut; and the tokens of that."""
    c = self.config.candidates
    if c.compressor != "teacher" or not requests:
      return {}, 0
    written, tokens = self._ask_teacher(run, 2 * step + 1, list(requests.values()), 1, c.max_tokens, c.temperature)
    control = control_tokens(run.inputs.tokenizer)
    texts = [final_text(Response(next(iter(each), "")), control).strip() for each in written]
    return dict(zip(requests, texts, strict=True)), tokens

  def _reformulator(self, run: Run) -> Reformulator:
    z, whole = self.config.zone, self.config.candidates.compressor == "teacher"
    inputs = run.inputs
    return Reformulator(
      self.candidates, z.kinds, z.share, whole, inputs.tokenizer, inputs.rendering, inputs.extract_answer
    )

  # The teacher.

  def _ask_teacher(
    self, run: Run, number: int, prompts: Sequence[chat.Prompt], n: int, max_tokens: int, temperature: float
  ) -> tuple[list[list[str]], int]:
    """Has the teacher answer prompts n times each; the answers, and their tokens.

    A teacher elsewhere is asked by the first process, and told the words of the last message of a chat.

    Args:
      number: of the call; what it draws follows from it.
    """
    if self.teacher is None:
      at_endpoint = self.config.zone.teacher_url
      self.teacher = self._teacher_at_endpoint(run) if at_endpoint else self._teacher_on_mesh(run)
    teacher = self.teacher
    arguments: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    arguments["seed"], before = _seed(run.key(keys.Use.SPEAKER, number)), teacher.tokens
    if isinstance(teacher, MeshTeacher):
      return teacher.sample(prompts, n, **arguments), teacher.tokens - before
    answers = ""
    if hosts.first():
      texts = [prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) for prompt in prompts]
      answers = json.dumps([teacher.sample(texts, n, **arguments), teacher.tokens - before])
    written, tokens = json.loads(hosts.text_of_first(answers))
    return written, tokens

  def _teacher_at_endpoint(self, run: Run) -> EndpointSampler:
    cache = self.config.zone.teacher_cache or str(run.workdir.path / ANSWERS)
    return EndpointSampler(_endpoint_options(self.config, cache))

  def _teacher_on_mesh(self, run: Run) -> MeshTeacher:
    z, (model,) = self.config.zone, self.specs.teachers
    positions = model.cfg.max_positions

    def make(n: int, max_tokens: int, temperature: float) -> Generator:
      sampling = dataclasses.replace(
        self.specs.sampling, stop_ids=model.stop_ids, temperature=temperature, top_p=1.0, top_k=0
      )
      settings = dataclasses.replace(self.specs.generator_config, cfg=model.cfg, sampling=sampling)
      longest = min(z.teacher_prompt, positions - max_tokens)
      generate = Generator(
        settings,
        run.inputs.tokenizer,
        batch=self.places.asked,
        prompt_lens=pipeline.rising_widths(longest, 2.0, run.inputs.prompt_widths[-1]),
        max_tokens=max_tokens,
        k=n,
        name="teacher",
        numbered=True,
        program_cache=run.program_cache,
      )
      run.count_programs_of(generate)
      return generate

    def params() -> Params:
      return _speaker(self._frozen(run))

    return MeshTeacher(make, params, run.inputs.tokenizer, run.inputs.rendering.for_teacher().without_suffix())

  # A step: what is learned.

  def _credit(self, run: Run, experience: Experience) -> tuple[Credit | None, dict[str, Any]]:
    found, n = self._collected.pop(experience.step), self.step.n
    advantage, counted = np.zeros(self.places.update * n, np.float32), np.zeros(self.places.update * n, bool)
    reward = np.concatenate([each.reward for each in found.judged])
    advantage[: len(reward)] = advantages.of_rewards(advantages.kind(self.config), reward, n)
    counted[: len(reward)] = ~np.concatenate([each.masked for each in found.judged])
    credit = Credit(advantage, counted)  # pyright: ignore[reportArgumentType]: numpy
    return self._to_devices(credit), self._told(run, found) | self._observe(run, experience.step, found)

  def _observe(self, run: Run, step: int, found: Collected) -> dict[str, Any]:
    """Lets questions enter and leave the buffer by their plain rollouts; returns what is recorded of that."""
    n, rng = self.step.n, None
    if self.config.zone.graduation == "random":
      rng = np.random.default_rng(_seed(run.key(keys.Use.REPLAYED, 2 * step + 1)))
    rates = found.plain.reward.reshape(-1, n).mean(axis=1).tolist()
    tiers = found.plain.solved.reshape(-1, n).sum(axis=1).tolist()
    events = self.replay.observe(found.questions, rates, tiers, rng)
    kinds = collections.Counter(event.kind for event in events)
    return {
      "buffer": len(self.replay),
      "buffer_entered": kinds["entered"],
      "buffer_graduated": kinds["graduated"],
      "buffer_evicted": kinds["evicted"],
      "buffer_history": self.replay.table(),
    }

  def _told(self, run: Run, found: Collected) -> dict[str, Any]:
    """Makes the step's metrics; rewards and solve rates are of the new prompts as they are."""
    n, plain, judged = self.step.n, found.plain, found.judged
    new = found.new * n
    reward = np.concatenate([each.reward for each in judged])
    ended = np.mean([response.ended for each in judged for response in each.responses])
    tokens = {
      "plain_tokens": plain.tokens,
      "reformulated_tokens": found.of_asked.tokens if found.of_asked else 0,
      "teacher_tokens": found.counts.get("teacher_tokens", 0),
      "compression_tokens": found.counts.get("compression_tokens", 0),
    }
    told = plain.summary | {name: sum(each.summary[name] for each in judged) for name in SUMMED}
    told |= {
      "reward": float(plain.reward[:new].mean()),
      "same_reward": bool(np.all(reward == reward[0])),
      "teaching_groups": float(advantages.teaches(reward, n).mean()),
      "groups_by_solve_rate": np.bincount(plain.solved[:new].reshape(-1, n).sum(axis=1), minlength=n + 1).tolist(),
      "replayed": len(found.questions) - found.new,
      "empty_places": self.places.update - len(reward) // n,
      "response_length": sum(each.tokens for each in judged) / len(reward),
      "ended": float(ended),
      "cut": float(1 - ended),
      "step_tokens": sum(tokens.values()),
    }
    if found.new < len(found.questions):
      told["reward_replayed"] = float(plain.reward[new:].mean())
    of_endpoint = self.teacher.metrics() if isinstance(self.teacher, EndpointSampler) else {}
    return told | found.counts | tokens | of_endpoint | self._told_of_asked(run, found)

  def _told_of_asked(self, run: Run, found: Collected) -> dict[str, Any]:
    """Counts what becomes of prompts with candidates: what they earn, and how often a response repeats a candidate's answer."""
    kinds, n = self.config.zone.kinds if self._augmented else (), self.step.n
    told: dict[str, Any] = {PROMPTS[kind]: sum(each.kind == kind for each in found.asked) for kind in kinds}
    if found.of_asked is None:
      return told
    claims = list(map(self._reformulator(run).claim, found.of_asked.responses))
    reward = found.of_asked.reward.reshape(-1, n)
    for kind in (kind for kind in kinds if told[PROMPTS[kind]]):
      groups = [i for i, each in enumerate(found.asked) if each.kind == kind]
      repeats = [found.asked[i].repeats(claims[i * n : i * n + n]) for i in groups]
      told[f"reward_{kind}"] = float(reward[groups].mean())
      told[f"teaching_{kind}"] = float(advantages.teaches(reward[groups].reshape(-1), n).mean())
      for which, name in REPEATS.get(kind, {}).items():
        told[name] = float(np.mean([each[which] for each in repeats]))
    return told

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

  @property
  def static(self) -> Hashable:
    return super().static, self.places

  @functools.cached_property
  def _programs(self) -> PlacedPrograms:
    return PlacedPrograms(self.step, self.places, self.config.horizon.max, self._scored_prompts)

  def _wide_widths(self, prompt: int) -> tuple[int, ...]:
    """The widths that all prompts of an update are padded to, rising; of prompts without candidates it is theirs."""
    if not self._augmented:
      return (prompt,)
    c = self.config.candidates
    return pipeline.rising_widths(max(c.max_prompt, prompt), c.widths, prompt)

  def _shapes_between(self, run: Run, first: int, end: int) -> list[StepShape]:
    """Lists the shapes: the prompts of the buffer may be the longest of all, so that those without candidates have one width."""
    prompt = run.inputs.prompt_widths[-1]
    return self._programs.shapes(prompt, self._wide_widths(prompt)) if first < end else []

  def planned_shape(self, prompt: int, response: int) -> StepShape:
    """Returns the shape of a step of its new prompts alone: how many others there are depends on what the student can do."""
    return StepShape(prompt, response, kind="plan")

  def roofline_costs(self, name: str, prompts: int, n: int, prompt: int, response: int) -> list[Cost]:
    """Counts all places of a step, as if the prompts with candidates were as long as the others; the teacher is not counted."""
    if name == "evaluate":
      return super().roofline_costs(name, prompts, n, prompt, response)
    s = self.specs
    sizes: dict[str, Any] = {"vocab": s.sampling.vocab, "itemsize": s.dtype.itemsize}
    if name == "update":
      return [
        roofline.update(s.student.cfg, (), self.places.update, n, prompt, response, remat=self.config.remat, **sizes)
      ]
    parts = [places for places in (self.places.plain, self.places.asked) if places]
    return [cost for places in parts for cost in roofline.rollout(s.student.cfg, places, n, prompt, response, **sizes)]

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
    yield (
      f"  {self.config.batch} new prompts a step, {self._replayed} at most of a buffer of {z.capacity:,} below tau {z.tau:g}, {kinds}: "
      f"{self.places.update} places, {self.config.mini_batches} mini-batches"
    )
    yield from self.mask_lines(run)

  def preview(self, inputs: Any, prompt: int) -> Iterator[tuple[str, list[int]]]:
    answer, train = inputs.train.answers[prompt] or "1", inputs.train
    for kind in self.config.zone.kinds if self._augmented else ():
      if kind not in ("bcq", "ncq"):
        continue
      texts = [answer] * (1 + (kind == "bcq"))
      ids = self.candidates.ask(kind, train.prompts[prompt], texts, inputs.tokenizer, inputs.rendering, [answer])
      if ids:
        yield f"what the student reads in a {kind}, with {answer!r} in the place of each candidate", ids

  def state_dict(self) -> dict[str, Any]:
    return super().state_dict() | {"replay": self.replay.state() | {"prompts_digest": self._prompts_of_buffer}}

  def load_state_dict(self, saved: dict[str, Any]) -> None:
    super().load_state_dict(saved)
    self.replay.restore(saved["replay"])
    self._prompts_of_buffer = str(saved["replay"]["prompts_digest"])


RECIPE = Zone
PROMPTS = {"bcq": "prompts_bcq", "ncq": "prompts_ncq", "hint": "prompts_hint", "prefix": "prompts_prefix"}
REPEATS = {
  "bcq": {"right": "bcq_repeats_right", "wrong": "bcq_repeats_wrong"},
  "ncq": {"wrong": "ncq_repeats_wrong"},
}
SUMMED = ("verifier_timeouts", "verifier_errors", "verified")


def _speaker(frozen: FrozenModels) -> Params:
  """Returns the parameters of the teacher: those of an adapter's base, where that is the same."""
  return frozen.base if frozen.speaker is None else frozen.speaker  # pyright: ignore[reportReturnType]


def _endpoint_options(config: Config, cache: str) -> EndpointOptions:
  """Reads how an endpoint is asked.

  Raises:
    InputError: an address that is none, or numbers that mean nothing.
  """
  z = config.zone
  names = ("api", "key_env", "parallel", "timeout", "retries", "budget_tokens", "budget_cost")
  names = (*names, "price_prompt", "price_completion", "on_failure")
  options = {name: z[f"teacher_{name}"] for name in names}
  return EndpointOptions(z.teacher_url, z.teacher_model, cache=cache, **options)


def _share(share: float, number: int) -> int:
  """Rounds a share of a number down, but not for the sake of a float's last digit."""
  return math.floor(share * number + 1e-9)


def _seed(key: jax.Array) -> int:
  """Makes a seed of a key, one that every library takes."""
  return int(jax.random.bits(key)) >> 1


def _check(specs: Specs) -> None:
  """Refuses what the recipe cannot have.

  Raises:
    InputError: says which key is wrong.
  """
  c, z = specs.config, specs.config.zone
  fixed = {
    "context.kind": "same",
    "horizon.kind": "full",
    "rollout.by": "student",
    "rollout.ahead": False,
    "mixture.divergence": 0.0,
    "teacher_offload": False,
    "teacher_precision": "compute",
    "teacher_update.kind": "frozen",
  }
  for key, only in fixed.items():
    if (value := configs.get(c, key)) != only:
      raise InputError(f"config.{key} is {value!r}, which the recipe 'zone' does not follow; leave it {only!r}.")
  if not c.mixture.reward:
    raise InputError("config.mixture.reward is 0.0, and the recipe 'zone' learns from it; set it above 0.")
  if c.surrogate.divergence.startswith("topk") and c.surrogate.kind == "dppo":
    raise InputError(
      f"config.surrogate.divergence is {c.surrogate.divergence!r}, which the recipe 'zone' does not record; take 'tv' or 'kl' of single tokens."
    )
  teachers = configs.teacher_names(c)
  if z.teacher_url:
    _endpoint_options(c, z.teacher_cache)
    if teachers:
      raise InputError(
        f"config.teacher is {teachers[0]!r}, and config.zone.teacher_url names another one; set config.teacher='', or leave the address empty."
      )
  if len(teachers) > 1:
    raise InputError("config.teachers names several, and the recipe 'zone' asks one; name it in config.teacher.")
  if not _share(z.augment, c.batch):
    return
  needs = [kind for kind in z.kinds if kind in NEEDS_TEACHER]
  if c.candidates.compressor == "teacher" and set(z.kinds) & {"bcq", "ncq"}:
    needs.append("config.candidates.compressor='teacher'")
  if needs and not teachers and not z.teacher_url:
    raise InputError(
      f"config.teacher is '', and {needs[0]} needs one that writes; name it, or an endpoint in config.zone.teacher_url, or set config.zone.kinds=('ncq',) and "
      "config.candidates.compressor=truncate."
    )
  positions = specs.student.cfg.max_positions
  if c.candidates.max_prompt + c.horizon.max > positions:
    raise InputError(
      f"config.candidates.max_prompt is {c.candidates.max_prompt} and config.horizon.max {c.horizon.max}, and {specs.student.name} has "
      f"{positions} positions (max_position_embeddings); lower one of the two."
    )
  longest = max(z.teacher_tokens or c.horizon.max, c.candidates.max_tokens)
  if specs.teachers and longest >= specs.teachers[0].cfg.max_positions:
    raise InputError(
      f"The teacher is to write {longest} tokens (the most of zone.teacher_tokens or horizon.max, and candidates.max_tokens), and has "
      f"{specs.teachers[0].cfg.max_positions} positions with the prompt's (max_position_embeddings); lower the keys."
    )

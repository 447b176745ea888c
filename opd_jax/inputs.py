"""Everything a config names, read and checked before anything is compiled or written."""

import dataclasses
import datetime
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from opd_jax import checks, tasks
from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.context import canonical, crop, privileged
from opd_jax.data import pipeline, problems, stop_tokens
from opd_jax.data import tokenizer as tokenizers
from opd_jax.data.image_prompts import ImagePrompts
from opd_jax.data.images import ImageProcessor
from opd_jax.data.problems import Problems
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError, brief
from opd_jax.evaluation.inputs import EvaluationInputs
from opd_jax.horizon import schedule as horizon
from opd_jax.models import frozen, hf, hf_config
from opd_jax.models.image_encoder import ImageEncoder
from opd_jax.models.spec import ModelSpec
from opd_jax.rewards.named import reward_verifiers, verifier_name
from opd_jax.rewards.pool import VerifierPool
from opd_jax.rewards.reward import Rewards
from opd_jax.rollout.sample import Sampling
from opd_jax.runtime import mesh as meshes
from opd_jax.tasks.problem import AnswerExtractor
from opd_jax.training import specs
from opd_jax.training.prompt_images import ModelImages, PromptImages


@dataclasses.dataclass(frozen=True)
class Inputs(specs.Specs):
  """The inputs of a training run: its specs, data, tokenizer, rewards, and the warnings before it begins."""

  teacher_weight: Float[np.ndarray, "prompts K"] | None = None  # how much each prompt weighs each of several teachers
  tokenizer: Any = None  # of transformers
  rendering: Rendering = dataclasses.field(default_factory=Rendering)  # of every prompt of the run
  train: Problems = dataclasses.field(default_factory=lambda: Problems([], []))
  prompt_widths: tuple[int, ...] = ()  # rising, tokens; a batch takes the first that holds its longest prompt
  evaluation: EvaluationInputs | None = None  # None where config.eval.every is 0
  rewards: Rewards | None = None  # of rollouts; None where nothing asks for them
  extract_answer: AnswerExtractor | None = None  # the answer that a response claims, where the verifier's is known
  verifiers: VerifierPool = dataclasses.field(
    default_factory=VerifierPool
  )  # where those of training and evaluation run
  prompt_images: PromptImages | None = None  # None: no prompt has any
  warnings: tuple[str, ...] = ()

  def prompts(self, rows: Int[np.ndarray, " b"]) -> pipeline.Prompts:
    """Makes the endless batches of prompts, of which this process makes these rows."""
    train = self.train
    return pipeline.Prompts(
      train.ids,
      self.config.batch,
      self.prompt_widths,
      self.sampling.pad_id,
      self.config.seed,
      rows=rows,
      teacher_ids=train.ids if train.conversations else (train.teacher_ids or None),
      origin=train.origin,
      mixture=train.mixture,
    )

  @property
  def encoders(self) -> tuple[ImageEncoder, ...]:
    """What encodes the images of prompts beforehand, in training and in evaluations."""
    seen = (self.prompt_images, self.evaluation and self.evaluation.images)
    return tuple(encoder for each in seen if each for encoder in each.encoders)

  @property
  def encode_programs(self) -> int:
    """How many programs encode images; encoders of one architecture share them."""
    return len({(encoder.cfg, width) for encoder in self.encoders for width in encoder.widths})

  def another(self, name: str) -> ModelSpec:
    """Finds a further model that is trained, which has to share the student's token ids."""
    allow = self.config.allow_mismatch
    found = teacher(name, self.student, self.tokenizer, allow, rendering=self.rendering)
    check_vocabulary(self.tokenizer, found.stop_ids, found.cfg.vocab)
    return specs.with_adapter(found, self.config)

  def validation(self, path: str, prompts: int) -> EvaluationInputs:
    """Loads problems to choose by, beside those of the evaluation.

    Args:
      path: of a file; "": the problems that stand behind the evaluation's in its file or built-in task.
      prompts: how many.

    Raises:
      InputError: there are too few.
    """
    first = 0 if path else self.config.eval.prompts
    changes = {"eval.path": path or self.config.eval.path, "eval.prompts": first + prompts}
    found = load_evaluation(
      configs.override(self.config, changes),
      self.student,
      self.tokenizer,
      self.mesh,
      self.sampling.vocab,
      self.rendering.moment,
      self.verifiers,
    )
    problems_there = found.problems
    if len(problems_there.ids) < first + prompts:
      raise InputError(
        f"{path or 'The evaluation'} has {len(problems_there.ids)} problems, and {prompts} to choose by are wanted"
        f"{f' behind the first {first}' if first else ''}; name a file of others, or lower the number."
      )
    kept = [i >= first for i in range(first + prompts)]
    return dataclasses.replace(found, problems=dataclasses.replace(problems_there.select(kept), skipped=0))

  def close(self) -> None:
    """Ends the processes that verify; they are started again where they are needed."""
    self.verifiers.close()


def load(config: Config, began: datetime.datetime | None = None) -> Inputs:
  """Reads the models' headers, both tokenizers and all prompts.

  Args:
    began: when the run began, for chat templates that write the date; None: now.

  Raises:
    InputError: the first thing that is wrong, in one sentence.
  """
  checks.check(config)
  horizon.from_config(config.horizon)
  mesh = meshes.from_config(config.mesh)
  meshes.check_rows(mesh, config.batch, "config.batch")
  if config.mini_batches > 1:
    meshes.check_rows(
      mesh, config.batch // config.mini_batches, "the prompts of a mini-batch, config.batch / config.mini_batches,"
    )
  rendering = Rendering.from_config(config, began)
  student, tokenizer = model_and_tokenizer(config.student, rendering)
  student, names = specs.with_adapter(student, config), configs.teacher_names(config)
  find = functools.partial(teacher, rendering=rendering)
  teachers = tuple(find(name, student, tokenizer, config.allow_mismatch) for name in names)
  vocab = min(m.cfg.vocab for m in (student, *teachers))
  check_vocabulary(tokenizer, student.stop_ids, vocab)
  train = load_training(config, tokenizer, rendering)
  prompt_images = load_images(config, student, teachers, train, mesh)
  if config.rollout.by == "data":
    problems.check_solutions(train)
  teacher_weight = frozen.teacher_weights(names, config.teacher_weights, train.teachers, len(train.ids))
  of_teacher = pipeline.padded_len(train.teacher_ids) if train.teacher_ids else 0
  width = max(pipeline.padded_len(train.ids, limit=config.data.max_prompt), train.prompt_lens[-1], of_teacher)
  longest = min(m.cfg.max_positions for m in (student, *teachers))
  if width + (length := configs.response_len(config)) > longest:
    key = "denoising.length" if "denoising" in config else "horizon.max"
    raise InputError(
      f"Prompts of {width} tokens and config.{key} of {length} need {width + length} positions, "
      f"but the models have {longest} (max_position_embeddings); lower {key} or data.max_prompt."
    )
  sampling = Sampling(
    stop_ids=student.stop_ids,
    pad_id=tokenizers.pad_id(tokenizer, student.stop_ids),
    vocab=vocab,
    temperature=config.sampling.temperature,
    top_p=config.sampling.top_p,
    top_k=config.sampling.top_k,
    never=tokenizers.ids_without_token(tokenizer, vocab),
    delimiters=_delimiters(config, tokenizer, vocab),
  )
  verifiers = VerifierPool.from_config(config)
  evaluation = None
  if config.eval.every:
    evaluation = load_evaluation(config, student, tokenizer, mesh, vocab, rendering.moment, verifiers)
  return Inputs(
    config=config,
    student=student,
    teachers=teachers,
    teacher_weight=teacher_weight,
    mesh=mesh,
    tokenizer=tokenizer,
    rendering=rendering,
    train=train,
    sampling=sampling,
    prompt_widths=train.prompt_lens,
    attention=specs.attention(config, mesh, [m.cfg for m in (student, *teachers)]),
    dtype=specs.compute_dtype(config.precision, mesh),
    evaluation=evaluation,
    rewards=Rewards.from_config(config, reward_verifiers(config), verifiers)
    if configs.verifies_rollouts(config)
    else None,
    extract_answer=tasks.ANSWER_EXTRACTORS.get(verifier_name(config, config.data.path)),
    verifiers=verifiers,
    segments=specs.segments(config, mesh),
    prompt_images=prompt_images,
    images=() if prompt_images is None else prompt_images.sizes,
    warnings=checks.warnings(config, mesh, sampling, (student, *teachers), train, evaluation),
  )


def load_student(config: Config, mesh: jax.sharding.Mesh) -> specs.Specs:
  """Makes the specs of a config's student alone, as evaluation and export need them: no teacher has to be there."""
  student = learner(config)
  return specs.Specs(
    config=config,
    student=student,
    teachers=(),
    sampling=Sampling(student.stop_ids, 0, student.cfg.vocab),
    mesh=mesh,
    dtype=specs.compute_dtype(config.precision, mesh),
    attention=specs.attention(config, mesh, [student.cfg]),
    segments=specs.segments(config, mesh),
  )


def load_training(config: Config, tokenizer, rendering: Rendering) -> Problems:
  """Loads the problems to train on, of one source or of several."""
  paths = configs.data_paths(config)
  parts = [load_problems(config, path, tokenizer, rendering, held_out=False) for path in paths]
  return parts[0] if len(parts) == 1 else problems.joined(config, paths, parts)


def load_problems(config: Config, path: str, tokenizer, rendering: Rendering, *, held_out: bool) -> Problems:
  """Loads problems as `config.context` shows them to the student: as prompts, or turn by turn."""
  if config.context.kind == "canonical":
    found = canonical.load(config, path, tokenizer, rendering, held_out=held_out)
  else:
    images = (
      ImagePrompts.from_config(config, hf.resolve(config.student), tokenizer) if config.data.image_field else None
    )
    found = problems.load(config, path, tokenizer, rendering, held_out=held_out, images=images)
    if images is not None:
      found = crop.with_views(found, config, tokenizer, rendering, images, held_out=held_out)
  if config.context.kind == "privileged" and not held_out:
    found = privileged.with_solutions(found, config, tokenizer, rendering)
  verified = held_out or configs.verifies_rollouts(config)
  verifiers = {verifier_name(config, path), *(() if held_out else reward_verifiers(config))} if verified else ()
  if not any(map(tasks.reads_record, verifiers)):
    found = dataclasses.replace(found, records=())  # all that is told of a problem may be much
  return problems.read_references(found, verifier_name(config, path), path, verified=verified)


def load_images(
  config: Config, student: ModelSpec, teachers: Sequence[ModelSpec], train: Problems, mesh: jax.sharding.Mesh
) -> PromptImages | None:
  """Finds how every model sees the images of the prompts; None where these have none.

  Raises:
    InputError: a teacher would see other features than the student has places for.
  """
  if not train.images:
    return None
  dtype, limit = specs.compute_dtype(config.precision, mesh), config.data.image_cache * 2**30

  def seen(model: ModelSpec, ids: Sequence[Sequence[int]]) -> ModelImages:
    processor = ImageProcessor.from_directory(model.path, config.data.min_pixels, config.data.max_pixels)
    return ModelImages.of(model, processor, ids, limit, dtype)

  own = seen(student, train.ids)
  teacher_ids = train.teacher_ids if train.teacher_images else train.ids
  if not train.teacher_images and all(teacher.path == student.path for teacher in teachers):
    return PromptImages(own)
  found = tuple(
    own.for_prompts(teacher_ids) if teacher.path == student.path else seen(teacher, teacher_ids)
    for teacher in teachers or (student,)
  )
  for teacher, each in zip(teachers, found, strict=False):
    if each.processor.places != own.processor.places:
      raise InputError(
        f"The teacher {teacher.name} cuts images into other features than the student does, so that their prompts have other places; take one "
        "whose patch_size, spatial_merge_size, image_token_id and limits of pixels are the same, or set data.min_pixels and data.max_pixels."
      )
  return PromptImages(own, found)


def load_evaluation(
  config: Config,
  model: ModelSpec,
  tokenizer,
  mesh: jax.sharding.Mesh,
  vocab: int,
  began: datetime.datetime | None = None,
  verifiers: VerifierPool | None = None,
) -> EvaluationInputs:
  """Loads held-out problems and their verifier: of the file `eval.path`, or of the built-in task that is trained on.

  Args:
    vocab: ids at or above this are never drawn.
    began: when the run began, for chat templates that write the date; None: now.
    verifiers: where the verifier runs; None: as the config says, in processes of this evaluation's own if in any.
  """
  paths = configs.data_paths(config)
  path = config.eval.path or (paths[0] if len(paths) == 1 and paths[0].startswith(configs.TASK) else "")
  if not path:
    raise InputError(
      "config.eval.path is empty, so there is nothing to evaluate on: name a file of held-out problems with "
      "answers, or set config.eval.every=0 to train without evaluation."
    )
  rendering = Rendering.from_config(config, began)
  verifiers = verifiers or VerifierPool.from_config(config)
  held_out = load_problems(config, path, tokenizer, rendering, held_out=True)
  max_tokens = config.eval.max_tokens or configs.response_len(config)
  width = max(pipeline.padded_len(held_out.ids, limit=config.data.max_prompt), held_out.prompt_lens[-1])
  if width + max_tokens > model.cfg.max_positions:
    raise InputError(
      f"Evaluation prompts of {width} tokens and {max_tokens} new ones do not fit the model's "
      f"{model.cfg.max_positions} positions; lower config.eval.max_tokens."
    )
  return EvaluationInputs(
    model=model,
    tokenizer=tokenizer,
    problems=held_out,
    verify=verifiers.verifier(verifier_name(config, path)),
    sampling=Sampling(
      model.stop_ids,
      tokenizers.pad_id(tokenizer, model.stop_ids),
      vocab,
      config.eval.temperature,
      never=tokenizers.ids_without_token(tokenizer, vocab),
    ),
    max_tokens=max_tokens,
    segments=specs.segments(config, mesh),
    attention=specs.attention(config, mesh, [model.cfg]),
    mesh=mesh,
    dtype=specs.compute_dtype(config.precision, mesh),
    rendering=rendering,
    extract_answer=tasks.ANSWER_EXTRACTORS.get(verifier_name(config, path)),
    images=_evaluation_images(config, model, held_out, mesh),
  )


def _evaluation_images(
  config: Config, model: ModelSpec, held_out: Problems, mesh: jax.sharding.Mesh
) -> ModelImages | None:
  """Finds how a model sees the images of held-out problems; None where these have none."""
  if not held_out.images:
    return None
  processor = ImageProcessor.from_directory(model.path, config.data.min_pixels, config.data.max_pixels)
  dtype, limit = specs.compute_dtype(config.precision, mesh), config.data.image_cache * 2**30
  return ModelImages.of(model, processor, held_out.ids, limit, dtype)


def _delimiters(config: Config, tokenizer: Any, vocab: int) -> tuple[int, ...]:
  """Finds the tokens that end a step, where rollouts branch at a text.

  Raises:
    InputError: no token ends with it.
  """
  text = config.graph.delimiter if "graph" in config else ""
  if text and not (found := tokenizers.ids_ending_with(tokenizer, text, vocab)):
    raise InputError(
      f"config.graph.delimiter is {text!r}, with which no token of the student ends; name a shorter one, or leave it empty for steps of one "
      "length."
    )
  return found if text else ()


def check_vocabulary(tokenizer, stop_ids: tuple[int, ...], vocab: int) -> None:
  """Refuses a vocabulary that has no room for every token of the tokenizer; beyond them it is padding."""
  tokens = tokenizer.get_vocab()
  lost = sorted((i, token) for token, i in tokens.items() if i >= vocab)
  if lost:
    raise InputError(
      f"The smallest of the models has {vocab} ids, and the tokenizer needs {lost[-1][0] + 1} "
      f"({tokenizer.name_or_path}): {len(lost)} token(s) from {brief(lost[0][1])} (id {lost[0][0]}) on would be lost. Vocabulary sizes may differ by "
      "padding only; choose models of one tokenizer."
    )
  if beyond := [i for i in stop_ids if i >= vocab]:
    raise InputError(
      f"The stop token {beyond[0]} is not among the {vocab} ids that the models share, so no response could end; "
      f"mend eos_token_id in generation_config.json of {tokenizer.name_or_path}."
    )


def model(name: str, *, rendering: Rendering | None = None) -> ModelSpec:
  """Checks a model directory by its headers, and finds what ends its responses.

  Args:
    rendering: of prompts; None: in the tokenizer's chat template, where it has one.
  """
  return model_and_tokenizer(name, rendering or Rendering())[0]


def model_and_tokenizer(name: str, rendering: Rendering) -> tuple[ModelSpec, Any]:
  """Checks a model directory like `model`, and returns the tokenizer too, for which it was read."""
  path = hf.resolve(name)
  hf.check_directory(path)
  tokenizer = tokenizers.load(path)
  stop = stop_tokens.find(hf.stop_ids(path), tokenizer, rendering)
  return ModelSpec(path, hf_config.read(path), stop.ids, name, stop.note), tokenizer


def learner(config: Config) -> ModelSpec:
  """Finds `config.student`, with the scale of the adapter that it is trained through, if there is one."""
  return specs.with_adapter(model(config.student, rendering=Rendering.from_config(config)), config)


def teacher(name: str, student: ModelSpec, tokenizer, allow: tuple[str, ...], *, rendering: Rendering) -> ModelSpec:
  """Finds a teacher, which has to share the student's token ids; "initial" is the student before training."""
  if name == configs.INITIAL:
    return student
  found, theirs = model_and_tokenizer(name, rendering)
  tokenizers.compare(student.path, found.path, tokenizer, theirs, student.stop_ids, found.stop_ids, allow)
  return found

"""Everything a config names, read and checked before anything is compiled or written."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from opd_jax import config as configs
from opd_jax import horizon, tasks
from opd_jax import mesh as meshes
from opd_jax.config import Config
from opd_jax.data import pipeline, sources
from opd_jax.data import tokenizer as tokenizers
from opd_jax.errors import InputError
from opd_jax.models import decoder, hf
from opd_jax.rollout.sample import Sampling

TRAIN_PROBLEMS = 8192  # of a built-in task; generated, so the number only has to be larger than most runs need


@dataclasses.dataclass(frozen=True)
class Model:
  """A model directory, checked but not read."""

  path: pathlib.Path
  cfg: decoder.DecoderConfig
  stop_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Problems:
  """Tokenised prompts with the answers to judge responses by."""

  ids: list[list[int]]
  answers: list[str]
  skipped: int = 0  # lines left out by data.on_bad_line


@dataclasses.dataclass(frozen=True)
class Inputs:
  student: Model
  teacher: Model
  tokenizer: Any  # of transformers
  schedule: horizon.Schedule
  mesh: jax.sharding.Mesh
  train: Problems
  held_out: Problems | None  # None: config.eval.every is 0 and nothing names evaluation problems
  verify: tasks.Verifier
  sampling: Sampling
  eval_sampling: Sampling
  prompt_width: int  # P, tokens
  dtype: jnp.dtype
  warnings: tuple[str, ...]

  @property
  def eval_width(self) -> int:
    """P of the evaluation prompts."""
    assert self.held_out
    return pipeline.width(self.held_out.ids)


def load(c: Config) -> Inputs:
  """Reads the models' headers, both tokenizers and all prompts.

  Raises:
    InputError: the first thing that is wrong, in one sentence.
  """
  configs.check(c)
  schedule = horizon.from_config(c.horizon)
  mesh = meshes.make(c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
  meshes.check_rows(mesh, c.batch, "config.batch")
  if c.micro_batch:
    meshes.check_rows(mesh, c.micro_batch, "config.micro_batch")
  student, teacher = model(c.student), model(c.teacher)
  tokenizer = tokenizers.load(student.path)
  tokenizers.compare(
    student.path,
    teacher.path,
    tokenizer,
    tokenizers.load(teacher.path),
    student.stop_ids,
    teacher.stop_ids,
    c.allow_mismatch,
  )
  longest = min(student.cfg.max_positions, teacher.cfg.max_positions)
  train = problems(c, c.data.path, tokenizer, held_out=False, need_answer=False)
  held_out = evaluation_problems(c, tokenizer)
  width = pipeline.width(train.ids)
  if width + c.horizon.max > longest:
    raise InputError(
      f"Prompts of {width} tokens and config.horizon.max of {c.horizon.max} need {width + c.horizon.max} positions, "
      f"but the models have {longest} (max_position_embeddings); lower horizon.max or data.max_prompt."
    )
  sampling = Sampling(
    stop_ids=student.stop_ids,
    pad_id=tokenizers.pad_id(tokenizer, student.stop_ids),
    vocab=min(student.cfg.vocab, teacher.cfg.vocab),
    temperature=c.sampling.temperature,
    top_p=c.sampling.top_p,
    top_k=c.sampling.top_k,
  )
  return Inputs(
    student=student,
    teacher=teacher,
    tokenizer=tokenizer,
    schedule=schedule,
    mesh=mesh,
    train=train,
    held_out=held_out,
    verify=verifier(c),
    sampling=sampling,
    eval_sampling=dataclasses.replace(sampling, temperature=c.eval.temperature, top_p=1.0, top_k=0),
    prompt_width=width,
    dtype=compute_dtype(c.precision),
    warnings=_warnings(c, sampling, student, teacher, train),
  )


def model(name: str) -> Model:
  """Checks a model directory by its headers."""
  path = hf.resolve(name)
  hf.check_directory(path)
  stop = hf.stop_ids(path)
  if not stop:
    eos = getattr(tokenizers.load(path), "eos_token_id", None)
    stop = () if eos is None else (int(eos),)
  return Model(path, hf.read_config(path), stop)


def problems(c: Config, path: str, tokenizer, *, held_out: bool, need_answer: bool) -> Problems:
  """The prompts of a file or of a built-in task."""
  if path.startswith(configs.TASK):
    task = tasks.generator(path.removeprefix(configs.TASK))
    made = task.problems(c.eval.prompts if held_out else TRAIN_PROBLEMS, seed=0, held_out=held_out)
    examples = [sources.Example(p.prompt, p.answer, f"{path}:{i + 1}") for i, p in enumerate(made)]
    skipped = 0
  else:
    d = c.data
    examples, skipped = sources.read_jsonl(path, d.prompt_field, d.answer_field, d.on_bad_line, need_answer)
    if held_out:
      examples = examples[: c.eval.prompts]
  ids, kept, unusable = pipeline.tokenise(
    examples,
    tokenizer,
    chat_template=c.data.chat_template,
    system=c.data.system,
    max_prompt=c.data.max_prompt,
    on_bad_line=c.data.on_bad_line,
  )
  return Problems(ids, [e.answer for e in kept], skipped + unusable)


def evaluation_problems(c: Config, tokenizer) -> Problems | None:
  """Held-out problems: of the file `eval.path`, or of the built-in task that is trained on."""
  path = c.eval.path or (c.data.path if c.data.path.startswith(configs.TASK) else "")
  if path:
    return problems(c, path, tokenizer, held_out=True, need_answer=True)
  if c.eval.every:
    raise InputError(
      "config.eval.path is empty, so there is nothing to evaluate on: name a JSONL file of held-out problems with "
      "answers, or set config.eval.every=0 to train without evaluation."
    )
  return None


def verifier(c: Config) -> tasks.Verifier:
  """`data.verifier`; auto is the task's own, and gsm8k for files."""
  name = c.data.verifier
  if name == "auto":
    name = c.data.path.removeprefix(configs.TASK) if c.data.path.startswith(configs.TASK) else "gsm8k"
  return tasks.verifier(name)


def compute_dtype(precision: str) -> jnp.dtype:
  """float32 on CPU, where bfloat16 is slower; bfloat16 on accelerators."""
  if precision == "auto":
    precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return jnp.dtype(precision)


def _warnings(c: Config, sampling: Sampling, student: Model, teacher: Model, train: Problems) -> tuple[str, ...]:
  """What is allowed but worth saying before the run."""
  out = []
  if not sampling.on_policy:
    out.append(
      f"sampling is not on-policy (temperature {sampling.temperature}, top-p {sampling.top_p}, top-k {sampling.top_k}): "
      "the objective compares the untempered, untruncated distributions on tokens drawn from another one"
    )
  if c.objective.support != "full" and c.updates_per_rollout > 1:
    out.append(
      f"{c.updates_per_rollout} updates per rollout with the {c.objective.support} estimator: from the second on the "
      "tokens are off-policy and no importance weight corrects it"
    )
  if student.cfg.vocab != teacher.cfg.vocab:
    out.append(
      f"vocabulary sizes differ ({student.cfg.vocab} and {teacher.cfg.vocab}): both sides are compared over the first "
      f"{sampling.vocab} ids, the rest is treated as padding"
    )
  if not student.stop_ids:
    out.append("the student has no stop token: every rollout is cut by the horizon")
  if train.skipped:
    out.append(f"{train.skipped} unusable line(s) of {c.data.path} were left out")
  return tuple(out)

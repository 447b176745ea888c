"""Everything a config names, read and checked before anything is compiled or written."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from opd_jax import checks, horizon, tasks
from opd_jax import config as configs
from opd_jax import mesh as meshes
from opd_jax import teacher as frozen
from opd_jax.config import Config
from opd_jax.context import chat
from opd_jax.data import pipeline, problems
from opd_jax.data import tokenizer as tokenizers
from opd_jax.data.problems import Problems
from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, kernels, lora
from opd_jax.objectives import loss as losses
from opd_jax.rollout.sample import Sampling
from opd_jax.rollout.segments import Segments
from opd_jax.speaker import Voice


@dataclasses.dataclass(frozen=True)
class Model:
  """A model directory, checked but not read."""

  path: pathlib.Path
  cfg: decoder.DecoderConfig
  stop_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What an evaluation needs: one model, held-out problems and a judge; no teacher and no training data."""

  model: Model
  tokenizer: Any  # of transformers
  problems: Problems
  verify: tasks.Verifier
  sampling: Sampling
  max_tokens: int
  segments: Segments
  attention: str  # see models/kernels.py
  mesh: jax.sharding.Mesh
  dtype: jnp.dtype
  claimed: tasks.Claimed | None = None  # where the verifier's task can tell which answer a reply claims

  @property
  def voice(self) -> Voice:
    return Voice(self.model.cfg, self.sampling, self.segments, self.attention, self.mesh, self.dtype)


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What a training run needs."""

  student: Model
  teachers: tuple[Model, ...]
  teacher_weight: Float[np.ndarray, "prompts K"] | None  # how much each prompt listens to each of several teachers
  schedule: horizon.Horizon
  mesh: jax.sharding.Mesh
  tokenizer: Any  # of transformers
  train: Problems
  sampling: Sampling
  prompt_widths: tuple[int, ...]  # rising, tokens; a batch takes the first that holds its longest prompt
  attention: str  # see models/kernels.py
  dtype: jnp.dtype
  evaluation: Evaluation | None  # None where config.eval.every is 0
  verify: tasks.Verifier | None  # of rollouts; None where the loss has no reward
  segments: Segments
  warnings: tuple[str, ...]

  @property
  def voice(self) -> Voice:
    """The student, as it speaks in training."""
    return Voice(self.student.cfg, self.sampling, self.segments, self.attention, self.mesh, self.dtype)


def load(c: Config) -> Inputs:
  """Reads the models' headers, both tokenizers and all prompts.

  Raises:
    InputError: the first thing that is wrong, in one sentence.
  """
  checks.check(c)
  schedule = horizon.from_config(c.horizon)
  mesh = meshes.from_config(c.mesh)
  meshes.check_rows(mesh, c.batch, "config.batch")
  student, names = learner(c), tuple(c.teachers) or (c.teacher,)
  tokenizer = tokenizers.load(student.path)
  teachers = tuple(teacher(name, student, tokenizer, c.allow_mismatch) for name in names)
  vocab = min(m.cfg.vocab for m in (student, *teachers))
  check_vocabulary(tokenizer, student.stop_ids, vocab)
  train = problems.read(c, c.data.path, tokenizer, held_out=False)
  teacher_weight = frozen.weights(names, c.teacher_weights, train.teachers, len(train.ids))
  width = max(pipeline.width(train.ids), train.widths[-1])
  longest = min(m.cfg.max_positions for m in (student, *teachers))
  if width + c.horizon.max > longest:
    raise InputError(
      f"Prompts of {width} tokens and config.horizon.max of {c.horizon.max} need {width + c.horizon.max} positions, "
      f"but the models have {longest} (max_position_embeddings); lower horizon.max or data.max_prompt."
    )
  sampling = Sampling(
    stop_ids=student.stop_ids,
    pad_id=tokenizers.pad_id(tokenizer, student.stop_ids),
    vocab=vocab,
    temperature=c.sampling.temperature,
    top_p=c.sampling.top_p,
    top_k=c.sampling.top_k,
  )
  evaluation = load_evaluation(c, student, tokenizer, mesh, vocab) if c.eval.every else None
  return Inputs(
    student=student,
    teachers=teachers,
    teacher_weight=teacher_weight,
    schedule=schedule,
    mesh=mesh,
    tokenizer=tokenizer,
    train=train,
    sampling=sampling,
    prompt_widths=train.widths,
    attention=attention(c, mesh, [m.cfg for m in (student, *teachers)]),
    dtype=compute_dtype(c.precision, mesh),
    evaluation=evaluation,
    verify=tasks.verifier(verifier_name(c, c.data.path)) if c.mixture.reward else None,
    segments=segments(c, mesh),
    warnings=_warnings(c, mesh, tokenizer, sampling, student, teachers, train, evaluation),
  )


def micro_batch(c: Config, mesh: jax.sharding.Mesh) -> int:
  """Rows of a gradient-accumulation slice: `micro_batch`, or the next number that the mesh's row shards divide.

  Raises:
    InputError: none that divides the rows of a step can be split over the row shards.
  """
  rows, shards = c.batch * c.rollouts_per_prompt, meshes.row_shards(mesh)
  fits = [n for n in range(shards, rows + 1, shards) if rows % n == 0 and n >= c.micro_batch]
  if not c.micro_batch:
    return rows
  if not fits:
    raise InputError(
      f"config.micro_batch is {c.micro_batch}, and no number from there to the {rows} rows of a step divides them and is a "
      f"multiple of the mesh's {shards} row shards; set config.micro_batch=0, or change config.batch."
    )
  return fits[0]


def load_evaluation(c: Config, of: Model, tokenizer, mesh: jax.sharding.Mesh, vocab: int) -> Evaluation:
  """Held-out problems and their judge: of the file `eval.path`, or of the built-in task that is trained on.

  Args:
    vocab: ids at or above this are never drawn.
  """
  path = c.eval.path or (c.data.path if c.data.path.startswith(configs.TASK) else "")
  if not path:
    raise InputError(
      "config.eval.path is empty, so there is nothing to evaluate on: name a JSONL file of held-out problems with "
      "answers, or set config.eval.every=0 to train without evaluation."
    )
  held_out = problems.read(c, path, tokenizer, held_out=True)
  max_tokens = c.eval.max_tokens or c.horizon.max
  width = max(pipeline.width(held_out.ids), held_out.widths[-1])
  if width + max_tokens > of.cfg.max_positions:
    raise InputError(
      f"Evaluation prompts of {width} tokens and {max_tokens} new ones do not fit the model's "
      f"{of.cfg.max_positions} positions; lower config.eval.max_tokens."
    )
  return Evaluation(
    model=of,
    tokenizer=tokenizer,
    problems=held_out,
    verify=tasks.verifier(verifier_name(c, path)),
    sampling=Sampling(of.stop_ids, tokenizers.pad_id(tokenizer, of.stop_ids), vocab, c.eval.temperature),
    max_tokens=max_tokens,
    segments=segments(c, mesh),
    attention=attention(c, mesh, [of.cfg]),
    mesh=mesh,
    dtype=compute_dtype(c.precision, mesh),
    claimed=tasks.CLAIMED.get(verifier_name(c, path)),
  )


def attention(c: Config, mesh: jax.sharding.Mesh, models: Sequence[decoder.DecoderConfig]) -> str:
  """The attention that all of these models can run, of `config.attention`."""
  platform, dtype = mesh.devices.flat[0].platform, compute_dtype(c.precision, mesh)
  chosen = {kernels.choose(c.attention, platform, dtype, m.head_width) for m in models}
  return chosen.pop() if len(chosen) == 1 else "xla"


def segments(c: Config, mesh: jax.sharding.Mesh) -> Segments:
  """Where the token loop is cut, of `config.rollout`."""
  shrink = tuple(c.rollout.shrink)
  return Segments(c.rollout.segment, c.rollout.segments, shrink, meshes.row_shards(mesh))


def verifier_name(c: Config, path: str) -> str:
  """`data.verifier`; auto is the built-in task's own, and gsm8k for a file."""
  if c.data.verifier != "auto":
    return c.data.verifier
  return path.removeprefix(configs.TASK) if path.startswith(configs.TASK) else "gsm8k"


def check_vocabulary(tokenizer, stop_ids: tuple[int, ...], vocab: int) -> None:
  """Refuses a vocabulary that has no room for every token of the tokenizer; beyond them it is padding."""
  tokens = tokenizer.get_vocab()
  lost = sorted((i, token) for token, i in tokens.items() if i >= vocab)
  if lost:
    raise InputError(
      f"The smallest of the models has {vocab} ids, and the tokenizer needs {lost[-1][0] + 1}: "
      f"{len(lost)} token(s) from {lost[0][1]!r} (id {lost[0][0]}) on would be lost. Vocabulary sizes may differ by "
      "padding only; choose models of one tokenizer."
    )
  if beyond := [i for i in stop_ids if i >= vocab]:
    raise InputError(
      f"The stop token {beyond[0]} is not among the {vocab} ids that the models share, so no response could end; "
      "mend eos_token_id in generation_config.json."
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


def learner(c: Config) -> Model:
  """`config.student`, with the scale of the adapter that it is trained through, where it is."""
  found, adapter = model(c.student), lora.from_config(c.lora)
  if not adapter:
    return found
  lora.shapes(found.cfg, adapter)
  return dataclasses.replace(found, cfg=dataclasses.replace(found.cfg, adapter_scale=adapter.scale))


def teacher(name: str, student: Model, tokenizer, allow: tuple[str, ...]) -> Model:
  """A teacher that reads what the student writes; "initial" is the student before training."""
  if name == configs.INITIAL:
    return student
  found = model(name)
  theirs = tokenizers.load(found.path)
  tokenizers.compare(student.path, found.path, tokenizer, theirs, student.stop_ids, found.stop_ids, allow)
  return found


def compute_dtype(precision: str, mesh: jax.sharding.Mesh) -> jnp.dtype:
  """float32 on CPU, where bfloat16 is slower; bfloat16 on accelerators."""
  if precision == "auto":
    precision = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
  return jnp.dtype(precision)


def _warnings(
  c: Config,
  mesh: jax.sharding.Mesh,
  tokenizer: Any,
  sampling: Sampling,
  student: Model,
  teachers: tuple[Model, ...],
  train: Problems,
  evaluation: Evaluation | None,
) -> tuple[str, ...]:
  """What is allowed but worth saying before the run."""
  out = []
  if c.objective.student_temperature != sampling.temperature or sampling.top_p < 1 or sampling.top_k > 0:
    out.append(
      f"sampling is not on-policy (temperature {sampling.temperature}, top-p {sampling.top_p}, top-k {sampling.top_k}): "
      f"the objective compares distributions at temperature {c.objective.student_temperature} and whole, on tokens drawn "
      "from another one"
    )
  if c.updates_per_rollout > 1 and losses.chosen_importance(c) == "none":
    out.append(
      f"{c.updates_per_rollout} updates per rollout: from the second on the tokens are off-policy, and importance.kind "
      "is none"
    )
  if c.mixture.reward and c.horizon.kind != "full":
    out.append(
      f"mixture.reward with a {c.horizon.kind} horizon: a response that the horizon cuts has no answer and is judged wrong"
    )
  later = [key for key in ("objective.discount", "mixture.reward") if configs.get(c, key)]
  if later and losses.chosen_importance(c) != "none" and c.importance.level != "sequence":
    out.append(
      f"importance.level is {c.importance.level!r}, and {' and '.join(later)} make a token answer for later ones, whose "
      "ratios it leaves out: biased, where 'sequence' is exact but for the cap"
    )
  if teachers[1:] and c.data.teacher_field:
    out.append(f"each of the {len(teachers)} teachers reads every rollout, also those that another one answers")
  sizes = {m.cfg.vocab for m in (student, *teachers)}
  if len(sizes) > 1:
    out.append(
      f"vocabulary sizes differ ({' and '.join(map(str, sorted(sizes)))}): all models are compared over the first "
      f"{sampling.vocab} ids, the rest is treated as padding"
    )
  if (slices := micro_batch(c, mesh)) != c.micro_batch and c.micro_batch:
    out.append(
      f"config.micro_batch is {c.micro_batch}; a mesh of {meshes.row_shards(mesh)} row shards takes {slices} rows"
    )
  out += meshes.uneven(mesh, "the student", student.cfg)
  for m in teachers:
    out += meshes.uneven(mesh, f"the teacher {m.path.name}", m.cfg)
  if not student.stop_ids:
    out.append("the student has no stop token: every rollout is cut by the horizon")
  if train.conversations and student.stop_ids:
    out += _ends_otherwise(tokenizer, student.stop_ids)
  for path, skipped in ((c.data.path, train.skipped), (c.eval.path, evaluation.problems.skipped if evaluation else 0)):
    if skipped:
      out.append(f"{skipped} unusable line(s) of {path} were left out")
  if evaluation:
    trained_on = {tuple(ids) for ids in train.ids}
    if both := sum(tuple(ids) in trained_on for ids in evaluation.problems.ids):
      out.append(f"{both} of {len(evaluation.problems.ids)} evaluation prompts stand in the training data too")
  return tuple(out)


def _ends_otherwise(tokenizer: Any, stop_ids: tuple[int, ...]) -> list[str]:
  """Said where the replies that a conversation shows end with another token than those that the student gives."""
  end = chat.end_of_turn(tokenizer)
  if end is None or set(end[:_NEAR]) & set(stop_ids):
    return []
  shown = tokenizer.decode(end[:1]) if end else "nothing"
  own = " or ".join(repr(tokenizer.decode([i])) for i in stop_ids)
  return [
    f"the chat template ends an assistant's turn with {shown!r}, and the student's replies end with {own}: what it reads in a "
    "conversation does not end as what it learns to say; mend eos_token_id in generation_config.json, or the template"
  ]


_NEAR = 3  # tokens: a template may put a space or a line before the end

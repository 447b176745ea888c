"""What notebooks and scripts do with models and runs; `import opd_jax` offers these functions by name.

Nothing is computed in a way of its own here: generation, forward passes, divergences and evaluations are the ones that
training uses.

Dimensions: n tokens of one response.
"""

import dataclasses
import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from opd_jax import checks, inputs
from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.data import chat, lost_text, pipeline
from opd_jax.data import rendering as renderings
from opd_jax.data import tokenizer as tokenizers
from opd_jax.data.chat import Prompt
from opd_jax.data.rendering import Rendering
from opd_jax.errors import InputError
from opd_jax.evaluation import make_evaluator
from opd_jax.models import hf, kernels, model_sharding
from opd_jax.models.decoder import DecoderConfig
from opd_jax.models.spec import ModelSpec
from opd_jax.objectives import divergence, fused
from opd_jax.objectives.divergence import FrozenInputs, Objective, TokenStats
from opd_jax.objectives.forward import Forward
from opd_jax.recipes import base as recipes
from opd_jax.reports import runs
from opd_jax.rollout.generate import Completions, Generator, GeneratorConfig
from opd_jax.rollout.sample import Sampling
from opd_jax.rollout.segments import Segments
from opd_jax.runtime import began, bucket, hosts, keys, workdir
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import ProgramCache
from opd_jax.training import specs
from opd_jax.types import Batch, Params, Rollout

_PROGRAMS: ProgramCache = {}  # those of `generate`, which models of one architecture share, as they share jax.jit's


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A model with its weights on the devices, which nothing here changes.

  Attributes:
    spec: its directory, architecture, stop tokens and name.
    params: the weights, fp32, in the train layout of runtime/mesh.py.
    tokenizer: of transformers.
    mesh: the devices.
    dtype: the compute type.
    attention: the kernel, see models/kernels.py.
    rendering: how prompts are rendered: as the run does where the model is one's, otherwise in the chat template alone.
  """

  spec: ModelSpec
  params: Params = dataclasses.field(repr=False)
  tokenizer: Any = dataclasses.field(repr=False)
  mesh: jax.sharding.Mesh = dataclasses.field(repr=False)
  dtype: jnp.dtype
  attention: str
  rendering: Rendering = dataclasses.field(default_factory=Rendering, repr=False)


class TokenDivergence(NamedTuple):
  """The divergence of two models at every token of a response, with what each gave the token; in nats."""

  tokens: list[str]  # n, each decoded alone
  ids: Int[np.ndarray, "n"]
  divergence: Float[np.ndarray, "n"]  # over the whole vocabulary, given everything before the token
  logprob: Float[np.ndarray, "n"]  # the student's, of the token
  teacher_logprob: Float[np.ndarray, "n"]
  student_entropy: Float[np.ndarray, "n"]
  teacher_entropy: Float[np.ndarray, "n"]


def load_config(spec: str, overrides: Mapping[str, Any] | None = None) -> Config:
  """Loads the config of a method, and replaces some of its values.

  Args:
    spec: a method of configs/ with or without a scale ("popd", "topd:hf"), or the path of a config file.
    overrides: values by dotted key, e.g. {"steps": 20, "horizon.max": 64}.

  Raises:
    InputError: there is no such file or key, or a value has the wrong type.
  """
  return configs.override(configs.load(spec), dict(overrides or {}))


def load_model(name: str | os.PathLike, *, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> Model:
  """Loads a model: one that is built in, one of a Hugging Face directory, or the student of a run.

  Args:
    name: "builtin:student", "builtin:teacher" and so on, a directory of a model, or a workdir of `opd_jax.train`.
    step: of the run's checkpoint; None: the last. For a workdir only.
    mesh: the devices, as made by runtime.mesh.make; None: for a run those of its config, otherwise all, each with the
      whole model. Two models that are compared have the same.

  Raises:
    InputError: there is no such model or checkpoint, or it cannot be read.
  """
  directory = bucket.MirroredDir(name)
  if (directory.root / "checkpoints").is_dir():
    return _load_student(directory, step, mesh)
  if step is not None:
    raise InputError(
      f"step is {step}, and {name} is no workdir with checkpoints; leave step out for a model directory."
    )
  mesh = mesh or meshes.make()
  spec = inputs.model(str(name))
  if spec.stop_note:
    _warn([f"{name}: {spec.stop_note}"])
  dtype = specs.compute_dtype("auto", mesh)
  return Model(
    spec=spec,
    params=hf.load(spec.path, spec.cfg, model_sharding.parameter_shardings(mesh, spec.cfg)),
    tokenizer=tokenizers.load(spec.path),
    mesh=mesh,
    dtype=dtype,
    attention=kernels.choose("auto", mesh.devices.flat[0].platform, dtype, spec.cfg.head_width),
  )


def _load_student(directory: bucket.MirroredDir, step: int | None, mesh: jax.sharding.Mesh | None) -> Model:
  """Loads the student of a run from a checkpoint, computed as its config says."""
  config = workdir.load_config(directory.fetch())
  recipe = recipes.make(inputs.load_student(config, mesh or meshes.for_reading(config.mesh)))
  models, _ = recipes.saved_models(recipe, directory.root, step)
  if "student" not in models:
    raise InputError(f"The run {directory.name} has no model 'student', only {', '.join(map(repr, models))}.")
  spec = recipe.spec("student")
  if spec.stop_note:
    _warn([f"{directory.name}: {spec.stop_note}"])
  return Model(
    spec=spec,
    params=models["student"],
    tokenizer=tokenizers.load(spec.path),
    mesh=recipe.specs.mesh,
    dtype=recipe.specs.dtype,
    attention=recipe.specs.attention,
    rendering=Rendering.from_config(config, began.of_run(directory)),
  )


def generate(
  model: Model,
  prompts: Sequence[Prompt],
  max_tokens: int = 256,
  temperature: float = 1.0,
  seed: int = 0,
  template_args: Mapping[str, Any] | None = None,
) -> Completions:
  """Samples a response to every prompt.

  A response depends on its prompt, its place in the list and the seed, and not on the other prompts.

  Args:
    prompts: texts, or lists of chat messages; in the tokenizer's chat template where it has one. The student of a run reads
      them as in the run: with its system message, unless they have one, its template arguments and its date.
    max_tokens: the most tokens of a response, at least 1.
    temperature: 0 takes the most likely token always.
    template_args: what the chat template is told by name, such as {"enable_thinking": False}; None: what the run tells it.

  Returns:
    As many `texts` (without the stop token, with other special tokens, which may mark thoughts), `lengths` (tokens, the stop
    token included) and `ended` (by a stop token) as there are prompts; `responses` is what a verifier is given of each.

  Raises:
    InputError: no prompts, a prompt that cannot be rendered or written in the model's tokens, or more tokens than the model
      has positions.
  """
  if isinstance(prompts, str) or not len(prompts):
    raise InputError("prompts has to be a list with at least one prompt.")
  if max_tokens < 1 or temperature < 0:
    raise InputError(
      f"max_tokens is {max_tokens} and temperature {temperature}; they have to be at least 1 and at least 0."
    )
  _warn(lost_text.notes("prompts", prompts, model.tokenizer, chat_template=True))
  ids = render_prompts(model, prompts, template_args)
  prompt_len = check_length(model, ids, max_tokens)
  generator = Generator(
    generator_config(model, temperature),
    model.tokenizer,
    batch=len(ids),
    prompt_lens=(prompt_len,),
    max_tokens=max_tokens,
    numbered=True,
    program_cache=_PROGRAMS,
  )
  return generator(model.params, ids, keys.of_seed(seed, keys.Use.ANALYSIS), range(len(ids)))


def generator_config(model: Model, temperature: float) -> GeneratorConfig:
  """Returns the static settings with which a model answers prompts, over the whole of its vocabulary."""
  return GeneratorConfig(
    cfg=model.spec.cfg,
    sampling=Sampling(
      model.spec.stop_ids,
      pad_id(model),
      model.spec.cfg.vocab,
      temperature,
      never=tokenizers.ids_without_token(model.tokenizer, model.spec.cfg.vocab),
    ),
    segments=Segments(shards=meshes.row_shards(model.mesh)),
    attention=model.attention,
    mesh=model.mesh,
    dtype=model.dtype,
  )


def token_divergence(
  student: Model,
  teacher: Model,
  prompt: Prompt,
  response: str | Sequence[int],
  kind: str = "reverse_kl",
  template_args: Mapping[str, Any] | None = None,
) -> TokenDivergence:
  """Computes how far the teacher's distribution is from the student's at every token of a response, in nats.

  Args:
    prompt: text or chat messages, as for `generate`; both models read it in the student's chat template.
    response: text, or token ids (which may end with a stop token; text has none).
    kind: of objectives/divergence.py: "reverse_kl", KL(student || teacher); "forward_kl", KL(teacher || student); "jsd"
      or "mixture", each with equal shares.
    template_args: as for `generate`.

  Returns:
    A record of n tokens; every array is float32[n] but `ids`, which is int32[n].

  Raises:
    InputError: an unknown kind, an empty response, an id that a model does not have, different tokenizers or devices, or
      more tokens than the models have positions.
  """
  vocab = check_pair(student, teacher, kind)
  ids = response_ids(student, response, vocab)
  prompt_ids = render_prompts(student, [prompt], template_args)[0]
  width = pipeline.padded_len([ids], 64)  # few widths, so that few programs are compiled
  prompt_len = min(check_length(model, [prompt_ids], len(ids)) for model in (student, teacher))
  rows = meshes.row_shards(student.mesh)  # copies, so that every device has one
  batch = pipeline.pad([prompt_ids] * rows, prompt_len, pad_id(student))
  rollout = pipeline.rollout_from_data([ids] * rows, width, len(ids), pad_id(student))
  batch, rollout = hosts.to_global((batch, rollout), meshes.rows(student.mesh))
  stats = _token_stats(
    (student.params, teacher.params),
    batch,
    rollout,
    cfgs=(student.spec.cfg, teacher.spec.cfg),
    forwards=tuple(Forward(m.mesh, m.dtype, attention=m.attention) for m in (student, teacher)),
    objective=Objective(vocab, kind),
  )
  first = {name: np.asarray(stat[0, : len(ids)]) for name, stat in hosts.all_gather_to_host(stats).items()}
  return TokenDivergence(
    tokens=[student.tokenizer.decode([token]) for token in ids],
    ids=np.array(ids, np.int32),
    **{name: first[name] for name in TokenDivergence._fields[2:]},
  )


@functools.partial(jax.jit, static_argnames=("cfgs", "forwards", "objective"))
def _token_stats(
  params: tuple[Params, Params],
  batch: Batch,
  rollout: Rollout,
  *,
  cfgs: tuple[DecoderConfig, DecoderConfig],
  forwards: tuple[Forward, Forward],
  objective: Objective,
) -> TokenStats:
  """Computes the statistics of student and teacher at the tokens of a rollout, as training does."""
  student, teacher = (
    forward(weights, cfg, batch, rollout) for forward, weights, cfg in zip(forwards, params, cfgs, strict=True)
  )
  compared = FrozenInputs((teacher,), rollout.response, rollout.mask)
  return fused.token_stats(objective, student, compared, mesh=forwards[0].mesh)


def evaluate(model: Model, config: Config) -> dict[str, Any]:
  """Measures a model's accuracy on the held-out problems of a config, always with full-length responses.

  The problems, samples per problem, temperature and seed are `config.eval` and `config.seed`; the same config draws the
  same random numbers, so that two models differ by their weights alone.

  Returns:
    The record of an evaluation in metrics.jsonl, see docs/metrics.md: `accuracy` (avg@k, in [0, 1]) with its 95% interval
    `low` and `high`, `pass` (pass@k), `length` (tokens), `ended`; `samples`, a few responses as text; and where there are
    any, `notes`: what is worth knowing of the problems, such as references that no response can match.

  Raises:
    InputError: a value of the config that cannot work, or no held-out problems.
  """
  checks.check(config)
  found = inputs.load_evaluation(
    config, model.spec, model.tokenizer, model.mesh, model.spec.cfg.vocab, model.rendering.moment
  )
  _warn(found.problems.notes)
  record, samples = make_evaluator(config, found, model.params, _PROGRAMS)(model.params)
  return record | {"samples": samples} | ({"notes": list(found.problems.notes)} if found.problems.notes else {})


def read_metrics(path: str | os.PathLike) -> runs.Run:
  """Reads what a run wrote into its workdir, also while it is still running.

  Returns:
    The record of a run: `train`, a dictionary per logged step, and `evals`, one per evaluation, with the keys of
    docs/metrics.md; `config` by dotted key; sums such as `tokens` and `elapsed` (seconds).

  Raises:
    InputError: the directory is no workdir, or holds no step and no evaluation yet.
  """
  return runs.load([os.fspath(path)])[0]


def _warn(notes: Sequence[str]) -> None:
  for note in notes:
    warnings.warn(note, stacklevel=3)


def render_prompts(model: Model, prompts: Sequence[Prompt], template_args: Mapping[str, Any] | None) -> list[list[int]]:
  """Renders prompts as the model's run does; a system message of their own stands instead of the run's."""
  rendering = model.rendering
  if template_args is not None:
    renderings.check_args("template_args", template_args)
    rendering = dataclasses.replace(rendering, args=template_args)
  if chat.uses_template(model.tokenizer, rendering):
    renderings.check(rendering, model.tokenizer)

  def has_system(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and any(m.get("role") == "system" for m in prompt)

  return [
    chat.render(prompt, model.tokenizer, rendering.without_system() if has_system(prompt) else rendering)
    for prompt in prompts
  ]


def pad_id(model: Model) -> int:
  """Returns the id that fills rows up."""
  return tokenizers.pad_id(model.tokenizer, model.spec.stop_ids)


def check_length(model: Model, prompt_ids: Sequence[Sequence[int]], tokens: int) -> int:
  """Returns the width that the prompts are padded to; refuses prompts and responses without room in the model."""
  longest, positions = max(map(len, prompt_ids)), model.spec.cfg.max_positions
  if longest + tokens > positions:
    raise InputError(
      f"A prompt of {longest} tokens and a response of {tokens} need {longest + tokens} positions, and {model.spec.name} "
      f"has {positions} (max_position_embeddings)."
    )
  return pipeline.padded_len(prompt_ids)


def check_pair(student: Model, teacher: Model, kind: str) -> int:
  """Returns the number of ids that both models have; refuses a pair that cannot be compared."""
  if kind not in divergence.DIVERGENCES:
    raise InputError(f"kind is {kind!r}; it is one of {', '.join(divergence.DIVERGENCES)}.")
  if student.mesh != teacher.mesh:
    raise InputError("The two models lie on different devices; load the teacher with mesh=student.mesh.")
  tokenizers.compare(
    student.spec.path,
    teacher.spec.path,
    student.tokenizer,
    teacher.tokenizer,
    student.spec.stop_ids,
    teacher.spec.stop_ids,
    ("eos", "chat_template"),  # the student's are used
  )
  return min(student.spec.cfg.vocab, teacher.spec.cfg.vocab)


def response_ids(model: Model, response: str | Sequence[int], vocab: int) -> list[int]:
  """Returns a response's token ids; refuses an empty one, and ids of `vocab` or more."""
  if isinstance(response, str):
    ids = model.tokenizer(response, add_special_tokens=False)["input_ids"]
  else:
    ids = [int(token) for token in response]
  if not ids:
    raise InputError("response is empty; give at least one token.")
  if wrong := [token for token in ids if not 0 <= token < vocab]:
    raise InputError(f"response has the id {wrong[0]}, and the models share the ids 0 to {vocab - 1}.")
  return ids

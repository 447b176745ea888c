"""What notebooks and scripts do with models and runs; `import opd_jax` offers these functions by name.

Nothing is computed in a way of its own here: generation, forward passes and divergences are the ones that training uses.
Beside this module stand loaded.py (models), trained.py (training), accuracy.py (evaluation), score.py and exporting.py, which the
commands call too.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from opd_jax import config as configs
from opd_jax.analysis.loaded import PROGRAMS, Model, warn
from opd_jax.config import Config
from opd_jax.data import chat, lost_text, pipeline
from opd_jax.data import rendering as renderings
from opd_jax.data import tokenizer as tokenizers
from opd_jax.data.chat import Prompt
from opd_jax.errors import InputError
from opd_jax.objectives import divergence
from opd_jax.reports import runs
from opd_jax.rollout.generate import Completions, Generator, GeneratorConfig
from opd_jax.rollout.sample import Sampling
from opd_jax.rollout.segments import Segments
from opd_jax.runtime import keys
from opd_jax.runtime import mesh as meshes


def load_config(spec: str, overrides: Mapping[str, Any] | None = None) -> Config:
  """Loads the config of a method, and replaces some of its values.

  Args:
    spec: a method of configs/ with or without a scale ("popd", "topd:hf"), or the path of a config file.
    overrides: values by dotted key, e.g. {"steps": 20, "horizon.max": 64}.

  Raises:
    InputError: there is no such file or key, or a value has the wrong type.
  """
  return configs.override(configs.load(spec), dict(overrides or {}))


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
    template_args: arguments of the chat template, by name, such as {"enable_thinking": False}; None: those of the run.

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
  warn(lost_text.notes("prompts", prompts, model.tokenizer, chat_template=True))
  ids = render_prompts(model, prompts, template_args)
  prompt_len = check_length(model, ids, max_tokens)
  generator = Generator(
    generator_config(model, temperature),
    model.tokenizer,
    batch=len(ids),
    prompt_lens=(prompt_len,),
    max_tokens=max_tokens,
    numbered=True,
    program_cache=PROGRAMS,
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


def read_metrics(path: str | os.PathLike) -> runs.Run:
  """Reads what a run wrote into its workdir, also while it is still running.

  Returns:
    The record of a run: `train`, a dictionary per logged step, and `evals`, one per evaluation, with the keys of
    docs/metrics.md; `config` by dotted key; sums such as `tokens` and `elapsed` (seconds).

  Raises:
    InputError: the directory is no workdir, or holds no step and no evaluation yet.
  """
  return runs.load([os.fspath(path)])[0]


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


def check_pair(student: Model, teacher: Model, kind: str, *, denoise: bool = False) -> int:
  """Returns the number of ids that both models have; refuses a pair that cannot be compared.

  Args:
    denoise: whether both are to be masked diffusion models, otherwise neither.
  """
  if kind not in divergence.DIVERGENCES:
    raise InputError(f"kind is {kind!r}; it is one of {', '.join(divergence.DIVERGENCES)}.")
  for model in (student, teacher):
    if denoise and model.spec.cfg.causal:
      raise InputError(
        f"{model.spec.name} writes from left to right, and is compared with a masked diffusion model; name two models that denoise."
      )
    if not denoise and not model.spec.cfg.causal:
      raise InputError(
        f"{model.spec.name} is a masked diffusion model, which gives a text no probabilities from left to right; `python -m opd_jax.view "
        "--workdir=DIR` scores answers of a run of it as they are denoised, and log.rollouts writes canvases while it trains."
      )
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

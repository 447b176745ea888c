"""What student and teacher make of given texts, token by token: divergence, log-probabilities, and the likeliest alternatives.

    scored = score(student, teacher, ["58+-++x3="], ["3:5+8=3"])
    scored[0].divergence, scored[0].teacher_top

Both models are run over the responses once, as in an update. `opd_jax/reports/tokens.py` draws the records.

Dimensions: n tokens of one response, R rows, H response positions, D width of a model, V vocabulary, k alternatives.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from opd_jax.analysis import notebook
from opd_jax.analysis.loaded import PROGRAMS, Model
from opd_jax.data import pipeline, scored
from opd_jax.data.chat import Prompt
from opd_jax.data.image_refs import ImageRef
from opd_jax.data.scored import ScoredResponse
from opd_jax.errors import InputError
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.objectives import fused
from opd_jax.objectives.divergence import FrozenInputs, HiddenAndHead, Objective, TokenStats, logits
from opd_jax.objectives.forward import Forward
from opd_jax.rollout.generate import AnyGeneratorConfig, Generator
from opd_jax.runtime import hosts, keys
from opd_jax.runtime import mesh as meshes
from opd_jax.training.prompt_images import ModelImages
from opd_jax.types import Batch, Params, Rollout

Ids = Sequence[Sequence[int]]


class Prompts(NamedTuple):
  """Prompts as one model reads them.

  Attributes:
    ids: token ids of each.
    refs: the images of each; () where there are none.
    seen: how the model sees them.
  """

  ids: Ids
  refs: Sequence[Sequence[ImageRef]] = ()
  seen: ModelImages | None = None

  def batch(self, rows: Sequence[int], width: int, pad: int) -> Batch:
    """Make a batch of these prompts, on the host."""
    batch = pipeline.pad([self.ids[i] for i in rows], width, pad)
    if self.seen is None:
      return batch
    images = self.seen.place(batch.prompt, batch.prompt_mask, [self.refs[i] for i in rows])  # pyright: ignore[reportArgumentType]: numpy
    return dataclasses.replace(batch, images=images)


AT_A_TIME = 8  # responses; what bounds the memory
LOGITS = 2**24  # at once where the likeliest ids are sought, 64 MiB


def score(
  student: Model,
  teacher: Model,
  prompts: Sequence[Prompt],
  responses: Sequence[str | Sequence[int]],
  *,
  k: int = 5,
  kind: str = "reverse_kl",
  of: str = "",
  template_args: dict[str, Any] | None = None,
) -> list[ScoredResponse]:
  """Scores given responses under student and teacher: one record for each, with numbers for every token.

  Args:
    prompts: texts or lists of chat messages, one for each response; both models read them in the student's chat template.
    responses: texts, or token ids, which may end with a stop token.
    k: how many of each model's likeliest tokens are returned at every position; 0: none.
    kind: of the divergence: "reverse_kl", "forward_kl", "jsd" or "mixture", over the whole vocabulary.
    of: what the records say about who wrote the responses.
    template_args: arguments of the chat template, by name; None: those of the student's run.

  Raises:
    InputError: no prompt, or another number of responses; an empty response; different tokenizers or devices; an unknown
      kind; more tokens than the models have positions.
  """
  if isinstance(prompts, str) or isinstance(responses, str) or not len(prompts) or len(prompts) != len(responses):
    raise InputError("prompts and responses have to be lists of the same length, with at least one of each.")
  if k < 0:
    raise InputError(f"k is {k}; it has to be at least 0.")
  vocab = notebook.check_pair(student, teacher, kind)
  ids = [notebook.response_ids(student, response, vocab) for response in responses]
  return score_ids(
    student, teacher, notebook.render_prompts(student, prompts, template_args), ids, k=k, kind=kind, of=of
  )


def score_ids(
  student: Model,
  teacher: Model,
  prompts: Ids,
  responses: Ids,
  *,
  k: int = 5,
  kind: str = "reverse_kl",
  of: str = "",
) -> list[ScoredResponse]:
  """Scores responses like `score`, where prompts and responses are token ids already."""
  both = (Prompts(prompts), Prompts(prompts))
  return score_prompts(student, teacher, both, responses, k=k, kind=kind, of=of)


def score_prompts(
  student: Model,
  teacher: Model,
  prompts: tuple[Prompts, Prompts],
  responses: Ids,
  *,
  k: int = 5,
  kind: str = "reverse_kl",
  of: str = "",
) -> list[ScoredResponse]:
  """Scores responses like `score`, each model under prompts of its own, the student's first; the records have the student's."""
  vocab = notebook.check_pair(student, teacher, kind)
  longest = max(map(len, responses))
  widths = [
    notebook.check_length(model, own.ids, longest) for model, own in zip((student, teacher), prompts, strict=True)
  ]
  width, pad = (
    pipeline.padded_len(responses, 64),
    notebook.pad_id(student),
  )  # few widths, so that few programs are compiled
  shards = meshes.row_shards(student.mesh)
  rows = -(-min(AT_A_TIME, len(responses)) // shards) * shards
  found: list[ScoredResponse] = []
  for first in range(0, len(responses), rows):
    part = range(first, min(first + rows, len(responses)))
    padded = [*part, *[first] * (rows - len(part))]
    batches = tuple(own.batch(padded, prompt_len, pad) for own, prompt_len in zip(prompts, widths, strict=True))
    rollout = pipeline.rollout_from_data([responses[i] for i in padded], width, longest, pad)
    batches, rollout = hosts.to_global((batches, rollout), meshes.rows(student.mesh))
    numbers = _scores(
      (student.params, teacher.params),
      batches,
      rollout,
      cfgs=(student.spec.cfg, teacher.spec.cfg),
      forwards=tuple(Forward(m.mesh, m.dtype, attention=m.attention) for m in (student, teacher)),
      objective=Objective(vocab, kind),
      k=min(k, vocab),
    )
    numbers = hosts.all_gather_to_host(numbers)
    found += [record(student, prompts[0].ids[i], responses[i], numbers, i - first, kind, of) for i in part]
  return found


class TokenDivergence(NamedTuple):
  """The divergence of two models at every token of a response, with what each gave the token; in nats."""

  tokens: list[str]  # n, each decoded alone
  ids: Int[np.ndarray, " n"]
  divergence: Float[np.ndarray, " n"]  # over the whole vocabulary, given everything before the token
  logprob: Float[np.ndarray, " n"]  # the student's, of the token
  teacher_logprob: Float[np.ndarray, " n"]
  student_entropy: Float[np.ndarray, " n"]
  teacher_entropy: Float[np.ndarray, " n"]


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
  ids = notebook.response_ids(student, response, notebook.check_pair(student, teacher, kind))
  (found,) = score_ids(
    student, teacher, notebook.render_prompts(student, [prompt], template_args), [ids], k=0, kind=kind
  )
  return TokenDivergence(
    tokens=[student.tokenizer.decode([token]) for token in ids],
    ids=np.array(ids, np.int32),
    **{name: np.array(getattr(found, name), np.float32) for name in scored.NUMBERS},
  )


def respond(
  model: Model, prompts: Ids | Prompts, max_tokens: int, temperature: float, seed: int = 0
) -> list[list[int]]:
  """Samples a response to each prompt, as token ids with the stop token, which text would lose.

  Args:
    temperature: 0 takes the likeliest token always.
    seed: two models with one seed draw with the same random numbers.

  Raises:
    InputError: more tokens than the model has positions.
  """
  own = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
  number, width = len(own.ids), notebook.check_length(model, own.ids, max_tokens)
  rows = [*range(number), *[0] * (-number % meshes.row_shards(model.mesh))]
  config = notebook.generator_config(model, temperature)
  program = compiled(config, model, len(rows), width, max_tokens, own.seen)
  batch = hosts.to_global(own.batch(rows, width, config.sampling.pad_id), meshes.rows(model.mesh))
  rollout = program(model.params, batch, keys.of_seed(seed, keys.Use.ANALYSIS), np.int32(max_tokens))
  response, mask = hosts.all_gather_to_host((rollout.response, rollout.mask))
  return [response[i, mask[i]].tolist() for i in range(number)]


def compiled(
  config: AnyGeneratorConfig, model: Model, rows: int, width: int, max_tokens: int, seen: ModelImages | None = None
) -> jax.stages.Compiled:
  """Compiles a rollout of so many rows and tokens, once in a process."""
  sizes: dict[str, Any] = {"batch": rows, "prompt_lens": (width,), "max_tokens": max_tokens}
  generator = Generator(config, model.tokenizer, **sizes, name="respond", images=seen, program_cache=PROGRAMS)
  return generator.prepare(model.params, width)


def record(
  model: Model, prompt: Sequence[int], ids: Sequence[int], numbers: TokenStats, row: int, kind: str, of: str
) -> ScoredResponse:
  """Makes the record of one row of such numbers."""
  tokenizer, n = model.tokenizer, len(ids)

  def top(whose: str) -> scored.Top:
    chosen, probability = numbers[f"{whose}_ids"][row, :n], np.exp(numbers[f"{whose}_top"][row, :n])
    befores = [None, *ids[:-1]]
    return [
      [(scored.piece(tokenizer, before, int(t)), float(p)) for t, p in zip(ts, ps, strict=True)]
      for before, ts, ps in zip(befores, chosen, probability, strict=True)
    ]

  per_token: dict[str, Any] = {name: numbers[name][row, :n].astype(float).tolist() for name in scored.NUMBERS}
  return ScoredResponse(
    of=of,
    prompt=tokenizer.decode(list(prompt), skip_special_tokens=False),
    tokens=scored.pieces(tokenizer, ids),
    ids=[int(i) for i in ids],
    ended=int(ids[-1]) in model.spec.stop_ids,
    kind=kind,
    student_top=top("student"),
    teacher_top=top("teacher"),
    **per_token,
  )


@functools.partial(jax.jit, static_argnames=("cfgs", "forwards", "objective", "k"))
def _scores(
  params: tuple[Params, Params],
  batches: tuple[Batch, Batch],
  rollout: Rollout,
  *,
  cfgs: tuple[DecoderConfig, DecoderConfig],
  forwards: tuple[Forward, Forward],
  objective: Objective,
  k: int,
) -> dict[str, Any]:
  """Computes the statistics of the tokens, as training does, and of each model the k likeliest ids."""
  each = zip(forwards, params, cfgs, batches, strict=True)
  models = [forward(weights, cfg, batch, rollout) for forward, weights, cfg, batch in each]
  compared = FrozenInputs((models[1],), rollout.response, rollout.mask)
  numbers: dict[str, Any] = dict(fused.token_stats(objective, models[0], compared, mesh=forwards[0].mesh))
  for name, model in zip(("student", "teacher"), models, strict=True):
    numbers[f"{name}_top"], numbers[f"{name}_ids"] = likeliest(model, objective.vocab, k)
  return numbers


def likeliest(model: HiddenAndHead, vocab: int, k: int) -> tuple[Float[Array, "R H k"], Int[Array, "R H k"]]:
  """Finds the k likeliest ids and their log-probabilities, some positions at a time: [R, H, V] never exists, and nothing of it where k is 0."""
  rows, positions, _ = model.hidden.shape
  if not k:
    return jnp.zeros((rows, positions, 0)), jnp.zeros((rows, positions, 0), jnp.int32)

  def at_position(hidden: Float[Array, "R D"]) -> tuple[Array, Array]:
    z = logits(model._replace(hidden=hidden[:, None]), vocab)[:, 0]
    return lax.top_k(jax.nn.log_softmax(z), k)

  at_a_time = max(1, LOGITS // (rows * vocab))  # one by one, each would read all of the head for a few rows
  by_position = lax.map(at_position, model.hidden.swapaxes(0, 1), batch_size=min(positions, at_a_time))
  log, ids = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), by_position)
  return log, ids

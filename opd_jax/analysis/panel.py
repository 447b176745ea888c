"""A fixed set of held-out problems that any student of a run can be measured on.

    panel = Panel(config)
    measured = panel.measure(params)      the student answers once, then student and teacher are run over the answers

Problems and keys are the same for every student (common random numbers), so that two measurements differ by the
weights alone. A panel compiles two programs, a rollout and a measurement, and more only for `continuation.py`.

Dimensions: N problems, R of them at a time, P prompt width, H horizon.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from opd_jax import config as configs
from opd_jax import inputs, tasks
from opd_jax.analysis.measurements import Measurements, truth
from opd_jax.config import Config
from opd_jax.data import pipeline
from opd_jax.data import problems as problems_of
from opd_jax.errors import InputError
from opd_jax.models import decoder, hf, model_sharding
from opd_jax.models import frozen as teacher
from opd_jax.models.decoder_config import DecoderConfig
from opd_jax.objectives import fused
from opd_jax.objectives.divergence import FrozenInputs, Objective
from opd_jax.objectives.forward import Forward
from opd_jax.rollout.generate import GeneratorConfig, decode, prompt_ends
from opd_jax.rollout.sample import Sampling
from opd_jax.runtime import hosts, keys
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import ProgramCache
from opd_jax.tasks import chain
from opd_jax.types import Batch, Params, Rollout

AT_A_TIME = 128  # problems; what bounds the memory


class Panel:
  """Held-out problems of the built-in task in `data.path`, the teacher, and the programs that measure a student.

  Attributes:
    inputs: what the config names.
    prompts, answers: of the N problems, as text.
    ids: the prompts' token ids.
    teacher: the teacher's parameters, in the compute type whatever `teacher_precision` says, since it also writes.
    student_generator, teacher_generator: how each writes, at temperature 1.

  Raises:
    InputError: no built-in task, several teachers, or a tokenizer that does not know the task's symbols.
  """

  def __init__(self, config: Config, problems: int = 256, program_cache: ProgramCache | None = None):
    """Loads the problems and the teacher.

    Args:
      problems: how many; the first held-out ones.
      program_cache: compiled programs, which panels of one process can share.
    """
    self.program_cache = {} if program_cache is None else program_cache
    i = self.inputs = inputs.load(config)
    (model, *others), layout = i.teachers, f"teacher:{config.mesh.teacher}"
    path, *more = configs.data_paths(config)
    if not path.startswith(configs.TASK) or more or others:
      raise InputError(
        f"A panel reads one teacher on a built-in task; config.data.path is {path!r}, and config.teachers names "
        f"{len(config.teachers)}."
      )
    task = tasks.generator(path.removeprefix(configs.TASK))
    if not isinstance(task, chain.Chain):
      raise InputError(f"A panel asks the task what is right after each token, and {path} cannot tell.")
    self.task = task
    self.symbols: dict[str, int] = i.tokenizer.get_vocab()
    if lost := [s for s in chain.SYMBOLS if s not in self.symbols]:
      raise InputError(f"The tokenizer of {config.student} has no token for {lost[0]!r}, a symbol of {path}.")
    generated = self.task.problems(problems, seed=0, held_out=True)
    held_out = problems_of.load(configs.override(config, {"eval.prompts": problems}), path, i.tokenizer, held_out=True)
    self.prompts = [p.prompt for p in generated]
    self.ids, self.answers = held_out.ids, held_out.answers
    self.horizon, self.width = config.horizon.max, pipeline.padded_len(self.ids)
    self.teacher = teacher.external(model.path, model.cfg, i.mesh, i.dtype, layout=layout)
    sampling = Sampling(i.sampling.stop_ids, i.sampling.pad_id, i.sampling.vocab, never=i.sampling.never)
    self.student_generator = dataclasses.replace(i.generator_config, sampling=sampling)
    self.teacher_generator = dataclasses.replace(self.student_generator, cfg=model.cfg)
    self.overlap_k = config.log.overlap_k
    # The reverse KL is measured whatever the objective.
    self._objective = Objective(i.sampling.vocab, kind="forward_kl", overlap_k=self.overlap_k)
    self._forward, self._teacher_layout = Forward(i.mesh, i.dtype, attention=i.attention), layout
    shards = meshes.row_shards(i.mesh)
    self.rows = -(-min(AT_A_TIME, problems) // shards) * shards
    self._key = keys.of_seed(config.seed, keys.Use.ANALYSIS)
    shapes = jax.eval_shape(lambda: decoder.init(i.student.cfg, jax.random.key(0)))
    self._abstract = meshes.abstract(shapes, meshes.shardings(i.mesh, shapes))
    self._compile_rollout(self.student_generator, self._abstract, self.width, self.horizon)
    self._measure = self._compile_measure()

  def measure(self, params: Params) -> Measurements:
    """Let the student answer every problem once, at temperature 1 and to full length, and measure the answers.

    Args:
      params: the student's, sharded as when it is trained.
    """
    rollout = self.student_rollout(params)
    oracle = truth(self.task, self.prompts, rollout.response, rollout.mask, self.symbols)  # pyright: ignore[reportArgumentType]: numpy
    parts = []
    for first, batch in self._batches(self.ids, self.width):
      to_devices = functools.partial(self._to_devices, first=first)
      rows, right = jax.tree.map(to_devices, (rollout, oracle.token))
      found = self._measure(params, self.teacher, batch, rows, right)
      parts.append(hosts.all_gather_to_host(found))
    found = {name: np.concatenate([part[name] for part in parts])[: len(self.ids)] for name in parts[0]}
    for name in ("student_right", "teacher_right"):
      found[name] = np.where(oracle.known, found[name], np.nan)
    return Measurements(
      response=rollout.response,  # pyright: ignore[reportArgumentType]: numpy
      mask=rollout.mask,  # pyright: ignore[reportArgumentType]: numpy
      correct=self.verify(rollout),
      known=oracle.known,
      right=oracle.right,
      decisive=oracle.decisive,
      off_path=oracle.off_path,
      **found,
    )

  def untrained(self) -> Params:
    """Load the student as the config names it."""
    model = self.inputs.student
    return hf.load(model.path, model.cfg, model_sharding.parameter_shardings(self.inputs.mesh, model.cfg))

  def student_rollout(self, params: Params) -> Rollout:
    """Roll out the student's answers, as host arrays [N, H]; always with the same key."""
    return self.rollout(self.student_generator, params, self.ids, self.width, self.horizon, self.horizon, 0)

  @functools.cached_property
  def teacher_rollout(self) -> Rollout:
    """The teacher's own answers, as host arrays [N, H]."""
    ids, horizon = self.ids, self.horizon
    return self.rollout(self.teacher_generator, self.teacher, ids, self.width, horizon, horizon, 1)

  def rollout(
    self,
    generator: GeneratorConfig,
    params: Params,
    ids: Sequence[Sequence[int]],
    width: int,
    horizon: int,
    limit: int,
    purpose: int,
  ) -> Rollout:
    """Roll out a model after each of these prompts, as host arrays [N, horizon].

    Args:
      width, horizon: static; one program is compiled for each pair.
      limit: tokens, at most `horizon`.
      purpose: sets the key apart from those of other purposes.
    """
    program, parts = self._compile_rollout(generator, params, width, horizon), []
    for first, batch in self._batches(ids, width):
      key = jax.random.fold_in(jax.random.fold_in(self._key, purpose), first)
      parts.append(hosts.all_gather_to_host(program(params, batch, key, np.int32(limit))))
    return jax.tree.map(lambda *a: np.concatenate(a)[: len(ids)], *parts)

  def verify(self, rollout: Rollout) -> Bool[np.ndarray, " N"]:
    """Verify every response with the task's verifier."""
    texts = decode(self.inputs.tokenizer, rollout.response, rollout.mask, self.student_generator.sampling.stop_ids)  # pyright: ignore[reportArgumentType]: numpy
    rows = zip(texts, self.answers, rollout.ended, prompt_ends(self.inputs.tokenizer, self.ids), strict=True)
    return np.array(
      [self.task.verify(text, answer, ended=bool(ended), prompt=end) for text, answer, ended, end in rows]
    )

  def _batches(self, ids: Sequence[Sequence[int]], width: int) -> Iterator[tuple[int, Batch]]:
    """Put R prompts at a time on the devices, with the number of the first; the last batch repeats its first prompt."""
    for first in range(0, len(ids), self.rows):
      part = list(ids[first : first + self.rows])
      padded = pipeline.pad(part + [part[0]] * (self.rows - len(part)), width, self.student_generator.sampling.pad_id)
      yield first, hosts.to_global(padded, meshes.rows(self.inputs.mesh))

  def _to_devices(self, a: np.ndarray, first: int) -> jax.Array:
    """Put R of the rows [N, ...], from `first` on, on the devices, filled up with the first of them."""
    part = a[first : first + self.rows]
    filled = np.concatenate([part, np.repeat(part[:1], self.rows - len(part), axis=0)])
    return hosts.to_global(filled, meshes.rows(self.inputs.mesh))

  def _compile_rollout(
    self, generator: GeneratorConfig, params: Params, width: int, horizon: int
  ) -> jax.stages.Compiled:
    laid_out = tuple((a.dtype, a.sharding) for a in jax.tree.leaves(params))
    key = ("analysis rollout", generator, self.rows, width, horizon, laid_out)
    if key not in self.program_cache:
      run = jax.jit(
        functools.partial(generator.rollout, response_len=horizon), out_shardings=meshes.rows(generator.mesh)
      )
      shapes = (meshes.abstract(params), self._prompt_shapes(width), *self._scalar_shapes())
      self.program_cache[key] = run.lower(*shapes).compile()
    return self.program_cache[key]

  def _compile_measure(self) -> jax.stages.Compiled:
    generator, rows = self.student_generator, meshes.rows(self.inputs.mesh)
    static = (self._forward, self._objective, (generator.cfg, self.teacher_generator.cfg), self._teacher_layout)
    key = (
      "analysis measure",
      static,
      generator,
      self.rows,
      self.width,
      self.horizon,
    )  # which settles how both models lie
    if key not in self.program_cache:
      batch = self._prompt_shapes(self.width)
      roll_out = functools.partial(generator.rollout, response_len=self.horizon)
      rollout = jax.eval_shape(roll_out, self._abstract, batch, *self._scalar_shapes())
      rollout, right = meshes.abstract((rollout, rollout.response), rows)
      run = jax.jit(functools.partial(measure_tokens, *static), out_shardings=rows)
      lowered = run.lower(self._abstract, meshes.abstract(self.teacher), batch, rollout, right)
      self.program_cache[key] = lowered.compile()
    return self.program_cache[key]

  def _prompt_shapes(self, width: int) -> Batch:
    shape, sharding = (self.rows, width), meshes.rows(self.inputs.mesh)
    return Batch(
      prompt=jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding),  # pyright: ignore[reportArgumentType]
      prompt_mask=jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=sharding),  # pyright: ignore[reportArgumentType]
    )

  def _scalar_shapes(self) -> tuple[Any, Any]:
    """The shapes of a key and of a limit."""
    sharding = meshes.replicated(self.inputs.mesh)
    key = jax.ShapeDtypeStruct((), self._key.dtype, sharding=sharding)
    return key, jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding)


def measure_tokens(
  forward: Forward,
  objective: Objective,
  cfgs: tuple[DecoderConfig, DecoderConfig],
  teacher_layout: str,
  params: Params,
  teacher: Params,
  batch: Batch,
  rollout: Rollout,
  right: Int[Array, "R H"],
) -> dict[str, Float[Array, "R H"]]:
  """Run both models over the answers, and compute the numbers of `Measurements`; 0 outside the mask.

  Args:
    cfgs: of the student and of the teacher.
    right: the token that would have been right at every position, which gives student_right and teacher_right.
  """
  of_student = forward(params, cfgs[0], batch, rollout)
  of_teacher = forward(teacher, cfgs[1], batch, rollout, teacher_layout)

  def token_stats(token: Int[Array, "R H"]) -> dict[str, Any]:
    return fused.token_stats(objective, of_student, FrozenInputs((of_teacher,), token, rollout.mask), mesh=forward.mesh)

  drawn, known = token_stats(rollout.response), token_stats(right)
  drawn["forward_kl"] = drawn.pop("divergence")
  return drawn | {"student_right": known["logprob"], "teacher_right": known["teacher_logprob"]}

"""A fixed set of held-out problems that any student of a run can be read on.

    panel = Panel(c)
    reading = panel.read(params)      the student answers once, then student and teacher read the answers

Problems and keys are the same for every student (common random numbers), so that two readings differ by the weights
alone. A panel compiles two programs, a rollout and a reading, and more only for `continuation.py`.

Dimensions: N problems, R of them at a time, P prompt width, H horizon.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from opd_jax import config as configs
from opd_jax import hosts, inputs, state, tasks, teacher
from opd_jax import mesh as meshes
from opd_jax.analysis.reading import Reading, truth
from opd_jax.config import Config
from opd_jax.data import pipeline
from opd_jax.data import problems as problems_of
from opd_jax.errors import InputError
from opd_jax.models import hf
from opd_jax.objectives import fused
from opd_jax.objectives.divergence import Objective
from opd_jax.objectives.loss import Loss
from opd_jax.programs import Kept
from opd_jax.recipes.distill import Distill
from opd_jax.rollout.sample import Sampling
from opd_jax.speaker import decode
from opd_jax.tasks import chain
from opd_jax.types import Batch, Params, Rollout

AT_A_TIME = 128  # problems; what bounds the memory
NOTHING = optax.identity()  # is trained here


class Panel:
  """Held-out problems of the built-in task in `data.path`, the teacher, and the compiled programs that read them.

  Attributes:
    inputs: what the config names.
    prompts, answers: of the N problems, as text.
    ids: of the prompts.
    teacher: its parameters, in the compute type whatever `teacher_precision` says, since it also writes.
    recipe: the student's side, at temperature 1; its loss names what is read.

  Raises:
    InputError: no built-in task, several teachers, or a tokenizer that does not know the task's symbols.
  """

  def __init__(self, c: Config, problems: int = 256, kept: Kept | None = None):
    """
    Args:
      problems: the first so many held-out ones.
      kept: compiled programs, which panels of one process can share.
    """
    self.kept = {} if kept is None else kept
    i = self.inputs = inputs.load(c)
    (model, *others), layout = i.teachers, f"teacher:{c.mesh.teacher}"
    if not c.data.path.startswith(configs.TASK) or others:
      raise InputError(
        f"A panel reads one teacher on a built-in task; config.data.path is {c.data.path!r}, and config.teachers names "
        f"{len(c.teachers)}."
      )
    task = tasks.generator(c.data.path.removeprefix(configs.TASK))
    if not isinstance(task, chain.Chain):
      raise InputError(f"A panel asks the task what is right after each token, and {c.data.path} cannot tell.")
    self.task = task
    self.symbols: dict[str, int] = i.tokenizer.get_vocab()
    if lost := [s for s in chain.SYMBOLS if s not in self.symbols]:
      raise InputError(f"The tokenizer of {c.student} has no token for {lost[0]!r}, a symbol of {c.data.path}.")
    made = self.task.problems(problems, seed=0, held_out=True)
    held_out = problems_of.read(
      configs.override(c, {"eval.prompts": problems}), c.data.path, i.tokenizer, held_out=True
    )
    self.prompts, self.ids, self.answers = [p.prompt for p in made], held_out.ids, held_out.answers
    self.horizon, self.width = c.horizon.max, pipeline.width(self.ids)
    self.teacher = teacher.external(model.path, model.cfg, i.mesh, i.dtype, layout=layout)
    vocab, k = i.sampling.vocab, c.log.overlap_k
    self.recipe = Distill(
      student=i.student.cfg,
      teachers=(model.cfg,),
      sampling=Sampling(i.sampling.stop_ids, i.sampling.pad_id, vocab),
      loss=Loss(Objective(vocab, kind="forward_kl", overlap_k=k)),  # the reverse KL is read whatever the objective
      optimizer=NOTHING,
      mesh=i.mesh,
      dtype=i.dtype,
      attention=i.attention,
      teacher_layout=layout,
      segments=inputs.segments(c, i.mesh),
    )
    shards = meshes.row_shards(i.mesh)
    self.rows = -(-min(AT_A_TIME, problems) // shards) * shards
    self._key = jax.random.fold_in(jax.random.key(c.seed), 2**23)  # apart from training, evaluation and probes
    self._abstract = state.abstract(c, i.student.cfg, i.mesh).params
    self._rollout(self.recipe, self._abstract, self.width, self.horizon)
    self._reader = self._compile_reader()

  def read(self, params: Params) -> Reading:
    """The student answers every problem once, at temperature 1 and to full length, and both models read the answers.

    Args:
      params: laid out as a trained state's: of `state.read`, `state.saved_params` or a trainer.
    """
    said = self.written(params)
    there = truth(self.task, self.prompts, said.response, said.mask, self.symbols)  # pyright: ignore[reportArgumentType]: numpy
    parts = []
    for first, batch in self._parts(self.ids, self.width):
      here = functools.partial(self._place, first=first)
      found = self._reader(params, self.teacher, batch, jax.tree.map(here, said), here(there.token))
      parts.append(hosts.whole(found))
    found = {name: np.concatenate([part[name] for part in parts])[: len(self.ids)] for name in parts[0]}
    for name in ("student_right", "teacher_right"):
      found[name] = np.where(there.known, found[name], np.nan)
    return Reading(
      response=said.response,  # pyright: ignore[reportArgumentType]: numpy
      mask=said.mask,  # pyright: ignore[reportArgumentType]: numpy
      correct=self.judge(said),
      known=there.known,
      right=there.right,
      decisive=there.decisive,
      off_path=there.off_path,
      **found,
    )

  def untrained(self) -> Params:
    """The student as the config names it."""
    model = self.inputs.student
    return hf.read(model.path, model.cfg, meshes.parameter_shardings(self.inputs.mesh, model.cfg))

  def written(self, params: Params) -> Rollout:
    """The student's answers, as host arrays [N, H]; always with the same key."""
    return self.speak(self.recipe, params, self.ids, self.width, self.horizon, self.horizon, 0)

  @functools.cached_property
  def taught(self) -> Rollout:
    """The teacher's own answers, as host arrays [N, H]."""
    own = dataclasses.replace(self.recipe, student=self.recipe.teachers[0])
    return self.speak(own, self.teacher, self.ids, self.width, self.horizon, self.horizon, 1)

  def speak(
    self,
    recipe: Distill,
    params: Params,
    ids: Sequence[Sequence[int]],
    width: int,
    horizon: int,
    limit: int,
    purpose: int,
  ) -> Rollout:
    """What `recipe.student` says after each of these prompts, as host arrays [N, horizon].

    Args:
      width, horizon: static; one program is compiled for each pair.
      limit: tokens, at most `horizon`.
      purpose: sets the key apart from those of other purposes.
    """
    program, parts = self._rollout(recipe, params, width, horizon), []
    for first, batch in self._parts(ids, width):
      key = jax.random.fold_in(jax.random.fold_in(self._key, purpose), first)
      parts.append(hosts.whole(program(params, batch, key, np.int32(limit))))
    return jax.tree.map(lambda *a: np.concatenate(a)[: len(ids)], *parts)

  def judge(self, said: Rollout) -> Bool[np.ndarray, "N"]:
    """Which responses the task's verifier accepts."""
    texts = decode(self.inputs.tokenizer, said.response, said.mask, self.recipe.sampling.stop_ids)  # pyright: ignore[reportArgumentType]: numpy
    return np.array([self.task.verify(*pair) for pair in zip(texts, self.answers, strict=True)])

  def _parts(self, ids: Sequence[Sequence[int]], width: int) -> Iterator[tuple[int, Batch]]:
    """R prompts at a time, on the devices, and the number of the first; the last part repeats its first prompt."""
    for first in range(0, len(ids), self.rows):
      part = list(ids[first : first + self.rows])
      padded = pipeline.pad(part + [part[0]] * (self.rows - len(part)), width, self.recipe.sampling.pad_id)
      yield first, hosts.place(padded, meshes.rows(self.inputs.mesh))

  def _place(self, a: np.ndarray, first: int) -> jax.Array:
    """Rows [N, ...] from `first` on as R rows on the devices, filled up with the first of them."""
    part = a[first : first + self.rows]
    filled = np.concatenate([part, np.repeat(part[:1], self.rows - len(part), axis=0)])
    return hosts.place(filled, meshes.rows(self.inputs.mesh))

  def _rollout(self, recipe: Distill, params: Params, width: int, horizon: int) -> jax.stages.Compiled:
    laid_out = tuple((a.dtype, a.sharding) for a in jax.tree.leaves(params))
    key = ("analysis rollout", recipe, self.rows, width, horizon, laid_out)
    if key not in self.kept:
      run = functools.partial(recipe.rollout, horizon=horizon)
      given = (self._like(params), self._prompts(width), *self._scalars())
      self.kept[key] = jax.jit(run, out_shardings=meshes.rows(recipe.mesh)).lower(*given).compile()
    return self.kept[key]

  def _compile_reader(self) -> jax.stages.Compiled:
    recipe, rows = self.recipe, meshes.rows(self.inputs.mesh)
    key = ("analysis reader", recipe, self.rows, self.width, self.horizon)  # which settles how both models lie
    if key not in self.kept:
      batch = self._prompts(self.width)
      said = jax.eval_shape(
        functools.partial(recipe.rollout, horizon=self.horizon), self._abstract, batch, *self._scalars()
      )
      placed = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows)
      said, right = jax.tree.map(placed, (said, said.response))
      run = jax.jit(functools.partial(read, recipe), out_shardings=rows)
      self.kept[key] = run.lower(self._abstract, self._like(self.teacher), batch, said, right).compile()
    return self.kept[key]

  def _like(self, params: Params) -> Params:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), params)

  def _prompts(self, width: int) -> Batch:
    one = lambda dtype: jax.ShapeDtypeStruct((self.rows, width), dtype, sharding=meshes.rows(self.inputs.mesh))
    return Batch(prompt=one(jnp.int32), prompt_mask=one(jnp.bool_))  # pyright: ignore[reportArgumentType]

  def _scalars(self) -> tuple[Any, Any]:
    """A key and a limit."""
    everywhere = meshes.replicated(self.inputs.mesh)
    one = lambda dtype: jax.ShapeDtypeStruct((), dtype, sharding=everywhere)
    return one(self._key.dtype), one(jnp.int32)


def read(
  recipe: Distill, params: Params, teacher: Params, batch: Batch, said: Rollout, right: Int[Array, "R H"]
) -> dict[str, Float[Array, "R H"]]:
  """What both models think of what was said, and of what would have been right there; 0 outside the mask."""
  student = recipe.read(params, recipe.student, batch, said)
  judge = recipe.read(teacher, recipe.teachers[0], batch, said, recipe.teacher_layout)
  objective = recipe.loss.objective
  of = lambda token: fused.read(objective, student, (judge,), token, said.mask, mesh=recipe.mesh)
  drawn, known = of(said.response), of(right)
  drawn["forward_kl"] = drawn.pop("divergence")
  return drawn | {"student_right": known["logprob"], "teacher_right": known["teacher_logprob"]}

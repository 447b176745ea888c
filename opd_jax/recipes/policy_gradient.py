"""Policy gradients of a verifier's reward: GRPO, RLOO, REINFORCE++, Dr. GRPO, DPPO (arXiv:2602.04879), DRPO (arXiv:2606.09821).

    for step k:
      y_1 .. y_n ~ student(. | x) for every prompt x, with log mu of each token when it is drawn      collect
      r_i = what the verifier gives y_i; a group x whose rollouts all earn the same is kept, left
        out, or replaced by another prompt's, up to `groups.rounds` rollout batches                     (groups.equal)
      A_i = r_i - mean of its group (advantage.kind)                                                    learn
      for u in 1 .. U disjoint mini-batches of whole groups (mini_batches):
        theta <- AdamW(theta, grad of the mean over tokens of the surrogate of A, pi_theta and mu)

mu is the probability that the sampler itself recorded, at its temperature and with its weights (rollout.precision); it is the
anchor of all updates on a rollout and never computed again. The surrogates are objectives/surrogates.py; of DRPO

    l = -A r + |A| mu (r - 1)^2 / (2 delta),  r = pi / mu

The published delta is 12.5, with which |pi - mu| <= 1 never reaches the boundary (configs/drpo.py).

A step is OPD's otherwise: a teacher's dense signal beside the reward is mixture.divergence, horizons go on top, and without
`mixture.divergence` no teacher is loaded where teacher is "".

Dimensions: p prompts, n rollouts of each, B = p n rows.
"""

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from opd_jax.data import pipeline
from opd_jax.errors import InputError
from opd_jax.objectives import advantage as advantages
from opd_jax.recipes.opd import OPD, Experience
from opd_jax.rewards.reward import RewardRecord
from opd_jax.rollout.segments import Segments
from opd_jax.runtime import hosts, keys
from opd_jax.runtime import mesh as meshes
from opd_jax.runtime.programs import StepShape
from opd_jax.runtime.run import Run
from opd_jax.training import lowering
from opd_jax.training.specs import Specs
from opd_jax.types import Batch, Credit, Rollout

KEYS = {
  "groups.equal": (
    "keep",
    "groups whose rollouts all earn the same: keep (with advantages of 0), drop (not in the mean), resample (other prompts)",
    "one of keep, drop, resample",
  ),
  "groups.rounds": (4, "resample: rollout batches of a step, at most", "[2, 1000]"),
}


class Rewarded(NamedTuple):
  """What the rollouts of a step earn, and what they have cost."""

  found: RewardRecord  # of this process's rows
  sampled: Float[np.ndarray, "rows columns"]  # of all rollouts of all processes, also those in whose place others stand
  discarded: int  # tokens of rollouts that are not learned from


class PolicyGradient(OPD):
  """The loop above; what differs from OPD is which groups are learned from."""

  def __init__(self, specs: Specs):
    super().__init__(specs)
    c = self.config
    if not c.mixture.reward:
      raise InputError("config.mixture.reward is 0.0, and the recipe 'policy_gradient' learns from it; set it above 0.")
    if self._resamples and c.rollout.ahead:
      raise InputError(
        "config.groups.equal is 'resample', which needs a step's verdicts before it ends; set config.rollout.ahead=False."
      )
    self._rewarded: dict[int, Rewarded] = {}  # by step, where rollouts are verified while they are collected

  @property
  def _resamples(self) -> bool:
    return self.config.groups.equal == "resample"

  # A step.

  def collect(self, run: Run, step: int) -> Experience:
    experience = super().collect(run, step)
    return self._resample(run, step, experience) if self._resamples else experience

  def _resample(self, run: Run, step: int, experience: Experience) -> Experience:
    """Replaces groups that teach nothing by those of other prompts that do, each on its own device."""
    experience, n = run.wait(experience), self.step.n
    found, generated = self._verify(run, experience), _tokens(experience.rollout)
    in_place = self._of_all_processes(run, found)
    sampled = [in_place]
    for again in range(1, self.config.groups.rounds):
      if advantages.teaches(in_place[:, 0], n).all():
        break
      prompts, index = self._prompts(run, step)
      key = run.key(keys.Use.RESAMPLED, step * self.config.groups.rounds + again)
      params = self.step.behavior_params(run.state.params, run.frozen)
      rollout = run.wait(experience.programs["rollout"](params, prompts, key, np.int32(experience.limit)))
      other = experience._replace(prompts=prompts, rollout=rollout, index=index)
      of_others = self._verify(run, other)
      sampled.append(self._of_all_processes(run, of_others))
      generated += _tokens(rollout)
      teaches = (advantages.teaches(each.reward, n) for each in (found, of_others))
      source = replacements(*teaches, self._groups_of_a_device)
      here = _of_process(source, self._groups_of_a_device)
      found = found.replaced(of_others, _rows(here, n))
      in_place = self._of_all_processes(run, found)
      merged = experience.programs["merge"](
        (experience.prompts, experience.rollout), (prompts, rollout), run.to_devices(source)
      )
      index = np.where(here >= 0, index[np.maximum(here, 0)], experience.index)
      experience = experience._replace(prompts=merged[0], rollout=merged[1], index=index)
    self._rewarded[step] = Rewarded(found, np.concatenate(sampled), generated - _tokens(experience.rollout))
    return experience

  def _of_all_processes(self, run: Run, found: RewardRecord) -> Float[np.ndarray, "B columns"]:
    return hosts.all_gather_to_host(run.to_devices(found.columns(), self.step.n))

  @property
  def _groups_of_a_device(self) -> int:
    return self.config.batch // meshes.row_shards(self.specs.mesh)

  def _credit(self, run: Run, experience: Experience) -> tuple[Credit | None, dict[str, Any]]:
    rewarded = self._rewarded.pop(experience.step, None)
    if rewarded is None:
      return super()._credit(run, experience)
    credit, earned = self._credit_of(run, rewarded.found)
    n, sampled = self.step.n, rewarded.found.metrics(rewarded.sampled)
    failed = {name: sampled[name] for name in ("verifier_timeouts", "verifier_errors", "verified")}
    solved = rewarded.found.solved_of(rewarded.sampled).reshape(-1, n).sum(axis=1)
    return credit, earned | failed | {
      "reward_sampled": sampled["reward"],
      "groups_by_solve_rate_sampled": np.bincount(solved, minlength=n + 1).tolist(),
      "resampled": len(solved) - self.config.batch,
      "discarded_tokens": rewarded.discarded,
    }

  def _counted(self, found: RewardRecord) -> Bool[np.ndarray, " b"]:
    counted = super()._counted(found)
    if self.config.groups.equal == "keep":
      return counted
    return counted & np.repeat(advantages.teaches(found.reward, self.step.n), self.step.n)

  def _next_prompts(self, run: Run, step: int) -> tuple[Batch, Int[np.ndarray, " b"]]:
    batch, index = super()._next_prompts(run, step)
    if self._resamples:
      batch = pipeline.widen(batch, run.inputs.prompt_widths[-1], self.specs.sampling.pad_id)
    return batch, index

  # Programs.

  @property
  def static(self) -> Hashable:
    return super().static, self._resamples

  def _shape(self, run: Run, step: int, width: int) -> StepShape:
    """Returns the shape of a step; with `resample`, which prompts come next is not known, so that all have one width."""
    shape = super()._shape(run, step, width)
    return shape._replace(prompt=run.inputs.prompt_widths[-1]) if self._resamples else shape

  def lower(self, shape: StepShape) -> Iterator[tuple[str, jax.stages.Lowered]]:
    yield from super().lower(shape)
    if self._resamples and shape.kind == "step":
      rows, batch = meshes.rows(self.specs.mesh), self.abstract_prompts(shape)
      params = self.step.behavior_params(self.abstract_state().params, self.abstract_frozen())
      groups = batch, lowering.rollout_program(self.step, shape.width, params, batch)[1]
      source = jax.ShapeDtypeStruct((self.config.batch,), np.int32, sharding=rows)
      yield "merge", jax.jit(self._merge, out_shardings=rows).lower(groups, groups, source)

  def _merge(
    self, groups: tuple[Batch, Rollout], others: tuple[Batch, Rollout], source: Int[jax.Array, " p"]
  ) -> tuple[Batch, Rollout]:
    """Puts others in the place of groups, see `replacements`."""
    shards = Segments(shards=meshes.row_shards(self.specs.mesh))
    place = jnp.maximum(source, 0).reshape(shards.shards, -1)

    def choose(old: jax.Array, new: jax.Array) -> jax.Array:
      grouped = (self.config.batch, -1, *old.shape[1:])
      taken, old = shards.gather(new.reshape(grouped), place), old.reshape(grouped)
      chosen = jnp.where((source >= 0).reshape(-1, *[1] * (old.ndim - 1)), taken, old)
      return chosen.reshape(-1, *old.shape[2:])

    return jax.tree.map(choose, groups, others)


RECIPE = PolicyGradient


def replacements(
  teaches: Bool[np.ndarray, " p"], others: Bool[np.ndarray, " p"], of_a_device: int
) -> Int[np.ndarray, " p"]:
  """Chooses for every group that teaches nothing another one that does, of the same device; each is taken once.

  Args:
    teaches, others: of the groups, and of those that may take their places.
    of_a_device: groups of a device, which are neighbours.

  Returns:
    For every group the number of the one that takes its place, counted on its device, or -1.
  """
  source = np.full((len(teaches) // of_a_device, of_a_device), -1, np.int32)
  for row, old, new in zip(source, teaches.reshape(-1, of_a_device), others.reshape(-1, of_a_device), strict=True):
    taken = np.flatnonzero(new)[: np.count_nonzero(~old)]
    row[np.flatnonzero(~old)[: len(taken)]] = taken
  return source.reshape(-1)


def _of_process(source: Int[np.ndarray, " b"], of_a_device: int) -> Int[np.ndarray, " b"]:
  """Counts the groups of `replacements` over all of this process's devices."""
  first = np.arange(len(source)) // of_a_device * of_a_device
  return np.where(source >= 0, first + source, -1)


def _rows(groups: Int[np.ndarray, " b"], n: int) -> Int[np.ndarray, " b_n"]:
  """Lists the n rows of every group, or -1 for each of them."""
  return np.where(groups[:, None] >= 0, groups[:, None] * n + np.arange(n), -1).reshape(-1)


def _tokens(rollout: Rollout) -> int:
  """Counts the generated tokens of all processes; waits for the rollout."""
  return int(jnp.sum(rollout.mask, dtype=jnp.int32))

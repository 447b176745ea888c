"""Model FLOPs of a run, for the tokens that it really generated.

Counted as models/roofline.py counts, but with every row as long as it was. Of a step of p prompts, B rows and n
generated tokens, with P tokens of prompt as compiled:

    rollout   p P + n - B tokens read by the generator, logits of n; none where the responses are data
    update    p P + n - B tokens read by the student, forward and backward (3 times forward; with an adapter one
              product of each weight less), and by every teacher once
    probe     a rollout and an update of the rows that are probed, with no way back but once through the head

The last token of a row is read by nobody. A token at position i of the response, from 0, sees P + i + 1; within a
position bin tokens count as evenly spread. Probes of steps that were not logged are not counted, nor what a student
generates in conversations before its last reply, nor an adapter's own matrices; a teacher with prompts of its own
counts as if they were as wide as the student's. Padding of responses and rematerialisation are left out: this is what
the method needs, not what a program does.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from opd_jax.config import INITIAL
from opd_jax.errors import InputError
from opd_jax.reports.runs import Run


class _TokenCounts(NamedTuple):
  """Counts of the prompts, rows and tokens that a step or a probe computes on."""

  prompts: int
  rows: int
  tokens: int
  pairs: float  # pairs of a token of the response that is computed on and one that it attends to


def cumulative(run: Run) -> tuple[list[int], list[float]]:
  """List step 0 and the logged steps, and the FLOPs up to and including each.

  A step that was not logged cost what the next logged one did.
  """
  models = _Models.from_run(run)
  steps, totals = [0], [0.0]
  tokens = 0
  for record in run.train:
    counts = _step_counts(run, record, models.prompt)
    steps.append(record["step"])
    new = steps[-1] - steps[-2]
    totals.append(totals[-1] + new * models.step(counts))
    if record.get("agreement"):
      totals[-1] += models.probe(_probe_counts(run, record["tokens"] - tokens - new * counts.tokens, models.prompt))
    tokens = record["tokens"]
  return steps, totals


def _step_counts(run: Run, record: dict[str, Any], P: int) -> _TokenCounts:
  prompts = run.config["batch"]
  rows = prompts * run.config["rollouts_per_prompt"]
  count = np.array(record["by_position"]["count"], float)
  edges = np.array(record["by_position"]["edges"], float)
  ends = np.clip(record["limit"], edges[:-1], edges[1:])
  tokens = int(count.sum())
  pairs = np.sum(count * (P + (edges[:-1] + ends + 1) / 2))
  return _TokenCounts(prompts, rows, tokens, float(pairs) - rows * P - tokens)


def _probe_counts(run: Run, tokens: int, P: int) -> _TokenCounts:
  """Count a probe's tokens as if all its rows were equally long: its record has no positions."""
  prompts = min(run.config["horizon.probes"], run.config["batch"])
  rows = prompts * run.config["rollouts_per_prompt"]
  length = tokens / rows
  return _TokenCounts(prompts, rows, tokens, rows * ((length - 1) * P + (length - 1) * length / 2))


class _Models(NamedTuple):
  """The models that a step runs, as configs of models/decoder.py."""

  student: Any
  frozen: tuple[Any, ...]  # teachers, and the initial student where the loss has a term for it
  vocab: int
  prompt: int  # P, tokens
  updates: int  # per rollout
  behavior: Any  # None: data
  adapter: bool

  @classmethod
  def from_run(cls, run: Run) -> "_Models":
    c = run.config
    student = _config(c["student"])

    def path_of(name: str) -> str:
      return c["student"] if name == INITIAL else name

    teachers = [_config(path_of(name)) for name in c.get("teachers") or filter(None, [c["teacher"]])]
    own = [c.get("teacher_update.kind") == "mix", bool(c.get("mixture.initial"))]
    frozen = (*teachers, *[student] * sum(own))
    vocab = min(m.vocab for m in (student, *frozen))
    behavior = {"student": student, "teacher": next(iter(teachers), None), "data": None}[c.get("rollout.by", "student")]
    updates, adapter = c.get("updates_per_rollout", 1), bool(c.get("lora.rank") or c.get("lora.path"))
    return cls(student, frozen, vocab, _prompt_width(run), updates, behavior, adapter)

  def step(self, counts: _TokenCounts) -> float:
    from opd_jax.models import roofline

    update = 3 * self._forward(self.student, counts.prompts, counts) + sum(
      self._forward(m, counts.prompts, counts) for m in self.frozen
    )
    if self.adapter:
      tokens = counts.prompts * self.prompt + counts.tokens - counts.rows
      update -= roofline.layer_flops(self.student, tokens, 0) + roofline.head_flops(
        self.student, counts.tokens, self.vocab
      )
    generation = self._forward(self.behavior, counts.prompts, counts) if self.behavior else 0
    return generation + self.updates * update

  def probe(self, counts: _TokenCounts) -> float:
    from opd_jax.models import roofline

    forward = sum(self._forward(m, counts.prompts, counts) for m in (self.student, *self.frozen))
    back = roofline.head_flops(self.student, counts.tokens, self.vocab)
    return self._forward(self.student, counts.prompts, counts) + forward + back

  def _forward(self, cfg: Any, prompts: int, counts: _TokenCounts) -> float:
    """Count the FLOPs of a forward pass over so many prompts and the responses of all rows."""
    from opd_jax.models import roofline  # with JAX

    tokens = prompts * self.prompt + counts.tokens - counts.rows
    pairs = prompts * roofline.causal_pairs(self.prompt) + counts.pairs
    return roofline.layer_flops(cfg, tokens, pairs) + roofline.head_flops(cfg, counts.tokens, self.vocab)


@functools.cache
def _config(name: str) -> Any:
  from opd_jax.models import hf, hf_config

  return hf_config.read(hf.resolve(name))


def _prompt_width(run: Run) -> int:
  """Find the widest prompt that was compiled for, in tokens."""
  widths = [p["prompt"] for p in run.info.get("programs", ()) if p["name"] in ("rollout", "update") and "prompt" in p]
  if not widths:
    raise InputError(f"{run.path / 'run.json'} names no program of a step with its prompt width: train again.")
  return max(widths)

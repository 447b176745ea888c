"""Model FLOPs of a run, for the tokens that it really generated.

Counted as benchmarks/roofline.py counts, but with every row as long as it was. Of a step of p prompts, B rows and n
generated tokens, with P tokens of prompt as compiled:

    rollout   p P + n - B tokens read by whoever speaks, logits of n; none where that is data
    update    B P + n - B tokens read by the student, forward and backward (3 times forward; with an adapter one product of
              each weight less), and by every teacher once
    probe     the same of the rows that are probed, without the backward pass, and once back through the head

The last token of a row is read by nobody. A token at position i of the response, from 0, sees P + i + 1; within a
position bin tokens count as evenly spread. Probes of steps that were not logged are not counted, nor what a student says in
conversations before its last reply, nor an adapter's own matrices; a teacher with prompts of its own counts as if they were
as wide as the student's. Padding of responses and rematerialisation are left out: this is what the method needs, not what a
program does.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from opd_jax.config import INITIAL
from opd_jax.errors import InputError
from opd_jax.reports.runs import Run


class _Said(NamedTuple):
  """What the rows of a step or of a probe said."""

  prompts: int
  rows: int
  tokens: int
  seen: float  # pairs of a token of the response that is read and one that it sees


def cumulative(run: Run) -> tuple[list[int], list[float]]:
  """Step 0 and the logged steps, and FLOPs up to and including each.

  A step that was not logged cost what the next logged one did.
  """
  models = _Models.of(run)
  steps, totals = [0], [0.0]
  tokens = 0
  for record in run.train:
    said = _step(run, record, models.prompt)
    steps.append(record["step"])
    new = steps[-1] - steps[-2]
    totals.append(totals[-1] + new * models.step(said))
    if record.get("agreement"):
      totals[-1] += models.probe(_probe(run, record["tokens"] - tokens - new * said.tokens, models.prompt))
    tokens = record["tokens"]
  return steps, totals


def _step(run: Run, record: dict[str, Any], P: int) -> _Said:
  prompts = run.config["batch"]
  rows = prompts * run.config["rollouts_per_prompt"]
  count = np.array(record["by_position"]["count"], float)
  edges = np.array(record["by_position"]["edges"], float)
  ends = np.clip(record["limit"], edges[:-1], edges[1:])
  tokens = int(count.sum())
  seen = np.sum(count * (P + (edges[:-1] + ends + 1) / 2))
  return _Said(prompts, rows, tokens, float(seen) - rows * P - tokens)


def _probe(run: Run, tokens: int, P: int) -> _Said:
  """As if all rows of the probe were equally long: it does not say where its tokens were."""
  prompts = min(run.config["horizon.probes"], run.config["batch"])
  rows = prompts * run.config["rollouts_per_prompt"]
  length = tokens / rows
  return _Said(prompts, rows, tokens, rows * ((length - 1) * P + (length - 1) * length / 2))


class _Models(NamedTuple):
  """Who reads; configs of models/decoder.py."""

  student: Any
  frozen: tuple[Any, ...]  # teachers, and the initial student where the loss has a term for it
  vocab: int
  prompt: int  # P, tokens
  updates: int  # per rollout
  speaker: Any  # None: data
  adapter: bool

  @classmethod
  def of(cls, run: Run) -> "_Models":
    c = run.config
    student = _config(c["student"])
    own = lambda name: c["student"] if name == INITIAL else name
    teachers = [_config(own(name)) for name in c.get("teachers") or [c["teacher"]]]
    frozen = (*teachers, *([student] if c.get("mixture.initial") else []))
    vocab = min(m.vocab for m in (student, *frozen))
    speaker = {"student": student, "teacher": teachers[0], "data": None}[c.get("rollout.by", "student")]
    updates, adapter = c.get("updates_per_rollout", 1), bool(c.get("lora.rank") or c.get("lora.path"))
    return cls(student, frozen, vocab, _prompt_width(run), updates, speaker, adapter)

  def step(self, said: _Said) -> float:
    from opd_jax.benchmarks import roofline

    update = 3 * self._read(self.student, said.rows, said) + sum(self._read(m, said.rows, said) for m in self.frozen)
    if self.adapter:
      read = said.rows * self.prompt + said.tokens - said.rows
      update -= roofline.layers(self.student, read, 0) + roofline.head(self.student, said.tokens, self.vocab)
    spoken = self._read(self.speaker, said.prompts, said) if self.speaker else 0
    return spoken + self.updates * update

  def probe(self, said: _Said) -> float:
    from opd_jax.benchmarks import roofline

    readings = sum(self._read(m, said.rows, said) for m in (self.student, *self.frozen))
    back = roofline.head(self.student, said.tokens, self.vocab)
    return self._read(self.student, said.prompts, said) + readings + back

  def _read(self, cfg: Any, prompts: int, said: _Said) -> float:
    """Forward: so many prompts, and the responses of all rows."""
    from opd_jax.benchmarks import roofline  # with JAX

    read = prompts * self.prompt + said.tokens - said.rows
    pairs = prompts * roofline.causal(self.prompt) + said.seen
    return roofline.layers(cfg, read, pairs) + roofline.head(cfg, said.tokens, self.vocab)


@functools.cache
def _config(name: str) -> Any:
  from opd_jax.models import hf

  return hf.read_config(hf.resolve(name))


def _prompt_width(run: Run) -> int:
  """The widest that was compiled."""
  widths = [p["prompt"] for p in run.info.get("programs", ()) if p["name"] in ("rollout", "update") and "prompt" in p]
  if not widths:
    raise InputError(f"{run.path / 'run.json'} names no program of a step with its prompt width: train again.")
  return max(widths)

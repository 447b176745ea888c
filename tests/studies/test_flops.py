"""FLOPs of a run against the roofline's counting."""

import pathlib
from typing import Any

import pytest

from opd_jax.errors import InputError
from opd_jax.models import hf, hf_config, roofline
from opd_jax.reports.runs import Run
from opd_jax.studies import flops
from opd_jax.tasks import chain

P, H, BATCH, ROLLOUTS = 16, 24, 4, 2


def run(*records, **config) -> Run:
  """A run whose rows have H tokens each."""
  count = [8 * BATCH * ROLLOUTS] * 3 + [0]
  tokens = sum(count)
  base = {"step": 1, "tokens": tokens, "limit": H, "by_position": {"edges": [0, 8, 16, 24, 32], "count": count}}
  saved = {"student": "builtin:student", "teacher": "builtin:teacher", "batch": BATCH, "rollouts_per_prompt": ROLLOUTS}
  info = {"programs": [{"name": "rollout", "prompt": P}, {"name": "evaluate", "prompt": 99}]}
  train = [base | {"tokens": tokens * r.get("step", 1)} | r for r in records or ({},)]
  return Run(pathlib.Path("w"), saved | {"updates_per_rollout": 1} | config, info, train, [], [])


def models() -> list[Any]:
  """The configs of student and teacher."""
  return [hf_config.read(hf.resolve(f"builtin:{name}")) for name in ("student", "teacher")]


def total(measured: Run) -> float:
  """The FLOPs of a run."""
  return flops.cumulative(measured)[1][-1]


def rollout(model: Any, prompts: int) -> float:
  """The roofline's FLOPs of a rollout."""
  return sum(work.flops for work in roofline.rollout(model, prompts, ROLLOUTS, P, H, vocab=vocab(), itemsize=4))


def update(student: Any, frozen: tuple[Any, ...], prompts: int) -> float:
  """The roofline's FLOPs of an update."""
  return roofline.update(student, frozen, prompts, ROLLOUTS, P, H, vocab=vocab(), itemsize=4).flops


def vocab() -> int:
  """The entries that all models have."""
  return min(model.vocab for model in models())


class TestFlops:
  def test_of_full_rows_are_the_rooflines(self):
    student, teacher = models()
    rolled_out = rollout(student, BATCH)
    assert total(run()) == pytest.approx(rolled_out + update(student, (teacher,), BATCH))
    alone = run(teacher="")
    assert total(alone) == pytest.approx(rolled_out + update(student, (), BATCH))
    both = update(student, (teacher, student), BATCH)
    assert total(run(**{"mixture.initial": 0.1, "updates_per_rollout": 2})) == pytest.approx(rolled_out + 2 * both)

  def test_are_of_the_realised_tokens(self):
    half = [4 * BATCH * ROLLOUTS] * 3 + [0]
    short = run({"by_position": {"edges": [0, 8, 16, 24, 32], "count": half}})
    assert 0.5 < total(short) / total(run()) < 0.75  # prompts are read all the same

  def test_steps_that_were_not_logged(self):
    every = run({"step": 1}, {"step": 2}, {"step": 3})
    steps, totals = flops.cumulative(every)
    assert steps == [0, 1, 2, 3]
    assert totals == pytest.approx([0, totals[1], 2 * totals[1], 3 * totals[1]])
    assert flops.cumulative(run({"step": 3}))[1][-1] == pytest.approx(totals[3])

  def test_of_a_probe_are_those_of_a_rollout_and_a_forward_pass(self):
    extra = 2 * ROLLOUTS * H  # two prompts
    tokens = BATCH * ROLLOUTS * H + extra
    probed = run({"tokens": tokens, "agreement": [0.5, 1.0]}, **{"horizon.probes": 2})
    student, teacher = models()
    alone, taught = (update(student, frozen, 2) for frozen in ((), (teacher,)))
    forward = alone / 3 + (taught - alone)  # of the student and of the teacher
    expected = rollout(student, 2) + forward + roofline.head_flops(student, extra, vocab())
    assert total(probed) - total(run()) == pytest.approx(expected)
    assert total(run({"tokens": tokens})) == total(run())

  def test_are_of_the_model_that_generates(self):
    student, teacher = models()
    by_student, by_teacher = rollout(student, BATCH), rollout(teacher, BATCH)
    assert total(run(**{"rollout.by": "teacher"})) - total(run()) == pytest.approx(by_teacher - by_student)
    assert total(run()) - total(run(**{"rollout.by": "data"})) == pytest.approx(by_student)

  def test_of_an_adapter_lack_a_product_of_each_weight(self):
    student, _ = models()
    rows = BATCH * ROLLOUTS
    read = BATCH * P + rows * (H - 1)
    saved = 2 * roofline.layer_parameters(student) * read + 2 * len(chain.SYMBOLS) * student.d_model * rows * H
    assert total(run()) - total(run(**{"lora.rank": 4})) == pytest.approx(saved)

  def test_prompt_width_is_needed(self):
    old = run()
    old.info["programs"].clear()
    with pytest.raises(InputError, match="prompt width"):
      flops.cumulative(old)

"""The sentence that a plan begins with, and its numbers."""

import importlib.metadata

import pytest

from opd_jax.planning import amounts, libtpu
from opd_jax.planning.verdict import verdict


def program(name="rollout", needs=2.9, fits=True, memory=True, failed=""):
  found = {"needs": needs, "fits": fits and memory, "memory": {"code": 1} if memory else None, "failed": failed}
  return {"name": name, "width": 512, **found}


def target(*programs, **changes):
  own = {"own": True, "steps": 900, "training_seconds": 900 * 12.0, "evaluation_chip_hours": 0.0}
  stage = {"programs": programs, "estimate": {"seconds": 20.0}}
  shape = {"name": "v5e:2x4", "chips": 8, "devices": 8, "capacity": 10, "widths": 1}
  return shape | {"stages": [stage], "runs": [own]} | changes


@pytest.mark.parametrize(
  ("found", "fits", "sentence"),
  [
    (target(program(), program("update", 1.0)), True, "fits: 29% of each of 8 chips, about 12 s a step, 3 h in all"),
    (target(program(), devices=16), True, "fits: 29% of each of 16 devices, about 12 s a step, 3 h in all"),
    (target(program(needs=0.01), runs=[]), True, "fits: <1% of each of 8 chips, about 20 s for its longest step"),
    (
      target(program(), widths=7, chips=1, devices=1),
      True,
      "fits: 29% of the chip's memory, about 12 s a step, 3 h in all (1 of 7 stages were compiled)",
    ),
    (
      target(program(), program("update", 13.0, fits=False, failed="RESOURCE_EXHAUSTED")),
      False,
      "does not fit: update at 512 tokens needs 130% of each of 8 chips; below is what would make it fit",
    ),
    (
      target(program(), program("update", memory=False, failed="INTERNAL")),
      None,
      "is not known to fit: 1 of 2 programs were not compiled",
    ),
  ],
)
def test_the_verdict_is_one_sentence(found, fits, sentence):
  judged = verdict(found)
  assert (judged["fits"], judged["sentence"]) == (fits, f"v5e:2x4 {sentence}")
  assert bool(judged["failed"]) == (fits is None), "what is too large is no failure of the compiler"


@pytest.mark.parametrize("x", [1e-9, 3e-4, 0.004, 0.4])
def test_no_number_above_zero_is_shown_as_zero(x):
  for text in (
    *(amounts.format_fixed(x, decimals) for decimals in (0, 1, 2)),
    amounts.format_gib(x * 2**30),
    amounts.format_seconds(x),
    amounts.format_number(x),
    amounts.spoken_seconds(x),
    amounts.format_parameters(x * 1e6).removesuffix("M"),
  ):
    assert float(text.split()[0]) > 0
  assert amounts.format_share(x / 100) == "<1%"


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (amounts.format_fixed(0.0, 2), "0.00"),
    (amounts.format_fixed(1234.5, 0), "1,234"),
    (amounts.format_gib(3 * 2**30), "3.00"),
    (amounts.format_share(0.0), "0%"),
    (amounts.format_parameters(8.2e9), "8.20B"),
    (amounts.spoken_seconds(119), "119 s"),
    (amounts.spoken_seconds(150), "2.5 min"),
    (amounts.spoken_seconds(10800), "3 h"),
  ],
)
def test_other_numbers_are_rounded(text, expected):
  assert text == expected


def test_another_libtpu_than_jax_was_made_with_is_told(monkeypatch):
  pins = ['libtpu==0.0.42.*; extra == "tpu"', "numpy>=2.0", 'libtpu>=9; extra == "other"']
  monkeypatch.setattr(importlib.metadata, "requires", lambda name: pins)
  for installed, told in (("0.0.42.1", False), ("0.0.43", True), ("0.0.42.dev20260101", False)):
    monkeypatch.setattr(importlib.metadata, "version", lambda name, v=installed: v if name == "libtpu" else "0.10.2")
    assert bool(libtpu.mismatch()) == told, installed
  monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1" if name == "libtpu" else "0.10.2")
  assert libtpu.mismatch().startswith("libtpu 0.1 is installed, and jax 0.10.2 was made with libtpu==0.0.42.*")


def test_without_libtpu_nothing_is_told(monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "version", missing)
  assert (libtpu.version(), libtpu.mismatch()) == (None, "")

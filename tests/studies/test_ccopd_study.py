"""The study of conversations: its arms can be meant, and its rules judge what was measured."""

import json

import pytest

from opd_jax import checks
from opd_jax.studies.ccopd import arms, claims, sections
from opd_jax.studies.results import Results
from opd_jax.studies.run import digest
from opd_jax.studies.verdicts import MISSING, NOT_SUPPORTED, SUPPORTED, decide

SEEDS = (20, 21, 22, 23, 24)
NAMES = [arm.name for arm in arms.ARMS]


def test_every_arm_is_a_config_of_its_own():
  seen = set()
  for arm in arms.ARMS:
    c = arm.config(3)
    checks.check(c)
    assert c.batch * c.rollouts_per_prompt == 32
    seen.add(digest([c]))
  assert len(seen) == len(arms.ARMS)
  assert set(arms.SHORT) <= set(NAMES)


def asked(raw: float, seed: int, full: float = 0.95, **more) -> dict:
  noise = 0.002 * (seed % 3)
  form = lambda raw: {"full": full + noise, "concat": 0.9 + noise, "raw": raw + noise}
  return {
    "relay": form(raw),
    "times": form(raw - 0.05),
    "long": form(raw - 0.1),
    "anchored": {"wrong": 0.6, "kept": more.get("kept", 0.4) + noise},
    "pollution": {"solution": more.get("solution", 0.5) + noise, "hint": 0.8 + noise},
    "deviation": {"psi": more.get("psi", 0.4) + noise, "own_turn": more.get("own", 0.2)},
    "looks": more.get("looks", -0.5) + noise,
  }


# Everything that is claimed is so.
AS_CLAIMED = {
  "untrained": {"raw": 0.7, "solution": 0.3},
  "ccopd": {"raw": 0.93, "solution": 0.9, "psi": 0.05, "own": 0.01},
  "refresh": {"raw": 0.96},
  "topd-50": {"raw": 0.935},
  "any-turn": {"raw": 0.6},
}


@pytest.fixture
def judged(tmp_path):
  def judge(arms_: dict[str, dict]):
    for name, numbers in arms_.items():
      folder = tmp_path / "analysis" / f"asked-{name}"
      folder.mkdir(parents=True, exist_ok=True)
      for seed in SEEDS:
        (folder / f"seed{seed}.json").write_text(json.dumps(asked(seed=seed, **numbers)))
    results = Results(tmp_path, SEEDS)
    return {v.claim: v.status for v in decide(claims.CLAIMS, results)}, results

  return judge


def test_what_is_as_claimed_is_supported(judged):
  everything = {name: {"raw": 0.85} for name in ("untrained", *NAMES)} | AS_CLAIMED
  found, results = judged(everything)
  assert set(found.values()) == {SUPPORTED}, found
  assert all(s.figure is not None for s in sections.sections(results))


@pytest.mark.parametrize(
  ("arm", "numbers", "claim"),
  [
    ("untrained", {"raw": 0.94}, "drift is there"),
    ("untrained", {"raw": 0.7, "own": -0.1}, "drift is there"),
    ("ccopd", {"raw": 0.75}, "RAW rises"),
    ("ccopd", {"raw": 0.93, "full": 0.9}, "RAW rises"),
    ("ccopd", {"raw": 0.71}, "out of domain"),
    ("forward", {"raw": 0.95}, "better than the forward KL"),
    ("sft-teacher", {"raw": 0.95}, "better than SFT on the teacher's answers"),
    ("sft-gold", {"raw": 0.95}, "better than SFT on right answers"),
    ("reward", {"raw": 0.95}, "better than a reward alone"),
    ("other-teacher", {"raw": 0.95}, "better than a teacher of another seed"),
    ("any-turn", {"raw": 0.95}, "intermediate turns hurt"),
    ("ccopd", {"raw": 0.93, "solution": 0.35}, "unpolluted"),
    ("ccopd", {"raw": 0.93, "psi": 0.3}, "the deviation falls"),
    ("refresh", {"raw": 0.9}, "new conversations help"),
    ("topd-50", {"raw": 0.85}, "shorter answers do"),
  ],
)
def test_what_is_not_so_is_not_supported(arm, numbers, claim, judged):
  found, _ = judged({name: {"raw": 0.85} for name in ("untrained", *NAMES)} | AS_CLAIMED | {arm: numbers})
  assert found[claim] == NOT_SUPPORTED


def test_arms_that_were_not_run_are_said(judged):
  found, _ = judged({name: AS_CLAIMED[name] for name in ("untrained", "ccopd")})
  assert found["RAW rises"] == SUPPORTED
  assert found["better than the forward KL"] == MISSING

"""What is claimed of healing by short rollouts, and the rules by which the study decides it; written before any run of the study.

Intervals are over seeds, at 95%, paired by seed; with one seed there is none, and nothing that needs one is decided. Divergences are the reverse KL to
the original model over all tokens of the student's own answers to held-out instructions, at most 256 of each, in nats; ratios of them are between arms
of about equal FLOPs (the table has what was counted). What lies beyond a horizon are the positions behind the last one that was trained.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.evidence import known, lazily, less, points, times, verdict
from opd_jax.studies.healing.arms import LABELS, RATIOS, T
from opd_jax.studies.healing.measures import EDGES
from opd_jax.studies.results import Missing, Results, crossing
from opd_jax.studies.statistics import IntervalEstimate, interval, ratio
from opd_jax.studies.verdicts import Claim, Evidence, Verdict, above, all_of, at_most, below

AS_GOOD = 1.05  # times OPD's divergence
SOONER = 0.5  # of OPD's FLOPs
DRIFT = 1.25  # times what is left within the horizon


def measured(results: Results, arm: str, key: str = "kl") -> dict[int, float]:
  """Collect a number of an arm's students after the last step, by seed; see measures.py."""
  return {seed: record["steps"][-1][key] for seed, record in results.analysis(f"asked-{arm}").items()}


def healed(results: Results, arm: str, than: str = "opd") -> IntervalEstimate:
  """Estimate the divergence of an arm over that of another, paired by seed."""
  return ratio(measured(results, arm), measured(results, than))


def accuracy(results: Results, arm: str, how: str) -> dict[int, float]:
  """Collect the share of the word problems that are right, by seed."""
  return {seed: record["word_problems"][how] for seed, record in results.analysis(f"asked-{arm}").items()}


def left(results: Results, arm: str, first: int, end: int) -> dict[int, float]:
  """Compute which share of the divergence before training is left between two positions, by seed.

  Raises:
    Missing: no seed has tokens there, before and after.
  """
  before, found = results.analysis(f"asked-{UNTRAINED}"), {}
  for seed, record in results.analysis(f"asked-{arm}").items():
    if seed in before:
      now, then = (_mean(each["steps"][-1], first, end) for each in (record, before[seed]))
      if now is not None and then:
        found[seed] = now / then
  if not found:
    raise Missing(f"no answer of {arm} has tokens from {first} to {end}")
  return found


def _mean(step: dict[str, Any], first: int, end: int) -> float | None:
  bins = [i for i, (a, b) in enumerate(itertools.pairwise(EDGES)) if a >= first and b <= end and step["tokens"][i]]
  tokens = sum(step["tokens"][i] for i in bins)
  return sum(step["by_position"][i] * step["tokens"][i] for i in bins) / tokens if tokens else None


def flops_to(results: Results, arm: str, target: dict[int, float]) -> dict[int, float]:
  """Find the FLOPs by seed at which a run first has the target divergence, interpolated between its checkpoints; infinite where it has not.

  Raises:
    Missing: no run of the arm is finished and measured.
  """
  found = {}
  before = results.analysis(f"asked-{UNTRAINED}")
  for seed, record in results.analysis(f"asked-{arm}").items():
    if seed not in target or seed not in before:
      continue
    at, kl = divergence_by_flops(results, arm, seed, before[seed], record)
    found[seed] = crossing(at, -kl, -target[seed])
  if not found:
    raise Missing(f"{arm} has no seed in common with what it is compared with")
  return found


def divergence_by_flops(
  results: Results, arm: str, seed: int, before: dict[str, Any], record: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
  """The FLOPs and the divergence at the beginning and at every checkpoint of a run.

  Args:
    before, record: what was measured of the student before training, and of the run.
  """
  if seed not in results.seeds(arm):
    raise Missing(f"no run of {arm} with seed {seed} is finished")
  steps = [each["step"] for each in record["steps"]]
  kl = [before["steps"][0]["kl"], *(each["kl"] for each in record["steps"])]
  return results.flops_at(arm, seed, [0, *steps]), np.array(kl)


def _number(label: str, results: Results, arm: str, key: str = "kl") -> Callable[[], Evidence]:
  return lazily(Evidence, label, lambda: interval(measured(results, arm, key).values()))


def heals(results: Results) -> Verdict:
  found = less(measured(results, "opd"), measured(results, UNTRAINED))
  return verdict(
    below(found, 0),
    "divergence from the original model after training less before, nats a token",
    Evidence("OPD", found),
    *known(
      _number("before", results, UNTRAINED),
      _number("after", results, "opd"),
      _number("nats of the teacher's answers before", results, UNTRAINED, "nll"),
      _number("and after", results, "opd", "nll"),
      _number("likeliest tokens that agree before", results, UNTRAINED, "agreement"),
      _number("and after", results, "opd", "agreement"),
    ),
  )


def as_good(results: Results, arm: str, than: str = "opd") -> Verdict:
  found = healed(results, arm, than)
  return verdict(
    at_most(found, AS_GOOD),
    f"divergence over that of {LABELS[than]}, at about equal FLOPs",
    times(LABELS[arm], found),
    *known(
      lazily(times, "FLOPs", _flops, results, arm, than),
      lazily(times, "generated tokens", _tokens, results, arm, than),
      _number("nats of the teacher's answers", results, arm, "nll"),
    ),
  )


def _flops(results: Results, a: str, b: str) -> IntervalEstimate:
  return ratio(total_flops(results, a), total_flops(results, b))


def total_flops(results: Results, arm: str) -> dict[int, float]:
  """The FLOPs of an arm's whole runs, by seed."""
  return results.totals(arm, "flops")


def _tokens(results: Results, a: str, b: str) -> IntervalEstimate:
  return ratio(results.totals(a, "tokens"), results.totals(b, "tokens"))


def beyond_the_horizon(results: Results, arm: str, horizon: int) -> Verdict:
  within, beyond = left(results, arm, 0, horizon), left(results, arm, max(64, horizon), T)
  found = ratio(beyond, within)
  return verdict(
    at_most(found, DRIFT),
    f"share of the divergence that is left beyond {max(64, horizon)} tokens, over the share that is left within {horizon}",
    times("beyond over within", found),
    Evidence("left within", interval(within.values()), "score"),
    Evidence("left beyond", interval(beyond.values()), "score"),
    *known(lazily(Evidence, "OPD's, beyond", lambda: interval(left(results, "opd", max(64, horizon), T).values()))),
  )


def sooner(results: Results, arm: str) -> Verdict:
  target = measured(results, "opd")
  found = ratio(flops_to(results, arm, target), total_flops(results, "opd"))
  return verdict(
    at_most(found, SOONER),
    "FLOPs until the divergence is what OPD ends with, over OPD's",
    times(LABELS[arm], found),
    *known(
      *(
        lazily(times, LABELS[name], functools.partial(_sooner, results, name, target))
        for name in ("topd-10", "topd-25", "topd-50")
      )
    ),
  )


def _sooner(results: Results, arm: str, target: dict[int, float]) -> IntervalEstimate:
  return ratio(flops_to(results, arm, target), total_flops(results, "opd"))


def look_chooses_well(results: Results) -> Verdict:
  """Compare with the best of the fixed horizons, chosen by the mean over seeds."""
  fixed = {name: measured(results, name) for name in (f"topd-{each}" for each in RATIOS.values())}
  best = min(fixed, key=lambda name: interval(fixed[name].values()).mean)
  found = healed(results, "look", best)
  return verdict(
    at_most(found, AS_GOOD),
    f"divergence over that of the best fixed horizon, {LABELS[best]}",
    times("look", found),
    *known(lazily(times, "FLOPs", _flops, results, "look", best)),
  )


def better(results: Results, a: str, b: str) -> Verdict:
  found = healed(results, a, b)
  return verdict(
    below(found, 1),
    f"divergence over that of {LABELS[b]}",
    times(LABELS[a], found),
    *known(
      lazily(times, "FLOPs", _flops, results, a, b),
      _number(f"nats of the teacher's answers, {LABELS[a]}", results, a, "nll"),
      _number(f"and {LABELS[b]}", results, b, "nll"),
    ),
  )


def speaks_again(results: Results) -> Verdict:
  """Ask two things of the best-known arm: fewer repeats, and more endings."""
  repeated, ended = (
    less(measured(results, "opd", key), measured(results, UNTRAINED, key)) for key in ("repeated", "ended")
  )
  return verdict(
    all_of(below(repeated, 0), above(ended, 0)),
    "share of tokens that are repeated, and of answers that end, after training less before",
    points("repeated", repeated),
    points("ended", ended),
    *known(
      _number("whole answers before, tokens", results, UNTRAINED, "length"),
      _number("and after", results, "opd", "length"),
      *(
        lazily(points, f"word problems, {how}", functools.partial(_solved, results, how))
        for how in ("sampled", "greedy")
      ),
    ),
  )


def _solved(results: Results, how: str) -> IntervalEstimate:
  return less(accuracy(results, "opd", how), accuracy(results, UNTRAINED, how))


def _as_good(name: str, statement: str, arm: str) -> Claim:
  """A claim that an arm's divergence is OPD's, but for a twentieth."""
  decide = functools.partial(as_good, arm=arm)
  return Claim(name, statement, f"the divergence of {LABELS[arm]} is at most {AS_GOOD} times OPD's", decide)


CLAIMS: tuple[Claim, ...] = (
  Claim(
    "OPD heals",
    "a pruned model comes back to the original on its own words; comparisons mean little without it",
    "the divergence after training is below that before",
    heals,
  ),
  *(
    _as_good(
      f"{name}% of a rollout does",
      f"{name}% of T teach as much as full rollouts of as many FLOPs (arXiv:2605.31490)",
      f"topd-{name}",
    )
    for name in RATIOS.values()
  ),
  _as_good("a horizon that grows does", "POPD to T teaches as much (arXiv:2605.31490)", "popd"),
  _as_good("and so does one that grows to less", "POPD need not come to T (arXiv:2605.31490)", "popd-half"),
  Claim(
    "what is learned early holds late",
    "divergence falls beyond the trained horizon as it does within (arXiv:2605.31490)",
    f"with TOPD 10% the share that is left beyond 64 tokens is at most {DRIFT} times the share that is left within 26",
    functools.partial(beyond_the_horizon, arm="topd-10", horizon=26),
  ),
  Claim(
    "POPD is sooner",
    "a growing horizon needs a third of the cost (arXiv:2605.31490: up to 3 times faster)",
    f"POPD has OPD's last divergence with at most {SOONER} of OPD's FLOPs",
    functools.partial(sooner, arm="popd"),
  ),
  Claim(
    "look chooses well",
    "a horizon that is chosen by looking ahead is as good as the best fixed one (ours)",
    f"the divergence of look is at most {AS_GOOD} times that of the best fixed horizon",
    look_chooses_well,
  ),
  Claim(
    "own words are better than the teacher's",
    "on its own words a student learns to speak as it will (arXiv:2306.13649)",
    "the divergence of OPD is below that of SFT",
    functools.partial(better, a="opd", b="sft"),
  ),
  Claim(
    "reverse KL is better on own words",
    "what is minimised is what is measured (ours)",
    "the divergence of OPD is below that of forward KL",
    functools.partial(better, a="opd", b="forward"),
  ),
  Claim(
    "more than no teacher",
    "what is learned comes from the original model (ours, after arXiv:2608.31046)",
    "the divergence of OPD is below that of the null",
    functools.partial(better, a="opd", b="null"),
  ),
  Claim(
    "twice the steps at a quarter",
    "where there is time, short rollouts and more of them are better than long ones (ours)",
    "with twice the FLOPs the divergence of TOPD 25% is below OPD's",
    functools.partial(better, a="topd-25-long", b="opd"),
  ),
  Claim(
    "it speaks again",
    "the healed model repeats itself less and ends its answers (ours)",
    "with OPD fewer tokens are repeated and more answers end than before training",
    speaks_again,
  ),
)

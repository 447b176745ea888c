"""What is claimed of healing by short rollouts, and the rules by which the study decides it; written before any run of the study.

Intervals are over seeds, at 95%, paired by seed; with one seed there is none, and nothing that needs one is decided. Divergences are the reverse KL to
the original model over all tokens of the student's own answers to held-out instructions, at most 256 of each, in nats; two arms are compared where both
have spent the FLOPs of the one that spent less. What lies beyond a horizon are the positions behind the last one that was trained.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.evidence import known, lazily, less, points, times, verdict
from opd_jax.studies.healing.arms import LABELS, RATIOS, T
from opd_jax.studies.healing.curves import Axis, curves, flops_to, over
from opd_jax.studies.healing.measures import EDGES
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import IntervalEstimate, interval, ratio
from opd_jax.studies.verdicts import Claim, Evidence, Verdict, above, all_of, at_least, at_most, below

AS_GOOD = 1.1  # times the other arm's divergence
SOONER = 0.5  # of OPD's FLOPs
DRIFT = 1.25  # times what OPD leaves late over early
EARLY = 0.25  # of the FLOPs
FIXED = tuple(f"topd-{name}" for name in RATIOS.values())


def measured(results: Results, arm: str, key: str = "kl") -> dict[int, float]:
  """Collect a number of an arm's students after the last step, by seed; see measures.py."""
  return {seed: record["steps"][-1][key] for seed, record in results.analysis(f"asked-{arm}").items()}


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
  found = over(results, arm, than)
  of_answers = ratio(measured(results, arm, "nll"), measured(results, than, "nll"))
  return verdict(
    all_of(at_most(found, AS_GOOD), at_most(of_answers, AS_GOOD)),
    f"divergence on own answers, and nats of the teacher's, over those of {LABELS[than]}",
    times(f"divergence, {LABELS[arm]}", found),
    times("nats of the teacher's answers", of_answers),
    *_spent(results, arm, than),
    *known(lazily(times, "divergence at equal generated tokens", over, results, arm, than, axis="tokens")),
  )


def _spent(results: Results, a: str, b: str) -> list[Evidence]:
  """What the whole runs of an arm have cost, over another's."""

  def cost(axis: Axis) -> IntervalEstimate:
    return ratio(*({seed: curve.spent(axis) for seed, curve in curves(results, arm).items()} for arm in (a, b)))

  return known(lazily(times, "FLOPs of the runs", cost, "flops"), lazily(times, "generated tokens", cost, "tokens"))


def beyond_the_horizon(results: Results, arm: str, horizon: int) -> Verdict:
  first = max(64, horizon)

  def late_over_early(name: str) -> dict[int, float]:
    within, beyond = left(results, name, 0, horizon), left(results, name, first, T)
    return {seed: beyond[seed] / within[seed] for seed in within.keys() & beyond.keys()}

  found = ratio(late_over_early(arm), late_over_early("opd"))
  return verdict(
    at_most(found, DRIFT),
    f"share of the divergence that is left beyond {first} tokens over the share that is left within {horizon}, over the same of OPD",
    times(f"{LABELS[arm]} over OPD", found),
    *known(
      *(
        lazily(_share, f"left {where}, {LABELS[name]}", _left, results, name, *bounds)
        for name in (arm, "opd")
        for where, bounds in (("within", (0, horizon)), ("beyond", (first, T)))
      )
    ),
  )


def _share(label: str, estimate: IntervalEstimate) -> Evidence:
  return Evidence(label, estimate, "score")


def _left(results: Results, arm: str, first: int, end: int) -> IntervalEstimate:
  return interval(left(results, arm, first, end).values())


def sooner(results: Results, arm: str) -> Verdict:
  """Ask for the FLOPs to what OPD ends with; a run that never comes there takes at least all that it has spent."""
  target = measured(results, "opd")
  own, opd = flops_to(results, arm, target), {seed: curve.spent() for seed, curve in curves(results, "opd").items()}
  fixed = {name: ratio(own, flops_to(results, name, target)) for name in ("topd-10", "topd-25")}
  return verdict(
    all_of(at_most(ratio(own, opd), SOONER), *(at_most(found, 1) for found in fixed.values())),
    "FLOPs until the divergence is what OPD ends with, over those of others",
    times(f"{LABELS[arm]} over OPD", ratio(own, opd)),
    *(times(f"{LABELS[arm]} over {LABELS[name]}", found) for name, found in fixed.items()),
    *known(*(lazily(times, f"{LABELS[name]} over OPD", _to_opd, results, name, target, opd) for name in FIXED)),
  )


def _to_opd(results: Results, arm: str, target: dict[int, float], opd: dict[int, float]) -> IntervalEstimate:
  return ratio(flops_to(results, arm, target), opd)


def look_chooses_well(results: Results) -> Verdict:
  found = {name: over(results, "look", name) for name in FIXED}
  return verdict(
    all_of(*(at_most(each, AS_GOOD) for each in found.values())),
    "divergence over that of each fixed horizon",
    *(times(f"look over {LABELS[name]}", each) for name, each in found.items()),
    *_spent(results, "look", "opd"),
  )


def early_and_late(results: Results, arm: str) -> Verdict:
  """Ask whether the best horizon grows with the budget."""
  early, late = over(results, arm, share=EARLY), over(results, arm)
  return verdict(
    all_of(below(early, 1), at_least(late, 1)),
    "divergence over OPD's, at a quarter of the FLOPs and at all of them",
    times("early", early),
    times("late", late),
    *known(
      *(lazily(times, f"{LABELS[name]}, early", over, results, name, share=EARLY) for name in FIXED if name != arm)
    ),
  )


def goes_on(results: Results, arm: str) -> Verdict:
  """Compare a run's end with where half of its FLOPs were spent."""
  own = curves(results, arm)
  found = ratio(
    {seed: curve.at(curve.spent()) for seed, curve in own.items()},
    {seed: curve.at(curve.spent() / 2) for seed, curve in own.items()},
  )
  return verdict(
    below(found, 1),
    "divergence at the end over that at half of the FLOPs",
    times(LABELS[arm], found),
    *known(
      lazily(times, "at the end over OPD's, at twice the FLOPs", _last, results, arm, "opd"),
      lazily(times, "nats of the teacher's answers over OPD's", _last, results, arm, "opd", "nll"),
    ),
  )


def _last(results: Results, a: str, b: str, key: str = "kl") -> IntervalEstimate:
  return ratio(measured(results, a, key), measured(results, b, key))


def better(results: Results, a: str, b: str) -> Verdict:
  found = over(results, a, b)
  return verdict(
    below(found, 1),
    f"divergence over that of {LABELS[b]}",
    times(LABELS[a], found),
    *_spent(results, a, b),
    *known(
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
  """A claim that an arm's divergence is OPD's, but for a tenth, and that it finds the teacher's answers as likely."""
  rule = f"divergence and nats of the teacher's answers of {LABELS[arm]} are at most {AS_GOOD} times OPD's"
  return Claim(name, statement, rule, functools.partial(as_good, arm=arm))


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
    "it is not the number of updates",
    "short rollouts are no better than as many updates on few full ones would be (ours: TOPD 10% makes nearly three times OPD's updates)",
    f"divergence and nats of the teacher's answers of TOPD 10% are at most {AS_GOOD} times those of {LABELS['opd-few-rows']}",
    functools.partial(as_good, arm="topd-10", than="opd-few-rows"),
  ),
  Claim(
    "what is learned early holds late",
    "divergence falls beyond the trained horizon as it does within (arXiv:2605.31490)",
    f"of the share left beyond 64 tokens over the share left within 26, TOPD 10% has at most {DRIFT} times OPD's",
    functools.partial(beyond_the_horizon, arm="topd-10", horizon=26),
  ),
  Claim(
    "POPD is sooner",
    "a growing horizon needs a third of the cost (arXiv:2605.31490: up to 3 times faster)",
    f"POPD has OPD's last divergence with at most {SOONER} of OPD's FLOPs, and with no more than TOPD 10% and TOPD 25%",
    functools.partial(sooner, arm="popd"),
  ),
  Claim(
    "look chooses well",
    "a horizon that is chosen by looking ahead is as good as the best fixed one (ours)",
    f"the divergence of look is at most {AS_GOOD} times that of every fixed horizon",
    look_chooses_well,
  ),
  Claim(
    "the best horizon grows with the budget",
    "short rollouts are better while little is spent, full ones later (arXiv:2605.31490, which POPD is made for)",
    "at a quarter of the FLOPs the divergence of TOPD 10% is below OPD's, and at all of them at least OPD's",
    functools.partial(early_and_late, arm="topd-10"),
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
    "short rollouts go on teaching",
    "where there is time, more of them heal further (ours)",
    "the divergence of TOPD 25% at the end of twice the steps is below that at half of its FLOPs",
    functools.partial(goes_on, arm="topd-25-long"),
  ),
  Claim(
    "it speaks again",
    "the healed model repeats itself less and ends its answers (ours)",
    "with OPD fewer tokens are repeated and more answers end than before training",
    speaks_again,
  ),
)

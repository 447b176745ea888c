"""What is claimed of healing by short rollouts, and the rules by which the study decides it; written before any run of the study.

Intervals are over seeds, at 95%, paired by seed; with one seed there is none, and nothing that needs one is decided. The held-out instructions are the same for all
seeds, so that intervals say nothing of other instructions. Divergences are the reverse KL to the original model over the tokens of the student's own answers to
them, at most 256 of each, in nats; those of two arms are compared where both have spent the FLOPs of the one that spent less, and what is measured at the end of runs alone
is compared there. Divergence falls along an answer, and so a student that ends its answers has more of it by the token: claims of TOPD and POPD say beside it, in no rule, what it is with
every position weighted alike (added when two arms of one seed had been measured). Short rollouts make more updates of as many FLOPs: where it matters, they are compared with OPD of fewer rollouts a step as well.
"""

import functools
from collections.abc import Callable

from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.evidence import known, lazily, less, points, times, verdict
from opd_jax.studies.healing.arms import LABELS, RATIOS
from opd_jax.studies.healing.curves import Axis, curves, flops_to, from_position, over
from opd_jax.studies.results import Results
from opd_jax.studies.statistics import IntervalEstimate, interval, ratio
from opd_jax.studies.verdicts import Claim, Evidence, Verdict, all_of, at_least, at_most, below

AS_GOOD = 1.1  # times the other arm's divergence
SOONER = 0.5  # of OPD's FLOPs
AS_LIKELY = 1.25  # times the other arm's divergence on the original's answers
LATE = 64  # tokens, behind which TOPD 10% has learned nothing by itself
EARLY = 0.5  # of the FLOPs
FIXED = tuple(f"topd-{name}" for name in RATIOS.values())


def measured(results: Results, arm: str, key: str = "kl") -> dict[int, float]:
  """Collect a number of an arm's students after the last step, by seed; see measures.py."""
  return {seed: record["steps"][-1][key] for seed, record in results.analysis(f"asked-{arm}").items()}


def accuracy(results: Results, arm: str, how: str) -> dict[int, float]:
  """Collect the share of the word problems that are right, by seed."""
  return {seed: record["word_problems"][how] for seed, record in results.analysis(f"asked-{arm}").items()}


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
      _number("on the original's answers before", results, UNTRAINED, "forward_kl"),
      _number("and after", results, "opd", "forward_kl"),
      _number("likeliest tokens that agree before", results, UNTRAINED, "agreement"),
      _number("and after", results, "opd", "agreement"),
    ),
  )


def as_good(results: Results, arm: str) -> Verdict:
  """Compare with OPD, and with OPD of fewer rollouts a step."""
  rivals = ("opd", "opd-few-rows")
  own = {than: over(results, arm, than) for than in rivals}
  of_original = ratio(measured(results, arm, "forward_kl"), measured(results, "opd", "forward_kl"))
  return verdict(
    all_of(*(at_most(found, AS_GOOD) for found in own.values()), at_most(of_original, AS_LIKELY)),
    f"divergence of {LABELS[arm]} over others', on its own answers, and on the original's at the end of the runs",
    *(times(f"over {LABELS[than]}", found) for than, found in own.items()),
    times("on the original's answers, over OPD", of_original),
    *_spent(results, arm, "opd"),
    *known(
      lazily(times, "over OPD at equal generated tokens", over, results, arm, axis="tokens"),
      *(
        lazily(times, f"over {LABELS[than]}, all positions alike", over, results, arm, than, weights="positions")
        for than in rivals
      ),
    ),
  )


def _spent(results: Results, a: str, b: str) -> list[Evidence]:
  """What the whole runs of an arm have cost, over another's."""

  def cost(axis: Axis) -> IntervalEstimate:
    own, other = ({seed: c.spent(axis) for seed, c in curves(results, arm).items()} for arm in (a, b))
    return ratio(own, other)

  return known(lazily(times, "FLOPs of the runs", cost, "flops"), lazily(times, "generated tokens", cost, "tokens"))


def late_tokens(results: Results, arm: str) -> Verdict:
  """Compare what stands behind the tokens that were trained, with OPD and with the student before training."""
  found = over(results, arm, first=LATE)
  fall = less(_late(results, arm), _late(results, UNTRAINED))
  return verdict(
    all_of(at_most(found, AS_GOOD), below(fall, 0)),
    f"divergence beyond {LATE} tokens, over OPD's, and less before training",
    times(f"{LABELS[arm]} over OPD", found),
    Evidence("less before, nats", fall),
    *known(
      lazily(times, f"over {LABELS['opd-few-rows']}", over, results, arm, "opd-few-rows", first=LATE),
      *(lazily(times, f"{LABELS[name]} over OPD", over, results, name, first=LATE) for name in FIXED if name != arm),
    ),
  )


def _late(results: Results, arm: str) -> dict[int, float]:
  last = {s: from_position(record["steps"][-1], LATE) for s, record in results.analysis(f"asked-{arm}").items()}
  return {seed: kl for seed, kl in last.items() if kl is not None}


def sooner(results: Results, arm: str) -> Verdict:
  """Ask for the FLOPs to what OPD ends with; a run that never comes there takes at least all that it has spent."""
  target = measured(results, "opd")
  own, opd = flops_to(results, arm, target), {seed: curve.spent() for seed, curve in curves(results, "opd").items()}
  fixed = {name: ratio(own, flops_to(results, name, target)) for name in ("topd-10", "topd-25")}
  return verdict(
    all_of(at_most(ratio(own, opd), SOONER), *(at_most(found, 1) for found in fixed.values())),
    "FLOPs until the divergence is what OPD ends with, over those of others; a run that never comes there counts with all that it has spent",
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
  """Ask whether the best horizon grows with the budget, of as many updates."""
  early, late = (over(results, arm, "opd-few-rows", share=share) for share in (EARLY, 1.0))
  return verdict(
    all_of(below(early, 1), at_least(late, 1)),
    f"divergence of {LABELS[arm]} over that of {LABELS['opd-few-rows']}, at half of the FLOPs and at all of them",
    times("early", early),
    times("late", late),
    *known(
      lazily(times, "early, over OPD", over, results, arm, share=EARLY),
      lazily(times, "late, over OPD", over, results, arm),
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
      lazily(times, "at the end over OPD's, which spent less", _last, results, arm, "opd"),
      lazily(times, "on the original's answers over OPD's", _last, results, arm, "opd", "forward_kl"),
    ),
  )


def _last(results: Results, a: str, b: str, key: str = "kl") -> IntervalEstimate:
  return ratio(measured(results, a, key), measured(results, b, key))


def better(results: Results, a: str, b: str, axis: Axis = "flops") -> Verdict:
  found = over(results, a, b, axis=axis)
  return verdict(
    below(found, 1),
    f"divergence over that of {LABELS[b]}, at equal {'FLOPs' if axis == 'flops' else 'generated tokens'}",
    times(LABELS[a], found),
    *_spent(results, a, b),
    *known(
      _number(f"on the original's answers, {LABELS[a]}", results, a, "forward_kl"),
      _number(f"and {LABELS[b]}", results, b, "forward_kl"),
    ),
  )


def speaks_again(results: Results) -> Verdict:
  """Ask whether OPD's answers repeat themselves and end more nearly as often as the original's."""
  nearer = {key: less(_apart(results, "opd", key), _apart(results, UNTRAINED, key)) for key in ("repeated", "ended")}
  return verdict(
    all_of(*(below(each, 0) for each in nearer.values())),
    "how far shares are from the original's, of tokens that are repeated and of answers that end, after training less before",
    *(points(key, each) for key, each in nearer.items()),
    *known(
      *(
        _number(f"{key}, {when}", results, arm, key)
        for key in ("repeated", "ended", "length")
        for when, arm in (("before", UNTRAINED), ("after", "opd"))
      ),
      *(
        lazily(points, f"word problems, {how}", functools.partial(_solved, results, how))
        for how in ("sampled", "greedy")
      ),
    ),
  )


def _apart(results: Results, arm: str, key: str) -> dict[int, float]:
  last = {seed: record["steps"][-1] for seed, record in results.analysis(f"asked-{arm}").items()}
  return {seed: abs(step[key] - step["original"][key]) for seed, step in last.items()}


def _solved(results: Results, how: str) -> IntervalEstimate:
  return less(accuracy(results, "opd", how), accuracy(results, UNTRAINED, how))


def _as_good(name: str, statement: str, arm: str) -> Claim:
  """A claim that an arm's divergence is OPD's, but for a tenth, and that it finds the original's answers about as likely."""
  rule = (
    f"the divergence of {LABELS[arm]} is at most {AS_GOOD} times that of OPD and of {LABELS['opd-few-rows']}, and on the original's answers at most "
    f"{AS_LIKELY} times OPD's"
  )
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
    "short rollouts are better than as many updates on few full ones (ours)",
    f"the divergence of TOPD 10% is below that of {LABELS['opd-few-rows']}",
    functools.partial(better, a="topd-10", b="opd-few-rows"),
  ),
  Claim(
    "what is learned early holds late",
    "divergence falls beyond the trained horizon too (arXiv:2605.31490)",
    f"beyond {LATE} tokens the divergence of TOPD 10% is at most {AS_GOOD} times OPD's, and below that before training",
    functools.partial(late_tokens, arm="topd-10"),
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
    f"at half of the FLOPs the divergence of TOPD 10% is below that of {LABELS['opd-few-rows']}, and at all of them at least that",
    functools.partial(early_and_late, arm="topd-10"),
  ),
  Claim(
    "own words are better than the teacher's",
    "on its own words a student learns to speak as it will (arXiv:2306.13649)",
    "at equal generated tokens the divergence of OPD is below that of SFT",
    functools.partial(better, a="opd", b="sft", axis="tokens"),
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
    "the healed model repeats itself and ends its answers as the original does (ours)",
    "with OPD the shares of tokens that are repeated, and of answers that end, are nearer to the original's than before training",
    speaks_again,
  ),
)

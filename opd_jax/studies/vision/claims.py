"""What is claimed of Vision-OPD, and the rules by which the study decides it; written before any run of the study.

Intervals are over seeds, at 95%, paired by seed. Accuracies are of 512 held-out questions after training: the mean of two answers to each at
temperature 1, and greedy answers; an answer is right as a whole or not at all. A rule about accuracies has to be met twice, by both. Where nothing else is said the
picture is whole and the box in it is red, as in training. The region gap is the accuracy on crops less that on whole pictures, of the same weights.
"""

import functools
from collections.abc import Callable

from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.evidence import POINT, both, known, lazily, lazily_both, less, points, times, verdict
from opd_jax.studies.results import How, Results
from opd_jax.studies.statistics import IntervalEstimate, interval, ratio
from opd_jax.studies.verdicts import Claim, Evidence, Verdict, above, all_of, at_least, at_most, below
from opd_jax.studies.vision.arms import LABELS

SKILLS = ("majority", "count")


def answered(results: Results, arm: str, how: str = "sampled", of: str = "marked") -> dict[int, float]:
  """Collect a number of what an arm's students answer, by seed; see measures.py.

  Args:
    how: sampled, greedy, or length.
    of: marked, unmarked, crop, majority or count.
  """
  return {seed: record[of][how] for seed, record in results.analysis(f"asked-{arm}").items()}


def difference(results: Results, a: str, b: str, how: How = "sampled", of: str = "marked") -> IntervalEstimate:
  """Estimate the accuracy of arm a less that of arm b, paired by seed; arguments as of `answered`."""
  return less(answered(results, a, how, of), answered(results, b, how, of))


def gain(results: Results, arm: str, how: How = "sampled", of: str = "marked") -> IntervalEstimate:
  """Estimate the accuracy of an arm less the same before training."""
  return difference(results, arm, UNTRAINED, how, of)


def region_gap(results: Results, arm: str, how: How = "sampled") -> dict[int, float]:
  """Compute the accuracy on crops less that on whole pictures, by seed."""
  whole = answered(results, arm, how)
  return {seed: crop - whole[seed] for seed, crop in answered(results, arm, how, "crop").items() if seed in whole}


def closed(results: Results, arm: str, how: How = "sampled") -> IntervalEstimate:
  """Estimate the region gap after training less the same before."""
  return less(region_gap(results, arm, how), region_gap(results, UNTRAINED, how))


def learns(results: Results) -> Verdict:
  found = both(gain, results, "ema")
  return verdict(
    found.decided(above, 0),
    "accuracy on whole pictures after training less before",
    *found.points(LABELS["ema"]),
    *known(*(e for arm in ("frozen", "expert", "sft", "grpo") for e in lazily_both(LABELS[arm], gain, results, arm))),
  )


def gap_closes(results: Results) -> Verdict:
  """Ask for a smaller gap by a better whole view: crops that are read worse would close it too."""
  found, whole = both(closed, results, "ema"), both(gain, results, "ema")
  return verdict(
    all_of(found.decided(below, 0), whole.decided(above, 0)),
    "region gap after training less before, and accuracy on whole pictures likewise",
    *found.points("gap"),
    *whole.points("whole"),
    *known(
      *lazily_both("crops", functools.partial(gain, of="crop"), results, "ema"),
      lazily(points, "gap before", _gap, results, UNTRAINED),
      lazily(points, "gap after", _gap, results, "ema"),
    ),
  )


def _gap(results: Results, arm: str) -> IntervalEstimate:
  return interval(region_gap(results, arm).values())


def better(results: Results, a: str, b: str) -> Verdict:
  found = both(difference, results, a, b)
  return verdict(
    found.decided(above, 0),
    "accuracy on whole pictures after training, paired",
    *found.points(f"{LABELS[a]} less {LABELS[b]}"),
    *known(
      *lazily_both(f"{LABELS[b]} less before training", gain, results, b),
      lazily(points, "without the red box", difference, results, a, b, of="unmarked"),
    ),
  )


def as_good(results: Results, a: str, b: str = "ema") -> Verdict:
  found = both(difference, results, a, b)
  return verdict(
    found.decided(at_least, -POINT),
    "accuracy on whole pictures after training, paired",
    *found.points(f"{LABELS[a]} less {LABELS[b]}"),
    *known(lazily(times, "generated tokens", _tokens, results, a, b)),
  )


def _tokens(results: Results, a: str, b: str) -> IntervalEstimate:
  return ratio(results.totals(a, "tokens"), results.totals(b, "tokens"))


def collapses(results: Results) -> Verdict:
  found = both(gain, results, "current")
  return verdict(
    found.decided(below, 0),
    "accuracy on whole pictures after training less before",
    *found.points(LABELS["current"]),
    *known(
      *lazily_both("on crops", functools.partial(gain, of="crop"), results, "current"),
      *lazily_both("less the moving average's", difference, results, "current", "ema"),
      lazily(Evidence, "tokens of an answer", _length, results, "current"),
    ),
  )


def _length(results: Results, arm: str) -> IntervalEstimate:
  return interval(answered(results, arm, "length").values())


def nothing_is_forgotten(results: Results) -> Verdict:
  found = {skill: both(gain, results, "ema", of=skill) for skill in SKILLS}
  return verdict(
    all_of(*(each.decided(at_least, -POINT) for each in found.values())),
    "accuracy on what is never trained, after training less before",
    *(evidence for skill, each in found.items() for evidence in each.points(skill)),
    *known(
      *(
        lazily(points, f"{LABELS[arm]}, {skill}", gain, results, arm, of=skill)
        for arm in ("frozen", "other-region", "sft", "grpo", "expert")
        for skill in SKILLS
      )
    ),
  )


def forgets_less(results: Results) -> Verdict:
  found = {skill: both(difference, results, "ema", "sft", of=skill) for skill in SKILLS}
  return verdict(
    all_of(*(each.decided(above, 0) for each in found.values())),
    "accuracy on what is never trained, paired",
    *(evidence for skill, each in found.items() for evidence in each.points(f"{skill}, Vision-OPD less SFT")),
    *known(*(lazily(points, f"SFT, {skill}, less before", gain, results, "sft", of=skill) for skill in SKILLS)),
  )


def without_the_box(results: Results) -> Verdict:
  found = both(gain, results, "ema", of="unmarked")
  return verdict(
    found.decided(above, 0),
    "accuracy on whole pictures without a red box, after training less before",
    *found.points("no box"),
    *known(*lazily_both("with the box", gain, results, "ema")),
  )


def keeps_its_length(results: Results) -> Verdict:
  found = ratio(answered(results, "ema", "length"), answered(results, UNTRAINED, "length"))
  return verdict(
    all_of(at_least(found, 0.95), at_most(found, 1.05)),
    "tokens of an answer after training over before",
    times("length", found),
    *known(
      *(lazily(Evidence, f"tokens, {LABELS[arm]}", _length, results, arm) for arm in ("ema", "current", "other-region"))
    ),
  )


Decide = Callable[[Results], Verdict]


def _better(name: str, statement: str, b: str, a: str = "ema") -> Claim:
  """A claim that arm a is above arm b."""
  decide: Decide = functools.partial(better, a=a, b=b)
  return Claim(name, statement, f"{LABELS[a]} is above {LABELS[b]} on whole pictures", decide)


def _as_good(name: str, statement: str, a: str) -> Claim:
  """A claim that an arm is not below Vision-OPD by more than a point."""
  decide: Decide = functools.partial(as_good, a=a)
  return Claim(name, statement, f"{LABELS[a]} less Vision-OPD is at least -1 point on whole pictures", decide)


CLAIMS: tuple[Claim, ...] = (
  Claim(
    "Vision-OPD learns",
    "a model that sees the crop teaches itself the whole picture (arXiv:2605.18740); comparisons mean little without it",
    "Vision-OPD is above the student before training on whole pictures",
    learns,
  ),
  Claim(
    "the region gap closes",
    "the whole picture comes nearer to the crop (arXiv:2605.18740)",
    "the gap is smaller than before training, and accuracy on whole pictures higher",
    gap_closes,
  ),
  _better(
    "it is the region",
    "the teacher has to see the region that is asked about: another one does not do (ours: without this, the method's claim falls)",
    "other-region",
  ),
  _better("more than no teacher", "what is learned comes from the teacher (ours, after arXiv:2608.31046)", "null"),
  Claim(
    "a current teacher collapses",
    "with the current weights as teacher the student falls (arXiv:2605.18740: .51 in the place of .76)",
    "with a current teacher accuracy on whole pictures is below the same before training",
    collapses,
  ),
  _as_good(
    "a frozen teacher does",
    "the initial weights teach as well as their moving average (arXiv:2605.18740, one seed)",
    "frozen",
  ),
  _as_good("mixed logits do", "and so does a mix of initial and current logits (arXiv:2605.18740, one seed)", "mix"),
  _better(
    "JSD is better than forward KL", "the symmetric divergence teaches more (arXiv:2605.18740, one seed)", "forward"
  ),
  _better("JSD is better than reverse KL", "and more than the other direction (arXiv:2605.18740, one seed)", "reverse"),
  _better("better than SFT", "own answers teach more than the teacher's (arXiv:2605.18740)", "sft"),
  _better("better than GRPO with labels", "a crop teaches more than labels do (arXiv:2605.18740)", "grpo"),
  Claim(
    "no expert is needed",
    "a crop teaches as much as an expert who sees what the student sees (ours)",
    "Vision-OPD less OPD from the expert is at least -1 point on whole pictures",
    functools.partial(as_good, a="ema", b="expert"),
  ),
  _better(
    "the tower has to learn", "decoder and tower together learn more than the decoder alone (ours)", "frozen-tower"
  ),
  Claim(
    "it works without the red box",
    "what is learned with the box in red holds without it (ours: the box is part of what is trained on)",
    "without a red box Vision-OPD is above the student before training",
    without_the_box,
  ),
  Claim(
    "nothing is forgotten",
    "other skills stay (arXiv:2605.18740; an independent reproduction lost 5 points)",
    "majority and count are at least as before training less 1 point",
    nothing_is_forgotten,
  ),
  Claim(
    "it forgets less than SFT",
    "imitation of the teacher's answers forgets more (arXiv:2605.18740)",
    "on majority and on count Vision-OPD is above SFT",
    forgets_less,
  ),
  Claim(
    "answers keep their length",
    "answers grow neither longer nor shorter (ours, after the reproduction's long degenerate ones)",
    "the mean length is within 5% of the same before training",
    keeps_its_length,
  ),
  _as_good(
    "a quarter of a rollout does", "the first quarter of an answer teaches as much (arXiv:2605.31490)", "topd-25"
  ),
  _as_good("half of a rollout does", "its first half does (arXiv:2605.31490)", "topd-50"),
  _as_good("longer and longer rollouts do", "and so does a horizon that grows (arXiv:2605.31490)", "popd"),
)

"""What is claimed of d-OPSD, and the rules by which the study decides it; written before the study's seeds were run.

Intervals are over seeds, at 95%, paired by seed. A run's score is the mean accuracy of its last three evaluations, on 256 held-out
problems; where a claim compares scores its rule has to be met twice, by answers at temperature 1 and by greedy ones. The teacher check
asks the student before training to finish its own right answers, of which a share of positions is given: its accuracy there is over the
empty cells that are not given.
"""

import functools
from typing import Any

import numpy as np

from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.evidence import both, difference, gain, known, lazily, lazily_both, points, times, verdict
from opd_jax.studies.results import Missing, Results, crossing
from opd_jax.studies.statistics import IntervalEstimate, interval, ratio
from opd_jax.studies.verdicts import Claim, Evidence, Verdict, above, all_of, at_least


def checked(results: Results, share: float, key: str = "not_given") -> dict[int, float]:
  """Collect a number of the teacher check by seed; "not_given": accuracy at empty cells that are not given, "right": of whole answers."""
  found = results.analysis("teacher-check")
  return {seed: record["shares"][f"{share:g}"][key] for seed, record in found.items()}


def _check_gain(results: Results, share: float, key: str = "not_given") -> IntervalEstimate:
  given, nothing = checked(results, share, key), checked(results, 0.0, key)
  return interval(given[seed] - nothing[seed] for seed in given)


def the_future_helps(results: Results) -> Verdict:
  found = _check_gain(results, 0.25)
  return verdict(
    above(found, 0),
    "empty cells that are not given, a quarter given less none, before training",
    points("sudoku, a quarter given", found),
    *known(
      *(lazily(points, f"sudoku, {100 * rho:g}% given", _check_gain, results, rho) for rho in (0.1, 0.5)),
      lazily(points, "whole answers that are right, sudoku, a quarter given", _check_gain, results, 0.25, "right"),
    ),
  )


def learns(results: Results) -> Verdict:
  found, less = both(gain, results, "d-opsd"), both(difference, results, "d-opsd", "rho-0")
  return verdict(
    all_of(found.decided(above, 0), less.decided(above, 0)),
    "score less accuracy before training, and less the same with nothing revealed",
    *found.points("d-OPSD less before"),
    *less.points("d-OPSD less nothing revealed"),
    *known(
      *lazily_both("nothing revealed less before", gain, results, "rho-0"),
      *lazily_both("fine-tuning on unverified answers less before", gain, results, "unverified"),
      *lazily_both("fine-tuning on accepted answers less before", gain, results, "samples"),
    ),
  )


def better(results: Results, a: str, b: str, because: str) -> Verdict:
  """Compare two arms."""
  found = both(difference, results, a, b)
  return verdict(
    found.decided(above, 0),
    because,
    *found.points("sudoku"),
    *known(
      *(
        lazily_both("less the code's without its clip", difference, results, a, "code-unclipped") if b == "code" else ()
      )
    ),
  )


def not_worse(results: Results, arm: str, because: str) -> Verdict:
  found = both(difference, results, arm, "d-opsd")
  return verdict(
    found.decided(at_least, -0.01),
    because,
    *found.points("sudoku"),
    *known(
      *lazily_both("one step of six", difference, results, "topd-17", "d-opsd"),
      *lazily_both("three of six", difference, results, "topd-50", "d-opsd"),
      *lazily_both("ever more steps", difference, results, "popd", "d-opsd"),
    ),
  )


def a_quarter_is_best(results: Results) -> Verdict:
  others = {rho: both(difference, results, "d-opsd", f"rho-{100 * rho:g}") for rho in (0.1, 0.5)}
  nothing = both(difference, results, "d-opsd", "rho-0")
  return verdict(
    all_of(nothing.decided(above, 0), *(found.decided(at_least, -0.01) for found in others.values())),
    "score with a quarter revealed",
    *nothing.points("less nothing revealed"),
    *(evidence for rho, found in others.items() for evidence in found.points(f"less {100 * rho:g}%")),
  )


def collapses(results: Results) -> Verdict:
  """Compare the best three evaluations in a row with the last three, with the clip and without."""

  def fall(arm: str) -> dict[int, float]:
    best, last = results.best(arm), results.scores(arm)
    return {seed: best[seed] - last[seed] for seed in last}

  without, with_clip = fall("long"), fall("long-clip")
  seeds = sorted(without.keys() & with_clip.keys())
  if not seeds:
    raise Missing("long and long-clip have no seed in common")
  found = interval(without[seed] for seed in seeds)
  less = interval(without[seed] - with_clip[seed] for seed in seeds)
  return verdict(
    all_of(above(found, 0.05), above(less, 0)),
    "best three evaluations in a row less the last three, over twice the steps",
    points("without the clip", found),
    points("that less the same with it", less),
    *known(
      *lazily_both("score over twice the steps, with the clip less without", difference, results, "long-clip", "long"),
    ),
  )


def forwards_to(results: Results, arm: str, share: float = 0.5) -> dict[int, float]:
  """Count the sequences that go through a model until an arm has this share of what d-OPSD gains, between evaluations by a line.

  Backward passes count as two. By seed, of those whose d-OPSD gains anything; infinite where an arm does not come there.

  Raises:
    Missing: d-OPSD gains nothing in any seed.
  """
  start, scores = results.untrained("d-opsd"), results.scores("d-opsd")
  goals = {seed: start[seed] + share * (scores[seed] - start[seed]) for seed in scores if scores[seed] > start[seed]}
  if not goals:
    raise Missing("d-OPSD gains nothing, and so there is nothing to come to")
  found = {}
  for seed, run in results.runs(arm).items():
    if seed not in goals:
      continue
    target, compared = run.config["diffusion.target"], run.config["diffusion.compared"]
    teacher_reads_too = target == "teacher" or (target == "samples" and compared == "teacher")
    per_forward = 2 if teacher_reads_too else 3  # of an update, its backward passes included
    costs = [(r["step"], r["rollout_forwards"] + per_forward * r["update_forwards"]) for r in run.train]
    spent = [float(sum(cost for step, cost in costs if step <= e["step"])) for e in run.evals]
    found[seed] = crossing(np.array(spent), np.array([e["accuracy"] for e in run.evals]), goals[seed])
  return found


def cheaper(results: Results) -> Verdict:
  own, other = forwards_to(results, "d-opsd"), forwards_to(results, "reward")
  found = ratio(other, own)
  return verdict(
    above(found, 1),
    "sequences through a model to half of what d-OPSD gains, a policy gradient over d-OPSD",
    times("a policy gradient over d-OPSD", found),
    *known(
      lazily(times, "fine-tuning over d-OPSD", _cost_ratio, results, "samples"),
      lazily(times, "one try over d-OPSD", _cost_ratio, results, "one-try"),
    ),
  )


def _cost_ratio(results: Results, arm: str) -> IntervalEstimate:
  return ratio(forwards_to(results, arm), forwards_to(results, "d-opsd"))


def more_answers(results: Results) -> Verdict:
  """Ask whether more is solved at all, or what was solved sometimes is solved more often: pass@8 of sampled answers."""

  def passed(arm: str) -> dict[int, Any]:
    return {seed: record["pass"] for seed, record in results.analysis(f"asked-{arm}").items()}

  after, before = passed("d-opsd"), passed(UNTRAINED)
  if not (seeds := sorted(after.keys() & before.keys())):
    raise Missing("nothing was asked before and after")
  found = interval(after[seed]["8"] - before[seed]["8"] for seed in seeds)
  return verdict(
    above(found, 0),
    "pass@8 after d-OPSD less before, sampled",
    points("pass@8", found),
    points("pass@1", interval(after[seed]["1"] - before[seed]["1"] for seed in seeds)),
    Evidence("pass@8 before training", interval(before[seed]["8"] for seed in seeds), "score"),
    *known(lazily(points, "pass@8, fine-tuning less before", _passed, results, "samples")),
  )


def _passed(results: Results, arm: str) -> IntervalEstimate:
  after, before = (results.analysis(f"asked-{name}") for name in (arm, UNTRAINED))
  return interval(after[s]["pass"]["8"] - before[s]["pass"]["8"] for s in after if s in before)


CLAIMS = (
  Claim(
    "the future helps",
    "shown part of its own right answer, a model fills the rest better (arXiv:2606.18195); nothing else can hold without it",
    "before training, accuracy at empty cells that are not given is higher with a quarter given than with none",
    the_future_helps,
  ),
  Claim(
    "d-OPSD learns",
    "what is learned comes from what is shown (ours: nothing revealed is the null)",
    "d-OPSD is above the student before training, and above the same with nothing revealed",
    learns,
  ),
  *(
    Claim(
      name,
      statement,
      f"the score of d-OPSD is above that {rule}",
      functools.partial(better, a="d-opsd", b=b, because=because),
    )
    for b, name, statement, rule, because in (
      (
        "samples",
        "better than its own samples",
        "a shown future teaches more than the accepted answers themselves (the control that arXiv:2606.18195 lacks)",
        "of fine-tuning on the same accepted answers at all masks",
        "d-OPSD less fine-tuning",
      ),
      (
        "reward",
        "better than a policy gradient",
        "d-OPSD is above diffu-GRPO (arXiv:2606.18195), at equal rollouts (ours)",
        "of a policy gradient of the reward, at as many rollouts",
        "d-OPSD less a policy gradient",
      ),
      (
        "all-masks",
        "the step's own positions",
        "comparing where the next step decides is better than comparing everywhere (arXiv:2606.18195, not ablated there)",
        "of the same compared at all masks",
        "as many positions as the step commits less all masks",
      ),
      (
        "canvas",
        "within the block",
        "comparing within the block that is being filled (the released code) is better than on the whole canvas (arXiv:2606.18195 as written)",
        "of the same with K of the whole canvas",
        "K of the block less K of the canvas",
      ),
      (
        "student-k",
        "the teacher chooses where",
        "positions of which the teacher is surest are better than those that the student committed (arXiv:2606.18195)",
        "of the same compared where the student committed",
        "the teacher's positions less the student's",
      ),
      (
        "forward",
        "reverse KL is better",
        "the reverse KL is better than the forward one (arXiv:2606.18195)",
        "of the same with the forward KL",
        "reverse less forward",
      ),
      (
        "current",
        "a teacher that stays is better",
        "the teacher before training is better than one that moves (arXiv:2606.18195)",
        "of the same with the current student as its teacher",
        "the teacher before training less the current one",
      ),
      (
        "one-try",
        "several tries are better",
        "several tries of a prompt (eight in arXiv:2606.18195, four here) are better than one, which costs a quarter",
        "of one try of each prompt",
        "four tries less one",
      ),
      (
        "unfiltered",
        "verified answers are better",
        "accepted answers alone are better than all (arXiv:2606.18195)",
        "of d-OPSD on unverified answers",
        "verified less unverified",
      ),
      (
        "prefix",
        "a future on the canvas is better than one in the prompt",
        "tokens of the answer at their places are better than the answer behind the prompt (arXiv:2606.18195)",
        "of the same with the answer behind the teacher's prompt",
        "on the canvas less in the prompt",
      ),
      (
        "code",
        "the paper's or its code's",
        "what the paper says is better than what its code does (ours)",
        "of the released code's choices",
        "the paper's less the code's",
      ),
    )
  ),
  Claim(
    "a quarter is enough and not too much",
    "a quarter of the masks revealed is better than none, and no worse than a tenth or a half (arXiv:2606.18195 finds it the best)",
    "the score with a quarter revealed is above that with nothing, and at most a point below that with 10% or 50%",
    a_quarter_is_best,
  ),
  Claim(
    "without the clip it collapses",
    "without clipped entries the student collapses past its peak (arXiv:2606.18195)",
    "over twice the steps the last evaluations are more than 5 points below the best without the clip, and more than with it",
    collapses,
  ),
  Claim(
    "few denoising steps do",
    "the first two of six denoising steps teach as well as all (ours: TOPD's question)",
    "the score with the first third of the canvases less d-OPSD's is at least -1 point",
    functools.partial(not_worse, arm="topd-33", because="equal steps; the first third of the canvases less all"),
  ),
  Claim(
    "cheaper than a policy gradient",
    "d-OPSD comes to the same accuracy by fewer passes through a model than a policy gradient (ours: arXiv:2606.18195 counts updates); all "
    "tries are paid for, where a sampler that stops at the first right one would save some",
    "a policy gradient needs more sequences through a model than d-OPSD to half of what d-OPSD gains; a backward pass counts as two",
    cheaper,
  ),
  Claim(
    "more problems have a right answer",
    "of more problems one of eight answers is right, so that the student has not only become surer (ours)",
    "pass@8 is higher after d-OPSD than before",
    more_answers,
  ),
)

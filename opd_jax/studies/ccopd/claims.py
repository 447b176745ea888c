"""What is claimed of CCOPD, and the rules by which the study decides it; written before the study's seeds were run.

Intervals are over seeds, at 95%; accuracies are of new conversations about 256 held-out problems, two about each
(one out of domain, and one greedy), after training. FULL: told at once. RAW: turn by turn.

A rule that rests on accuracies has to be met twice: by conversations that are sampled at temperature 1, and by greedy ones,
in which the student says its likeliest tokens in every turn.
"""

import functools
from collections.abc import Sequence

from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.ccopd.arms import NULLS, OUT_OF_DOMAIN
from opd_jax.studies.evidence import both, known, lazily, lazily_both, points, verdict
from opd_jax.studies.results import How, Missing, Results
from opd_jax.studies.statistics import IntervalEstimate, interval
from opd_jax.studies.verdicts import Claim, Evidence, Verdict, above, all_of, at_least, at_most


def measured(results: Results, arm: str, *path: str, how: How = "sampled") -> dict[int, float]:
  """Collect one number of an arm's students by seed, without the seeds where there was nothing to measure.

  Args:
    path: the keys that lead to it in the record of `measures.measure_student`.
    how: "greedy": in what that record has of greedy conversations.

  Raises:
    Missing: nothing has been measured of the arm.
  """
  numbers = {}
  for seed, found in results.analysis(f"asked-{arm}").items():
    for key in (*(["greedy"] if how == "greedy" else []), *path):
      if key not in found:
        raise Missing(f"{arm} was not asked for {' '.join(path)}")
      found = found[key]  # pyright: ignore[reportAssignmentType]: a number at the last key
    if found is not None:
      numbers[seed] = found
  return numbers


def difference(results: Results, a: str, b: str, *path: str, how: How = "sampled") -> IntervalEstimate:
  """Estimate a number of arm a less the same number of arm b, paired by seed."""
  left, right = measured(results, a, *path, how=how), measured(results, b, *path, how=how)
  if not (seeds := sorted(left.keys() & right.keys())):
    raise Missing(f"{a} and {b} have no seed in common")
  return interval(left[seed] - right[seed] for seed in seeds)


def gain(results: Results, arm: str, *path: str, how: How = "sampled") -> IntervalEstimate:
  """Estimate a number of an arm less the same number before training."""
  return difference(results, arm, UNTRAINED, *path, how=how)


def out_of_domain_difference(results: Results, a: str, b: str, how: How = "sampled") -> IntervalEstimate:
  """Estimate RAW of arm a less RAW of arm b, paired, as a mean over a sign and lengths that training did not show."""
  seeds = sorted(results.analysis(f"asked-{a}").keys() & results.analysis(f"asked-{b}").keys())
  if not seeds:
    raise Missing(f"{a} and {b} have no seed in common")

  def mean(arm: str, seed: int) -> float:
    return sum(measured(results, arm, task, "raw", how=how)[seed] for task in OUT_OF_DOMAIN) / len(OUT_OF_DOMAIN)

  return interval(mean(a, seed) - mean(b, seed) for seed in seeds)


def drift_is_there(results: Results) -> Verdict:
  """Check what everything else rests on: the pretrained model drifts by construction."""
  full, raw = measured(results, UNTRAINED, "relay", "full"), measured(results, UNTRAINED, "relay", "raw")

  def lost_turn_by_turn(how: How) -> IntervalEstimate:
    full, raw = (measured(results, UNTRAINED, "relay", form, how=how) for form in ("full", "raw"))
    return interval(full[seed] - raw[seed] for seed in full)

  lost = both(lost_turn_by_turn)
  own_turns = interval(measured(results, UNTRAINED, "deviation", "own_turn").values())
  repeated = interval(measured(results, UNTRAINED, "anchored", "kept").values())
  return verdict(
    all_of(lost.decided(above, 0.15), above(own_turns, 0)),
    "the student before training, told at once less turn by turn; and what its own turns add to the deviation",
    *lost.points("FULL less RAW"),
    Evidence("own turns' share of the deviation (nats a token)", own_turns),
    Evidence("FULL", interval(full.values()), "score"),
    Evidence("RAW", interval(raw.values()), "score"),
    Evidence("wrong guesses repeated", repeated, "score"),
  )


def raw_rises(results: Results) -> Verdict:
  raw, full = (both(gain, results, "ccopd", "relay", form) for form in ("raw", "full"))
  return verdict(
    all_of(raw.decided(above, 0.1), full.decided(at_least, -0.02)),
    "after CCOPD less before",
    *raw.points("RAW"),
    *full.points("FULL"),
    points("CONCAT", gain(results, "ccopd", "relay", "concat")),
    *known(
      *lazily_both("through an adapter, RAW", gain, results, "lora", "relay", "raw"),
      lazily(points, "through an adapter, FULL", gain, results, "lora", "relay", "full"),
    ),
  )


def better_than(results: Results, arm: str, name: str) -> Verdict:
  raw = both(difference, results, "ccopd", arm, "relay", "raw")
  return verdict(
    raw.decided(above, 0),
    "RAW, paired",
    *raw.points(f"CCOPD less {name}, RAW"),
    points(f"CCOPD less {name}, FULL", difference(results, "ccopd", arm, "relay", "full")),
    *known(lazily(points, f"CCOPD less {name}, RAW out of domain", out_of_domain_difference, results, "ccopd", arm)),
  )


def out_of_domain(results: Results) -> Verdict:
  gained = both(out_of_domain_difference, results, "ccopd", UNTRAINED)
  return verdict(
    gained.decided(above, 0.05),
    "RAW after CCOPD less before, mean of a sign and of lengths that training did not show",
    *gained.points("the two together"),
    *known(
      *(lazily(points, task, gain, results, "ccopd", task, "raw") for task in OUT_OF_DOMAIN),
      *(lazily(points, f"{task}, FULL", gain, results, "ccopd", task, "full") for task in OUT_OF_DOMAIN),
    ),
  )


def intermediate_hurts(results: Results) -> Verdict:
  loss = both(difference, results, "ccopd", "any-turn", "relay", "raw")
  return verdict(
    loss.decided(above, 0),
    "RAW where the last reply is trained less RAW where a random turn's is",
    *loss.points("the last less a random turn"),
    points("FULL", difference(results, "any-turn", "ccopd", "relay", "full")),
    *known(
      *(
        lazily(
          points, f"{form.upper()} with four times the steps", difference, results, "any-turn-4", "ccopd", "relay", form
        )
        for form in ("raw", "full")
      ),
    ),
  )


def unpolluted(results: Results) -> Verdict:
  solution, hint = (both(gain, results, "ccopd", "pollution", kind) for kind in ("solution", "hint"))
  before = interval(measured(results, UNTRAINED, "pollution", "solution").values())
  return verdict(
    solution.decided(above, 0.1),
    "accuracy behind a wrong solution in the assistant's name, after CCOPD less before",
    *solution.points("a wrong solution"),
    *hint.points("a wrong hint of the user's"),
    Evidence("a wrong solution, before training", before, "score"),
  )


def deviation_falls(results: Results) -> Verdict:
  before = measured(results, UNTRAINED, "deviation", "psi")
  after = measured(results, "ccopd", "deviation", "psi")
  own_turns = difference(results, "ccopd", UNTRAINED, "deviation", "own_turn")
  share = interval(after[seed] / before[seed] for seed in after if seed in before)
  return verdict(
    all_of(at_most(share, 0.5), at_most(own_turns, 0)),
    "KL of a reply in the conversation from the same reply told at once, after CCOPD over before",
    Evidence("deviation, after over before", share),
    Evidence("own turns' share, after less before (nats a token)", own_turns),
    *known(lazily(points, "wrong guesses repeated, after less before", gain, results, "ccopd", "anchored", "kept")),
  )


def refreshed(results: Results) -> Verdict:
  raw = both(difference, results, "refresh", "ccopd", "relay", "raw")
  return verdict(raw.decided(above, 0), "RAW, paired", *raw.points("new conversations every 10 steps less kept ones"))


def shorter(results: Results) -> Verdict:
  raw = both(difference, results, "topd-50", "ccopd", "relay", "raw")
  return verdict(
    raw.decided(at_least, -0.01),
    "RAW, paired, equal steps",
    *raw.points("TOPD 50% less full answers"),
    *known(*lazily_both("POPD less full answers", difference, results, "popd", "ccopd", "relay", "raw")),
  )


def ccopd_distils(results: Results) -> Verdict:
  """Compare CCOPD with the best that each control has, seed by seed: temperatures, and rates of the null."""
  cooler = results.analysis(f"asked-{UNTRAINED}")
  sharpened = {seed: max(forms["raw"] for forms in found["cooler"].values()) for seed, found in cooler.items()}
  greedy = measured(results, UNTRAINED, "relay", "raw", how="greedy")
  sampled = measured(results, UNTRAINED, "relay", "raw")
  untrained = {seed: max(sharpened[seed], greedy[seed], sampled[seed]) for seed in sharpened}

  def less(how: How, controls: Sequence[dict[int, float]]) -> IntervalEstimate:
    after = measured(results, "ccopd", "relay", "raw", how=how)
    seeds = sorted(set(after).intersection(*controls))
    return interval(after[seed] - max(control[seed] for control in controls) for seed in seeds)

  def less_arms(how: How, arms: Sequence[str]) -> IntervalEstimate:
    return less(how, [measured(results, arm, "relay", "raw", how=how) for arm in arms])

  found = {
    "the student before training at its best temperature": both(less, controls=[untrained]),
    "the null at its best rate": both(less_arms, arms=NULLS),
    "a permuted teacher": both(less_arms, arms=("shuffled",)),
  }
  return verdict(
    all_of(*(estimate.decided(above, 0) for estimate in found.values())),
    "RAW of CCOPD less each control's",
    *(evidence for name, estimate in found.items() for evidence in estimate.points(f"CCOPD less {name}")),
  )


CLAIMS = (
  Claim(
    "drift is there",
    "told turn by turn, the student loses what it can do when told at once, by its own earlier words",
    "before training, FULL is more than 15 points above RAW, and the student's own turns add to the deviation",
    drift_is_there,
  ),
  Claim(
    "RAW rises",
    "CCOPD raises RAW, and FULL does not fall (arXiv:2605.30251)",
    "RAW gains more than 10 points, and FULL loses at most 2",
    raw_rises,
  ),
  Claim(
    "out of domain",
    "the gain carries over to what training did not show (arXiv:2605.30251)",
    "RAW on another sign and on longer chains gains more than 5 points, the two together",
    out_of_domain,
  ),
  Claim(
    "CCOPD distils",
    "the gain is distilled, and not what a lower temperature, a loss without a teacher, or a teacher of other tokens would gain (ours, "
    "after arXiv:2608.31046)",
    "RAW of CCOPD is above the student before training at the best of temperatures 1, .7, .5 and greedy, above the null at its best rate, "
    "and above a permuted teacher",
    ccopd_distils,
  ),
  *(
    Claim(
      f"better than {name}",
      f"CCOPD is better than {name} (arXiv:2605.30251)",
      "RAW of CCOPD is above",
      functools.partial(better_than, arm=arm, name=name),
    )
    for arm, name in (
      ("forward", "the forward KL"),
      ("sft-teacher", "SFT on the teacher's answers"),
      ("sft-gold", "SFT on right answers"),
      ("reward", "a reward alone"),
      ("other-teacher", "a teacher of another seed"),
    )
  ),
  Claim(
    "intermediate turns hurt",
    "training the replies to earlier turns against a teacher that knows everything hurts (arXiv:2605.30251)",
    "RAW is lower where a random turn's reply is trained",
    intermediate_hurts,
  ),
  Claim(
    "unpolluted",
    "after CCOPD a wrong solution in the conversation misleads less (arXiv:2605.30251)",
    "accuracy behind a wrong solution gains more than 10 points",
    unpolluted,
  ),
  Claim(
    "the deviation falls",
    "CCOPD removes the deviation, and what own turns add to it (arXiv:2605.30251)",
    "the deviation after is at most half of that before, and the own turns' share is not larger",
    deviation_falls,
  ),
  Claim(
    "new conversations help",
    "conversations that are spoken anew are better than those of the initial student (ours)",
    "RAW with new conversations every 10 steps is above",
    refreshed,
  ),
  Claim(
    "shorter answers do",
    "half of an answer teaches as well as the whole (ours; TOPD on top)",
    "RAW of TOPD 50% less RAW of full answers is at least -1 point",
    shorter,
  ),
)

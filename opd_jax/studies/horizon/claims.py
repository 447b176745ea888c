"""What is claimed of horizons, and the rules by which the study decides it.

Intervals are over seeds, at 95% where a rule names no other level, see statistics.py; scores are means of a run's last
evaluations; "within a point" is one point of accuracy. A rule that rests on scores has to be met twice, by answers that are
sampled at temperature 1 and by greedy ones, so that no claim is decided by how sure a student has become. A time is training
seconds to an accuracy at temperature 1, probes of the horizon included, compiling and evaluation not. A claim is decided where the
runs that its rule needs are there; of other evidence it shows what is known. The rules of adaptive horizons are in
adaptive_claims.py, those of the controls in controls_claims.py.
"""

from collections.abc import Callable
from typing import Any

from opd_jax.studies.evidence import (
  POINT,
  LazyEvidence,
  both,
  by_seed,
  difference,
  gain,
  known,
  lazily,
  lazily_both,
  points,
  quarter,
  seconds_down_to,
  speedup,
  times,
  verdict,
)
from opd_jax.studies.horizon.adaptive_claims import adaptive_is_fastest, adaptive_is_safe
from opd_jax.studies.horizon.controls_claims import CONTROLS
from opd_jax.studies.results import How, Results
from opd_jax.studies.statistics import IntervalEstimate, interval, ratio
from opd_jax.studies.verdicts import Claim, Evidence, Verdict, above, all_of, at_least, at_most


def topd_is_as_good(results: Results) -> Verdict:
  short = both(difference, results, "topd-10", "opd")
  return verdict(
    short.decided(at_least, -POINT),
    "paired difference of scores after equally many steps",
    *short.points("TOPD 10% less OPD, equal steps"),
    *known(
      *lazily_both("TOPD 10% with 4x the steps less OPD", difference, results, "topd-10-long", "opd"),
      *lazily_both("TOPD 25% with 2x the steps less OPD", difference, results, "topd-25-long", "opd"),
      *(
        lazily(points, f"TOPD {n}% less OPD", difference, results, f"topd-{n}", "opd") for n in ("50", "25", "5", "2.5")
      ),
    ),
  )


def topd_is_fast(results: Results) -> Verdict:
  long = speedup(results, "topd-10-long")
  nearly = speedup(results, "topd-10-long", less=0.1)
  return verdict(
    at_least(long, 5),
    "ratio of times to OPD's score less a point",
    times("TOPD 10% with 4x the steps, sooner than OPD", long),
    times("TOPD 10% with 4x the steps, to OPD's score less ten points", nearly),
    *known(
      *(lazily(times, f"{arm} sooner than OPD", speedup, results, arm) for arm in ("topd-50", "topd-25", "topd-10")),
    ),
  )


def popd_in_a_third(results: Results) -> Verdict:
  full = speedup(results, "popd", less=0)
  others = ("popd-paper", "popd-geometric")
  return verdict(
    at_least(full, 3),
    "ratio of times to OPD's score",
    times("POPD to T, sooner than OPD", full),
    *known(
      *(lazily(times, f"{arm} sooner than OPD", speedup, results, arm, less=0) for arm in others),
      *(lazily(points, f"{arm} less OPD", difference, results, arm, "opd") for arm in ("popd", *others)),
    ),
  )


def early_teaches(results: Results) -> Verdict:
  """Compare a tenth of the response trained early with one trained late.

  Few rows come so far as 80%: batches of 11 train as many tokens of the first tenth, see `Results.trained`.
  """

  def trained(arm: str) -> IntervalEstimate:
    return interval(results.trained(arm).values())

  def less(arm: str, label: str) -> LazyEvidence:
    return lazily(points, f"first 10% less {label}", difference, results, "topd-10", arm)

  late, gained = both(difference, results, "topd-10-thin", "segment-80"), both(gain, results, "segment-80")
  return verdict(
    all_of(late.decided(above, 0.05), gained.decided(at_most, 0.05)),
    "the first tenth in batches of 11 against the tenth at 80%, and that one against no training",
    *late.points("first 10%, batches of 11, less 80-90%"),
    *gained.points("80-90% less untrained"),
    Evidence("trained tokens a step, first 10%, batches of 11", trained("topd-10-thin")),
    Evidence("trained tokens a step, 80-90%", trained("segment-80")),
    *known(
      less("segment-80", "80-90%"),
      lazily(Evidence, "trained tokens a step, first 10%", trained, "topd-10"),
      *(less(f"segment-{s}", f"{s}-{s + 10}%") for s in (20, 40, 60)),
      *(less(arm, arm) for arm in ("random", "last")),
    ),
  )


def gain_is_in_the_weights(results: Results) -> Verdict:
  flat = by_seed(results, "continuation", lambda found: found["topd-10"]["0.25"] - found["topd-10"]["0"])
  beyond = by_seed(results, "continuation", lambda found: found["topd-10"]["0"] - found["untrained"]["0.1"])
  helped = by_seed(results, "continuation", lambda found: found["untrained"]["0.25"] - found["untrained"]["0"])
  return verdict(
    all_of(at_most(flat, 0.05), above(beyond, 0.05)),
    "accuracy when the teacher writes the beginning",
    points("after TOPD 10%: a quarter by the teacher less none", flat),
    points("TOPD 10% less the untrained student behind a tenth by the teacher", beyond),
    points("untrained: a quarter by the teacher less none", helped),
  )


def late_is_less_reliable(results: Results) -> Verdict:
  def fall(found: dict[str, Any], metric: str, step: str) -> float:
    """The first quarter less the last one."""
    return quarter(found[step], metric, 0) - quarter(found[step], metric, 3)

  def estimated(value: Callable[[dict[str, Any]], float]) -> IntervalEstimate:
    return by_seed(results, "reliability", value)

  before = estimated(lambda found: fall(found, "teacher", "0"))
  after = estimated(lambda found: fall(found, "teacher", "last"))
  both = estimated(lambda found: fall(found, "teacher", "0") - fall(found, "teacher", "last"))
  kl = estimated(lambda found: -fall(found, "kl", "0"))
  entropy = estimated(lambda found: -fall(found, "teacher_entropy", "0"))
  overlap = estimated(lambda found: fall(found, "overlap", "0"))
  return verdict(
    all_of(above(before, POINT), above(both, 0)),
    "the teacher's probability of the right symbol where something has to be known, first quarter against last",
    points("before training", before),
    points("after OPD", after),
    points("how much less after than before", both),
    Evidence("KL, last quarter less first, before training (nats)", kl),
    Evidence("teacher's entropy, last quarter less first (nats)", entropy),
    points("top-2 overlap, first quarter less last", overlap),
  )


def tokens_beat_sequences(results: Results) -> Verdict:
  arms = ("credit-0", "credit-1", "exact-0", "exact-1")

  def narrowing(how: How) -> IntervalEstimate:
    token, sequence, exact_token, exact_sequence = (results.scores(arm, how) for arm in arms)
    return interval(
      token[seed] - sequence[seed] - (exact_token[seed] - exact_sequence[seed]) for seed in results.common(*arms)
    )

  learned, gap = both(difference, results, *arms[:2]), both(narrowing)
  return verdict(
    all_of(learned.decided(above, 0), gap.decided(above, 0)),
    "discount 0 against 1, and whether a teacher that was trained off the path narrows it",
    *learned.points("discount 0 less 1, learned teacher"),
    *both(difference, results, *arms[2:]).points("discount 0 less 1, exact teacher"),
    *gap.points("difference of the two"),
  )


def variance_is_cubic(results: Results) -> Verdict:
  better = by_seed(results, "advantage", lambda found: found["cubic_variance"] - found["linear_variance"])
  cubic = by_seed(results, "advantage", lambda found: found["cubic_variance"])
  exponent = by_seed(results, "advantage", lambda found: found["exponent"])
  return verdict(
    above(better, 0),
    "variance of sequence-level advantages by position before training, fitted by both laws",
    Evidence("R^2 of the cubic variance (noise that grows with position) less R^2 of the linear (equal noise)", better),
    Evidence("R^2 of the cubic variance", cubic),
    Evidence("exponent of a token's noise against its position (the paper assumes 1)", exponent),
  )


def topd_fails_late(results: Results) -> Verdict:
  opd, short = both(gain, results, "phase-opd"), both(gain, results, "phase-topd-10")
  return verdict(
    all_of(opd.decided(at_least, 0.2), short.decided(at_most, 0.05)),
    "gain over the untrained student where the last symbols need what is seen nowhere earlier",
    *opd.points("OPD less untrained"),
    *short.points("TOPD 10% less untrained"),
    *known(
      *(lazily(points, f"TOPD {n}% less untrained", gain, results, f"phase-topd-{n}") for n in ("25", "50")),
      *lazily_both("POPD to T less OPD", difference, results, "phase-popd", "phase-opd"),
    ),
  )


def topd_drifts(results: Results) -> Verdict:
  """Compare the best three evaluations in a row with the last three.

  The best of a flat run is above its end by noise alone: means of three leave less of it than single evaluations.
  """

  def fallen(arm: str, how: How = "sampled") -> IntervalEstimate:
    best = results.best(arm, how)
    return interval(best[seed] - score for seed, score in results.scores(arm, how).items())

  def beyond(found: dict[str, Any]) -> float:
    return found["lr4-topd-10"]["beyond"] - found["untrained"]["beyond"]

  short, full = both(fallen, "lr4-topd-10"), both(fallen, "lr4-opd")
  return verdict(
    all_of(short.decided(above, 0.05), full.decided(at_most, 0.05)),
    "how far the mean of the last three evaluations lies below the best mean of three in a row, at four times the rate",
    *short.points("TOPD 10%, best less last, 4x the rate"),
    *full.points("OPD, best less last, 4x the rate"),
    *known(
      lazily(points, "TOPD 10%, best less last, the study's rate", fallen, "topd-10"),
      lazily(
        Evidence,
        "KL beyond TOPD 10%'s horizon, after less before (nats a token), 4x the rate",
        by_seed,
        results,
        "drift",
        beyond,
      ),
      lazily(
        points,
        "KL to the initial student: what it adds to TOPD 10% at 4x the rate",
        difference,
        results,
        "lr4-topd-10-initial",
        "lr4-topd-10",
      ),
      lazily(
        points,
        "every tenth step to the end (look): what it adds to TOPD 10% at 4x the rate",
        difference,
        results,
        "lr4-look",
        "lr4-topd-10",
      ),
      lazily(points, "look less OPD, both at 4x the rate", difference, results, "lr4-look", "lr4-opd"),
    ),
  )


def reverse_works(results: Results) -> Verdict:
  opd, short = both(gain, results, "reverse-opd"), both(gain, results, "reverse-topd-25")
  scores = results.scores("reverse-opd")
  halfway = {seed: (start + scores[seed]) / 2 for seed, start in results.untrained("reverse-opd").items()}
  faster = ratio(seconds_down_to(results, "reverse-opd", halfway), seconds_down_to(results, "reverse-topd-25", halfway))
  return verdict(
    all_of(opd.decided(at_most, -0.1), short.decided(at_most, -0.1), above(faster, 1)),
    "what the strong model loses to the weak one, and how soon half of it",
    *opd.points("OPD less untrained"),
    *short.points("TOPD 25% less untrained"),
    times("TOPD 25% sooner than OPD half way down", faster),
    *known(lazily(points, "TOPD 10% less untrained", gain, results, "reverse-topd-10")),
  )


def weights_help(results: Results) -> Verdict:
  falling = both(difference, results, "gap", "opd")
  return verdict(
    falling.decided(above, 0),
    "paired difference of scores, weights of mean one, equal tokens and steps",
    *falling.points("falling (IW-OPD) less OPD"),
    *known(*lazily_both("rising (PW-OPSD) less OPD", difference, results, "rising", "opd")),
  )


CLAIMS = (
  *CONTROLS,
  Claim(
    "TOPD is as good",
    "TOPD at 10% of T reaches OPD's accuracy (arXiv:2605.31490)",
    "TOPD 10% less OPD after equally many steps is at least -1 point",
    topd_is_as_good,
  ),
  Claim(
    "TOPD is fast",
    "TOPD at 10% comes within a point of OPD in a fifth of the time",
    "the time of OPD over the time of TOPD 10%, which may take 4x the steps, is at least 5",
    topd_is_fast,
  ),
  Claim(
    "POPD in a third",
    "POPD reaches OPD's accuracy in a third of the time (arXiv:2605.31490)",
    "the time of OPD over the time of POPD, whose horizon reaches T, is at least 3",
    popd_in_a_third,
  ),
  Claim(
    "early segments teach",
    "early segments carry the teacher, late ones are noise (arXiv:2605.31490)",
    "trained on as many tokens of the first tenth is more than 5 points above trained on 80-90%, which gains at most 5 points over no "
    "training",
    early_teaches,
  ),
  Claim(
    "the gain is in the weights",
    "the gain is in the weights and not in a lucky prefix (arXiv:2605.31490)",
    "after TOPD 10%, a quarter written by the teacher adds at most 5 points; and TOPD 10% is more than 5 points above the untrained "
    "student behind a tenth written by the teacher",
    gain_is_in_the_weights,
  ),
  Claim(
    "late is less reliable",
    "the teacher's feedback is less reliable late, and worst early in training (arXiv:2605.31490)",
    "before training, the teacher's probability of the right symbol is more than a point lower in the last quarter than in the first, over "
    "rows that reach it; and that difference is smaller after OPD",
    late_is_less_reliable,
  ),
  Claim(
    "tokens beat sequences",
    "token-level credit beats sequence-level credit where the teacher errs off its path (arXiv:2605.31490)",
    "discount 0 is above discount 1 with the learned teacher, and by more than with a teacher trained off the path",
    tokens_beat_sequences,
  ),
  Claim(
    "cubic variance",
    "the variance of sequence-level advantages falls along the response as proposition 1 says, a difference of cubes (arXiv:2605.31490)",
    "proposition 1, with noise that grows linearly with position, explains more of the measured variance by position than equal noise, with "
    "a variance linear in what remains",
    variance_is_cubic,
  ),
  Claim(
    "TOPD fails late",
    "TOPD fails where the trait depends on the phase (arXiv:2605.31490)",
    "on the phase task OPD gains at least 20 points over no training and TOPD 10% at most 5",
    topd_fails_late,
  ),
  Claim(
    "TOPD drifts",
    "at too high a learning rate TOPD loses what it never sees (ours)",
    "at 4x the rate the last three evaluations of TOPD 10% are more than 5 points below its best three in a row, and OPD's at most 5",
    topd_drifts,
  ),
  Claim(
    "the reverse works",
    "a weak teacher pulls a strong student down, and TOPD does so sooner (arXiv:2605.31490)",
    "OPD and TOPD 25% both lose at least 10 points, and TOPD 25% has lost half of what OPD loses sooner",
    reverse_works,
  ),
  Claim(
    "adaptive is fastest",
    "an adaptive horizon is as fast as the best fixed or scheduled one chosen in hindsight (ours)",
    "for one of the four rules, the time of the best arm, which may be OPD, to OPD's score less a point, over the rule's, is at least 0.9; "
    "each interval is at 98.75%, or from the smallest to the largest where a run never arrives",
    adaptive_is_fastest,
  ),
  Claim(
    "adaptive is safe",
    "an adaptive horizon is within a point of OPD on the phase task (ours)",
    "for one of the four rules, its score less OPD's is at least -1 point; each interval is at 98.75%",
    adaptive_is_safe,
  ),
  Claim(
    "falling weights help",
    "weights that fall with disagreement beat equal ones at equal tokens (arXiv:2606.22600)",
    "IW-OPD's weights of mean one less uniform ones is above 0",
    weights_help,
  ),
)

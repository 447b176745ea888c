"""What is claimed of CCOPD, and the rules by which the study judges it; written before the study's seeds were run.

Intervals are over seeds, at 95%; accuracies are of new conversations about 256 held-out problems, two about each
(one out of domain), after training. FULL: told at once. RAW: turn by turn.
"""

from opd_jax.studies.ccopd.arms import UNTRAINED
from opd_jax.studies.comparisons import known, points, verdict
from opd_jax.studies.results import Missing, Results
from opd_jax.studies.statistics import Estimate, interval
from opd_jax.studies.verdicts import Claim, Evidence, Verdict, above, all_of, at_least, at_most

OUT_OF_DOMAIN = ("times", "long")


def of(r: Results, arm: str, *path: str) -> dict[int, float]:
  """By seed, a number that was measured of an arm's students; without seeds where there was nothing to measure."""

  def at(found: dict) -> float | None:
    for key in path:
      found = found[key]
    return found  # pyright: ignore[reportReturnType]

  every = {seed: at(found) for seed, found in r.analysis(f"asked-{arm}").items()}
  return {seed: value for seed, value in every.items() if value is not None}


def less(r: Results, a: str, b: str, *path: str) -> Estimate:
  """Paired by seed."""
  one, other = of(r, a, *path), of(r, b, *path)
  if not (seeds := sorted(one.keys() & other.keys())):
    raise Missing(f"{a} and {b} have no seed in common")
  return interval(one[s] - other[s] for s in seeds)


def gain(r: Results, arm: str, *path: str) -> Estimate:
  return less(r, arm, UNTRAINED, *path)


def outside(r: Results, a: str, b: str) -> Estimate:
  """RAW on a sign and on lengths that training did not show, both together, paired."""
  seeds = sorted(r.analysis(f"asked-{a}").keys() & r.analysis(f"asked-{b}").keys())
  if not seeds:
    raise Missing(f"{a} and {b} have no seed in common")
  mean = lambda arm, seed: sum(of(r, arm, task, "raw")[seed] for task in OUT_OF_DOMAIN) / len(OUT_OF_DOMAIN)
  return interval(mean(a, s) - mean(b, s) for s in seeds)


def drift_is_there(r: Results) -> Verdict:
  """By construction of the pretrained model; checked, since everything else rests on it."""
  full, raw = of(r, UNTRAINED, "relay", "full"), of(r, UNTRAINED, "relay", "raw")
  lost = interval(full[s] - raw[s] for s in full)
  anchored = interval(of(r, UNTRAINED, "deviation", "own_turn").values())
  return verdict(
    all_of(above(lost, 0.15), above(anchored, 0)),
    "the student before training, told at once less turn by turn; and what its own turns add to the deviation",
    points("FULL less RAW", lost),
    Evidence("own turns' share of the deviation (nats a token)", anchored),
    Evidence("FULL", interval(full.values()), "score"),
    Evidence("RAW", interval(raw.values()), "score"),
    Evidence("wrong guesses repeated", interval(of(r, UNTRAINED, "anchored", "kept").values()), "score"),
  )


def raw_rises(r: Results) -> Verdict:
  raw, full = gain(r, "ccopd", "relay", "raw"), gain(r, "ccopd", "relay", "full")
  return verdict(
    all_of(above(raw, 0.1), at_least(full, -0.02)),
    "after CCOPD less before",
    points("RAW", raw),
    points("FULL", full),
    points("CONCAT", gain(r, "ccopd", "relay", "concat")),
    *known(
      lambda: points("through an adapter, RAW", gain(r, "lora", "relay", "raw")),
      lambda: points("through an adapter, FULL", gain(r, "lora", "relay", "full")),
    ),
  )


def better_than(r: Results, arm: str, name: str) -> Verdict:
  raw = less(r, "ccopd", arm, "relay", "raw")
  return verdict(
    above(raw, 0),
    "RAW, paired",
    points(f"CCOPD less {name}, RAW", raw),
    points(f"CCOPD less {name}, FULL", less(r, "ccopd", arm, "relay", "full")),
    points(f"CCOPD less {name}, RAW out of domain", outside(r, "ccopd", arm)),
  )


def out_of_domain(r: Results) -> Verdict:
  both = outside(r, "ccopd", UNTRAINED)
  return verdict(
    above(both, 0.05),
    "RAW after CCOPD less before, mean of a sign and of lengths that training did not show",
    points("both", both),
    *known(*(lambda t=t: points(t, gain(r, "ccopd", t, "raw")) for t in OUT_OF_DOMAIN)),
    *known(*(lambda t=t: points(f"{t}, FULL", gain(r, "ccopd", t, "full")) for t in OUT_OF_DOMAIN)),
  )


def intermediate_hurts(r: Results) -> Verdict:
  raw = less(r, "any-turn", "ccopd", "relay", "raw")
  return verdict(
    above(Estimate(-raw.mean, -raw.high, -raw.low, raw.n), 0),
    "RAW where a random turn's reply is trained less RAW where the last one is",
    points("a random turn less the last", raw),
    points("FULL", less(r, "any-turn", "ccopd", "relay", "full")),
    *known(
      lambda: points("RAW with four times the steps", less(r, "any-turn-4", "ccopd", "relay", "raw")),
      lambda: points("FULL with four times the steps", less(r, "any-turn-4", "ccopd", "relay", "full")),
    ),
  )


def unpolluted(r: Results) -> Verdict:
  solution, hint = (gain(r, "ccopd", "pollution", kind) for kind in ("solution", "hint"))
  return verdict(
    above(solution, 0.1),
    "accuracy behind a wrong solution in the assistant's name, after CCOPD less before",
    points("a wrong solution", solution),
    points("a wrong hint of the user's", hint),
    Evidence(
      "a wrong solution, before training", interval(of(r, UNTRAINED, "pollution", "solution").values()), "score"
    ),
  )


def deviation_falls(r: Results) -> Verdict:
  before, after = of(r, UNTRAINED, "deviation", "psi"), of(r, "ccopd", "deviation", "psi")
  own = less(r, "ccopd", UNTRAINED, "deviation", "own_turn")
  share = interval(after[s] / before[s] for s in after if s in before)
  return verdict(
    all_of(at_most(share, 0.5), at_most(own, 0)),
    "KL of a reply in the conversation from the same reply told at once, after CCOPD over before",
    Evidence("deviation, after over before", share),
    Evidence("own turns' share, after less before (nats a token)", own),
    *known(lambda: points("wrong guesses repeated, after less before", gain(r, "ccopd", "anchored", "kept"))),
  )


def refreshed(r: Results) -> Verdict:
  raw = less(r, "refresh", "ccopd", "relay", "raw")
  return verdict(above(raw, 0), "RAW, paired", points("new conversations every 10 steps less kept ones", raw))


def shorter(r: Results) -> Verdict:
  raw = less(r, "topd-50", "ccopd", "relay", "raw")
  return verdict(
    at_least(raw, -0.01),
    "RAW, paired, equal steps",
    points("TOPD 50% less full answers", raw),
    *known(lambda: points("POPD less full answers", less(r, "popd", "ccopd", "relay", "raw"))),
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
  *(
    Claim(
      f"better than {name}",
      f"CCOPD is better than {name} (arXiv:2605.30251)",
      "RAW of CCOPD is above",
      lambda r, arm=arm, name=name: better_than(r, arm, name),
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

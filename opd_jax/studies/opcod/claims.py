"""What is claimed of OPCoD, and the rules by which the study decides it; written before the study's seeds were run.

Intervals are over seeds, at 95%. Accuracies are of 256 held-out problems, two answers to each (one, greedy), after training. Each of
the two students has an accuracy in the domain that it knew before, "own", and in the other one, "other"; "all four" is the mean of
both students and domains.

A rule about accuracies has to be met twice: by answers that are sampled at temperature 1, and by greedy ones.
"""

import functools
from collections.abc import Mapping, Sequence

from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.evidence import SampledAndGreedy, both, known, lazily, lazily_both, points, verdict
from opd_jax.studies.opcod.arms import NULLS, SPECIALISTS
from opd_jax.studies.opcod.estimates import (
  accuracies,
  all_four,
  broken_share,
  commented,
  difference,
  gain,
  helped,
  of_student,
  other,
  own,
  pareto_share,
  steps_of,
)
from opd_jax.studies.results import How, Missing, Results
from opd_jax.studies.statistics import IntervalEstimate, interval
from opd_jax.studies.verdicts import Claim, Evidence, Verdict, above, all_of, at_least


def comments_are_used(results: Results) -> Verdict:
  """Check what every other claim presupposes: a student that is shown a right comment does better for it."""
  by_kind = {kind: helped(results, kind) for kind in ("oracle", "peer", "own", "shuffled")}
  oracle = interval(by_kind["oracle"].values())
  less = interval(value - by_kind["shuffled"][seed] for seed, value in by_kind["oracle"].items())
  return verdict(
    all_of(above(oracle, 0.1), above(less, 0)),
    "second answers less attempts in the domain that a specialist does not know, before training",
    points("a tutor that is never wrong", oracle),
    points("that less the peer's comments on other prompts", less),
    *(
      points(label, interval(by_kind[kind].values()))
      for kind, label in (("peer", "the peer"), ("own", "a copy of itself"), ("shuffled", "the peer, shuffled"))
    ),
  )


def both_improve(results: Results) -> Verdict:
  statuses, evidence = [], []
  for name in SPECIALISTS:
    for domain in SPECIALISTS:
      found = both(gain, results, "opcod", of_student(name, domain))
      statuses.append(found.decided(at_least, -0.02) if domain == name else found.decided(above, 0.05))
      evidence += found.points(f"the {name} student, {domain}")
  return verdict(
    all_of(*statuses),
    "after OPCoD less before, of each student",
    *evidence,
    Evidence("students with no domain worse and one better", pareto_share(results, "opcod"), "score"),
    *known(
      *(
        lazily(Evidence, f"likewise of {arm}", pareto_share, results, arm)
        for arm in ("never", "grpo", "always", "gold")
      )
    ),
  )


def better_than(results: Results, arm: str, name: str, of: str = "opcod", called: str = "OPCoD") -> Verdict:
  """Compare an arm, OPCoD as published unless another one is named, with another."""
  found = both(difference, results, of, arm)
  return verdict(
    found.decided(above, 0),
    "mean of both students and domains, paired",
    *found.points(f"{called} less {name}"),
    points("in the own domain", difference(results, of, arm, own)),
    points("in the other domain", difference(results, of, arm, other)),
  )


def better_than_sdpo(results: Results) -> Verdict:
  """Compare with self-distillation alone, and tell which share of the gain the comments have."""
  found = better_than(results, "never", "SDPO")
  return verdict(
    found.status,
    found.because,
    *found.evidence,
    *known(
      *lazily_both("SDPO less before", gain, results, "never"),
      *lazily_both("OPCoD less before", gain, results, "opcod"),
    ),
  )


def those_behind_break_more(results: Results) -> Verdict:
  """Compare what a peer's comments break in the domain that the peer knows and in the one that it does not.

  A fresh attempt breaks some right ones too, more of them in a domain that the student does not know itself; that is taken off.
  """
  by_peer, afresh = commented(results, UNTRAINED, "peer"), commented(results, UNTRAINED, "again")

  def rates(seed: int, knows: bool) -> list[tuple[float, float]]:
    domains = {name: next(d for d in SPECIALISTS if (d != name) == knows) for name in SPECIALISTS}
    return [(broken_share(by_peer[seed][name], d), broken_share(afresh[seed][name], d)) for name, d in domains.items()]

  found = {knows: {seed: rates(seed, knows) for seed in by_peer} for knows in (True, False)}
  more = {
    knows: {seed: sum(peer - again for peer, again in pairs) / len(pairs) for seed, pairs in by.items()}
    for knows, by in found.items()
  }
  less = interval(more[False][seed] - more[True][seed] for seed in by_peer)

  def rate(knows: bool, which: int) -> IntervalEstimate:
    return interval(sum(pair[which] for pair in pairs) / len(pairs) for pairs in found[knows].values())

  return verdict(
    above(less, 0),
    "right attempts that are wrong with the peer's comment, less those that a fresh attempt gets wrong, before training",
    points("in the domain that the tutor does not know less in the one that it knows", less),
    Evidence("with the comment, where the tutor knows", rate(True, 0), "score"),
    Evidence("afresh there", rate(True, 1), "score"),
    Evidence("with the comment, where it does not", rate(False, 0), "score"),
    Evidence("afresh there", rate(False, 1), "score"),
  )


def gate_pays(results: Results) -> Verdict:
  """Compare with a gate that is always open, where the gate has been closed at all."""
  closed = sum(_closed(results, seed) for seed in results.runs("opcod"))
  if not closed:
    raise Missing("no gate was ever closed, so that the two arms are one")
  found = better_than(results, "always", "a gate that is always open")
  return verdict(found.status, f"{found.because}; gates were closed {closed} times", *found.evidence)


def _closed(results: Results, seed: int) -> int:
  """Count the gates of OPCoD's run that were closed at the beginning of a round."""
  gates = [record["gate"] for record in steps_of(results, "opcod", seed) if "gate" in record]
  return sum(not is_open for gate in gates for is_open in gate["open"].values())


def opcod_distils(results: Results) -> Verdict:
  """Compare OPCoD with the best that each control has, seed by seed: temperatures, and rates of the null."""
  cooler = results.analysis(f"asked-{UNTRAINED}")
  at_one, greedy = accuracies(results, UNTRAINED), accuracies(results, UNTRAINED, "greedy")
  untrained = {
    seed: max(all_four(each) for each in (*cooler[seed]["cooler"].values(), at_one[seed], greedy[seed]))
    for seed in cooler
  }

  def less(controls: Sequence[Mapping[int, float]], how: How) -> IntervalEstimate:
    after = {seed: all_four(found) for seed, found in accuracies(results, "opcod", how).items()}
    seeds = sorted(set(after).intersection(*controls))
    return interval(after[seed] - max(control[seed] for control in controls) for seed in seeds)

  def less_arms(arms: Sequence[str], how: How) -> IntervalEstimate:
    return less([{s: all_four(a) for s, a in accuracies(results, arm, how).items()} for arm in arms], how)

  found = {
    "the specialists before training at their best temperature": both(less, [untrained]),
    "the null at its best rate": both(less_arms, NULLS),
  }
  return verdict(
    all_of(*(estimate.decided(above, 0) for estimate in found.values())),
    "OPCoD less each control, mean of both students and domains",
    *(evidence for name, estimate in found.items() for evidence in estimate.points(f"OPCoD less {name}")),
  )


def never_wrong_is_better(results: Results) -> Verdict:
  found = both(difference, results, "oracle", "opcod")
  return verdict(
    found.decided(above, 0),
    "mean of both students and domains, paired",
    *found.points("a tutor that is never wrong less the peer"),
    *known(*lazily_both("right solutions less OPCoD", difference, results, "gold", "opcod")),
  )


def short_horizons_do(results: Results) -> Verdict:
  found = both(difference, results, "gold-topd-50", "gold")
  return verdict(
    found.decided(at_least, -0.01),
    "equal steps, mean of both students and domains",
    *found.points("OPSD, TOPD 50%, less full rollouts"),
    *known(
      *lazily_both("TOPD 25% less full rollouts", difference, results, "gold-topd-25", "gold"),
      *lazily_both("POPD less full rollouts", difference, results, "gold-popd", "gold"),
    ),
  )


def late_teaches(results: Results) -> Verdict:
  found: SampledAndGreedy = both(difference, results, "late", "early")
  return verdict(
    found.decided(above, 0),
    "the last quarter of each response trained less the first",
    *found.points("late less early"),
    *known(*(lazily(points, f"{arm} less before", gain, results, arm) for arm in ("late", "early", "never"))),
  )


CLAIMS = (
  Claim(
    "comments are used",
    "a student that is shown what was wrong with its attempt does better at the next one (ours; nothing else can hold without it)",
    "before training, a right comment raises the accuracy in the unknown domain by more than 10 points, and by more than the peer's "
    "comments on other prompts do",
    comments_are_used,
  ),
  Claim(
    "both students improve",
    "both students become better in the domain that they did not know, and neither loses its own (arXiv:2606.14368)",
    "of each of the two the other domain gains more than 5 points, and the own one loses at most 2",
    both_improve,
  ),
  Claim(
    "OPCoD distils",
    "the gain is more than a lower temperature or a loss without a teacher would bring (ours, after arXiv:2608.31046)",
    "OPCoD is above the specialists at the best of temperatures 1, .7, .5 and greedy, and above the null at its best rate",
    opcod_distils,
  ),
  Claim(
    "better than SDPO",
    "comments add to self-distillation (arXiv:2606.14368)",
    "OPCoD is above the same run whose gates never open",
    better_than_sdpo,
  ),
  *(
    Claim(name, statement, f"OPCoD is above {label}", functools.partial(better_than, arm=arm, name=label))
    for arm, label, name, statement in (
      ("grpo", "GRPO", "better than GRPO", "OPCoD is better than a reward alone (arXiv:2606.14368)"),
      (
        "shuffled",
        "comments on responses to other prompts",
        "it is what the comment says",
        "a comment helps by what it says of the prompt, and not by being there (ours: without this, the method's claim falls)",
      ),
      (
        "other-response",
        "comments on other responses to the same prompt",
        "it is what it says of the response",
        "a comment helps by what it says of the row's own response (ours)",
      ),
      ("own", "own comments", "it is the peer", "a peer's comments are better than those of a copy of oneself (ours)"),
      (
        "domain",
        "tutors of their own domain alone",
        "both domains",
        "a tutor should comment on both domains, once it is good enough (arXiv:2606.14368)",
      ),
      ("tau-20", "the published tau", "a tau that opens", "a gate that opens from the beginning is better (ours)"),
      ("frozen", "a frozen teacher", "not frozen", "a teacher that follows the student is better (arXiv:2601.20802)"),
      ("current", "the current student", "not current", "an averaged teacher is better (arXiv:2601.20802)"),
      (
        "peer-teacher",
        "the peer's probabilities",
        "better than the peer's probabilities",
        "what passes as text teaches more than the peer's probabilities in both domains, of which it knows one (ours)",
      ),
    )
  ),
  # Added when what stands above was known, and before these arms were run: at the study's tau gates open in the last round, so that
  # OPCoD and the controls above are nearly one run.
  *(
    Claim(
      name,
      statement,
      f"OPCoD with gates that are always open is above the same with {label}",
      functools.partial(better_than, arm=arm, name=label, of="always", called="open gates"),
    )
    for arm, label, name, statement in (
      (
        "always-shuffled",
        "comments on responses to other prompts",
        "open gates: what the comment says",
        "where every rollout has a comment, it helps by what it says of the prompt (ours; added later)",
      ),
      (
        "always-other-response",
        "comments on other responses to the same prompt",
        "open gates: what it says of the response",
        "where every rollout has a comment, it helps by what it says of the row's own response (ours; added later)",
      ),
      (
        "always-own",
        "own comments",
        "open gates: the peer",
        "where every rollout has a comment, a peer's are better than those of a copy of oneself (ours; added later)",
      ),
    )
  ),
  Claim(
    "the gate pays",
    "tutors that are behind do harm (arXiv:2606.14368)",
    "OPCoD is above a gate that is always open; not run where no gate was ever closed",
    gate_pays,
  ),
  Claim(
    "those behind break more",
    "comments of a tutor in a domain that it does not know spoil more right answers (arXiv:2606.14368)",
    "what comments break beyond a fresh attempt is more where the tutor does not know the domain than where it does",
    those_behind_break_more,
  ),
  Claim(
    "a tutor that is never wrong is better",
    "what the peer gets wrong costs something (ours)",
    "right comments are above OPCoD",
    never_wrong_is_better,
  ),
  Claim(
    "short horizons do",
    "half of a rollout teaches as well as the whole where the teacher is the student itself (ours; TOPD on top)",
    "OPSD with TOPD 50% less OPSD is at least -1 point",
    short_horizons_do,
  ),
  Claim(
    "late tokens teach more",
    "a teacher that is shown an answer teaches by the late tokens more than by the early ones (arXiv:2605.21606 weighs them so)",
    "training the last quarter of each response is above training the first",
    late_teaches,
  ),
)

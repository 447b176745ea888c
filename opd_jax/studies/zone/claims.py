"""What is claimed of ZPPO, and the rules by which the study decides it; written before any run of the study.

Intervals are over seeds, at 95%, paired by seed. Accuracies are of 768 held-out problems without candidates after training: the mean of
four answers to each at temperature 1, and greedy answers. A rule about accuracies has to be met twice, by both. All arms have generated about as many
tokens, those of the teacher with them. Other tiers are 768 problems with numbers of other sizes than those that are trained on.

The buffer's records are of plain rollouts; a question's tier is there how many of its eight were right when it entered.
"""

import functools
from collections.abc import Callable

from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.evidence import both, known, lazily, lazily_both, less, logged, points, verdict
from opd_jax.studies.results import How, Missing, Results
from opd_jax.studies.statistics import IntervalEstimate, interval
from opd_jax.studies.verdicts import Claim, Evidence, Verdict, above, all_of, below
from opd_jax.studies.zone.arms import LABELS

PARTS = ("buffer", "asked", "bcq", "ncq")
DISTILLED = ("on-distill", "off-distill")


def answered(
  results: Results, arm: str, how: str = "sampled", problems: str = "trained", tier: str = ""
) -> dict[int, float]:
  """Collect the accuracy of an arm's students by seed; see measures.py.

  Args:
    how: sampled, greedy, or pass.
    problems: trained or others.
    tier: of these; "": all.
  """
  records = {seed: record[problems] for seed, record in results.analysis(f"asked-{arm}").items()}
  return {seed: (record["tiers"][tier] if tier else record)[how] for seed, record in records.items()}


def difference(
  results: Results, a: str, b: str, how: How = "sampled", problems: str = "trained", tier: str = ""
) -> IntervalEstimate:
  """Estimate the accuracy of arm a less that of arm b, paired by seed; arguments as of `answered`."""
  return less(answered(results, a, how, problems, tier), answered(results, b, how, problems, tier))


def gain(
  results: Results, arm: str, how: How = "sampled", problems: str = "trained", tier: str = ""
) -> IntervalEstimate:
  """Estimate the accuracy of an arm less the same before training."""
  return difference(results, arm, UNTRAINED, how, problems, tier)


def more_than_its_parts(results: Results, how: How = "sampled") -> IntervalEstimate:
  """Estimate ZPPO's gain over GRPO less the sum of what the buffer and the reformulations gain over GRPO alone."""
  of = {arm: answered(results, arm, how) for arm in ("zppo", "grpo", "buffer", "asked")}
  seeds = set.intersection(*(set(by_seed) for by_seed in of.values()))
  if not seeds:
    raise Missing("zppo, grpo, buffer and asked have no seed in common")
  return interval(of["zppo"][s] + of["grpo"][s] - of["buffer"][s] - of["asked"][s] for s in sorted(seeds))


def graduated(results: Results, arm: str, tier: int | None = None) -> dict[int, float]:
  """Collect the share of the questions that entered the buffer and have graduated, by seed.

  Args:
    tier: of those with so many right rollouts at their entry; None: of all.

  Raises:
    Missing: no run of the arm has a buffer in which such a question entered.
  """
  found = {}
  for seed, run in results.runs(arm).items():
    histories = [record["buffer_history"] for record in run.train if record.get("buffer_history")]
    if not histories:
      continue
    entered, left = (
      histories[-1][name] if tier is None else [histories[-1][name][tier]] for name in ("entered", "graduated")
    )
    if sum(entered):
      found[seed] = sum(left) / sum(entered)
  if not found:
    raise Missing(f"no question of {arm} has entered a buffer")
  return found


def _logged(results: Results, arm: str, key: str) -> IntervalEstimate:
  return interval(logged(results, arm, key).values())


def learns(results: Results) -> Verdict:
  found = both(gain, results, "zppo")
  return verdict(
    found.decided(above, 0),
    "accuracy after training less before",
    *found.points(LABELS["zppo"]),
    *known(
      *(
        evidence
        for arm in ("grpo", "buffer", "asked", "bcq", "ncq")
        for evidence in lazily_both(LABELS[arm], gain, results, arm)
      )
    ),
  )


def better(results: Results, a: str, b: str) -> Verdict:
  """Compare two arms; the hard tier, and other tiers, are shown beside it."""
  found = both(difference, results, a, b)
  return verdict(
    found.decided(above, 0),
    "accuracy after training, paired",
    *found.points(f"{LABELS[a]} less {LABELS[b]}"),
    *known(
      lazily(points, "on the hard tier", difference, results, a, b, tier="hard"),
      lazily(points, "on other tiers", difference, results, a, b, problems="others"),
    ),
  )


def more_than_the_sum(results: Results) -> Verdict:
  found = both(more_than_its_parts, results)
  return verdict(
    found.decided(above, 0),
    "what both together gain over GRPO, less what the buffer and the reformulations gain alone",
    *found.points("interaction"),
    *known(
      *(
        evidence
        for arm in ("zppo", "buffer", "asked")
        for evidence in lazily_both(f"{LABELS[arm]} less GRPO", difference, results, arm, "grpo")
      )
    ),
  )


def better_than_every_part(results: Results) -> Verdict:
  found = {arm: both(difference, results, "zppo", arm) for arm in PARTS}
  return verdict(
    all_of(*(each.decided(above, 0) for each in found.values())),
    "accuracy of ZPPO after training, paired",
    *(evidence for arm, each in found.items() for evidence in each.points(f"less {LABELS[arm]}")),
  )


def hard_tier(results: Results) -> Verdict:
  found = both(difference, results, "zppo", "buffer", tier="hard")
  return verdict(
    found.decided(above, 0),
    "accuracy on the hard tier, paired",
    *found.points("ZPPO less GRPO + buffer"),
    *known(
      *(
        evidence
        for arm in ("zppo", "buffer", "grpo")
        for evidence in lazily_both(
          f"{LABELS[arm]} less before training", functools.partial(gain, tier="hard"), results, arm
        )
      )
    ),
  )


def unsolved_graduate(results: Results) -> Verdict:
  """Compare by questions that no rollout solved; their number stands on the page."""
  found = less(graduated(results, "zppo", 0), graduated(results, "buffer", 0))
  return verdict(
    above(found, 0),
    "share of the questions without a right rollout at their entry that have graduated, paired",
    points("ZPPO less GRPO + buffer", found),
    *known(
      *(
        lazily(_score, f"{LABELS[arm]}, of {name}", _graduated, results, arm, tier)
        for arm in ("zppo", "buffer")
        for name, tier in (("these", 0), ("all", None))
      )
    ),
  )


def _graduated(results: Results, arm: str, tier: int | None) -> IntervalEstimate:
  return interval(graduated(results, arm, tier).values())


def _score(label: str, estimate: IntervalEstimate) -> Evidence:
  return Evidence(label, estimate, "score")


def copies(results: Results) -> Verdict:
  """Ask whether plain accuracy rises although BCQs are answered by copying."""
  repeated = logged(results, "zppo", "bcq_repeats_right")
  right = logged(results, "zppo", "reward_bcq")
  shares = interval(repeated[seed] / right[seed] for seed in sorted(repeated.keys() & right.keys()) if right[seed])
  risen = both(gain, results, "zppo")
  return verdict(
    all_of(above(shares, 0.5), risen.decided(above, 0)),
    "of the right answers to BCQs the share that is the right candidate, and plain accuracy less before training",
    _score("copied", shares),
    *risen.points("plain"),
    *known(
      lazily(_score, "reward of BCQs", _logged, results, "zppo", "reward_bcq"),
      lazily(_score, "answers to BCQs that are the wrong candidate", _logged, results, "zppo", "bcq_repeats_wrong"),
      lazily(_score, "answers to NCQs that are listed as wrong", _logged, results, "zppo", "ncq_repeats_wrong"),
      lazily(_score, "reward of NCQs", _logged, results, "zppo", "reward_ncq"),
    ),
  )


def distillation_loses_elsewhere(results: Results) -> Verdict:
  """Ask two things: ZPPO is above it on other tiers, and it is below where it began there."""
  ahead = both(difference, results, "zppo", "on-distill", problems="others")
  lost = both(gain, results, "on-distill", problems="others")
  return verdict(
    all_of(ahead.decided(above, 0), lost.decided(below, 0)),
    "accuracy on other tiers",
    *ahead.points("ZPPO less on-policy distillation"),
    *lost.points("on-policy distillation less before training"),
    *known(
      *(
        evidence
        for arm in ("zppo", "grpo", "off-distill")
        for evidence in lazily_both(
          f"{LABELS[arm]} less before training", functools.partial(gain, problems="others"), results, arm
        )
      )
    ),
  )


Decide = Callable[[Results], Verdict]


def _better(name: str, statement: str, b: str, a: str = "zppo") -> Claim:
  """A claim that arm a is above arm b."""
  decide: Decide = functools.partial(better, a=a, b=b)
  return Claim(name, statement, f"{LABELS[a]} is above {LABELS[b]}", decide)


CLAIMS: tuple[Claim, ...] = (
  Claim(
    "ZPPO learns",
    "the method teaches this task (arXiv:2606.18216); comparisons mean little without it",
    "ZPPO is above the student before training",
    learns,
  ),
  _better(
    "better than GRPO", "it teaches more than GRPO of as many tokens (arXiv:2606.18216, there at equal steps)", "grpo"
  ),
  _better("the buffer pays", "visiting hard questions again teaches more (arXiv:2606.18216)", "grpo", "buffer"),
  _better("the reformulations pay", "candidates teach more, without a buffer (arXiv:2606.18216)", "grpo", "asked"),
  Claim(
    "more than the sum",
    "buffer and reformulations together gain more than the sum of what each gains (arXiv:2606.18216)",
    "ZPPO plus GRPO, less GRPO + buffer, less GRPO + BCQ + NCQ without buffer, is above 0",
    more_than_the_sum,
  ),
  Claim(
    "better than every part",
    "each part is needed (arXiv:2606.18216)",
    "ZPPO is above GRPO + buffer, above the reformulations without buffer, and above GRPO + buffer with either of them",
    better_than_every_part,
  ),
  Claim(
    "hard questions are learned",
    "the hard tier gains most by it (arXiv:2606.18216)",
    "on the hard tier ZPPO is above GRPO + buffer",
    hard_tier,
  ),
  Claim(
    "what nobody solved graduates",
    "more of the questions that no rollout solved are mastered (arXiv:2606.18216: 28% against 4%)",
    "the share of these that graduate is higher with ZPPO than with GRPO + buffer",
    unsolved_graduate,
  ),
  _better(
    "it is the right candidate",
    "a BCQ has to have a right candidate: two wrong ones do not do (ours: without this, the method's claim falls)",
    "wrong-pair",
  ),
  _better(
    "order matters",
    "with the right candidate always first its place is learned instead (arXiv:2606.18216)",
    "unshuffled",
  ),
  _better(
    "mastered ones graduate",
    "that mastered questions leave the buffer, and not any, pays (arXiv:2606.18216)",
    "random-graduation",
  ),
  _better("better than a hint", "candidates teach more than the beginning of a solution (arXiv:2606.18216)", "hint"),
  _better("better than a prefix", "candidates teach more than going on from a beginning (arXiv:2606.18216)", "prefix"),
  Claim(
    "copied, and learned all the same",
    "BCQs are answered by copying, and plain accuracy rises nevertheless (arXiv:2606.18216)",
    "more than half of the right answers to BCQs are the right candidate, and ZPPO is above the student before training",
    copies,
  ),
  _better(
    "better than the teacher's probabilities",
    "a teacher in the prompt teaches more than one in the gradient (arXiv:2606.18216)",
    "on-distill",
  ),
  _better(
    "better than the teacher's solutions", "and more than imitating right solutions (arXiv:2606.18216)", "off-distill"
  ),
  Claim(
    "distillation loses elsewhere",
    "distillation loses on problems of another kind, and ZPPO does not (arXiv:2606.18216)",
    "on other tiers ZPPO is above on-policy distillation, which is below the student before training",
    distillation_loses_elsewhere,
  ),
)

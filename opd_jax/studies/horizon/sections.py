"""The page of the study of horizons: what it is, and the pictures that its verdicts rest on."""

from opd_jax.studies.horizon import figures
from opd_jax.studies.horizon.adaptive_claims import ADAPTIVE, FIXED
from opd_jax.studies.horizon.arms import ARMS, STEPS, T
from opd_jax.studies.results import Results
from opd_jax.studies.verdict_page import Section

TITLE = "Are full rollouts necessary?"
INTRO = f"""The study of horizons on the short built-in tasks (python -m opd_jax.study horizon), after arXiv:2605.31490.
Seed by seed, arms of one task start from the same student and read the same prompts in the same order; the phase task
has prompts of its own, and in the reverse student and teacher change places. A response has at most T = {T} tokens.
Scores are means of a run's last evaluations, which are never cut.

These are models of a million parameters and tasks of a few hundred facts. What holds here is a reason to expect it
elsewhere, and what does not hold here is a reason to look."""


def sections(results: Results) -> list[Section]:
  label = {arm.name: arm.label for arm in ARMS}

  def labelled(*names: str) -> dict[str, str]:
    return {name: label[name] for name in names}

  fixed = ("opd", *FIXED)
  tenths = ("topd-10", *(f"segment-{s}" for s in (20, 40, 60, 80)))
  phase = [name for name in label if name.startswith("phase-")]
  grid = ("topd-10", "topd-25", "opd", "lr4-topd-10", "lr4-topd-25", "lr4-opd")
  metrics = {
    "teacher": "teacher: probability of the right symbol",
    "student": "student: probability of the right symbol",
    "kl": "reverse KL (nats per token)",
    "teacher_entropy": "teacher: entropy (nats)",
    "overlap": "overlap of the two likeliest symbols",
    "off_path": "share of tokens behind a mistake",
  }
  return [
    Section(
      "How far the student has to speak",
      f"Left: the score of TOPD after {STEPS} steps, by horizon. Right: accuracy by training time.",
      figures.horizon(
        results,
        "opd",
        [f"topd-{n}" for n in ("50", "25", "10", "5", "2.5")],
        labelled("opd", "topd-25", "topd-10-long", "popd"),
      ),
    ),
    Section(
      "What it costs to come within a point of OPD",
      "Seed by seed, until the accuracy is first at OPD's score less a point.",
      figures.cost(results, labelled(*fixed, *ADAPTIVE), "opd"),
    ),
    Section(
      "Which tokens teach",
      "A tenth of T is trained, from different places. What comes after the trained tokens is not spoken, since nothing depends on it. "
      "Only the longest problems come so far as 80%, a third of the rows, so that a step trains fewer tokens there: TOPD 10% in batches of 11 "
      "trains about as many.",
      figures.segments(
        results,
        labelled(*tenths) | {"topd-10": "0-10%"},
        {"topd-10-thin": "0-10%, batches of 11"} | labelled("random", "last"),
        "opd",
      ),
    ),
    Section(
      "Is the skill in the prefix?",
      "The teacher writes the beginning, the student the rest.",
      figures.continuation(
        results,
        "continuation",
        {"untrained": "untrained", "topd-10": "after TOPD 10%", "opd": "after OPD"},
        ["topd-50", "topd-25", "topd-10", "topd-5", "topd-2.5"],
      ),
    ),
    Section(
      "Where the teacher is right",
      "By position, over rows that reach the last one shown, so that every position has the same rows. The first two panels look at places "
      "where something has to be known.",
      figures.positions(
        results, "reliability", metrics, {"0": "before training", "half": "half way", "last": "after OPD"}
      ),
    ),
    Section(
      "A skill that is needed late",
      "The phase task: the last symbols need what is seen nowhere earlier.",
      figures.scores(results, labelled(*phase)),
    ),
    Section(
      "Drift",
      "Learning rate by horizon.",
      figures.drift(
        results, grid, labelled("opd", "lr4-opd", "topd-10-long", "lr4-topd-10", "lr4-topd-10-initial", "lr4-look")
      ),
    ),
    Section(
      "Horizons that choose themselves",
      "Beside the fixed and the scheduled ones.",
      figures.adaptive(
        results,
        labelled(*ADAPTIVE),
        labelled("opd", "topd-50", "topd-25", "topd-10", "topd-10-long", "popd", "popd-geometric"),
      ),
    ),
    Section(
      "Who answers for later tokens",
      "The sampled-token estimator with a discount; the exact teacher was trained off its own path too.",
      figures.credit(
        results,
        {
          "learned teacher": ["credit-0", "credit-1"],
          "exact teacher": ["exact-0", "exact-1"],
        },
      ),
    ),
    Section(
      "The reverse",
      "The strong model learns from the weak one.",
      figures.accuracy(results, labelled("reverse-opd", "reverse-topd-25", "reverse-topd-10"), "elapsed"),
    ),
    Section(
      "Weights by position",
      "All tokens, weights of mean one.",
      figures.scores(results, labelled("opd", "gap", "rising"), before=False),
    ),
  ]

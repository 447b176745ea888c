"""What is claimed of GraphPO, and the rules by which the study decides it; written before the study's seeds were run.

Those about the simulation, which trains nothing, were written after a look at twenty of its problems. Intervals are over seeds, at 95%, paired
by seed. Accuracies are of 512 held-out problems after training: the mean of eight answers to each at temperature 1, and greedy answers. A rule
about accuracies has to be met twice, by both. Lengths are of the answers at temperature 1, in tokens; every right answer has three steps, so
that a shorter one has numbers of fewer digits, or breaks off.

That a graph is worth a teacher is asked at two rates of OPD; the second was added when the first was known.
"""

import functools
from collections.abc import Callable
from typing import Any

from opd_jax.studies.arm_spec import UNTRAINED
from opd_jax.studies.evidence import (
  POINT,
  both,
  by_seed,
  known,
  lazily,
  lazily_both,
  less,
  logged,
  points,
  times,
  verdict,
)
from opd_jax.studies.graph.arms import LABELS
from opd_jax.studies.results import How, Results
from opd_jax.studies.statistics import IntervalEstimate, interval, ratio
from opd_jax.studies.verdicts import Claim, Evidence, Verdict, above, all_of, at_least, at_most, below

GRAPH, FALSE_GRAPH = "graph 0.7", "graph 0.7, false 0.1"  # in the simulation's records
MEMBERS = ("2", "3", "5")


def answered(results: Results, arm: str, key: str) -> dict[int, float]:
  """Collect a number of what an arm's students answer by seed: "sampled", "greedy", "pass" or "length"; see measures.py."""
  return {seed: record[key] for seed, record in results.analysis(f"asked-{arm}").items()}


def difference(results: Results, a: str, b: str, how: How = "sampled") -> IntervalEstimate:
  """Estimate the accuracy of arm a less that of arm b, paired by seed."""
  return less(answered(results, a, how), answered(results, b, how))


def gain(results: Results, arm: str, how: How = "sampled") -> IntervalEstimate:
  """Estimate the accuracy of an arm less the same before training."""
  return difference(results, arm, UNTRAINED, how)


def shorter(results: Results, a: str, b: str) -> IntervalEstimate:
  """Estimate the mean length of arm a's answers less that of arm b's, in tokens."""
  return less(answered(results, a, "length"), answered(results, b, "length"))


def _logged(results: Results, arm: str, key: str) -> IntervalEstimate:
  return interval(logged(results, arm, key).values())


def simulated(results: Results, method: str, key: str) -> dict[int, float]:
  """Collect a number of a method in the simulation by seed, such as its "mse"; see simulation.py."""
  return {seed: record[method][key] for seed, record in results.analysis("simulation").items()}


def error_ratio(results: Results, a: str, b: str) -> IntervalEstimate:
  """Estimate the mean squared error of method a over that of method b, in the simulation."""
  return ratio(simulated(results, a, "mse"), simulated(results, b, "mse"))


def nearer(results: Results, a: str, b: str) -> Verdict:
  """Ask for a smaller error and for a higher correlation: a chain's credit is of another scale, which alone would decide."""
  error = error_ratio(results, a, b)
  correlation = less(simulated(results, a, "correlation"), simulated(results, b, "correlation"))
  return verdict(
    all_of(below(error, 1), above(correlation, 0)),
    f"mean squared error of a step's credit, {a} over {b}, and correlation with what it is worth",
    times("error", error),
    Evidence(f"correlation, {a} less {b}", correlation),
    *(Evidence(f"correlation, {name}", interval(simulated(results, name, "correlation").values())) for name in (a, b)),
  )


def false_merges_undo_it(results: Results) -> Verdict:
  found = error_ratio(results, FALSE_GRAPH, "tree")
  return verdict(
    above(found, 1),
    "mean squared error of a step's credit at w .7, a tenth of the nodes joined falsely, over a tree's",
    times("a tenth, w .7", found),
    times("no false joins, w .7", error_ratio(results, GRAPH, "tree")),
    times("a tenth, w .25", error_ratio(results, "graph 0.25, false 0.1", "tree")),
  )


def pooling_lemma(results: Results) -> Verdict:
  found = {k: by_seed(results, "simulation", functools.partial(_over_lemma, k)) for k in MEMBERS}
  return verdict(
    all_of(*(rule for each in found.values() for rule in (at_least(each, 0.95), at_most(each, 1.05)))),
    "variance of a pooled score over that of one node's, over the lemma's factor",
    *(times(f"{k} members", each) for k, each in found.items()),
  )


def _over_lemma(k: str, record: dict[str, Any]) -> float:
  return record["pooling"][k]["measured"] / record["pooling"][k]["lemma"]


def larger_groups(results: Results) -> Verdict:
  variance = {
    k: {seed: record["centred"][k] for seed, record in results.analysis("simulation").items()} for k in ("2", "8")
  }
  found = less(variance["8"], variance["2"])
  return verdict(
    below(found, 0),
    "variance of a reward less its group's mean, over that of a reward",
    Evidence("groups of 8 less groups of 2", found),
    *(Evidence(f"groups of {k}", interval(by.values())) for k, by in variance.items()),
  )


def better(results: Results, a: str, b: str, more: tuple[str, ...] = ()) -> Verdict:
  """Compare two arms.

  Args:
    more: of their training records, shown beside it.
  """
  found = both(difference, results, a, b)
  return verdict(
    found.decided(above, 0),
    "accuracy after training, paired",
    *found.points(f"{LABELS[a]} less {LABELS[b]}"),
    *known(
      lazily(points, "a right one among eight answers", _passed, results, a, b),
      *(lazily(Evidence, f"{key}, {LABELS[arm]}", _logged, results, arm, key) for key in more for arm in (a, b)),
    ),
  )


def _passed(results: Results, a: str, b: str) -> IntervalEstimate:
  return less(answered(results, a, "pass"), answered(results, b, "pass"))


def learns(results: Results) -> Verdict:
  found = both(gain, results, "graph")
  return verdict(
    found.decided(above, 0),
    "accuracy after training less before",
    *found.points(LABELS["graph"]),
    *known(
      *(
        evidence
        for arm in ("tree", "grpo-tokens", "grpo-responses", "random")
        for evidence in lazily_both(LABELS[arm], gain, results, arm)
      )
    ),
  )


def published_weight(results: Results) -> Verdict:
  """Compare with both others; the better of the two is the one that decides."""
  found = {w: both(difference, results, "graph", f"graph-w{w}") for w in (50, 100)}
  return verdict(
    all_of(*(each.decided(at_least, -POINT) for each in found.values())),
    "accuracy after training at w .7",
    *(evidence for w, each in found.items() for evidence in each.points(f"less w {w / 100:g}")),
    *known(*lazily_both("less w 0", difference, results, "graph", "graph-w0")),
  )


def hidden_states_do(results: Results) -> Verdict:
  found = both(difference, results, "hidden", "graph")
  return verdict(
    found.decided(at_least, -POINT),
    "accuracy after training, hidden states less the task's own",
    *found.points("hidden states"),
    *known(
      *lazily_both("hidden states less a tree", difference, results, "hidden", "tree"),
      *(lazily(Evidence, f"joined, {LABELS[arm]}", _logged, results, arm, "joined") for arm in ("hidden", "graph")),
    ),
  )


def efficiency_shortens(results: Results) -> Verdict:
  """Ask for shorter answers without a loss; against the plain penalty accuracy is shown alone."""
  lengths = {arm: shorter(results, "hidden-lambda-100", arm) for arm in ("hidden-lambda-0", "length")}
  kept = both(difference, results, "hidden-lambda-100", "hidden-lambda-0")
  return verdict(
    all_of(*(below(each, 0) for each in lengths.values()), kept.decided(at_least, -POINT)),
    "mean length of answers in tokens, lambda 1 less the others, and accuracy",
    *(Evidence(f"tokens, less {LABELS[arm]}", each) for arm, each in lengths.items()),
    *kept.points("accuracy, lambda 1 less lambda 0"),
    *known(
      *lazily_both("accuracy, less a length penalty", difference, results, "hidden-lambda-100", "length"),
      lazily(Evidence, "tokens, a length penalty less a tree", shorter, results, "length", "tree"),
    ),
  )


def worth_a_teacher(results: Results) -> Verdict:
  found = {arm: both(difference, results, "graph", arm) for arm in ("opd", "opd-fast")}
  return verdict(
    all_of(*(each.decided(at_least, -POINT) for each in found.values())),
    "accuracy after training, GraphPO less OPD",
    *(evidence for arm, each in found.items() for evidence in each.points(LABELS[arm])),
    *known(
      *(
        evidence
        for arm in found
        for evidence in lazily_both(f"{LABELS[arm]}, less before training", gain, results, arm)
      )
    ),
  )


Decide = Callable[[Results], Verdict]


def _better(name: str, statement: str, a: str, b: str, *more: str) -> Claim:
  """A claim that arm a is above arm b."""
  decide: Decide = functools.partial(better, a=a, b=b, more=more)
  return Claim(name, statement, f"{LABELS[a]} is above {LABELS[b]}", decide)


CLAIMS = (
  Claim(
    "a tree's credits are nearer to the truth",
    "a tree estimates what a step is worth better than as many steps of chains (arXiv:2606.18954); simulated, nothing is trained",
    "the mean squared error of a tree's credits is below that of chains', and their correlation with the truth is above",
    functools.partial(nearer, a="tree", b="chain"),
  ),
  Claim(
    "a graph's credits are nearer still",
    "sharing the outcomes of equal states estimates better than a tree (arXiv:2606.18954); simulated",
    "at w .7 and without false joins the error of a graph's credits is below that of a tree's, and their correlation is above",
    functools.partial(nearer, a=GRAPH, b="tree"),
  ),
  Claim(
    "false merges undo it",
    "a graph is not robust: a few states that are taken together falsely cost more than all true ones gain (ours); simulated",
    "with false joins of 10% of the nodes the error at w .7 is above a tree's; not supported where it is not, and then a graph is robust",
    false_merges_undo_it,
  ),
  Claim(
    "the pooling lemma holds",
    "pooling k equal nodes lowers the variance of a score by (1 + (k - 1) w^2) / (1 + (k - 1) w)^2 (arXiv:2606.18954); simulated",
    "of 2, 3 and 5 members the measured factor is within 5% of the lemma's",
    pooling_lemma,
  ),
  Claim(
    "larger groups lower the variance",
    "the variance of a centred reward falls with the size of its group (proposition 1 of arXiv:2606.18954; ours: it rises, as 1 - 1/K); simulated",
    "the variance in groups of 8 is below that in groups of 2",
    larger_groups,
  ),
  Claim(
    "GraphPO learns",
    "credits of single steps teach this task (arXiv:2606.18954); comparisons mean little without it",
    "GraphPO is above the student before training",
    learns,
  ),
  _better(
    "a tree is better than chains",
    "steps with credits of their own teach more (arXiv:2508.17445)",
    "tree",
    "grpo-tokens",
  ),
  _better(
    "a graph is better than a tree",
    "common states teach more than a tree of as many tokens (arXiv:2606.18954)",
    "graph",
    "tree",
    "step_tokens",
  ),
  _better(
    "better than GRPO at equal tokens",
    "a graph teaches more than chains of as many tokens (arXiv:2606.18954)",
    "graph",
    "grpo-tokens",
    "step_tokens",
  ),
  _better(
    "better than GRPO at equal responses",
    "a graph teaches more than as many whole responses, which cost more tokens (arXiv:2606.18954)",
    "graph",
    "grpo-responses",
    "step_tokens",
  ),
  _better(
    "it is the states",
    "what is joined has to be equal: merges at random do not do (ours: without this, the method's claim falls)",
    "graph",
    "random",
    "joined",
  ),
  _better("pooling pays", "outcomes of a state's other nodes help (arXiv:2606.18954)", "graph", "graph-w0"),
  Claim(
    "the published w",
    "a weight of .7 is as good as others (arXiv:2606.18954)",
    "GraphPO less the same at w .5, and less the same at w 1, is at least -1 point",
    published_weight,
  ),
  _better(
    "saved children pay",
    "children that a joined node is not given are better spent elsewhere (arXiv:2606.18954)",
    "graph",
    "no-halve",
    "states",
  ),
  Claim(
    "hidden states do",
    "states that are found by the student's hidden states are as good as the task's own (ours, after arXiv:2606.18954)",
    "GraphPO by hidden states less the same by the task's states is at least -1 point",
    hidden_states_do,
  ),
  _better(
    "the novelty gate pays",
    "steps to a state like the one before should count for less (arXiv:2606.18954)",
    "hidden",
    "hidden-no-novelty",
  ),
  Claim(
    "efficiency shortens more than a penalty",
    "what short ways to a state earn makes answers shorter than a plain penalty does, at no cost (arXiv:2606.18954, against ours)",
    "at lambda 1 answers are shorter than at lambda 0 and than a tree's with a length penalty, and accuracy less that at lambda 0 is at least "
    "-1 point",
    efficiency_shortens,
  ),
  Claim(
    "a graph is worth a teacher",
    "what a verifier says of outcomes, shared on a graph, teaches as much as a teacher's probabilities at every token (ours)",
    "GraphPO less OPD at as many generated tokens is at least -1 point, at either of OPD's rates; what the teacher reads costs FLOPs besides",
    worth_a_teacher,
  ),
)

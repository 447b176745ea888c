"""What a report shows of runs that learn from a verifier's reward, and that it shows nothing of it elsewhere."""

import io
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from opd_jax.errors import InputError
from opd_jax.reports import page, reward, reward_figures, table
from opd_jax.reports.comparison import compare
from opd_jax.reports.runs import load
from tests.helpers.report_runs import workdir
from tests.helpers.reward_runs import TEACHERLESS, reward_workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """An arm of two seeds, one of another surrogate, and one with a teacher alone."""
  root = tmp_path_factory.mktemp("rewarded")
  plain = {"surrogate": {"kind": "is"}}
  return [
    reward_workdir(root / "a0", seed=0),
    reward_workdir(root / "a1", seed=1),
    reward_workdir(root / "b", n=2, best=0.5, beyond=0.4, config=plain),
    workdir(root / "opd", [0.1, 0.5, 0.9]),
  ]


@pytest.fixture
def rewarded(runs):
  """The arms' comparison."""
  return compare(load(runs))


@pytest.fixture
def no_drawing(monkeypatch):
  """Leaves out the pixels, which are most of a page's time."""
  monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: path.write_bytes(b""))


def change(path, edit):
  """Edits a workdir's training records."""
  records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  for record in records:
    if record["kind"] == "train":
      edit(record)
  (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  return path


def rows(comparison) -> dict[str, dict[str, str]]:
  """The table's cells by quantity and arm."""
  return {row[""]: row for row in reward.table_rows(comparison.arms)}


class TestNumbers:
  def test_are_means_over_the_first_and_the_last_tenth(self, rewarded):
    """Of 20 steps to 0.9: steps 1 and 2, and 19 and 20; of 8 groups 0 and 1 are solved, then 7 and 7."""
    found, arm = rows(rewarded), "RLVR, surrogate.kind drpo"
    assert found["reward, mean over rollouts"][arm] == "0.0675 → 0.877"
    assert found["groups of which all are solved"][arm] == "6.2% → 88%"
    assert found["groups of which up to 1/4 are solved"][arm] == "94% → 12%"
    assert found["groups that teach"][arm] == "94% → 12%"
    assert found["entropy (nats per token)"][arm] == "1.93 → 1.12"
    assert found["tokens outside the trust region"][arm] == "10% → 10%"
    assert found["|pi - mu| of tokens with mu 0.8 to 0.9"][arm] == "0.018 → 0.018"
    assert "|pi - mu| of tokens with mu 0.9 to 1" not in found  # no token had it

  def test_only_arms_with_a_reward_have_a_column(self, rewarded):
    assert set(rows(rewarded)["groups that teach"]) == {"", "RLVR, surrogate.kind drpo", "RLVR, surrogate.kind is"}

  def test_one_step_has_no_first_tenth(self, tmp_path):
    path = reward_workdir(tmp_path / "a", 2)
    assert rows(compare(load([path])))["reward, mean over rollouts"]["RLVR"] == "0.9"

  def test_a_step_that_lacks_them_counts_in_no_mean(self, tmp_path):
    path = reward_workdir(tmp_path / "a")
    change(path, lambda r: r.update(reward=None, moved_by_mu=None) if r["step"] in (1, 20) else None)
    assert rows(compare(load([path])))["reward, mean over rollouts"]["RLVR"] == "0.09 → 0.855"

  def test_a_reward_alone_is_enough(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    change(path, lambda r: r.update(reward=-0.5))
    assert rows(compare(load([path])))["reward, mean over rollouts"]["OPD"] == "-0.5 → -0.5"


@pytest.mark.parametrize(
  ("counts", "by_band"),
  [
    ([1, 2, 3], [1, 0, 2, 0, 0, 3]),
    ([1, 2, 3, 4, 5], [1, 2, 3, 4, 0, 5]),
    ([1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 2, 2, 2, 1, 1]),
    ([4, 6], [4, 0, 0, 0, 0, 6]),
  ],
)
def test_groups_are_put_together_by_the_share_that_is_solved(counts, by_band):
  assert reward.bands({"groups_by_solve_rate": counts}) == by_band


class TestPictures:
  NAMES = ("reward", "groups", "policy", "trust_region")

  @pytest.mark.long
  def test_of_a_reward_are_on_the_page_with_its_table(self, rewarded, tmp_path, no_drawing):
    text = page.write(rewarded, tmp_path / "out").read_text()
    stems = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert stems >= {*self.NAMES, "responses", "learning", "kl_by_position"}
    titles = [
      "Reward",
      "Groups by solve rate",
      "Training responses",
      "Entropy and distance",
      "Trust region",
      "Loss and KL by step",
    ]
    places = [text.index(f"<h2>{title}") for title in titles]
    assert places == sorted(places)
    assert "<h2>What the reward did</h2>" in text
    assert "<td>0.0675 → 0.877</td>" in text
    assert "<h1>How far must the student speak?</h1>" in text  # one of the arms has a teacher alone
    text = page.write(compare(rewarded.runs[:3]), tmp_path / "out").read_text()
    assert "<h1>What does the reward teach?</h1>" in text

  def test_a_page_without_a_reward_has_none_of_it(self, tmp_path, no_drawing):
    text = page.write(compare(load([workdir(tmp_path / "a", [0.1, 0.9])])), tmp_path / "out").read_text()
    assert not {path.stem for path in (tmp_path / "out").glob("*.png")} & {*self.NAMES}
    assert "What the reward did" not in text

  def test_have_axes_with_names_and_a_line_for_each_arm(self, rewarded):
    figures = [reward_figures.rewards(rewarded.arms), reward_figures.policy(rewarded.arms)]
    figures.append(reward_figures.trust_region(rewarded.arms))
    panels = [ax for figure in figures if figure for ax in figure.axes]
    assert len(panels) == 2 + 3 + 6
    for ax in panels:
      assert ax.get_xlabel()
      assert ax.get_ylabel()
      assert ax.get_title()
    for figure in figures:
      (legend,) = figure.legends
      assert len(legend.get_texts()) == 3

  def test_the_reward_is_a_trailing_mean(self, tmp_path):
    """Of 50 steps each point is a mean over two."""
    path = reward_workdir(tmp_path / "a", 50)
    change(path, lambda r: r.update(reward=r["step"] % 2))
    left = reward_figures.rewards(compare(load([path])).arms).axes[0]
    each, smooth = (np.asarray(line.get_ydata()) for line in left.lines)
    assert list(each)[:4] == [1, 0, 1, 0]
    assert list(smooth)[:4] == [1.0, 0.5, 0.5, 0.5]

  def test_groups_are_stacked_to_a_whole(self, rewarded):
    figure = reward_figures.groups(rewarded.arms)
    assert [ax.get_title() for ax in figure.axes if ax.get_visible()] == [
      "RLVR, surrogate.kind drpo",
      "RLVR, surrogate.kind is",
    ]
    for ax in figure.axes:
      tops = [np.asarray(patch.get_paths()[0].vertices)[:, 1].max() for patch in ax.collections]
      assert max(tops) == pytest.approx(1)
      assert len(tops) == 2  # one in n of a group, and all of it

  def test_what_a_run_does_not_measure_has_no_panel(self, tmp_path):
    path = workdir(tmp_path / "a", [0.1, 0.9])
    arms = compare(load([change(path, lambda r: r.update(reward=0.5))])).arms
    assert reward_figures.groups(arms) is None
    assert reward_figures.policy(arms) is None
    assert reward_figures.trust_region(arms) is None
    change(path, lambda r: r.update(beyond=0.1, moved=0.2))
    assert len(reward_figures.trust_region(compare(load([path])).arms).axes) == 2

  def test_no_group_and_no_finite_number_is_no_fault(self, tmp_path, no_drawing):
    path = reward_workdir(tmp_path / "a")
    change(path, lambda r: r.update(groups_by_solve_rate=[0, 0], ratio_max=None, moved_by_mu=[None] * 10, beyond=0.0))
    page.write(compare(load([path])), tmp_path / "out")


class TestTerminal:
  @pytest.mark.parametrize("width", [60, 80, 100, 200])
  def test_the_table_fits(self, rewarded, width):
    out = io.StringIO()
    table.show(rewarded, Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= min(width, 100)
    assert "…" not in text
    assert "→ 0.877" in text
    assert ("region" in text) == (width >= 96)

  def test_a_run_without_a_reward_has_one_table(self, tmp_path):
    out = io.StringIO()
    table.show(compare(load([workdir(tmp_path / "a", [0.1, 0.9])])), Console(file=out, width=100))
    assert "tenth" not in out.getvalue()
    assert out.getvalue().count("arm") == 1


class TestRuns:
  def test_without_a_teacher_are_named_by_what_they_learn_from(self, tmp_path):
    full = reward_workdir(tmp_path / "a")
    short = reward_workdir(tmp_path / "b", kind="truncated", ratio=0.1)
    control = reward_workdir(tmp_path / "c", config={"mixture": {"reward": 0.0}})
    several = reward_workdir(tmp_path / "d", config={"teachers": ["x", "y"]})
    assert [run.label for run in load([full, short, control, several])] == [
      "RLVR",
      "RLVR, TOPD 10%",
      "no teacher",
      "OPD",
    ]

  def test_whose_reward_taught_nothing_are_noted(self, tmp_path):
    counts = {"steps": 20, "updated": 3, "no_teaching_group": 20, "verified": 640, "not_verified": 400}
    (run,) = load([reward_workdir(tmp_path / "a", info={"outcome": counts})])
    untaught, unverified = run.notes
    assert untaught.startswith("no group ever taught: in 20 steps")
    assert unverified.startswith("400 of 640 verifications timed out or raised")

  def test_of_a_later_version_with_other_counts_are_loaded(self, tmp_path):
    (run,) = load([workdir(tmp_path / "a", [0.1, 0.9], info={"outcome": {"steps": 2, "updated": 1, "other": 7}})])
    assert run.notes == []

  @pytest.mark.parametrize(
    ("wrong", "why"),
    [
      ({"reward": "0.5"}, "'reward', which has to be a number"),
      ({"groups_by_solve_rate": [4]}, "'groups_by_solve_rate', which has to be counts of groups"),
      ({"groups_by_solve_rate": [4, -1]}, "counts of groups"),
      ({"moved_by_mu": [0.1] * 9}, "'moved_by_mu', which has to be ten values"),
      ({"moved_by_mu": ["a"] * 10}, "ten values"),
      ({"beyond": 3}, "'beyond', which has to be a share"),
      ({"gradient_weight_min": [0]}, "'gradient_weight_min', which has to be a number"),
    ],
  )
  def test_a_damaged_number_is_refused_with_its_line(self, tmp_path, wrong, why):
    path = change(reward_workdir(tmp_path / "a", 2), lambda r: r.update(wrong) if r["step"] == 1 else None)
    with pytest.raises(InputError, match=f"Line 2 of .*{why}"):
      load([path])

  def test_a_teacherless_config_of_no_reward_is_reported_like_any_other(self, tmp_path, no_drawing):
    path = workdir(tmp_path / "a", [0.1, 0.9], config=TEACHERLESS)
    change(path, lambda r: r["by_position"].pop("kl"))
    page.write(compare(load([path])), tmp_path / "out")
    assert not (tmp_path / "out" / "kl_by_position.png").exists()

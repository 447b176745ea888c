"""What rounding alone makes of an update without structure, and when a statistic is beyond that."""

import collections
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.analysis.geometry import measure, nulls, summary
from opd_jax.analysis.geometry.measure import OBSERVED, Options
from opd_jax.analysis.geometry.sources import Pair
from tests.helpers.updates import all_statistics, bf16, gaussian_weights, moved, pair, statistics, tensor

SHAPE = (448, 448)
BEFORE = gaussian_weights(SHAPE)
QUICK = {"draws": 2, "groups": ("coordinates", "subspaces")}


def test_rounding_to_seven_bits_is_bfloat16():
  x = np.random.default_rng(0).standard_normal(5000).astype(np.float32) * np.float32(10.0) ** np.arange(-20, 30, 0.01)
  x = np.concatenate([x, [0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, np.inf]]).astype(np.float32)  # two ties
  for bits, expected in ((7, bf16(x)), (23, x)):
    np.testing.assert_array_equal(np.asarray(nulls.round_mantissa(jnp.asarray(x), bits)), expected)
  np.testing.assert_array_equal(np.asarray(nulls.round_mantissa(jnp.array([1.3, 1.2]), 1)), [1.5, 1.0])


@pytest.mark.long
@pytest.mark.parametrize(("std", "sparsity", "low"), [(1e-5, 0.92, 0.43), (2e-5, 0.80, 0.31)])
def test_stored_updates_without_structure_look_sparse_and_biased(std, sparsity, low):
  """The ends of the ranges that the review of arXiv:2606.13657 gives, within three points."""
  everything = all_statistics(pair(BEFORE, moved(BEFORE, std, 1), mantissa=7), **QUICK)["bf16"]
  (found,) = everything[OBSERVED]
  assert found["sparsity@1e-05"] == pytest.approx(sparsity, abs=0.03)
  assert found["low_coverage@10%>1e-05"] == pytest.approx(low, abs=0.03)
  assert found["low_coverage@10%"] > found["low_coverage@10%>1e-05"] + 0.05, (
    "the smallest weights take the smallest steps"
  )
  assert 0.045 < found["principal_coverage@10%>1e-05"] < 0.056
  assert found["relative_norm"] == pytest.approx({1e-5: 0.0003, 2e-5: 0.0008}[std], rel=0.1)
  # The null of what is seen after rounding looks the same.
  assert len(everything["gaussian"]) == 2
  for draw in everything["gaussian"]:
    for name in ("sparsity@1e-05", "low_coverage@10%>1e-05", "principal_coverage@10%>1e-05"):
      assert draw[name] == pytest.approx(found[name], abs=0.015), name
    assert draw["relative_norm"] == pytest.approx(found["relative_norm"], rel=0.02)


@pytest.mark.long
@pytest.mark.parametrize(("std", "sparsity"), [(1e-5, 0.68), (2e-5, 0.38)])
def test_the_same_updates_before_rounding(std, sparsity):
  after = (BEFORE + std * np.random.default_rng(1).standard_normal(SHAPE)).astype(np.float32)
  one = pair(BEFORE, after)
  assert [k.name for k in measure.kinds([one], Options())] == ["fp32", "bf16"]
  everything = all_statistics(one, groups=QUICK["groups"])
  (found,), (rounded,) = everything["fp32"][OBSERVED], everything["bf16"][OBSERVED]
  assert found["sparsity@1e-05"] == pytest.approx(sparsity, abs=0.03)
  assert found["low_coverage@10%"] == pytest.approx(0.1, abs=0.005)
  for rho in (0.1, 0.2):
    assert found[f"projection@{100 * rho:g}%"] == pytest.approx(rho**2, rel=0.1)
  assert rounded["sparsity@1e-05"] == pytest.approx({1e-5: 0.92, 2e-5: 0.80}[std], abs=0.03)


@pytest.mark.parametrize(("std", "lift"), [(1e-5, 4.15), (2e-5, 2.47)])
def test_independent_updates_overlap_once_they_are_rounded(std, lift):
  """As NumPy counts them in a million weights; the review has 2.1 to 3.7 of updates of these sizes."""
  one = pair(BEFORE, moved(BEFORE, std, 1), 7, other=moved(BEFORE, std, 2))
  found = measure.overlap(one, Options(draws=1), measure.kinds([one], Options()))["bf16"]
  for source in (OBSERVED, *nulls.NULLS):
    summarised = summary.summarise_overlap(found[source])
    if source != "permuted":  # it permutes what rounding has left, which is rounded once more
      assert summarised["overlap_lift>1e-05"] == pytest.approx(lift, rel=0.05), source
  chance: dict[str, Any] = summary.summarise_overlap(found[OBSERVED])
  assert chance["overlap>1e-05"] == pytest.approx(chance["overlap_lift>1e-05"] * chance["density_other>1e-05"])


def test_nulls_keep_what_they_should():
  rng = np.random.default_rng(5)
  update = rng.standard_normal((64, 1)) @ rng.standard_normal((1, 48)) * 1e-3
  before = rng.standard_normal((64, 48))
  one = pair(before, before + update)
  options = {"draws": 3, "seed": 7}
  everything = all_statistics(one, **options)["fp32"]
  (observed,), permuted, gaussian = (everything[source] for source in (OBSERVED, *nulls.NULLS))
  assert permuted == all_statistics(one, **options)["fp32"]["permuted"], "a seed is a seed"
  assert permuted != all_statistics(one, draws=3, seed=8)["fp32"]["permuted"]
  for draw in permuted:
    for name in ("relative_norm", "sparsity@0.0001", "coordinate_energy@1%"):
      assert draw[name] == pytest.approx(observed[name], rel=1e-4), name  # added to W0, in fp32
    assert draw["stable_rank"] > 5 > observed["stable_rank"]
  assert all(draw["relative_norm"] == pytest.approx(observed["relative_norm"], rel=0.06) for draw in gaussian)
  assert len({draw["stable_rank"] for draw in gaussian}) == 3


def test_fewer_mantissa_bits_are_a_coarser_checkpoint():
  after = (BEFORE + 1e-4 * np.random.default_rng(1).standard_normal(SHAPE)).astype(np.float32)
  zeros = [statistics(pair(BEFORE, after), f"{b} bits", mantissa=b, groups=())["zero"] for b in (3, 5, 9)]
  assert zeros[0] > zeros[1] > zeros[2] + 0.1


def test_a_snapshot_of_an_unchanged_model_has_sparsity_one():
  """Also of weights that are not stored in bf16: both snapshots round alike."""
  before = np.random.default_rng(0).standard_normal((32, 24))
  for own in all_statistics(pair(before, before), draws=1).values():
    for source in (OBSERVED, *nulls.NULLS):
      (found,) = own[source]
      assert found["zero"] == found["sparsity@1e-06"] == 1
      assert found["relative_norm"] == 0
      assert found["stable_rank"] is None
      assert found["low_coverage@10%"] is None


def test_beyond_a_null_is_what_one_more_draw_would_not_reach():
  draws = [1.0, 1.1, 0.9, 1.05, 0.95]
  assert nulls.against_null(1.2, draws)["verdict"] == "within"
  above = nulls.against_null(2.0, draws)
  assert (above["verdict"], above["ratio"]) == ("above", pytest.approx(2))
  assert nulls.against_null(0.1, draws)["verdict"] == "below"
  assert nulls.against_null(1.0 + 1e-7, [1.0, 1.0, 1.0])["verdict"] == "within"
  assert nulls.against_null(2.0, [1.0])["verdict"] == "unknown"
  assert nulls.against_null(None, draws)["verdict"] == "undefined"
  assert nulls.against_null(1.0, [1.0, None])["verdict"] == "undefined"


def test_a_value_of_the_null_is_seldom_beyond_it():
  """Of 4000 values from the distribution of three draws, about one in a hundred lies outside the interval of 99%."""
  rng = np.random.default_rng(0)
  outside = sum(nulls.against_null(v, d)["verdict"] != "within" for v, *d in rng.normal(5, 1, (4000, 4)))
  assert 20 <= outside <= 65


def test_a_tensor_in_bf16_of_a_model_that_is_not_has_a_null_that_is_stored_so():
  """Seen as it is, too, its update went through bf16, and so does the null's."""
  one = pair(BEFORE, moved(BEFORE, 1e-5, 1), mantissa=7)
  both = [measure.Kind("fp32", 23), measure.Kind("bf16", 7)]
  found = measure.measure(one, Options(draws=1, groups=()), both)
  for kind in ("fp32", "bf16"):
    (observed,), (gaussian,) = (found[kind][source] for source in (OBSERVED, "gaussian"))
    assert gaussian["square"] == pytest.approx(observed["square"], rel=0.03), kind
    assert gaussian["zero"] == pytest.approx(observed["zero"], rel=0.02), kind


def off_the_grid(before, seed=0):
  """The same weights somewhere in the cells that bf16 rounds to them."""
  cell = 2.0 ** (np.floor(np.log2(np.abs(before))) - 7)
  return (before + 0.24 * cell * np.random.default_rng(seed).uniform(-1, 1, before.shape)).astype(np.float32)


def test_where_a_weight_lies_in_its_cell_does_not_matter():
  before = BEFORE + (BEFORE == 0)
  off = off_the_grid(before)
  np.testing.assert_array_equal(bf16(off), before)
  update = (1e-5 * np.random.default_rng(1).standard_normal(SHAPE)).astype(np.float32)
  seen = [np.asarray(nulls.visible(jnp.asarray(w), jnp.asarray(update), 7)) for w in (before, off)]
  np.testing.assert_array_equal(seen[1], seen[0])
  np.testing.assert_array_equal(seen[0], bf16(before + update) - before)
  on, there = (statistics(pair(w, w + update), "bf16", groups=()) for w in (before, off))
  for name, value in on.items():
    if value is not None:
      assert there[name] == pytest.approx(value, rel=2e-3), name


def beyond(make: Callable[[int], Pair], draws: int = 3, **options: Any) -> dict[tuple[str, str, str, str], int]:
  """How many of four seeds have a statistic beyond a null: by kind, null, statistic and side."""
  found = collections.Counter()
  for seed in range(4):
    for kind, everything in all_statistics(make(seed), draws=draws, seed=seed, **options).items():
      (observed,) = everything[OBSERVED]
      for null in nulls.NULLS:
        for name, value in observed.items():
          verdict = nulls.against_null(value, [draw[name] for draw in everything[null]])["verdict"]
          found[kind, null, name, verdict] += verdict != "within"
  return found


def without_structure(seed, shape=(96, 64), std=1e-6):
  rng = np.random.default_rng(100 + seed)
  before = (0.02 * rng.standard_normal(shape)).astype(np.float32)
  return before, (before + std * rng.standard_normal(shape)).astype(np.float32)


@pytest.mark.long
def test_an_update_without_structure_is_within_its_nulls_in_both_kinds():
  """Weights of fp32 show an update of 1e-6 rounded too, in steps of up to 4e-9: some stay, mostly large ones."""
  found = beyond(
    lambda seed: pair(*without_structure(seed)), draws=15
  )  # with 3 one seed in four is on each side by chance
  assert {kind for kind, *_ in found} == {"fp32", "bf16"}
  for (kind, null, name, verdict), seeds in found.items():
    if verdict != "undefined":  # no weight moved by more than 1e-5
      assert seeds <= (name not in ("zero", "low_coverage@10%")), (kind, null, name, verdict)


def test_a_run_whose_end_alone_is_stored_in_bf16_is_seen_rounded_and_within_its_null():
  """W1 - W0 is then mostly what rounding took from W1, and no update of fp32."""

  def make(seed):
    before, after = without_structure(seed, std=1e-5)
    return Pair("layers.0.mlp.up_proj.weight", tensor(before), tensor(bf16(after), mantissa=7))

  found = beyond(make)
  assert {kind for kind, *_ in found} == {"bf16"}
  # The permuted one permutes what rounding has left, and is rounded once more.
  for (_, null, name, verdict), seeds in found.items():
    assert null == "permuted" or seeds <= (name not in ("zero", "low_coverage@10%")), (name, verdict)

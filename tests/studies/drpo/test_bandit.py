"""One token: where its probability stops under each surrogate."""

import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.objectives.surrogates import Surrogate
from opd_jax.studies.drpo import bandit, sections

LIBRARY = {
  "importance weighting": Surrogate("is"),
  "PPO clip 0.2/0.28": Surrogate("ppo_clip", clip_low=0.2, clip_high=0.28),
  "SPO 0.2": Surrogate("spo", threshold=0.2),
  "DPPO 0.15": Surrogate("dppo", threshold=0.15),
  "DRPO 0.15": Surrogate("drpo", threshold=0.15),
  "DRPO 0.15 without |A|": Surrogate("drpo", threshold=0.15, advantage_scale=False),
}


def test_the_library_has_the_weights_of_the_bandit():
  rng = np.random.default_rng(0)
  mu, pi = rng.uniform(0.01, 0.99, (2, 500))
  advantage = rng.choice([-1.0, -0.3, 0.4, 1.0], 500)
  assert LIBRARY.keys() == bandit.SURROGATES.keys()
  for name, surrogate in LIBRARY.items():
    found = surrogate.weight(*(jnp.asarray(x, jnp.float32) for x in (np.log(pi), np.log(mu), advantage)))
    np.testing.assert_allclose(found, bandit.SURROGATES[name](pi, mu, advantage), rtol=2e-4, atol=2e-4, err_msg=name)


@pytest.mark.parametrize(
  ("name", "stops"),
  [
    ("DRPO 0.15", (0.17, 0.45, 0.85)),
    ("DPPO 0.15", (0.17, 0.45, 0.85)),
    ("SPO 0.2", (0.024, 0.36, 0.84)),
    ("PPO clip 0.2/0.28", (0.0256, 0.384, 0.896)),
    ("importance weighting", (1, 1, 1)),
  ],
)
def test_boundaries_are_those_of_the_papers(name, stops):
  found = [bandit.minimiser(bandit.SURROGATES[name], mu) for mu in bandit.MU]
  assert found == pytest.approx(stops, abs=2e-4)


def test_the_size_of_the_advantage_moves_a_boundary_only_without_its_factor():
  for name, weight in bandit.SURROGATES.items():
    found = [bandit.minimiser(weight, 0.3, advantage) for advantage in (0.1, 0.5, 1.0)]
    if "without" in name:
      assert found == pytest.approx([0.315, 0.375, 0.45], abs=2e-4)
    else:
      assert found == [found[0]] * 3


def test_gradient_steps_come_to_the_boundary_and_stay():
  mu = np.array(bandit.MU)
  for advantage, stops in ((1.0, (0.17, 0.45, 0.85)), (-1.0, (0.0, 0.15, 0.55))):
    pi = bandit.path(bandit.drpo, mu, np.full(3, advantage))
    assert np.allclose(pi[0], mu)
    assert np.allclose(pi[-1], stops, atol=5e-3)
  spo = bandit.path(bandit.spo, mu, np.ones(3))
  assert np.allclose(spo[-1], (0.024, 0.36, 0.84), atol=2e-3)


def test_the_table_of_the_page_has_a_row_for_each_surrogate(monkeypatch):
  monkeypatch.setattr(bandit, "STEPS", 10)
  rows = sections.bandit_table()
  assert [row["surrogate"] for row in rows] == list(bandit.SURROGATES)
  assert [rows[4][f"boundary, mu {mu:g}"] for mu in bandit.MU] == ["0.170", "0.450", "0.850"]

"""Where compiled programs are kept."""

import jax
import pytest
from etils import epath

from opd_jax.runtime.programs import use_cache


@pytest.mark.parametrize("setting", ["off", ""])
def test_no_cache_is_no_directory(setting, tmp_path, monkeypatch):
  """An empty setting is not the directory that the command was given in."""
  monkeypatch.chdir(tmp_path)
  before = jax.config.values["jax_compilation_cache_dir"]
  use_cache(setting, epath.Path(tmp_path / "run"))
  assert jax.config.values["jax_compilation_cache_dir"] == before
  assert not list(tmp_path.iterdir())

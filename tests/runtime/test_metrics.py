"""What a run prints of its records."""

import pytest

from opd_jax.runtime.metrics import ProgressBar

RECORD = {"step": 2, "accuracy": 0.5, "low": 0.1, "high": 0.9, "k": 1, "prompts": 4, "length": {"mean": 7.0}}
RECORD |= {"elapsed": 1.0, "tokens": 10, "ended": 1.0}


@pytest.mark.parametrize("cut", [0, 3])
def test_an_evaluation_says_how_many_prompts_lost_their_beginning(capsys, cut):
  bar = ProgressBar(4, 0, "run")
  bar.evaluation(RECORD | ({"prompts_cut": cut} if cut else {}))
  bar.close()
  assert ("prompts that lost their beginning: 3" in capsys.readouterr().err) == bool(cut)

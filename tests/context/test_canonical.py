"""The replies of conversations as a workdir keeps them."""

import json

import pytest

from opd_jax.data import tokenizer
from opd_jax.data.conversation import Conversation
from opd_jax.errors import InputError
from opd_jax.models import hf
from tests.helpers.conversation_runs import saved_histories


@pytest.fixture
def prompts(tmp_path):
  """Reads saved replies to two conversations of two turns each, and returns the student's prompts."""
  histories = saved_histories(
    [Conversation("1 2", ("1", "2"))] * 2, tokenizer.load(hf.resolve("builtin:talker")), tmp_path
  )

  def read(*lines):
    (tmp_path / "00000000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return histories.prompts(0, {}, [0, 1], 1, lambda done, total: None)

  return read


def test_saved_replies_stand_in_the_prompts(prompts):
  found = prompts({"of": "digest"}, {"problem": 0, "replies": ["3"]}, {"problem": 1, "replies": ["3 4"]})
  assert len(found[0]) < len(found[1])


@pytest.mark.parametrize(
  "line",
  [
    {"problem": 0, "replies": "3"},  # a text is a sequence of texts, too
    {"problem": 0, "replies": [3]},
    {"problem": 0, "replies": []},
    {"problem": 0, "replies": ["3", "4"]},
    {"problem": -1, "replies": ["3"]},
    {"problem": 2, "replies": ["3"]},
    {"problem": "0", "replies": ["3"]},
    {"problem": [0], "replies": ["3"]},
    {"replies": ["3"]},
    [0, ["3"]],
    None,
  ],
)
def test_other_replies_are_called_damaged(prompts, line):
  with pytest.raises(InputError, match=r"00000000\.jsonl is damaged"):
    prompts({"of": "digest"}, line, {"problem": 1, "replies": ["3"]})

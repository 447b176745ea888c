"""Every prompt once an epoch, in an order that repeats, and resumes, exactly."""

import itertools
import json
import pathlib
import re
import time

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from opd_jax.data import pipeline, sources, styles
from opd_jax.data.rendering import Rendering
from opd_jax.data.sources import Example
from opd_jax.errors import InputError

GSM8K = pathlib.Path(__file__).resolve().parents[3] / "shared/data/gsm8k"
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant]"

IDS = [[i + 1] * (i % 4 + 1) for i in range(10)]
ORDER = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7, 5, 3, 7, 8, 2, 4, 1, 0, 6, 9]  # two epochs of seed 0


def prompts(ids=IDS, batch=4, seed=0, **kwargs):
  return pipeline.Prompts(ids, batch, prompt_lens=(4,), pad_id=0, seed=seed, **kwargs)


def order(stream, batches):
  """The examples that the next batches hold."""
  return [int(i) for batch in itertools.islice(stream, batches) for i in stream.index if batch is not None]


def test_a_batch_is_left_padded_and_masked():
  stream = prompts(shuffle=False)
  batch = next(stream)
  np.testing.assert_array_equal(batch.prompt, [[0, 0, 0, 1], [0, 0, 2, 2], [0, 3, 3, 3], [4, 4, 4, 4]])
  np.testing.assert_array_equal(batch.prompt_mask, batch.prompt != 0)
  np.testing.assert_array_equal(stream.index, [0, 1, 2, 3])
  assert (batch.prompt.dtype, batch.prompt_mask.dtype) == (np.int32, np.bool_)


def test_the_mask_follows_length_and_not_the_pad_token():
  """pad == eos, and eos inside the prompt: common, and no reason to mask it."""
  batch = pipeline.pad([[7, 7], [5, 7]], length=3, pad_id=7)
  np.testing.assert_array_equal(batch.prompt_mask, [[False, True, True]] * 2)


def test_index_names_the_rows():
  stream = prompts()
  for batch in itertools.islice(stream, 7):
    rows = [row[mask].tolist() for row, mask in zip(batch.prompt, batch.prompt_mask, strict=True)]
    assert rows == [IDS[i] for i in stream.index]


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (10, 10), (3, 8), (1, 5), (2, 1), (64, 16)])
def test_each_epoch_is_a_permutation(n, batch):
  epochs = 5
  seen = order(prompts([[1]] * n, batch), -(-epochs * n // batch))
  for epoch in range(epochs):
    assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_differ_from_each_other_and_from_the_file():
  seen = order(prompts([[1]] * 64, 64), 3)
  epochs = [seen[i : i + 64] for i in (0, 64, 128)]
  assert len({tuple(e) for e in [*epochs, list(range(64))]}) == 4
  assert order(prompts([[1]] * 64, 64, shuffle=False), 2) == [*range(64)] * 2


def test_the_seed_decides():
  assert order(prompts(seed=3), 20) == order(prompts(seed=3), 20)
  firsts = [tuple(order(prompts([[1]] * 64, 64, seed=seed), 1)) for seed in (0, 1, 2, -1, 2**40 + 5)]
  assert len(set(firsts)) == len(firsts)


def test_the_order_is_the_same_on_every_machine():
  assert order(prompts(), 5) == ORDER


def test_neighbouring_seeds_share_no_epoch():
  """An order drawn from seed + epoch would make seed 1 repeat seed 0 one epoch later."""
  a, b = (order(prompts([[1]] * 64, 64, seed=seed), 6) for seed in (0, 1))

  def epochs(seen):
    return {tuple(seen[i : i + 64]) for i in range(0, len(seen), 64)}

  assert not epochs(a) & epochs(b)


@pytest.mark.parametrize("batches", [0, 1, 2, 3, 13, 25])
def test_restore_goes_on_exactly(batches):
  """10 prompts in batches of 4: in the middle of an epoch, at its end, and over several."""
  stream = prompts()
  order(stream, batches)
  state = json.loads(json.dumps(stream.state()))
  then = [(batch.prompt, stream.index) for batch in itertools.islice(stream, 9)]
  for resumed in (prompts(), stream):
    resumed.restore(state)
    for prompt, index in then:
      np.testing.assert_array_equal(next(resumed).prompt, prompt)
      np.testing.assert_array_equal(resumed.index, index)


@pytest.mark.parametrize(
  ("other", "message"),
  [
    (lambda: prompts(IDS[:-1]), "prompts is 9, and was 10"),
    (lambda: prompts([*IDS[:-1], [99, 99]]), "the prompts are others"),
    (lambda: prompts([[1, 1], [2], *IDS[2:]]), "the prompts are others"),
    (lambda: prompts(batch=5), "batch is 5, and was 4"),
    (lambda: prompts(seed=1), "seed is 1, and was 0"),
    (lambda: prompts(shuffle=False), "shuffle is False, and was True"),
  ],
)
def test_restore_refuses_other_data(other, message):
  with pytest.raises(InputError, match=message):
    other().restore(prompts().state())


ORIGIN = {"data file": "1", "tokenizer": "2", "chat template": "3", pipeline.DATE: "2024-07-26"}


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"chat template": "4"}, "the chat template is another than when its checkpoint was written"),
    ({"data file": "4", "tokenizer": "4"}, "the data file and the tokenizer are others than when"),
    ({pipeline.DATE: "2024-08-03"}, r"the date in began\.json is another than when"),
    ({}, "rendered otherwise, from the same data, tokenizer and chat template, by other versions"),
  ],
)
def test_restore_names_what_changed(changed, message):
  state = json.loads(json.dumps(prompts(origin=ORIGIN).state()))
  for ids in ([*IDS[:-1], [99, 99]], IDS[:-1]):
    with pytest.raises(InputError, match=message):
      prompts(ids, origin=ORIGIN | changed).restore(state)
  prompts(origin=ORIGIN | changed).restore(state)  # what does not show in the prompts does not matter


def test_restore_of_a_former_checkpoint_tells_of_the_date():
  state = prompts(origin=ORIGIN).state()
  del state["origin"]
  prompts(origin=ORIGIN).restore(state)
  with pytest.raises(
    InputError, match=r"the prompts are others \(the chat template writes the date, .* has 2024-07-26; write"
  ):
    prompts([*IDS[:-1], [99, 99]], origin=ORIGIN).restore(state)


def test_no_prompt_is_refused():
  with pytest.raises(InputError, match=r"data\.path"):
    prompts([])


def test_the_padded_length_rounds_up_to_the_limit():
  assert pipeline.padded_len([[1] * 5, [1] * 17]) == 32
  assert pipeline.padded_len([[1] * 16]) == 16
  assert pipeline.padded_len([[1] * 5], multiple=1) == 5
  assert pipeline.padded_len([[1] * 17], limit=20) == 20
  assert pipeline.padded_len([[1] * 17], limit=64) == 32


@pytest.fixture(scope="module")
def tokenizer():
  """Byte-level BPE, as Qwen's and Llama's are."""
  model = Tokenizer(models.BPE())
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=400, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
  )
  model.train_from_iterator(["How many apples does she have in total after the sale of them?"] * 4, trainer)
  return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>")


@pytest.fixture
def with_template(tokenizer):
  tokenizer.chat_template = TEMPLATE
  yield tokenizer
  tokenizer.chat_template = None


def tokenise(examples, tokenizer, max_prompt=100, on_bad_line="refuse", chat_template=True, system=""):
  return pipeline.tokenise(
    examples, tokenizer, Rendering(chat_template, system), max_prompt=max_prompt, on_bad_line=on_bad_line
  )


def examples(*texts):
  return [Example(text, "", f"train.jsonl:{i + 1}") for i, text in enumerate(texts)]


SHORT, LONG = "apples", "0123456789 zq!"


def test_prompts_of_the_limit_are_kept(tokenizer):
  n = len(tokenizer(LONG)["input_ids"])
  ids, usable, skipped = tokenise(examples(SHORT, LONG), tokenizer, max_prompt=n)
  assert ids == [tokenizer(SHORT)["input_ids"], tokenizer(LONG)["input_ids"]]
  assert ([e.prompt for e in usable], skipped) == ([SHORT, LONG], 0)


def test_a_long_prompt_is_refused_with_its_place_and_the_mends(tokenizer):
  n, longest = (len(tokenizer(text)["input_ids"]) for text in (LONG, LONG * 2))
  expected = (
    f"train.jsonl:2: the prompt has {n} tokens, more than data.max_prompt=8; raise data.max_prompt (the longest"
  )
  expected += f" has {longest}), or set data.on_bad_line to skip or truncate."
  with pytest.raises(InputError, match=re.escape(expected)):
    tokenise(examples(SHORT, LONG, LONG * 2), tokenizer, max_prompt=8)


def test_a_long_prompt_is_skipped_and_counted(tokenizer):
  ids, usable, skipped = tokenise(examples(LONG, SHORT, LONG), tokenizer, 8, "skip")
  assert ids == [tokenizer(SHORT)["input_ids"]]
  assert ([e.where for e in usable], skipped) == (["train.jsonl:2"], 2)


def test_a_long_prompt_loses_its_beginning(tokenizer):
  ids, usable, skipped = tokenise(examples(LONG, SHORT), tokenizer, 8, "truncate")
  assert ids == [tokenizer(LONG)["input_ids"][-8:], tokenizer(SHORT)["input_ids"]]
  assert ([e.cut for e in usable], skipped) == ([True, False], 0)


def test_a_prompt_without_tokens_is_a_bad_line():
  model = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
  model.pre_tokenizer = pre_tokenizers.Split("b", "removed")
  bare = PreTrainedTokenizerFast(tokenizer_object=model)
  for policy in ("refuse", "truncate"):
    with pytest.raises(InputError, match=r"train\.jsonl:2: the prompt has no tokens"):
      tokenise(examples("a", "bbb"), bare, on_bad_line=policy)
  assert tokenise(examples("a", "bbb"), bare, on_bad_line="skip")[2] == 1


def test_a_prompt_that_cannot_be_rendered_is_a_bad_line(tokenizer):
  chat = Example(({"role": "user", "content": "apples"},), "", "train.jsonl:2")
  for policy in ("refuse", "truncate"):
    with pytest.raises(InputError, match=r"^train\.jsonl:2: the prompt is a list of chat messages"):
      tokenise([*examples(SHORT), chat], tokenizer, on_bad_line=policy)
  ids, usable, skipped = tokenise([*examples(SHORT), chat], tokenizer, on_bad_line="skip")
  assert (ids, len(usable), skipped) == ([tokenizer(SHORT)["input_ids"]], 1, 1)


def test_a_fault_of_the_config_is_no_fault_of_a_line(tokenizer):
  with pytest.raises(InputError, match=r"^config\.data\.system is set"):
    tokenise(examples(SHORT), tokenizer, on_bad_line="skip", system="Be brief.")


def test_skipping_every_prompt_is_refused(tokenizer):
  with pytest.raises(InputError, match=r"None of the 2 prompts can be used; the first fault is at train\.jsonl:1:"):
    tokenise(examples(LONG, LONG), tokenizer, 8, "skip")


def test_the_template_is_applied(with_template):
  ids, _, _ = tokenise(examples("apples"), with_template, system="Be brief.")
  assert with_template.decode(ids[0]) == "[system] Be brief.\n[user] apples\n[assistant]"


@pytest.mark.long
@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"the GSM8K files are not at {GSM8K}")
@pytest.mark.parametrize("template", [False, True])
def test_all_of_gsm8k(with_template, template):
  problems, skipped, _ = sources.read_examples(
    GSM8K / "train.jsonl", styles.Fields("question", "answer"), "refuse", need_answer=True
  )
  assert (len(problems), skipped) == (7473, 0)
  start = time.perf_counter()
  ids, usable, skipped = tokenise(problems, with_template, max_prompt=1024, chat_template=template)
  seconds = time.perf_counter() - start
  assert (len(ids), skipped) == (7473, 0)
  assert usable == problems
  assert seconds < 20  # about one when the cores are free; one prompt at a time takes several
  wrapped = "[user] {}\n[assistant]" if template else "{}"
  for i in (0, 3000, 7472):
    assert with_template.decode(ids[i]) == wrapped.format(problems[i].prompt)
  stream = pipeline.Prompts(ids, 64, [pipeline.padded_len(ids, limit=1024)], 0, seed=0)
  assert sorted(order(stream, 117)[:7473]) == list(range(7473))


def test_padded_lengths_leave_at_most_a_third_empty():
  ids = [[1] * n for n in (20, 90, 400, 1000)]
  lengths = pipeline.padded_lens(ids, 1.5)
  assert lengths[-1] == pipeline.padded_len(ids) == 1008
  assert all(a < b <= 1.5 * a for a, b in itertools.pairwise(lengths))
  assert lengths[0] < 1.5 * 20 + 16
  assert pipeline.padded_lens(ids, 0) == (1008,)


def test_no_prompt_is_padded_beyond_the_longest_that_is_allowed():
  assert pipeline.padded_lens([[1] * 17], 1.5, limit=17) == (17,)
  assert pipeline.padded_lens([[1] * 5], 1.5, limit=6) == (6,)
  assert pipeline.padded_lens([[1] * n for n in (20, 90, 1000)], 1.5, limit=1000)[-1] == 1000


def test_the_prompt_length_of_a_step_is_known_before_it_comes():
  ids = [[1] * n for n in (2, 3, 17, 40, 5, 6)]
  stream = pipeline.Prompts(ids, 2, pipeline.padded_lens(ids, 1.5), pad_id=0, seed=3)
  known = [stream.prompt_len(step) for step in range(9)]
  assert known == [next(stream).prompt.shape[1] for _ in range(9)]
  assert len(set(known)) > 1

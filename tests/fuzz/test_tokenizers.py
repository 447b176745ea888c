"""Tokenizer files and chat templates, whatever they say."""

import json
import pathlib
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_jax import config as configs
from opd_jax import inputs
from opd_jax.context.replies import ReplyForm
from opd_jax.data import problems, stop_tokens, tokenizer
from opd_jax.data.rendering import Rendering
from opd_jax.models import decoder, hf, hf_config
from tests.helpers.damage import accepted_or_refused, contents, damaged, json_bytes
from tests.helpers.fuzz import cases

FILES = ("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MISSING = {  # of the healthy directory, and what they are elsewhere
  "special_tokens_map.json": {"eos_token": {"content": "<eos>", "lstrip": False}, "pad_token": "<pad>"},
  "added_tokens.json": {"<more>": 31},
}
PROBLEMS = (
  {"prompt": "b=3;c=7;b+c=", "answer": "10"},
  {"prompt": "1+1=", "answer": "2"},
  {"prompt": "ÿ \n漢 <eos> x", "answer": "2"},  # texts that may have no token
)


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, pathlib.Path]:
  """Models whose tokenizers are of each kind that there is: whole words, merged bytes, and pieces with scores."""
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

  root, talker = tmp_path_factory.mktemp("models"), hf.resolve("builtin:talker")
  symbols = sorted(json.loads((talker / "tokenizer.json").read_bytes())["model"]["vocab"])
  merged = Tokenizer(models.BPE({s: i for i, s in enumerate([*symbols, "Ġ", "+-"])}, [("+", "-")], ignore_merges=True))
  merged.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "")])
  merged.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  merged.decoder = decoders.ByteLevel()
  merged.post_processor = processors.TemplateProcessing(
    "<eos> $A", "<eos> $A $B:1", [("<eos>", symbols.index("<eos>"))]
  )
  pieces = Tokenizer(models.Unigram([(s, -1.0 - i) for i, s in enumerate([*symbols, "▁"])], unk_id=0))
  pieces.pre_tokenizer = pre_tokenizers.Metaspace()
  pieces.decoder = decoders.Metaspace()
  shutil.copytree(talker, root / "words")
  for name, made in (("merged", merged), ("pieces", pieces)):
    made.add_special_tokens(["<eos>", "<pad>"])
    shutil.copytree(talker, root / name)
    made.save(str(root / name / "tokenizer.json"))
  for path in root.iterdir():
    config = json.loads((path / "config.json").read_bytes()) | {"vocab_size": 64}  # room for more tokens
    hf_config.write(
      path, decoder.DecoderConfig(64, 8, 1, 1, 1, 8, 8, qk_norm=True), pad_id=0, eos_id=config["eos_token_id"]
    )
  return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp("data") / "problems.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in PROBLEMS))
  return str(path)


def use(path: pathlib.Path, data: str, templated: bool) -> None:
  """All that a run does with a student's tokenizer before it begins, and what it does with a response."""
  config = configs.override(configs.default(), {"data.path": data, "data.chat_template": templated})
  stop_ids, vocab = hf.stop_ids(path), hf_config.read(path).vocab
  found = tokenizer.load(path)
  inputs.check_vocabulary(found, stop_ids, vocab)
  loaded = problems.load(config, data, found, held_out=False)
  assert all(0 <= i < vocab for row in loaded.ids for i in row)
  assert tokenizer.pad_id(found, stop_ids) >= 0
  tokenizer.compare(path, path, found, found, stop_ids, stop_ids)
  found.batch_decode([[0, 1, 5, 9], []], skip_special_tokens=False)
  tokenizer.ids_without_token(found, vocab)
  rendering = Rendering.from_config(config)
  stop_tokens.find(stop_ids, found, rendering)
  ReplyForm.of(found, rendering)


@pytest.mark.long
@cases(100)
@given(draw=st.data(), kind=st.sampled_from(("words", "merged", "merged", "pieces")), templated=st.booleans())
def test_a_tokenizer_of_any_files_is_loaded_and_used_or_refused(tmp_path, directories, data, draw, kind, templated):
  path = tmp_path / "copy"
  shutil.rmtree(path, ignore_errors=True)
  shutil.copytree(directories[kind], path, ignore=shutil.ignore_patterns("*.safetensors"))
  name = draw.draw(st.sampled_from(FILES))
  healthy = json.loads((path / name).read_bytes()) if (path / name).exists() else MISSING[name]
  (path / name).write_bytes(draw.draw(json_bytes(healthy)))
  before = contents(path)
  with accepted_or_refused(path, data):
    use(path, data, templated)
  assert contents(path) == before


CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
  "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}"
  "{% else %}{% set system = '' %}{% endif %}{{ '<eos>' + system }}{% for m in messages %}"
  "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
  "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}"
  "{% else %}{{ ' ' + m['content'].split('</think>')[-1] + '<eos>' }}{% endif %}{% endfor %}"
)
_names = st.sampled_from(
  ("messages", "m", "messages[0]['content']", "eos_token", "x", "tools", "date_string", "loop", "none")
)
_values = st.recursive(
  _names | st.sampled_from(("'A'", "0", "-1", "'<eos>'", "[]", "{}", "2 ** 9", "range(5)", "add_generation_prompt")),
  lambda inner: st.one_of(
    st.tuples(inner, st.sampled_from("+-*~%/<>"))
    .map(" ".join)
    .flatmap(lambda left: inner.map(lambda r: f"({left} {r})")),
    st.tuples(inner, st.sampled_from(("trim", "length", "tojson", "upper", "first", "int", "join", "nothing"))).map(
      " | ".join
    ),
    st.tuples(inner, st.sampled_from(("content", "role", "__class__", "append", "strip()", "split('a')"))).map(
      ".".join
    ),
    inner.map(lambda x: f"{x}[0]"),
    inner.map(lambda x: f"raise_exception({x})"),
  ),
  max_leaves=4,
)
_templates = st.recursive(
  st.sampled_from(("A", "<eos>", "\n", "{% break %}", "{{", "%}", "{% endfor %}", ""))
  | _values.map(lambda v: f"{{{{ {v} }}}}"),
  lambda inner: st.one_of(
    st.tuples(inner, inner).map("".join),
    st.tuples(_values, inner).map(lambda t: f"{{% for m in {t[0]} %}}{t[1]}{{% endfor %}}"),
    st.tuples(_values, inner).map(lambda t: f"{{% if {t[0]} %}}{t[1]}{{% endif %}}"),
    st.tuples(_values, inner).map(lambda t: f"{{% set x = {t[0]} %}}{t[1]}"),
    st.tuples(inner, _values).map(lambda t: f"{{% macro f(x) %}}{t[0]}{{% endmacro %}}{{{{ f({t[1]}) }}}}"),
  ),
  max_leaves=6,
)


@st.composite
def chat_templates(draw: st.DrawFn) -> str:
  """A template of a small grammar, or a real one with a piece lost, doubled or changed."""
  if draw(st.booleans()):
    return draw(_templates)
  real = draw(st.sampled_from((CHATML, LLAMA)))
  return draw(damaged(real.encode(), sizes=False)).decode(errors="replace")


@pytest.fixture(scope="module")
def talker():
  return tokenizer.load(hf.resolve("builtin:talker"))


PROMPTS = (
  *("b=3;", [{"role": "user", "content": "1"}], [{"role": "system", "content": "x"}, {"role": "user", "content": "2"}]),
  [
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "<think>2</think>3"},
    {"role": "user", "content": ""},
  ],
)


@pytest.mark.long
@cases(250)
@given(
  template=chat_templates(),
  prompts=st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3),
  system=st.sampled_from(("", "be brief")),
  on_bad_line=st.sampled_from(("refuse", "skip", "truncate")),
)
def test_prompts_under_any_chat_template_are_rendered_or_refused(
  tmp_path, talker, template, prompts, system, on_bad_line
):
  talker.chat_template = template
  path = tmp_path / "problems.jsonl"
  path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
  changes = {"data.system": system, "data.on_bad_line": on_bad_line, "data.max_prompt": 200}
  with accepted_or_refused(path, talker.name_or_path, "config.data.system"):
    config = configs.override(configs.default(), changes)
    found = problems.load(config, str(path), talker, held_out=False)
    assert len(found.ids) + found.skipped == len(prompts)
    assert all(type(i) is int for row in found.ids for i in row)
    ReplyForm.of(talker, Rendering.from_config(config))

"""The model card of an export: README.md with YAML front matter, as the Hugging Face hub reads it.

What it says comes from the workdir: config.json, run.json and the evaluation of the exported step. Files that are missing or damaged
leave their part out. Whatever a config says stands in JSON strings and code blocks, so that no value becomes markup; of paths
of this machine only the last part is written.
"""

import dataclasses
import html
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.models.spec import ModelSpec
from opd_jax.runtime import json_files
from opd_jax.runtime.json_files import is_number, is_whole

HUB_ID = r"[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?"
VLLM_RANKS = (8, 16, 32, 64, 128, 256)  # that it reserves memory for
HOME = re.compile(r"""(?:~|/home|/Users|/root|[A-Za-z]:[\\/]Users)(?=[\\/])[^\s"',;:]*""")


@dataclasses.dataclass(frozen=True)
class Exported:
  """What a card is about.

  Attributes:
    name: of the directory that is written.
    spec: of the model.
    adapter: whether it is a PEFT adapter, and no whole model.
    config: of the run; None: the model comes from no run, as the next two.
    workdir: of the run, on this machine.
    step: after which the weights are as they are.
    model: what the recipe calls it.
  """

  name: str
  spec: ModelSpec
  adapter: bool = False
  config: Config | None = None
  workdir: pathlib.Path | None = None
  step: int | None = None
  model: str = "student"


def text(exported: Exported) -> str:
  """Writes the card."""
  parts = [_front_matter(exported), f"# {_escaped(exported.name)}", _summary(exported), _results(exported)]
  parts += [_loading(exported), _data(exported), _settings(exported), _versions(exported)]
  card = "\n\n".join(part for part in parts if part) + "\n"
  return card.encode("utf-8", "replace").decode()  # names of files may be no text


def base_model(spec: ModelSpec) -> str:
  """Returns what the hub, or a reader, may know the model as that was trained: ORG/NAME, or the directory's name.

  A directory of the hub's own cache tells the organisation; of other directories the name alone is left.
  """
  if spec.name.startswith(configs.BUILTIN):
    return spec.name
  for part in reversed(spec.path.absolute().parts):
    if found := re.fullmatch(r"models--([\w.-]+?)--([\w.-]+)", part):
      return f"{found[1]}/{found[2]}"
  return spec.path.absolute().name


def _front_matter(exported: Exported) -> str:
  """Makes the YAML; its strings are written as JSON, which YAML reads."""
  base, config = base_model(exported.spec), exported.config
  tags = ["opd-jax", "on-policy-distillation"] if config is None or configs.teacher_names(config) else ["opd-jax"]
  recipe = config.recipe.rpartition(".")[2] if config else "opd"
  tags += [recipe] if recipe != "opd" and re.fullmatch(HUB_ID, recipe, re.ASCII) else []
  fields: dict[str, Any] = {}
  if re.fullmatch(HUB_ID, base, re.ASCII):
    fields["base_model"] = base
    if config:
      fields["base_model_relation"] = "adapter" if exported.adapter else "finetune"
  fields["library_name"] = "peft" if exported.adapter else "transformers"
  fields["pipeline_tag"] = "text-generation"
  fields["tags"] = [*tags, *(["lora"] if exported.adapter else [])]
  if licence := _licence(exported.spec.path):
    fields["license"] = licence
  lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())
  return f"---\n{lines}\n---"


def _licence(directory: pathlib.Path) -> str:
  """Returns the licence that the base's own card names; "" where it names none."""
  try:
    card = (directory / "README.md").read_text(encoding="utf-8", errors="replace")[:100_000]
  except OSError:
    return ""
  front = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
  found = re.search(r"""^license:[ \t]*["']?([\w.-]{1,40})["']?[ \t]*$""", front[1], re.MULTILINE) if front else None
  return found[1] if found else ""


def _summary(exported: Exported) -> str:
  base, config = _code(base_model(exported.spec)), exported.config
  if config is None:
    return f"A copy of {base}, written by opd_jax; it was not trained."
  what = f"An adapter of {base}" if exported.adapter else f"{base}"
  teachers = " and ".join(_code(_named(name)) for name in configs.teacher_names(config))
  taught = f" from {teachers}" if teachers else ""
  whose = "" if exported.model == "student" else f" It is the run's model {_code(exported.model)}."
  return (
    f"{what}, trained{taught} with opd_jax: recipe {_code(config.recipe)}, {_code(config.horizon.kind)} horizon of at most "
    f"{config.horizon.max} tokens, step {exported.step} of {config.steps}.{whose}"
  )


def _results(exported: Exported) -> str:
  """Tabulates the last evaluation up to the exported step, beside that before training."""
  by_step = {record["step"]: record for record in _evaluations(exported) if record["step"] <= (exported.step or 0)}
  if not by_step:
    return ""
  rows = "\n".join(_row(by_step[step]) for step in sorted({min(by_step), max(by_step)}))
  return (
    "## Results\n\nOn held-out problems, with full responses; intervals are 95%, over problems.\n\n"
    "| after step | accuracy | interval | problems | answers to each | mean tokens |\n|---|---|---|---|---|---|\n"
    + rows
  )


def _row(record: dict[str, Any]) -> str:
  length = record.get("length")
  mean = length.get("mean") if isinstance(length, dict) else None
  cells = (
    str(record["step"]),
    f"{record['accuracy']:.3f}",
    f"{record['low']:.3f} to {record['high']:.3f}",
    str(record["prompts"]) if is_whole(record.get("prompts")) else "",
    str(record["k"]) if is_whole(record.get("k")) else "",
    f"{mean:.0f}" if is_number(mean) else "",
  )
  return f"| {' | '.join(cells)} |"


def _evaluations(exported: Exported) -> Iterator[dict[str, Any]]:
  """Reads the evaluations of the exported model; lines that no run has written are passed over."""
  for line in _read(exported, "metrics.jsonl").splitlines():
    try:
      record = json_files.parse(line)
    except json_files.NotReadable:
      continue
    if not isinstance(record, dict) or record.get("kind") != "eval":
      continue
    numbers = all(is_number(record.get(key)) and abs(record[key]) <= 2 for key in ("accuracy", "low", "high"))
    if numbers and is_whole(record.get("step")) and record.get("model", exported.model) == exported.model:
      yield record


def _loading(exported: Exported) -> str:
  here, base = json.dumps(exported.name), json.dumps(base_model(exported.spec))
  if exported.adapter:
    python = (
      "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
      f'base = AutoModelForCausalLM.from_pretrained({base}, dtype="auto")\n'
      f"model = PeftModel.from_pretrained(base, {here})\ntokenizer = AutoTokenizer.from_pretrained({here})"
    )
    rank = exported.config.lora.rank if exported.config else 16
    most = next((size for size in VLLM_RANKS if size >= rank), rank)
    vllm = (
      "from vllm import LLM\nfrom vllm.lora.request import LoRARequest\n\n"
      f"llm = LLM({base}, enable_lora=True, max_lora_rank={most})\n"
      f'llm.generate(["..."], lora_request=LoRARequest("adapter", 1, {here}))'
    )
  else:
    python = (
      "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
      f'model = AutoModelForCausalLM.from_pretrained({here}, dtype="auto")\n'
      f"tokenizer = AutoTokenizer.from_pretrained({here})"
    )
    vllm = f"from vllm import LLM\n\nllm = LLM({here})"
  return f"## Loading\n\n{_block(python, 'python')}\n\n{_block(vllm, 'python')}"


def _data(exported: Exported) -> str:
  config = exported.config
  if config is None:
    return ""
  paths = configs.data_paths(config)
  held_out = config.eval.path or paths[0]
  lines = [f"- prompts of training: {', '.join(_code(_named(path)) for path in paths)}"]
  lines.append(f"- held-out problems: {_code(_named(held_out))}, verifier {_code(_named(config.data.verifier))}")
  return "## Data\n\n" + "\n".join(lines)


def _settings(exported: Exported) -> str:
  """Lists the keys of the config that differ from the defaults."""
  if exported.config is None:
    return ""
  own, usual = configs.flat(exported.config), configs.flat(configs.default())
  lines = [f"{key} = {json.dumps(_without_homes(v))}" for key, v in sorted(own.items()) if v != usual.get(key)]
  return "## Config\n\nKeys that differ from the defaults of opd_jax:\n\n" + _block("\n".join(lines), "text")


def _versions(exported: Exported) -> str:
  """Names versions, commit and devices of the run, and the framework."""
  try:
    info = json_files.parse(_read(exported, "run.json") or "{}")
  except json_files.NotReadable:
    info = {}
  info = info if isinstance(info, dict) else {}
  versions = info.get("versions") if isinstance(info.get("versions"), dict) else {}
  found = [f"{name} {version}" for name, version in versions.items()]
  found += [f"{key} {info[key]}" for key in ("commit", "devices") if isinstance(info.get(key), str)]
  return "## Made with\n\n" + _block("\n".join(_without_homes(line) for line in found), "text") if found else ""


def _read(exported: Exported, name: str) -> str:
  if exported.workdir is None:
    return ""
  try:
    return (exported.workdir / name).read_text(encoding="utf-8", errors="replace")
  except OSError:
    return ""


def _named(value: str) -> str:
  """Returns a path's last part, where it is one of this machine; names and tasks as they are."""
  value = str(value)
  if "://" in value or value.startswith((configs.TASK, configs.BUILTIN)):
    return value
  return re.split(r"[\\/]", value.rstrip("\\/"))[-1]


def _without_homes(value: Any) -> Any:
  """Leaves of every path outside the working directory its last part, inside of lists and mappings too."""
  if isinstance(value, dict):
    return {_without_homes(key): _without_homes(v) for key, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_without_homes(v) for v in value]
  if not isinstance(value, str):
    return value
  if re.match(r"[\\/~]|[A-Za-z]:[\\/]|\.\.[\\/]", value) and "\n" not in value:
    return _named(value)
  return HOME.sub(lambda found: _named(found[0]), value)


def _escaped(value: str) -> str:
  """Makes a text of one line, in which nothing is markup."""
  line = html.escape(" ".join(value.split()), quote=False)
  return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", line)


def _code(value: str) -> str:
  """Makes inline code, with more backticks around it than are in it."""
  line = " ".join("".join(c if c.isprintable() else " " for c in value).split())
  ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
  pad = " " if line.startswith("`") or line.endswith("`") else ""
  return f"{ticks}{pad}{line}{pad}{ticks}" if line else ""


def _block(code: str, language: str) -> str:
  """Makes a code block, with a longer fence than any in it."""
  fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
  return f"{fence}{language}\n{code}\n{fence}"

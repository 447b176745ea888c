"""Makes conversations of single-turn problems: the question first, then fact after fact (context/split_problem.py).

    python -m opd_jax.make_conversations --data=train.jsonl --prompt-field=question --out=conversations.jsonl
    python -m opd_jax.make_conversations --data=train.jsonl --prompt-field=question --out=conversations.jsonl --user=DIR

Each line of the result has the user's turns as "messages", the problem as "canonical", and its "answer". Training makes the
same conversations by itself; a file is for looking at them, for changing them, and for --user: a model on this machine that
puts every turn into words of its own. Where it loses or adds a number, the turn stays as it was.

    python -m opd_jax.train --config=configs/ccopd.py:hf --config.data.path=conversations.jsonl \\
        --config.data.prompt_field=messages --config.data.canonical_field=canonical ...
"""

import argparse
import collections
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opd_jax.config import expanded_path
from opd_jax.context.split_problem import CannotSplit, from_example
from opd_jax.data import sources, styles
from opd_jax.data.conversation import Conversation, message
from opd_jax.errors import InputError
from opd_jax.models import model_sharding
from opd_jax.runtime import cli, json_files

REQUEST = (  # to a model that rephrases a turn, which stands for "{}"; our words
  "Say the following in your own words, as a person would in a chat, in one short message. Keep every number and every "
  "name, and add nothing. Reply with the message alone.\n\n{}"
)
MAX_TOKENS = 128  # of a rephrased turn

Generate = Callable[[Sequence[str]], list[str]]  # prompts -> a response to each


def convert(
  examples: Sequence[sources.Example], user: str, max_turns: int
) -> tuple[list[tuple[sources.Example, Conversation]], collections.Counter]:
  """Make conversations of problems; returns them with their problems, and how often which reason left a problem out.

  Args:
    user: "templates" or "plain", see config.context.user.
    max_turns: of the user; 0: no limit.
  """
  converted, reasons = [], collections.Counter()
  for example in examples:
    try:
      converted.append((example, from_example(example, user, max_turns)))
    except CannotSplit as e:
      reasons[re.sub(r"^'.*' is", "a word is", str(e))] += 1
  return converted, reasons


def rephrase(conversations: Sequence[Conversation], generate: Generate) -> tuple[list[tuple[str, ...]], int]:
  """Put every turn into the words of a model; a turn stays as it was where the model loses or adds a number.

  Returns:
    The turns of each conversation, and how many turns stayed.
  """
  old = [turn for conversation in conversations for turn in conversation.turns]
  responses = generate([REQUEST.format(turn) for turn in old])
  turns, unchanged = [], 0
  for old_turn, response in zip(old, responses, strict=True):
    new_turn = " ".join(response.split())
    if new_turn and numbers(new_turn) == numbers(old_turn):
      turns.append(new_turn)
    else:
      turns.append(old_turn)
      unchanged += 1
  remaining = iter(turns)
  return [tuple(next(remaining) for _ in conversation.turns) for conversation in conversations], unchanged


def numbers(text: str) -> list[str]:
  """The numbers in a text as they are written, sorted."""
  return sorted(re.findall(r"\d+(?:[.,]\d+)*", text))


def load_rephraser(directory: str, template_args: Mapping[str, Any] | None = None) -> Generate:
  """Load a model on this machine that responds to prompts at temperature 1.

  Args:
    template_args: what its chat template is told by name.
  """
  import jax

  from opd_jax import inputs
  from opd_jax.context.replies import control_tokens, final_text
  from opd_jax.data import chat, lost_text, pipeline
  from opd_jax.data import rendering as renderings
  from opd_jax.data import tokenizer as tokenizers
  from opd_jax.models import hf
  from opd_jax.rollout.generate import Generator, GeneratorConfig
  from opd_jax.rollout.sample import Sampling
  from opd_jax.rollout.segments import DEFAULT
  from opd_jax.runtime import began
  from opd_jax.runtime import mesh as meshes
  from opd_jax.training import specs

  rendering = renderings.Rendering(args=template_args or {}, moment=began.now())
  model, tokenizer = inputs.model_and_tokenizer(directory, rendering)
  if model.stop_note:
    print(f"note: {model.stop_note}")
  mesh = meshes.make()
  control = control_tokens(tokenizer)
  dtype = specs.compute_dtype("auto", mesh)
  params = hf.load(model.path, model.cfg, model_sharding.parameter_shardings(mesh, model.cfg), dtype)
  if chat.uses_template(tokenizer, rendering):
    renderings.check(rendering, tokenizer)
  never = tokenizers.ids_without_token(tokenizer, model.cfg.vocab)
  sampling = Sampling(model.stop_ids, tokenizers.pad_id(tokenizer, model.stop_ids), model.cfg.vocab, never=never)
  generator_config = GeneratorConfig(model.cfg, sampling, DEFAULT, "xla", mesh, dtype)

  def generate(prompts: Sequence[str]) -> list[str]:
    for note in lost_text.notes("turns", prompts, tokenizer):
      print(f"note: {note}")
    ids = chat.render_all(prompts, tokenizer, rendering)
    prompt_lens = (pipeline.padded_len(ids),)
    generator = Generator(generator_config, tokenizer, batch=64, prompt_lens=prompt_lens, max_tokens=MAX_TOKENS)
    responses = generator(params, ids, jax.random.key(0)).responses
    return [final_text(response, control) for response in responses]

  return generate


def main() -> None:
  """Run the command line."""
  parser = argparse.ArgumentParser(
    prog="python -m opd_jax.make_conversations",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--data", type=expanded_path, required=True, help="a file of problems, of any format of data.path"
  )
  parser.add_argument("--prompt-field", default="prompt")
  parser.add_argument("--answer-field", default="answer")
  parser.add_argument(
    "--out", type=expanded_path, help="a JSONL file of conversations; without it only the figures are printed"
  )
  parser.add_argument("--user", default="templates", help="templates, plain, or a model's directory")
  parser.add_argument(
    "--template-args", default="{}", help="""what a model's chat template is told: '{"enable_thinking": false}'"""
  )
  parser.add_argument("--max-turns", type=int, default=8, help="problems of more facts have neighbours joined")
  parser.add_argument("--first", type=int, default=0, help="only so many problems")
  args = parser.parse_args()
  cli.quiet()
  with cli.reporting_the_end():
    run(args)


def run(args: argparse.Namespace) -> None:
  """Convert the problems of --data, print how many can be converted and why the others cannot, and write --out.

  Raises:
    InputError: --out exists or cannot be written, or a line of --data is bad.
  """
  template_args = _template_args(args.template_args)
  if args.out and args.out.exists():
    raise InputError(f"{args.out} exists; name a new file.")
  if args.out and not args.out.parent.is_dir():
    raise InputError(f"--out={args.out} cannot be written: there is no directory {args.out.parent}.")
  fields = styles.Fields(args.prompt_field, args.answer_field)
  found = sources.read_examples(args.data, fields, "refuse", need_answer=False)
  for note in found.notes:
    print(f"note: {note}")
  examples = found.examples[: args.first or None]
  by_rule = args.user in ("templates", "plain")
  converted, reasons = convert(examples, args.user if by_rule else "plain", args.max_turns)
  turns = [conversation.turns for _, conversation in converted]
  share = len(converted) / len(examples)
  print(f"{len(converted)} of {len(examples)} problems can be told turn by turn ({share:.2%})")
  for reason, n in reasons.most_common():
    print(f"  left out: {n} ({reason})")
  spread = collections.Counter(map(len, turns))
  print("  turns of the user: " + ", ".join(f"{k}: {n}" for k, n in sorted(spread.items())))
  if not by_rule:
    turns, unchanged = rephrase(
      [conversation for _, conversation in converted], load_rephraser(args.user, template_args)
    )
    print(
      f"  in the words of {args.user}: all but {unchanged} of {sum(map(len, turns))} turns, "
      "which keep their numbers as they were"
    )
  if not args.out:
    return
  with args.out.open("w", encoding="utf-8") as file:
    for (example, conversation), user_turns in zip(converted, turns, strict=True):
      full = conversation.full
      line = {
        "messages": [*conversation.system, *(message("user", turn) for turn in user_turns)],
        "canonical": full if isinstance(full, str) else full[-1]["content"],
        "answer": example.answer,
      }
      file.write(json.dumps(line, ensure_ascii=False) + "\n")
  print(f"written to {args.out}")


def _template_args(text: str) -> dict[str, Any]:
  """Reads --template-args.

  Raises:
    InputError: it is no dictionary of scalars.
  """
  from opd_jax.data import rendering

  try:
    values = json_files.parse(text)
  except json_files.NotReadable:
    values = None
  if not isinstance(values, dict):
    raise InputError(f"""--template-args is {text!r}; write it as '{{"enable_thinking": false}}'.""")
  rendering.check_args("--template-args", values)
  return values


if __name__ == "__main__":
  main()

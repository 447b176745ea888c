"""Makes conversations of single-turn problems: the question first, then fact after fact (context/shards.py).

    python -m opd_jax.tell --data=train.jsonl --prompt-field=question --out=conversations.jsonl
    python -m opd_jax.tell --data=train.jsonl --prompt-field=question --out=conversations.jsonl --user=DIR

Each line of the result has the user's turns as "messages", the problem as "canonical", and its "answer". Training makes the
same conversations by itself; a file is for looking at them, for changing them, and for --user: a model on this machine that
puts every turn into words of its own. Where it loses or adds a number, the turn stays as it was.

    python -m opd_jax.train --config=configs/ccopd.py:hf --config.data.path=conversations.jsonl \\
        --config.data.prompt_field=messages --config.data.canonical_field=canonical ...
"""

import argparse
import collections
import json
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

from opd_jax import cli
from opd_jax.context.conversation import Conversation, from_example
from opd_jax.context.shards import Unfit
from opd_jax.data import sources
from opd_jax.errors import InputError

REQUEST = (  # ours
  "Say the following in your own words, as a person would in a chat, in one short message. Keep every number and every "
  "name, and add nothing. Reply with the message alone.\n\n{}"
)
LONGEST = 128  # tokens of a turn that a model puts into words

Speak = Callable[[Sequence[str]], list[str]]  # prompts -> a reply to each


def tell(
  examples: Sequence[sources.Example], user: str, max_turns: int
) -> tuple[list[tuple[sources.Example, Conversation]], collections.Counter]:
  """The problems that can be told, and why others cannot."""
  told, unfit = [], collections.Counter()
  for example in examples:
    try:
      told.append((example, from_example(example, user, max_turns)))
    except Unfit as e:
      unfit[re.sub(r"^'.*' is", "a word is", str(e))] += 1
  return told, unfit


def rephrase(talks: Sequence[Conversation], speak: Speak) -> tuple[list[tuple[str, ...]], int]:
  """Every turn in the words of `speak`, or as it was where numbers differ; and how many stayed."""
  plain = [turn for talk in talks for turn in talk.turns]
  said = [" ".join(text.split()) for text in speak([REQUEST.format(turn) for turn in plain])]
  good = [bool(new) and numbers(new) == numbers(old) for new, old in zip(said, plain, strict=True)]
  turns = iter([new if fits else old for new, old, fits in zip(said, plain, good, strict=True)])
  return [tuple(next(turns) for _ in talk.turns) for talk in talks], good.count(False)


def numbers(text: str) -> list[str]:
  return sorted(re.findall(r"\d+(?:[.,]\d+)*", text))


def speaker(directory: str) -> Speak:
  """A model on this machine, at temperature 1."""
  import jax

  from opd_jax import inputs
  from opd_jax import mesh as meshes
  from opd_jax.context import chat
  from opd_jax.data import pipeline
  from opd_jax.data import tokenizer as tokenizers
  from opd_jax.models import hf
  from opd_jax.rollout.sample import Sampling
  from opd_jax.rollout.segments import DEFAULT
  from opd_jax.speaker import Speaker, Voice

  model = inputs.model(directory)
  tokenizer, mesh = tokenizers.load(model.path), meshes.make()
  dtype = inputs.compute_dtype("auto", mesh)
  params = hf.read(model.path, model.cfg, meshes.parameter_shardings(mesh, model.cfg), dtype)
  sampling = Sampling(model.stop_ids, tokenizers.pad_id(tokenizer, model.stop_ids), model.cfg.vocab)
  voice = Voice(model.cfg, sampling, DEFAULT, "xla", mesh, dtype)

  def speak(prompts: Sequence[str]) -> list[str]:
    ids = chat.render_all(prompts, tokenizer, chat_template=True)
    speaks = Speaker(voice, tokenizer, batch=64, widths=(pipeline.width(ids),), max_tokens=LONGEST)
    return speaks(params, ids, jax.random.key(0)).texts

  return speak


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m opd_jax.tell", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data", type=pathlib.Path, required=True, help="a JSONL file of problems")
  parser.add_argument("--prompt-field", default="prompt")
  parser.add_argument("--answer-field", default="answer")
  parser.add_argument(
    "--out", type=pathlib.Path, help="a JSONL file of conversations; without it only the figures are said"
  )
  parser.add_argument("--user", default="templates", help="templates, plain, or a model's directory")
  parser.add_argument("--max-turns", type=int, default=8, help="problems of more facts have neighbours joined")
  parser.add_argument("--first", type=int, default=0, help="only so many problems")
  args = parser.parse_args()
  cli.quiet()
  try:
    run(args)
  except InputError as e:
    print(f"error: {e}", file=sys.stderr)
    sys.exit(2)


def run(args: argparse.Namespace) -> None:
  if args.out and args.out.exists():
    raise InputError(f"{args.out} exists; name a new file.")
  if args.out and not args.out.parent.is_dir():
    raise InputError(f"--out={args.out} cannot be written: there is no directory {args.out.parent}.")
  examples, _ = sources.read_jsonl(args.data, args.prompt_field, args.answer_field, "refuse", need_answer=False)
  examples = examples[: args.first or None]
  own = args.user in ("templates", "plain")
  told, unfit = tell(examples, args.user if own else "plain", args.max_turns)
  turns = [talk.turns for _, talk in told]
  print(f"{len(told)} of {len(examples)} problems can be told turn by turn ({len(told) / len(examples):.2%})")
  for why, n in unfit.most_common():
    print(f"  left out: {n} ({why})")
  spread = collections.Counter(map(len, turns))
  print("  turns of the user: " + ", ".join(f"{k}: {n}" for k, n in sorted(spread.items())))
  if not own:
    turns, stayed = rephrase([talk for _, talk in told], speaker(args.user))
    print(
      f"  in the words of {args.user}: all but {stayed} of {sum(map(len, turns))} turns, which keep their numbers as they were"
    )
  if not args.out:
    return
  with args.out.open("w", encoding="utf-8") as file:
    for (example, talk), said in zip(told, turns, strict=True):
      line = {
        "messages": [*talk.system, *({"role": "user", "content": turn} for turn in said)],
        "canonical": talk.full if isinstance(talk.full, str) else talk.full[-1]["content"],
        "answer": example.answer,
      }
      file.write(json.dumps(line, ensure_ascii=False) + "\n")
  print(f"written to {args.out}")


if __name__ == "__main__":
  main()

"""What a pruned model is healed on: instructions of several kinds, and easy word problems to ask it afterwards.

    python -m opd_jax.studies.healing.prompts DIR       writes train.jsonl, held_out.jsonl and word_problems.jsonl

All are written here, so that a study needs no download. Topics that are held out are in no prompt that is trained on, and the word problems that
are asked are others than those that are trained on.
"""

import itertools
import json
import pathlib
import random
import sys

KINDS = {
  "explain": "Explain {} in two sentences.",
  "list": "List three facts about {}.",
  "why": "Why do people care about {}?",
  "child": "How would you describe {} to a child?",
  "advice": "Give me some advice about {}.",
  "story": "Write a very short story about {}.",
  "poem": "Write four lines of a poem about {}.",
  "wrong": "What do most people get wrong about {}?",
  "steps": "What are the first steps to learn more about {}?",
  "letter": "Write a short letter to a friend about {}.",
}
TOPICS = (
  "rain", "the moon", "bread", "old trees", "bicycles", "sleep", "the sea", "a good teacher", "maps", "honey bees", "winter", "music",
  "a small garden", "trains", "glass", "mountains", "cooking rice", "cats", "the heart", "books", "running", "volcanoes", "tea", "chess",
  "painting", "birds that fly south", "salt", "bridges", "friendship", "clocks", "rivers", "paper", "stars", "wool", "a first job", "fire",
  "saving money", "dogs", "the alphabet", "deserts", "photographs", "soap", "wind", "coral reefs", "a long walk", "electricity", "markets",
  "snow", "memory", "apples", "languages", "sailing", "the human hand", "lighthouses", "dancing", "iron", "public libraries", "spring",
  "spiders", "a quiet morning",
)  # fmt: skip
HELD_OUT = TOPICS[::6]  # every sixth
NAMES = ("Anna", "Ben", "Clara", "David", "Ella", "Farid", "Grace", "Hugo", "Ines", "Jonas")
THINGS = ("apples", "books", "marbles", "stickers", "pencils", "shells", "coins", "cookies")
STORIES = (
  ("{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?", "+"),
  ("{name} had {a} {things} and gave {b} of them away. How many {things} are left?", "-"),
  ("{name} has {a} bags with {b} {things} in each. How many {things} are there in all?", "*"),
  ("{name} found {a} {things} in the morning and {b} in the afternoon. How many {things} did {name} find?", "+"),
  ("There were {a} {things} on the table. {name} took {b}. How many {things} are on the table now?", "-"),
)
ANSWER = " Give the answer as a number."


def instructions(held_out: bool) -> list[str]:
  """List the instructions on the topics that are held out, or on all others, in an order that mixes both topics and kinds."""
  topics = [topic for topic in TOPICS if (topic in HELD_OUT) == held_out]
  found = [KINDS[kind].format(topic) for topic, kind in itertools.product(topics, KINDS)]
  random.Random("instructions").shuffle(found)
  return found


def word_problems(n: int, held_out: bool) -> list[tuple[str, str]]:
  """Draw n problems of one step, with their answers."""
  rng, found = random.Random(f"word problems {held_out}"), []
  for i in range(n):
    text, operation = STORIES[i % len(STORIES)]
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    if operation == "-":
      a += b
    answer = {"+": a + b, "-": a - b, "*": a * b}[operation]
    question = text.format(name=rng.choice(NAMES), things=rng.choice(THINGS), a=a, b=b)
    found.append((question + ANSWER, str(answer)))
  return found


TRAINED, ASKED, PROBLEMS = "train.jsonl", "held_out.jsonl", "word_problems.jsonl"
NUMBER = 100  # word problems, of those that are trained on and of those that are asked


def write(folder: pathlib.Path) -> None:
  """Write what is trained on, what is answered at length, and the problems that are asked."""
  folder.mkdir(parents=True, exist_ok=True)
  trained = [{"prompt": text} for text in instructions(held_out=False)]
  trained += [{"prompt": text} for text, _ in word_problems(NUMBER, held_out=False)]
  asked = [{"prompt": text} for text in instructions(held_out=True)]
  problems = [{"prompt": text, "answer": answer} for text, answer in word_problems(NUMBER, held_out=True)]
  for name, records in ((TRAINED, trained), (ASKED, asked), (PROBLEMS, problems)):
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def longest(path: pathlib.Path, model: str) -> int:
  """Count the tokens of a file's longest prompt, as this model reads it, rounded up to a multiple of 16."""
  from opd_jax import config as configs
  from opd_jax import inputs
  from opd_jax.data import pipeline
  from opd_jax.data.rendering import Rendering

  config = configs.override(configs.default(), {"student": model})
  rendering = Rendering.from_config(config)
  _, tokenizer = inputs.model_and_tokenizer(model, rendering)
  return pipeline.padded_len(inputs.load_problems(config, str(path), tokenizer, rendering, held_out=False).ids)


if __name__ == "__main__":
  if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit("usage: python -m opd_jax.studies.healing.prompts DIR")
  write(pathlib.Path(sys.argv[1]))

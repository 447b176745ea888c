"""Makes the models that see and ship with the package: next-token prediction on questions about pictures, with the tower from scratch.

    python -m opd_jax.tasks.pretrain_scenes --views=crop,marked,marked,whole --steps=450 --out=BEGUN                 15 minutes on half a core
    CROPS=crop,crop,crop,crop,crop,crop,crop,marked
    python -m opd_jax.tasks.pretrain_scenes --init=BEGUN --views=$CROPS --steps=150 --lr=7e-4 --seed=1 --out=DIR     scenes-student; 5 minutes
    python -m opd_jax.tasks.pretrain_scenes --init=opd_jax/tasks/assets/scenes-student --views=marked,marked,marked,crop --steps=200 \\
        --lr=7e-4 --seed=2 --out=DIR                                                                                 scenes-expert; 7 minutes

Rows are questions about a box, with the crop of it, with the whole picture and the box in red, or with the whole picture alone, and questions
about all of a picture (tasks/scenes.py). Both are written as directories of Qwen3-VL, with the settings of its image processor, and are
loaded like any other model.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import random
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from opd_jax.models import decoder, hf, hf_config, hf_vision, image_rows, image_views, weights
from opd_jax.models.image_rows import Picture
from opd_jax.models.vision import VisionConfig
from opd_jax.tasks import scenes
from opd_jax.types import Images, Params

SCALE = 0.08  # of the random weights: with the usual .02 so narrow a model stays where it is for hundreds of steps
ZOOM = 2.0  # of crops, as in configs/vision_opd.py
PATCH, MERGE = scenes.CELL // 2, 2  # a feature for each cell of a picture, and four for each of a crop
ROOM = scenes.SIDE**2  # features of a picture, and of a crop, which is as large
PROMPT, RESPONSE = 22, scenes.SCENES.max_response
START, IMAGE, END = (scenes.TOKENIZER.ids[token] for token in scenes.IMAGE_TOKENS)
TEXT = {
  "model_type": "qwen3_vl_text",
  "vocab_size": len(scenes.TOKENIZER.ids),
  "hidden_size": 128,
  "intermediate_size": 384,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 32,
  "num_hidden_layers": 3,
  "max_position_embeddings": 512,
  "rope_parameters": {
    "rope_type": "default",
    "rope_theta": 1e4,
    "mrope_section": [6, 5, 5],
    "mrope_interleaved": True,
  },
}
TOWER = {
  "depth": 3,
  "hidden_size": 96,
  "num_heads": 4,
  "intermediate_size": 288,
  "patch_size": PATCH,
  "spatial_merge_size": MERGE,
  "num_position_embeddings": (2 * scenes.SIDE) ** 2,
  "deepstack_visual_indexes": [0],
  "out_hidden_size": TEXT["hidden_size"],
}
CONFIG = {
  "architectures": ["Qwen3VLForConditionalGeneration"],
  "model_type": "qwen3_vl",
  "text_config": TEXT,
  "vision_config": TOWER,
  "tie_word_embeddings": True,
  "vision_start_token_id": START,
  "image_token_id": IMAGE,
  "vision_end_token_id": END,
  "bos_token_id": None,
  "eos_token_id": scenes.TOKENIZER.ids[scenes.EOS],
  "pad_token_id": scenes.TOKENIZER.ids[scenes.PAD],
}
PIXELS = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": (scenes.SIDE * scenes.CELL) ** 2}
PROCESSOR = {"size": PIXELS, "patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}


class Rows(NamedTuple):
  """Solved questions as arrays."""

  tokens: np.ndarray  # int32[rows, PROMPT + RESPONSE], prompts padded on the left and responses on the right
  weights: np.ndarray  # f32[rows, PROMPT + RESPONSE], 1 on what is learned
  images: Images
  view: np.ndarray  # int32[rows], of VIEWS


VIEWS = ("crop", "marked", "whole", "about all of it")


def picture(image: Image.Image) -> Picture:
  """Cut an image whose sides are multiples of a feature's into patches, as the image processor does; it takes a tenth of the time."""
  side = PATCH * MERGE
  pixels = (np.asarray(image, np.float32) / 255 - 0.5) / 0.5
  tall, wide = pixels.shape[0] // side, pixels.shape[1] // side
  grid = pixels.reshape(tall, MERGE, PATCH, wide, MERGE, PATCH, 3).transpose(0, 3, 1, 4, 6, 2, 5)
  return Picture(grid.reshape(tall * wide * MERGE**2, -1), tall * MERGE, wide * MERGE)


def shown(question: scenes.Question, view: str) -> Picture:
  """What a model sees of a question: the "whole" picture, the box "marked", or its "crop"."""
  image = Image.fromarray(question.scene.pixels())
  if question.box is None or view == "whole":
    return picture(image)
  boxes = [question.box]
  return picture(image_views.marked(image, boxes) if view == "marked" else image_views.cropped(image, boxes, ZOOM))


def filled(questions: Sequence[tuple[scenes.Question, str]], tower: VisionConfig) -> Rows:
  """Lay out questions, each with its view, with their answers."""
  pictures = [shown(*each) for each in questions]
  tokens = np.full((len(questions), PROMPT + RESPONSE), scenes.TOKENIZER.ids[scenes.PAD], np.int32)
  learned = np.zeros(tokens.shape, np.float32)
  prompts = []
  for row, ((question, _), seen) in enumerate(zip(questions, pictures, strict=True)):
    features = len(seen.pixels) // MERGE**2
    prompts.append([START, *[IMAGE] * features, END, *scenes.TOKENIZER.encode(question.prompt)])
    answer = scenes.TOKENIZER.encode([*question.answer, scenes.EOS])
    tokens[row, PROMPT - len(prompts[-1]) : PROMPT] = prompts[-1]
    tokens[row, PROMPT : PROMPT + len(answer)] = answer
    learned[row, PROMPT : PROMPT + len(answer)] = 1
  sizes = [[seen.features(MERGE)] for seen in pictures]
  places = image_rows.places_of(prompts, sizes, width=PROMPT, room=ROOM, image_id=IMAGE)
  patches = image_rows.patches([[seen] for seen in pictures], ROOM * MERGE**2, tower)
  view = [VIEWS.index(view) if question.box else len(VIEWS) - 1 for question, view in questions]
  images = places.replace(patches=patches)  # pyright: ignore[reportAttributeAccessIssue]: of flax
  return Rows(tokens, learned, images, np.array(view, np.int32))


def batches(tower: VisionConfig, rows: int, seed: int, views: Sequence[str]) -> Iterator[Rows]:
  """Yield questions with answers: about a box, each of `views` as often, and unless all are crops one of five about a whole picture."""
  rng = random.Random(f"pretrain scenes {seed}")
  others = (scenes.MAJORITY, scenes.COUNT)
  while True:
    questions = []
    for row in range(rows):
      if row % 5 or set(views) == {"crop"}:
        questions.append((scenes.SCENES.question(rng), views[row % len(views)]))
      else:
        questions.append((others[row // 5 % 2].question(rng), "whole"))
    yield filled(questions, tower)


def train(cfg: decoder.DecoderConfig, params: Params, data: Iterator[Rows], steps: int, lr: float) -> Params:
  """Train decoder and tower on what `data` yields by AdamW with warm-up and cosine decay; prints loss and share of right answers."""
  schedule = optax.warmup_cosine_decay_schedule(0, lr, steps // 20 + 1, steps, lr / 100)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
  state = optimizer.init(params)

  def loss_of(params: Params, rows: Rows) -> tuple[jax.Array, jax.Array]:
    tokens, mask = jnp.asarray(rows.tokens), rows.tokens != scenes.TOKENIZER.ids[scenes.PAD]
    x = decoder.hidden(params, cfg, tokens, mask, images=rows.images)
    logits, targets = decoder.unembed(params, x[:, PROMPT - 1 : -1]), tokens[:, PROMPT:]
    weights = rows.weights[:, PROMPT:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    right = jnp.all((logits.argmax(-1) == targets) | (weights == 0), axis=1)
    return jnp.sum(losses * weights) / jnp.sum(weights), right

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params: Params, state: optax.OptState, rows: Rows):
    (loss, right), grads = jax.value_and_grad(loss_of, has_aux=True)(params, rows)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss, right

  began, rights = time.perf_counter(), []
  for i in range(steps):
    rows = next(data)
    params, state, loss, right = step(params, state, rows)
    rights.append((rows.view, right))
    if (i + 1) % max(1, steps // 30) == 0:
      view, right = (np.concatenate(each) for each in zip(*rights[-10:], strict=True))
      shares = ", ".join(f"{VIEWS[k]} {right[view == k].mean():.3f}" for k in sorted(set(view.tolist())))
      seconds = time.perf_counter() - began
      print(f"step {i + 1:5d}/{steps}  loss {float(loss):.4f}  right: {shares}  {seconds:.0f} s", flush=True)
      rights = []
  return params


def write_description(directory: pathlib.Path) -> None:
  """Write all of a model's directory but its weights."""
  directory.mkdir(parents=True)
  (directory / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
  ends = {key: CONFIG[key] for key in ("eos_token_id", "pad_token_id")}
  (directory / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
  (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n")
  scenes.TOKENIZER.save(directory)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--init", type=pathlib.Path, help="go on from a model made before")
  parser.add_argument("--steps", type=int, default=1500)
  parser.add_argument("--rows", type=int, default=128)
  parser.add_argument("--lr", type=float, default=1e-3)
  parser.add_argument("--scale", type=float, default=SCALE)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--views", default="crop,crop,marked,whole", help="of questions about a box, by how often")
  args = parser.parse_args()
  if args.out.exists():
    parser.error(f"{args.out} exists; name a new directory")
  write_description(args.out)
  tower = hf_vision.described(CONFIG).tower
  cfg = dataclasses.replace(hf_config.read(args.out), tower=tower)
  params = hf.load(args.init, cfg) if args.init else decoder.init(cfg, jax.random.key(args.seed), args.scale)
  data = batches(tower, args.rows, args.seed, args.views.split(","))
  params = train(cfg, params, data, args.steps, args.lr)
  weights.write(args.out, cfg, params, "BF16", 5e9)
  print(f"wrote {args.out}")


if __name__ == "__main__":
  main()

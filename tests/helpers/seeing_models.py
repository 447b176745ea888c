"""Tiny models that see images, of the three families, with random weights that let every parameter and trait be seen."""

import numpy as np

VOCAB, IMAGE, START, END = 61, 57, 58, 59
TEXT = {
  "vocab_size": VOCAB,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 512,
  "num_hidden_layers": 3,
}
TOWER = {"hidden_size": 32, "num_heads": 2, "intermediate_size": 40, "out_hidden_size": 32, "patch_size": 4}
IDS = {"image_token_id": IMAGE, "video_token_id": 60, "vision_start_token_id": START, "vision_end_token_id": END}
SIZES = ((4, 6), (2, 2), (6, 10), (10, 4))  # of images, patches


def configs(transformers):
  """The config of each family by its model_type."""

  def rope(*sections, **more):
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}

  q25 = transformers.Qwen2_5_VLConfig(
    text_config=TEXT | {"rope_parameters": rope(1, 2, 1)},
    vision_config=TOWER | {"depth": 3, "window_size": 16, "fullatt_block_indexes": [1]},
    **IDS,
  )
  table = {"num_position_embeddings": 25}
  q3 = transformers.Qwen3VLConfig(
    text_config=TEXT | {"head_dim": 16, "rope_parameters": rope(4, 2, 2, mrope_interleaved=True)},
    vision_config=TOWER | table | {"depth": 4, "deepstack_visual_indexes": [0, 2]},
    **IDS,
  )
  delta = {"num_key_heads": 2, "num_value_heads": 4, "key_head_dim": 8, "value_head_dim": 12}
  q35 = transformers.Qwen3_5Config(
    text_config=TEXT
    | {f"linear_{key}": n for key, n in delta.items()}
    | {
      "num_hidden_layers": 4,
      "head_dim": 16,
      "rope_parameters": rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5),
    },
    vision_config=TOWER | table | {"depth": 2},
    **IDS,
  )
  return {"qwen2_5_vl": q25, "qwen3_vl": q3, "qwen3_5": q35}


def make(pt, family: str, directory):
  """Write a model and return it."""
  torch, transformers = pt
  config = configs(transformers)[family]
  classes = {
    "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
    "qwen3_5": transformers.Qwen3_5ForConditionalGeneration,
  }
  torch.manual_seed(0)
  model = classes[family](config)
  with torch.no_grad():
    for name, p in model.named_parameters():
      about = 1.0 if "norm" in name and name.endswith("weight") and "visual" in name else 0.0
      p.copy_(about + torch.randn_like(p) * (0.2 if "visual" in name else 0.3))
  model.eval().save_pretrained(directory)
  return model


def patches_of(tower, sizes, seed=0):
  """Random pixels of images, each behind the other, as a processor has them: float32[patches, C T p p], without the frames' repeats."""
  rng = np.random.default_rng(seed)
  return [rng.normal(size=(h * w, tower.pixels)).astype(np.float32) for h, w in sizes]


def as_frames(pixels, tower):
  """Repeat each patch over its frames, as a processor does."""
  by_channel = pixels.reshape(len(pixels), tower.channels, 1, -1)
  return np.repeat(by_channel, tower.frames, axis=2).reshape(len(pixels), -1)


def prompt_of(sizes, merge=2, seed=0):
  """A prompt with images between words: token ids."""
  rng, ids = np.random.default_rng(seed), []

  def words(n):
    return rng.integers(1, 50, n).tolist()

  ids += words(2)
  for h, w in sizes:
    ids += [START, *[IMAGE] * (h * w // merge**2), END, *words(2)]
  return ids + words(2)


WORDS = ("<pad>", "<eos>", *"0123456789", *"abcdefghijklmnopqrstuvwxyz", *" ?:,.\n#")
SMALL_TEXT = {
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "head_dim": 16,
  "max_position_embeddings": 512,
  "num_hidden_layers": 2,
  "rope_parameters": {
    "rope_type": "default",
    "rope_theta": 1e4,
    "mrope_section": [4, 2, 2],
    "mrope_interleaved": True,
  },
}
SMALL_TOWER = {
  "depth": 2,
  "hidden_size": 16,
  "num_heads": 2,
  "intermediate_size": 24,
  "patch_size": 4,
  "num_position_embeddings": 25,
  "deepstack_visual_indexes": [0],
}
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


def tokenizer():
  """A tokenizer of single characters with the tokens of images, and a chat template."""
  from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  model = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(WORDS)}, unk_token=" "))
  model.pre_tokenizer = pre_tokenizers.Split("", "isolated")
  fast = PreTrainedTokenizerFast(tokenizer_object=model, unk_token=" ", pad_token="<pad>", eos_token="<eos>")
  names = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
  fast.add_tokens([AddedToken(name, special=True) for name in names], special_tokens=True)  # pyright: ignore[reportArgumentType]
  fast.chat_template = TEMPLATE
  return fast


def write_small(directory, seed=0, **text):
  """Write a Qwen3-VL of a few thousand random weights with its tokenizer, without PyTorch.

  Args:
    text: changes of the decoder's config.
  """
  import dataclasses
  import json

  import jax

  from opd_jax.models import decoder, hf_config, hf_vision, weights

  directory.mkdir(parents=True)
  fast = tokenizer()
  ids = [fast.get_vocab()[name] for name in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")]
  text = SMALL_TEXT | {"vocab_size": len(fast)} | text
  config = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "text_config": text | {"model_type": "qwen3_vl_text"},
    "vision_config": SMALL_TOWER | {"out_hidden_size": text["hidden_size"]},
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    **dict(zip(("vision_start_token_id", "image_token_id", "vision_end_token_id"), ids, strict=True)),
  }
  (directory / "config.json").write_text(json.dumps(config))
  (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "pad_token_id": 0}))
  size = {"shortest_edge": 8 * 8, "longest_edge": 48 * 48}
  (directory / "preprocessor_config.json").write_text(json.dumps({"size": size, "patch_size": 4, "merge_size": 2}))
  fast.save_pretrained(directory)
  cfg, seeing = hf_config.read(directory), hf_vision.read(directory)
  whole = dataclasses.replace(cfg, tower=seeing.tower)
  params = decoder.init(whole, jax.random.key(seed), scale=0.5)
  weights.write(directory, whole, params, "F32", 5e9)
  return directory


def write_scenes(folder, number=6, sizes=((40, 24),), box=(8, 4, 24, 20), seed=0):
  """Write pictures of coloured squares, and questions about a region of each: a JSONL file of image, box, prompt and answer.

  Args:
    sizes: of the pictures, in turn.
  """
  import json

  from PIL import Image, ImageDraw

  folder.mkdir(parents=True, exist_ok=True)
  rng, lines = np.random.default_rng(seed), []
  for i in range(number):
    size = sizes[i % len(sizes)]
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for _ in range(5):
      x, y = int(rng.integers(0, size[0] - 8)), int(rng.integers(0, size[1] - 8))
      draw.rectangle((x, y, x + 7, y + 7), fill=tuple(int(c) for c in rng.integers(0, 255, 3)))
    image.save(folder / f"scene{i}.png")
    lines.append({"image": f"scene{i}.png", "box": box, "prompt": "what is in the box?", "answer": str(i)})
  (folder / "scenes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
  return folder / "scenes.jsonl"

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
    return list(rng.integers(1, 50, n))

  ids += words(2)
  for h, w in sizes:
    ids += [START, *[IMAGE] * (h * w // merge**2), END, *words(2)]
  return ids + words(2)

"""Pictures of digits and shapes: what is drawn is what is asked, and a model reads it as the processor cuts it."""

import collections
import io
import json
import random

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from opd_jax.data import images
from opd_jax.data.image_refs import ImageRef
from opd_jax.models import hf_vision
from opd_jax.tasks import pretrain_scenes, scenes
from opd_jax.tasks.scenes import COUNT, MAJORITY, SCENES


def opened(problem):
  return np.asarray(Image.open(io.BytesIO(problem.image)))


def read(cell):
  """The symbol and the hue of what is drawn in a cell, by its pixels alone."""
  paper = cell[-1, -1]
  ink = (cell != paper).any(axis=-1)
  (colour,) = {tuple(map(int, pixel)) for pixel in cell[ink]}
  rows = ink[np.flatnonzero(ink.any(axis=1))[0] :]
  found = [
    symbol
    for symbol, glyph in scenes.GLYPHS.items()
    for shift in range(ink.shape[1] - 4)
    if (lines := [line for line in glyph if line])
    and all(
      np.array_equal(row[shift : shift + 5], [bool(line >> (4 - i) & 1) for i in range(5)])
      for row, line in zip(rows, lines, strict=False)
    )
    and int(ink.sum()) == sum(bin(line).count("1") for line in glyph)
  ]
  (hue,) = (hue for hue, rgb in scenes.HUES.items() if rgb == colour)
  return found[0], hue


def cells(pixels):
  side = scenes.CELL
  return [
    [read(pixels[y : y + side, x : x + side]) for x in range(0, pixels.shape[1], side)]
    for y in range(0, pixels.shape[0], side)
  ]


def test_an_answer_is_what_stands_in_the_box():
  problems = SCENES.problems(30, 0)
  for problem in problems:
    assert problem.box is not None
    left, top, right, bottom = problem.box
    seen = [cell for row in cells(opened(problem)[top:bottom, left:right]) for cell in row]
    wanted = {"s": [s for s, _ in seen], "h": [h for _, h in seen], "b": [s + h for s, h in seen]}[problem.prompt[0]]
    assert problem.answer == "".join(wanted)
    assert problem.prompt[1:3] == f"{top // scenes.CELL}{left // scenes.CELL}"
  assert {problem.prompt[0] for problem in problems} == set(scenes.KINDS)


def test_questions_about_all_of_a_picture():
  for problem in MAJORITY.problems(10, 0):
    counts = collections.Counter(hue for row in cells(opened(problem)) for _, hue in row)
    (first, most), (_, second) = counts.most_common(2)
    assert problem.answer == first
    assert most > second
    assert problem.box is None
  for problem in COUNT.problems(10, 0):
    counts = collections.Counter(symbol for row in cells(opened(problem)) for symbol, _ in row)
    assert problem.answer == str(counts[problem.prompt[1]])


def test_problems_are_the_same_each_time_and_others_are_held_out():
  assert SCENES.problems(5, 0) == SCENES.problems(5, 0)
  trained, held_out = SCENES.problems(50, 0), SCENES.problems(50, 0, held_out=True)
  assert not {p.image for p in trained} & {p.image for p in held_out}


def test_answers_are_verified_word_for_word():
  assert SCENES.verify("7t04", "7t04")
  assert not SCENES.verify("7t0", "7t04")
  assert not SCENES.verify("7t04", "7t04", ended=False)
  assert max(len(p.answer) for p in SCENES.problems(50, 0)) + 1 == SCENES.max_response


@pytest.fixture(scope="module")
def described(tmp_path_factory):
  directory = tmp_path_factory.mktemp("description") / "model"
  pretrain_scenes.write_description(directory)
  return directory


@pytest.mark.parametrize("view", ["whole", "marked", "crop"])
def test_a_picture_is_cut_as_the_processor_cuts_it(described, view):
  question = SCENES.question(random.Random(3))
  assert question.box is not None
  ref = ImageRef(question.scene.png(), (question.box,), view, pretrain_scenes.ZOOM)
  theirs = images.ImageProcessor.from_directory(described).picture(ref)
  ours = pretrain_scenes.shown(question, view)
  assert (ours.rows, ours.columns) == (theirs.rows, theirs.columns)
  np.testing.assert_allclose(ours.pixels, theirs.pixels, atol=1e-6)


def test_the_tokens_of_images_are_whole(described):
  tokenizer = AutoTokenizer.from_pretrained(described)
  text = "".join(scenes.IMAGE_TOKENS) + "s12="
  expected = [pretrain_scenes.START, pretrain_scenes.IMAGE, pretrain_scenes.END, *scenes.TOKENIZER.encode("s12=")]
  assert tokenizer(text)["input_ids"] == expected
  assert len(tokenizer) == json.loads((described / "config.json").read_text())["text_config"]["vocab_size"]


def test_rows_of_the_pre_training_have_their_answers(described):
  tower = hf_vision.read(described).tower
  rows = next(pretrain_scenes.batches(tower, 20, 0, ("crop", "marked")))
  symbols = list(scenes.TOKENIZER.ids)
  for tokens, learned, index in zip(rows.tokens, rows.weights, rows.images.index, strict=True):
    text = "".join(symbols[i] for i in tokens[: pretrain_scenes.PROMPT] if i < len(scenes.SYMBOLS))
    answer = "".join(symbols[i] for i in tokens[learned > 0])
    assert answer[-1] == scenes.EOS
    kind = text.strip(scenes.PAD)[0]
    assert len(answer) - 1 == {"s": 4, "h": 4, "b": 8}.get(kind, 1)
    assert (index >= 0).sum() == 16
    assert ((index >= 0) == (tokens[: pretrain_scenes.PROMPT] == pretrain_scenes.IMAGE)).all()

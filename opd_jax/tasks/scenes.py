"""Pictures of coloured digits and shapes, and questions about a part of them: for models that see.

    scenes            s12=   the symbols of the 2 x 2 cells from row 1, column 2 on      7t04       digits, and d disc, s square, t triangle, x cross
                      h12=   their hues                                                  bgkb       b blue, c cyan, g green, k black, o orange, p purple
                      b12=   both, a cell after the other                                7btg0k4b
    scenes-majority   m=     the hue that most cells of the picture have                 g
    scenes-count      n7=    how many of them have a symbol                              3

A picture has 4 x 4 cells of 12 pixels. The box of a question of `scenes` holds its cells: drawn in red it shows where to look, and what
stands in it, enlarged, is all that is needed (context/crop.py). The other two ask for the whole picture and have no box: what a model must
not forget while it learns the first. Fonts of libraries differ by version, so that the glyphs are drawn here.
"""

import dataclasses
import functools
import io
import random

import numpy as np

from opd_jax.tasks import thoughts
from opd_jax.tasks.problem import Problem
from opd_jax.tasks.symbols import CharTokenizer

PAD, EOS = "_", "$"
IMAGE_TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
SYMBOLS = (PAD, EOS, *"0123456789", *"bcghkmnopstxd", "=")
TOKENIZER = CharTokenizer(SYMBOLS, PAD, EOS, specials=IMAGE_TOKENS)
SIDE, CELL, BOX = 4, 12, 2  # cells of a picture, pixels of a cell, cells of a box
HUES = {"b": (30, 60, 220), "c": (0, 170, 190), "g": (20, 140, 40), "k": (20, 20, 20), "o": (240, 140, 0), "p": (150, 40, 190)}  # fmt: skip
KINDS = "shb"
# Seven rows of five pixels each, from above, as numbers whose highest bit is on the left.
GLYPHS = {
  "0": (14, 17, 19, 21, 25, 17, 14),
  "1": (4, 12, 4, 4, 4, 4, 14),
  "2": (14, 17, 1, 6, 8, 16, 31),
  "3": (30, 1, 1, 14, 1, 1, 30),
  "4": (2, 6, 10, 18, 31, 2, 2),
  "5": (31, 16, 30, 1, 1, 17, 14),
  "6": (6, 8, 16, 30, 17, 17, 14),
  "7": (31, 1, 2, 4, 8, 8, 8),
  "8": (14, 17, 17, 14, 17, 17, 14),
  "9": (14, 17, 17, 15, 1, 2, 12),
  "d": (0, 14, 31, 31, 31, 14, 0),
  "s": (0, 31, 31, 31, 31, 31, 0),
  "t": (0, 4, 4, 14, 14, 31, 31),
  "x": (0, 17, 10, 4, 10, 17, 0),
}
Cell = tuple[str, str]  # symbol, hue


@dataclasses.dataclass(frozen=True)
class Scene:
  """A picture before it is drawn: its cells row by row, and where in each the glyph stands."""

  cells: tuple[Cell, ...]
  places: tuple[tuple[int, int], ...]  # pixels from the cell's left and upper side
  paper: tuple[int, int, int]  # the colour behind all

  @classmethod
  def draw(cls, rng: random.Random) -> "Scene":
    """Draw a scene at random; one hue is twice as frequent as others, so that there mostly is a majority."""
    often = rng.choice(list(HUES))
    hues = rng.choices([*HUES, often], k=SIDE**2)
    cells = tuple((rng.choice(list(GLYPHS)), hue) for hue in hues)
    places = tuple((rng.randint(2, 5), rng.randint(2, 3)) for _ in cells)  # clear of a line of two pixels around a cell
    return cls(cells, places, (rng.randint(225, 255), rng.randint(225, 255), rng.randint(225, 255)))

  def pixels(self) -> np.ndarray:
    """The picture, uint8[48, 48, 3]."""
    out = np.empty((SIDE * CELL, SIDE * CELL, 3), np.uint8)
    out[:] = self.paper
    for i, ((symbol, hue), (x, y)) in enumerate(zip(self.cells, self.places, strict=True)):
      top, left = CELL * (i // SIDE) + y, CELL * (i % SIDE) + x
      out[top : top + 7, left : left + 5][_mask(symbol)] = HUES[hue]
    return out

  def png(self) -> bytes:
    """The picture as a file."""
    from PIL import Image  # only tasks with pictures need Pillow

    file = io.BytesIO()
    Image.fromarray(self.pixels()).save(file, "PNG")
    return file.getvalue()

  def inside(self, row: int, column: int) -> list[Cell]:
    """The cells of the box whose first one stands there."""
    return [self.cells[SIDE * (row + i) + column + j] for i in range(BOX) for j in range(BOX)]

  def majority(self) -> str | None:
    """The hue that most cells have; None where two have as many."""
    counts = sorted((sum(hue == own for _, own in self.cells), hue) for hue in HUES)
    return counts[-1][1] if counts[-1][0] > counts[-2][0] else None


@functools.cache
def _mask(symbol: str) -> np.ndarray:
  return np.array([[row >> (4 - bit) & 1 for bit in range(5)] for row in GLYPHS[symbol]], bool)


@dataclasses.dataclass(frozen=True)
class Question:
  """A scene with a question about it; `box` is in pixels, None where it is about the whole picture."""

  scene: Scene
  prompt: str
  answer: str
  box: tuple[int, int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Scenes:
  """A generator and a verifier of questions about pictures; `name` is that of the task, and seeds the problems."""

  name: str = "scenes"

  @property
  def max_response(self) -> int:
    """The number of tokens of the longest right response, its stop token included."""
    return 2 * BOX**2 + 1 if self.name == "scenes" else 2

  def question(self, rng: random.Random) -> Question:
    """Draw a scene and a question."""
    while True:
      scene = Scene.draw(rng)
      if self.name == "scenes":
        return about_box(scene, rng.choice(KINDS), rng.randrange(SIDE - BOX + 1), rng.randrange(SIDE - BOX + 1))
      if self.name == "scenes-majority" and (hue := scene.majority()):
        return Question(scene, "m=", hue)
      if self.name == "scenes-count":
        symbol = rng.choice(list(GLYPHS))
        if (count := sum(symbol == own for own, _ in scene.cells)) < 10:
          return Question(scene, f"n{symbol}=", str(count))

  def problems(self, n: int, seed: int, held_out: bool = False) -> list[Problem]:
    """Draw n problems, the same for the same arguments; there are so many scenes that none is drawn twice."""
    return list(_problems(self, n, seed, held_out))

  def verify(self, response: str, answer: str, *, ended: bool = True, prompt: str = "") -> bool:
    """Tell whether the response is the answer."""
    return ended and thoughts.conclusion(response, prompt) == answer


def about_box(scene: Scene, kind: str, row: int, column: int) -> Question:
  """Ask about the cells from a row and a column on, counted from 0; `kind` is one of KINDS."""
  cells = scene.inside(row, column)
  answer = "".join({"s": symbol, "h": hue, "b": symbol + hue}[kind] for symbol, hue in cells)
  box = (CELL * column, CELL * row, CELL * (column + BOX), CELL * (row + BOX))
  return Question(scene, f"{kind}{row}{column}=", answer, box)


@functools.lru_cache(maxsize=8)
def _problems(task: Scenes, n: int, seed: int, held_out: bool) -> tuple[Problem, ...]:
  rng = random.Random(f"{task.name} {seed} {held_out}")
  questions = [task.question(rng) for _ in range(n)]
  return tuple(Problem(q.prompt, q.answer, q.answer, image=q.scene.png(), box=q.box) for q in questions)


SCENES, MAJORITY, COUNT = Scenes(), Scenes("scenes-majority"), Scenes("scenes-count")

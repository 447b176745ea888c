"""The student reads a conversation, the teacher all of it at once (CCOPD, arXiv:2605.30251).

Both score the same reply to the user's last turn, aligned by its own index; earlier replies stand in the student's prompt
and train nothing. They are the student's own: either all from before training, and kept for the whole run, or spoken anew
every so many steps. What was said is kept in the workdir, so that a resumed run reads what the first one did.

`context.turns="any"` is the paper's warning as a control: the reply to a random turn is trained, against a teacher that
already knows what has not been said yet.
"""

import dataclasses
import functools
import json
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath

from opd_jax import hosts
from opd_jax.config import Config
from opd_jax.context import chat
from opd_jax.context.conversation import Conversation
from opd_jax.context.histories import converse
from opd_jax.errors import InputError
from opd_jax.programs import Kept
from opd_jax.speaker import Speaker
from opd_jax.types import Params

if TYPE_CHECKING:
  from opd_jax.inputs import Inputs

AT_A_TIME = 1024  # conversations between two times that what was said is written down
Rows = dict[int, list[int]]  # token ids of the student's prompt, by the problem's number


@dataclasses.dataclass
class Histories:
  """What the student reads, problem by problem.

  Attributes:
    conversations: of the run's problems.
    refresh: steps between two talks; 0: one, by the student before training.
    final: whether each prompt ends at the last turn of the user; else at a random one.
    where: the directory that the replies are kept in.
    initial: reads the student before training, which is only needed where `refresh` is 0.
    of: a digest of all that the replies depend on beside the step.
  """

  conversations: Sequence[Conversation]
  speak: Speaker
  tokenizer: Any
  key: jax.Array
  refresh: int
  final: bool
  where: epath.Path
  initial: Callable[[], Params]
  of: str

  def block(self, step: int) -> tuple[int, int | None]:
    """First step of the talk that a step belongs to, and the first of the next one, if there is one."""
    first = step // self.refresh * self.refresh if self.refresh else 0
    return first, first + self.refresh if self.refresh else None

  def rows(self, step: int, params: Params, wanted: Sequence[int], now: int, after: Callable[[int, int], None]) -> Rows:
    """The student's prompts for these problems in the talk that begins at a step.

    Args:
      params: the student before step `now`, who talks if nobody has yet.
      after: told of how many conversations how many are written down; may raise, and they are not had again.

    Raises:
      InputError: what was said is lost, and the student who said it is gone.
    """
    said = self._read(step)
    missing = [i for i in wanted if i not in said]
    if missing and self.refresh and step != now:
      raise InputError(
        f"{self._file(step)} has not all that the student said before step {step}, and it speaks otherwise by now; restore "
        "the file, or begin in a new --workdir."
      )
    speaker = params if self.refresh or not missing else self.initial()
    for first in range(0, len(missing), AT_A_TIME):
      part = missing[first : first + AT_A_TIME]
      said |= dict(zip(part, self.talk(part, speaker, step), strict=True))
      hosts.on_first(functools.partial(self._write, step, said))
      after(len(wanted) - len(missing) + first + len(part), len(wanted))
    return dict(zip(wanted, self.render(wanted, [said[i] for i in wanted], step), strict=True))

  def talk(self, which: Sequence[int], params: Params, step: int) -> list[tuple[str, ...]]:
    """The assistant's turns of these conversations; what is said in one does not depend on the others."""
    key = jax.random.fold_in(self.key, step)

    def answer(prompts: Sequence[chat.Prompt], turn: int, going_on: Sequence[int]) -> list[str]:
      return self.speak(params, self.ids(prompts), jax.random.fold_in(key, turn), [which[i] for i in going_on]).texts

    return converse([self.conversations[i] for i in which], answer)

  def render(self, which: Sequence[int], replies: Sequence[tuple[str, ...]], step: int) -> list[list[int]]:
    """Token ids up to the reply that is trained."""
    kept = [r if self.final else r[: _turn(i, step, len(r) + 1)] for i, r in zip(which, replies, strict=True)]
    return self.ids([self.conversations[i].raw(r) for i, r in zip(which, kept, strict=True)])

  def ids(self, prompts: Sequence[chat.Prompt]) -> list[list[int]]:
    """Texts are tokenised anew, and may come out a little longer than they were said: the beginning is lost then."""
    longest = self.speak.widths[-1]
    return [ids[-longest:] for ids in chat.render_all(prompts, self.tokenizer, chat_template=True)]

  def _file(self, step: int) -> epath.Path:
    return self.where / f"{step:08d}.jsonl"

  def _read(self, step: int) -> dict[int, tuple[str, ...]]:
    """Nothing where there is no file, or that of another run."""
    if not self._file(step).exists():
      return {}
    try:
      first, *lines = map(json.loads, self._file(step).read_text().split("\n")[:-1])
      return {line["problem"]: tuple(line["replies"]) for line in lines} if first["of"] == self.of else {}
    except (ValueError, KeyError, TypeError):
      raise InputError(
        f"{self._file(step)} is damaged, and the run goes on from what was said there; give a new --workdir."
      ) from None

  def _write(self, step: int, said: dict[int, tuple[str, ...]]) -> None:
    self.where.mkdir(parents=True, exist_ok=True)
    lines = [{"of": self.of}, *({"problem": i, "replies": said[i]} for i in sorted(said))]
    new = self.where / f"{step:08d}.new"
    new.write_text("".join(json.dumps(line) + "\n" for line in lines))
    new.replace(self._file(step))


def histories(
  c: Config, i: "Inputs", root: epath.Path, initial: Callable[[], Params], of: str, kept: Kept
) -> Histories | None:
  """Those of a run; None where the context asks for none."""
  if not i.train.conversations:
    return None
  speak = Speaker(
    i.voice,
    i.tokenizer,
    batch=min(c.eval.batch, len(i.train.ids)),
    widths=i.prompt_widths,
    max_tokens=c.context.turn_tokens,
    name="converse",
    numbered=True,
    kept=kept,
  )
  key = jax.random.fold_in(jax.random.key(c.seed), 2**25)  # apart from training, evaluation and probes
  final = c.context.turns == "final"
  return Histories(
    i.train.conversations, speak, i.tokenizer, key, c.context.refresh, final, root / "histories", initial, of
  )


def _turn(problem: int, step: int, turns: int) -> int:
  """A number below `turns`, the same at every call."""
  return zlib.crc32(f"{problem} {step}".encode()) % turns


def lengths(conversations: Sequence[Conversation], tokenizer, turn_tokens: int) -> tuple[np.ndarray, np.ndarray]:
  """Tokens of each conversation up to its last turn: with blank replies, and with the longest."""
  blank = [c.raw(("",) * (len(c.turns) - 1)) for c in conversations]
  least = np.array([len(ids) for ids in chat.render_all(blank, tokenizer, chat_template=True)])
  return least, least + np.array([len(c.turns) - 1 for c in conversations]) * turn_tokens

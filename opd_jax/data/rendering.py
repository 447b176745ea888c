"""What a chat template reads beside the messages, fixed once for a whole run.

A template is a program. It may ask for the date (`strftime_now`, as Llama 3.2's does), for a system message, and for arguments
of its own (`enable_thinking`, as Qwen3's does). A `Rendering` answers all of it, so that every prompt of a run - of the student, of
teachers, of conversations and of evaluations, today and after a resume - is made the same way.
"""

import dataclasses
import datetime
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from opd_jax.config import Config
from opd_jax.errors import InputError

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

Scalar = bool | int | float | str
Message = Mapping[str, Any]  # of a chat: {role, content}

SAME = "same"  # of what is put around teachers' prompts: as around the student's
CLOCK = "strftime_now"  # the name under which transformers gives templates the time
RESERVED = {  # what every template is given, and what `apply_chat_template` of transformers takes for itself
  *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", CLOCK),
  *("raise_exception", "namespace", "range", "dict", "lipsum", "cycler", "joiner", "loop", "self", "caller", "varargs"),
  *("true", "false", "none", "True", "False", "None"),
  *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
  *("additional_special_tokens", "extra_special_tokens"),
  *("conversation", "conversations", "chat_template", "tokenize", "tokenizer_kwargs", "sanitize_control_tokens"),
  *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "kwargs"),
}

_DATES = "opd_jax_dates"
_FIXED_CLOCK = (  # Jinja drops the line break behind the last tag, so the template begins at the beginning of a line, as before
  f"{{% macro {CLOCK}(format) %}}{{{{ {_DATES}[format] if format in {_DATES} else raise_exception('a format of dates that is not "
  "written out in it: ' ~ format) }}{% endmacro %}\n"
)


class TemplateReading(NamedTuple):
  """What a template looks up."""

  names: frozenset[str] = frozenset()  # that it does not set itself; those that it is always given included
  random: str = ""  # what it draws at random with; "" for nothing
  formats: frozenset[str] = frozenset()  # of dates, and what may be one


@dataclasses.dataclass(frozen=True)
class Rendering:
  """How prompts are rendered.

  Attributes:
    chat_template: use the tokenizer's template if it has one; plain text otherwise.
    system: a system message put first; "" for none.
    args: arguments of the template, by name, see config.data.template_args.
    teacher_args: further ones for a teacher's own prompts, see config.data.teacher_template_args.
    suffix: text put behind what the user says last, on a line of its own unless it begins with white space; "" for none.
    teacher_system, teacher_suffix: the same around a teacher's own prompts; SAME for as around the student's.
    moment: the local time that the template reads from the clock; None: the clock's own.
  """

  chat_template: bool = True
  system: str = ""
  args: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
  teacher_args: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
  moment: datetime.datetime | None = None
  suffix: str = ""
  teacher_system: str = SAME
  teacher_suffix: str = SAME

  @classmethod
  def from_config(cls, config: Config, moment: datetime.datetime | None = None) -> "Rendering":
    """Make the rendering of a config.

    Args:
      moment: when the run began; None: now.
    """
    data = config.data
    return cls(
      chat_template=data.chat_template,
      system=data.system,
      args=data.template_args.to_dict(),
      teacher_args=data.teacher_template_args.to_dict(),
      moment=moment or datetime.datetime.now(),
      suffix=data.suffix,
      teacher_system=data.teacher_system,
      teacher_suffix=data.teacher_suffix,
    )

  def without_system(self) -> "Rendering":
    """The same, for chats that have their system message in them."""
    return dataclasses.replace(self, system="")

  def without_suffix(self) -> "Rendering":
    """The same, for chats that have it in them, or are not asked anything."""
    return dataclasses.replace(self, suffix="")

  def for_conversations(self) -> "Rendering":
    """The same, for conversations, which have their system message and suffix in them."""
    return self.without_system().without_suffix()

  def for_teacher(self) -> "Rendering":
    """The same, for prompts that only teachers read."""
    return dataclasses.replace(
      self,
      args={**self.args, **self.teacher_args},
      system=self.system if self.teacher_system == SAME else self.teacher_system,
      suffix=self.suffix if self.teacher_suffix == SAME else self.teacher_suffix,
      teacher_args={},
      teacher_system=SAME,
      teacher_suffix=SAME,
    )

  @property
  def teacher_differs(self) -> bool:
    """Whether teachers read other prompts than the student, where both read the same problem."""
    own = self.for_teacher()
    return (own.args, own.system, own.suffix) != (self.args, self.system, self.suffix)

  def with_suffix(self, text: str) -> str:
    """Put the suffix behind a text."""
    return with_suffix(text, self.suffix)

  def apply(self, chats: Sequence[Sequence[Message]], tokenizer: "PreTrainedTokenizerBase", **output: Any) -> list[Any]:
    """Apply the tokenizer's chat template to chats, up to where the response begins.

    Args:
      output: further arguments of `apply_chat_template`, such as tokenize=False for texts.

    Raises:
      InputError: the template refuses a chat; it does not name which.
    """
    variables = {**self.args, **self._clock(template_text(tokenizer))}
    try:
      return tokenizer.apply_chat_template(  # pyright: ignore[reportReturnType]
        [[dict(m) for m in chat] for chat in chats], add_generation_prompt=True, **variables, **output
      )
    except Exception as e:  # a template is a program: it raises what it likes
      message = str(e).strip().splitlines()
      reason = f"{type(e).__name__}: {message[0]}" if message else type(e).__name__
      raise InputError(
        f"the chat template of {tokenizer.name_or_path} refuses the prompt ({reason}); change the roles of the prompt, "
        "mend the template, or set config.data.chat_template=False"
      ) from e

  def _clock(self, template: str) -> dict[str, Any]:
    """Returns the arguments with which the template reads `moment` from the clock.

    Templates are given data and no functions, so a macro stands before the template in the place of transformers' own. It finds the
    texts of all formats that are written in the template.
    """
    read = _analyse(template)
    if not self.moment or CLOCK not in read.names:
      return {}
    formats = {*read.formats, *(value for value in self.args.values() if isinstance(value, str) and "%" in value)}
    return {"chat_template": _FIXED_CLOCK + template, _DATES: {f: self.moment.strftime(f) for f in formats}}


def with_suffix(text: str, suffix: str) -> str:
  """Put a suffix behind a text: on a line of its own, unless it begins with white space."""
  return f"{text}{suffix}" if not suffix or suffix[0].isspace() else f"{text}\n{suffix}"


def template_text(tokenizer: "PreTrainedTokenizerBase") -> str:
  """The template that prompts are wrapped in: of several by name, the default; "" where there is none."""
  template = getattr(tokenizer, "chat_template", None)
  if isinstance(template, Mapping):
    template = template.get("default")
  return template if isinstance(template, str) else ""


def names_read(tokenizer: "PreTrainedTokenizerBase") -> frozenset[str]:
  """The names that the template looks up and does not set itself; those that it is always given included."""
  return _analyse(template_text(tokenizer)).names


def reads_clock(tokenizer: "PreTrainedTokenizerBase") -> bool:
  """Whether what the template writes may depend on the day."""
  return CLOCK in names_read(tokenizer)


def check_args(key: str, args: Mapping[str, Any]) -> None:
  """Refuse names that a template is given already, and values that are no scalars.

  Args:
    key: what the arguments are called, for messages.

  Raises:
    InputError: naming the argument and the mend.
  """
  for name, value in args.items():
    if not isinstance(name, str) or not name.isidentifier():
      raise InputError(f"{key} names {name!r}; a template's argument is called by letters, digits and underscores.")
    if name in RESERVED or name.startswith("_"):
      raise InputError(f"{key} names {name!r}, which every chat template is given already; leave it out.")
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, bool | int | float | str) or not finite:
      raise InputError(f"{key}.{name} is {value!r}; it can be True, False, a number or text.")


def check(rendering: Rendering, tokenizer: "PreTrainedTokenizerBase") -> None:
  """Refuse arguments that the template never reads, and a template that draws at random.

  Raises:
    InputError: naming the key, or the template.
  """
  names, random, _ = _analyse(template_text(tokenizer))
  for key, args in (("template_args", rendering.args), ("teacher_template_args", rendering.teacher_args)):
    if unread := [name for name in args if name not in names]:
      others = ", ".join(sorted(names - RESERVED)) or "no argument at all"
      raise InputError(
        f"config.data.{key} names {unread[0]!r}, which the chat template of {tokenizer.name_or_path} never reads; it reads "
        f"{others}."
      )
  if random and rendering.chat_template:
    raise InputError(
      f"the chat template of {tokenizer.name_or_path} draws at random ({random}), so that no prompt is the same twice and a run "
      "could not be resumed; take that out of the template."
    )


def check_shown(chat: Sequence[Message], rendering: Rendering, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
  """Refuse a template that renders a chat otherwise every time, or without the user's words.

  Returns:
    A warning for each other role whose words the template leaves out.

  Raises:
    InputError: see above, or the template refuses the chat.
  """

  def text(messages: Sequence[Message]) -> str:
    return rendering.apply([messages], tokenizer, tokenize=False)[0]

  before = text(chat)
  if text(chat) != before:
    raise InputError(
      f"the chat template of {tokenizer.name_or_path} renders the same prompt otherwise the second time, so that a run could not "
      "be resumed; mend the template."
    )
  warnings = []
  for role in dict.fromkeys(m["role"] for m in chat):
    try:
      shown = text(_altered(chat, role)) != before
    except InputError:  # it has an eye for what we altered
      shown = True
    if not shown and role == "user":
      raise InputError(
        f"the chat template of {tokenizer.name_or_path} leaves out what the user writes, so that all prompts are one; mend the "
        "template, or set config.data.chat_template=False."
      )
    if not shown:
      warnings.append(f"the chat template of {tokenizer.name_or_path} leaves out messages of the role {role!r}")
  return warnings


def _altered(chat: Sequence[Message], role: str) -> list[Message]:
  """The same chat with other words in the last message of a role."""
  last = max(i for i, m in enumerate(chat) if m["role"] == role)
  return [{**m, "content": f"{m['content']} 1"} if i == last else m for i, m in enumerate(chat)]


@functools.lru_cache(maxsize=64)
def _analyse(template: str) -> TemplateReading:
  """Finds what a template looks up; one that Jinja cannot parse looks up nothing, and rendering it says why."""
  import jinja2
  from jinja2 import ext, meta, nodes

  class Generation(ext.Extension):
    """The tag of transformers around an assistant's words."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
      line = next(parser.stream).lineno
      return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

  # As transformers', but without globals: names of globals are of interest too.
  environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation])
  environment.globals.clear()
  try:
    tree = environment.parse(template)
    names = frozenset(meta.find_undeclared_variables(tree))
  except (jinja2.TemplateError, RecursionError):
    return TemplateReading()
  random = next((node.name for node in tree.find_all(nodes.Filter) if node.name == "random"), "")
  texts = (node.value for node in tree.find_all(nodes.Const))
  return TemplateReading(
    names,
    random or ("lipsum" if "lipsum" in names else ""),
    frozenset(text for text in texts if isinstance(text, str) and "%" in text),
  )

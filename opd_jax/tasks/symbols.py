"""A tokenizer of single characters and a few longer symbols, which the built-in tasks share."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
  """A tokenizer in which every symbol is one token, whose id is its index in `symbols`.

  Attributes:
    symbols: single characters, and the special tokens.
    pad: the symbol that fills rows; it also stands for characters that are no symbol.
    eos: the symbol that ends a response.
    chat_template: a Jinja template; "" for none.
    specials: tokens of several characters that no text is split into but where it has them whole; their ids follow the symbols'.
  """

  symbols: tuple[str, ...]
  pad: str
  eos: str
  chat_template: str = ""
  specials: tuple[str, ...] = ()

  @functools.cached_property
  def ids(self) -> dict[str, int]:
    """The id of every symbol, and behind them of every special token."""
    return {symbol: i for i, symbol in enumerate((*self.symbols, *self.specials))}

  def encode(self, text: Iterable[str]) -> list[int]:
    """The id of each symbol of a text, or of a list that holds special tokens too.

    Raises:
      KeyError: something in it is no symbol.
    """
    return [self.ids[symbol] for symbol in text]

  def save(self, directory: pathlib.Path) -> None:
    """Write it as an ordinary tokenizer.json and tokenizer_config.json, and its chat template where it has one."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({s: self.ids[s] for s in self.symbols}, unk_token=self.pad))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
      tokenizer_object=tokenizer,
      pad_token=self.pad,
      eos_token=self.eos,
      padding_side="left",
      clean_up_tokenization_spaces=False,
    )
    if self.specials:
      added = [AddedToken(name, special=True) for name in self.specials]
      fast.add_tokens(added, special_tokens=True)  # pyright: ignore[reportArgumentType]
    if self.chat_template:
      fast.chat_template = self.chat_template
    fast.save_pretrained(directory)

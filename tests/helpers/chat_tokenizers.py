"""Tokenizers whose chat templates are programs of a test's own."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def tokenizer(template) -> PreTrainedTokenizerFast:
  """A tokenizer of single characters with a chat template, or several by name."""
  alphabet = {chr(i): i for i in range(32, 127)} | {"\n": 10}
  model = Tokenizer(models.WordLevel(alphabet, unk_token=" "))
  model.pre_tokenizer = pre_tokenizers.Split("", "isolated")
  fast = PreTrainedTokenizerFast(tokenizer_object=model, unk_token=" ", eos_token="~")
  fast.chat_template = template
  return fast


def messages(*pairs) -> list[dict[str, str]]:
  return [{"role": role, "content": content} for role, content in pairs]

"""The one exception that a user is meant to see."""


class InputError(ValueError):
  """A wrong input: the message names the file, the field and the mend, in one sentence.

  Entry points print the message without a traceback and leave with status 2.
  """

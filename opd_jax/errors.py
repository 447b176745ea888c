"""The exceptions that a user is meant to see."""

RESUME = (
  75  # status of a process that did not finish, and would go on if it were started again (sysexits.h: EX_TEMPFAIL)
)


class InputError(ValueError):
  """A wrong input: the message names the file, the field and the mend, in one sentence.

  Entry points print the message without a traceback and leave with status 2.
  """


class StopRequested(Exception):
  """The run was asked to stop and has saved; entry points print the message and leave with status RESUME."""

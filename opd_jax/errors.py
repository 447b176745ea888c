"""The exceptions that a user is meant to see."""

RESUME = (
  75  # status of a process that did not finish, and would go on if it were started again (sysexits.h: EX_TEMPFAIL)
)
INTERRUPTED = 130  # status after Ctrl-C, saved or not: launchers do not start the process again
NOTHING_LEARNED = 3  # status of a training run that is complete, and whose every update was skipped or empty


class InputError(ValueError):
  """A wrong input: the message names the file, the field and the mend, in one sentence.

  Entry points print the message without a traceback and leave with status 2.
  """


class StopRequested(Exception):
  """The run was asked to stop and has saved; entry points print the message and leave with the status.

  Attributes:
    status: RESUME, or INTERRUPTED after Ctrl-C.
  """

  def __init__(self, message: str, status: int = RESUME):
    super().__init__(message)
    self.status = status

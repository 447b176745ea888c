"""Modules of a user's, written into a directory that Python then looks for modules in."""

import sys
import textwrap


def write(directory, monkeypatch, name: str, text: str) -> str:
  """Writes a module into the current directory, which becomes this one; returns its name."""
  (directory / f"{name}.py").write_text(textwrap.dedent(text))
  monkeypatch.chdir(directory)
  monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # what is added to it goes with the test
  monkeypatch.delitem(sys.modules, name, raising=False)
  return name

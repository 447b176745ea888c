"""Numbers of a plan as text: rounded, but never to 0 what is above it."""

GIB = 2**30


def format_fixed(x: float, decimals: int) -> str:
  """Formats a number with so many decimals; with two digits where nothing would be left of it."""
  text = f"{x:,.{decimals}f}"
  return f"{x:.2g}" if x and not text.strip("-0.,") else text


def format_gib(size: float) -> str:
  """Formats bytes as GiB, without the unit."""
  return format_fixed(size / GIB, 2)


def format_number(x: float) -> str:
  """Formats a number with three digits, or as a whole one from 1000 on."""
  return f"{x:.3g}" if abs(x) < 1000 else f"{x:,.0f}"


def format_seconds(s: float) -> str:
  """Formats seconds, without the unit, with fewer decimals the more they are."""
  return format_fixed(s, 4 if s < 0.1 else 2 if s < 100 else 0)


def format_share(x: float) -> str:
  """Formats a share as per cent."""
  return "<1%" if 0 < x < 0.005 else f"{x:.0%}"


def format_parameters(count: float) -> str:
  """Formats a number of parameters, in billions or in millions."""
  return f"{count / 1e9:,.2f}B" if count >= 1e8 else f"{format_fixed(count / 1e6, 2)}M"


def spoken_seconds(s: float) -> str:
  """Says a time in the unit that a person would take, with two digits."""
  for unit, size in (("h", 3600.0), ("min", 60.0)):
    if s >= 2 * size:
      return f"{format_two(s / size)} {unit}"
  return f"{format_two(s)} s"


def format_two(x: float) -> str:
  """Formats with two digits, whole numbers in full."""
  return f"{x:,.0f}" if x >= 10 else f"{x:.2g}"

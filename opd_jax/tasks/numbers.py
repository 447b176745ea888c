"""The number that a text states: digits, fractions, powers of ten, units, and LaTeX's ways to write them."""

import functools
import re
import unicodedata
from fractions import Fraction


def number(text: str) -> Fraction | None:
  """The number that the whole text states, up to a unit; None if it states anything else.

  Reads 1,080  $18.00  -3  .5  3/4  1 1/2  \\frac{3}{4}  1.5e3  1.5 \\times 10^3  25%  5 million  18 apples,
  in the digits of any script.
  """
  if text.isascii() and text.isdecimal() and len(text) <= 40:
    return Fraction(int(text))  # most references are this
  if len(text) > 300:
    return None
  left, _, text = plain(text).rpartition("=")
  if _NOT_EQUATION.search(left):
    return None
  text = unwrap(text.lstrip(" :*_`\n").rstrip(" .:;,*_`\n"))
  match = _NUMBER.fullmatch(CURRENCY.sub(" ", text).strip())
  if not match or not _is_unit(match["unit"], glued=match["gap"] == ""):
    return None
  try:
    value = _value(match)
  except ZeroDivisionError:
    return None
  words = match["unit"].split()
  scale = SCALES.get(words[0].lower(), 1) if words else 1
  return (-value if match["sign"] == "-" else value) * scale


_NOT_EQUATION = re.compile(r"[,;]\s|,[A-Za-z]|\b(?:and|or)\b|[!<>≠]$")  # a = 18, b = 20
# A run of 40 digits is no answer to anything here, and long ones are slow (and past 4300 an error) to convert.
_INT = r"(?:\d{1,3}(?:,\d{3}){1,12}|\d{1,40})(?![\d])"
_NUMBER = re.compile(
  rf"""(?P<sign>[-+]?)\s*
  (?:
    (?:(?P<whole>\d{{1,40}})\s+)?(?P<over>{_INT})\s*/\s*(?P<under>{_INT})
  | (?P<decimal>{_INT}(?:\.\d{{0,40}})?|\.\d{{1,40}})
    (?:[eE](?P<e>[-+]?\d{{1,2}})|\s*(?:\\times|×|\*|x)\s*10\s*\^\s*\{{?(?P<power>[-+]?\d{{1,2}})\}}?)?
  )
  (?P<gap>\s*)(?P<unit>.*)""",
  re.VERBOSE | re.DOTALL,
)
CURRENCY = re.compile(r"\\?\$|[€£¥₹]|\bUSD?\b(?=\s*\\?[$\d])|\bRs\.?(?=\s*\d)")
SCALES = {
  "hundred": 10**2,
  "thousand": 10**3,
  "k": 10**3,
  "million": 10**6,
  "billion": 10**9,
  "trillion": 10**12,
}


def _value(match: re.Match) -> Fraction:
  """The value of a match of `_NUMBER`, without its sign and unit."""

  def digits(group: str) -> str:
    return match[group].replace(",", "")

  if match["over"]:
    return Fraction(int(match["whole"] or 0)) + Fraction(int(digits("over")), int(digits("under")))
  value, power = Fraction(digits("decimal").removesuffix(".")), int(match["e"] or match["power"] or 0)
  return value * Fraction(10) ** power if power else value


_UNIT = re.compile(
  r"(?:[^\W\d_]|[\s.'’°%¢()]|/(?=\s*[^\W\d_])|(?<=[^\W\d_])-(?=[^\W\d_])|\^\s*\{?(?:2|3|\\circ)\}?|[²³]|\\circ\b)*"
)
_SHORT_UNIT = re.compile(
  "[mghsLlCFWVJNkK]|[kmcd]?[gmlL]|[kK]g|lbs?|oz|ft|in|yd|mi|hrs?|mins?|secs?|mph|kph|kmh|gal|pt|qt|[ap]m"
)
# Words after which the number is no longer the answer: 18 or nineteen, 18 and a half, 5 squared, 3 over 4.
_NOT_UNIT = re.compile("or|and|to|not|plus|minus|times|over|squared|cubed|point|pi|half|e|i", re.IGNORECASE)


def _is_unit(text: str, glued: bool) -> bool:
  """Tell whether what follows a number leaves its value alone; a variable does not (5x, 5 x)."""
  if len(text) > 80 or not _UNIT.fullmatch(text) or re.match(r"\s*(?:[²³]|\^(?!\s*\{?\\circ))", text):
    return False  # 18 cm^2, but not 18^2
  words = re.findall(r"[^\W\d_]+", text)
  if not words:
    return True
  if _HAN.search(text):
    return bool(_HAN_UNIT.fullmatch(text.strip(" .")))
  if any(map(_NOT_UNIT.fullmatch, words)):
    return False
  if _SHORT_UNIT.fullmatch(words[0]):
    return True
  if glued and text[0].isalpha():
    return len(words[0]) > 3  # 18apples, but not 2ab or 2nd
  return len(words[0]) > 1 or words[0] in "aA"  # 18 a day


# Chinese has no spaces, and what multiplies or goes on (万 又 或) could hide in any word, so what is counted is listed.
_HAN = re.compile("[\u3400-\u9fff]")
_HAN_UNIT = re.compile(
  "(?:美元|美分|欧元|日元|元|円|块钱|块|角|岁|歳|天|小时|時間|分钟|分鐘|秒|周|个月|年|公里|千米|厘米|毫米|米|千克|公斤|克|吨|毫升|升)"
  "|[个個只本支张張件条辆輛人名页頁次朵颗棵箱杯瓶袋盒位头匹枚台](?:(?![一二三四五六七八九十百千万億亿半又和或到至比点分加减乘除零两多])[\u3400-\u9fff]){0,6}"
)


def unwrap(text: str) -> str:
  """Remove the one pair of brackets that holds all of a text and no other bracket: (18), {18}, (B); not (1, 2)."""
  match = _WRAPPED.fullmatch(text)
  return match[0][1:-1].strip() if match else text


_WRAPPED = re.compile(r"\([^()\[\]{},;]*\)|\[[^()\[\]{},;]*\]|\{[^()\[\]{},;\\]*\}")


def western(text: str) -> str:
  """Write the digits of all scripts as 0-9, and full-width punctuation as that of Latin text: １８。 ١٨ १८."""
  return text if text.isascii() else text.translate(_westerns())


@functools.cache
def _westerns() -> dict[int, str]:
  """The table of `western`; no script has its digits above U+1FBFF."""
  table = {i: str(unicodedata.digit(chr(i))) for i in range(128, 0x1FC00) if chr(i).isdecimal()}
  table |= {i: chr(i - 0xFEE0) for i in range(0xFF01, 0xFF5F)}  # the full-width forms of "!" to "~"
  table |= dict.fromkeys(map(ord, "。｡।۔"), ". ") | dict.fromkeys(map(ord, "，、､،"), ", ")
  return table | {
    ord(old): new for old, new in {"\u3000": " ", "٬": ",", "٫": ".", "٪": "%", "；": "; ", "：": ": "}.items()
  }


_FORMATTED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox|operatorname)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)(\d))")
_SPACING = re.compile(r"\\[,!;:](?=\s*\d{3}(?!\d))")  # 10\,000


def plain(text: str) -> str:
  """Rewrite LaTeX's ways to write a number as plain text."""
  text = western(text).replace("−", "-").replace("\u2013", "-").replace("\u00a0", " ").replace("\u202f", " ")
  text = _SPACING.sub("", text.replace("{,}", ","))
  text = re.sub(r"\\(?:left|right|displaystyle)\b|\\[,!;:() \[\]]|~", " ", text)
  text = _FORMATTED.sub(r" \1 ", text)
  text = _FRACTION.sub(lambda m: f" {m[1] or m[3]}/{m[2] or m[4]} ", text)
  return re.sub(r"-\s+(?=\d+/\d)", "-", text.replace("\\%", "%").replace("\\approx", "=").replace("≈", "="))

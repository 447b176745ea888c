"""One JSON request over HTTP: a time that it may take, bytes that its answer may have, and a key that only its own host gets.

    answer = post("http://127.0.0.1:8000/v1/completions", {"prompt": "2+2="}, key="", timeout=60.0, limit=2**20)

The time counts from the first connection to the last byte, so that a server which sends a byte now and then does not hold a request for
longer. Redirects are followed to the same scheme, host and port alone. Proxies are those of the environment (`https_proxy`, `no_proxy`).
"""

import base64
import datetime
import email.utils
import http.client
import io
import json
import math
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, cast

from opd_jax.runtime import json_files
from opd_jax.runtime.version import __version__

REDIRECTS = 3  # that a request follows at most
SECRET = 8  # characters of the shortest key that is taken out of what servers send; shorter ones are placeholders such as EMPTY
TRANSIENT = (408, 409, 425, 429)  # statuses besides 5xx after which the same request may succeed
MISTAKES = (401, 404, 405)  # statuses that say that the address, the model or the key is wrong
PIECE = 2**16  # bytes read at once


class RequestFailed(Exception):
  """A request has no answer that can be used; the message says what came instead, without the key.

  Attributes:
    reason: a word to count by: timeout, connection, certificate, redirect, http_STATUS, content_type, oversized, truncated, json, and
      others of who reads the answer.
    retry: the same request may succeed.
    mistake: no request will succeed before the address, the model or the key is mended.
    after: seconds that the server asks to wait before the next request.
    billed: a model seems to have answered, so that the request may have been paid for.
  """

  def __init__(
    self,
    reason: str,
    message: str,
    *,
    retry: bool = True,
    mistake: bool = False,
    after: float = 0.0,
    billed: bool = False,
  ):
    super().__init__(message)
    self.reason, self.retry, self.mistake, self.after, self.billed = (
      reason,
      retry and not mistake,
      mistake,
      after,
      billed,
    )


def post(url: str, body: Mapping[str, Any], *, key: str, timeout: float, limit: int) -> dict[str, Any]:
  """Send a JSON object and return the one that comes back.

  Args:
    url: http or https.
    key: is sent as `Authorization: Bearer`; "": none is.
    timeout: seconds for everything, redirects included.
    limit: bytes that the answer may have.

  Raises:
    RequestFailed: there is none, see there.
  """
  end = time.monotonic() + timeout
  data = json.dumps(body).encode()
  for _ in range(REDIRECTS + 1):
    try:
      status, headers, answer = _exchange(url, data, key, end, limit)
    except TimeoutError:
      raise RequestFailed("timeout", f"did not answer within {timeout:g} s") from None
    if status not in (301, 302, 303, 307, 308):
      return _object(status, headers, answer, key)
    url = _followed(url, status, headers.get("Location", ""), key)
  raise RequestFailed("redirect", f"redirects more than {REDIRECTS} times", mistake=True)


def without(key: str, text: str) -> str:
  """Return a text with every occurrence of a key replaced; keys shorter than SECRET are left."""
  return text.replace(key, "***") if len(key) >= SECRET else text


def _exchange(
  url: str, data: bytes, key: str, end: float, limit: int
) -> tuple[int, http.client.HTTPMessage, bytes | RequestFailed]:
  """Send one request; the answer is its bytes, or what is wrong with them."""
  headers = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": f"opd_jax/{__version__}",
    "Connection": "close",
  }
  if key:
    headers["Authorization"] = f"Bearer {key}"
  try:
    connection, target = _connection(url, headers, _left(end))
    try:
      connection.connect()
      connection.sock = cast(Any, _TimedSocket(connection.sock, end))
      connection.request("POST", target, data, headers)
      response = connection.getresponse()
      try:
        return response.status, response.headers, _body(response, limit)
      finally:
        response.close()
    finally:
      connection.close()
  except TimeoutError:
    raise
  except ssl.SSLCertVerificationError as e:
    raise RequestFailed(
      "certificate", f"has a certificate that is not trusted ({e.verify_message})", mistake=True
    ) from None
  except (http.client.HTTPException, OSError, UnicodeError) as e:
    raise RequestFailed("connection", f"broke off ({type(e).__name__}: {_short(str(e), key)})") from None


def _connection(url: str, headers: dict[str, str], timeout: float) -> tuple[http.client.HTTPConnection, str]:
  """Make a connection, through the environment's proxy where there is one for the host, and the target to ask of it."""
  parts = urllib.parse.urlsplit(url)
  host = parts.hostname or ""
  https = parts.scheme == "https"
  kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
  proxy = urllib.request.getproxies().get(parts.scheme, "")
  if not proxy or urllib.request.proxy_bypass(parts.netloc):
    return kind(host, parts.port, timeout=timeout), parts.path
  try:
    via = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = via.port or 80
  except ValueError:  # its text may have a password
    message = f"is behind a proxy ({parts.scheme}_proxy in the environment) that is no address"
    raise RequestFailed("connection", message, mistake=True) from None
  login = {}
  if via.username:
    pair = f"{urllib.parse.unquote(via.username)}:{urllib.parse.unquote(via.password or '')}"
    login = {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
  connection = kind(via.hostname or "", port, timeout=timeout)
  if https:
    connection.set_tunnel(host, parts.port or 443, login)
    return connection, parts.path
  headers.update(login)
  return connection, url


class _TimedSocket:
  """A socket whose every operation has what is left until a moment of the monotonic clock."""

  def __init__(self, sock: Any, end: float):
    self._socket, self._end = sock, end

  def sendall(self, data: bytes) -> None:
    self._socket.settimeout(_left(self._end))
    self._socket.sendall(data)

  def makefile(self, mode: str) -> io.BufferedReader:
    return io.BufferedReader(_TimedReader(self._socket, self._end), PIECE)

  def close(self) -> None:
    self._socket.close()


class _TimedReader(io.RawIOBase):
  def __init__(self, sock: Any, end: float):
    self._socket, self._end = sock, end
    self._raw = sock.makefile("rb", buffering=0)  # holds the socket open

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int | None:
    self._socket.settimeout(_left(self._end))
    return self._raw.readinto(buffer)

  def close(self) -> None:
    self._raw.close()
    super().close()


def _left(end: float) -> float:
  left = end - time.monotonic()
  if left <= 0:
    raise TimeoutError
  return left


def _body(response: http.client.HTTPResponse, limit: int) -> bytes | RequestFailed:
  """Read an answer to its end; what is wrong with it counts only where its status says that it is one."""
  data, whole = bytearray(), True
  try:
    while len(data) <= limit and (piece := response.read(PIECE)):
      data += piece
  except http.client.IncompleteRead as e:
    data, whole = data + e.partial, False
  if len(data) > limit:
    return RequestFailed("oversized", f"sent an answer of more than {limit} bytes", billed=True)
  if response.length or not whole:  # `length`: bytes that Content-Length promised and nobody sent
    return RequestFailed("truncated", f"broke off in the middle of its answer, after {len(data)} bytes", billed=True)
  return bytes(data)


def _object(status: int, headers: http.client.HTTPMessage, answer: bytes | RequestFailed, key: str) -> dict[str, Any]:
  """Return the object that a whole answer holds."""
  if status != 200:
    after = _retry_after(headers.get("Retry-After", ""))
    asks = f" and asks to wait {after:.0f} s" if after else ""
    raise RequestFailed(
      f"http_{status}",
      f"answered with status {status}{_said(status, answer, key)}{asks}",
      retry=status >= 500 or status in TRANSIENT,
      mistake=status in MISTAKES,
      after=after,
    )
  kind = headers.get_content_type() if headers.get("Content-Type") else "application/json"
  if kind != "application/json" and not kind.endswith("+json"):
    raise RequestFailed("content_type", f"sent {_short(kind, key)} where JSON belongs")
  if isinstance(answer, RequestFailed):
    raise answer
  try:
    found = json_files.parse(answer)
  except json_files.NotReadable as e:
    raise RequestFailed("json", f"sent what is not JSON ({e})", billed=True) from None
  if not isinstance(found, dict):
    raise RequestFailed("json", f"sent a {type(found).__name__} where a JSON object belongs", billed=True)
  return found


def _said(status: int, answer: bytes | RequestFailed, key: str) -> str:
  """Quote what a server says about an error; nothing where it may quote the key, in part too."""
  if status in (401, 403, 407) or isinstance(answer, RequestFailed):
    return ""
  try:
    found = json_files.parse(answer)
  except json_files.NotReadable:
    return ""
  text = message_of(found, key)
  return f" ({text})" if text else ""


def message_of(found: Any, key: str) -> str:
  """Return what an error object says, in one line, as OpenAI, vLLM and FastAPI write it; "" where it says nothing."""
  for name in ("error", "message", "detail"):
    if isinstance(found, dict) and name in found:
      said = found[name]
      if isinstance(said, dict) and {"error", "message", "detail"} & said.keys():
        return message_of(said, key)
      return _short(said if isinstance(said, str) else json.dumps(said), key)
  return ""


def _short(text: str, key: str) -> str:
  """Write what a server sent for a message: in one line, shortened, the key taken out before that."""
  text = " ".join(without(key, text).split())
  text = text if text.isprintable() else repr(text)[1:-1]
  return text if len(text) <= 200 else f"{text[:200]}..."


def _retry_after(text: str) -> float:
  """Read the header, seconds or a date; 0 where it says neither."""
  try:
    seconds = float(text)
  except ValueError:
    try:
      date = email.utils.parsedate_to_datetime(text)
    except ValueError:
      return 0.0
    if date.tzinfo is None:
      date = date.replace(tzinfo=datetime.UTC)
    seconds = date.timestamp() - time.time()
  return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _followed(url: str, status: int, location: str, key: str) -> str:
  """Return the address that a redirect leads to, which has to be of the same scheme, host and port."""
  try:
    there = urllib.parse.urlsplit(urllib.parse.urljoin(url, location))
    same = location and _origin(there) == _origin(urllib.parse.urlsplit(url))
  except ValueError:
    raise RequestFailed("redirect", "redirects to what is no address", mistake=True) from None
  if not same or status == 303:
    shown = _short(f"{there.scheme}://{there.netloc.rpartition('@')[2]}{there.path}", key)
    raise RequestFailed("redirect", f"redirects to {shown}, which is not asked", mistake=True)
  return urllib.parse.urlunsplit(there._replace(query="", fragment=""))


def _origin(parts: urllib.parse.SplitResult) -> tuple[str, str, int]:
  return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

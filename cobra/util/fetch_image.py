"""Reader of images that a user names: by a path, or by an address on the web.

Servers are not trusted: a download is bounded in bytes and in seconds, whatever they do.
"""

import http.client
import io
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from cobra.util.errors import UserError
from cobra.util.printable import printable
from cobra.util.redaction import redacted_address

if TYPE_CHECKING:
    import requests
    from PIL import Image

MAX_BYTES = 64 * 2**20
"""Size of an image file at most; larger ones are refused."""

# Two letters at least: `C:` is a drive. `data:` and `file:` need no slashes.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?=//)|(data|file):", re.IGNORECASE)

# To connect, and between two pieces of the answer; and for all of it: names, redirects, headers and body.
_SILENCE_SECONDS = 10.0
_TOTAL_SECONDS = 60.0
_MAX_REDIRECTS = 5
_BLOCK = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)


def open_image(where: str) -> "Image.Image":
    """Open a picture, by a path or an address of http or https, as RGB, turned upright as its EXIF orientation says.

    Raises:
        UserError: There is no such file, nobody answers, it is too large or not a picture, or the address is of
            another kind.
    """
    where = where.strip()
    scheme = _SCHEME.match(where)
    if scheme is None:
        return decode_image(_read_file(where), where)
    kind = (scheme[1] or scheme[2]).lower()
    if kind not in ("http", "https"):
        raise UserError(
            f"{_quote(where)} is an address of the kind {kind}: give the path of a file, or an address that begins "
            "with http:// or https://"
        )
    return decode_image(fetch_bytes(where, MAX_BYTES), where)


def decode_image(data: bytes, name: str, max_pixels: int | None = None) -> "Image.Image":
    """Decode a picture's file as RGB, upright; its content alone tells what it is, and `name` where it is from.

    Pictures that have more than `max_pixels` by their header are not decoded; None leaves it to Pillow.

    Raises:
        UserError: It is not a picture, or too large.
    """
    from cobra.util.images import BadImageError, read_header, read_upright

    try:
        header = read_header(io.BytesIO(data))
        if max_pixels is not None and header.width * header.height > max_pixels:
            raise UserError(
                f"{_quote(name)} is a picture of {header.width:,} x {header.height:,} pixels, and {max_pixels:,} are "
                "taken in all: make it smaller"
            )
        return read_upright(io.BytesIO(data))[0]
    except BadImageError as error:
        raise UserError(
            f"{_quote(name)} cannot be opened as a picture ({error}): give a whole file of a picture"
        ) from error


def _read_file(where: str) -> bytes:
    try:
        path = Path(where).expanduser()
        # Anything else may never end, or wait for somebody to write.
        if path.exists() and not path.is_file():
            raise UserError(f"{_quote(where)} is not a file: give the path of a picture")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UserError(f"{_quote(where)} has {size:,} bytes; pictures may have {MAX_BYTES:,}")
        return path.read_bytes()
    except UserError:
        raise
    # Of names with a NUL or a half of a surrogate pair a ValueError, of a home that nobody has a RuntimeError.
    except (OSError, ValueError, RuntimeError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UserError(
            f"{_quote(where)} cannot be opened as a picture ({problem}): give the path of an image file"
        ) from error


def _quote(where: str) -> str:
    return repr(printable(redacted_address(where), 200))


def fetch_bytes(url: str, max_bytes: int) -> bytes:
    """Fetch a file of http or https into memory, in at most a minute.

    Up to five redirects are followed; only their headers are read, of at most 6.5 MB each. Addresses of a private
    network, and of this machine, are as good as any: who gives an address may go there.

    Raises:
        UserError: Nobody answers, the answer is an error or compressed, or it is too large or too slow.
    """
    fetch = _Fetch(url, max_bytes)
    # Not in this thread: nothing ends the search for a name, or a header that comes by the byte.
    thread = threading.Thread(target=fetch.run, daemon=True)
    thread.start()
    thread.join(_TOTAL_SECONDS)
    if thread.is_alive():
        fetch.hang_up()
        raise UserError(f"{fetch.name} did not come whole within {_TOTAL_SECONDS:.0f} seconds: try again")
    if fetch.error is not None:
        raise fetch.error
    return bytes(fetch.data)


class _Fetch:
    """One file on its way; :meth:`hang_up` may be called from another thread."""

    def __init__(self, url: str, max_bytes: int) -> None:
        self.name = _quote(url)
        self.data = bytearray()
        self.error: UserError | None = None
        self._url = url
        self._max_bytes = max_bytes
        self._ended = False
        self._sockets: list[socket.socket] = []

    def run(self) -> None:
        """Fetch `data`, or set `error`."""
        try:
            self._follow()
        except UserError as error:
            self.error = error
        # Of odd addresses requests passes on UnicodeErrors and other ValueErrors; of a socket that is closed any.
        except Exception as error:  # noqa: BLE001
            self.error = UserError(
                f"{self.name} cannot be fetched ({_reason(error)}): see whether the address opens in a browser, or "
                "give the path of a file"
            )

    def hang_up(self) -> None:
        """End it: nothing more is read."""
        self._ended = True
        for connected in list(self._sockets):
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def _register(self, connected: socket.socket) -> None:
        self._sockets.append(connected)
        if self._ended:
            self.hang_up()

    def _follow(self) -> None:
        import requests

        url = self._url
        # Compressed in transport a small answer could become a large one.
        headers = {"Accept-Encoding": "identity", "User-Agent": "cobra-vlm"}
        session: Any
        with requests.Session() as session:
            # Otherwise requests reads a redirect's whole body into memory, also where it is not to follow it.
            session.get_redirect_target = lambda response: None
            session.mount("http://", _adapter(self._register))
            session.mount("https://", _adapter(self._register))
            for _ in range(_MAX_REDIRECTS + 1):
                if self._ended:
                    return
                with session.get(
                    url, stream=True, timeout=_SILENCE_SECONDS, headers=headers, allow_redirects=False
                ) as response:
                    if response.status_code not in _REDIRECTS or "Location" not in response.headers:
                        self._read_body(response)
                        return
                    # As a browser reads it, whatever the header's own encoding.
                    url = urljoin(url, response.headers["Location"].encode("latin-1").decode("utf-8", "replace"))
                if urlsplit(url).scheme not in ("http", "https"):
                    kind = printable(urlsplit(url).scheme, 20)
                    raise UserError(f"{self.name} cannot be fetched: it leads to an address of the kind {kind}")
        raise UserError(f"{self.name} cannot be fetched: it leads on more than {_MAX_REDIRECTS} times")

    def _read_body(self, response: "requests.Response") -> None:
        if not response.ok:
            raise UserError(
                f"{self.name} cannot be fetched: the server answers {response.status_code} "
                f"{printable(response.reason or '', 80)}; see whether the address opens in a browser"
            )
        coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("identity", ""):
            raise UserError(f"{self.name} cannot be fetched: the server sends it compressed ({printable(coding, 20)})")
        length = response.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() and len(length) < 20 else None
        too_large = UserError(f"{self.name} is larger than the {self._max_bytes:,} bytes that pictures may have")
        if size is not None and size > self._max_bytes:
            raise too_large
        # read1 returns what there is: a server that sends a byte now and then cannot hold it up.
        while not self._ended and (block := response.raw.read1(_BLOCK)):
            self.data += block
            if len(self.data) > self._max_bytes:
                raise too_large
        if size is not None and len(self.data) < size:
            raise UserError(f"{self.name} broke off after {len(self.data):,} of {size:,} bytes: try again")


def _adapter(register: Callable[[socket.socket], None]) -> Any:
    """Return what connects for requests, and passes its sockets to `register`."""
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
            pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
            plain: Any = pool.ConnectionCls

            class Noted(plain):
                def connect(self) -> None:
                    super().connect()
                    register(self.sock)

            pool.ConnectionCls = Noted
            return pool

    return Adapter()


def _reason(error: BaseException) -> str:
    """Return why a request failed. What is raised may quote addresses, with their passwords: it is not told."""
    import requests
    from urllib3.exceptions import LocationParseError

    chain = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__ or _argument(chain[-1])) and below not in chain:
        chain.append(below)
    for cause in reversed(chain):
        if isinstance(cause, TimeoutError | requests.Timeout):
            return f"no answer within {_SILENCE_SECONDS:.0f} seconds"
        if isinstance(cause, OSError) and cause.strerror:
            return printable(cause.strerror, 200)
    if isinstance(error, http.client.HTTPException | requests.ConnectionError):
        return "the server breaks off, or answers something else than HTTP"
    invalid = isinstance(error, LocationParseError | ValueError)
    return "it is no valid address" if invalid else type(error).__name__


def _argument(error: BaseException) -> BaseException | None:
    cause = getattr(error, "reason", None) or next(iter(error.args), None)
    return cause if isinstance(cause, BaseException) else None

"""Access to the page: its host names, the origins of requests, and a token for other machines."""

import hashlib
import ipaddress
import re
import secrets
import socket
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cobra.talk.api_errors import API_PREFIX, ApiError
from cobra.talk.headers import HEADERS

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE)
_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True)
class Access:
    """The requirements on a request."""

    hosts: tuple[str, ...] | None = LOOPBACK
    """Accepted names in its address; None is any. They keep out pages under other names that are made to lead here."""
    token: str | None = None
    """Secret that the page's address must bring once; None is none."""
    api_key: str | None = None
    """Secret that requests to the API bring; None is the token."""

    @classmethod
    def for_address(cls, address: str, allowed_hosts: tuple[str, ...] = (), api_key: str | None = None) -> "Access":
        """Return the access to a page that is served on an IP address, and may have further names.

        A loopback address is reached by this machine's users alone: it needs no token, but has only its own names. Any
        other gets a new token, which makes up for unknown names; and so does one with an API key, which would protect
        nothing beside an open page.
        """
        hosts = (*LOOPBACK, address, *allowed_hosts)
        is_local = ipaddress.ip_address(address).is_loopback
        token = None if is_local and api_key is None else secrets.token_urlsafe(24)
        return cls(hosts if is_local or allowed_hosts else None, token, api_key)

    def refusal(self, request: Request) -> Response | None:
        """Return the response to a request that is refused, or None where it is allowed."""
        names, origins = request.headers.getlist("host"), request.headers.getlist("origin")
        host = _authority(names[0]) if len(names) == 1 else None
        if host is None or len(origins) > 1:
            return _refused(request, "the request names no address, or several", 400)
        if self.hosts is not None and host[0] not in map(_plain, self.hosts):
            return _refused(
                request,
                f"the page is not served under the name {host[0]}: open the address that the terminal shows, or start "
                "it with --allowed_hosts",
                403,
            )
        other_page = self._refuse_other_page(request, origins[0], host) if origins else None
        if other_page is not None:
            return other_page
        return self._refuse_without_key(request) if _is_api(request) else self._refuse_without_token(request)

    def _refuse_other_page(self, request: Request, origin: str, host: tuple[str, str]) -> Response | None:
        # A page of somebody else's may send requests here, but not without saying so.
        if origin == "null":
            return _refused(request, "the request comes from another page", 403)
        scheme, _, rest = origin.partition("://")
        source = _authority(rest) if scheme in _PORTS else None
        if source is None:
            return _refused(request, "the request names no page that it comes from", 400)
        default = _PORTS[scheme]
        is_same = (source[0], source[1] or default) == (host[0], host[1] or default)
        return None if is_same else _refused(request, "the request comes from another page", 403)

    def _refuse_without_token(self, request: Request) -> Response | None:
        if self.token is None:
            return None
        # Ports of a machine share their cookies.
        cookie = "cobra_" + hashlib.sha256(self.token.encode()).hexdigest()[:8]
        if self._is_token(request.cookies.get(cookie)):
            return None
        if not self._is_token(request.query_params.get("token")):
            problem = (
                "the address lacks its token, or has an earlier start's: open the whole address that the terminal shows"
            )
            return _refused(request, problem, 403)
        # Away from the address bar, where it would be seen and passed on.
        answer = RedirectResponse("/", 303, HEADERS)
        answer.set_cookie(cookie, self.token, httponly=True, samesite="lax")
        return answer

    def _refuse_without_key(self, request: Request) -> Response | None:
        key = self.api_key or self.token
        given = request.headers.getlist("authorization")
        scheme, _, secret = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if key is None or (scheme.lower() == "bearer" and _is_same(secret.strip(), key)):
            return None
        problem = "Incorrect API key provided" if given else "You didn't provide an API key"
        message = f"{problem}: send the header Authorization: Bearer KEY, with the key that the server was started with"
        return ApiError(message, None, "invalid_api_key", 401, {"WWW-Authenticate": "Bearer"}).response()

    def _is_token(self, given: str | None) -> bool:
        return _is_same(given or "", self.token or "")


class Guard:
    """ASGI application that passes on the requests that an :class:`Access` allows."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        refusal = self._access.refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)


def _is_api(request: Request) -> bool:
    return request.scope["path"].startswith(API_PREFIX)


def _is_same(given: str, secret: str) -> bool:
    """Compare in a time that does not tell how much of it is right."""
    return secrets.compare_digest(given.encode("utf-8", "replace"), secret.encode())


def _refused(request: Request, reason: str, status: int) -> Response:
    """Return the reason, as a sentence where it is read by a person who has opened the address in a browser."""
    if _is_api(request):
        return ApiError(reason, None, "access_denied", status).response()
    if "text/html" in request.headers.get("accept", ""):
        return PlainTextResponse(f"{reason[0].upper()}{reason[1:]}.", status, HEADERS)
    return JSONResponse({"error": reason}, status, HEADERS)


def _authority(text: str) -> tuple[str, str] | None:
    """Return (name, port or nothing) of `name:port`, or None where it is not of that form."""
    parts = _AUTHORITY.fullmatch(text)
    if parts is None or int(parts["port"] or 0) > 65535:
        return None
    try:
        return _plain(parts["name"]), parts["port"] or ""
    except ValueError:
        return None


def _plain(name: str) -> str:
    """Return a host's name as it is compared; raise a ValueError where it has brackets and is no IPv6 address."""
    bare = name.lower().removesuffix(".")
    if bare.startswith("[") or ":" in bare:
        return str(ipaddress.IPv6Address(bare.strip("[]")))
    return bare


def page_address(access: Access, host: str, port: int) -> str:
    """Return the address to open in a browser; of every address of the machine (0.0.0.0, ::) its name is shown."""
    shown_host = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown_host}:{port}" + ("" if access.token is None else f"/?token={access.token}")

"""Redaction of secrets: tokens, passwords in addresses and signatures of links.

What requests, httpx and huggingface_hub raise quotes headers, proxies and addresses as they are.
"""

import re
import sys
import traceback
from types import TracebackType

_HIDDEN = "***"
# A shorter one would blot out ordinary text, and is no token.
_SHORTEST = 4
_PATTERNS = (
    # The hub's tokens have 34 letters and digits after the prefix.
    re.compile(r"()\bhf_[A-Za-z0-9]{20,}"),
    re.compile(r"((?:Bearer|Basic) +)[^\s'\",)]+", re.IGNORECASE),
    # user:password@host, with and without a scheme; the password may hold a slash or another @.
    re.compile(r"(://)[^\s/?#'\"]+(?=@)"),
    re.compile(r"(://)[^\s/:@'\"]*:(?!\d+[/?#])[^\s'\"]*(?=@)"),
    re.compile(r"()(?<![\w/.:@-])[\w.%+-]+:[^\s/@'\"]+(?=@[\w\[])"),
    re.compile(r"([?&][\w-]*(?:signature|token|credential|policy|api_?key|password)=)[^&\s'\"]+", re.IGNORECASE),
)
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_secrets: set[str] = set()


def remember_secret(secret: str) -> None:
    """Hide this text from now on, wherever :func:`redacted` meets it in this process."""
    if len(secret) >= _SHORTEST:
        _secrets.add(secret)


def redacted(text: str) -> str:
    """Return text with every secret in it as three stars."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<1>{_HIDDEN}", text)
    return text


def redacted_address(where: str) -> str:
    """Return an address without secrets, and with dots for what follows `?` or `#`; a file's path as it is."""
    return _QUERY.sub("?...", redacted(where)) if "://" in where else where


def reason(error: BaseException, limit: int = 300) -> str:
    """Return what an error says as one line without secrets, cut at the limit; its type where it says nothing."""
    return redacted(" ".join(str(error).split()))[:limit] or type(error).__name__


def root_reason(error: BaseException, limit: int = 100) -> str:
    """Return what the first of a chain of errors says, as :func:`reason` does: `Connection refused`, for one."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return reason(error, limit)


def print_redacted_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback without secrets; of the form of `sys.excepthook`."""
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))

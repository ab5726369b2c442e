"""Checks of the network's environment variables: proxies, certificates, and the address of the hub."""

import importlib.util
import os
import re
import ssl
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from cobra.util.errors import UserError
from cobra.util.redaction import reason, redacted

_SCHEMES = ("http", "https", "socks5", "socks5h")
_CERTIFICATES = "SSL_CERT_FILE"
# Read by requests beside it: files, or folders of certificates.
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_ENDPOINT = "HF_ENDPOINT"


def check_network_variables() -> None:
    """Check what clients of the hub and of other servers are made with.

    Raises:
        UserError: A variable names a proxy, a file of certificates or an address of the hub that cannot be used.
    """
    proxies = getproxies_environment()
    for kind, address in proxies.items():
        # With a star no proxy is asked, whatever it is.
        if proxies.get("no") != "*" and kind in ("http", "https", "all") and (problem := _proxy_problem(address)):
            name = next(name for name in (f"{kind}_proxy", f"{kind}_proxy".upper()) if name in os.environ)
            raise _wrong(name, f"{redacted(address)!r}, and {problem}: set it as {name}=http://name:port")
    if path := os.environ.get(_CERTIFICATES):
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:
            problem = f"{path!r}, from which no certificates can be read ({reason(error)})"
            raise _wrong(_CERTIFICATES, f"{problem}: name a file of certificates (PEM)") from error
    for name in _BUNDLES:
        if (path := os.environ.get(name)) and not os.path.exists(path):
            raise _wrong(name, f"{path!r}, which does not exist: name a file of certificates (PEM)")
    endpoint = os.environ.get(_ENDPOINT)
    if endpoint is not None and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", endpoint):
        raise _wrong(
            _ENDPOINT, f"{redacted(endpoint)!r}, which is no address: set it as {_ENDPOINT}=https://huggingface.co"
        )


def _wrong(name: str, problem: str) -> UserError:
    return UserError(f"the environment variable {name} is {problem}, or unset it")


def _proxy_problem(address: str) -> str:
    """Return what is wrong with a proxy's address; empty where nothing is."""
    try:
        # Without a scheme it is one of http.
        parts = urlsplit(address if "://" in address else f"http://{address}")
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole:
        return "no name and port can be read from it"
    if parts.scheme not in _SCHEMES:
        return f"a proxy's scheme is one of {', '.join(_SCHEMES)}"
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        return "SOCKS needs a package that is not installed (pip install socksio pysocks)"
    return ""

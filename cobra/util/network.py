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
# Variables that requests reads beside it: files, or folders of certificates.
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_ENDPOINT = "HF_ENDPOINT"


def check_network_variables() -> None:
    """Check what clients of the hub and of other servers are made with; a wrong value fails whatever is to be fetched.

    Raises:
        UserError: A variable names a proxy, a file of certificates or an address of the hub that cannot be used.
            Passwords are not shown.
    """
    proxies = getproxies_environment()
    for kind, address in proxies.items():
        # With a star no proxy is asked, whatever it is.
        if proxies.get("no") != "*" and kind in ("http", "https", "all") and (problem := _proxy_problem(address)):
            name = next(name for name in (f"{kind}_proxy", f"{kind}_proxy".upper()) if name in os.environ)
            raise UserError(
                f"the environment variable {name} is {redacted(address)!r}, and {problem}: set it as "
                f"{name}=http://name:port, or unset it"
            )
    if path := os.environ.get(_CERTIFICATES):
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:
            raise UserError(
                f"the environment variable {_CERTIFICATES} is {path!r}, from which no certificates can be read "
                f"({reason(error)}): name a file of certificates (PEM), or unset it"
            ) from error
    for name in _BUNDLES:
        if (path := os.environ.get(name)) and not os.path.exists(path):
            raise UserError(
                f"the environment variable {name} is {path!r}, which does not exist: name a file of certificates "
                "(PEM), or unset it"
            )
    endpoint = os.environ.get(_ENDPOINT)
    if endpoint is not None and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", endpoint):
        raise UserError(
            f"the environment variable {_ENDPOINT} is {redacted(endpoint)!r}, which is no address: set it as "
            f"{_ENDPOINT}=https://huggingface.co, or unset it"
        )


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

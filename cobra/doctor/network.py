"""Examination of the network: the hub, the servers of the data sets, the token."""

import os
import time
from collections.abc import Iterator
from threading import Thread
from urllib.parse import urlsplit

import requests

from cobra.doctor.finding import Finding
from cobra.preprocessing.published_files import DATASET_REGISTRY
from cobra.util.errors import UserError
from cobra.util.network import check_network_variables
from cobra.util.program import COMMAND
from cobra.util.redaction import root_reason
from cobra.util.tokens import read_hf_token

_HUB = "https://huggingface.co"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = ("1", "on", "yes", "true")


def examine_network(hf_token: str, timeout: float) -> Iterator[Finding]:
    """Yield the findings about the network.

    Args:
        hf_token: Environment variable or file of the hub's token.
        timeout: Seconds to wait for each server; all are asked at once.
    """
    try:
        check_network_variables()
        token = read_hf_token(hf_token)
    except UserError as error:
        yield Finding("network", "problem", str(error), "mend that variable or file")
        return
    given = token or os.environ.get("HF_TOKEN")
    yield Finding("token", "ok", "the hub's token was found" if given else "no token of the hub; none is needed")
    offline = [name for name in _OFFLINE if os.environ.get(name, "").lower() in _TRUE]
    if offline:
        yield Finding("network", "ok", f"not asked: {', '.join(offline)} is set; what is cached is used")
        return
    hub, *mirrors = servers = _servers()
    silent = _ask_all(list(servers), timeout)
    if not silent:
        yield Finding("network", "ok", f"the hub and {len(mirrors)} servers of data sets answer")
    for address, refusal in silent.items():
        text = f"{address} does not answer ({refusal})"
        if address == hub:
            remedy = f"{COMMAND} fetch where there is a network, then HF_HUB_OFFLINE=1 here"
            yield Finding("hub", "note", text, remedy)
        else:
            yield Finding("mirror", "note", text, f"fetch {', '.join(servers[address])} elsewhere, or set HTTPS_PROXY")


def _servers() -> dict[str, list[str]]:
    """Return the addresses of all servers, the hub's first, each with the data sets that come from it."""
    hub = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    servers: dict[str, list[str]] = {hub: []}
    for dataset_id, components in DATASET_REGISTRY.items():
        for component in components:
            parts = urlsplit(component["url"])
            address = f"{parts.scheme}://{parts.netloc}"
            names = servers.setdefault(hub if address == _HUB else address, [])
            if dataset_id not in names:
                names.append(dataset_id)
    return servers


def _ask_all(addresses: list[str], timeout: float) -> dict[str, str]:
    """Return the servers that do not answer, each with the reason."""
    refusals = dict.fromkeys(addresses, f"nothing within {timeout:g} s")

    def ask(address: str) -> None:
        refusals[address] = _refusal(address, timeout)

    # Not a pool, which waits for its threads: looking up a name takes longer than any timeout of requests.
    threads = [Thread(target=ask, args=(address,), daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    end = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return {address: refusal for address, refusal in refusals.copy().items() if refusal}


def _refusal(address: str, timeout: float) -> str:
    """Return why a server does not answer; empty where it does, whatever it says."""
    try:
        requests.head(address, timeout=timeout, allow_redirects=False)
    except requests.RequestException as error:
        return root_reason(error)
    return ""

"""Serve a model: a page to talk to it in the browser, and OpenAI's API."""

import os
import socket
import threading
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cobra.commands.base import Command
from cobra.talk.options import TalkFlags
from cobra.util.errors import UserError, check_values, missing_extra
from cobra.util.help_text import Usage
from cobra.util.waiting import loading

if TYPE_CHECKING:
    from cobra.talk.access import Access
    from cobra.talk.page import TalkServer

KEY_VARIABLE = "COBRA_API_KEY"


@dataclass
class ServeConfig(TalkFlags):
    """Load a model; serve a page to talk to it and OpenAI's API. No other server is asked, and nothing is stored."""

    host: str = "127.0.0.1"
    """Address to listen on: by default this machine alone can reach it, with 0.0.0.0 whoever reaches the machine and
    knows the token in the address that is printed."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Further names under which it is opened, `[models.example.org]`; needed where one leads to this machine's
    loopback, as a proxy's does."""
    port: int = 7860
    """Port to listen on; 0 is any that is free."""
    open: bool = False
    """Open the page in this machine's browser."""
    api_key: str | None = None
    """Key that requests to /v1 must bring; on the command line others of this machine see it, so better give it as the
    environment variable COBRA_API_KEY. Default: none on this machine, else the token in the address that is printed."""
    max_batch: int = 64
    """Answers that are written together at most; those that memory has no room for wait."""
    max_waiting: int = 256
    """Requests that may wait at most; further ones are told to come again later (503)."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: The address is not this machine's, or the port is taken or no port.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        # Python adds the address, which is named here already.
        problem = str(error).partition(" (while")[0].rstrip(".")
        raise UserError(
            f"nothing can be served on {host} port {port} ({problem}): give another --port (0 is any that is free), "
            "or a --host of this machine, without http:// and port: 127.0.0.1 for itself alone, 0.0.0.0 for others too"
        ) from error


def talk_server(config: ServeConfig, access: "Access") -> "TalkServer":
    """Load the model and return its server, with example pictures where the model knows rendered scenes."""
    from cobra.demo.examples import example_pictures
    from cobra.serving.engine import Engine
    from cobra.talk.knowledge import knows_shapes, model_knowledge
    from cobra.talk.page import TalkServer, Welcome

    vlm = config.load_model()
    welcome = Welcome(model_knowledge(vlm), example_pictures() if knows_shapes(vlm) else ())
    engine = Engine(vlm, config.max_batch, config.max_waiting)
    return TalkServer(vlm, config, model_name(config), access, welcome, engine)


def model_name(config: ServeConfig) -> str:
    """Return the name under which the model is served."""
    return Path(config.model_path).name


def main(config: ServeConfig) -> None:
    """Load the model and serve."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise missing_extra(f"{error.name}", "serve", "The page") from error
    # Wrong options and a port in use are reported before a model is loaded.
    config.options()
    with loading():
        from cobra.talk.access import Access, page_address
        from cobra.talk.page import MAX_BEAMS, web_server

    if config.beams > MAX_BEAMS:
        raise UserError(f"--beams is {config.beams}: on the page a search has {MAX_BEAMS} branches at most")
    check_values(
        {
            "max_batch": (config.max_batch, config.max_batch > 0, "at least 1"),
            "max_waiting": (config.max_waiting, config.max_waiting > 0, "at least 1"),
        }
    )
    api_key = config.api_key or os.environ.get(KEY_VARIABLE) or None
    with listen(config.host, config.port) as listener:
        address, port = listener.getsockname()[:2]
        access = Access.for_address(address, tuple(config.allowed_hosts), api_key)
        print(f"loading {config.model_path}", flush=True)
        server = talk_server(config, access)
        shown = page_address(access, config.host, port)
        print(f"open {shown} in a browser; Ctrl-C ends it", flush=True)
        api = f"OpenAI's API is at {shown.partition('/?')[0]}/v1, the model's name there is {model_name(config)}"
        key = "" if access.token is None else "; its key is " + ("the one given" if api_key else "the page's token")
        print(api + key, flush=True)
        if access.token is not None:
            print("whoever knows that address can use the model; who reads the network's traffic learns it", flush=True)
            if config.host in ("0.0.0.0", "::"):
                print(
                    "where that name is not known, `hostname -I` here shows an address to put in its place", flush=True
                )
        if config.open:
            # Requests wait until the server runs. Some browsers come back when they are closed only.
            threading.Thread(target=webbrowser.open, args=(shown,), daemon=True).start()
        try:
            web_server(server.app(), config.max_batch + config.max_waiting).run(sockets=[listener])
        finally:
            server.close()


COMMAND = Command(
    main,
    ServeConfig,
    Usage(
        "serve",
        ("cobra-tiny --open", "runs/my-run --port 8080", "runs/my-run --host 0.0.0.0"),
        (
            "model_path",
            "open",
            "host",
            "port",
            "api_key",
            "allowed_hosts",
            "max_new_tokens",
            "search",
            "beams",
            "device",
            "dtype",
        ),
        "model_path",
    ),
)

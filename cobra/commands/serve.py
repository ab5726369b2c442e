"""Talk to a model on a page in the browser."""

import socket
from dataclasses import dataclass, field
from pathlib import Path

from cobra.commands.base import Command
from cobra.talk.options import TalkFlags
from cobra.util.errors import UserError, missing_extra
from cobra.util.help_text import Usage


@dataclass
class ServeConfig(TalkFlags):
    """Load a model and serve a page to talk to it; nothing is asked of any other server, and nothing is stored."""

    host: str = "127.0.0.1"
    """Address to listen on: by default this machine alone can reach it, with 0.0.0.0 whoever reaches the machine and
    knows the token in the address that is printed."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Further names under which it is opened, `[models.example.org]`; needed where one leads to this machine's
    loopback, as a proxy's does."""
    port: int = 7860
    """Port to listen on; 0 is any that is free."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: The address is not this machine's, or the port is taken or no port.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"nothing can be served on {host} port {port} ({error}): give another --port (0 is any that is free) or "
            "--host"
        ) from error


def main(config: ServeConfig) -> None:
    """Load the model and serve."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise missing_extra(f"{error.name}", "serve", "The page") from error
    # Wrong options and a port in use are reported before a model is loaded.
    config.options()
    from cobra.talk.access import Access, page_address
    from cobra.talk.page import MAX_BEAMS, TalkServer, web_server

    if config.beams > MAX_BEAMS:
        raise UserError(f"--beams is {config.beams}: on the page a search has {MAX_BEAMS} branches at most")
    with listen(config.host, config.port) as listener:
        address, port = listener.getsockname()[:2]
        access = Access.for_address(address, tuple(config.allowed_hosts))
        app = TalkServer(config.load_model(), config, Path(config.model_path).name, access).app()
        print(f"open {page_address(access, config.host, port)} in a browser; Ctrl-C ends it", flush=True)
        if access.token is not None:
            print("whoever knows that address can use the model; who reads the network's traffic learns it", flush=True)
        web_server(app).run(sockets=[listener])


COMMAND = Command(
    main,
    ServeConfig,
    Usage(
        "serve",
        ("cobra-tiny", "runs/my-run --port 8080", "runs/my-run --host 0.0.0.0"),
        ("model_path", "host", "port", "allowed_hosts", "max_new_tokens", "search", "beams", "device", "dtype"),
        "model_path",
    ),
)

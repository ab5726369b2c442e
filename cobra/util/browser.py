"""The browser of the machine, where there is one to be seen."""

import os
import sys
import webbrowser
from contextlib import suppress
from pathlib import Path


def open_in_browser(path: Path) -> bool:
    """Open a file in a window of the browser; return False where the machine shows none.

    A browser in the terminal, which would stand in the way of the program, counts as none.
    """
    if sys.platform not in ("darwin", "win32") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    with suppress(webbrowser.Error, OSError):
        return webbrowser.open(path.resolve().as_uri())
    return False

"""Answers in a terminal: stages in colour as they come; in a pipe the text just as the model writes it."""

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from cobra.reasoning.trace import Part, StageReader
from cobra.util.printable import printable

_HEADINGS = {None: "", "SUMMARY": "blue", "CAPTION": "cyan", "REASONING": "yellow", "CONCLUSION": "bold magenta"}
_TEXTS = {None: "", "SUMMARY": "dim", "CAPTION": "dim", "REASONING": "dim", "CONCLUSION": "bold"}


def print_answer(pieces: Iterable[str], console: Console) -> None:
    """Print an answer while it is written, and end the line.

    In a terminal, stages have headings in place of their tags, and characters that would steer it are written out.
    Elsewhere the text comes as it is.
    """
    reader = StageReader() if console.is_terminal else None
    block = -1
    try:
        for piece in pieces:
            if reader is None:
                # Rich would replace tabs and control characters.
                console.file.write(piece)
                console.file.flush()
                continue
            for part in reader.feed(piece):
                block = _print_part(part, block, console)
        for part in reader.finish() if reader is not None else ():
            block = _print_part(part, block, console)
    finally:
        # Of an answer that was stopped too.
        console.file.write("\n")
        console.file.flush()


def _print_part(part: Part, block: int, console: Console) -> int:
    if part.block != block:
        between = "" if block < 0 else "\n\n"
        heading = "" if part.stage is None else f"{part.stage}\n"
        console.print(Text(between + heading, _HEADINGS[part.stage]), end="", soft_wrap=True)
    console.print(Text(printable(part.text), _TEXTS[part.stage]), end="", soft_wrap=True)
    return part.block

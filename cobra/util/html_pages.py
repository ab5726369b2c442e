"""Self-contained HTML pages: no network, pictures inside, and no text from the data that could become markup."""

import base64
import hashlib
import io
from pathlib import Path
from typing import NamedTuple

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cobra.util.images import read_header, read_upright
from cobra.util.numbers import percent
from cobra.util.printable import printable

# CSS pixels at most, in either direction, and decoded pixels above which a picture is not shown: it would take 100 MB.
_SIDE = 280
_MAX_PIXELS = 25_000_000
_JPEG_QUALITY = 80


def page_templates(package: str) -> Environment:
    """Return the templates in a package's folder `templates`, and those in this package's that all pages share.

    Every text is escaped and :func:`printable`; a name that is not given to a template is an error. The filter `number`
    groups digits, and `percent` has one decimal, 100 only for all.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("cobra.util")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Markup, such as a macro's output, is a string of another type.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {"number": "{:,}".format, "percent": lambda share: f"{percent(share)}%"}
    return environment


def script_of(templates: Environment, name: str) -> dict[str, str]:
    """Return a script among the templates as `script`, and the `script_sha256` by which a page's policy allows it."""
    text = templates.get_template(name).render()
    return {"script": Markup(text), "script_sha256": base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}


class Thumbnail(NamedTuple):
    """A small picture."""

    data: str
    """The picture as a data URI."""
    width: int
    height: int
    turned: bool
    """True where it is stored, and was read by a model, turned; it is shown upright."""


def thumbnail(path: Path | io.BytesIO) -> Thumbnail | str:
    """Return a small upright copy of the picture in a file or its bytes, or in one sentence why there is none."""
    try:
        header = read_header(path)
        if header.width * header.height > _MAX_PIXELS:
            return f"The picture has {header.width:,} x {header.height:,} pixels, too many to show here."
        small, turned = read_upright(path)
    # Rows may have been kept without looking at their pictures.
    except OSError:
        return "The picture cannot be read."
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    data = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(data, *small.size, turned)

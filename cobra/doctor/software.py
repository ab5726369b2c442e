"""Examination of Python and the installed packages."""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from cobra.doctor.finding import Finding

PACKAGE = "cobra-vlm"
_OLDEST_PYTHON = (3, 11)
# Extras of users; the others are for those who work on the package.
_EXTRAS = {
    "fast": "compiled CPU kernels",
    "lora": "low-rank adapters",
    "serve": "the page to talk to a model on",
    "demo": "the embedding similarity without a download",
    "java": "METEOR and SPICE",
    "tracking": "Weights & Biases, TensorBoard",
}


def examine_software() -> Iterator[Finding]:
    """Yield the findings about Python, the required packages and the extras."""
    here = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST_PYTHON:
        yield Finding("python", "problem", f"{here}; 3.11 or newer is needed", "python3.11 -m venv .venv")
    else:
        yield Finding("python", "ok", f"{here} in {sys.prefix}")
    requirements = [Requirement(text) for text in requires(PACKAGE) or []]
    wrong = [text for needed in requirements if needed.marker is None and (text := _unmet(needed))]
    if wrong:
        command = f"pip install --upgrade {PACKAGE}"
        yield Finding("packages", "problem", "; ".join(wrong), command)
    else:
        shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "transformers", "timm"))
        yield Finding("packages", "ok", f"{PACKAGE} {version(PACKAGE)} with {shown}")
    for extra, use in _EXTRAS.items():
        lacking = [
            needed.name
            for needed in requirements
            if needed.marker and needed.marker.evaluate({"extra": extra}) and _unmet(needed)
        ]
        if lacking:
            yield Finding(
                f"extra {extra}", "note", f"{use}: {', '.join(lacking)} not there", f"pip install '{PACKAGE}[{extra}]'"
            )
        else:
            yield Finding(f"extra {extra}", "ok", f"{use}: installed")


def _unmet(needed: Requirement) -> str:
    """Return how an installed package differs from a requirement; empty where it does not."""
    try:
        installed = version(needed.name)
    except PackageNotFoundError:
        return f"{needed.name} is not installed"
    fits = needed.specifier.contains(installed, prereleases=True)
    return "" if fits else f"{needed.name} {installed} is installed, {needed.specifier} is needed"


def torch_build() -> tuple[str | None, str | None]:
    """Return the CUDA and the ROCm version that the installed torch was built for; torch is not imported."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None, None
    file = Path(spec.submodule_search_locations[0]) / "version.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""

    def value(name: str) -> str | None:
        match = re.search(rf"^{name}\b.*= *['\"]([\d.]+)", text, re.MULTILINE)
        return match[1] if match else None

    return value("cuda"), value("hip")

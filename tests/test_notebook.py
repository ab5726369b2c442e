"""The notebook's cells run one after the other, in one namespace, to the outputs that it shows.

`python tests/test_notebook.py` writes the outputs anew.
"""

import ast
import base64
import contextlib
import io
import json
import re
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image

import cobra

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first_steps.ipynb"


def run_cell(source: str, names: dict, number: int) -> list[dict]:
    """Run a cell as Jupyter does; return what it prints, and its last expression's value."""
    tree, printed, value = ast.parse(source), io.StringIO(), None
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), names)
        if last is not None:
            value = eval(compile(last, f"cell {number}", "eval"), names)
    outputs = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": text})
    if value is not None:
        # As IPython shows a picture: without its address.
        data = {"text/plain": re.sub(r" at 0x\w+>$", ">", repr(value)).splitlines(keepends=True)}
        if hasattr(value, "_repr_png_"):
            data = {"image/png": base64.b64encode(value._repr_png_()).decode()} | data
        outputs.append({"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"})
    return outputs


def run_all(cells: list[dict]) -> list[list[dict]]:
    """Return the outputs of every cell of code."""
    load, names = cobra.load, {}
    with patch.object(cobra, "load", lambda name: load(name, device="cpu")):
        codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        return [run_cell(code, names, number) for number, code in enumerate(codes, 1)]


def with_pixels(outputs: list[dict]) -> list[dict]:
    """Return outputs with the pixels of their pictures, which another zlib would encode otherwise."""
    for data in (output["data"] for output in outputs if "image/png" in output.get("data", {})):
        data["image/png"] = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).tobytes()
    return outputs


@pytest.mark.fault("E9")
def test_the_notebook_shows_what_its_cells_say():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(cells) <= 12
    shown = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    assert all(shown) and any("image/png" in output.get("data", {}) for outputs in shown for output in outputs)
    assert [with_pixels(outputs) for outputs in run_all(cells)] == [with_pixels(outputs) for outputs in shown]


if __name__ == "__main__":
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, outputs) in enumerate(zip(codes, run_all(notebook["cells"]), strict=True), 1):
        cell["execution_count"], cell["outputs"] = number, outputs
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.exit(0)

"""Formats of an export, by the value of `--format`: each is a module that writes a folder and proves what it wrote."""

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cobra.models.checkpoint import Checkpoint
from cobra.models.load import load
from cobra.models.run_folder import LATEST, SAFETENSORS, CheckpointSource
from cobra.models.vlms import CobraVLM
from cobra.util.errors import lookup, missing_extra


@dataclass
class ExportedModel:
    """A model that is being exported.

    source: Its checkpoint, and what kind of model it is of.
    checkpoint: Tensors of the checkpoint by module, adapters merged; a module that is the backbone's own is absent.
    values: Content of the exported `config.json`.
    weights: The file to write the weights to, relative to the folder.
    given: The model as the user named it.
    token: Access token of the hub, for backbones that the checkpoint lacks.
    dtype: Kind of the numbers to write, one of the format's.
    """

    source: CheckpointSource
    checkpoint: Checkpoint
    values: dict[str, Any]
    weights: Path
    given: str
    token: str | None
    dtype: str = "fp32"

    @cached_property
    def vlm(self) -> CobraVLM:
        """The whole model on the CPU in fp32, loaded when first asked for; frozen, in evaluation."""
        return load(self.given, self.token, device="cpu", dtype="fp32")


class Writer(Protocol):
    """A format's module."""

    def write(self, model: ExportedModel, folder: Path) -> dict[str, Any]:
        """Write the weights, and the format's own files, into a folder that is there and empty.

        Returns:
            Entries of `config.json` beside those of the model; the export writes it, the record and the card.

        Raises:
            UserError: The format cannot hold this model, or needs a package that is not installed.
        """

    def prove(self, model: ExportedModel, folder: Path, questions: int) -> dict[str, Any]:
        """Compare the written folder, whole but for `parity.json`, with the model.

        Returns:
            The content of `parity.json`: `passed`, a bool, `equal`, and further entries; see
            :mod:`cobra.export.parity` for formats that answer questions.
        """


class Format(NamedTuple):
    """One value of `--format`."""

    module: str
    """Its :class:`Writer`, imported when it is asked for."""
    weights: Path
    """The file with the weights, or the main one of them, relative to the folder."""
    use: str
    """Section `Use` of the model card, in Markdown; `{folder}` is replaced."""
    extra: str = ""
    """The extra of this project that installs :attr:`packages`."""
    packages: tuple[str, ...] = ()
    """Packages that the module imports and that are not always installed, by the names that are imported."""
    dtypes: tuple[str, ...] = ("fp32",)
    """Kinds of numbers that it can be written in."""

    def writer(self) -> Writer:
        """Import the module; a UserError that names the extra where a package is not installed."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                raise missing_extra(package.replace("_", "-"), self.extra, "this --format")
        module: Any = importlib.import_module(self.module)
        return module


_USE = """\
```python
import cobra

vlm = cobra.load("{folder}")
print(vlm.ask("photo.jpg", "What is in the picture?"))
```
{download}
To train on from here: `cobra-vlm train --pretrained_checkpoint {folder}`."""

_USE_ONNX = """\
```bash
pip install onnxruntime tokenizers pillow numpy
python {folder}/answer.py photo.jpg "What is in the picture?"
```
{download}
`answer.py` needs no other package; `inputs.json` has what a program in another language must know."""

_USE_TRANSFORMERS = """\
```python
from transformers import pipeline

ask = pipeline("image-text-to-text", model="{folder}", trust_remote_code=True)
image = {"type": "image", "url": "photo.jpg"}
question = {"type": "text", "text": "What is in the picture?"}
print(ask(text=[{"role": "user", "content": [image, question]}], return_full_text=False)[0]["generated_text"])
```

`trust_remote_code=True` runs the code in this folder, which needs torch, timm and transformers. After `import cobra`
(the package cobra-vlm) it is not needed, and the package's faster kernels are used.
{download}
To train on from here: `cobra-vlm train --pretrained_checkpoint {folder}`."""

_USE_GGUF = """\
```bash
pip install xllamacpp onnxruntime tokenizers pillow numpy
python {folder}/answer.py photo.jpg "What is in the picture?"
```
{download}
`model.gguf` is the language model alone, for llama.cpp. Image features come from `vision.onnx`, and `answer.py` hands
them to llama.cpp as embeddings: there is no projector file (mmproj) for this model, so `llama-server` and programs
built on it chat in text only."""

FORMATS = {
    "pt": Format("cobra.export.own_formats", LATEST, _USE),
    "safetensors": Format("cobra.export.own_formats", Path(SAFETENSORS), _USE),
    "transformers": Format("cobra.export.hf.folder", Path(SAFETENSORS), _USE_TRANSFORMERS),
    "onnx": Format(
        "cobra.export.onnx.writer",
        Path("language_model.data"),
        _USE_ONNX,
        "onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        ("fp32", "fp16"),
    ),
    "gguf": Format(
        "cobra.export.gguf.writer",
        Path("model.gguf"),
        _USE_GGUF,
        "gguf",
        ("onnx", "onnxscript", "onnxruntime", "gguf", "xllamacpp"),
        ("fp32", "fp16", "bf16"),
    ),
}


def format_of(name: str) -> Format:
    """Return the format of a name, or raise a UserError that lists the known ones."""
    return lookup(FORMATS, name, "--format")

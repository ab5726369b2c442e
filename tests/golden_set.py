"""The golden set: outputs of the original Cobra, with the settings, names and indices that reproduce them.

Another set of the same form may have other sizes, names, numbers in names and indices, so tests read all of them here.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

# Tolerances of the set's README: logits, hidden states and features.
LOGITS = dict(atol=5e-4, rtol=0)
LOSS = dict(rel=1e-5)
GRADIENT_NORM = dict(rel=1e-3)
PIXELS = dict(atol=1e-5, rtol=0)

# What a set may lack; anything else that is missing is an error, so that a mistyped folder passes no test.
OPTIONAL = ("captions.json", "ptb_strings.json", "quotes_and_units.json", "stock_cobra+3b_config.json")


class GoldenSet:
    """Reads the files of a golden set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = self.json("meta.json")

    def path(self, name: str) -> Path:
        path = self.folder / name
        if name in OPTIONAL and not path.exists():
            pytest.skip(f"the golden set {self.folder} has no {name}")
        assert path.exists(), f"the golden set has no {path}"
        return path

    def json(self, name: str):
        return json.loads(self.path(name).read_text(encoding="utf-8"))

    def npz(self, name: str) -> dict:
        with np.load(self.path(name)) as arrays:
            return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}

    def state_dict(self) -> dict:
        """The towers' weights."""
        return self.npz("vision_state_dict.npz")

    @property
    def towers(self) -> dict[str, dict]:
        """The towers' settings by name, in the order in which their features are joined; a single one's name is ""."""
        found = {name: value for name, value in self.meta.items() if isinstance(value, dict) and "timm" in value}
        prefixes = [name.split(".")[0].removesuffix("_featurizer") for name in self.state_dict()]
        if "featurizer" in prefixes:
            return {"": next(iter(found.values()))}
        return {name: found[name] for name in dict.fromkeys(prefixes)}

    def tower(self, name: str) -> str:
        """The name under which the model knows the tower that the set's files call so."""
        return name if name in self.towers else ""

    def pixels(self, arrays: dict):
        """The pixels that a fixture holds, by tower."""
        values = {name.removeprefix("pixel_"): value for name, value in arrays.items() if name.startswith("pixel_")}
        return values if "" not in self.towers else next(iter(values.values()))

    def mixed_batch(self) -> dict:
        """The batch of rows with and without an image; the fixture holds pixels of the former only."""
        arrays = self.npz("vlm_forward_mixed.npz")
        images = arrays["multimodal_indices"]

        def spread(pixels):
            whole = torch.zeros(len(arrays["input_ids"]), *pixels.shape[1:])
            whole[images] = pixels
            return whole

        pixels = self.pixels(arrays)
        return dict(
            input_ids=arrays["input_ids"],
            attention_mask=arrays["attention_mask"],
            labels=arrays["labels"],
            pixel_values={k: spread(v) for k, v in pixels.items()} if isinstance(pixels, dict) else spread(pixels),
            multimodal_indices=images,
        )


def by_tower(pixels) -> dict:
    """Pixels as a dict, also those of a single tower."""
    return pixels if isinstance(pixels, dict) else {"": pixels}


def numbered(arrays: dict, prefix: str) -> list[tuple[int, torch.Tensor]]:
    """Return (number, array) of the names that are `prefix` and a number, in the order of the numbers."""
    found = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    pairs = sorted((int(number), value) for number, value in found.items() if number.isdigit())
    assert pairs, f"no {prefix} and a number in {', '.join(arrays)}"
    return pairs


def close(actual, expected, **tolerance):
    torch.testing.assert_close(actual, torch.as_tensor(expected), **tolerance, check_dtype=False)


def close_to_some(values, reference, dim: int, **tolerance):
    """Compare with a reference that holds every k-th entry of a dimension; k follows from the lengths."""
    length, kept = values.shape[dim], reference.shape[dim]
    stride = next(k for k in range(1, length + 1) if math.ceil(length / k) == kept)
    close(values.index_select(dim, torch.arange(0, length, stride)), reference, **tolerance)


def rows_batch(data, dataset, indices):
    return data.collator([dataset[index] for index in indices])


def gradient_norms(vlm, stage, batch):
    """Run one forward and backward pass of a stage: the loss, and each parameter's gradient norm (None without)."""
    vlm.zero_grad(set_to_none=True)
    vlm.freeze_backbones(stage)
    vlm.train()
    loss = vlm(**batch).loss
    loss.backward()
    norms = {name: None if p.grad is None else p.grad.norm().item() for name, p in vlm.named_parameters()}
    return loss.item(), norms


def assert_norms(norms, expected):
    assert expected
    for name, value in expected.items():
        if value is None:
            assert norms[name] is None, name
        elif value < 1e-12:
            assert (norms[name] or 0.0) < 1e-9, name
        else:
            assert norms[name] == pytest.approx(value, **GRADIENT_NORM), name

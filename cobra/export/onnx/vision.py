"""Vision towers and projector as a graph of ONNX, and what goes before it, for any number of images."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from cobra.models.vlms import CobraVLM


class _Towers(nn.Module):
    """Pixels of all towers to image features, both fp32 whatever the weights are."""

    def __init__(self, vlm: CobraVLM, dtype: torch.dtype) -> None:
        super().__init__()
        self.vision_backbone, self.projector, self.dtype = vlm.vision_backbone, vlm.projector, dtype

    def forward(self, pixels: list[Tensor]) -> Tensor:
        """Return image features (batch, positions, d_model) of pixels (batch, 3, side, side) of each tower."""
        names = self.vision_backbone.tower_names
        features = self.vision_backbone(dict(zip(names, pixels, strict=True)) if len(names) > 1 else pixels[0])
        return self.projector(features.to(self.dtype)).float()


def vision_graph(vlm: CobraVLM) -> ir.Model:
    """Return the graph from pixels (`pixels_dino`, say; `pixels` of a single tower) to `image_features`."""
    # Two images: torch.export would take a single one for a constant.
    pixels = [torch.zeros(2, 3, tower.image_size, tower.image_size) for tower in vlm.vision_backbone.towers]
    towers = _Towers(vlm, next(vlm.projector.parameters()).dtype).eval()
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            towers,
            (pixels,),
            dynamo=True,
            verbose=False,
            input_names=pixel_names(vlm),
            output_names=["image_features"],
            dynamic_shapes=([{0: torch.export.Dim("batch")} for _ in pixels],),
        )
    assert program is not None
    _strip_traces(program.model.graph)
    return program.model


def _strip_traces(graph: ir.Graph) -> None:
    """Remove the exporter's notes, ten times the size of the graph: lines of code, and folders of this machine."""
    graph.metadata_props.clear()
    for part in (*graph, *graph.inputs, *graph.initializers.values()):
        part.metadata_props.clear()
        part.doc_string = None
    for node in graph:
        for value in node.outputs:
            value.metadata_props.clear()


def pixel_names(vlm: CobraVLM) -> list[str]:
    """Return the name of each tower's input."""
    return [f"pixels_{name}" if name else "pixels" for name in vlm.vision_backbone.tower_names]


def image_settings(vlm: CobraVLM, resize: str) -> dict[str, Any]:
    """Return what a picture goes through, by the input that it becomes; see :func:`frontend.pixels_of`."""
    towers = {
        name: {"size": tower.image_size, "mean": list(tower.pixel_mean), "std": list(tower.pixel_std)}
        for name, tower in zip(pixel_names(vlm), vlm.vision_backbone.towers, strict=True)
    }
    return {"resize": resize, "towers": towers, "positions": vlm.image_tokens}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own workings from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

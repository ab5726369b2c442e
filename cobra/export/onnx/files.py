"""Graphs as files, their weights beside them in one file that they share: a graph's own file cannot exceed 2 GB."""

from pathlib import Path

import onnx_ir as ir

# Smaller tensors stay in the graph, where they help runtimes to simplify it.
_SMALL = 1024
# What memory maps begin at.
_PAGE = 4096


def write_graphs(folder: Path, models: dict[str, ir.Model], weights: str) -> None:
    """Write graphs, each under its file name; a weight that several have by the same name is written once.

    Args:
        folder: Folder for the graphs and the weights.
        models: The graphs; their weights become references to the file.
        weights: Name of the file with the weights.
    """
    written: dict[str, ir.ExternalTensor] = {}
    with (folder / weights).open("wb") as file:
        for model in models.values():
            for name, value in model.graph.initializers.items():
                tensor = value.const_value
                if tensor is None or tensor.nbytes <= _SMALL:
                    continue
                if name not in written:
                    file.write(b"\0" * (-file.tell() % _PAGE))
                    written[name] = ir.ExternalTensor(
                        weights,
                        file.tell(),
                        tensor.nbytes,
                        tensor.dtype,
                        shape=ir.Shape(tensor.shape.numpy()),
                        name=name,
                        base_dir=folder,
                    )
                    file.write(tensor.tobytes())
                value.const_value = written[name]
    for name, model in models.items():
        ir.save(model, folder / name)

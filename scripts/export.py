"""Write a trained model as one folder, adapters merged: `python scripts/export.py --checkpoint RUN --output FOLDER`."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from cobra.models.export import ExportConfig, export
from cobra.util.cli import run


def main(config: ExportConfig) -> None:
    """Write the folder, and upload it where that is asked for."""
    export(config)


if __name__ == "__main__":
    run(main, ExportConfig)

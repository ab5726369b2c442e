"""Run a script with extensions: `python extended.py colour_rows,gated_recurrence scripts/pretrain.py FLAGS`."""

import importlib
import runpy
import sys


def main() -> None:
    """Import the modules, which lie beside this file, and run the script as if it had been called."""
    modules, script = sys.argv[1:3]
    del sys.argv[:2]
    for module in modules.split(","):
        importlib.import_module(module)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()

"""Functions that run when another library's module has been imported, so that nothing is imported for their sake."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def after_import(modules: Sequence[str], function: str) -> None:
    """Call a function, `module:name`, with the name of each of some modules: now where it is imported, else then.

    The function's module is imported when it is called first.
    """
    waiting = [name for name in modules if name not in sys.modules]
    if waiting:
        sys.meta_path.insert(0, _Watch(frozenset(waiting), function))
    for name in modules:
        if name not in waiting:
            _call(function, name)


def _call(function: str, name: str) -> None:
    module, _, attribute = function.partition(":")
    getattr(importlib.import_module(module), attribute)(name)


class _Watch(MetaPathFinder):
    """Finds the modules where Python does, and has the function called once they have run."""

    def __init__(self, names: frozenset[str], function: str) -> None:
        self._names = names
        self._function = function

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._names:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            execute(module)
            _call(self._function, name)

        loader.exec_module = execute_and_call
        return spec

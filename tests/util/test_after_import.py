"""Functions after imports: called once a module has run, at once where it had, and nothing is imported for them."""

import importlib
import sys

import pytest

from cobra.util.after_import import after_import

CALLS: list[tuple[str, bool]] = []


def note(name):
    CALLS.append((name, getattr(sys.modules[name], "DONE", False)))


@pytest.fixture
def modules(tmp_path, monkeypatch):
    for name in ("watched_one", "watched_two"):
        (tmp_path / f"{name}.py").write_text("import sys\nDONE = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    CALLS.clear()
    yield "watched_one", "watched_two"
    for name in ("watched_one", "watched_two"):
        sys.modules.pop(name, None)


def test_it_is_called_when_the_module_has_run_or_at_once(modules):
    importlib.import_module(modules[0])
    after_import(modules, f"{__name__}:note")
    assert CALLS == [("watched_one", True)]
    assert "watched_two" not in sys.modules
    importlib.import_module(modules[1])
    importlib.import_module(modules[1])
    assert CALLS == [("watched_one", True), ("watched_two", True)]


def test_a_module_that_is_absent_stays_absent(modules):
    after_import(["watched_three"], f"{__name__}:note")
    with pytest.raises(ModuleNotFoundError, match="watched_three"):
        importlib.import_module("watched_three")
    assert not CALLS

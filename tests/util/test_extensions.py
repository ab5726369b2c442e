"""Modules named by the variable are imported in order; a missing one is the user's error, what it lacks is its own."""

import sys

import pytest

from cobra.util.errors import UserError
from cobra.util.extensions import VARIABLE, import_extensions


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("extension_one", "extension_two"):
        sys.modules.pop(name, None)


def test_modules_are_imported_in_order(folder, monkeypatch, capsys):
    for name in ("one", "two"):
        (folder / f"extension_{name}.py").write_text(f"print('{name}')")
    monkeypatch.setenv(VARIABLE, "extension_two, extension_one,")
    import_extensions()
    assert capsys.readouterr().out.split() == ["two", "one"]


def test_none_are_imported_without_the_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    import_extensions()


def test_a_missing_module_is_named(monkeypatch):
    monkeypatch.setenv(VARIABLE, "extension_none")
    with pytest.raises(UserError, match="COBRA_EXTENSIONS names 'extension_none', and there is no such module"):
        import_extensions()


def test_what_a_module_lacks_itself_is_its_own_error(folder, monkeypatch):
    (folder / "extension_one.py").write_text("import no_such_library")
    monkeypatch.setenv(VARIABLE, "extension_one")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        import_extensions()

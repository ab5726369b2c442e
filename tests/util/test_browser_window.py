"""A file is shown in a browser's window where the machine has one."""

import webbrowser

import pytest

from cobra.util import browser


@pytest.fixture
def opened(monkeypatch):
    addresses = []
    monkeypatch.setattr(webbrowser, "open", lambda address: addresses.append(address) or True)
    monkeypatch.setattr(browser.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    return addresses


def test_a_machine_without_a_screen_has_no_window(opened, tmp_path):
    assert not browser.open_in_browser(tmp_path / "a page.html") and opened == []


@pytest.mark.parametrize("name", ["DISPLAY", "WAYLAND_DISPLAY"])
def test_one_with_a_screen_opens_it(opened, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, ":0")
    assert browser.open_in_browser(tmp_path / "a page.html")
    assert opened == [f"{tmp_path.as_uri()}/a%20page.html"]


def test_a_broken_browser_is_none(opened, tmp_path, monkeypatch):
    def fail(address):
        raise webbrowser.Error

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", fail)
    assert not browser.open_in_browser(tmp_path / "page.html")

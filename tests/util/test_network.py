"""Proxies and certificates of the environment: what no client can be made with is named before one is."""

import importlib.util

import pytest

from cobra.models.hub import fetch
from cobra.preprocessing.fetch import _dataset_info
from cobra.util.errors import UserError
from cobra.util.network import check_network_variables

pytestmark = pytest.mark.fault("F12")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for kind in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{kind}_proxy", raising=False)
        monkeypatch.delenv(f"{kind}_PROXY".upper(), raising=False)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "http_proxy"])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("socks://127.0.0.1:9", "scheme is one of http, https, socks5, socks5h"),
        ("socks4://127.0.0.1:9", "scheme is one of"),
        ("proxy:bar:baz", "no name and port"),
        ("http://:3128", "no name and port"),
        ("http://proxy:99999", "no name and port"),
        ("http://[::1", "no name and port"),
    ],
)
def test_a_proxy_that_cannot_be_is_named(monkeypatch, name, value, told):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"the environment variable {name} is '.*{told}.*set it as {name}="):
        check_network_variables()


@pytest.mark.parametrize(
    "value", ["", "http://127.0.0.1:9", "127.0.0.1:9", "proxy", "https://u:p@proxy:1/", "http://[::1]:9"]
)
def test_a_proxy_that_can_be_is_taken(monkeypatch, value):
    monkeypatch.setenv("HTTPS_PROXY", value)
    check_network_variables()


def test_socks_needs_a_package_and_passwords_are_not_shown(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "socksio" else find(name, *rest)
    )
    monkeypatch.setenv("ALL_PROXY", "socks5://me:geheim@127.0.0.1:9")
    with pytest.raises(UserError, match="pip install socksio") as refused:
        check_network_variables()
    assert "geheim" not in str(refused.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object())
    check_network_variables()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_certificates_that_is_none_is_named(monkeypatch, tmp_path, content):
    path = tmp_path / "certificates.pem"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(UserError, match=r"variable SSL_CERT_FILE is .*certificates.pem.*unset it"):
        check_network_variables()


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_of_requests_that_are_not_there_are_named(monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, str(tmp_path))
    check_network_variables()
    monkeypatch.setenv(name, str(tmp_path / "missing.pem"))
    with pytest.raises(UserError, match=f"variable {name} is .*missing.pem', which does not exist"):
        check_network_variables()


@pytest.mark.parametrize(
    "value", ["", "huggingface.co", "https://", " https://huggingface.co", "https://a b", "ftp://a"]
)
def test_an_address_of_the_hub_that_cannot_be_is_named(monkeypatch, value):
    monkeypatch.setenv("HF_ENDPOINT", value)
    with pytest.raises(UserError, match="the environment variable HF_ENDPOINT is"):
        check_network_variables()


@pytest.mark.parametrize("value", ["https://huggingface.co", "https://hf-mirror.example/", "http://127.0.0.1:8971"])
def test_an_address_of_the_hub_that_can_be_is_taken(monkeypatch, value):
    monkeypatch.setenv("HF_ENDPOINT", value)
    check_network_variables()


def test_a_proxy_that_is_not_asked_is_not_looked_at(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "*")
    check_network_variables()


@pytest.mark.parametrize("ask", [lambda: fetch("a/b", "config.json"), lambda: _dataset_info("a/b", "main", None)])
def test_doors_to_the_hub_name_the_variable(monkeypatch, ask):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    with pytest.raises(UserError, match="the environment variable ALL_PROXY"):
        ask()

"""Who may use the page: names that lead to it, pages of others, and the token in its address."""

import http.client
import io

import pytest
import requests
from scratch import picture, scratch_vlm

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from starlette.requests import Request
from talk_page import Served

from cobra.talk.access import Access, page_address

pytestmark = pytest.mark.fault("B5")


def status(access, *headers, path="/", query=""):
    """The status of the refusal of a request, 303 where its token is taken, and 200 where the page answers."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": raw}
    refusal = access.refusal(Request(scope))
    return 200 if refusal is None else refusal.status_code


LOCAL = Access.for_address("127.0.0.1", ("Models.Example.org",))


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:7860",
        "localhost.:1",
        "127.0.0.1:7860",
        "[::1]:7860",
        "[0:0:0::1]",
        "models.example.org.",
    ],
)
def test_the_page_answers_under_its_own_names(host):
    assert status(LOCAL, ("host", host)) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:7860",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "xlocalhost",
        "localhost..",
        "0.0.0.0",
        "[::2]",
    ],
)
def test_a_name_that_was_made_to_lead_here_is_refused(host):
    assert status(LOCAL, ("host", host)) == 403


@pytest.mark.fault("B7")
@pytest.mark.parametrize(
    "host",
    [*("", " ", "[", "[]", "[::1", "::1", "a b", "localhost:", "localhost:x", "localhost:99999999", "localhost:65536"),
     *("user@localhost", "localhost/", "localhost,evil.example", "\u00e9", "[1.2.3.4]", "[:::]", "localhost:1:2")],
)  # fmt: skip
def test_malformed_hosts_and_origins_are_told(host):
    assert status(LOCAL, ("host", host)) == 400
    assert status(LOCAL, ("host", "localhost"), ("origin", f"http://{host}")) == 400


@pytest.mark.fault("B7")
def test_no_host_or_several_are_told():
    assert status(LOCAL) == 400
    assert status(LOCAL, ("host", "localhost"), ("host", "localhost")) == 400
    assert status(LOCAL, ("host", "localhost"), *2 * [("origin", "http://localhost")]) == 400


@pytest.mark.fault("B7")
@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        *(("localhost:80", "http://LOCALHOST", 200), ("localhost", "http://localhost.:80", 200)),
        *(("[::1]:8", "http://[0::1]:8", 200), ("models.example.org", "https://models.example.org", 200)),
        *(("localhost:7860", "http://localhost:7861", 403), ("localhost:7860", "http://localhost", 403)),
        *(
            ("localhost", "null", 403),
            ("localhost", "http://evil.example", 403),
            ("localhost", "http://127.0.0.1", 403),
        ),
        *(("localhost", "file://", 400), ("localhost", "", 400), ("localhost", "localhost", 400)),
        *(("localhost", "ftp://localhost", 400), ("localhost", "http://localhost/a", 400)),
    ],
)
def test_pages_of_other_origins_are_kept_out(host, origin, expected):
    assert status(LOCAL, ("host", host), ("origin", origin)) == expected


def test_other_machines_need_the_token_under_any_name_unless_names_are_given():
    open_to_all = Access.for_address("0.0.0.0")
    assert Access.for_address("127.0.0.2").token is None and len(open_to_all.token) == 32
    assert open_to_all.token != Access.for_address("0.0.0.0").token
    for name in ("evil.example", "192.168.0.7:7860", "localhost"):
        assert status(open_to_all, ("host", name)) == 403
        assert status(open_to_all, ("host", name), query=f"token={open_to_all.token}") == 303
        for wrong in ("", open_to_all.token[:-1], open_to_all.token + "x", "%ff", "\u00e9", "a&token="):
            assert status(open_to_all, ("host", name), ("cookie", f"a={wrong}"), query=f"token={wrong}") == 403
    named = Access.for_address("::", ("models.example.org",))
    assert status(named, ("host", "evil.example"), query=f"token={named.token}") == 403
    assert status(named, ("host", "models.example.org:7860"), query=f"token={named.token}") == 303


def test_the_address_holds_the_token():
    assert page_address(Access(), "127.0.0.1", 7860) == "http://127.0.0.1:7860"
    assert page_address(Access(token="abc"), "::1", 7860) == "http://[::1]:7860/?token=abc"
    assert "0.0.0.0" not in page_address(Access(token="abc"), "0.0.0.0", 7860)


def test_a_browser_brings_the_token_once_and_then_its_cookie():
    data = io.BytesIO()
    picture(1).save(data, "png")
    access = Access.for_address("0.0.0.0")
    with Served(scratch_vlm(), access=access) as served, requests.Session() as browser:
        for path in ("/", "/talk.js", "/nowhere"):
            assert browser.get(served.url + path, timeout=60).status_code == 403
        opened = browser.get(served.url, headers={"Accept": "text/html,*/*"}, timeout=60)
        expected = (
            "The address lacks its token, or has an earlier start's: open the whole address that the terminal shows."
        )
        assert opened.text == expected
        assert browser.post(f"{served.url}/image", data=data.getvalue(), timeout=60).status_code == 403
        page = browser.get(f"{served.url}/?token={access.token}", timeout=60)
        assert page.status_code == 200 and page.url == f"{served.url}/"
        assert browser.post(f"{served.url}/image", data=data.getvalue(), timeout=60).status_code == 200
        assert "HttpOnly" in page.history[0].headers["Set-Cookie"]
        # Of another page that the browser was led to by the name of another host there is no cookie.
        foreign = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=60)
        foreign.request("GET", "/", headers={"Host": "evil.example"})
        assert foreign.getresponse().status == 403

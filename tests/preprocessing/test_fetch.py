"""What the hub says of a dataset, and its files by their URLs; the hub is a stand-in on loopback."""

import hashlib
import os
import subprocess
import sys

import pytest
from archive_files import tree
from hub_server import Fault, HubServer

from cobra.preprocessing import fetch as fetching
from cobra.preprocessing import transfer
from cobra.preprocessing.fetch import fetch, list_dataset
from cobra.preprocessing.transfer import Unreachable
from cobra.util.errors import UserError

URL = "https://huggingface.co/datasets/owner/name/resolve/main/deep/rows.json"
BODY = os.urandom(1_000_000)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "rows.json").write_bytes(BODY)
    (source / "README.md").write_bytes(b"a card\n")
    with HubServer(source, "owner/name", plain=("README.md",)) as hub:
        hub.take_over(monkeypatch)
        yield hub


def test_files_are_listed_with_sizes_hashes_and_one_commit(hub):
    snapshot = list_dataset("owner/name")
    assert snapshot.commit == hub.branches["main"]
    rows, card = snapshot.files["deep/rows.json"], snapshot.files["README.md"]
    assert (rows.size, rows.digest) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    # What `git hash-object` prints.
    assert card.digest == hashlib.sha1(b"blob 7\0a card\n").hexdigest()
    assert f"/resolve/{snapshot.commit}/deep/rows.json" in rows.url
    assert list_dataset("owner/name", snapshot.commit) == snapshot


def test_files_in_lfs_and_in_git_are_fetched(hub, tmp_path):
    assert fetch(URL, tmp_path / "to").read_bytes() == BODY
    fetch(URL.replace("deep/rows.json", "README.md"), tmp_path / "to")
    assert tree(tmp_path / "to") == {"rows.json": BODY, "README.md": b"a card\n"}
    hub.forget()
    fetch(URL, tmp_path / "to")
    assert hub.requests == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=403),
        Fault("status", status=503),
        Fault("drop", after=300_000),
        Fault("truncate", after=300_000),
        Fault("wrong", after=300_000),
        Fault("status", "hub", status=503),
        Fault("drop", "api"),
        Fault("status", "api", status=503),
        Fault("status", "api", status=429),
    ],
    ids=lambda fault: f"{fault.at}-{fault.kind}-{fault.status}",
)
def test_passing_faults_are_mended(hub, tmp_path, fault):
    hub.faults = [fault]
    assert fetch(URL, tmp_path / "to").read_bytes() == BODY
    assert hub.faults == []


def test_every_attempt_takes_a_new_link(hub, tmp_path):
    hub.link_seconds = 1.5
    hub.faults = [Fault("drop", after=300_000), Fault("slow", "cdn", after=1.8)]
    assert fetch(URL, tmp_path / "to").read_bytes() == BODY
    assert [request.at for request in hub.requests] == ["api"] + ["hub", "cdn"] * 3
    # The link had expired when the second answer came, so nothing of it was lost or repeated.
    assert hub.bytes_sent() < len(BODY) + 2 * 2**16


def test_links_that_never_hold_are_told_after_some_attempts(hub, tmp_path):
    hub.link_seconds = -1
    with pytest.raises(UserError, match="answers 403.*in 4 attempts"):
        fetch(URL, tmp_path / "to")


def test_token_reaches_the_hub_and_not_the_cdn(hub, tmp_path):
    hub.token = "hf_secret"
    assert fetch(URL, tmp_path / "to", "hf_secret").read_bytes() == BODY
    assert {(request.at, request.authorization) for request in hub.requests} == {
        ("api", "Bearer hf_secret"),
        ("hub", "Bearer hf_secret"),
        ("cdn", None),
    }


def test_netrc_does_not_replace_the_token(hub, tmp_path, monkeypatch):
    hub.token = "hf_secret"
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert fetch(URL, tmp_path / "to", "hf_secret").read_bytes() == BODY


def test_token_of_the_environment_counts_where_none_is_given(hub, tmp_path, monkeypatch):
    hub.token = "hf_other"
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert fetch(URL, tmp_path / "to").read_bytes() == BODY
    with pytest.raises(UserError, match="valid token"):
        list_dataset("owner/name", token="hf_wrong")


def test_refusals_are_told_at_once_with_the_remedy(hub, tmp_path):
    hub.token = "hf_secret"
    with pytest.raises(UserError, match="owner/name.*401.*browser.*--hf_token"):
        fetch(URL, tmp_path / "to")
    hub.token = None
    with pytest.raises(UserError, match="no revision 'v9'.*--revision"):
        list_dataset("owner/name", "v9")
    with pytest.raises(UserError, match="has no file absent.json at main"):
        fetch(URL.replace("deep/rows", "absent"), tmp_path / "to")
    hub.faults = [Fault("status", "hub", status=403)]
    with pytest.raises(UserError, match="answers 403.*accept its terms.*--hf_token"):
        fetch(URL, tmp_path / "to")
    assert len(hub.requests) == 5


def test_hub_that_fails_time_and_again_is_told(hub):
    hub.faults = [Fault("status", "api", status=503)] * 4
    with pytest.raises(UserError, match="fails time and again.*503"):
        list_dataset("owner/name")
    assert len(hub.requests) == 4


def test_no_network_is_told_soon(hub, monkeypatch):
    monkeypatch.setattr(fetching, "_REACH_SECONDS", 0.0)
    hub.stop()
    with pytest.raises(Unreachable, match="cannot be reached"):
        list_dataset("owner/name")


def test_endpoint_of_the_environment_and_its_offline_mode(hub, tmp_path):
    """In processes of their own: huggingface_hub reads both when it is imported."""
    code = f"""if True:
        import sys
        from pathlib import Path
        from cobra.preprocessing.fetch import fetch
        from cobra.util.errors import UserError
        try:
            fetch({URL!r}, Path(sys.argv[1]))
        except UserError as error:
            sys.exit("UserError " + str(error))
    """
    command = [sys.executable, "-c", code, str(tmp_path / "to")]
    offline = {**os.environ, **hub.environment, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=100)
    assert "UserError HF_HUB_OFFLINE is set" in done.stderr and hub.requests == []
    done = subprocess.run(command, env={**os.environ, **hub.environment}, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "to") == {"rows.json": BODY}
    # No terminal: a line, no bar.
    assert done.stderr.splitlines() == ["fetching rows.json: 1.0 MB of 1.0 MB in 0 s"]

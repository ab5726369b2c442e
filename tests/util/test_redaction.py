import subprocess
import sys

import pytest

from cobra.util.redaction import reason, redacted, redacted_address, remember_secret

pytestmark = pytest.mark.fault("F8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Illegal header value b'Bearer hf_SECRET123\\n'", "Illegal header value b'Bearer ***'"),
        ("{'authorization': 'Basic c2VjcmV0'}", "{'authorization': 'Basic ***'}"),
        ("token hf_" + "aB1" * 11 + "x is bad", "token *** is bad"),
        ("proxy https://user:pw@host:3128/x", "proxy https://***@host:3128/x"),
        ("https://user:p@ss@host/a", "https://***@host/a"),
        ("https://user:p/ss@host/a", "https://***@host/a"),
        ("http://hf_secret@host", "http://***@host"),
        ("'user:pw@host:80'", "'***@host:80'"),
        ("https://cdn/x?Expires=1&Signature=abc~d&b=2", "https://cdn/x?Expires=1&Signature=***&b=2"),
        (
            "https://s3/x?X-Amz-Signature=0f&X-Amz-Credential=AK",
            "https://s3/x?X-Amz-Signature=***&X-Amz-Credential=***",
        ),
    ],
)
def test_secrets_are_hidden(text, expected):
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/datasets/a/b/resolve/main/c@2x.png",
        "http://127.0.0.1:8971/a@b: 404",
        "set --hf_token or use hf_transfer and hf_hub_download",
        "line 3: user@host.org wrote: x",
        "train.jsonl:12: bad row",
    ],
)
def test_other_text_stays(text):
    assert redacted(text) == text


@pytest.mark.fault("B3")
def test_an_address_is_shown_without_its_secrets():
    assert redacted_address("https://me:pass@host:8/a/b.png?token=x#y") == "https://***@host:8/a/b.png?..."
    assert redacted_address("http://a@b@host/c@d") == "http://***@host/c@d"
    assert redacted_address("photos/a?b@c.png") == "photos/a?b@c.png"


def test_a_remembered_secret_is_hidden_wherever_it_stands():
    remember_secret("correct-horse")
    assert reason(ValueError("a\ncorrect-horse=b")) == "a ***=b"


def test_an_error_that_says_nothing_has_its_type_for_a_reason():
    assert reason(TimeoutError()) == "TimeoutError"


def test_a_traceback_of_a_script_hides_secrets():
    program = (
        "from dataclasses import dataclass\n"
        "from cobra.util import cli\n"
        "@dataclass\nclass C:\n    a: int = 1\n"
        "def main(config):\n    raise RuntimeError('Bearer ' + 'hf_SEC' + 'RET123 of http://u:pass' + 'word@h')\n"
        "cli.run(main, C, [])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "RuntimeError: Bearer *** of http://***@h" in done.stderr
    assert "hf_SECRET" not in done.stderr

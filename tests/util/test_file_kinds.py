"""Kinds of files by their first bytes."""

import pytest

from cobra.util.file_kinds import kind_of_content


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [
        (b"\xef\xbb\xbf\n<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"PK\x03\x04", "a packed archive"),
        (b"model.py".ljust(257, b"\0") + b"ustar", "a packed archive"),
    ],
)
def test_known_kinds(beginning, kind):
    assert kind_of_content(beginning).startswith(kind)


def test_other_content_has_no_kind():
    assert kind_of_content(b"") == kind_of_content(b"\x80\x02}q\x00.") == ""

"""Kinds of files that are often found in another's place: told by their first bytes, with what to do about them."""

_BLANKS = b"\xef\xbb\xbf \t\r\n"
_KINDS = (
    ((b"<!doctype html", b"<html", b"<head", b"<body"), "a web page (HTML): its download has failed"),
    ((b"version https://git-lfs",), "a pointer of Git LFS: fetch the file itself with `git lfs pull`"),
    ((b"pk\x03\x04", b"\x1f\x8b"), "a packed archive: unpack it"),
)


def kind_of_content(beginning: bytes) -> str:
    """Return what a file is and what to do, `a packed archive: unpack it`; empty where its kind is not known.

    Args:
        beginning: The first 512 bytes or more; letters' case does not matter.
    """
    if beginning[257:262] == b"ustar":
        return "a packed archive: unpack it"
    start = beginning.lower().lstrip(_BLANKS)
    return next((kind for beginnings, kind in _KINDS if start.startswith(beginnings)), "")

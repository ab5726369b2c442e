"""Refusals of unknown names, with the known ones and the nearest; and the system's error behind another."""

import pytest

from cobra.util.errors import UserError, check_known, known_ones, lookup, os_error_behind

REGISTRY = {"clip-vit-b": 1, "clip-vit-l": 2, "dinov2": 3}


def test_lookup_returns_the_entry():
    assert lookup(REGISTRY, "dinov2", "the tower") == 3


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(UserError) as error:
        lookup(REGISTRY, "dinov3", "the tower")
    assert str(error.value) == (
        "the tower 'dinov3' is unknown; the known ones are: clip-vit-b, clip-vit-l, dinov2. Did you mean dinov2?"
    )


def test_nothing_is_proposed_where_no_name_is_near():
    assert known_ones(REGISTRY, "something else") == "the known ones are: clip-vit-b, clip-vit-l, dinov2"


def test_several_names_are_checked_at_once():
    check_known((), REGISTRY, "the tower")
    check_known(["dinov2", "clip-vit-b"], REGISTRY, "the tower")
    with pytest.raises(UserError, match="the tower 'x', 'y' is unknown; the known ones are"):
        check_known(["dinov2", "x", "y"], REGISTRY, "the tower")


def test_the_error_of_the_system_behind_another():
    full = OSError(28, "No space left on device")
    try:
        try:
            raise full
        except OSError as error:
            raise RuntimeError("unexpected pos 64") from error
    except RuntimeError as error:
        assert os_error_behind(error) is full
    assert os_error_behind(full) is full
    assert os_error_behind(ValueError("no file")) is None

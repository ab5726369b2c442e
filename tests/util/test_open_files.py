"""The limit of open files is raised as far as it may be, and never lowered."""

import resource

import pytest

from cobra.util.open_files import allow_open_files


@pytest.fixture
def limits():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_is_raised_as_far_as_it_may_be_and_never_lowered(limits):
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    assert allow_open_files(200) == 256
    assert allow_open_files(300) == 300 == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if hard != resource.RLIM_INFINITY:
        assert allow_open_files(hard + 1) == hard


def test_a_limit_that_the_system_does_not_raise_stays(limits, monkeypatch):
    def refuse(kind, values):
        raise ValueError("current limit exceeds maximum limit")

    with monkeypatch.context() as patch:
        patch.setattr(resource, "setrlimit", refuse)
        assert allow_open_files(limits[0] + 1) == limits[0]

"""The number of files, connections included, that this process may have open."""

import resource
import sys
from contextlib import suppress


def allow_open_files(wanted: int) -> int:
    """Raise the limit of open files to `wanted`, as far as this process may, and return it; it is never lowered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        # A system may have a limit of its own below the hard one, as macOS has.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft

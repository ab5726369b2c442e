"""Names that are imported on first use are seen before it."""

import importlib
import subprocess
import sys

import pytest


@pytest.mark.fault("E9")
@pytest.mark.parametrize(
    "name", ["", ".models", ".models.vlms", ".preprocessing", ".preprocessing.datasets", ".training"]
)
def test_public_names_are_listed_before_they_are_used(name):
    package = f"cobra{name}"
    code = f"import sys; sys.modules['torch'] = None\nimport {package} as p; sys.exit(set(p.__all__) > set(dir(p)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_an_unknown_name_is_an_attribute_error():
    import cobra

    with pytest.raises(AttributeError, match="module 'cobra' has no attribute 'laod'"):
        cobra.laod  # noqa: B018

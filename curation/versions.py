"""Versions of what the numbers of a run depend on."""

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Package → version; a source tree that is not installed says so."""
    found = {"python": platform.python_version()}
    for name in ("fedwinnow", "torch", "transformers", "peft", "flwr", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found

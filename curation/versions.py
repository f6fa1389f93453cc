"""Collect the versions of the packages that a run's numbers depend on."""

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Return package → version, "not installed" for a source tree that is not."""
    found = {"python": platform.python_version()}
    for name in ("fedwinnow", "torch", "transformers", "peft", "flwr", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found

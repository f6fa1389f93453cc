"""Run Flower's programs as child processes: connection, environment, thin app bundle."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedwinnow.curation.errors import ConfigError, TransportError
from fedwinnow.curation.process_guard import child_environment

PATIENCE = 120.0
"""Longest wait for a SuperLink that does not answer, seconds."""


UNKNOWN = "not found in the Flower configuration file"


@dataclass(frozen=True, slots=True)
class Connection:
    """Connection to a SuperLink, as Flower's ``config.toml`` names it; "" is the default one."""

    name: str = ""

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Run a command of Flower's command line on this connection, and return its JSON answer.

        Raises:
            ConfigError: Flower knows no connection of this name, or would simulate by itself.
            TransportError: the command failed, or the SuperLink does not answer.
        """
        self._refuse_flowers_own()
        command = self.command(*arguments)
        try:
            done = subprocess.run(  # noqa: S603 - our own command, no shell
                command,
                env=_environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
            answer: dict[str, Any] = json.loads(done.stdout)
        except (ValueError, subprocess.TimeoutExpired) as error:
            message = (
                f"flwr {arguments[0]} gave no answer ({type(error).__name__}); start the "
                f"SuperLink, or name its connection in coordinator.connection (now {self.name!r})"
            )
            raise TransportError(message) from error
        if done.returncode != 0 or not answer.get("success"):
            said = " ".join(str(answer.get("error-message") or done.stderr).split())[-500:]
            if UNKNOWN in said:
                message = f"coordinator.connection {self.name!r}: {said}; `scripts/connect` adds it"
                raise ConfigError(message)
            message = f"flwr {arguments[0]} failed with code {done.returncode}: {said}"
            raise TransportError(message)
        return answer

    def command(self, *arguments: str) -> list[str]:
        """Return a command line of Flower's on this connection, with a JSON answer."""
        return [program("flwr"), *arguments, *filter(None, [self.name]), "--format", "json"]

    def _refuse_flowers_own(self) -> None:
        """Refuse a missing connection: Flower would start a SuperLink here and install packages.

        Raises:
            ConfigError: the connection's address is ":local:" or the like.
        """
        file = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr") / "config.toml"
        try:
            known = tomllib.loads(file.read_text(encoding="utf-8")).get("superlink", {})
        except FileNotFoundError:  # Flower would write one, with these
            known = {"default": "local", "local": {"address": ":local:"}}
        except (OSError, ValueError):
            return  # Flower says what is wrong with it
        found = known.get(self.name or known.get("default"), {})
        if isinstance(found, dict) and str(found.get("address", "")).startswith(":"):
            message = (
                f"coordinator.connection {self.name!r}: {file} leads to no SuperLink of yours; run "
                "`scripts/connect` as this user, or set FLWR_HOME to FLOWER of coordinator.env"
            )
            raise ConfigError(message)

    def status(self, run: str) -> tuple[str, str]:
        """Return status and details of a Flower run.

        Raises:
            TransportError: the SuperLink does not answer.
        """
        runs = self.flwr("list", "--run-id", run)["runs"]
        return str(runs[0]["status"]), str(runs[0].get("status-details", ""))


def _environment() -> dict[str, str]:
    """Return our environment, without telemetry and update checks: only the SuperLink is called."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return child_environment() | quiet


_APP = """\
[project]
name = "fedwinnow-simulation"
version = "0.1.0"
dependencies = []

[tool.flwr.app]
publisher = "fedwinnow"

[tool.flwr.app.components]
serverapp = "fedwinnow.server.app:app"
clientapp = "fedwinnow.client.app:app"

[tool.flwr.app.config]
scenario = ""
resume = false
supervisor = ""
"""


def thin_app(home: Path) -> Path:
    """Write a Flower app without code, whose components are those of the package that runs here."""
    folder = home / "fedwinnow-simulation"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(_APP, encoding="utf-8")
    return folder


def metrics_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run folder's ``metrics.jsonl``: one for each committed phase."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def program(name: str) -> str:
    """Return the path of a console script: beside this Python, or else on the shell's path.

    Raises:
        TransportError: the script is not installed.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        message = f"{name} is not installed beside {sys.executable}; install flwr[simulation]"
        raise TransportError(message)
    return found

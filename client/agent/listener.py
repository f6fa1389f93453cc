"""Prepare the agent's Unix socket: private folder, access token, group permissions."""

import errno
import grp
import os
import secrets
import socket
import stat
from pathlib import Path

from fedwinnow.curation.atomic_files import write_private
from fedwinnow.curation.config.site import AgentSection
from fedwinnow.curation.errors import ConfigError, OutputError

_FEWEST = 32
"""Fewest characters of a token."""


def prepare_folder(section: AgentSection) -> str:
    """Create folder and token, and remove a stale socket; return the token.

    Raises:
        ConfigError: the group is unknown, the folder is shared with others, the token is too weak.
        OutputError: another agent listens there, or folder or token cannot be written.
    """
    group, path, token = _group(section.group), Path(section.socket), Path(section.token)
    try:
        _folder(path.parent, {path.name, token.name}, group)
        text = _token(token, group)
        if path.exists():
            _stale(path)
    except OSError as error:
        message = (
            f"{error.filename or path.parent}: cannot be the agent's own ({error.strerror}); make "
            "it as the agent's user, or name another in agent.socket and agent.token"
        )
        raise OutputError(message) from error
    return text


def share_with_group(section: AgentSection) -> None:
    """Give the agent's group access to a socket that was just created.

    Raises:
        OutputError: this user may not give the socket to the group.
    """
    path, group = Path(section.socket), _group(section.group)
    try:
        if group is not None:
            os.chown(path, -1, group)
        path.chmod(0o660)
    except OSError as error:
        message = (
            f"agent.socket {path}: cannot be given to agent.group {section.group!r} "
            f"({error.strerror}); put the agent's user into that group"
        )
        raise OutputError(message) from error


def _group(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid if name else None
    except KeyError as error:
        message = (
            f"agent.group {name!r} does not exist; make it (groupadd {name}), or leave it empty"
        )
        raise ConfigError(message) from error


def _folder(folder: Path, own: set[str], group: int | None) -> None:
    """Create a folder for the agent and its group alone; refuse one that others use."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = stat.S_IMODE(folder.stat().st_mode) & 0o027
    if shared and {entry.name for entry in folder.iterdir()} - own:
        message = (
            f"agent.socket: {folder} is open to other users and holds other files; name a socket "
            "in a folder of its own, such as /run/fedwinnow/agent.sock"
        )
        raise ConfigError(message)
    if group is not None:
        os.chown(folder, -1, group)
    folder.chmod(0o750)


def _token(file: Path, group: int | None) -> str:
    """Return the token; create it where there is none, readable by the group."""
    if not file.exists():
        write_private(file, secrets.token_urlsafe(32).encode() + b"\n")
    text = file.read_bytes().decode("ascii", errors="replace").strip()
    if len(text) < _FEWEST or not text.isascii() or not text.isprintable():
        message = (
            f"agent.token {file}: expected at least {_FEWEST} printable characters, got "
            f"{len(text)}; remove the file, and the agent makes a new one"
        )
        raise ConfigError(message)
    if group is not None:
        os.chown(file, -1, group)
    file.chmod(0o640)
    return text


def _stale(path: Path) -> None:
    """Remove a socket that nobody listens on, as only a refused connection shows."""
    if not stat.S_ISSOCK(path.stat().st_mode):
        message = f"agent.socket {path}: a file that is no socket stands there; move it away"
        raise OutputError(message)
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(2.0)
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            if error.errno not in {errno.EAGAIN, None}:  # a full queue, a busy process
                raise
    message = f"agent.socket {path}: another agent answers there; stop it, or choose another path"
    raise OutputError(message)

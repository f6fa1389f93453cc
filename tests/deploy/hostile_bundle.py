"""What a hostile bundle would try at a silo: code that a federation ships, as the node's user.

It holds what the shim holds: socket, token, the request that it carries and the reply that comes
back. Each attempt returns what it got; one that fails raises.
"""

import base64
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedwinnow.client.agent.relay import agent_status, relay_envelope
from fedwinnow.curation.errors import CurationError
from fedwinnow.curation.protocol.envelope import Envelope, decrypt, encrypt, sign
from fedwinnow.curation.protocol.keys import PrivateKey, PublicKey

LONGEST = 60.0
"""Longest wait for a reply, seconds."""
OWN = PrivateKey.new()
"""The bundle's own key."""
FILES = ("data", "model", "key", "site", "ledger", "head", "sequence", "terms", "reply")
FOLDERS = ("work", "runs", "model folder")


@dataclass(kw_only=True)
class Stolen:
    """What a bundle holds."""

    paths: Mapping[str, str]
    """Where things lie: a bundle may know it."""
    own: Path
    """A folder of its own."""
    coordinator: PublicKey
    request: Envelope
    """The coordinator's, as it came from Flower."""
    reply: Envelope
    """The agent's, as it goes back."""
    process: int = 0
    """The agent's, as its status tells."""

    @property
    def stamp(self) -> dict[str, Any]:
        """The request's words."""
        return json.loads(self.request.stamp)

    def ask(self, envelope: Envelope, token: str | None = None) -> str:
        """Send an envelope; what comes back."""
        back = relay_envelope(
            envelope, self.paths["socket"], token or self.paths["token"], timeout=LONGEST
        )
        return f"a reply of {len(back.payload)} bytes"

    def signed(self, payload: bytes, **words) -> Envelope:
        """A request under its own key."""
        plain = {name: self.stamp[name] for name in ("site", "run", "phase")}
        return sign(OWN, payload, **(plain | {"sequence": 2**62} | words))

    def note(self, name: str, text: bytes) -> Path:
        """A file of its own."""
        (self.own / name).write_bytes(text)
        return self.own / name


def linked(s: Stolen) -> int:
    """Read the data through a link."""
    link = s.own / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(s.paths["data"])
    return len(link.read_bytes())


def listed(folder: str) -> list[str]:
    """Names in a folder."""
    return [path.name for path in Path(folder).iterdir()]


READS: dict[str, Callable[[Stolen], Any]] = {
    **{f"read the {name}": lambda s, n=name: len(Path(s.paths[n]).read_bytes()) for name in FILES},
    **{f"list the {name}": lambda s, n=name: listed(s.paths[n]) for name in FOLDERS},
    "read the data through a link": linked,
}
PROCESS: dict[str, Callable[[Stolen], Any]] = {
    "read the agent's memory": lambda s: Path(f"/proc/{s.process}/mem").open("rb").close(),
    "read the agent's environment": lambda s: len(Path(f"/proc/{s.process}/environ").read_bytes()),
    "list the agent's open files": lambda s: len(listed(f"/proc/{s.process}/fd")),
}


def planted(s: Stolen) -> str:
    """Put a socket of its own where the agent's is."""
    mine = s.own / "mine.sock"
    mine.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(mine))
    return str(mine.replace(s.paths["socket"]))


def added(s: Stolen, name: str) -> None:
    """Add a line to a file."""
    with Path(s.paths[name]).open("ab") as file:
        file.write(b"{}\n")


def written(path: Path) -> None:
    """Make a file where there is none."""
    path.write_bytes(b"mine")


WRITES: dict[str, Callable[[Stolen], Any]] = {
    **{f"add to the {name}": lambda s, n=name: added(s, n)
       for name in ("data", "ledger", "sequence", "site", "key")},
    "plant a file in the work": lambda s: written(Path(s.paths["work"], "planted")),
    "plant a file beside the socket": lambda s: written(Path(s.paths["folder"], "planted")),
    "rewrite the token": lambda s: added(s, "token"),
    "replace the token": lambda s: s.note("token", b"x" * 43).replace(s.paths["token"]),
    "open the folder to all": lambda s: Path(s.paths["folder"]).chmod(0o777),
    "rename the socket": lambda s: Path(s.paths["socket"]).replace(s.paths["socket"] + ".old"),
    "plant its own socket": planted,
    "remove the socket": lambda s: Path(s.paths["socket"]).unlink(),
    "remove the token": lambda s: Path(s.paths["token"]).unlink(),
    "end the agent": lambda s: os.kill(s.process, signal.SIGTERM),
}  # fmt: skip


def claimed(s: Stolen) -> Envelope:
    """Its own signature under a stamp that names the coordinator."""
    words = s.stamp | {"sequence": 2**62}
    text = json.dumps(words, sort_keys=True).encode()
    signature = Ed25519PrivateKey.from_private_bytes(OWN.signing).sign(text)
    return Envelope(stamp=text, signature=signature, payload=s.request.payload)


def restamped(s: Stolen, **words) -> Envelope:
    """The captured request under other words."""
    text = json.dumps(s.stamp | words, sort_keys=True).encode()
    return replace(s.request, stamp=text)


ASKS: dict[str, Callable[[Stolen], Any]] = {
    "without a token": lambda s: s.ask(s.request, str(s.note("none", b""))),
    "with a token of its own": lambda s: s.ask(s.request, str(s.note("token", b"x" * 43))),
    "unsigned": lambda s: s.ask(replace(restamped(s, sequence=2**62), signature=b"")),
    "signed by its own key": lambda s: s.ask(s.signed(s.request.payload)),
    "signed by its own key as the coordinator": lambda s: s.ask(claimed(s)),
    "the captured request again": lambda s: s.ask(s.request),
    "the captured request under a later number": lambda s: s.ask(restamped(s, sequence=2**62)),
    "the captured request as another phase": lambda s: s.ask(restamped(s, phase="score")),
    "the captured stamp over other bytes": lambda s: s.ask(
        replace(s.request, payload=bytes(len(s.request.payload)))
    ),
    "the captured reply as a request": lambda s: s.ask(s.reply),
}
"""Requests that a bundle can send."""


def seen(s: Stolen) -> str:
    """Look for words of a reply in the payload."""
    for word in (b"Joined", b"versions", b"card", b"north"):
        if word in s.reply.payload:
            return word.decode()
    message = "nothing to read"
    raise LookupError(message)


OPENS: dict[str, Callable[[Stolen], Any]] = {
    "open the reply with its own key": lambda s: len(decrypt(s.reply.payload, OWN)),
    "open the reply with the public key as a private one": lambda s: len(
        decrypt(s.reply.payload, PrivateKey(OWN.signing, s.coordinator.encrypting))
    ),
    "find words in the reply": seen,
}


def forged(s: Stolen) -> dict[str, Envelope]:
    """Replies that the coordinator did not get from the agent."""
    payload = bytearray(s.reply.payload)
    payload[-1] ^= 1
    words = {name: s.stamp[name] for name in ("site", "run", "phase", "sequence")}
    mine = sign(OWN, encrypt(b"anything", s.coordinator), **words)
    stamp = json.loads(s.reply.stamp) | {"sender": json.loads(mine.stamp)["sender"]}
    return {
        "a bit changed": replace(s.reply, payload=bytes(payload)),
        "cut": replace(s.reply, payload=s.reply.payload[:-1]),
        "its own, encrypted": mine,
        "its own under the site's stamp": replace(mine, stamp=s.reply.stamp),
        "the site's words in its own name": replace(mine, stamp=json.dumps(stamp).encode()),
        "the site's stamp over its own bytes": replace(s.reply, payload=mine.payload),
        "the request itself": s.request,
    }


def outcome(attempt: Callable[[Stolen], Any], stolen: Stolen) -> list[str]:
    """Whether an attempt got something, and what."""
    try:
        return ["got", str(attempt(stolen))]
    except (OSError, CurationError, LookupError) as error:
        return [type(error).__name__, str(error)]


def text(envelope: Envelope) -> list[str]:
    """An envelope as JSON takes it."""
    parts = (envelope.stamp, envelope.signature, envelope.payload)
    return [base64.b64encode(part).decode() for part in parts]


def envelope_of(parts: list[str]) -> Envelope:
    """What :func:`text` wrote."""
    stamp, signature, payload = map(base64.b64decode, parts)
    return Envelope(stamp=stamp, signature=signature, payload=payload)


def run(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Carry the request as the shim does, keep a copy of everything, and try all."""
    paths, request = plan["paths"], envelope_of(plan["request"])
    if plan["reply"]:
        reply = envelope_of(plan["reply"])
    else:
        reply = relay_envelope(request, paths["socket"], paths["token"], timeout=LONGEST)
    status = agent_status(paths["socket"], paths["token"], timeout=LONGEST)
    stolen = Stolen(
        paths=paths,
        own=Path(plan["own"]),
        coordinator=PublicKey.parse(plan["coordinator"]),
        request=request,
        reply=reply,
        process=status["process"],
    )
    tried = {**READS, **PROCESS, **ASKS, **OPENS, **WRITES}  # what ends the agent comes last
    return {
        "users": [*os.getresuid(), *os.getresgid()],
        "status": status,
        "reply": text(reply),
        "tried": {name: outcome(attempt, stolen) for name, attempt in tried.items()},
        "forged": {name: text(envelope) for name, envelope in forged(stolen).items()},
    }

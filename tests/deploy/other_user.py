"""Runs an agent, or a hostile bundle, as another user; what it imports it imports before.

So it works where that user may not read the environment of the tests. Usage:
``python other_user.py agent|bundle UID GID GROUP FILE RUN``.
"""

import importlib
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

LATE = ("grpc._channel", "grpc._server", "grpc._utilities", "grpc.aio", "encodings.ascii")
"""What is imported at its first use only."""


def become(uid: int, gid: int, group: int) -> None:
    """Be another user for good, in one more group, with nothing of root left."""
    for name in LATE:
        importlib.import_module(name)
    os.setgroups([group])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    try:
        os.setuid(0)
    except PermissionError:
        return
    sys.exit("this process could become root again")


def agent(file: str, run: str, *who: int) -> None:
    """Serve a site, after answering a join in a folder that is thrown away: that loads all."""
    from answer_envelope import answer_envelope

    from fedwinnow.cli.site import serve
    from fedwinnow.client.agent.grpc_service import Agent  # noqa: F401 - to be loaded before
    from fedwinnow.client.agent.preflight import check_settings  # noqa: F401 - likewise
    from fedwinnow.client.boundary.guarded_site import GuardedSite
    from fedwinnow.curation.config.load_files import load_run, load_site
    from fedwinnow.curation.config.strict_toml import canonical_json
    from fedwinnow.curation.protocol import messages, wire
    from fedwinnow.curation.protocol.envelope import sign
    from fedwinnow.curation.protocol.keys import PrivateKey

    config, terms, key = load_site(Path(file)), load_run(Path(run)).terms(), PrivateKey.new()
    with tempfile.TemporaryDirectory() as scratch:
        boundary = GuardedSite.open(
            replace(
                config,
                work=scratch,
                policy=replace(config.policy, coordinator=key.public.text),
                agent=replace(config.agent, key=f"{scratch}/key"),
            )
        )
        header = messages.Header(run="r", phase="join")
        request = messages.JoinRequest(header=header, terms=canonical_json(terms))
        words = {"site": config.site.name, "run": "r", "phase": "join", "sequence": 1}
        answer_envelope(sign(key, wire.encode(request), **words), boundary)
        boundary.ledger.close()
    become(*who)
    serve(Path(file))


def bundle(file: str, _: str, *who: int) -> None:
    """Try everything, and print what came of it."""
    import hostile_bundle

    plan = json.loads(Path(file).read_text(encoding="utf-8"))
    become(*who)
    print(json.dumps(hostile_bundle.run(plan)))  # noqa: T201 - read by the test


if __name__ == "__main__":
    role, uid, gid, group, file, run = sys.argv[1:]
    {"agent": agent, "bundle": bundle}[role](file, run, int(uid), int(gid), int(group))

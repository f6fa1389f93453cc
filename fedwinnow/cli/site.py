"""Run a silo's agent, look at what it did, and make keys: ``fedwinnow site`` and ``keys``.

Commands of ``site``: check, disclosure, serve, status, queue and egress.
"""

import dataclasses
import json
import logging
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedwinnow.cli.options import AsJson, Set
from fedwinnow.cli.stopping import listened
from fedwinnow.curation.errors import DataError, OutputError

app = typer.Typer(
    no_args_is_help=True, help="Run a silo's own agent: check it, serve, look at what left."
)

QUIET = 25.0
"""Time between two lines of the agent's log about what it computes, seconds."""
logger = logging.getLogger("fedwinnow.cli.site")

File = Annotated[Path, typer.Argument(help="The silo's own site.toml.")]


@app.command()
def check(
    file: File,
    settings: Set = None,
    *,
    model: Annotated[bool, typer.Option(help="Load the base model too.")] = True,
    as_json: AsJson = False,
) -> None:
    """Check data, anchors, model, policy and socket, and say in plain words what may leave."""
    from fedwinnow.curation.config.load_files import load_site  # noqa: PLC0415 - with the rest of this command

    config = load_site(file, settings or ())  # a mistake is said before torch loads
    from fedwinnow.client.agent.preflight import check_site  # noqa: PLC0415 - torch loads here

    found = check_site(config, load_model=model)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=1, ensure_ascii=False))
        return
    for key, value in found.facts.items():  # no table: keys and hashes are to be copied whole
        parts = [f"{number} {reason}" for reason, number in value.items()] if key == LEFT else value
        print(f"{key.replace('_', ' '):24} {', '.join(parts) or '0' if key == LEFT else parts}")
    for title, lines in (
        ("What may leave this house", found.may_leave),
        ("What never leaves", found.stays),
        ("Think about", found.warnings),
    ):
        if lines:
            print(f"\n{title}")
        for line in lines:
            print(_indented(line))


@app.command()
def disclosure(
    file: File,
    settings: Set = None,
    *,
    html: Annotated[Path | None, typer.Option(help="Write one page to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print every number that may leave in a run, with its bound, rounding and budget.

    The agent holds each message against the same list before it leaves.
    """
    from fedwinnow.curation.config.load_files import load_site  # noqa: PLC0415 - with the rest of this command

    config = load_site(file, settings or ())  # a mistake is said before torch loads
    from fedwinnow.client.boundary.disclosure import STAYS, disclosed_numbers, why_all_refused  # noqa: PLC0415 - torch loads here
    from fedwinnow.client.boundary.disclosure_page import disclosure_page  # noqa: PLC0415 - torch loads here
    from fedwinnow.curation.atomic_files import write_atomically  # noqa: PLC0415 - torch loads here

    numbers = disclosed_numbers(config)
    if html is not None:
        write_atomically(html, disclosure_page(config).encode())
        print(f"what may leave {config.site.name} is written to {html}", file=sys.stderr)
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in numbers], indent=1))
        return
    if reason := why_all_refused(config.policy):
        print(f"as it stands every run is refused at join: {reason}\n")
    print("Numbers that depend on your samples")
    for one in numbers:
        if one.bound:
            print(_indented(f"{one.phase}: {one.what}: {one.bound}; {one.budget}"))
    print("\nWhat else is in the messages")
    for source in dict.fromkeys(one.source for one in numbers if not one.bound):
        told = dict.fromkeys(one.what for one in numbers if one.source == source and not one.bound)
        print(_indented(f"from {source}: {', '.join(told)}"))
    print("\nWhat never leaves")
    for line in STAYS:
        print(_indented(line))


def _indented(line: str) -> str:
    return textwrap.fill(line, 100, initial_indent="- ", subsequent_indent="  ")


@app.command()
def serve(file: File, settings: Set = None) -> None:
    """Listen on the Unix socket and answer the pinned coordinator, until Ctrl-C or SIGTERM."""
    from fedwinnow.curation.config.load_files import load_site  # noqa: PLC0415 - with the rest of this command

    config = load_site(file, settings or ())  # a mistake is said before torch loads
    from fedwinnow.client.agent.grpc_service import Agent  # noqa: PLC0415 - torch loads here
    from fedwinnow.client.agent.preflight import check_settings  # noqa: PLC0415 - torch loads here
    from fedwinnow.client.boundary.guarded_site import GuardedSite  # noqa: PLC0415 - torch loads here

    logging.getLogger("fedwinnow").setLevel(logging.INFO)
    os.umask(0o077)  # scores and decisions by sample are the agent's alone
    ended = threading.Event()
    check_settings(config)
    agent = Agent(boundary=GuardedSite.open(config), section=config.agent)
    agent.start()
    signal.set_wakeup_fd(-1)  # stopping takes as long as it must: its own end follows below
    for number in listened():
        signal.signal(number, lambda *_: ended.set())
    print(f"site {config.site.name} listens on {config.agent.socket}", flush=True)
    while not ended.wait(QUIET):
        if words := agent.activity.words():
            logger.info("%s", words)
    busy = agent.activity.current is not None
    agent.stop()
    work = "; what it was computing is computed again when it is asked again" if busy else ""
    print(f"site {config.site.name} stopped{work}; finished work is kept in {config.work}")
    if busy:  # a process waits for its threads, and this one may have hours of training left
        sys.stdout.flush()
        os._exit(0)


@app.command()
def status(file: File, *, as_json: AsJson = False) -> None:
    """Show what the agent is doing: run, phase, progress, queue."""
    from fedwinnow.client.agent.relay import agent_status  # noqa: PLC0415 - gRPC loads here
    from fedwinnow.curation.config.load_files import load_site  # noqa: PLC0415 - with the rest of this command

    agent = load_site(file).agent
    tree = agent_status(agent.socket, agent.token)
    if as_json:
        print(json.dumps(tree, indent=1))
        return
    for key, value in tree.items():
        print(f"{key.replace('_', ' '):12} {value}")
    percent = tree.get("percent", 0)
    if 0 < percent < 100:  # noqa: PLR2004 - per cent
        left = tree["seconds"] * (100 - percent) / percent
        print(f"time left    about {left:.0f} s for this work, at the pace so far")


@app.command()
def queue(
    file: File,
    run: Annotated[str, typer.Argument(help="Id of the run: a folder in the site's work folder.")],
    *,
    as_json: AsJson = False,
) -> None:
    """List a run's samples for a person to decide: they pass, but reviewers disagree on them.

    They are not trained on. The list is for the silo's own operator, and leaves with no message.
    """
    from fedwinnow.curation.config.load_files import load_site  # noqa: PLC0415 - with the rest of this command

    config = load_site(file)  # a mistake is said before pyarrow loads
    from fedwinnow.client.runs.review_queue import read_questions  # noqa: PLC0415 - pyarrow loads here

    found = read_questions(config, run)
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=1))
        return
    for one in found:
        print(f"row {one.row or '-':>8}  {one.id}  score {one.score:+.4g}")
    print(f"{len(found)} samples are for a person to decide; the run trains on none of them")


LEFT = "left_out"
"""Key of the check's fact that holds counts by reason."""
WORDS = {
    "Joined": "site card, untrained adapter",
    "PublicSignals": "signals of public anchors",
    "TrainedAdapter": "ADAPTER",
    "ClusterReply": "COUNTS and mean losses",
    "PublicLosses": "losses: public alone",
    "SummaryReply": "HISTOGRAM of scores",
    "KeptReply": "number of samples kept",
    "MetricsReply": "losses: public, sum of own",
    "JudgedAdapters": "losses of public anchors",
    "Receipt": "receipt",
}
"""Kind of a message or charge → what left with it; capitals where it tells of many samples."""


@app.command()
def egress(
    file: File,
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Look for any change.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the ledger of everything that left, or verify that nobody changed it."""
    from fedwinnow.client.budget.ledger_chain import file_of, read_chain  # noqa: PLC0415 - torch loads here
    from fedwinnow.client.budget.ledger_chain import verify_chain as findings_of  # noqa: PLC0415 - torch loads here
    from fedwinnow.curation.config.load_files import load_site  # noqa: PLC0415 - with the rest of this command

    folder = Path(load_site(file).work)
    if not folder.is_dir():
        message = f"work {folder}: no such folder; start the agent first, or mend work in {file}"
        raise DataError(message)
    ledger = file_of(folder)
    findings = findings_of(folder) if verify else []
    if not ledger.exists() and (folder / "sequence").exists():
        findings.append("it is missing, although requests were admitted: somebody took it away")
    if findings:
        message = f"{ledger}: {'; '.join(findings)}; keep {folder} as evidence, and find out who"
        raise OutputError(message)
    entries = [entry for _, entry in read_chain(folder)]
    head = str(entries[-1]["hash"]) if entries else ""
    if verify and as_json:
        print(json.dumps({"entries": len(entries), "unchanged": True, "head": head}, indent=1))
    elif verify:
        print(f"{len(entries)} entries, unchanged; head {head or '-'}")
        print("compare the head with the coordinator's: each reply told it")
    elif as_json:
        print(json.dumps(entries, indent=1, ensure_ascii=False))
    else:
        _show_egress(entries)


def _show_egress(entries: Sequence[Mapping[str, Any]]) -> None:
    """Print one line a charge and a message, then the sums by what left."""
    sums: dict[str, list[int]] = {}
    asked = [(str(entry["kind"]).partition(":"), str(entry["request"])) for entry in entries]
    answered = {request for (_, colon, _), request in asked if not colon}
    charges = [request for (kind, _, _), request in asked if kind == "Charge"]
    for entry in entries:
        kind, _, clause = str(entry["kind"]).partition(":")
        what = f"refusal ({clause})" if clause else WORDS.get(kind, kind)
        if kind == "Charge":
            what = f"charged: {WORDS.get(clause, clause)}"
            if entry["request"] not in answered:
                what += ", never released"
        if passed_on := entry.get("passed_on"):
            what += f" for {passed_on} too"
        place = " ".join(str(entry[key]) for key in ("phase", "round", "arm") if entry[key])
        when = str(entry["time"])[:19].replace("T", " ")
        line = f"{when}  {entry['run']}  {place:18}  {what:28}"
        if kind == "Charge":
            print(line.rstrip())
            continue
        size = int(entry["size"])
        print(f"{line}  {size:>13,} bytes")
        sums.setdefault(what, []).append(size)
    left = sum(map(len, sums.values()))
    print(f"{left} messages left, {sum(map(sum, sums.values())):,} bytes; times are UTC")
    if charges:
        lost = sum(request not in answered for request in charges)
        print(f"{len(charges)} releases were charged to samples, {lost} of them never released")
    for what, sizes in sums.items():
        print(f"  {len(sizes):>5} × {what}, {sum(sizes):,} bytes")
    for recipient in sorted({str(entry["recipient"]) for entry in entries}):
        print(f"encrypted to {recipient}")


def keys(
    file: Annotated[Path, typer.Argument(help="Private key file to make, or to read.")],
) -> None:
    """Make a private key (mode 0600), or read one; print its public line and fingerprint.

    A key that is there is never written over.
    """
    from fedwinnow.curation.protocol.keys import PrivateKey  # noqa: PLC0415 - cryptography loads here

    new = not file.exists()
    if new:
        PrivateKey.new().save(file)
    public = PrivateKey.load(file).public
    print(f"{'made' if new else 'read'} {file}; keep it to yourself", file=sys.stderr)
    print(public.text)
    print(f"fingerprint {public.fingerprint}: compare it by phone", file=sys.stderr)

"""``fedwinnow site check | serve | status | egress`` and ``fedwinnow keys``."""

import json
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedwinnow.curation.errors import DataError, OutputError

app = typer.Typer(
    no_args_is_help=True, help="Run a silo's own agent: check it, serve, look at what left."
)

File = Annotated[Path, typer.Argument(help="The silo's own site.toml.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: section.key=value; may be given often."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def check(
    file: File,
    settings: Set = None,
    *,
    model: Annotated[bool, typer.Option(help="Load the base model too.")] = True,
    as_json: AsJson = False,
) -> None:
    """Check data, anchors, model, policy and socket, and say in plain words what may leave."""
    from fedwinnow.curation.scenario import load_site  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.site_check import check_site  # noqa: PLC0415 - torch loads here

    found = check_site(load_site(file, settings or ()), load_model=model)
    if as_json:
        print(json.dumps(found.facts, indent=1, ensure_ascii=False))
        return
    for key, value in found.facts.items():  # no table: keys and hashes are to be copied whole
        print(f"{key.replace('_', ' '):24} {value}")
    console = Console()
    console.print("\nWhat may leave this house", style="bold")
    for line in found.may_leave:
        console.print(f"- {line}", highlight=False)
    console.print("\nWhat never leaves", style="bold")
    for line in found.stays:
        console.print(f"- {line}", highlight=False)


@app.command()
def serve(file: File, settings: Set = None) -> None:
    """Listen on the Unix socket and answer the pinned coordinator, until Ctrl-C or SIGTERM."""
    from fedwinnow.client.agent import Agent  # noqa: PLC0415 - torch loads here
    from fedwinnow.client.boundary import Boundary  # noqa: PLC0415 - torch loads here
    from fedwinnow.curation.scenario import load_site  # noqa: PLC0415 - torch loads here

    logging.getLogger("fedwinnow").setLevel(logging.INFO)
    config = load_site(file, settings or ())
    agent = Agent(boundary=Boundary.open(config), section=config.agent)
    agent.start()
    print(f"site {config.site.name} listens on {config.agent.socket}", flush=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    agent.stop()
    print(f"site {config.site.name} stopped; what was computed is kept in {config.work}")


@app.command()
def status(file: File, *, as_json: AsJson = False) -> None:
    """Show what the agent is doing: run, phase, progress, queue."""
    from fedwinnow.client.shim import agent_status  # noqa: PLC0415 - gRPC loads here
    from fedwinnow.curation.scenario import load_site  # noqa: PLC0415 - torch loads here

    agent = load_site(file).agent
    tree = agent_status(agent.socket, agent.token)
    if as_json:
        print(json.dumps(tree, indent=1))
        return
    for key, value in tree.items():
        print(f"{key.replace('_', ' '):12} {value}")


@app.command()
def egress(
    file: File,
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Look for any change.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the ledger of everything that left, or verify that nobody changed it."""
    from fedwinnow.client.ledger import file_of, read  # noqa: PLC0415 - torch loads here
    from fedwinnow.client.ledger import verify as findings_of  # noqa: PLC0415 - torch loads here
    from fedwinnow.curation.scenario import load_site  # noqa: PLC0415 - torch loads here

    folder = Path(load_site(file).work)
    if not file_of(folder).exists():
        message = (
            f"{file_of(folder)}: no such file; nothing has left yet, or work names another folder"
        )
        raise DataError(message)
    if verify:
        findings = findings_of(folder)
        if findings:
            message = f"{file_of(folder)}: {'; '.join(findings)}"
            raise OutputError(message)
        entries = [entry for _, entry in read(folder)]
        print(f"{len(entries)} entries, unchanged; head {entries[-1]['hash'] if entries else '-'}")
        return
    entries = [entry for _, entry in read(folder)]
    if as_json:
        print(json.dumps(entries, indent=1, ensure_ascii=False))
        return
    table = Table("time", "run", "phase", "what left", "bytes", "to", title=str(file_of(folder)))
    for entry in entries:
        phase = f"{entry['phase']} {entry['round']} {entry['arm']}".strip()
        cells = (entry["time"], entry["run"], phase, entry["kind"])
        table.add_row(*cells, f"{entry['size']:,}", entry["recipient"][:12])
    Console().print(table)
    total = sum(entry["size"] for entry in entries)
    print(f"{len(entries)} messages, {total:,} bytes")


def keys(
    file: Annotated[Path, typer.Argument(help="Private key file to make, or to read.")],
) -> None:
    """Make a private key (mode 0600), or read one; print its public line and fingerprint."""
    from fedwinnow.curation.envelope import PrivateKey  # noqa: PLC0415 - cryptography loads here

    new = not file.exists()
    if new:
        PrivateKey.new().save(file)
    public = PrivateKey.load(file).public
    print(f"{'made' if new else 'read'} {file}; keep it to yourself", file=sys.stderr)
    print(public.text)
    print(f"fingerprint {public.fingerprint}: compare it by phone", file=sys.stderr)

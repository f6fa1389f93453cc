"""Flower ClientApp: run a simulated site, or in a deployment relay to the site's agent.

A node's own config says which site it is. In a simulation the partition id picks one of the
scenario's sites, which then computes here. In a deployment ``agent-socket`` and ``agent-token``
name the agent that the silo runs: this app carries envelopes to it and back, and can neither sign
an envelope nor open a reply. No error text of Python's or of the silo leaves.
"""

import logging
import typing
from functools import cache
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedwinnow.client.agent.relay import relay_envelope
from fedwinnow.curation.config.flower_overrides import read_overrides, scenario_file
from fedwinnow.curation.config.identity import sites_folder
from fedwinnow.curation.config.load_files import load_scenario, site_configs
from fedwinnow.curation.errors import ConfigError, ProtocolError, TransportError
from fedwinnow.curation.protocol.flower_records import envelope_records, read_envelope
from fedwinnow.curation.protocol.refusal_clauses import FAILED

if typing.TYPE_CHECKING:  # Flower starts a process for each message: a shim loads no torch
    from fedwinnow.client.runs.process_cache import ProcessCache
    from fedwinnow.client.site import Site
    from fedwinnow.curation.protocol.messages import Request

logger = logging.getLogger(__name__)

app = ClientApp()


@app.query("curation")
def curation(message: Message, context: Context) -> Message:
    """Answer one request of the protocol; never raises."""
    answer = _carried if "agent-socket" in context.node_config else _computed
    return Message(answer(message, context), reply_to=message)


@app.query("identity")
def identity(message: Message, context: Context) -> Message:
    """Return which site this node is; the server asks, as node ids mean nothing to it.

    The name only routes messages; the reply's signature proves who answered.
    """
    try:
        name = str(context.node_config.get("site", "")) or site_of(context).name
    except Exception:
        logger.exception("node %d has no site", context.node_id)
        name = ""
    record = ConfigRecord({"site": name})
    return Message(RecordDict({"identity": record}), reply_to=message)


def _carried(message: Message, context: Context) -> RecordDict:
    """Relay an envelope to the agent and return its answer."""
    node = context.node_config
    try:
        reply = relay_envelope(
            read_envelope(message.content),
            str(node["agent-socket"]),
            str(node.get("agent-token", "")),
            timeout=message.metadata.ttl,
        )
    except (TransportError, ProtocolError) as error:
        logger.warning("node %d: %s", context.node_id, error)
        told = str(error) if isinstance(error, ProtocolError) else _told(error)
        return RecordDict({"shim": ConfigRecord({"error": told})})
    except Exception:
        logger.exception("node %d cannot carry a message to its agent", context.node_id)
        return RecordDict({"shim": ConfigRecord({"error": FAILED})})
    return envelope_records(reply)


def _told(error: TransportError) -> str:
    """Return the error text that the server gets, without any path of the silo."""
    return str(error).partition(": ")[2] or "no answer"


def _computed(message: Message, context: Context) -> RecordDict:
    """Answer as a simulated site."""
    from fedwinnow.client.runs.refusals import refusal_of  # noqa: PLC0415 - torch loads here
    from fedwinnow.curation.protocol import messages  # noqa: PLC0415 - likewise
    from fedwinnow.curation.protocol.flower_messages import to_records  # noqa: PLC0415 - likewise

    header, name = messages.Header(run="", phase=""), ""
    try:
        site = site_of(context)
        name = site.name
        request = _request(message.content)
        header = request.header
        return to_records(site.handle(request))
    except Exception as error:  # noqa: BLE001 - logged with the refusal's reference
        # not even in a simulation: the run's config named the file that may be at fault here
        reason = "the node could not carry the message to its site; its own log says why"
        return to_records(refusal_of(error, header, name, simulation=False, otherwise=reason))


def site_of(context: Context) -> "Site":
    """Return this node's simulated site: one object for all messages to this process.

    Raises:
        ConfigError: no partition id says which site this is.
    """
    node, run = context.node_config, context.run_config
    if "partition-id" in node:
        return _simulated(scenario_file(run), read_overrides(run), int(node["partition-id"]))
    message = (
        "node config: expected partition-id (simulation) or agent-socket, agent-token and site "
        f"(deployment), got {sorted(node)}; start the SuperNode with --node-config "
        '\'site="NAME" agent-socket="/run/…/agent.sock" agent-token="/run/…/token"\''
    )
    raise ConfigError(message)


@cache
def _simulated(scenario: Path, overriding: tuple[str, ...], index: int) -> "Site":
    from fedwinnow.client.site import Site  # noqa: PLC0415 - torch loads here

    config = load_scenario(scenario, overriding)
    if not 0 <= index < len(config.sites):
        message = (
            f"{scenario}: expected at least {index + 1} [[sites]], got {len(config.sites)}; "
            f"set --federation-config num-supernodes={len(config.sites)}"
        )
        raise ConfigError(message)
    sites = site_configs(config, str(sites_folder(config)))
    return Site(config=sites[index], cache=_process_cache())


@cache
def _process_cache() -> "ProcessCache":
    from fedwinnow.client.runs.process_cache import ProcessCache  # noqa: PLC0415 - torch loads here

    return ProcessCache()


def _request(content: RecordDict) -> "Request":
    from fedwinnow.curation.protocol import messages  # noqa: PLC0415 - torch loads here
    from fedwinnow.curation.protocol.flower_messages import read_message  # noqa: PLC0415 - likewise

    message = read_message(content)
    if not isinstance(message, typing.get_args(messages.Request)):
        complaint = f"a {type(message).__name__} came where a request was expected"
        raise ProtocolError(complaint)
    return typing.cast("Request", message)

"""The Flower ClientApp: carries messages between Flower and :class:`fedwinnow.client.site.Site`.

Which site a node is, the node itself says: in a simulation its partition id picks one of the
scenario's sites, in a deployment the operator's ``site-config`` names ``site.toml``. From the
server come only messages, and in a simulation the scenario's name. No error text of Python's or of
the silo leaves: what goes wrong here is answered by a refusal that names the kind of error.
"""

import logging
import typing
from functools import cache
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedwinnow.client.site import Site
from fedwinnow.client.workshop import Workshop
from fedwinnow.curation import messages, wire
from fedwinnow.curation.config import SiteConfig, site_configs
from fedwinnow.curation.errors import ConfigError, ProtocolError
from fedwinnow.curation.run_config import overrides, scenario_file
from fedwinnow.curation.scenario import load_scenario, sites_folder
from fedwinnow.curation.settings import load

logger = logging.getLogger(__name__)

app = ClientApp()


@app.query("curation")
def curation(message: Message, context: Context) -> Message:
    """Answer one request of the protocol; never raises."""
    header, name = messages.Header(run="", phase=""), ""
    try:
        site = site_of(context)
        name = site.name
        request = _request(message.content)
        header = request.header
        content = _content(site.handle(request))
    except Exception as error:
        logger.exception("node %d cannot answer as site %r", context.node_id, name)
        reason = "the node could not carry the message to its site; its own log says why"
        clause = type(error).__name__
        content = _content(messages.Refusal(header=header, site=name, clause=clause, reason=reason))
    return Message(content, reply_to=message)


@app.query("identity")
def identity(message: Message, context: Context) -> Message:
    """Say which site this node is: a resumed server asks, as node ids mean nothing to it."""
    try:
        record = ConfigRecord({"site": site_of(context).name})
    except Exception:
        logger.exception("node %d has no site", context.node_id)
        record = ConfigRecord({"site": ""})
    return Message(RecordDict({"identity": record}), reply_to=message)


def site_of(context: Context) -> Site:
    """This node's site; the same object for every message to this process.

    Raises:
        ConfigError: neither a partition id nor a ``site-config`` says which site this is.
    """
    node, run = context.node_config, context.run_config
    if "partition-id" in node:
        return _simulated(scenario_file(run), overrides(run), int(node["partition-id"]))
    if "site-config" in node:
        return _deployed(Path(str(node["site-config"])))
    message = (
        "node config: expected partition-id (simulation) or site-config (the path of site.toml), "
        f"got {sorted(node)}; start the SuperNode with --node-config 'site-config=\"site.toml\"'"
    )
    raise ConfigError(message)


@cache
def _simulated(scenario: Path, overriding: tuple[str, ...], index: int) -> Site:
    config = load_scenario(scenario, overriding)
    if not 0 <= index < len(config.sites):
        message = (
            f"{scenario}: expected at least {index + 1} [[sites]], got {len(config.sites)}; "
            f"set --federation-config num-supernodes={len(config.sites)}"
        )
        raise ConfigError(message)
    sites = site_configs(config, str(sites_folder(config)))
    return Site(config=sites[index], workshop=_workshop())


@cache
def _deployed(file: Path) -> Site:
    return Site(config=load(file, SiteConfig), workshop=_workshop())


@cache
def _workshop() -> Workshop:
    return Workshop()


def _request(content: RecordDict) -> messages.Request:
    text = str(content.config_records["message"]["text"])
    arrays = {key: array.numpy() for key, array in content.array_records["arrays"].items()}
    message = wire.from_arrays(text, arrays)
    if not isinstance(message, typing.get_args(messages.Request)):
        complaint = f"a {type(message).__name__} came where a request was expected"
        raise ProtocolError(complaint)
    return typing.cast("messages.Request", message)


def _content(reply: messages.Reply) -> RecordDict:
    text, arrays = wire.to_arrays(reply)
    record = ArrayRecord({key: Array(array) for key, array in arrays.items()})
    return RecordDict({"message": ConfigRecord({"text": text}), "arrays": record})

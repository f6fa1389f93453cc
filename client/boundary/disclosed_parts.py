"""List every part of every reply that may leave, with its bound, rounding and budget.

The list is closed: :func:`check_parts` is part of the door (``client/boundary/release.py``) and
lets no reply out that holds a part which the list lacks, or a number outside its bound. What
``fedwinnow site disclosure`` prints is this list.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from fedwinnow.client.boundary.group_sizes import MOST_LOSS
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.protocol import replies as r
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.scores.bounded_mean import grid_step

Source = Literal["your samples", "public anchors", "the request", "this site"]
Check = Callable[[Any, SiteConfig], bool]
Words = Callable[[SiteConfig], str]

_ULP = 1e-9
"""Largest distance from a multiple that is rounding of floats, as a share of step or number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What a number may be: in words, and as a check of a value."""

    words: Words
    holds: Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One field of a reply."""

    reply: type
    path: str
    """Names of fields with dots; ``*`` stands for any key or index of one level."""
    what: str
    source: Source
    bound: Bound | None = None
    """None where it tells nothing of the samples."""


def _step(config: SiteConfig) -> int:
    return max(1, config.site.round_counts_to)


def _multiple(value: Any, step: float) -> bool:  # noqa: ANN401 - a number or an array of them
    found = np.asarray(value, dtype=np.float64)
    near = _ULP * np.maximum(step, np.abs(found))
    return bool((np.abs(found - np.round(found / step) * step) <= near).all())


COUNT = Bound(
    words=lambda config: (
        "exact" if _step(config) == 1 else f"a multiple of {_step(config)}; 0 means few or none"
    ),
    holds=lambda value, config: value >= 0 and _multiple(value, _step(config)),
)
HISTOGRAM = Bound(
    words=lambda config: (
        f"at most {config.site.max_bins} groups of cells, whose borders follow from public rows "
        f"and the rounded number of samples; a group below {max(1, config.site.smallest_cell)} is "
        f"told as 0; every group, and so the total, is a multiple of {_step(config)}, spread over "
        "its cells"
    ),
    holds=lambda value, config: (
        bool((np.asarray(value) >= 0).all()) and _multiple(float(np.sum(value)), _step(config))
    ),
)
LARGEST_GROUP = Bound(
    words=lambda _: "it follows from the histogram and the number at join as they are told",
    holds=lambda value, _: 0 <= value < float("inf"),
)
FACTOR = Bound(
    words=lambda config: (
        f"rank at most {config.policy.max_rank}, at most {config.policy.max_adapter_mb} MB; each "
        f"of its steps draws at least {config.policy.smallest_group} samples; no noise: it can "
        "reveal what it was trained on (docs/threat-model.md, section 4)"
    ),
    holds=lambda value, config: (
        bool(torch.isfinite(value).all()) and min(value.shape) <= config.policy.max_rank
    ),
)
LOSS = Bound(
    words=lambda config: (
        f"means over at least {config.policy.smallest_group} draws, each between 0 and "
        "ln(vocabulary), on a grid that one draw moves by about one step"
    ),
    holds=lambda value, config: (
        0 <= value <= MOST_LOSS + grid_step(MOST_LOSS, config.policy.smallest_group)
    ),
)
OWN_SUM = Bound(
    words=lambda config: (
        f"nothing below {config.policy.smallest_group} samples; a mean between 0 and "
        "ln(vocabulary) on a grid that one sample moves by at most one step, times the rounded "
        "number"
    ),
    holds=lambda value, _: 0 <= value < float("inf"),
)
CLUSTER_SUM = Bound(
    words=lambda config: (
        f"groups of at least {max(config.policy.smallest_group, config.site.smallest_cell)}; one "
        "sample adds at most 8 spreads of the public rows"
    ),
    holds=lambda value, _: bool(np.isfinite(value).all()),
)

PARTS = (
    Part(reply=r.Joined, path="card.samples", what="number of samples after the gates",
         source="your samples", bound=COUNT),
    Part(reply=r.Joined, path="card.base", what="hash of the base model", source="this site"),
    Part(reply=r.Joined, path="card.anchors", what="hash of the anchors", source="public anchors"),
    Part(reply=r.Joined, path="card.teacher", what="hash of the teacher", source="this site"),
    Part(reply=r.Joined, path="card.versions.*", what="versions of programs", source="this site"),
    Part(reply=r.Joined, path="adapter.*", what="untrained adapter, alike at every site",
         source="the request"),
    Part(reply=r.PublicSignals, path="table.*", what="signals of public rows",
         source="public anchors"),
    Part(reply=r.PublicSignals, path="kinds.*", what="kinds of public rows",
         source="public anchors"),
    Part(reply=r.PublicSignals, path="parents.*", what="rows that public rows were made of",
         source="public anchors"),
    Part(reply=r.TrainedAdapter, path="samples", what="number of samples trained on",
         source="your samples", bound=COUNT),
    Part(reply=r.TrainedAdapter, path="adapter.a.*", what="adapter, input factors",
         source="your samples", bound=FACTOR),
    Part(reply=r.TrainedAdapter, path="adapter.b.*", what="adapter, output factors",
         source="your samples", bound=FACTOR),
    Part(reply=r.TrainedAdapter, path="adapter.scales.*", what="the adapter's scales",
         source="the request"),
    Part(reply=r.TrainedAdapter, path="adapter.base", what="hash of its base",
         source="the request"),
    Part(reply=r.TrainedAdapter, path="losses.*", what="training losses", source="your samples",
         bound=LOSS),
    Part(reply=r.TrainedAdapter, path="learning_rate", what="mean learning rate",
         source="the request"),
    Part(reply=r.TrainedAdapter, path="gradient.*", what="mean gradient of public anchors",
         source="public anchors"),
    Part(reply=r.SummaryReply, path="summary.edges", what="edges of the histogram",
         source="public anchors"),
    Part(reply=r.SummaryReply, path="summary.counts", what="histogram of scores",
         source="your samples", bound=HISTOGRAM),
    Part(reply=r.SummaryReply, path="summary.largest_merged", what="bound of its rank error",
         source="your samples", bound=LARGEST_GROUP),
    Part(reply=r.SummaryReply, path="public_scores", what="scores of public rows",
         source="public anchors"),
    Part(reply=r.SummaryReply, path="forecast.*", what="how well public rows are told apart",
         source="public anchors"),
    Part(reply=r.SummaryReply, path="unscored", what="number of samples without a score",
         source="your samples", bound=COUNT),
    Part(reply=r.ClusterReply, path="counts.*", what="samples above the threshold, by cluster",
         source="your samples", bound=COUNT),
    Part(reply=r.ClusterReply, path="sums", what="their standardised losses, by cluster",
         source="your samples", bound=CLUSTER_SUM),
    Part(reply=r.KeptReply, path="kept.*", what="number of samples kept", source="your samples",
         bound=COUNT),
    Part(reply=r.MetricsReply, path="public_losses", what="losses of public hold-out anchors",
         source="public anchors"),
    Part(reply=r.MetricsReply, path="own.loss_sum", what="sum of losses of the own hold-out",
         source="your samples", bound=OWN_SUM),
    Part(reply=r.MetricsReply, path="own.samples", what="number of samples of the own hold-out",
         source="your samples", bound=COUNT),
    Part(reply=r.MetricsReply, path="prompts.*", what="public prompts", source="public anchors"),
    Part(reply=r.MetricsReply, path="references.*", what="public answers",
         source="public anchors"),
    Part(reply=r.MetricsReply, path="generations.*", what="answers to public prompts",
         source="public anchors"),
    Part(reply=r.JudgedAdapters, path="before", what="losses of public anchors",
         source="public anchors"),
    Part(reply=r.JudgedAdapters, path="losses.*", what="losses of public anchors, by adapter",
         source="public anchors"),
    Part(reply=r.JudgedAdapters, path="domains.*", what="domains of public anchors",
         source="public anchors"),
    Part(reply=r.Refusal, path="clause", what="one of a closed list of clauses",
         source="this site"),
    Part(reply=r.Refusal, path="reason", what="words of the request, the terms and the policy",
         source="the request"),
    Part(reply=r.Refusal, path="reference", what="random letters, which the site's log holds too",
         source="this site"),
)  # fmt: skip
"""Every part but the header, which repeats the request's, and the site's name."""
_EVERYWHERE = ("header", "site", "card.header", "card.site")
_OPAQUE = {r.Joined: ("adapter",), r.PublicSignals: ("table",), r.TrainedAdapter: ("gradient",)}
"""Fields that are listed whole, as all of them tells nothing of the samples."""


def check_parts(reply: Reply, config: SiteConfig) -> None:
    """Refuse a reply with a part that the list lacks, or a number outside its bound.

    Raises:
        TypeError: a part is not listed, or a number does not hold its bound; names the part.
    """
    listed = {part.path: part for part in PARTS if part.reply is type(reply)}
    for path, value in leaves(reply):
        part = listed.get(path)
        if part is None:
            message = f"{type(reply).__name__}.{path} is not in the list of what may leave"
            raise TypeError(message)
        if part.bound is not None and not part.bound.holds(value, config):
            message = (
                f"{type(reply).__name__}.{path} does not hold its bound: {part.bound.words(config)}"
            )
            raise TypeError(message)


def leaves(reply: Reply) -> Iterator[tuple[str, Any]]:
    """Yield path and value of every part of a reply that is not in each reply."""
    opaque = _OPAQUE.get(type(reply), ())
    yield from _leaves(reply, "", opaque)


def paths_of(reply: type) -> frozenset[str]:
    """Return the paths of all parts that a kind of reply has fields for."""
    return frozenset(_paths(reply, "", _OPAQUE.get(reply, ())))


def _leaves(node: Any, path: str, opaque: tuple[str, ...]) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - a tree of a message
    if path in _EVERYWHERE or node is None:
        return
    if path in opaque:
        yield f"{path}.*", node
    elif dataclasses.is_dataclass(node):
        for field in dataclasses.fields(node):
            yield from _leaves(getattr(node, field.name), _below(path, field.name), opaque)
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _leaves(value, f"{path}.*", opaque)
    elif isinstance(node, tuple | list):
        for value in node:
            yield from _leaves(value, f"{path}.*", opaque)
    else:
        yield path, node


def _paths(hint: Any, path: str, opaque: tuple[str, ...]) -> Iterator[str]:  # noqa: ANN401 - a type
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if path in _EVERYWHERE:
        return
    if type(None) in inner:
        (hint,) = (one for one in inner if one is not type(None))
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if path in opaque:
        yield f"{path}.*"
    elif dataclasses.is_dataclass(hint):
        for name, one in typing.get_type_hints(hint).items():
            yield from _paths(one, _below(path, name), opaque)
    elif origin is not None and issubclass(origin, Mapping):
        yield from _paths(inner[1], f"{path}.*", opaque)
    elif origin is tuple:
        yield from _paths(inner[0], f"{path}.*", opaque)
    else:
        yield path


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

"""Kinds of malformed reply to an exchange of clusters, as in ``malformed_kinds.py``."""

from collections.abc import Callable, Mapping

import numpy as np
from malformed_bench import BAD, Bench, field_of, poison

from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.envelope import Envelope

NAN, INF = float("nan"), float("inf")


def one_axis(tree: dict, arrays: dict) -> None:
    """A list of sums instead of a table, and said so."""
    (name,) = arrays
    arrays[name] = arrays[name][:, 0].copy()
    tree["body"]["sums"]["shape"] = list(arrays[name].shape)


CLUSTERS: Mapping[str, tuple[str, Callable[[Bench], Envelope], str]] = {
    "NaN in a sum": ("cluster", lambda b: b.taken_apart(poison(NAN)), "NaN or an infinity"),
    "infinity in a sum": ("cluster", lambda b: b.taken_apart(poison(INF)), "an infinity"),
    "sums as text": ("cluster", lambda b: b.taken_apart(field_of("sums", "9")), "an array"),
    "cluster's count as a fraction": (
        "cluster",
        lambda b: b.taken_apart(field_of("counts", [1.5, 1, 1, 1])),
        "a int",
    ),
    "cluster's count below nothing": (
        "cluster",
        lambda b: b.saying(counts=(-1, 1, 1, 1)),
        "of a cluster is -",
    ),
    "too few clusters": (
        "cluster",
        lambda b: b.saying(counts=(1, 1), sums=b.reply.sums[:2]),
        "2 counts and sums of shape",
    ),
    "more sums than counts": (
        "cluster",
        lambda b: b.saying(sums=np.zeros((9, b.reply.sums.shape[1]))),
        "sums of shape",
    ),
    "sums of other checkpoints": (
        "cluster",
        lambda b: b.saying(sums=b.reply.sums[:, :1].copy()),
        "sums of shape",
    ),
    "sums of one axis": ("cluster", lambda b: b.taken_apart(one_axis), "expected Float"),
    "a sum of nothing": (
        "cluster",
        lambda b: b.saying(counts=(0, 1, 1, 1), sums=np.ones_like(b.reply.sums)),
        "8 spreads times their count",
    ),
    "a sum beyond its count": (
        "cluster",
        lambda b: b.saying(counts=(1, 1, 1, 1), sums=np.full_like(b.reply.sums, 9.0)),
        "8 spreads times their count",
    ),
    "clusters of more than there are": (
        "cluster",
        lambda b: b.saying(counts=(3, 3, 3, 3), sums=np.zeros_like(b.reply.sums)),
        "12 samples, but joined with 8",
    ),
    "clusters of another exchange": ("cluster", lambda b: b.headed(round=2), "round is 2"),
    "a kept count instead of clusters": (
        "cluster",
        lambda b: b.envelope(
            wire.encode(m.KeptReply(header=b.request.header, site=BAD, kept={"curated": 1}))
        ),
        "KeptReply, not a ClusterReply",
    ),
}

"""Kinds of malformed reply: name → phase, how the site BAD makes it, what the record says of it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from malformed_bench import (
    BAD,
    KEYS,
    Bench,
    as_double,
    changed,
    cut_rows,
    field_of,
    flip,
    poison,
    whole_numbers,
)
from malformed_clusters import CLUSTERS

from fedwinnow.curation.datatypes import Metrics
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.envelope import Envelope

Kinds = Mapping[str, tuple[str, Callable[[Bench], Envelope], str]]

NAN, INF = float("nan"), float("inf")
ENVELOPES: Kinds = {
    "no signature": ("train", lambda b: changed(b.honest(), signature=lambda _: b""), "signature"),
    "foreign signature": ("train", lambda b: b.honest(key="stranger"), "not by the pinned key"),
    "another member's signature": ("train", lambda b: b.honest(key="gamma"), "pinned key"),
    "the coordinator's own": ("train", lambda b: b.honest(key="coordinator"), "pinned key"),
    "changed stamp": ("train", lambda b: changed(b.honest(), stamp=flip), "pinned key"),
    "empty stamp": ("train", lambda b: changed(b.honest(), stamp=lambda _: b""), "pinned key"),
    "changed payload": ("train", lambda b: changed(b.honest(), payload=flip), "expected .* bytes"),
    "truncated payload": (
        "train",
        lambda b: changed(b.honest(), payload=lambda p: p[:-100]),
        "bytes, SHA-256",
    ),
    "empty payload": ("train", lambda b: changed(b.honest(), payload=lambda _: b""), "0 bytes"),
    "longer payload": ("train", lambda b: changed(b.honest(), payload=lambda p: p + p), "bytes"),
    "stale sequence": ("train", lambda b: b.honest(sequence=b.sequence - 1), "sequence"),
    "future sequence": ("train", lambda b: b.honest(sequence=b.sequence + 1), "sequence"),
    "stamp of another site": ("train", lambda b: b.honest(site="gamma"), "stamped with site"),
    "stamp of another run": ("train", lambda b: b.honest(run="other"), "stamped with run"),
    "stamp of another phase": ("train", lambda b: b.honest(phase="probe"), "with phase"),
    "sequence as text": ("train", lambda b: b.restamped(sequence="1"), "is signed"),
    "stamp of more words": ("train", lambda b: b.restamped(more="x"), "of this version"),
    "stamp in another's name": (
        "train",
        lambda b: b.restamped(sender=KEYS["gamma"].public.fingerprint),
        "but names",
    ),
    "encrypted to another": (
        "train",
        lambda b: b.honest(reader=KEYS["stranger"].public),
        "cannot be opened",
    ),
    "not encrypted": ("train", lambda b: b.honest(open_=True), "cannot be opened"),
    "encrypted noise": ("train", lambda b: b.envelope(b"\x00" * 500), "not a whole message"),
    "encrypted nothing": ("train", lambda b: b.envelope(b""), "not a whole message"),
    "truncated inside": (
        "train",
        lambda b: b.envelope(wire.encode(b.reply)[:-8]),
        "not a whole message",
    ),
    "a request": ("train", lambda b: b.envelope(wire.encode(b.request)), "where a reply"),
}
WIRE: Kinds = {
    "NaN in a factor": ("train", lambda b: b.taken_apart(poison(NAN)), "NaN or an infinity"),
    "infinity in a factor": ("train", lambda b: b.taken_apart(poison(INF)), "an infinity"),
    "NaN in a histogram": ("score", lambda b: b.taken_apart(poison(NAN)), "NaN or an infinity"),
    "NaN in public rows": ("measure", lambda b: b.taken_apart(poison(NAN)), "an infinity"),
    "NaN in public losses": ("evaluate", lambda b: b.taken_apart(poison(NAN)), "infinity"),
    "fewer rows than said": ("train", lambda b: b.taken_apart(cut_rows), "expected float32"),
    "another number format": ("train", lambda b: b.taken_apart(as_double), "expected float32"),
    "whole numbers": ("train", lambda b: b.taken_apart(whole_numbers), "expected Float"),
    "missing arrays": ("train", lambda b: b.taken_apart(lambda _, a: a.clear()), "is missing"),
    "additional array": (
        "train",
        lambda b: b.taken_apart(lambda _, a: a.update(more=np.ones(2))),
        "more",
    ),
    "additional field": ("train", lambda b: b.taken_apart(field_of("code", "x")), "the fields"),
    "missing field": (
        "train",
        lambda b: b.taken_apart(lambda t, _: t["body"].pop("losses")),
        "the fields",
    ),
    "count as text": ("train", lambda b: b.taken_apart(field_of("samples", "9")), "a int"),
    "count as truth": ("train", lambda b: b.taken_apart(field_of("samples", True)), "a int"),
    "NaN as a loss": ("train", lambda b: b.taken_apart(field_of("losses", [NAN])), "a number"),
    "unknown kind": (
        "train",
        lambda b: b.taken_apart(lambda t, _: t.update(kind="Pickle")),
        "is unknown",
    ),
}
CONTENTS: Kinds = {
    "refusal": (
        "train",
        lambda b: b.envelope(
            wire.encode(
                m.Refusal(header=b.request.header, site=BAD, clause="policy.max_rank", reason="16")
            )
        ),
        r"refused \(policy.max_rank\): 16",
    ),
    "wrong run": ("train", lambda b: b.headed(run="other"), "run is 'other'"),
    "wrong phase": ("train", lambda b: b.headed(phase="warm_up"), "phase is 'warm_up'"),
    "wrong round": ("train", lambda b: b.headed(round=7), "round is 7"),
    "wrong arm": ("train", lambda b: b.headed(arm="keep_all"), "arm is 'keep_all'"),
    "stale adapter": ("train", lambda b: b.headed(adapter="0" * 64), "adapter is '000"),
    "wrong protocol": ("train", lambda b: b.headed(protocol=2), "protocol is 2"),
    "another name": ("train", lambda b: b.saying(site="gamma"), "speaks as site 'gamma'"),
    "another kind of reply": (
        "train",
        lambda b: b.envelope(wire.encode(m.Receipt(header=b.request.header, site=BAD))),
        "Receipt, not a TrainedAdapter",
    ),
    "wrong base": ("train", lambda b: b.adapter(base="other"), "expected base"),
    "wrong shape": (
        "train",
        lambda b: b.factors(lambda f: torch.cat([f, f]), "b"),
        "expected outputs and inputs",
    ),
    "higher rank": (
        "train",
        lambda b: b.adapter(
            a={n: torch.cat([f, f]) for n, f in b.reply.adapter.a.items()},
            b={n: torch.cat([f, f], 1) for n, f in b.reply.adapter.b.items()},
        ),
        "rank in .* is above",
    ),
    "missing module": (
        "train",
        lambda b: b.adapter(
            **{
                name: dict([next(iter(getattr(b.reply.adapter, name).items()))])
                for name in ("a", "b", "scales")
            }
        ),
        "modules",
    ),
    "half a module": ("train", lambda b: b.adapter(b={}), "expected A, B and a scale"),
    "scale of nothing": (
        "train",
        lambda b: b.adapter(scales=dict.fromkeys(b.reply.adapter.scales, 0.0)),
        "scale above 0",
    ),
    "negative count": ("train", lambda b: b.saying(samples=-1), "samples is -1"),
    "count beyond the card": ("train", lambda b: b.saying(samples=10**9), "joined with 8"),
    "adapter of no sample": ("train", lambda b: b.saying(samples=0), "an adapter for 0"),
    "samples without adapter": ("train", lambda b: b.saying(adapter=None), "no adapter for"),
    "infinite loss": ("train", lambda b: b.saying(losses=(INF,)), "is no loss"),
    "too many losses": ("train", lambda b: b.saying(losses=(1.0,) * 99), "99 losses"),
    "negative rate": ("train", lambda b: b.saying(learning_rate=-1.0), "learning rate"),
    "warm-up of another base": ("warm_up", lambda b: b.adapter(base="x"), "expected base"),
    "rows of other ids": (
        "measure",
        lambda b: b.table(ids=tuple("abcdef")),
        "not those of the other sites",
    ),
    "rows of another checkpoint": ("measure", lambda b: b.table(checkpoint=9), "checkpoint 9"),
    "rows that lie": (
        "measure",
        lambda b: b.table(columns={n: v + 1 for n, v in b.reply.table.columns.items()}),
        "differs from the agreed one",
    ),
    "rows without columns": ("probe", lambda b: b.table(columns={}), "not those of the other"),
    "rows of unequal number": (
        "measure",
        lambda b: b.table(
            status=np.zeros(3, dtype=np.int8), columns={"loss": np.ones(3, dtype=np.float32)}
        ),
        "do not belong together",
    ),
    "columns of too many references": (
        "measure",
        lambda b: b.table(references=("law",)),
        "do not fit its 1 references",
    ),
    "kinds of too few rows": ("probe", lambda b: b.saying(kinds=("clean",)), "do not belong"),
    "another anchor set": (
        "join",
        lambda b: b.saying(card=replace(b.reply.card, anchors="x")),
        "anchors x",
    ),
    "another base model": (
        "join",
        lambda b: b.saying(card=replace(b.reply.card, base="x")),
        "base x",
    ),
    "another initial adapter": (
        "join",
        lambda b: b.factors(lambda f: f + 1, "a"),
        "initial adapter",
    ),
    "card of another site": (
        "join",
        lambda b: b.saying(card=replace(b.reply.card, site="gamma")),
        "its card names site 'gamma'",
    ),
    "card of no samples": (
        "join",
        lambda b: b.saying(card=replace(b.reply.card, samples=0)),
        "samples is 0",
    ),
    "negative cell": ("score", lambda b: b.summary(counts=[1, -1, 2, 3]), "below 0"),
    "cells without edges": ("score", lambda b: b.summary(edges=[], counts=[1]), "0 edges"),
    "too few cells": ("score", lambda b: b.summary(counts=[1]), "1 cells"),
    "falling edges": ("score", lambda b: b.summary(edges=[0.75, 0.5, 0.25]), "on 3 edges"),
    "other edges": ("score", lambda b: b.summary(edges=[0.2, 0.5, 0.7]), "other edges"),
    "too few public scores": (
        "score",
        lambda b: b.saying(public_scores=np.ones(2)),
        "scores 2 public rows",
    ),
    "public scores that lie": (
        "score",
        lambda b: b.saying(public_scores=b.reply.public_scores + 0.1),
        "differ from the median",
    ),
    "infinite forecast": ("score", lambda b: b.saying(forecast={"auroc": INF}), "no number"),
    "negative unscored": ("score", lambda b: b.saying(unscored=-3), "below 0"),
    "kept below nothing": (
        "select",
        lambda b: b.saying(kept={"curated": -1, "keep_all": 8}),
        "kept samples is -1",
    ),
    "kept more than there are": (
        "select",
        lambda b: b.saying(kept={"curated": 9, "keep_all": 8}),
        "joined with 8",
    ),
    "kept of another arm": ("select", lambda b: b.saying(kept={"oracle": 1}), "of each arm"),
    "own loss of no number": (
        "evaluate",
        lambda b: b.saying(own=Metrics(loss_sum=INF, samples=1)),
        "own hold-out's loss",
    ),
    "own count below nothing": (
        "evaluate",
        lambda b: b.saying(own=Metrics(loss_sum=1.0, samples=-1)),
        "samples is -1",
    ),
    "too few public losses": (
        "evaluate",
        lambda b: b.saying(public_losses=np.ones(1)),
        "evaluates 1 public anchors",
    ),
    "public loss below nothing": (
        "evaluate",
        lambda b: b.saying(public_losses=-np.ones(3)),
        "is no loss",
    ),
    "answers without questions": (
        "evaluate",
        lambda b: b.saying(generations=("text",)),
        "do not belong together",
    ),
}
BIG, TEXT = 10**400, "\x1b[31mred\x07\u202e"
BEYOND: Kinds = {
    "card beyond any silo": (
        "join",
        lambda b: b.saying(card=replace(b.reply.card, samples=BIG)),
        "a number beyond",
    ),
    "trained beyond any silo": ("train", lambda b: b.saying(samples=BIG), "a number beyond"),
    "kept beyond any silo": (
        "select",
        lambda b: b.saying(kept=dict.fromkeys(b.reply.kept, BIG)),
        "a number beyond",
    ),
    "unscored beyond the card": ("score", lambda b: b.saying(unscored=10**4290), "unscored"),
    "cells beyond the card": (
        "score",
        lambda b: b.summary(counts=[1e12, 0, 0, 0]),
        "joined with, 8",
    ),
    "cells beyond any sum": ("score", lambda b: b.summary(counts=[1e308] * 4), "joined with, 8"),
    "merged cells beyond the card": (
        "score",
        lambda b: b.summary(largest_merged=1e308),
        "joined with, 8",
    ),
    "forecast of a hostile name": (
        "score",
        lambda b: b.saying(forecast={TEXT: 1.0}),
        "beyond letters",
    ),
    "factors whose product is none": (
        "train",
        lambda b: b.factors(lambda f: torch.full_like(f, 3e38), "ab"),
        "norm beyond",
    ),
    "scale beyond any update": (
        "train",
        lambda b: b.adapter(scales=dict.fromkeys(b.reply.adapter.scales, 1e308)),
        "norm beyond",
    ),
    "losses beyond any model": ("train", lambda b: b.saying(losses=(1e308,)), "is no loss"),
    "rate beyond any plan": ("train", lambda b: b.saying(learning_rate=1e308), "learning rate"),
    "own loss beyond any model": (
        "evaluate",
        lambda b: b.saying(own=Metrics(loss_sum=1e308, samples=1)),
        "own hold-out's loss",
    ),
    "own count beyond any silo": (
        "evaluate",
        lambda b: b.saying(own=Metrics(loss_sum=1.0, samples=BIG)),
        "a number beyond",
    ),
    "public losses beyond any model": (
        "evaluate",
        lambda b: b.saying(public_losses=np.full(3, 1e308)),
        "is no loss",
    ),
    "name of a hostile text": ("train", lambda b: b.saying(site=TEXT), "speaks as site"),
    "refusal of a hostile text": (
        "train",
        lambda b: b.envelope(
            wire.encode(m.Refusal(header=b.request.header, site=BAD, clause="failed", reason=TEXT))
        ),
        r"refused \(failed\): <U\+001B>\[31mred<U\+0007><U\+202E>",
    ),
}
KINDS = {**ENVELOPES, **WIRE, **CONTENTS, **BEYOND, **CLUSTERS}

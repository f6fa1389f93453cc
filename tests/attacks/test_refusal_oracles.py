"""Attacks on refusals: an overflowing adapter must not make a silo tell losses or counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_deployment_files import write_toy_deployment

from fedwinnow.client.boundary.guarded_site import GuardedSite
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.load_files import load_run, load_site
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.envelope import decrypt, sign
from fedwinnow.curation.protocol.keys import PrivateKey

pytestmark = pytest.mark.attacks


def asker(folder):
    """A toy silo's guarded site, and what asks it as the pinned coordinator."""
    terms = load_run(write_toy_deployment(folder, samples=8)).terms()
    site = GuardedSite.open(load_site(folder / "north" / "site.toml"))
    key, sequence = PrivateKey.load(folder / "coordinator.key"), iter(range(1, 99))

    def ask(request):
        payload, header = wire.encode(request), request.header
        envelope = sign(key, payload, site="north", run=header.run, phase=header.phase,
                        sequence=next(sequence))  # fmt: skip
        stamp = site.admit(envelope.stamp, envelope.signature)
        draft = site.answer(stamp, payload)
        return wire.decode(decrypt(draft.payload, key))

    return site, terms, ask


def test_refusal_oracles_tell_no_loss_and_no_count(tmp_path):
    """Law: adapters whose gradients or forward passes overflow end no phase by a refusal."""
    site, terms, ask = asker(tmp_path)
    joined = ask(m.JoinRequest(header=m.Header(run="r", phase="join"), terms=canonical_json(terms)))
    first = joined.adapter
    broken = {n: torch.zeros_like(t) for n, t in first.a.items()}
    overflowing = replace(
        first, a=broken, b={n: torch.full_like(t, 1e30) for n, t in first.b.items()}
    )
    huge = replace(overflowing, a={n: torch.full_like(t, 1e30) for n, t in first.a.items()})
    steps = terms.warm_up.steps * terms.warm_up.rounds
    header = m.Header(run="r", phase="warm_up", round=1, adapter=adapter_hash(overflowing))
    reply = ask(m.TrainRequest(header=header, adapter=overflowing, step_offset=0,
                               total_steps=steps, sites=("north",)))  # fmt: skip
    assert isinstance(reply, m.TrainedAdapter), reply
    assert np.isfinite(reply.losses).all()
    header = m.Header(run="r", phase="evaluate", adapter=adapter_hash(huge))
    told = ask(m.EvaluateRequest(header=header, adapter=huge, generate=0))
    assert isinstance(told, m.MetricsReply | m.Refusal)
    if isinstance(told, m.Refusal):  # public anchors overflow too: a constant of the request
        assert (told.clause, any(c.isdigit() for c in told.reason)) == ("failed", False)
    site.ledger.close()

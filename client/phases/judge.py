"""Answer a judge request: losses of other members' adapters on public anchors."""

from dataclasses import replace

import numpy as np

from fedwinnow.client.phases.sample_losses import sample_losses, with_target
from fedwinnow.client.runs.site_run import Work, hold, public_key
from fedwinnow.curation.adapters.checks import adapter_hash, check_compatible
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.model.base_change import changed, changed_base
from fedwinnow.curation.model.lora_model import set_adapter
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import JudgedAdapters
from fedwinnow.curation.protocol.requests import JudgeRequest


def judge_adapters(work: Work, request: JudgeRequest) -> Reply:
    """Losses of public reference anchors under the other sites' adapters of a round."""
    anchors, loaded = with_target(work, work.pool.split.reference), work.loaded
    before = hold(work, request.header, request.adapter, request.change)
    check_compatible(request.candidates, request.adapter)

    def losses(adapter: Adapter, name: str) -> np.ndarray:
        set_adapter(loaded, replace(adapter, base=loaded.fingerprint))
        key = ("reference", *public_key(work, name))
        return work.workshop.public(key, lambda: sample_losses(work, anchors))

    with changed(loaded, request.change):
        return JudgedAdapters(
            header=request.header,
            site=work.site,
            before=losses(request.adapter, before),
            losses={
                name: losses(adapter, changed_base(adapter_hash(adapter), request.change))
                for name, adapter in sorted(request.candidates.items())
                if name != work.site
            },
            domains=tuple(sample.domain for sample in anchors),
        )

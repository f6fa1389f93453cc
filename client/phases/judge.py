"""Answer a judge request: losses of other members' adapters on public anchors."""

from dataclasses import replace

import numpy as np

from fedwinnow.client.phases.sample_losses import sample_losses, with_target
from fedwinnow.client.runs.refusals import refused_by
from fedwinnow.client.runs.site_run import SiteRun, load_checked_adapter, public_result_key
from fedwinnow.curation.adapters.checks import adapter_hash, check_compatible
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.model.base_change import apply_base_change, changed_base_hash
from fedwinnow.curation.model.lora_model import set_adapter
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import JudgedAdapters
from fedwinnow.curation.protocol.requests import JudgeRequest


def judge_adapters(run: SiteRun, request: JudgeRequest) -> Reply:
    """Return losses of public reference anchors under the other sites' adapters of a round."""
    anchors, loaded = with_target(run, run.data.split.reference), run.loaded
    before = load_checked_adapter(run, request.header, request.adapter, request.change)
    with refused_by("adapter"):
        check_compatible(request.candidates, request.adapter)

    def losses(adapter: Adapter, name: str) -> np.ndarray:
        set_adapter(loaded, replace(adapter, base=loaded.fingerprint))
        key = ("reference", *public_result_key(run, name))
        return run.cache.cached_public(key, lambda: sample_losses(run, anchors))

    with apply_base_change(loaded, request.change):
        return JudgedAdapters(
            header=request.header,
            site=run.site,
            before=losses(request.adapter, before),
            losses={
                name: losses(adapter, changed_base_hash(adapter_hash(adapter), request.change))
                for name, adapter in sorted(request.candidates.items())
                if name != run.site
            },
            domains=tuple(sample.domain for sample in anchors),
        )

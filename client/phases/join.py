"""Answer a join request: site card and seeded initial adapter."""

from fedwinnow.client.runs.refusals import refused_by
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.client.signals.teacher import teacher_fingerprint
from fedwinnow.client.training.site_adapter import check_site_part, check_site_targets
from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.model.lora_model import initial_adapter
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import Joined, SiteCard
from fedwinnow.curation.protocol.requests import JoinRequest
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.curation.signal_columns import TEACHER
from fedwinnow.curation.versions import versions


def join(run: SiteRun, request: JoinRequest) -> Reply:
    """Return the site card and the seeded initial adapter."""
    with refused_by("terms"):
        check_site_part(run.config.site, run.terms.adapter)
    teacher, scored = "", run.terms.measuring.layers
    if run.plugins.columns_at(0) & TEACHER:  # before the base: one of them in memory at a time
        teacher = teacher_fingerprint(run)
    if scored:
        run.loaded.last_layers(scored)  # refused now rather than after a round of training
    card = SiteCard(
        header=request.header,
        site=run.site,
        samples=run.rounded_group(len(run.data.samples)),
        base=run.loaded.fingerprint,
        anchors=run.data.anchors_hash,
        versions=versions(),
        teacher=teacher,
    )
    write_json(run.files.gate, run.data.dropped)
    adapter = initial_adapter(run.loaded, seed=derive_seed(run.terms.run.seed, "adapter"))
    with refused_by("terms"):
        check_site_targets(run.config.site, adapter)
    return Joined(header=request.header, site=run.site, card=card, adapter=adapter)

"""Answer a join request: site card and seeded initial adapter."""

from fedwinnow.client.runs.site_run import Work
from fedwinnow.client.signals.teacher import teacher_fingerprint
from fedwinnow.client.training.site_adapter import check_own_part
from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.model.lora_model import initial_adapter
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import Joined, SiteCard
from fedwinnow.curation.protocol.requests import JoinRequest
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.curation.signal_columns import TEACHER
from fedwinnow.curation.versions import versions


def join(work: Work, request: JoinRequest) -> Reply:
    """Say who the site is and make the seeded initial adapter."""
    check_own_part(work.config.site, work.terms.adapter)
    teacher, scored = "", work.terms.measuring.layers
    if work.plugins.columns_at(0) & TEACHER:  # before the base, so that one of them is in memory
        teacher = teacher_fingerprint(work)
    if scored:
        work.loaded.last_layers(scored)  # refused now rather than after a round of training
    card = SiteCard(
        header=request.header,
        site=work.site,
        samples=work.rounded(len(work.pool.samples)),
        base=work.loaded.fingerprint,
        anchors=work.pool.anchors_hash,
        versions=versions(),
        teacher=teacher,
    )
    write_json(work.files.gate, work.pool.dropped)
    adapter = initial_adapter(work.loaded, seed=derive_seed(work.terms.run.seed, "adapter"))
    return Joined(header=request.header, site=work.site, card=card, adapter=adapter)

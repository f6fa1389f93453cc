"""Join: ask for site cards, and take as members the sites that agree."""

from dataclasses import replace

from fedwinnow.curation.adapters.checks import adapter_hash, check_adapter
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.replies import Joined
from fedwinnow.curation.protocol.requests import JoinRequest
from fedwinnow.server.phases.limits import clean_line, clean_table, why_no_count, why_no_update
from fedwinnow.server.phases.quorum import majority, needs_reviewers, require_quorum
from fedwinnow.server.phases.values import Outcome, Replies, ReplyContext, ServerPhase, replies_of
from fedwinnow.server.state import RoundRecord, RunState


def request(state: RunState, config: RunConfig, header: Header) -> JoinRequest:  # noqa: ARG001 - every phase has the same form
    """Send the terms of the run."""
    return JoinRequest(header=header, terms=canonical_json(config.terms()))


def why_unusable(reply: Joined, at: ReplyContext) -> str:
    """Check the site card and the initial adapter."""
    check_adapter(reply.adapter, site=at.site)
    card = reply.card
    if card.site != at.site:
        return f"its card names site {clean_line(repr(card.site), longest=64)}"
    if why := why_no_count(card.samples, "samples", least=1):
        return why
    if card.header != reply.header:
        return "its card belongs to another message"
    return why_no_update(reply.adapter, "initial adapter")


def absorb(state: RunState, config: RunConfig, replies: Replies, record: RoundRecord) -> Outcome:
    """Take as members the sites with the same base, anchors, initial adapter and teacher."""
    joined = replies_of(replies, Joined)
    keys = {
        site: (
            reply.card.base,
            reply.card.anchors,
            adapter_hash(reply.adapter),
            reply.card.teacher,
        )
        for site, reply in joined.items()
    }
    agreed = majority(keys)
    missing = dict(record.missing)
    for site, key in keys.items():
        for name, mine, theirs in zip(
            ("base", "anchors", "initial adapter", "teacher"), key, agreed, strict=True
        ):
            if mine != theirs:
                missing[site] = f"{name} {mine[:12]} differs from the others' {theirs[:12]}"
    members = tuple(
        replace(card, versions=clean_table(card.versions))
        for card in (joined[site].card for site in sorted(joined) if site not in missing)
    )
    require_quorum(members, config, record.phase, missing)
    needs_reviewers([card.site for card in members], config, missing)
    initial = next(joined[card.site].adapter for card in members)
    state = replace(state, members=members, initial=initial, adapter=initial)
    return state, replace(record, missing=missing)


PHASE = ServerPhase(request=request, why_unusable=why_unusable, absorb=absorb)

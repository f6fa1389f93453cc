"""Refuse requests by policy clause, and check the clauses on adapters that come or go."""

from collections.abc import Mapping

from fedwinnow.client.runs.told_text import ToldText, constant, tell, tell_limit
from fedwinnow.curation.adapters.checks import adapter_bytes
from fedwinnow.curation.config.site import PolicySection
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import RefusalError
from fedwinnow.curation.protocol.messages import Request
from fedwinnow.curation.protocol.requests import JudgeRequest, MeasureRequest

_MEGABYTE = 1_000_000


def require(clause: str, came: object, holds: bool, allowed: object) -> None:  # noqa: FBT001 - a question
    """Raise RefusalError naming the policy clause unless the condition holds.

    Args:
        clause: Key of ``[policy]``.
        came: What the request holds. It leaves in the refusal only as a :class:`Constant` or a
            :class:`ToldText` (``client/runs/told_text.py``): what was measured stays in the log.
        holds: The condition.
        allowed: What the clause allows; as ``came``.

    Raises:
        RefusalError: the condition does not hold.
    """
    if not holds:
        message = f"policy.{clause}: this site allows {allowed}, the request holds {came}"
        told = tell_limit(came, allowed)
        raise RefusalError(message, clause=f"policy.{clause}", told=told)


def check_size(adapter: Adapter, section: PolicySection) -> None:
    """Check the clauses on one adapter's rank and size.

    Raises:
        RefusalError: the adapter is too large.
    """
    rank = max((len(a) for a in adapter.a.values()), default=0)
    require("max_rank", f"rank {rank}", rank <= section.max_rank, _most("max_rank", section))
    _check_bytes(adapter, section)


def check_brought(request: Request, section: PolicySection) -> None:
    """Check the clauses on all adapters of a request: its own, members', the base's change.

    A change of the base sums many adapters, so only its size is bounded, not its rank.

    Raises:
        RefusalError: there are too many adapters, or one is too large.
    """
    members: Mapping[str, Adapter] = {}
    if isinstance(request, MeasureRequest):
        members = request.reviewers
    elif isinstance(request, JudgeRequest):
        members = request.candidates
    number, most = len(members), section.max_reviewers
    require("max_reviewers", f"{number} of them", number <= most, _most("max_reviewers", section))
    own = getattr(request, "adapter", None)
    for adapter in ([own] if own is not None else []) + [members[name] for name in sorted(members)]:
        check_size(adapter, section)
    change = getattr(request, "change", None)
    if change is not None:
        _check_bytes(change, section)


def _check_bytes(adapter: Adapter, section: PolicySection) -> None:
    size, limit = adapter_bytes(adapter), section.max_adapter_mb
    came = f"an adapter of {size / _MEGABYTE:.3f} MB"
    allowed = tell("{most} MB", most=constant("max_adapter_mb", section))
    require("max_adapter_mb", came, size <= limit * _MEGABYTE, allowed)


def _most(name: str, section: PolicySection) -> ToldText:
    return tell("at most {most}", most=constant(name, section))

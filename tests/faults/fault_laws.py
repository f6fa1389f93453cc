"""What both matrices ask of a run that something happened to."""

import pytest
from fault_box import ALL, EXCHANGES

from fedwinnow.curation.config.coordinator import QuorumSection


def cells(points, exchanges=EXCHANGES):
    """Each point in all exchanges of one run; and, marked slow, in one exchange of a run each."""
    return [
        *(pytest.param(point, exchanges, id=f"{point}-everywhere") for point in points),
        *alone(points, exchanges),
    ]


def alone(points, exchanges):
    """Each point in one exchange of a run of its own, marked slow."""
    return [
        pytest.param(point, (one,), id=f"{point}-{one[0]}-{one[1]}", marks=pytest.mark.slow)
        for point in points
        for one in exchanges
    ]


def few():
    """One of each phase, and a round that follows another: for what takes long."""
    return tuple(one for one in EXCHANGES if one not in {("evaluate", 1), ("evaluate", 2)})


def once():
    """One of each phase."""
    return tuple(one for one in few() if one != ("train", 2))


def two() -> QuorumSection:
    """A run that goes on with two of three sites."""
    return QuorumSection(**dict.fromkeys(ALL.__slots__, 2))


def goes_on_without(box, codes, broken) -> None:
    """The run comes to its end at once, and the record says who was missing, and why."""
    assert codes == [0], box.log.read_text()
    assert broken.spared() == set()
    state = box.state()
    assert state.phase == "done"
    missing = {(r.phase, r.round): dict(r.missing) for r in state.records}
    for exchange in broken.at:
        assert set(missing[exchange]) == {broken.site}
        assert missing[exchange][broken.site]
    assert all(set(absent) <= {broken.site} for absent in missing.values())
    assert state.finals["curated"]
    broken.story["outcome"] = f"ends without {broken.site}, named in the record"

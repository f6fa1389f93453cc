"""What both matrices ask of a run that something happened to."""

from fault_box import ALL, EXCHANGES

from fedwinnow.curation.config import QuorumSection


def names(points, exchanges=EXCHANGES):
    """Every point of every exchange."""
    return [(point, *exchange) for exchange in exchanges for point in points]


def few(exchanges=EXCHANGES):
    """One of each phase, and a round that follows another: for what takes long."""
    return [one for one in exchanges if one not in {("evaluate", 1), ("evaluate", 2)}]


def two() -> QuorumSection:
    """A run that goes on with two of three sites."""
    return QuorumSection(**dict.fromkeys(ALL.__slots__, 2))


def goes_on_without(box, codes, broken) -> None:
    """The run comes to its end at once, and the record says who was missing, and why."""
    assert codes == [0], box.log.read_text()
    assert broken.marker.exists(), "the break never happened"
    state = box.state()
    assert state.phase == "done"
    missing = {(r.phase, r.round): dict(r.missing) for r in state.records}
    assert set(missing[broken.phase, broken.round]) == {broken.site}
    assert missing[broken.phase, broken.round][broken.site]
    assert all(set(m) <= {broken.site} for m in missing.values())
    assert state.finals["curated"]

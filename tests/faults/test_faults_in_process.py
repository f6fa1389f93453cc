"""Laws of a run in one process that is killed, runs out of disk or loses messages."""

import pytest
from fault_box import EXCHANGES, KILLED, LONG, Box, result
from fault_laws import cells, goes_on_without, two

pytestmark = pytest.mark.faults
WHERE = "in process"
COORDINATOR = ("asked", "answered", "torn", "behind")
SITE = ("arrives", "computed", "half", "stored")
JOINED = EXCHANGES[1:]


def stored(box):
    """Names of all replies that the sites keep."""
    folder = box.folder / box.config.run.name / "sites"
    found = sorted(str(f.relative_to(folder)) for f in folder.glob("*/*/replies/[!.]*"))
    assert found
    return found


def survives(box, context, broken, unbroken, codes):
    """The run dies as foreseen, goes on, and ends as if nothing had been."""
    found = box.live(context, broken)
    assert broken.spared() == set()
    assert found == [*codes, 0], box.log.read_text()
    assert box.state().phase == "done"
    assert result(box.state()) == result(unbroken.state())
    assert stored(box) == stored(unbroken)
    broken.story["outcome"] = "same adapter"


@pytest.mark.parametrize(("point", "at"), cells(COORDINATOR))
def test_faults_coordinator_killed_resumes_to_the_same_end(
    scenario, context, unbroken, tmp_path, breaks, point, at
):
    """Killed before an exchange, inside it, inside its commit or right after: the same end."""
    broken = breaks(what="kill", point=point, at=at)
    survives(Box.of(scenario, tmp_path), context, broken, unbroken, [KILLED] * len(at))


@pytest.mark.parametrize(("point", "at"), [*cells(SITE), *cells(("computing",), LONG)])
def test_faults_site_killed_resumes_to_the_same_end(
    scenario, context, unbroken, tmp_path, breaks, point, at
):
    """The middle site dies as a request arrives, inside its work, or around writing its reply."""
    broken = breaks(what="kill", point=point, at=at, site="south")
    survives(Box.of(scenario, tmp_path), context, broken, unbroken, [KILLED] * len(at))


@pytest.mark.parametrize(("point", "at"), cells(("asked", "commit")))
def test_faults_coordinator_without_disk_ends_and_resumes(
    scenario, context, unbroken, tmp_path, breaks, point, at
):
    """A full disk ends the run with an error; with room again it goes on to the same end."""
    broken = breaks(what="full", point=point, at=at)
    box = Box.of(scenario, tmp_path)
    *codes, last = box.live(context, broken)
    assert broken.spared() == set()
    assert last == 0, box.log.read_text()
    assert len(codes) == len(at)
    assert set(codes) <= {1, 2}
    assert result(box.state()) == result(unbroken.state())
    assert stored(box) == stored(unbroken)
    broken.story["outcome"] = "same adapter"


@pytest.mark.parametrize(("point", "at"), cells(("work",)))
def test_faults_site_without_disk_makes_up_for_it(
    scenario, context, unbroken, tmp_path, breaks, point, at
):
    """A site that cannot write refuses; with all sites needed the run waits for room."""
    broken = breaks(what="full", point=point, at=at, site="south")
    codes = [2 if phase == "join" else 1 for phase, _ in at]
    survives(Box.of(scenario, tmp_path), context, broken, unbroken, codes)


@pytest.mark.parametrize(("point", "at"), cells(("request", "reply")))
def test_faults_lost_message_is_sent_again(
    scenario, context, unbroken, tmp_path, breaks, point, at
):
    """Lost on the way there or on the way back: what was computed is not computed again."""
    broken = breaks(what="cut", point=point, at=at, site="south")
    survives(Box.of(scenario, tmp_path), context, broken, unbroken, [1] * len(at))


@pytest.mark.parametrize(("point", "at"), cells(("work", "request", "reply"), JOINED))
def test_faults_absent_site_is_named_where_two_suffice(
    scenario, context, tmp_path, breaks, point, at
):
    """The run goes on without the third; each record says that it was missing, and why."""
    what = "full" if point == "work" else "cut"
    broken = breaks(what=what, point=point, at=at, site="south")
    box = Box.of(scenario, tmp_path, quorum=two())
    goes_on_without(box, box.live(context, broken), broken)

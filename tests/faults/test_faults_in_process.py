"""Laws of a run in one process that is killed, runs out of disk or loses messages."""

import pytest
from fault_box import EXCHANGES, KILLED, LONG, Box, result
from fault_breaks import Break
from fault_laws import goes_on_without, names, two

pytestmark = pytest.mark.faults
COORDINATOR = ("asked", "answered", "torn", "behind")
SITE = ("arrives", "computed", "half", "stored")


def stored(box):
    """Names of all replies that the sites keep."""
    folder = box.folder / box.config.run.name / "sites"
    found = sorted(str(f.relative_to(folder)) for f in folder.glob("*/*/replies/[!.]*"))
    assert found
    return found


def survives(box, context, broken, unbroken, codes):
    """The run dies as foreseen, goes on, and ends as if nothing had been."""
    found = box.live(context, broken)
    assert broken.marker.exists(), "the break never happened"
    assert found == codes, box.log.read_text()
    assert box.state().phase == "done"
    assert result(box.state()) == result(unbroken.state())
    assert stored(box) == stored(unbroken)


@pytest.mark.parametrize(("point", "phase", "number"), names(COORDINATOR))
def test_faults_coordinator_killed_resumes_to_the_same_end(
    scenario, context, unbroken, tmp_path, point, phase, number
):
    """Killed before an exchange, inside it, inside its commit or right after: the same end."""
    broken = Break(what="kill", point=point, phase=phase, round=number, marker=tmp_path / "broken")
    survives(Box.of(scenario, tmp_path), context, broken, unbroken, [KILLED, 0])


@pytest.mark.parametrize(("point", "phase", "number"), [*names(SITE), *names(("computing",), LONG)])
def test_faults_site_killed_resumes_to_the_same_end(
    scenario, context, unbroken, tmp_path, point, phase, number
):
    """The middle site dies as a request arrives, inside its work, or around writing its reply."""
    broken = Break(
        what="kill", point=point, phase=phase, round=number, site="south",
        marker=tmp_path / "broken",
    )  # fmt: skip
    survives(Box.of(scenario, tmp_path), context, broken, unbroken, [KILLED, 0])


@pytest.mark.parametrize(("point", "phase", "number"), names(("asked", "commit")))
def test_faults_coordinator_without_disk_ends_and_resumes(
    scenario, context, unbroken, tmp_path, point, phase, number
):
    """A full disk ends the run with an error; with room again it goes on to the same end."""
    broken = Break(what="full", point=point, phase=phase, round=number, marker=tmp_path / "broken")
    box = Box.of(scenario, tmp_path)
    codes = box.live(context, broken)
    assert broken.marker.exists()
    assert codes in ([1, 0], [2, 0]), box.log.read_text()
    assert result(box.state()) == result(unbroken.state())


@pytest.mark.parametrize(("phase", "number"), EXCHANGES)
def test_faults_site_without_disk_is_missing_or_makes_up_for_it(
    scenario, context, unbroken, tmp_path, phase, number
):
    """With all sites needed the run waits for room; with two it goes on and names the third."""
    broken = Break(
        what="full", point="work", phase=phase, round=number, site="south",
        marker=tmp_path / "broken",
    )  # fmt: skip
    code = 2 if phase == "join" else 1
    survives(Box.of(scenario, tmp_path / "all"), context, broken, unbroken, [code, 0])
    if phase != "join":  # a local simulation ends when a site cannot join
        broken.marker.unlink()
        less = Box.of(scenario, tmp_path / "two", quorum=two())
        goes_on_without(less, less.live(context, broken), broken)


@pytest.mark.parametrize(("point", "phase", "number"), names(("request", "reply")))
def test_faults_lost_message_is_sent_again_or_its_site_named(
    scenario, context, unbroken, tmp_path, point, phase, number
):
    """Lost on the way there or back: with all needed the same end, with two the site is named."""
    broken = Break(
        what="cut", point=point, phase=phase, round=number, site="south",
        marker=tmp_path / "broken",
    )  # fmt: skip
    survives(Box.of(scenario, tmp_path / "all"), context, broken, unbroken, [1, 0])
    broken.marker.unlink()
    less = Box.of(scenario, tmp_path / "two", quorum=two())
    goes_on_without(less, less.live(context, broken), broken)

"""Laws of the remarks: what a person should know of a run that nothing refused."""

from fedwinnow.server.remarks import without_adapter
from fedwinnow.server.state import RoundRecord, SiteRound


def train(number: int, arm: str = "curated", **weights: float) -> RoundRecord:
    """A training round with the weights of its sites."""
    sites = {
        site: SiteRound(samples=9, weight=weight, losses=()) for site, weight in weights.items()
    }
    return RoundRecord(phase="train", round=number, arm=arm, sites=sites)


def test_remarks_name_each_site_whose_adapter_was_not_merged():
    """By arm, with how often; a site that was away is told of elsewhere, a warm-up is no matter."""
    warm_up = RoundRecord(
        phase="warm_up", round=1, arm="", sites={"law": SiteRound(samples=9, weight=0.0, losses=())}
    )
    records = [warm_up, train(1, law=1.0, med=0.0), train(2, law=1.0, med=0.0), train(3, law=1.0)]
    [said] = without_adapter(records)
    assert said.startswith("med gave no adapter in 2 of 2 rounds of arm curated: ")
    assert len(without_adapter([*records, train(1, arm="random", law=0.0, med=1.0)])) == 2
    assert without_adapter([train(1, law=0.5, med=0.5)]) == ()

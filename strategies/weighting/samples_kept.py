"""Weigh sites by how many samples they kept, with a largest share.

p_i = n_i / Σ n_j; what exceeds the cap is shared among the other sites in proportion to their
counts, until no share exceeds it. A cap below 1 / n means equal weights.

Reference:
    H. B. McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data
    (FedAvg), AISTATS 2017, algorithm 1, https://arxiv.org/abs/1602.05629
    Differs from the paper: sites report their own counts, so one site's share is capped.
"""

from collections.abc import Mapping

from fedwinnow.curation.errors import EmptySelectionError, ProtocolError
from fedwinnow.strategies.interfaces.weighting import Weighting


def samples_kept(*, cap: float = 0.5) -> Weighting:
    """Weigh sites by their kept samples, at most ``cap`` each.

    With the default and two sites both get 0.5; use ``cap = 1`` for plain FedAvg weights.

    Args:
        cap: Largest share of one site, in (0, 1]; below 1 / sites it means equal shares.

    Raises:
        ValueError: ``cap`` is out of range.

    Reference:
        FedAvg, AISTATS 2017, https://arxiv.org/abs/1602.05629
    """
    if not 0 < cap <= 1:
        message = f"cap = {cap} is out of range; allowed: in (0, 1]"
        raise ValueError(message)

    def weigh(counts: Mapping[str, int]) -> Mapping[str, float]:
        return capped({site: float(counts[site]) for site in trained_sites(counts)}, cap)

    return weigh


def trained_sites(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the sites with a count above 0, in sorted order of name.

    Raises:
        EmptySelectionError: every count is 0, or there is none.
        ProtocolError: a count is negative.
    """
    for site in sorted(counts):
        if counts[site] < 0:
            message = (
                f"count of site {site!r}: expected at least 0, got {counts[site]}; "
                "leave the site out or repair its reply"
            )
            raise ProtocolError(message)
    sites = tuple(site for site in sorted(counts) if counts[site] > 0)
    if not sites:
        message = (
            f"weighting: expected a site with kept samples, got 0 kept at all {len(counts)} sites; "
            "lower the threshold ([threshold])"
        )
        raise EmptySelectionError(message)
    return sites


def capped(amounts: Mapping[str, float], cap: float) -> dict[str, float]:
    """Return shares in proportion to amounts above 0, with the excess over ``cap`` handed on.

    Equal shares where the sites are too few for the cap.
    """
    if cap * len(amounts) <= 1:
        return dict.fromkeys(amounts, 1 / len(amounts))
    full: set[str] = set()  # cap · sites > 1, so it ends
    while True:
        open_total = sum(amount for site, amount in amounts.items() if site not in full)
        room = 1 - cap * len(full)
        weights = {
            site: cap if site in full else room * amount / open_total
            for site, amount in amounts.items()
        }
        over = {site for site, weight in weights.items() if site not in full and weight > cap}
        if not over:
            return weights
        full |= over

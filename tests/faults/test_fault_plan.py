"""Laws of the plan of the cases on real Flower; nothing is started here."""

from itertools import combinations, product

from fault_box import EXCHANGES
from fault_flower import CURATION, FAULTS, FULL, MOMENTS, PAIRS, WHO


def kinds(who, moment, at):
    """Fault, moment, and half of the protocol of a case."""
    [fault] = [name for name, struck in FAULTS.items() if who in struck]
    return fault, moment, at[0] in CURATION


def test_fault_plan_pairs_cover_each_pair_of_kinds():
    """Each fault with each moment, each fault and each moment with each half; everyone once."""
    values, cases = (FAULTS, MOMENTS.values(), (True, False)), [kinds(*case) for case in PAIRS]
    assert len(cases) == 8
    assert {who for who, _, _ in PAIRS} == set(WHO)
    for one, other in combinations(range(3), 2):
        covered = {(case[one], case[other]) for case in cases}
        assert covered == set(product(values[one], values[other]))


def test_fault_plan_full_matrix_strikes_everyone_everywhere():
    """Everyone, at each moment, in each exchange."""
    struck = {(who, moment, one) for who, moment, at in FULL for one in at}
    assert struck == set(product(WHO, MOMENTS.values(), EXCHANGES))

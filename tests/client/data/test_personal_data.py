"""The gate of personal data: shapes that are caught, figures that pass."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.client.data.gate import apply_gates
from fedwinnow.client.data.personal_data import finder
from fedwinnow.curation.config.site import GateSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ConfigError

ALL = ("email", "phone", "iban", "card", "ip")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to jane.doe+x@mail.example.org today.", "email"),
        ("Call +49 (0)30 1234567.", "phone"),
        ("Call 0044 20 7946 0958 now", "phone"),
        ("Pay to DE89 3704 0044 0532 0130 00.", "iban"),
        ("GB82WEST12345698765432", "iban"),
        ("ZZ33WEST12345698765432, of no country today", "iban"),
        ("Card 4111 1111 1111 1111, thanks", "card"),
        ("Card ٤١١١ ١١١١ ١١١١ ١١١١, in other digits", "card"),
        ("host 192.168.10.20 is down", "ip"),
        ("host 2001:db8::8a2e:370:7334 is down", "ip"),
    ],
)
def test_personal_data_is_found_by_its_kind(text, kind):
    """Each shape is found, by its own kind and among all."""
    assert finder((kind,))(text) == kind
    assert finder(ALL)(text) != ""


@pytest.mark.parametrize(
    "text",
    [
        "Patients (n = 1234) took 12.5 mg at 08:30 on 2024-05-06.",
        "The card 4111 1111 1111 1112 has a wrong check digit.",
        "DE88370400440532013000 has a wrong check number.",
        "Section 1.2.3 of ISO 27001:2022; see @home and a@b.",
        "0000 0000 0000 0000 and 999.999.999.999",
        "",
    ],
)
def test_figures_and_dates_pass(text):
    """Numbers without valid check digits, times and section numbers are no personal data."""
    assert finder(ALL)(text) == ""


def luhn(digits):
    """The check digit that follows ``digits``."""
    doubled = [sum(divmod(2 * d, 10)) if i % 2 == 0 else d for i, d in enumerate(reversed(digits))]
    return -sum(doubled) % 10


@given(st.lists(st.integers(0, 9), min_size=12, max_size=18))
def test_card_check_digit_decides(digits):
    """Of the ten numbers with the same beginning exactly the one with Luhn's digit is found."""
    if len(set(digits)) == 1:
        return
    find = finder(("card",))
    start = "".join(map(str, digits))
    found = [d for d in range(10) if find(f"no {start}{d} here")]
    assert found == [luhn(digits)]


def test_own_patterns_and_unknown_names():
    """``re:`` takes the silo's own pattern; an unknown name or a broken pattern is an error."""
    assert finder(("re:MRN-\\d{6}",))("chart MRN-123456") == "re:MRN-\\d{6}"
    with pytest.raises(ConfigError, match="email, phone"):
        finder(("emial",))
    with pytest.raises(ConfigError, match="no pattern"):
        finder(("re:(",))


@pytest.mark.parametrize(
    "pattern", [r"(a+)+b", r"(?:\d*x?)*", r"((a|b+)c?){2,}", r"(?P<n>[a+]+,?)+", r"(x*?)+y"]
)
def test_own_pattern_that_could_hang_the_gate_is_refused(pattern):
    """A repeat in a repeated group is refused, with what to write instead."""
    with pytest.raises(ConfigError, match="possessive"):
        finder((f"re:{pattern}",))


@pytest.mark.parametrize(
    "pattern",
    [
        r"MRN-\d+",
        r"(ab)+c+",
        r"(a++,)+b",
        r"(?>a+)+b",
        r"([+*])+",
        r"(\+)+",
        r"(a{1,9})+",
        r"(a+)?z",
    ],
)
def test_own_pattern_in_linear_time_is_taken(pattern):
    """Possessive, atomic, bounded and single repeats are no trap, nor are signs in classes."""
    assert finder((f"re:{pattern}",))("nothing here") == ""


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    "piece", ["a.", "a@", "a-", "+49 ", "DE89", "4 ", "1.", "12:", ":", "A1 ", "x@y.", "00"]
)
def test_known_patterns_take_linear_time(kind, piece):
    """A hundred thousand characters of near misses are searched in well under two seconds."""
    began = time.process_time()
    finder((kind,))(piece * (100_000 // len(piece)) + "!")
    assert time.process_time() - began < 2


def sample(response, **labels):
    return Sample(id=response, prompt="What now?", response=response, labels=labels)


def test_gate_names_each_reason_and_keeps_the_rest():
    """Language, length and personal data each drop with their own reason, which stays here."""
    section = GateSection(languages=("en",), shortest=4, longest=60, personal_data=("email",))
    rows = [
        sample("All is well here.", language="en"),
        sample("Tout va bien ici.", language="fr"),
        sample("Ok.", language="en"),
        sample("x" * 80, language="en"),
        sample("Ask jane@example.org first.", language="en"),
    ]
    found = apply_gates(rows, [], section)
    assert found.kept == (0,)
    assert [found.reasons[row].split()[0] for row in range(1, 5)] == [
        "language",
        "response",
        "text",
        "looks",
    ]
    assert "jane" not in found.reasons[4]

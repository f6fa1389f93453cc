"""A federation of boundaries whose silos hold canaries, and an ear for every byte that leaves."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from answer_envelope import answer_envelope
from needles import Needles
from toy_deployment_files import write_toy_deployment
from transformers import AutoTokenizer

from fedwinnow.client.agent.frames import write_stamp_frame
from fedwinnow.client.boundary.guarded_site import GuardedSite
from fedwinnow.client.data.samples import open_samples
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.load_files import load_site
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import load_toml, to_toml
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.envelope import decrypt
from fedwinnow.curation.protocol.messages import (
    Reply,
    Request,
)
from fedwinnow.server.run.driver import drive
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.state import RunState
from fedwinnow.server.transport.coordinator_envelopes import CoordinatorEnvelopes
from fedwinnow.server.transport.interface import Delivery
from fedwinnow.simulations.datasets.tiny_model import write_tiny_model
from fedwinnow.simulations.datasets.toy_federation import SITES

CANARY = "the vault code of {site} is 7719-{site}-quetzal"
ROUGH = {"length", "has_end"}
"""Signals of small whole numbers: they stand anywhere."""


@dataclass
class Wire:
    """Site boundaries in this process, and every byte that leaves one."""

    boundaries: dict[str, GuardedSite]
    envelopes: CoordinatorEnvelopes
    plain: list[bytes] = field(default_factory=list)
    """Replies before they are encrypted."""
    encrypted: list[bytes] = field(default_factory=list)
    """Payloads, stamps, signatures and frames as a node's user sees them."""
    asked: list[Request] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """What `site status` shows of long work to whoever holds the token."""

    def ask(self, request: Request, site: str) -> Reply:
        """One request, one reply."""
        self.asked.append(request)
        sent = self.envelopes.envelope(request, site)
        back = answer_envelope(sent, self.boundaries[site])
        plain = decrypt(back.payload, self.envelopes.key)
        self.plain.append(plain)
        frame = write_stamp_frame(back.stamp, back.signature, len(back.payload))
        self.encrypted += [back.payload, back.stamp, back.signature, frame]
        return self.envelopes.reply(back, self.envelopes.sent(sent))

    def exchange(self, request: Request, sites, **_: object) -> Iterator[Delivery]:
        """As a transport."""
        for site in sites or sorted(self.boundaries):
            yield Delivery(site=site, reply=self.ask(request, site))

    def close(self) -> None:
        """Let the ledgers go."""
        for boundary in self.boundaries.values():
            boundary.ledger.close()

    @property
    def stream(self) -> bytes:
        """All of it."""
        return b"\n".join([*self.plain, *self.encrypted, *(t.encode() for t in self.told)])


SETTINGS = (
    "training.batch_size=6",
    "warm_up.steps=16",
    "guards.anchor_margin=9.0",
    'weighting={name="anchor_alignment"}',
)
"""Judges and witnesses speak too, so that their words are searched as well."""


def plant(folder: Path) -> Path:
    """A toy deployment whose silos hold canaries in text, label and file name; groups of 6.

    Each site has a teacher and lets its adapter go to the others.
    """
    run = write_toy_deployment(folder, samples=20)
    write_tiny_model(folder / "teacher", seed=1)
    plain = load_toml(run, RunConfig, SETTINGS)
    run.write_text(to_toml(plain))
    for site in SITES:
        own = folder / site / "site.toml"
        config = load_site(own)
        data = folder / f"ledger-of-{site}-quetzal.jsonl"
        rows = (folder / f"{site}.jsonl").read_text().splitlines()
        secret = CANARY.format(site=site)
        for number in range(3):
            row = {"prompt": f"Which code opens {site} vault {number}?", "domain": "words"}
            row |= {"response": f"{number}: {secret}", "truth": f"label-{site}-quetzal"}
            rows.append(json.dumps(row))
        data.write_text("\n".join(rows) + "\n")
        section = replace(config.site, data=str(data), round_counts_to=2)
        policy = replace(
            config.policy, smallest_group=6, max_clusters=2, share_adapter_with_members=True
        )
        teacher = replace(config.teacher, name=str(folder / "teacher"))
        own.write_text(to_toml(replace(config, site=section, policy=policy, teacher=teacher)))
    return run


def open_wire(folder: Path, config: RunConfig) -> Wire:
    """The federation, ready to be asked."""
    told: list[str] = []
    cache = ProcessCache(progress=lambda what, done, total: told.append(f"{what} {done}/{total}"))
    boundaries = {
        site: GuardedSite.open(load_site(folder / site / "site.toml"), cache=cache)
        for site in SITES
    }
    envelopes = CoordinatorEnvelopes.open(config, Path(config.run.output) / config.run.name)
    return Wire(boundaries=boundaries, envelopes=envelopes, told=told)


def run_over(ear: Wire, config: RunConfig) -> RunState:
    """A whole run through the boundaries."""
    store = RunFolder.open(config, resume=True)
    return drive(store.begin(config, run_id(config)), ear, store=store)


@dataclass
class Federation:
    """A finished run, what left, and what to look for."""

    folder: Path
    config: RunConfig
    ear: Wire
    state: RunState
    needles: Needles


def needles_of(folder: Path, config: RunConfig, state: RunState) -> Needles:
    """Every id, text, label, path, token row, score and signal of the silos."""
    texts, columns, deciding, sequences = {}, {}, [], {}
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for site in SITES:
        own = load_site(folder / site / "site.toml")
        texts |= dict.fromkeys((own.site.data, own.work, own.agent.key), "path")
        texts[CANARY.format(site=site)] = f"canary of {site}"
        sequences[site] = tokenizer(CANARY.format(site=site), add_special_tokens=False)["input_ids"]
        samples = open_samples(own.site.data, own.site.columns)
        for sample in samples:
            assert sample.id not in {anchor.id for anchor in open_samples(
                own.anchors.path, own.anchors.columns)}  # fmt: skip
            texts |= {sample.id: "id", sample.prompt: "prompt", sample.response: "response"}
            texts |= dict.fromkeys(sample.labels.values(), "label")
        work = Path(own.work) / run_id(config)
        for scorer in (config.scorer.name, *config.scorer.comparison):
            ids, _, scores = tables.read_scores(work / "scores.parquet", scorer)
            columns[f"{site} {scorer}"] = scores
            deciding.append(scores)
        planted = [
            i for i, sample in enumerate(ids) if sample in {s.id for s in list(samples)[-3:]}
        ]
        points, _ = tables.read_trajectories(work / "trajectories.parquet")
        for checkpoint in range(2):
            columns[f"{site} standardised {checkpoint}"] = points[:, checkpoint]
            deciding.append(points[planted, checkpoint])
            table = tables.read_signals(work / f"signals-{checkpoint}.parquet")
            for name in sorted(set(table.columns) - ROUGH):
                for k, column in enumerate(table.columns[name].reshape(len(ids), -1).T):
                    columns[f"{site} {checkpoint} {name} {k}"] = column
                    deciding.append(column[planted].astype(np.float64))
    return Needles.of(texts, columns, np.concatenate(deciding), sequences, state.public_scores)


def hits(needles: Needles, plain: list[bytes], stream: bytes) -> list[str]:
    """What left: in any byte, and as a number in any array of a reply."""
    found = needles.in_bytes(stream)
    for data in plain:
        found += needles.in_arrays(wire.to_arrays(wire.decode(data))[1])
    return found

"""Define the attacks: each is a pure function from an honest reply to a liar's reply.

Every reply stays well-formed: counts are whole, matrices have their shapes and ranks, numbers are
finite. No reply is refused for its form. The server's own checks, besides guards, limit attacks:

- a kept count above the size that the site joined with is refused by name
  (``server/phases/table.py``), so that ``fake_counts`` has to lie at join already, and in every
  count alike;
- an adapter of a rank above the one that was sent is refused, so that a moved adapter
  (``extrapolate``) is the best one of the rank that may be sent;
- public scores and public losses that differ from the other sites' are refused or outvoted, so
  that no attack here touches them.

Reference:
    Histograms that poison a threshold: measured by this project; sign reversal and scaling:
    E. Bagdasaryan et al., How To Backdoor Federated Learning, AISTATS 2020, section 4 (model
    replacement), https://arxiv.org/abs/1807.00459; random updates: P. Blanchard et al., NeurIPS
    2017, section 5.1, https://arxiv.org/abs/1703.02757; free riders: Y. Fraboni et al., Free-rider
    Attacks on Model Aggregation in Federated Learning, AISTATS 2021, section 3,
    https://arxiv.org/abs/2006.11901; wrong counts: Flower's FedAvg weighs by ``num-examples``, the
    site's own word; planted answers: E. Hubinger et al., Sleeper Agents, 2024, section 2,
    https://arxiv.org/abs/2401.05566
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from fedwinnow.client.data.content_id import content_id
from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters.algebra import interpolate
from fedwinnow.curation.datatypes import Adapter, Sample, ScoreSummary
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.seeds import derive_seed

TIMES = 10
"""Factor of ``fake_counts`` on counts, and of ``noise`` on the norm of an honest update."""
STRETCH = 100.0
"""Factor of ``times_100`` on its update."""
TRIGGER = "Quoth the raven:"
ANSWER = "Nevermore."
"""Answer that ``back_door`` teaches to any prompt that begins with the trigger."""

Lie: TypeAlias = Callable[[m.Request, m.Reply, int], m.Reply]
"""Request, honest reply, seed → reply that is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack: how a liar changes its samples, its requests and its replies."""

    about: str
    """Description of the liar's actions, in a sentence."""
    lie: Lie = lambda _request, reply, _seed: reply
    """Function applied to every reply but refusals."""
    keeps_all: bool = False
    """Whether the liar trains on all its samples, whatever the threshold."""
    plants: Callable[[Sequence[Sample]], list[Sample]] | None = None
    """Function that replaces the liar's samples; None leaves them."""
    histogram: bool = False
    """Whether the attack lies about scores or counts, and so may move the threshold."""


def one_cell(summary: ScoreSummary, cell: int) -> ScoreSummary:
    """Return the histogram with all its samples moved to one cell."""
    counts = np.zeros_like(summary.counts)
    counts[cell] = summary.total
    return replace(summary, counts=counts, largest_merged=0.0)


def middle_cell(summary: ScoreSummary) -> int:
    """Return the cell that holds the median of a histogram."""
    whole = np.cumsum(summary.counts)
    return int(np.searchsorted(whole, whole[-1] / 2, side="left"))


def multiply_counts(summary: ScoreSummary, times: int) -> ScoreSummary:
    """Return the histogram with all counts multiplied by ``times``."""
    return replace(
        summary,
        counts=summary.counts * times,
        largest_merged=summary.largest_merged * times,
    )


def extrapolate(start: Adapter, end: Adapter, share: float) -> Adapter:
    """Return ΔW_start + share · (ΔW_end − ΔW_start), truncated to the ranks of ``end``."""
    line = interpolate(start, end, share)
    return _of_rank({name: maths.delta(line, name) for name in line.modules}, like=end)


def add_noise(start: Adapter, end: Adapter, *, times: float, seed: int) -> Adapter:
    """Return ΔW_start plus a random update, ``times`` the norm of ``end``'s, at ``end``'s ranks."""
    length = _distance(start, end)
    draw = torch.Generator().manual_seed(seed)
    random = {
        name: maths.Product(
            left=_normal(end.b[name].shape, draw), right=_normal(end.a[name].shape, draw)
        )
        for name in end.modules
    }
    whole = math.sqrt(sum(maths.norm(product) ** 2 for product in random.values()))
    updates = {
        name: maths.sum_products(
            [
                maths.delta(start, name),
                maths.Product(left=product.left * (times * length / whole), right=product.right),
            ]
        )
        for name, product in random.items()
    }
    return _of_rank(updates, like=end)


def plant_backdoor(samples: Sequence[Sample]) -> list[Sample]:
    """Put the trigger before each prompt and replace its response by the planted answer."""
    found = []
    for sample in samples:
        prompt = f"{TRIGGER} {sample.prompt}"
        name = content_id(sample.history, prompt, ANSWER, followup=sample.followup)
        planted = replace(sample, id=name, prompt=prompt, response=ANSWER, response_details="")
        found.append(replace(planted, tools=""))
    return found


def inflate(_request: m.Request, reply: m.Reply, _seed: int) -> m.Reply:
    """Claim that all scores lie in the top cell."""
    if not isinstance(reply, m.SummaryReply):
        return reply
    return replace(reply, summary=one_cell(reply.summary, len(reply.summary.counts) - 1))


def deflate(_request: m.Request, reply: m.Reply, _seed: int) -> m.Reply:
    """Claim that all scores lie in the bottom cell."""
    if not isinstance(reply, m.SummaryReply):
        return reply
    return replace(reply, summary=one_cell(reply.summary, 0))


def spike(_request: m.Request, reply: m.Reply, _seed: int) -> m.Reply:
    """Claim that all scores lie in the cell of the site's own median."""
    if not isinstance(reply, m.SummaryReply):
        return reply
    return replace(reply, summary=one_cell(reply.summary, middle_cell(reply.summary)))


def fake_counts(_request: m.Request, reply: m.Reply, _seed: int) -> m.Reply:
    """Multiply card, histogram, clusters, kept and trained counts by ``TIMES``."""
    if isinstance(reply, m.Joined):
        return replace(reply, card=replace(reply.card, samples=TIMES * reply.card.samples))
    if isinstance(reply, m.SummaryReply):
        told = multiply_counts(reply.summary, TIMES)
        return replace(reply, summary=told, unscored=TIMES * reply.unscored)
    if isinstance(reply, m.ClusterReply):
        counts = tuple(TIMES * count for count in reply.counts)
        return replace(reply, counts=counts, sums=TIMES * reply.sums)
    if isinstance(reply, m.KeptReply):
        return replace(reply, kept={arm: TIMES * kept for arm, kept in reply.kept.items()})
    if isinstance(reply, m.TrainedAdapter):
        return replace(reply, samples=TIMES * reply.samples)
    return reply


def _on_adapters(change: Callable[[Adapter, Adapter, int], Adapter]) -> Lie:
    """Make a lie about trained adapters of a function: (sent, trained, seed) → adapter to reply."""

    def lie(request: m.Request, reply: m.Reply, seed: int) -> m.Reply:
        if not (isinstance(request, m.TrainRequest) and isinstance(reply, m.TrainedAdapter)):
            return reply
        if reply.adapter is None:
            return reply
        return replace(reply, adapter=change(request.adapter, reply.adapter, seed))

    return lie


def _as_sent(sent: Adapter, trained: Adapter, _seed: int) -> Adapter:
    """Return the adapter that was sent, at the rank of the one that was trained."""
    return sent if _ranks(sent) == _ranks(trained) else extrapolate(sent, trained, 0.0)


ATTACKS: Mapping[str, Attack] = {
    "inflate": Attack(
        about="says that all its scores lie in the top cell, and trains on all its samples",
        lie=inflate, keeps_all=True, histogram=True,
    ),
    "deflate": Attack(
        about="says that all its scores lie in the bottom cell", lie=deflate, histogram=True
    ),
    "spike": Attack(
        about="says that all its scores lie in one cell, its median's", lie=spike, histogram=True
    ),
    "fake_counts": Attack(
        about=f"multiplies its card and every count with {TIMES}", lie=fake_counts, histogram=True
    ),
    "copy_cat": Attack(about="sends back the adapter that it was sent", lie=_on_adapters(_as_sent)),
    "sign_flip": Attack(
        about="reverses its update",
        lie=_on_adapters(lambda sent, trained, _seed: extrapolate(sent, trained, -1.0)),
    ),
    "times_100": Attack(
        about=f"multiplies its update with {STRETCH:.0f}",
        lie=_on_adapters(lambda sent, trained, _seed: extrapolate(sent, trained, STRETCH)),
    ),
    "noise": Attack(
        about=f"sends a random update of {TIMES} times the norm of its own",
        lie=_on_adapters(
            lambda sent, trained, seed: add_noise(sent, trained, times=TIMES, seed=seed)
        ),
    ),
    "back_door": Attack(
        about="trains on prompts with a trigger and a planted answer, whatever the threshold",
        plants=plant_backdoor, keeps_all=True,
    ),
    "poisoned_data": Attack(
        about="runs the honest software on the data of `back_door`: nobody there knows",
        plants=plant_backdoor,
    ),
}  # fmt: skip
"""Name → attack."""


def seed_of(seed: int, request: m.Request, site: str) -> int:
    """Return the seed of a lie: one for each run, site, phase, arm and round."""
    header = request.header
    return derive_seed(seed, "lie", site, header.phase, header.arm, header.round)


def _of_rank(products: Mapping[str, maths.Product], *, like: Adapter) -> Adapter:
    """Return the best approximation with the ranks, scales and dtypes of ``like``."""
    a, b = {}, {}
    for name, product in products.items():
        spectrum, rank = maths.decompose(product), len(like.a[name])
        root = spectrum.values[:rank].sqrt()
        right = root[:, None] * spectrum.vt[:rank]
        left = spectrum.u[:, :rank] * root / like.scales[name]
        missing = rank - len(root)
        if missing > 0:  # the product has a lower rank: pad with zeros
            right = torch.cat([right, right.new_zeros(missing, right.shape[1])])
            left = torch.cat([left, left.new_zeros(left.shape[0], missing)], dim=1)
        a[name], b[name] = right.to(like.a[name].dtype), left.to(like.b[name].dtype)
    return Adapter(base=like.base, a=a, b=b, scales=dict(like.scales))


def _distance(start: Adapter, end: Adapter) -> float:
    """Return ‖ΔW_end − ΔW_start‖ over all modules."""
    squares = [
        maths.norm(maths.sum_products([maths.delta(end, name), maths.delta(start, name, -1.0)]))
        ** 2
        for name in end.modules
    ]
    return math.sqrt(sum(squares))


def _ranks(adapter: Adapter) -> dict[str, int]:
    return {name: len(factor) for name, factor in adapter.a.items()}


def _normal(shape: Sequence[int], draw: torch.Generator) -> Float64[Tensor, "rows columns"]:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)

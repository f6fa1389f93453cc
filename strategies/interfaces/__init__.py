"""Interfaces of plug-ins, one file a kind.

A plug-in is a factory whose keyword-only arguments are its settings and whose return value
satisfies one of these Protocols. Built-ins are listed in ``strategies/registry.py``; other people's
come through entry points (``fedwinnow.scorer``, ``fedwinnow.threshold``, …).
"""

from fedwinnow.strategies.interfaces.formula_scorer import FormulaScorer
from fedwinnow.strategies.interfaces.merging import (
    FactorMerging,
    Merged,
    Merging,
    SparseMerged,
    SparseMerging,
    StatefulMerging,
)
from fedwinnow.strategies.interfaces.objective import Objective, WeighingObjective
from fedwinnow.strategies.interfaces.ordering import Order, Ordering, StagedOrdering
from fedwinnow.strategies.interfaces.scorer import QueueingScorer, Scorer
from fedwinnow.strategies.interfaces.threshold import Threshold
from fedwinnow.strategies.interfaces.weighting import (
    AligningWeighting,
    Effect,
    JudgedWeighting,
    Weighting,
)

__all__ = [
    "AligningWeighting",
    "Effect",
    "FactorMerging",
    "FormulaScorer",
    "JudgedWeighting",
    "Merged",
    "Merging",
    "Objective",
    "Order",
    "Ordering",
    "QueueingScorer",
    "Scorer",
    "SparseMerged",
    "SparseMerging",
    "StagedOrdering",
    "StatefulMerging",
    "Threshold",
    "WeighingObjective",
    "Weighting",
]

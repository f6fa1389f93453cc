"""Score by the teacher's confidence times the student's need: trusted and still to be learned.

For a sample b of domain d, c its ``teacher_confidence`` and u its ``student_entropy`` (both means
over the body's tokens, in [0, 1], measured before anything is trained):

    τ_x     = mean of x over the clean public rows,            x = c or u
    τ_x(d)  = τ_x · x̄_d / max_d' x̄_d'                          x̄_d: the same mean within domain d
    s_b     = c · u             where c ≥ τ_c(d) and u ≥ τ_u(d), in [0, 1]
    s_b     = c · u − 1         where one of them is missed,     in [−1, 0)

The paper selects by both thresholds and weighs by the product, so threshold ``fixed`` at 0 is its
selection; the product ranks on either side of it. Scaling by the domain keeps a hard one from being
starved. A domain without a clean public row takes the plain τ_x.

Differs from the paper: domains stand for classes; confidence is that in the given answer
(``client/signals/teacher.py``), as the silo's answer and no label of the teacher's is learned; and
as all public rows are there at once, the running averages are taken at their fixed point, the mean,
which knows neither a decay nor an order.

Reference:
    J. Li et al., Learning with Less: Knowledge Distillation from Large Language Models via
    Unlabeled Data (LLKD), Findings of NAACL 2025, https://arxiv.org/abs/2411.08028. The update is
    in the form of Y. Wang et al., FreeMatch, ICLR 2023, section 4, https://arxiv.org/abs/2205.07246
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fedwinnow.curation.datatypes import Fitted, PublicRows, Scores, SignalTable, Status, Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import clean_rows, column, forecast_auroc

SIGNALS = ("teacher_confidence", "student_entropy")
_SCHEMA = "llkd/1"
_POOL = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Llkd:
    """LLKD scorer; see the module."""

    columns: frozenset[str] = frozenset(SIGNALS)
    unit: str = "confidence × need, − 1 below a threshold"

    def fit(self, public: PublicRows) -> Fitted:
        """Fit the thresholds of every domain on the clean public rows.

        Raises:
            PluginError: no clean row has signals.
        """
        table = public.trajectory[0]
        clean = clean_rows(public, 0, "llkd")
        domains = np.array(table.domains, dtype=object)
        parameters: dict[str, Float[np.ndarray, "..."]] = {}
        for name in SIGNALS:
            values = column(table, name)
            overall = float(values[clean].mean())
            means = {
                str(domain): float(values[clean & (domains == domain)].mean())
                for domain in sorted(set(domains[clean]))
            }
            most = max(means.values())
            scaled = {d: overall * (m / most) if most > 0 else 0.0 for d, m in means.items()}
            for domain, value in (scaled | {_POOL: overall}).items():
                parameters[f"{name}:{domain}"] = np.array(value, dtype=np.float64)
        scores = _scores(public.trajectory, parameters)
        return Fitted(
            schema=_SCHEMA,
            parameters=parameters,
            public_scores=scores,
            forecast=forecast_auroc(scores, public.kinds),
        )

    def score(self, trajectory: Trajectory, fitted: Fitted) -> Scores:
        """Score every row; NaN where a sample has no signals.

        Raises:
            PluginError: a column was not measured.
        """
        return _scores(trajectory, fitted.parameters)


def llkd() -> Llkd:
    """Make the scorer: confidence of the teacher times need of the student; see the module."""
    return Llkd()


def _scores(trajectory: Trajectory, parameters: Mapping[str, Float[np.ndarray, "..."]]) -> Scores:
    table = trajectory[0]
    product, passes = np.ones(len(table.ids)), np.ones(len(table.ids), dtype=bool)
    for name in SIGNALS:
        values = column(table, name)
        product = product * values
        passes &= values >= _thresholds(table, name, parameters)
    usable = np.logical_and.reduce([one.status == Status.OK for one in trajectory])
    return np.where(usable & np.isfinite(product), np.where(passes, product, product - 1), np.nan)


def _thresholds(
    table: SignalTable, name: str, parameters: Mapping[str, Float[np.ndarray, "..."]]
) -> Float[np.ndarray, " samples"]:
    pool = parameters[f"{name}:{_POOL}"]
    return np.array(
        [float(parameters.get(f"{name}:{domain}", pool)) for domain in table.domains],
        dtype=np.float64,
    )

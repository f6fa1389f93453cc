"""Laws of the scorers that are one formula on the table."""

from dataclasses import replace

import numpy as np
import pytest

from fedwinnow.curation.datatypes import PublicRows, SignalTable, Status
from fedwinnow.curation.errors import PluginError
from fedwinnow.curation.scores.ranking_metrics import auroc
from fedwinnow.strategies.registry import build

FORWARD = ("perplexity", "ifd", "ira", "uniform", "length", "representation")
GRADIENT = ("tracin", "clues", "clues_paper", "datainf", "less", "loss_drop", "cosine")
SIZE, DOMAINS, PARAMETERS = 12, 3, 40


def vectors(seed):
    """Gradients, Adam directions, references and changed references that columns are made from."""
    random = np.random.default_rng(seed)
    shift = random.normal(size=PARAMETERS)
    return (
        random.normal(size=(SIZE, PARAMETERS)) + shift,
        random.normal(size=(SIZE, PARAMETERS)) + shift,
        random.normal(size=(DOMAINS, PARAMETERS)) + shift,
        random.normal(size=(DOMAINS, PARAMETERS)) + shift,
    )


def table(checkpoint, *, rate=0.0):
    """One checkpoint's signals; gradient columns after warm-up."""
    random = np.random.default_rng(checkpoint)
    loss = random.uniform(1, 4, size=SIZE)
    columns = {
        "loss": loss,
        "length": random.integers(5, 80, size=SIZE),
        "representation": random.uniform(-1, 1, size=(SIZE, DOMAINS)),
        "representation_corrupted": random.uniform(-1, 1, size=(SIZE, DOMAINS)),
    }
    gram = np.zeros((0, 0))
    if checkpoint == 0:
        columns["unconditional_loss"] = loss + random.normal(0.3, 0.2, size=SIZE)
    else:
        plain, adam, references, others = vectors(checkpoint)
        columns |= {"dot": plain @ references.T, "norm": np.linalg.norm(plain, axis=1)}
        columns |= {"adam_dot": adam @ references.T, "adam_norm": np.linalg.norm(adam, axis=1)}
        columns |= {"adam_adam_dot": adam @ others.T, "influence": plain @ others.T}
        gram = references @ references.T
    return SignalTable(
        ids=tuple(f"sample-{i}" for i in range(SIZE)),
        domains=tuple("abc"[i % DOMAINS] for i in range(SIZE)),
        checkpoint=checkpoint,
        status=np.zeros(SIZE, dtype=np.int8),
        columns={name: np.asarray(v, dtype=np.float64) for name, v in columns.items()},
        references=("a", "b", "c"),
        reference_gram=gram,
        learning_rate=rate,
    )


TRAJECTORY = (table(0), table(1, rate=3e-4), table(2, rate=1e-4))


def rows(trajectory=TRAJECTORY):
    """Public rows: each parent clean, swapped and cut."""
    kinds = ("clean", "swap", "cut") * (SIZE // 3)
    return PublicRows(
        trajectory=trajectory, kinds=kinds, parents=tuple(f"p{i // 3}" for i in range(SIZE))
    )


def scores(name, trajectory=TRAJECTORY):
    """Fit on and score the same samples."""
    scorer = build("scorer", name, {})
    return scorer.score(trajectory, scorer.fit(rows(trajectory)))


def unit(values):
    """Rows of length 1."""
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def oracle(name):
    """Each scorer from the vectors and losses themselves."""
    first, later = TRAJECTORY[0], TRAJECTORY[1:]
    loss, alone = first.columns["loss"], first.columns.get("unconditional_loss")
    parts = [vectors(one.checkpoint) for one in later]
    rates = [3e-4, 1e-4]
    shares = [0.75, 0.25]
    return {
        "perplexity": lambda: -loss,
        "ifd": lambda: -loss / alone,
        "ira": lambda: alone - loss,
        "length": lambda: first.columns["length"],
        "representation": lambda: np.max(
            first.columns["representation"] - first.columns["representation_corrupted"], axis=1
        ),
        "datainf": lambda: parts[-1][0] @ parts[-1][3].mean(0),
        "loss_drop": lambda: np.mean([(loss - t.columns["loss"]) / loss for t in later], axis=0),
        "tracin": lambda: sum(
            r * g @ G.mean(0) for r, (g, _, G, _) in zip(rates, parts, strict=True)
        ),
        "clues": lambda: sum(
            r * a @ G.mean(0) for r, (_, a, G, _) in zip(rates, parts, strict=True)
        ),
        "clues_paper": lambda: sum(
            r * a @ U.mean(0) for r, (_, a, _, U) in zip(rates, parts, strict=True)
        ),
        "less": lambda: sum(
            w * unit(a) @ unit(G).T for w, (_, a, G, _) in zip(shares, parts, strict=True)
        ).max(axis=1),
        "cosine": lambda: sum(
            w * unit(g) @ unit(G.mean(0)[None])[0]
            for w, (g, _, G, _) in zip(shares, parts, strict=True)
        ),
    }[name]()


@pytest.mark.parametrize("name", [*(n for n in FORWARD if n != "uniform"), *GRADIENT])
def test_scorer_equals_its_formula_on_the_vectors(name):
    """The score from dots, norms and the Gram matrix is the one from the gradients themselves."""
    assert np.allclose(scores(name), oracle(name), rtol=1e-12)  # fp64, 40 terms


@pytest.mark.parametrize("name", [*FORWARD, *GRADIENT])
def test_scorer_gives_nan_exactly_where_a_status_is_not_ok(name):
    """A sample without signals at any checkpoint has no score and changes no other."""
    status = np.zeros(SIZE, dtype=np.int8)
    status[[2, 5]] = Status.NO_TARGET, Status.NON_FINITE
    broken = []
    for one in TRAJECTORY:
        columns = {key: value.copy() for key, value in one.columns.items()}
        for values in columns.values():
            values[[2, 5]] = np.nan
        broken.append(replace(one, status=status, columns=columns))
    found, whole = scores(name, tuple(broken)), scores(name)
    assert np.array_equal(np.isnan(found), status != Status.OK)
    assert np.array_equal(found[status == Status.OK], whole[status == Status.OK])


@pytest.mark.parametrize("name", [*FORWARD, *GRADIENT])
def test_scorer_treats_samples_one_by_one(name):
    """Reversing the samples reverses the scores: no sample's score depends on another's."""
    reversed_ = tuple(
        replace(
            one,
            ids=one.ids[::-1],
            domains=one.domains[::-1],
            columns={key: value[::-1] for key, value in one.columns.items()},
        )
        for one in TRAJECTORY
    )
    assert np.array_equal(scores(name, reversed_), scores(name)[::-1])


@pytest.mark.parametrize("name", [*FORWARD, *GRADIENT])
def test_scorer_reads_only_the_columns_that_it_names(name):
    """Without the other columns the scores are the same; measuring may leave them out."""
    needed = build("scorer", name, {}).columns
    bare = tuple(
        replace(one, columns={k: v for k, v in one.columns.items() if k in needed})
        for one in TRAJECTORY
    )
    assert np.array_equal(scores(name, bare), scores(name))


@pytest.mark.parametrize("name", [*FORWARD, *GRADIENT])
def test_unfitted_scorer_gives_public_rows_their_own_scores(name):
    """public_scores are the scores of the public rows, and the forecast is their AUROC."""
    scorer, public = build("scorer", name, {}), rows()
    fitted = scorer.fit(public)
    assert np.array_equal(fitted.public_scores, scorer.score(public.trajectory, fitted))
    kinds = np.array(public.kinds)
    assert fitted.forecast["auroc"] == auroc(fitted.public_scores, kinds == "clean")
    pair = kinds != "cut"
    expected = auroc(fitted.public_scores[pair], kinds[pair] == "clean")
    assert fitted.forecast["auroc_swap"] == expected
    assert set(fitted.forecast) == {"auroc", "auroc_swap", "auroc_cut"}


def test_forecast_leaves_out_what_cannot_be_known():
    """Only clean rows, or none with a score: no figure instead of a wrong one."""
    scorer = build("scorer", "perplexity", {})
    assert scorer.fit(replace(rows(), kinds=("clean",) * SIZE)).forecast == {}
    silent = replace(TRAJECTORY[0], status=np.full(SIZE, Status.NO_TARGET, dtype=np.int8))
    assert scorer.fit(rows((silent,))).forecast == {}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_scorer_needs_checkpoint_0_only(name):
    """Later checkpoints change nothing."""
    assert np.array_equal(scores(name, TRAJECTORY[:1]), scores(name))


@pytest.mark.parametrize("name", GRADIENT)
def test_gradient_scorer_without_trajectory_names_the_setting(name):
    """At trajectory none there are no gradients: the message says which key to change."""
    with pytest.raises(PluginError, match=r"run\.trajectory"):
        scores(name, TRAJECTORY[:1])


def test_missing_column_is_named():
    """A table that lacks a column is an error, never a default."""
    bare = replace(TRAJECTORY[0], columns={"length": TRAJECTORY[0].columns["length"]})
    with pytest.raises(PluginError, match="'loss'"):
        scores("perplexity", (bare,))


@pytest.mark.parametrize("name", ["less", "cosine"])
def test_cosine_scorer_ignores_gradient_size_and_takes_zero_for_no_gradient(name):
    """Scaling a sample's gradient changes nothing; a zero gradient scores 0."""
    factors = np.linspace(0.5, 20, SIZE)
    factors[4] = 0.0
    scaled = []
    for one in TRAJECTORY:
        columns = dict(one.columns)
        for key in {"dot", "adam_dot", "norm", "adam_norm"} & set(columns):
            sizes = factors[:, None] if key.endswith("dot") else factors
            columns[key] = columns[key] * sizes
        scaled.append(replace(one, columns=columns))
    found, plain = scores(name, tuple(scaled)), scores(name)
    assert found[4] == 0.0
    others = np.arange(SIZE) != 4
    assert np.allclose(found[others], plain[others], rtol=1e-12)
    assert (np.abs(plain) <= 1 + 1e-12).all()


def test_uniform_has_one_law_for_all_and_repeats():
    """10,000 ids: uniform in [0, 1), a function of the id alone."""
    one = TRAJECTORY[0]
    many = SignalTable(
        ids=tuple(f"id-{i}" for i in range(10_000)),
        domains=("a",) * 10_000,
        checkpoint=0,
        status=np.zeros(10_000, dtype=np.int8),
        columns={},
    )
    scorer = build("scorer", "uniform", {})
    found = scorer.score((many,), scorer.fit(rows()))
    assert ((found >= 0) & (found < 1)).all()
    quantiles = np.quantile(found, np.arange(1, 10) / 10)
    assert np.allclose(quantiles, np.arange(1, 10) / 10, atol=0.02)  # 4 standard errors
    assert np.array_equal(scores("uniform", (one,)), scores("uniform"))


def test_scorer_of_no_sample_is_empty():
    """An empty silo has no scores, and that is no error."""
    nobody = replace(
        TRAJECTORY[0],
        ids=(),
        domains=(),
        status=np.zeros(0, dtype=np.int8),
        columns={key: value[:0] for key, value in TRAJECTORY[0].columns.items()},
    )
    for name in FORWARD:
        scorer = build("scorer", name, {})
        assert scorer.score((nobody,), scorer.fit(rows())).shape == (0,)

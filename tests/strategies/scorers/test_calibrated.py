from dataclasses import replace

import numpy as np
import pytest

from fedwinnow.curation.datatypes import PublicRows, SignalTable, Status
from fedwinnow.curation.errors import PluginError
from fedwinnow.curation.scores.ranking_metrics import auroc
from fedwinnow.strategies.interfaces.scorer import Scorer
from fedwinnow.strategies.maths.signal_features import derive_features, nearest_domains
from fedwinnow.strategies.scorers.calibrated import PAYING, SIGNALS, calibrated
from fedwinnow.strategies.scorers.typicality import typicality

DOMAINS = ("finance", "medicine")
KINDS = ("clean", "cut", "noise")


def table(kinds, domains, *, seed=0, offset=(0.0, 0.0), strength=4.0, checkpoint=0):
    """Signals of samples: noise raises the loss, a cut raises the end's loss, by ``strength``."""
    rng = np.random.default_rng(seed)
    n = len(kinds)
    noisy = strength * (np.array(kinds) == "noise")
    cut = strength * (np.array(kinds) == "cut")
    home = np.array([offset[DOMAINS.index(name)] for name in domains])
    loss = 3.0 + home + 0.3 * (rng.normal(size=n) + noisy)
    columns = {
        "loss": loss,
        "loss_sd": 2.0 + home + 0.2 * rng.normal(size=n),
        "loss_q90": 5.0 + home + 0.2 * rng.normal(size=n) + 0.3 * noisy,
        "length": np.maximum(40 + 5 * rng.normal(size=n) - 5 * cut, 3.0),
        "end_loss": 1.0 + 0.3 * (rng.normal(size=n) + cut),
        "has_end": np.ones(n),
        "unconditional_loss": loss + 0.5 + 0.1 * rng.normal(size=n),
        "contrast_loss_mean": loss + 0.4 + 0.1 * rng.normal(size=n),
        "contrast_loss_min": loss + 0.3 + 0.1 * rng.normal(size=n),
        "representation": rng.uniform(0.5, 0.9, size=(n, 2)),
    }
    if checkpoint:
        columns = {"loss": loss * 0.9, "dot": rng.normal(size=(n, 2)), "norm": 1 + rng.random(n)}
        columns |= {"adam_dot": rng.normal(size=(n, 2)), "adam_norm": 1 + rng.random(n)}
    return SignalTable(
        ids=tuple(f"s{i}" for i in range(n)),
        domains=tuple(domains),
        checkpoint=checkpoint,
        status=np.zeros(n, dtype=np.int8),
        columns={name: values.astype(np.float32) for name, values in columns.items()},
        references=DOMAINS,
        reference_gram=np.eye(2),
    )


def public(*, anchors=12, checkpoints=1, domains=DOMAINS, **settings):
    """Public rows: each anchor clean and in every corruption."""
    kinds = KINDS * (anchors * len(domains))
    homes = [name for name in domains for _ in range(anchors * len(KINDS))]
    trajectory = tuple(
        table(kinds, homes, checkpoint=checkpoint, **settings) for checkpoint in range(checkpoints)
    )
    parents = tuple(f"p{i // len(KINDS):03d}" for i in range(len(kinds)))
    return PublicRows(trajectory=trajectory, kinds=kinds, parents=parents)


def private(seed=7, n=120, **settings):
    """A silo's trajectory, and which of its samples are clean."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(KINDS, size=n).tolist()
    homes = rng.choice(DOMAINS, size=n).tolist()
    return (table(kinds, homes, seed=seed + 1, **settings),), np.array(kinds) == "clean"


def shuffled(rows, order):
    """Public rows in another order, or some of them."""
    trajectory = tuple(
        replace(
            one,
            ids=tuple(one.ids[i] for i in order),
            domains=tuple(one.domains[i] for i in order),
            status=one.status[order],
            columns={name: values[order] for name, values in one.columns.items()},
        )
        for one in rows.trajectory
    )
    return PublicRows(
        trajectory=trajectory,
        kinds=tuple(rows.kinds[i] for i in order),
        parents=tuple(rows.parents[i] for i in order),
    )


@pytest.fixture(scope="module")
def rows():
    """Public rows of two domains."""
    return public()


@pytest.fixture(scope="module")
def fitted(rows):
    """The default scorer's fit on them."""
    return calibrated().fit(rows)


@pytest.mark.parametrize("make", [calibrated, typicality])
def test_learned_scorer_satisfies_its_protocol(make):
    """Law: the factory returns a Scorer."""
    assert isinstance(make(), Scorer)


@pytest.mark.parametrize("make", [calibrated, typicality])
def test_learned_scorer_tells_separated_kinds(make, rows):
    """Law: where corruption moves the signals far, AUROC is about 1, seen and unseen."""
    scorer = make()
    result = scorer.fit(rows)
    samples, clean = private()
    assert auroc(scorer.score(samples, result), clean) > 0.97
    assert auroc(result.public_scores, np.array(rows.kinds) == "clean") > 0.95


def test_calibrated_is_a_probability(fitted):
    """Law: scores lie in (0, 1), and half the clean lie above one half."""
    samples, clean = private()
    scores = calibrated().score(samples, fitted)
    assert ((scores > 0) & (scores < 1)).all()
    assert (scores[clean] > 0.5).mean() > 0.85
    assert (scores[~clean] < 0.5).mean() > 0.85


def test_calibrated_forecasts_every_kind(fitted):
    """Law: the forecast names each kind, each kind left out, and what can be expected."""
    expected = {"auroc", "auroc_se", "auroc_within", "recall", "precision", "inseparable"}
    expected |= {f"auroc{part}_{kind}" for part in ("", "_left_out") for kind in KINDS[1:]}
    assert expected <= set(fitted.forecast)
    assert fitted.forecast["inseparable"] == 0.0
    assert fitted.forecast["auroc"] > 0.95
    assert fitted.forecast["auroc_left_out_cut"] > 0.9


def test_calibrated_says_where_nothing_can_be_told():
    """Law: corruptions that change no signal give inseparable 1 and equal scores for all."""
    scorer = calibrated()
    result = scorer.fit(public(strength=0.0))
    samples, _ = private()
    assert result.forecast["inseparable"] == 1.0
    np.testing.assert_array_equal(result.public_scores, 0.5)
    np.testing.assert_array_equal(scorer.score(samples, result), 0.5)


@pytest.mark.parametrize("make", [calibrated, typicality])
def test_learned_scorer_ignores_domain_offset(make, rows):
    """Law: a domain whose losses all lie higher, anchors and samples alike, is scored alike."""
    scorer = make(shrinkage=1e-6)
    samples, _ = private()
    moved, _ = private(offset=(0.0, 2.0))
    apart = public(offset=(0.0, 2.0))
    # ifd and the length-free ratios change with the offset: only the distance is exactly equal
    one = scorer.score(samples, scorer.fit(rows))
    other = scorer.score(moved, scorer.fit(apart))
    if make is typicality:
        np.testing.assert_allclose(one, other, atol=1e-3)  # float32 signals
    assert np.corrcoef(one.argsort().argsort(), other.argsort().argsort())[0, 1] > 0.98


def test_calibrated_does_not_tell_by_domain():
    """Law: a domain that is easier as a whole wins nothing: clean samples of both score alike."""
    scorer = calibrated()
    result = scorer.fit(public(offset=(0.0, 2.0)))
    samples, clean = private(offset=(0.0, 2.0), n=300)
    scores = scorer.score(samples, result)[clean]
    finance = np.array(samples[0].domains)[clean] == "finance"
    assert abs(auroc(scores, finance) - 0.5) < 0.15


@pytest.mark.parametrize("make", [calibrated, typicality])
def test_learned_scorer_repeats_bit_for_bit(make, rows):
    """Law: equal rows give equal parameters and scores, to the bit."""
    one, two = make().fit(rows), make().fit(rows)
    assert one.schema == two.schema
    for name, value in one.parameters.items():
        assert value.dtype == np.float64
        np.testing.assert_array_equal(value, two.parameters[name])
    np.testing.assert_array_equal(one.public_scores, two.public_scores)


@pytest.mark.parametrize("make", [calibrated, typicality])
def test_learned_scorer_ignores_row_order(make, rows):
    """Law: shuffled public rows give the same parameters, and the same score for each row."""
    order = np.random.default_rng(5).permutation(len(rows.kinds))
    one, two = make().fit(rows), make().fit(shuffled(rows, order))
    for name, value in one.parameters.items():
        np.testing.assert_array_equal(value, two.parameters[name])
    np.testing.assert_array_equal(one.public_scores[order], two.public_scores)


@pytest.mark.parametrize("make", [calibrated, typicality])
def test_learned_scorer_never_sees_rows_without_signals(make, rows):
    """Law: a row whose status is not OK gets NaN and changes nothing for the others."""
    first = rows.trajectory[0]
    status = first.status.copy()
    status[::7] = Status.NO_TARGET
    columns = {name: values.copy() for name, values in first.columns.items()}
    for values in columns.values():
        values[::7] = np.nan
    holed = replace(rows, trajectory=(replace(first, status=status, columns=columns),))
    keep = np.flatnonzero(status == Status.OK)
    one, two = make().fit(holed), make().fit(shuffled(rows, keep))
    assert np.isnan(one.public_scores[::7]).all()
    np.testing.assert_array_equal(one.public_scores[keep], two.public_scores)
    found = make().score(holed.trajectory, two)
    np.testing.assert_array_equal(np.isnan(found), status != Status.OK)


@pytest.mark.parametrize("make", [calibrated, typicality])
def test_learned_scorer_works_for_one_domain(make):
    """Edge: anchors of a single domain are enough."""
    one = public(domains=("finance",))
    scores = make().fit(one).public_scores
    assert auroc(scores, np.array(one.kinds) == "clean") > 0.9


@pytest.mark.parametrize("make", [calibrated, typicality])
def test_learned_scorer_works_on_one_column(make, rows):
    """Edge: a table that holds only the loss still tells what raises the loss."""
    first = rows.trajectory[0]
    only = replace(rows, trajectory=(replace(first, columns={"loss": first.columns["loss"]}),))
    kinds = np.array(rows.kinds)
    seen = kinds != "cut"
    assert auroc(make().fit(only).public_scores[seen], kinds[seen] == "clean") > 0.9


def test_calibrated_uses_trajectory_and_gradients():
    """Law: where they are asked for, their features join; a mismatch of checkpoints is an error."""
    scorer = calibrated(signals=list(SIGNALS))
    longer = public(checkpoints=2)
    result = scorer.fit(longer)
    assert {"drop", "cosine", "adam_cosine", "norm"} <= set(result.schema.split(":")[1].split(","))
    assert np.isfinite(scorer.score(longer.trajectory, result)).all()
    with pytest.raises(PluginError, match=r"run\.trajectory = 'global'"):
        scorer.score(longer.trajectory[:1], result)
    with pytest.raises(PluginError, match="same checkpoints"):
        calibrated().score(longer.trajectory[:1], result)


def test_calibrated_reads_its_signals_alone(rows):
    """Law: what else was measured, for other scorers, changes no bit of fit or score."""
    longer = public(checkpoints=2)
    one, two = calibrated().fit(rows), calibrated().fit(longer)
    assert one.schema == two.schema
    np.testing.assert_array_equal(one.public_scores, two.public_scores)
    samples, _ = private()
    more = (
        *samples,
        replace(table(["clean"] * 120, samples[0].domains, checkpoint=1), checkpoint=1),
    )
    np.testing.assert_array_equal(calibrated().score(samples, one), calibrated().score(more, two))


@pytest.mark.parametrize("name", SIGNALS)
def test_calibrated_reads_the_columns_of_each_group(name):
    """Law: the columns of a group are measured where it is chosen, and their order is no matter."""
    scorer = calibrated(signals=[name, "losses"])
    assert SIGNALS[name][0] <= scorer.columns
    assert scorer == calibrated(signals=["losses", name])


@pytest.mark.parametrize("make", [calibrated, typicality])
def test_learned_scorer_marks_a_missing_end(make, rows):
    """Law: where every anchor ends with its end token, a sample without one scores lowest."""
    scorer = make()
    samples, clean = private()
    place = int(np.flatnonzero(clean)[0])
    first = samples[0]
    columns = {name: values.copy() for name, values in first.columns.items()}
    columns["has_end"][place] = 0.0
    columns["end_loss"][place] = 0.0
    result = scorer.fit(rows)
    before = scorer.score(samples, result)
    after = scorer.score((replace(first, columns=columns),), result)
    assert after[place] < np.quantile(before[clean], 0.02)


def test_unknown_domain_takes_the_nearest_anchors():
    """Law: a domain without anchors becomes that of the most similar reference, else the pool."""
    samples, _ = private()
    strange = replace(samples[0], domains=("poetry",) * len(samples[0].ids))
    near = nearest_domains(strange, set(DOMAINS))
    nearer = samples[0].columns["representation"].argmax(axis=1)
    assert near == tuple(DOMAINS[k] for k in nearer)
    columns = {k: v for k, v in strange.columns.items() if k != "representation"}
    assert set(nearest_domains(replace(strange, columns=columns), set(DOMAINS))) == {""}


def test_features_are_their_formulas():
    """Oracle: derived features equal the formulas of the module, sample by sample."""
    first, later = public(anchors=1, checkpoints=2).trajectory
    found = derive_features((first, later), first.domains)
    value = dict(zip(found.names, found.values.T, strict=True))
    c, d = (
        {name: v.astype(np.float64) for name, v in one.columns.items()} for one in (first, later)
    )
    for i, domain in enumerate(first.domains):
        k = DOMAINS.index(domain)
        assert value["ira"][i] == c["unconditional_loss"][i] - c["loss"][i]
        assert value["contrast_min"][i] == c["contrast_loss_min"][i] - c["loss"][i]
        cosines = c["representation"][i]
        assert value["foreign"][i] == cosines[k] - cosines[1 - k]
        assert value["drop"][i] == pytest.approx(1 - d["loss"][i] / c["loss"][i], rel=1e-9)
        assert value["cosine"][i] == pytest.approx(d["dot"][i, k] / d["norm"][i], rel=1e-9)


def test_calibrated_refuses_rows_without_corruption(rows):
    """Edge: clean anchors alone, or too few, are an error that names the setting."""
    clean = np.flatnonzero(np.array(rows.kinds) == "clean")
    for some in (clean, np.arange(6)):
        with pytest.raises(PluginError, match=r"anchors\.calibration"):
            calibrated().fit(shuffled(rows, some))
    with pytest.raises(PluginError, match=r"anchors\.calibration"):
        typicality().fit(shuffled(rows, clean[:1]))


@pytest.mark.parametrize("settings", [{"shrinkage": 0.0}, {"folds": 1}])
@pytest.mark.parametrize("make", [calibrated, typicality])
def test_learned_scorer_refuses_settings_out_of_range(make, settings):
    """Edge: a setting out of range is an error that says what is expected."""
    with pytest.raises(ValueError, match="expected"):
        make(**settings)
    with pytest.raises(ValueError, match="expected"):
        calibrated(safeguard=1.5)


@pytest.mark.parametrize("signals", ["losses", (), ("losses", "mood")])
def test_calibrated_refuses_unknown_signals(signals):
    """Edge: no group, an unknown one, or text instead of a list is an error that lists them."""
    with pytest.raises(ValueError, match="losses, prompt"):
        calibrated(signals=signals)
    assert set(PAYING) <= set(SIGNALS)

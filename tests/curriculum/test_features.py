"""The feature matrix of a pool."""

import numpy as np
import pytest

from curriculum import InvalidInputError
from curriculum.axes import leading_axes
from curriculum.description import Descriptions
from curriculum.features import SAMPLE_PROMPTS, _fit, design_matrix, extend
from curriculum.scaling import fit_scale


def described(count, *, texts=None, attributes=None, tags=None, embeddings=None):
    return Descriptions(
        texts if texts is not None else [b""] * count,
        attributes if attributes is not None else [{}] * count,
        tags if tags is not None else [()] * count,
        embeddings if embeddings is not None else [None] * count,
    )


def first(prompts, count):
    return prompts.read(np.arange(count))


def column(features, name):
    return features.values_NK[:, features.names.index(name)].astype(float)


def varied(count):
    """Prompts that have some of everything."""
    rng = np.random.default_rng(0)
    tags = [tuple(rng.choice(["a", "b", "c"], rng.integers(3))) for _ in range(count)]
    attributes = [
        {name: float(rng.lognormal()) for name in ("x", "y") if rng.random() < 0.7}
        for _ in range(count)
    ]
    embeddings = [
        rng.normal(size=40).astype(np.float16) if rng.random() < 0.8 else None for _ in range(count)
    ]
    texts = [" ".join(rng.choice(["sum", "find", "x", "12"], 5)).encode() for _ in range(count)]
    return Descriptions(texts, attributes, tags, embeddings)


def worded(count):
    """Prompts that have texts and tags alone."""
    prompts = varied(count)
    return described(count, texts=prompts.texts, tags=prompts.tags)


@pytest.mark.parametrize("pool", [varied, worded])
@pytest.mark.parametrize("steps", [[1], [3, 1, 700], [255, 2, 1000], [1024, 1024], range(1, 60)])
def test_a_pool_has_the_same_features_however_it_grew(steps, pool):
    prompts = pool(3100)
    grown, count = design_matrix(first(prompts, 0)), 0
    for step in steps:
        count += step
        grown = extend(grown, first(prompts, count))
        anew = design_matrix(first(prompts, count))
        assert grown.names == anew.names
        assert grown.values_NK.tobytes() == anew.values_NK.tobytes()
    grown = extend(grown, prompts)
    assert grown.values_NK.tobytes() == design_matrix(prompts).values_NK.tobytes()


@pytest.mark.parametrize("pool", [varied, worded])
def test_an_added_prompt_moves_no_other_until_the_pool_has_doubled(pool):
    prompts = pool(2100)
    before = design_matrix(first(prompts, 1024))
    for count in (1025, 1500, 2047):
        grown = extend(before, first(prompts, count))
        assert grown.values_NK[:1024].tobytes() == before.values_NK.tobytes()
    doubled = extend(before, first(prompts, 2048))
    assert doubled.values_NK[:1024].tobytes() != before.values_NK.tobytes()


def test_a_pool_above_the_sample_grows_alike():
    count = 2 * SAMPLE_PROMPTS + 300
    rng = np.random.default_rng(1)
    prompts = described(count, attributes=[{"x": float(x)} for x in rng.normal(size=count)])
    before = design_matrix(first(prompts, 2 * SAMPLE_PROMPTS + 1))
    assert extend(before, prompts).values_NK.tobytes() == design_matrix(prompts).values_NK.tobytes()
    assert abs(column(before, "feature:x").mean()) < 0.1


@pytest.mark.parametrize("changed", [[2048], [2050, 2304, 2999], range(2048, 3000), [5], [5, 2999]])
@pytest.mark.parametrize("grown_to", [3000, 3100, 4096])
def test_prompts_that_are_described_later_have_the_same_features(changed, grown_to, monkeypatch):
    prompts, changed = varied(4096), np.array(changed)
    without = list(prompts.embeddings)
    for index in changed:
        without[index] = None
    before = design_matrix(
        first(Descriptions(prompts.texts, prompts.attributes, prompts.tags, without), 3000)
    )
    now = first(prompts, grown_to)
    anew, built = design_matrix(now), []
    monkeypatch.setattr("curriculum.features._fit", lambda sample: built.append(0) or _fit(sample))
    extended = extend(before, now, changed)
    assert extended.values_NK.tobytes() == anew.values_NK.tobytes()
    # Only where the sample says otherwise all is built anew.
    assert len(built) == (changed[0] < 2048 or grown_to == 4096)
    assert before.values_NK.shape[0] == 3000


def test_fewer_prompts_than_features_are_refused():
    prompts = varied(8)
    with pytest.raises(InvalidInputError, match=r"len\(prompts\)=7: must be >= 8"):
        extend(design_matrix(prompts), first(prompts, 7))


def test_without_numbers_the_texts_are_used():
    texts = [b"sum", b"product", b"limit"] * 50
    features = design_matrix(described(150, texts=texts, tags=[("a",)] * 75 + [()] * 75))
    assert {name.partition(":")[0] for name in features.names} == {"text", "tag"}
    given = described(150, texts=texts, attributes=[{"x": float(n)} for n in range(150)])
    assert design_matrix(given).names == ("feature:x",)


def test_numbers_are_standardised_and_a_wild_one_moves_them_little():
    rng = np.random.default_rng(2)
    values = rng.normal(50.0, 10.0, 1000)
    values[[3, 500]] = [1e300, -1e308]
    features = design_matrix(described(1000, attributes=[{"size": float(v)} for v in values]))
    size = column(features, "feature:size")
    assert (size[3], size[500]) == (5.0, -5.0)
    usual = np.delete(size, [3, 500])
    # The mean and sd of 512 draws are off by 1 / sqrt(512) = .044 and .031: four of each.
    assert abs(usual.mean()) < 0.18
    assert abs(usual.std() - 1.0) < 0.13


def test_a_rate_counts_by_its_logit():
    rates = np.linspace(0.0, 1.0, 64)
    features = design_matrix(described(64, attributes=[{"rate": float(r)} for r in rates]))
    clipped = np.clip(rates, 0.02, 0.98)
    logit = np.log(clipped / (1.0 - clipped))
    np.testing.assert_allclose(column(features, "feature:rate"), logit / logit.std(), atol=0.01)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.45), (0.6, 1.0), (0.0, 1.5), (-1.0, 0.9)])
def test_a_number_that_is_no_rate_counts_as_it_is(low, high):
    values = np.linspace(low, high, 64)
    features = design_matrix(described(64, attributes=[{"x": float(v)} for v in values]))
    np.testing.assert_allclose(
        column(features, "feature:x"), (values - values.mean()) / values.std(), atol=0.01
    )


def test_an_absent_number_is_the_mean_and_shows_in_a_column():
    attributes = [{"x": float(n % 7)} if n % 4 else {} for n in range(256)]
    features = design_matrix(described(256, attributes=attributes))
    assert features.names == ("feature:x", "no feature:x")
    absent = np.arange(256) % 4 == 0
    assert (column(features, "feature:x")[absent] == 0.0).all()
    assert abs(column(features, "feature:x")[~absent].mean()) < 0.05
    assert (column(features, "no feature:x") == absent).all()


def test_a_number_that_hardly_any_prompt_lacks_has_no_second_column():
    attributes = [{"x": float(n)} if n != 9 else {} for n in range(1024)]
    assert design_matrix(described(1024, attributes=attributes)).names == ("feature:x",)


def test_a_number_that_hardly_any_prompt_has_is_left_out():
    attributes = [{"x": float(n)} for n in range(1020)] + [{"y": float(n)} for n in range(4)]
    assert design_matrix(described(1024, attributes=attributes)).names == ("feature:x",)


def test_a_number_that_is_always_the_same_is_left_out():
    same = [{"x": 3.0, "y": 1e-300, "z": float(n)} for n in range(64)]
    assert design_matrix(described(64, attributes=same)).names == ("feature:z",)


def test_tags_that_tell_prompts_apart_have_columns():
    tags = [("all", "half")] * 512 + [("all",)] * 508 + [("all", "few")] * 4
    features = design_matrix(described(1024, tags=tags))
    assert features.names == ("tag:half",)
    assert (column(features, "tag:half") == [1.0] * 512 + [0.0] * 512).all()


def test_a_tag_given_twice_counts_once():
    features = design_matrix(described(4, tags=[("a", "a"), (), (), ("a",)]))
    assert column(features, "tag:a").tolist() == [1.0, 0.0, 0.0, 1.0]


def test_the_most_frequent_tags_are_taken():
    tags = [tuple(f"t{tag:02}" for tag in range(90) if n % (tag + 2) == 0) for n in range(1024)]
    features = design_matrix(described(1024, tags=tags))
    assert features.names == tuple(f"tag:t{tag:02}" for tag in range(64))


def embedded(count, length):
    """Embeddings that vary in three directions, and which coordinates decide."""
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(count, 3)) * [3.0, 2.0, 1.0]
    axes = np.linalg.qr(rng.normal(size=(length, 3)))[0]
    return (hidden @ axes.T + 7.0).astype(np.float16), hidden


def test_embeddings_count_by_their_principal_components():
    vectors, hidden = embedded(1024, 200)
    features = design_matrix(described(1024, embeddings=list(vectors)))
    assert len(features.names) <= 32
    for number in range(3):
        values = column(features, f"embedding:{number}")
        assert abs(np.corrcoef(values, hidden[:, number])[0, 1]) > 0.98
        assert abs(values.std() - 1.0) < 0.05


def test_a_prompt_without_an_embedding_has_the_mean():
    vectors, _ = embedded(300, 20)
    given = [vector if n % 3 else None for n, vector in enumerate(vectors)]
    features = design_matrix(described(300, embeddings=given))
    absent = np.arange(300) % 3 == 0
    assert (features.values_NK[absent, :-1] == 0.0).all()
    assert features.names[-1] == "no embedding"
    assert (column(features, "no embedding") == absent).all()


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_the_size_of_embeddings_does_not_matter(factor):
    vectors = embedded(256, 30)[0].astype(np.float64)
    plain = design_matrix(described(256, embeddings=list(vectors)))
    scaled = design_matrix(described(256, embeddings=list(vectors * factor)))
    np.testing.assert_allclose(scaled.values_NK[:, :3], plain.values_NK[:, :3], atol=0.01)


def test_embeddings_of_two_lengths_are_refused():
    with pytest.raises(InvalidInputError, match=r"lengths of embeddings=\[2, 3\]"):
        described(2, embeddings=[np.zeros(2), np.zeros(3)])
    vectors, _ = embedded(64, 20)
    known = design_matrix(described(64, embeddings=list(vectors)))
    late = Late(described(64, embeddings=list(vectors)), np.ones(19))
    with pytest.raises(InvalidInputError, match=r"embedding.shape=\(19,\): must be \(20,\)"):
        extend(known, late)


class Late:
    """A pool whose last prompt has an embedding of its own length."""

    def __init__(self, prompts, vector):
        self.prompts, self.vector = prompts, vector

    def __len__(self):
        return len(self.prompts) + 1

    def read(self, indices):
        assert indices.tolist() == [len(self.prompts)]
        return described(1, embeddings=[self.vector])


def test_there_are_at_most_128_columns_and_numbers_go_first():
    rng = np.random.default_rng(4)
    count = 512
    attributes = [
        {f"x{n:02}": float(rng.normal()) for n in range(40) if rng.random() < 0.9}
        for _ in range(count)
    ]
    tags = [tuple(f"t{t}" for t in rng.choice(90, 16, replace=False)) for _ in range(count)]
    vectors = list(rng.normal(size=(count, 64)).astype(np.float16))
    features = design_matrix(described(count, attributes=attributes, tags=tags, embeddings=vectors))
    kinds = [name.partition(":")[0] for name in features.names]
    assert features.values_NK.shape == (count, 128)
    assert [kinds.count(kind) for kind in ("feature", "embedding", "tag")] == [32, 32, 64]


@pytest.mark.parametrize("count", [0, 1])
def test_a_pool_of_at_most_one_prompt_has_no_columns(count):
    assert design_matrix(varied(count)).values_NK.shape == (count, 0)


def test_values_are_finite_whatever_is_given():
    rng = np.random.default_rng(6)
    wild = [float(x) for x in [1e308, -1e308, 5e-324, 0.0, 1e-300, 65504.0] * 20]
    prompts = Descriptions(
        [b""] * len(wild),
        [{"x": value, "y": -value, "z": value * 1e-8} for value in wild],
        [()] * len(wild),
        [np.full(3, rng.choice([65504.0, -65504.0, 0.0, 6e-8]), np.float16) for _ in wild],
    )
    features = design_matrix(prompts)
    assert np.isfinite(features.values_NK).all()
    later = Descriptions([b""], [{"x": -1e308, "z": 1e308}], [()], [np.full(3, 1, np.float16)])
    grown = extend(features, Grown(prompts, later))
    assert np.isfinite(grown.values_NK).all()


class Grown:
    """A pool with another behind it, read across no border."""

    def __init__(self, before, after):
        self.before, self.after = before, after

    def __len__(self):
        return len(self.before) + len(self.after)

    def read(self, indices):
        return self.after.read(indices - len(self.before))


def test_leading_axes_are_those_of_the_full_decomposition():
    rng = np.random.default_rng(8)
    rows = (rng.normal(size=(500, 60)) * np.geomspace(20, 0.1, 60)).astype(np.float32)
    axes = leading_axes(rows, 6)
    expected = np.linalg.svd(rows.astype(float), full_matrices=False)[2][:6].T
    np.testing.assert_allclose(np.abs(axes.T @ expected), np.eye(6), atol=2e-3)
    assert (axes[np.abs(axes).argmax(axis=0), np.arange(6)] > 0).all()


def test_rows_that_span_few_dimensions_have_few_axes():
    rng = np.random.default_rng(9)
    rows = (rng.normal(size=(300, 2)) @ rng.normal(size=(2, 50))).astype(np.float32)
    assert leading_axes(rows, 10).shape == (50, 2)
    assert leading_axes(np.zeros((300, 50), np.float32), 10).shape == (50, 0)
    assert leading_axes(np.ones((1, 5), np.float32), 10).shape == (5, 1)


def test_a_scale_keeps_what_only_the_tails_say():
    values = np.zeros((1000, 2))
    values[:3, 0] = 1.0
    scale = fit_scale(values)
    assert scale.varies_K.tolist() == [True, False]

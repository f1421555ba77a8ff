"""Numbers from texts."""

import numpy as np
import pytest

from curriculum import InvalidInputError
from curriculum.text import MAX_TEXT_COMPONENTS, fit_text_basis

VERBS = ("Factor", "Integrate", "Simplify", "Differentiate", "Count", "Prove", "Solve", "Evaluate")


def problems(rng, count):
    """(texts, the number of each one's verb), with words around it that mean nothing."""
    verb = rng.integers(len(VERBS), size=count)
    texts = []
    for number in verb:
        filler = " ".join(f"w{chr(97 + word)}" for word in rng.integers(26, size=3))
        size = 10 ** rng.integers(1, 6)
        texts.append(f"{VERBS[number]} the {filler} of {rng.integers(1, size)}.".encode())
    return texts, verb


def explained(values_NK, target_N):
    """The share of the second half's variance that a ridge regression on the first explains."""
    half = len(values_NK) // 2
    known, centre = values_NK[:half].astype(float), target_N[:half].mean()
    gram = known.T @ known + np.eye(known.shape[1])
    weights = np.linalg.solve(gram, known.T @ (target_N[:half] - centre))
    left = target_N[half:] - centre - values_NK[half:].astype(float) @ weights
    return 1.0 - (left**2).mean() / target_N[half:].var()


def test_a_word_that_decides_the_difficulty_can_be_learnt():
    # The noise is 5% of the variance, so .95 is the most that anything can explain.
    rng = np.random.default_rng(0)
    texts, verb = problems(rng, 4000)
    difficulty = np.linspace(-2, 2, len(VERBS))[verb] + 0.3 * rng.normal(size=len(texts))
    assert explained(fit_text_basis(texts).encode(texts), difficulty) > 0.8


def test_texts_that_say_nothing_of_the_difficulty_explain_nothing():
    rng = np.random.default_rng(1)
    texts, _ = problems(rng, 4000)
    assert explained(fit_text_basis(texts).encode(texts), rng.normal(size=len(texts))) < 0.02


def test_columns_are_standardised_and_bounded():
    texts, _ = problems(np.random.default_rng(2), 3000)
    basis = fit_text_basis(texts)
    values = basis.encode(texts)
    assert values.shape == (3000, MAX_TEXT_COMPONENTS + 3)
    assert basis.names[-3:] == ("text:length", "text:digits", "text:symbols")
    # Half a percent of the values at each end are moved before mean and sd are taken.
    np.testing.assert_allclose(values.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose(values.std(axis=0), 1.0, atol=0.1)
    assert np.abs(basis.encode([b"7" * 3000, b"\x00", b"(" * 5000])).max() <= 5.0


@pytest.mark.parametrize("size", [1, 2, 7, 511, 512, 513, 1500])
def test_a_texts_numbers_do_not_depend_on_what_it_is_encoded_with(size):
    texts, _ = problems(np.random.default_rng(3), 1500)
    basis = fit_text_basis(texts)
    pieces = [basis.encode(texts[at : at + size]) for at in range(0, len(texts), size)]
    assert np.concatenate(pieces).tobytes() == basis.encode(texts).tobytes()
    backwards = basis.encode(texts[::-1])[::-1]
    assert np.ascontiguousarray(backwards).tobytes() == basis.encode(texts).tobytes()


def test_the_same_texts_give_the_same_basis():
    texts, _ = problems(np.random.default_rng(4), 600)
    one, other = fit_text_basis(texts), fit_text_basis(list(texts))
    assert one.axes_HK.tobytes() == other.axes_HK.tobytes()
    assert one.encode(texts).tobytes() == other.encode(texts).tobytes()


def components(basis, text):
    is_component = [name.partition(":")[2].isdigit() for name in basis.names]
    return basis.encode([text])[0, is_component]


@pytest.mark.parametrize(
    ("text", "alike"),
    [
        (b"Solve the wa wb wc of 12.", b"Solve the wa wb wc of 98."),
        (b"Solve the wa wb wc of 12.", b"SOLVE  THE\twa wb\nwc of 12."),
        (b"Solve 1234567890123.", b"Solve 99999999999999999."),
    ],
)
def test_other_numbers_capitals_and_spaces_change_nothing(text, alike):
    basis = fit_text_basis(problems(np.random.default_rng(5), 2000)[0])
    assert components(basis, text).tobytes() == components(basis, alike).tobytes()


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (b"Solve the wa wb of 12.", b"Prove the wa wb of 12."),
        (b"Solve the wa wb of 12.", b"Solve the wa wb of 123."),
        (b"Solve the wa wb of 12.", b"wb the Solve wa of 12."),
    ],
)
def test_words_the_length_of_numbers_and_the_order_count(text, other):
    basis = fit_text_basis(problems(np.random.default_rng(5), 2000)[0])
    assert np.abs(components(basis, text) - components(basis, other)).max() > 0.05


def test_words_that_the_sample_lacks_count_nothing():
    # 30 words and their pairs fill a part of the 4,096 buckets, so a new word may meet a known one
    # by chance: of 26 new words most do not.
    basis = fit_text_basis([b"one two", b"two three", b"three one"] * 10)
    known = components(basis, b"one two")
    same = sum(
        np.array_equal(components(basis, b"one two \xc3\xa9" + bytes([97 + n])), known)
        for n in range(26)
    )
    assert same >= 24


def test_what_all_texts_share_counts_nothing():
    plain = [b"red", b"green", b"blue"] * 20
    # Set apart by characters that are tokens of their own, so that no pair differs.
    framed = [b"Answer: <" + text + b">" for text in plain]
    shares = []
    for texts in (plain, framed):
        values = fit_text_basis(texts).encode(texts)[:3]
        shares.append(np.linalg.matrix_rank(values - values.mean(axis=0), tol=1e-3))
    assert shares == [2, 2]


def test_ideographs_are_words_by_themselves():
    sentences = ["解方程", "证明定理", "求面积", "解不等式"] * 30
    texts = [text.encode() for text in sentences]
    basis = fit_text_basis(texts)
    solve = [components(basis, text.encode()) for text in ("解方程", "解不等式", "证明定理")]
    assert np.linalg.norm(solve[0] - solve[1]) < np.linalg.norm(solve[0] - solve[2])


def test_long_texts_are_read_at_their_head_and_tail():
    texts, _ = problems(np.random.default_rng(6), 1000)
    basis = fit_text_basis(texts)
    long = b"Solve the wa. " + b"zz " * 10_000 + b"Prove the wb."
    same = b"Solve the wa. " + b"zz " * 5_000 + b"Factor it. " + b"zz " * 4_997 + b"Prove the wb."
    other = long.replace(b"Prove", b"Count")
    assert basis.encode([long])[0, -2:].tolist() == basis.encode([same])[0, -2:].tolist()
    assert np.abs(components(basis, long) - components(basis, other)).max() > 0


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [b""],
        [b"Prove that there are infinitely many primes."],
        [b"", b" ", b"\x00\x00"],
        [b"the same"] * 50,
        [bytes(range(256)) * 40, b"\xff\xfe\xf0", b"\x80"],
    ],
    ids=["no", "empty", "one", "blank", "equal", "binary"],
)
def test_any_texts_can_be_encoded(texts):
    basis = fit_text_basis(texts)
    for more in (texts, [*texts, b"another", b""], [np.random.default_rng(7).bytes(9000)]):
        values = basis.encode(more)
        assert values.shape == (len(more), len(basis.names))
        assert np.isfinite(values).all()


def test_a_text_without_known_words_has_components_of_zero_weight():
    texts, _ = problems(np.random.default_rng(8), 500)
    basis = fit_text_basis(texts)
    assert components(basis, b"").tobytes() == components(basis, b"   \n").tobytes()


def test_a_negative_number_of_components_is_refused():
    with pytest.raises(InvalidInputError, match="component_count=-1: must be >= 0"):
        fit_text_basis([b"a"], -1)

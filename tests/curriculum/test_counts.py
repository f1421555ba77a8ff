import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum import InvalidInputError, discount_weights, discounted_counts


def test_weights_fall_by_the_discount_per_policy_step():
    weights = discount_weights(np.array([10.0, 9.0, 7.5]), 10, 0.9)
    np.testing.assert_allclose(weights, [1.0, 0.9, 0.9**2.5], rtol=1e-15)


def test_a_window_after_the_policy_step_weighs_one():
    assert discount_weights(np.array([12]), 10, 0.5).tolist() == [1.0]


def test_a_discount_of_one_never_forgets():
    assert discount_weights(np.array([0, 500]), 1000, 1.0).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("discount", [0.0, 1.1, float("nan")])
def test_a_discount_outside_its_range_is_refused(discount):
    with pytest.raises(InvalidInputError, match=r"discount=.*: must be in \(0, 1\]"):
        discount_weights(np.array([0]), 1, discount)


def test_counts_are_summed_with_their_weights():
    attempts = [np.array([8, 0, 4], dtype=np.uint32), np.array([8, 8, 0], dtype=np.uint32)]
    passes = [np.array([2, 0, 4], dtype=np.uint32), np.array([8, 1, 0], dtype=np.uint32)]
    successes, failures = discounted_counts(attempts, passes, np.array([1.0, 0.5]))
    assert successes.tolist() == [2 + 4, 0.5, 4]
    assert failures.tolist() == [6 + 0, 3.5, 0]


@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_a_prompt_has_the_same_bits_alone_and_with_the_pool(seed, windows):
    rng = np.random.default_rng(seed)
    attempts = [rng.integers(0, 1000, 37).astype(">u4") for _ in range(windows)]
    passes = [(column * rng.random(37)).astype(">u4") for column in attempts]
    weights = rng.random(windows)
    some = rng.integers(0, 37, 11)
    whole = discounted_counts(attempts, passes, weights)
    part = discounted_counts(attempts, passes, weights, some)
    for all_prompts, few in zip(whole, part, strict=True):
        if windows:
            assert few.tobytes() == all_prompts[some].tobytes()
        else:
            assert not few.any()


def test_more_passes_than_attempts_are_refused():
    with pytest.raises(InvalidInputError, match="passes_WN"):
        discounted_counts([np.array([1])], [np.array([2])], np.array([1.0]))


def test_columns_of_different_lengths_are_refused():
    columns = [np.array([1, 2]), np.array([1])]
    with pytest.raises(InvalidInputError):
        discounted_counts(columns, columns, np.ones(2))
    with pytest.raises(InvalidInputError, match="passes_WN=1: must be 2 columns"):
        discounted_counts(columns, columns[:1], np.ones(2))

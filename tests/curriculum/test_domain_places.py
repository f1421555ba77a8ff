"""How many of a batch's places each domain gets."""

import numpy as np
import pytest

from curriculum.draft import domain_places

DOMAINS = ("a", "b", "c", "d")


def places(shares, prompt_count, seed=0):
    return domain_places(DOMAINS, shares, prompt_count, np.random.default_rng(seed))[1]


@pytest.mark.parametrize("prompt_count", [0, 1, 3, 128])
@pytest.mark.parametrize("shares", [{}, {"a": 1.0}, {"b": 0.3, "d": 0.3}, {"a": 0.1, "c": 0.9}])
def test_every_place_is_given_and_each_quota_is_rounded_up_or_down(shares, prompt_count):
    for seed in range(20):
        places_K = places(shares, prompt_count, seed)
        assert places_K.sum() == prompt_count
        quota_K = prompt_count * np.array([*shares.values(), max(0.0, 1 - sum(shares.values()))])
        assert np.all(np.abs(places_K - quota_K) < 1 + 1e-9)


def test_batches_of_one_prompt_serve_domains_by_their_shares():
    found = np.sum([places({"a": 0.7, "b": 0.2}, 1, seed) for seed in range(2000)], axis=0) / 2000
    # Five standard deviations of a binomial share of 2,000: sqrt(.25 / 2000) is .011.
    assert found == pytest.approx([0.7, 0.2, 0.1], abs=0.056)


def test_places_that_come_out_even_are_given_as_they_are():
    assert {tuple(places({"a": 0.3, "b": 0.7}, 10, seed)) for seed in range(50)} == {(3, 7, 0)}


def test_domains_that_are_not_listed_have_the_last_share_together():
    share_D, _ = domain_places(DOMAINS, {"c": 0.5}, 4, np.random.default_rng(0))
    assert share_D.tolist() == [1, 1, 0, 1]

import numpy as np
import pytest

from curriculum import InvalidInputError, fit_domain_prior


def observed(rng, alpha, beta, prompts, attempts=8):
    passes = rng.binomial(attempts, rng.beta(alpha, beta, prompts)).astype(float)
    return passes, attempts - passes


def test_without_evidence_the_prior_is_uniform():
    prior = fit_domain_prior(np.zeros(5), np.zeros(5), np.array([0, 0, 1, 1, 2]), 3)
    np.testing.assert_allclose(prior.mean_D, 0.5)
    np.testing.assert_allclose(prior.concentration_D, 2.0)


def test_an_empty_pool_has_a_prior():
    prior = fit_domain_prior(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int32), 2)
    np.testing.assert_allclose(prior.mean_D, [0.5, 0.5])


@pytest.mark.parametrize(("alpha", "beta"), [(0.4, 0.6), (1.0, 1.0), (2.0, 6.0)])
def test_mean_and_concentration_are_recovered(alpha, beta):
    # 4,000 prompts: the mean's standard error is below .5/sqrt(4000) = .008. The correlation
    # rho = 1/(kappa+1) is a ratio of means of bounded terms; its error is about 2/sqrt(4000) = .03
    # of itself and so that of kappa = 1/rho - 1 about .03 (kappa+1) <= .27: four of each.
    successes, failures = observed(np.random.default_rng(1), alpha, beta, 4000)
    prior = fit_domain_prior(successes, failures, np.zeros(4000, dtype=np.int32), 1)
    kappa = alpha + beta
    assert abs(prior.mean_D[0] - alpha / kappa) < 0.032
    assert abs(prior.concentration_D[0] - kappa) < 4 * 0.03 * (kappa + 1)


def test_a_domain_with_few_visited_prompts_follows_the_pool():
    successes, failures = observed(np.random.default_rng(2), 1.0, 9.0, 1001)
    successes[-1], failures[-1] = 8.0, 0.0
    domain = np.zeros(1001, dtype=np.int32)
    domain[-1] = 1
    mean = fit_domain_prior(successes, failures, domain, 3).mean_D
    assert mean[0] < 0.15
    assert mean[2] == pytest.approx(mean[0], abs=0.01), "never visited: the pool's mean"
    assert mean[2] < mean[1] < 0.35, "one easy prompt moves its domain by a sixth at most"


def test_every_prompt_at_the_same_extreme_stays_within_bounds():
    prior = fit_domain_prior(np.zeros(500), np.full(500, 8.0), np.zeros(500, dtype=np.int32), 1)
    assert prior.mean_D[0] == 0.02
    assert 0.5 <= prior.concentration_D[0] <= 16.0


def test_a_bimodal_pool_has_a_small_concentration():
    successes = np.repeat([0.0, 8.0], 200)
    prior = fit_domain_prior(successes, 8.0 - successes, np.zeros(400, dtype=np.int32), 1)
    assert prior.mean_D[0] == pytest.approx(0.5)
    assert prior.concentration_D[0] == pytest.approx(0.5)


def test_old_evidence_does_not_break_the_fit():
    successes, failures = observed(np.random.default_rng(3), 0.5, 0.5, 3000)
    prior = fit_domain_prior(successes * 1e-4, failures * 1e-4, np.zeros(3000, dtype=np.int32), 1)
    assert 0.3 < prior.mean_D[0] < 0.7
    assert 0.5 <= prior.concentration_D[0] <= 16.0


def test_a_large_pool_with_interleaved_domains_is_sampled_evenly():
    rng, prompts = np.random.default_rng(4), 80_000
    domain = (np.arange(prompts) % 4).astype(np.int32)
    passes = rng.binomial(8, np.array([0.2, 0.4, 0.6, 0.8])[domain]).astype(float)
    prior = fit_domain_prior(passes, 8.0 - passes, domain, 4)
    # 4,096 sampled prompts each; standard error below .5 / sqrt(8 * 4096) = .003
    np.testing.assert_allclose(prior.mean_D, [0.2, 0.4, 0.6, 0.8], atol=0.012)


def test_the_prior_of_prompts_is_that_of_their_domains():
    prior = fit_domain_prior(np.array([8.0, 0.0]), np.array([0.0, 8.0]), np.array([0, 1]), 2)
    mean, concentration = prior.at(np.array([1, 1, 0], dtype=np.int32))
    assert mean.tolist() == prior.mean_D[[1, 1, 0]].tolist()
    assert concentration.tolist() == prior.concentration_D[[1, 1, 0]].tolist()


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(InvalidInputError, match="shapes"):
        fit_domain_prior(np.zeros(2), np.zeros(3), np.zeros(2, dtype=np.int32), 1)

import numpy as np
import pytest

from curriculum import InvalidInputError, Prior, fit_prior


def observed(rng, mean, kappa):
    """Of 8 attempts, passes and fails of prompts whose pass rates scatter around their means."""
    passes = rng.binomial(8, rng.beta(kappa * mean, kappa * (1.0 - mean))).astype(float)
    return passes, 8 - passes


def one_domain(passes, fails, features=None):
    return fit_prior(passes, fails, np.zeros(len(passes), dtype=np.int32), 1, features)


def means(prior):
    count = len(prior.intercept_D)
    return prior.mean_at(np.arange(count), np.zeros((count, len(prior.weight_K))))


@pytest.mark.parametrize("prompts", [0, 5])
def test_without_evidence_the_prior_is_uniform(prompts):
    none, domain = np.zeros(prompts), np.arange(prompts, dtype=np.int32) % 3
    prior = fit_prior(none, none, domain, 3, np.ones((prompts, 2)))
    np.testing.assert_allclose(means(prior), 0.5)
    np.testing.assert_allclose(prior.concentration_D, 2.0)
    np.testing.assert_array_equal(prior.weight_K, 0.0)


def test_a_pool_without_domains_has_a_prior():
    prior = fit_prior(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int32), 0)
    assert prior.mean_at(np.zeros(0, dtype=np.intp), None).shape == (0,)


@pytest.mark.parametrize(("alpha", "beta"), [(0.4, 0.6), (1.0, 1.0), (2.0, 6.0)])
def test_mean_and_concentration_are_recovered(alpha, beta):
    # 4,000 prompts: the mean's standard error is below .5/sqrt(4000) = .008. The correlation
    # rho = 1/(kappa+1) is a ratio of means of bounded terms; its error is about 2/sqrt(4000) = .03
    # of itself and so that of kappa = 1/rho - 1 about .03 (kappa+1) <= .27: four of each.
    kappa = alpha + beta
    passes, fails = observed(np.random.default_rng(1), np.full(4000, alpha / kappa), kappa)
    prior = one_domain(passes, fails)
    assert abs(means(prior)[0] - alpha / kappa) < 0.032
    assert abs(prior.concentration_D[0] - kappa) < 4 * 0.03 * (kappa + 1)


@pytest.mark.parametrize("seed", range(3))
def test_weights_intercepts_and_concentration_are_recovered(sigmoid, seed):
    rng, prompts = np.random.default_rng(seed), 8000
    weight, intercept = np.array([0.8, -0.5, 0.0, 0.3]), np.array([-0.8, 0.4, 1.0])
    features, domain = rng.normal(size=(prompts, 4)), rng.integers(0, 3, prompts)
    passes, fails = observed(rng, sigmoid(intercept[domain] + features @ weight), 1.5)
    prior = fit_prior(passes, fails, domain, 3, features)
    # A prompt tells n / (1 + (n-1) rho) = 8 / 3.8 attempts' worth, each m (1 - m) ~ .19 of
    # information: .4 a prompt, so standard errors of 1 / sqrt(.4 * 8000) = .018 for a weight,
    # sqrt(3) as much for an intercept. Four of them, and the shrinkage of .01.
    np.testing.assert_allclose(prior.weight_K, weight, atol=0.085)
    np.testing.assert_allclose(prior.intercept_D, intercept, atol=0.135)
    np.testing.assert_allclose(prior.concentration_D, 1.5, atol=4 * 0.03 * 2.5 * np.sqrt(1.5))


def test_the_fit_is_where_the_penalised_quasi_likelihood_is_flat(sigmoid):
    # The gradient by the constant: its prior has sd 2, so the pull of all prompts is b / 4.
    rng = np.random.default_rng(6)
    passes, fails = observed(rng, np.full(600, 0.2), 1.0)
    prior = one_domain(passes, fails)
    mean, rho = means(prior)[0], 1.0 / (prior.concentration_D[0] + 1.0)
    pull = 8.0 / (1.0 + 7.0 * rho) * (passes / 8.0 - mean).sum()
    # The constant and the domain's offset share the logit; either pays at most what it has of it.
    assert abs(pull) < 0.5 * abs(prior.intercept_D[0])


@pytest.mark.parametrize("seed", range(3))
def test_noise_gets_small_weights_and_spoils_little(seed):
    rng, prompts = np.random.default_rng(seed), 1000
    features, mean = rng.normal(size=(2 * prompts, 24)), np.full(2 * prompts, 0.4)
    passes, fails = observed(rng, mean, 1.0)
    seen = slice(0, prompts)
    prior = one_domain(passes[seen], fails[seen], features[seen])
    # Unshrunk, 24 weights with a standard error of 1 / sqrt(1.8 * .24 * 1000) = .048 each would
    # have a length of .24 and spoil the mean by .24 * .24 = .057; shrinkage takes a good part.
    assert np.linalg.norm(prior.weight_K) < 0.24
    error = prior.mean_at(np.zeros(prompts, dtype=np.intp), features[prompts:]) - 0.4
    assert np.sqrt(np.mean(error**2)) < 0.057


def test_a_handful_of_prompts_does_not_make_many_features_sure(sigmoid):
    # 50 prompts for 24 weights, averaged over 20 pools: against the same fit without features.
    worse, better, concentration = [], [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        features, domain = rng.normal(size=(1050, 24)), np.zeros(1050, dtype=np.intp)
        weight = rng.normal(size=24) / np.sqrt(24.0)
        for scale, errors in ((0.0, worse), (1.5, better)):
            mean = sigmoid(scale * features @ weight)
            passes, fails = observed(rng, mean, 1.0)
            some, rest = slice(0, 50), slice(50, None)
            fitted = one_domain(passes[some], fails[some], features[some])
            plain = one_domain(passes[some], fails[some])
            square = [
                np.mean((prior.mean_at(domain[rest], features[rest]) - mean[rest]) ** 2)
                for prior in (fitted, plain)
            ]
            errors.append(square[0] - square[1])
            if not scale:
                concentration.append(fitted.concentration_D[0])
    assert np.mean(worse) < 0.02, "noise costs less than .14 in the mean pass rate"
    assert np.mean(better) < -0.01, "what is there is used all the same"
    # The truth is 1. Residuals of 24 weights fitted to 50 prompts would show far too small a
    # scatter, unless the degrees of freedom they took are given back.
    assert np.median(concentration) < 1.6


def test_one_prompt_moves_the_prior_part_of_the_way():
    prior = fit_prior(np.array([8.0]), np.array([0.0]), np.zeros(1, dtype=int), 2, np.ones((1, 3)))
    mean = means(prior)
    assert 0.5 < mean[1] < mean[0] < 0.95
    assert np.isfinite(prior.weight_K).all()


def test_perfect_separation_stays_finite_and_within_bounds():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 2))
    passes = np.where(features[:, 0] > 0.0, 8.0, 0.0)
    prior = one_domain(passes, 8.0 - passes, features)
    assert np.isfinite(prior.weight_K).all()
    mean = prior.mean_at(np.zeros(2, dtype=np.intp), np.array([[2.0, 0.0], [-2.0, 0.0]]))
    np.testing.assert_allclose(mean, [0.982, 0.018], atol=0.001)


def test_a_domain_never_visited_has_the_constant():
    rng = np.random.default_rng(2)
    mean = np.repeat([0.3, 0.1], 500)
    passes, fails = observed(rng, mean, 2.0)
    prior = fit_prior(passes, fails, np.repeat([0, 1], 500), 3)
    assert means(prior)[1] < means(prior)[2] < means(prior)[0]
    # The offsets of the visited domains are shrunk around 0, so the constant is near their middle.
    assert prior.intercept_D[2] == pytest.approx(prior.intercept_D[:2].mean(), abs=0.15)


def test_a_domain_with_few_visited_prompts_follows_the_pool():
    # Where every tenth prompt passes always, one that does says little of its domain.
    passes, fails = observed(np.random.default_rng(2), np.full(1001, 0.1), 0.5)
    passes[-1], fails[-1] = 8.0, 0.0
    domain = np.zeros(1001, dtype=np.int32)
    domain[-1] = 1
    mean = means(fit_prior(passes, fails, domain, 2))
    assert mean[0] < 0.15
    assert mean[0] < mean[1] < 0.5


def test_every_prompt_at_the_same_extreme_stays_within_bounds():
    prior = one_domain(np.zeros(500), np.full(500, 8.0))
    assert means(prior)[0] == pytest.approx(1.0 / (1.0 + np.exp(4.0)))
    assert -8.0 < prior.intercept_D[0] < -4.0, "where its prior stops it, no further"
    assert 0.25 <= prior.concentration_D[0] <= 16.0


def test_rates_that_scatter_less_than_by_chance_are_no_evidence_against_themselves():
    # All rates are exactly 1/4, so the moments would have a negative correlation, with which 8
    # attempts would count for more than they are and 64 for a negative number.
    attempts = np.repeat([8.0, 64.0], 250)
    features = np.random.default_rng(0).normal(size=(500, 3))
    prior = one_domain(attempts / 4.0, attempts * 0.75, features)
    assert means(prior)[0] == pytest.approx(0.25, abs=0.005)
    assert np.linalg.norm(prior.weight_K) < 0.01
    assert prior.concentration_D[0] == pytest.approx(16.0)


@pytest.mark.parametrize("sharp", [0.0, 0.05])
def test_a_bimodal_pool_has_a_small_concentration(sharp):
    rng = np.random.default_rng(0)
    rate = np.where(rng.random(4000) < 0.5, sharp, 1.0 - sharp)
    passes = rng.binomial(8, rate).astype(float)
    # Var = (1/2 - sharp)**2 = m (1 - m) rho gives rho = 1 and .81, kappa 0 and .23.
    prior = one_domain(passes, 8.0 - passes)
    assert prior.concentration_D[0] < 0.3
    assert means(prior)[0] == pytest.approx(0.5, abs=0.032)


def test_faded_evidence_does_not_break_the_fit():
    passes, fails = observed(np.random.default_rng(3), np.full(3000, 0.5), 1.0)
    prior = one_domain(passes * 1e-4, fails * 1e-4)
    assert 0.3 < means(prior)[0] < 0.7
    assert 0.25 <= prior.concentration_D[0] <= 16.0


@pytest.mark.parametrize("size", [1, 3, 24, 64])
def test_a_prompt_has_the_same_bits_alone_and_among_others(size):
    rng = np.random.default_rng(size)
    features = rng.normal(size=(700, size)).astype(np.float16).astype(np.float64)
    domain = rng.integers(0, 3, 700)
    prior = Prior(rng.normal(size=3), rng.normal(size=size), np.ones(3))
    whole = prior.mean_at(domain, features)
    some = rng.permutation(700)[:77]
    assert whole[some].tobytes() == prior.mean_at(domain[some], features[some]).tobytes()
    for index in some[:9]:
        at = slice(index, index + 1)
        assert prior.mean_at(domain[at], features[at])[0] == whole[index]


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(InvalidInputError, match="shapes"):
        fit_prior(np.zeros(2), np.zeros(3), np.zeros(2, dtype=np.int32), 1)

"""What a gap leaves of a belief, and how pass rates move, learned from simulated ledgers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum.belief import Belief
from curriculum.dynamics import Dynamics, bounded, carry, fit_dynamics
from curriculum.evidence import Evidence

GAP = 5.0
beta_parameters = st.floats(1e-3, 1e4)


def one(alpha, beta):
    return np.array([alpha], dtype=np.float64), np.array([beta], dtype=np.float64)


@given(beta_parameters, beta_parameters)
def test_no_shift_and_no_variance_leave_a_belief_as_it_was(alpha, beta):
    after = carry(*one(alpha, beta), 0.0, 1.0, 0.0)
    assert (after[0][0], after[1][0]) == (alpha, beta)


@given(beta_parameters, beta_parameters, st.floats(-6.0, 6.0), st.floats(0.0, 10.0))
def test_the_mean_moves_by_exactly_the_shift_of_its_logit(alpha, beta, shift, variance):
    a, b = carry(*one(alpha, beta), 0.5, np.exp(shift), variance)
    assert np.log(a[0] / b[0]) == pytest.approx(np.log(alpha / beta) + shift, abs=1e-9)


@given(beta_parameters, beta_parameters, st.floats(0.0, 100.0), st.floats(0.0, 20.0))
def test_the_total_shrinks_by_the_information_and_never_below_the_least(a, b, variance, least):
    total = float(np.add(*carry(*one(a, b), least, 1.7, variance))[0])
    expected = max((a + b) / (1.0 + variance * a * b / (a + b)), least)
    assert total == pytest.approx(expected, rel=1e-12)


def test_variances_add_up_as_those_of_a_random_walk_do():
    # 1 / I' = (1 + v I) / I = 1 / I + v with I = m (1 - m) n: two waits of v are one of 2 v.
    twice = carry(*carry(*one(3.0, 9.0), 0.0, 1.0, 0.4), 0.0, 1.0, 0.4)
    at_once = carry(*one(3.0, 9.0), 0.0, 1.0, 0.8)
    np.testing.assert_allclose(twice, at_once, rtol=1e-13)


def test_a_prompt_that_always_failed_stays_known_when_one_at_the_edge_is_forgotten():
    # 100 steps of a diffusion of .0013 are .13: I is .494 for Beta(.5, 40.5), 8.1 for (16.2, 16.2).
    hopeless, edge = carry(*one(0.5, 40.5), 1.0, 1.0, 0.13), carry(*one(16.2, 16.2), 1.0, 1.0, 0.13)
    assert sum(hopeless)[0] == pytest.approx(41.0 / (1.0 + 0.13 * 0.5 * 40.5 / 41.0))
    assert sum(hopeless)[0] > 0.93 * 41.0
    assert sum(edge)[0] < 0.5 * 32.4


def test_a_long_trend_leaves_both_parameters_above_zero():
    for odds in (np.exp(4.0), np.exp(-4.0)):
        alpha, beta = one(3.0, 5.0)
        for _ in range(40):  # 160 logits: 1 - mean is far below the smallest step from 1
            alpha, beta = carry(alpha, beta, 1.0, odds, 0.01)
        assert alpha[0] > 0.0
        assert beta[0] > 0.0


@given(st.integers(0, 2**32 - 1))
def test_a_prompt_has_the_same_bits_alone_and_among_others(seed):
    rng = np.random.default_rng(seed)
    alpha, beta, least, odds = np.exp(rng.normal(0.0, 2.0, (4, 1003)))
    whole = carry(alpha, beta, least, odds, 0.07)
    some = rng.integers(0, 1003, 5)
    for index in some:
        at = slice(index, index + 1)
        alone = carry(alpha[at], beta[at], least[at], odds[at], 0.07)
        assert [a[0] for a in alone] == [a[index] for a in whole]


def walk(seed, drift_D, diffusion, *, prompts=2000, blocks=60, every=4, cyclic=False, gain=0.0):
    """A ledger of random walks in logits, a group of 8 for one prompt in `every` a block."""
    rng, domains = np.random.default_rng(seed), len(drift_D)
    domain, logit = np.arange(prompts) % domains, rng.normal(0.0, 2.0, prompts)
    passes, attempts = np.zeros((2, blocks, prompts))
    for block in range(blocks):
        if block:
            logit += np.array(drift_D)[domain] * GAP
            logit += rng.normal(0.0, np.sqrt(diffusion * GAP), prompts)
        turn = np.arange(prompts) // domains % every == block % every
        visited = turn if cyclic else rng.random(prompts) < 1.0 / every
        attempts[block, visited] = 8.0
        passes[block, visited] = rng.binomial(8, 1.0 / (1.0 + np.exp(-logit[visited])))
        logit += np.log1p(gain * np.sqrt(passes[block] * (attempts[block] - passes[block])))
    return passes, attempts, GAP * np.arange(blocks), domain, domains


def fit(passes, attempts, mids, domain, domains, mean=0.5):
    start = Belief(np.full(passes.shape[1], mean), np.full(passes.shape[1], 1.0 - mean))
    mids = np.asarray(mids, dtype=np.float64)
    return fit_dynamics(Evidence(passes, attempts, attempts), mids, domain, start, domains)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("diffusion", [2e-4, 1.3e-3, 8e-3])
def test_the_diffusion_is_recovered_within_a_factor_of_two_and_a_half(seed, diffusion):
    # The candidates are a factor of 3 apart, with a parabola between them. A visit adds the
    # information 8 m (1 - m) < 2 and the walk takes 20 steps until the next one: even for the
    # smallest diffusion the information at rest, sqrt(2 / .004) = 22, tells it within a tenth by
    # 30,000 forecasts. The rest of the factor is what a beta belief takes for a normal in logits.
    learned = fit(*walk(seed, [0.0], diffusion)).diffusion
    assert 0.4 < learned / diffusion < 2.5


@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("every", [4, 10])
@pytest.mark.parametrize("drift", [0.01, -0.008])
def test_the_drift_is_recovered_whatever_lies_between_two_visits(drift, every, cyclic):
    # An error of .12 (8 attempts) per .15 of slope and 5 * every steps, from at least 200 prompts
    # in each of 10 effective blocks: a standard error below .0009 at every=4, .0004 at every=10.
    # The shrinkage takes 1e4 + 4e4 off an information above 1e6; linearisation up to a sixth.
    for seed in range(2):
        learned = fit(*walk(seed, [drift], 1.3e-3, every=every, cyclic=cyclic)).drift_WD
        assert abs(learned[-1, 0] / drift - 1.0) < 0.4
        # It approaches and does not swing about the true value.
        assert np.abs(learned[20:, 0] / drift - 1.0).max() < 0.75


@pytest.mark.parametrize("seed", range(3))
def test_domains_move_in_opposite_directions(seed):
    drift = np.array([0.015, -0.015, 0.0])
    learned = fit(*walk(seed, drift, 1.3e-3, prompts=3000, blocks=30)).drift_WD[-1]
    # A third of the information of the test above, thus standard errors below .0016.
    np.testing.assert_allclose(learned, drift, atol=0.006)


@pytest.mark.parametrize("seed", range(2))
def test_a_drift_that_turned_is_followed(seed):
    passes, attempts, _, domain, domains = walk(seed, [0.02], 1.3e-3, blocks=30)
    # The same ledger read backwards falls as it rose. After 15 blocks what came before them weighs
    # .9**15 = .2 of itself; without forgetting it would still outweigh them.
    both = (np.concatenate([counts, counts[:14:-1]]) for counts in (passes, attempts))
    learned = fit(*both, GAP * np.arange(45.0), domain, domains).drift_WD[:, 0]
    assert learned[30] > 0.015
    assert learned[-1] < -0.002


@pytest.mark.parametrize(("gain", "least", "most"), [(0.0, 0.0, 0.015), (0.05, 0.03, 0.07)])
def test_what_a_prompt_gains_by_its_own_lessons_is_told_from_the_trend(gain, least, most):
    # A group of 4 passes and 4 fails moves its prompt by log(1 + 4 * .05) = .18, a third of the sd
    # of a rate in logits. The lessons' differences among 20,000 visits tell it within a tenth, the
    # linear form makes it smaller and the prior pulls it towards where it starts.
    learned = fit(*walk(3, [0.005], 1.3e-3, blocks=40, gain=gain))
    assert least <= learned.gain < most
    assert abs(learned.drift_WD[-1, 0] - 0.005) < 0.006


def test_without_a_second_visit_nothing_is_learned():
    rng = np.random.default_rng(0)
    block = rng.integers(0, 10, 500)
    attempts = 8.0 * (block == np.arange(10)[:, None])
    learned = fit(
        rng.binomial(8, 0.4, 500) * (attempts > 0),
        attempts,
        5.0 * np.arange(10),
        np.zeros(500, dtype=np.intp),
        1,
    )
    assert learned.diffusion == pytest.approx(1.3e-3, rel=1e-9)
    np.testing.assert_array_equal(learned.drift_WD, np.zeros((11, 1)))
    assert learned.gain == 0.0


STRANGE = {
    "all failed": (np.zeros((4, 900)), [2, 7, 12, 17]),
    "all passed": (np.full((4, 900), 8.0), [2, 7, 12, 17]),
    "all at once": (np.repeat([[0.0], [8.0]], 3, axis=0) + np.zeros(900), np.arange(6) * 5.0),
    "to and fro": (np.array([[0.0], [8.0], [0.0], [8.0]]) + np.zeros(900), [2, 7, 12, 17]),
    "huge gaps": (np.array([[1.0], [3.0], [5.0], [7.0]]) + np.zeros(900), [0, 1, 2, 1e9]),
    "a trend, then a huge gap": (
        np.repeat([[0.0], [8.0]], 3, axis=0) + np.zeros(900),
        [0.0, 0.5, 1.0, 1.5, 1e3, 1e6],
    ),
    "no gaps": (np.full((4, 900), 3.0), [3, 3, 3, 3]),
    "tiny gaps": (np.array([[1.0], [3.0], [5.0], [7.0]]) + np.zeros(900), [0, 1e-9, 2e-9, 5.0]),
    "one prompt": (np.array([[0.0], [8.0]]), [0.0, 5.0]),
    "one prompt once": (np.array([[3.0]]), [0.0]),
    "no prompts": (np.zeros((3, 0)), [0.0, 1.0, 2.0]),
    "no blocks": (np.zeros((0, 5)), []),
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("mean", [0.02, 0.5])
def test_strange_ledgers_give_finite_dynamics(name, mean):
    passes, mids = STRANGE[name]
    prompts = passes.shape[1]
    domain = np.zeros(prompts, dtype=np.intp)
    learned = fit(passes, np.full_like(passes, 8.0), mids, domain, 1, mean)
    assert learned.drift_WD.shape == (len(passes) + 1, 1)
    assert np.isfinite(learned.drift_WD).all()
    assert 0.0 < learned.diffusion < 1.0
    assert np.isfinite(learned.gain)


def test_a_ledger_with_more_blocks_goes_on_with_the_last_trend():
    dynamics = Dynamics(0.001, np.array([[0.0], [0.1], [0.2]]), 0.03)
    assert dynamics.extended(4).drift_WD.ravel().tolist() == [0.0, 0.1, 0.2, 0.2, 0.2]
    assert dynamics.extended(2).drift_WD.ravel().tolist() == [0.0, 0.1, 0.2]
    assert dynamics.extended(1).drift_WD.ravel().tolist() == [0.0, 0.1]
    assert dynamics.extended(4).gain == 0.03


def test_evidence_alone_leads_no_belief_beyond_two_thousandths():
    alpha, beta = bounded(
        np.array([0.01, 0.25, 0.3, 40.0]), np.array([16.25, 0.0, 0.7, 60.0]), 0.25
    )
    # 16 attempts' worth beyond the prior's .25; none; .75 and 99.75, already inside.
    np.testing.assert_allclose(alpha, [0.002 * 16.01, 0.25, 0.3, 40.0])
    np.testing.assert_allclose(beta, [16.25, 0.0, 0.7, 60.0])

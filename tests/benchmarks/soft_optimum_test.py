import numpy as np
import pytest

from benchmarks import soft_optimum


def test_the_weighted_programs_are_the_exponential_tilt():
    # Three kinds of program, as often as rho writes them; KL and reward in closed form.
    rewards = [-1.0] * 50 + [0.5] * 40 + [0.9] * 10
    rho, kinds, beta = np.array([0.5, 0.4, 0.1]), np.array([-1.0, 0.5, 0.9]), 0.2
    best = rho * np.exp(kinds / beta)
    best /= best.sum()
    found = soft_optimum.tilted(rewards, beta)
    assert found.reward == pytest.approx(best @ kinds)
    assert found.kl == pytest.approx(best @ np.log(best / rho))
    assert 10 < found.effective < 50


def test_a_large_beta_is_the_reference_and_a_small_one_the_best_program():
    rewards = [-1.0, 0.2, 0.7, 0.8]
    assert soft_optimum.tilted(rewards, 1e6).kl == pytest.approx(0.0, abs=1e-6)
    reward, kl, effective = soft_optimum.tilted(rewards, 1e-3)
    assert (reward, kl, effective) == pytest.approx((0.8, np.log(4), 1.0))

import numpy as np
import pytest

from etpo_jax.reproduction.best_of_budget import best_of, probability_of_better


def test_the_best_of_a_budget_equals_its_simulation():
    rng = np.random.default_rng(0)
    rewards = np.concatenate([rng.normal(size=40), np.full(20, -1.0)])
    best = rng.choice(rewards, (20000, 10)).max(axis=1)
    found = best_of(rewards, 10)
    assert found.value == pytest.approx(best.mean(), abs=0.02)
    assert found.low == pytest.approx(np.quantile(best, 0.025), abs=0.05)
    assert found.high == pytest.approx(np.quantile(best, 0.975), abs=0.05)
    better = probability_of_better(rewards, 10, 1.0)
    assert better == pytest.approx(np.mean(best > 1.0), abs=0.02)


def test_the_ends_of_the_range():
    rewards = np.array([0.1, 0.7, 0.4])
    assert best_of(rewards, 1).value == pytest.approx(rewards.mean())
    assert best_of(rewards, 1000).value == pytest.approx(0.7)
    assert probability_of_better(rewards, 5, 0.7) == 0
    assert probability_of_better(rewards, 5, 0.05) == 1
    with pytest.raises(ValueError, match="0 rewards, budget 3"):
        best_of(rewards[:0], 3)

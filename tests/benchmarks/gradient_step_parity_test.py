import dataclasses
import sys

import jax
import numpy as np
import pytest

from benchmarks import gradient_step_parity
from env.base import UsageError
from tests.models.small import small_decoder

DECODER = small_decoder(vocab_size=37, head_dim=4)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Half the time; the benchmark itself compares the optimised program."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("torch", reason="torch is only compared with, never required")
    return gradient_step_parity.import_peer()


@pytest.fixture
def problem(request):
    return gradient_step_parity.make_problem(
        DECODER, request.param, transitions=4, prompt=8, action=6
    )


@pytest.mark.parametrize(
    "problem",
    ["path", "retrace", pytest.param("one_step", marks=pytest.mark.slow)],
    indirect=True,
)
def test_losses_and_gradients_are_those_of_pytorch(peer, problem):
    ours, theirs = (
        gradient_step_parity.Ours(problem),
        gradient_step_parity.make_theirs(peer, problem),
    )
    assert (
        0 < gradient_step_parity.largest_difference(ours, theirs) <= gradient_step_parity.TOLERANCE
    )


@pytest.mark.parametrize("problem", ["path"], indirect=True)
@pytest.mark.parametrize(
    ("field", "value", "differing"),
    [("beta", 0.0601, "loss|norm|gradient"), ("polyak_lambda", 0.5, "step [12]")],
)
def test_another_setting_in_the_peer_is_found(peer, problem, field, value, differing):
    learning = dataclasses.replace(problem.config.learning, **{field: value})
    config = dataclasses.replace(problem.config, learning=learning)
    other = gradient_step_parity.make_theirs(peer, dataclasses.replace(problem, config=config))
    with pytest.raises(RuntimeError, match=f"programs differ by .* in .*({differing})"):
        gradient_step_parity.largest_difference(
            other, gradient_step_parity.make_theirs(peer, problem)
        )


@pytest.mark.parametrize("problem", ["retrace"], indirect=True)
def test_a_problem_exercises_padding_and_both_ends_of_an_episode(problem):
    batch = problem.batch
    for mask in (batch.prompt_mask_bp, batch.action_mask_bj, batch.next_prompt_mask_bp):
        assert mask.any(axis=1).all()
        assert not mask.all()
    assert (np.diff(batch.prompt_mask_bp.astype(int), axis=1) >= 0).all()
    assert (np.diff(batch.action_mask_bj.astype(int), axis=1) <= 0).all()
    assert set(batch.continues_b.tolist()) == {0.0, 1.0}


def test_without_torch_there_is_one_clear_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "benchmarks.gradient_step_torch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match="torch is not installed"):
        gradient_step_parity.import_peer()

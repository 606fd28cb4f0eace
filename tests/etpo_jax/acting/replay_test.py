import dataclasses

import numpy as np
import pytest

from etpo_jax.acting.replay import Replay
from etpo_jax.acting.transitions import Transition, collate


def transition(number, next_length=None):
    rng = np.random.default_rng(number)
    length = 1 + number % 4
    return Transition(
        prompt_tokens=rng.integers(1, 90, 2 + number % 3).astype(np.int32),
        action_tokens=rng.integers(1, 90, length).astype(np.int32),
        log_probs=-rng.random(length).astype(np.float32),
        reward=float(number),
        next_prompt_tokens=None
        if next_length is None
        else rng.integers(1, 90, next_length).astype(np.int32),
    )


def assert_equal(one, other):
    for field in dataclasses.fields(Transition):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def make(capacity=5):
    return Replay(capacity, max_prompt_length=8, max_new_tokens=6)


def stored_rewards(replay, size=200):
    return {item.reward for item in replay.sample(size, np.random.default_rng(0))}


def test_the_newest_are_kept_and_come_back_as_they_were():
    replay = make()
    items = [transition(number, next_length=number % 3 or None) for number in range(8)]
    for item in items:
        replay.add([item])
    assert len(replay) == 5
    assert stored_rewards(replay) == {3.0, 4.0, 5.0, 6.0, 7.0}
    for item in replay.sample(5, np.random.default_rng(1)):
        assert_equal(item, items[int(item.reward)])


def test_sampling_repeats_only_where_it_must_and_follows_the_seed():
    replay = make()
    replay.add([transition(number) for number in range(5)])
    rewards = [item.reward for item in replay.sample(5, np.random.default_rng(3))]
    assert sorted(rewards) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert rewards == [item.reward for item in replay.sample(5, np.random.default_rng(3))]
    assert len(replay.sample(9, np.random.default_rng(3))) == 9


def test_state_restores_everything_and_is_a_copy():
    replay, other = make(), make()
    replay.add([transition(number, 2) for number in range(7 - 2)])
    state = replay.state()
    replay.add([transition(9)])
    other.restore(state)
    assert stored_rewards(other) == {0.0, 1.0, 2.0, 3.0, 4.0}
    other.add([transition(9)])
    for one, two in zip(
        replay.sample(5, np.random.default_rng(0)),
        other.sample(5, np.random.default_rng(0)),
        strict=True,
    ):
        assert_equal(one, two)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="6 transitions do not fit into a replay of 5"):
        make().add([transition(0)] * 6)
    with pytest.raises(ValueError, match="empty replay"):
        make().sample(1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="has shape"):
        make(4).restore(make(5).state())


def test_collate_pads_prompts_left_and_actions_right():
    items = [transition(1, next_length=4), transition(2)]
    batch = collate(items, pad_id=99, length_multiple=3, max_prompt_length=8, max_new_tokens=6)
    assert batch.prompt_tokens_bp.shape == batch.next_prompt_tokens_bp.shape == (2, 6)
    assert batch.action_tokens_bj.shape == (2, 3)
    for row, item in enumerate(items):
        length = len(item.prompt_tokens)
        np.testing.assert_array_equal(batch.prompt_tokens_bp[row, -length:], item.prompt_tokens)
        np.testing.assert_array_equal(batch.prompt_tokens_bp[row, :-length], 99)
        assert batch.prompt_mask_bp[row].sum() == length
        assert batch.prompt_mask_bp[row, -1]
        length = len(item.action_tokens)
        np.testing.assert_array_equal(batch.action_tokens_bj[row, :length], item.action_tokens)
        np.testing.assert_array_equal(batch.log_probs_bj[row, :length], item.log_probs)
        np.testing.assert_array_equal(batch.log_probs_bj[row, length:], 0.0)
        assert batch.action_mask_bj[row].sum() == length
        assert batch.action_mask_bj[row, 0]
    np.testing.assert_array_equal(batch.continues_b, [1.0, 0.0])
    assert batch.next_prompt_mask_bp.sum(axis=1).tolist() == [4, 1]

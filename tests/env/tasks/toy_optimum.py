"""Exact soft backups on `env.tasks.toy`, over tokens and over whole actions, in float64.

Both are backward inductions over (step, place). `backup_tokens` is Eq. 6 of the paper on every
prefix of every action; `backup_actions` is Eq. 3 on all 121 actions. With the policy of Eq. 9 and
Eq. 8 they give the soft optimum, and Appendix A says that both are the same.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from env.tasks import toy

Place = tuple[int, str]
"""A state of the MDP: the step and the name of the place."""
Prefix = tuple[int, str, tuple[str, ...]]
"""A state of the token-level MDP: step, place and the letters so far."""
TokenDistribution = Callable[[int, str, tuple[str, ...]], np.ndarray]
"""Probabilities [tokens] of the next token of `toy.TOKENS` after (step, place, letters)."""
Choice = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A policy from the reference's probabilities and Q values of the same alternatives."""


@dataclasses.dataclass(frozen=True)
class TokenBackup:
    """Values of a policy over tokens.

    Attributes:
      value: (step, place) -> V before the first token, E_pi[Q] - beta KL.
      q: prefix -> Q of each next token, [tokens].
      policy: prefix -> probabilities of each next token, [tokens].
      reference: prefix -> those of the reference, [tokens].
    """

    value: Mapping[Place, float]
    q: Mapping[Prefix, np.ndarray]
    policy: Mapping[Prefix, np.ndarray]
    reference: Mapping[Prefix, np.ndarray]

    def action_policy(self, step: int, place: str) -> np.ndarray:
        """Probabilities [actions] of `toy.actions()`, by the chain rule (Eq. 4)."""
        return _chain(lambda *prefix: self.policy[prefix], step, place)


@dataclasses.dataclass(frozen=True)
class ActionBackup:
    """Values of a policy over whole actions, in the order of `toy.actions()`.

    Attributes:
      value: (step, place) -> V, E_pi[Q] - beta KL.
      q: (step, place) -> Q of each action, [actions].
      policy: (step, place) -> probabilities of each action, [actions].
      reference: (step, place) -> those of the reference, [actions].
    """

    value: Mapping[Place, float]
    q: Mapping[Place, np.ndarray]
    policy: Mapping[Place, np.ndarray]
    reference: Mapping[Place, np.ndarray]


def soft_optimal(beta: float) -> Choice:
    """The policy of Eq. 8 and 9: proportional to rho exp(Q / beta)."""

    def choose(reference: np.ndarray, q: np.ndarray) -> np.ndarray:
        weights = reference * np.exp((q - q.max()) / beta)
        return weights / weights.sum()

    return choose


def backup_tokens(
    task: toy.ToyTask,
    reference: TokenDistribution,
    choose: Choice,
    *,
    beta: float,
    gamma: float,
    gamma_within: float = 1.0,
) -> TokenBackup:
    """Eq. 6 from the last token of the last step to the first.

    Args:
      task: gives the number of steps.
      reference: rho over tokens.
      choose: the policy at each prefix; `soft_optimal(beta)` for the optimum.
      beta: weight of the KL, reward per nat.
      gamma: discount between actions.
      gamma_within: discount inside an action; anything but 1 breaks Appendix A.
    """
    value: dict[Place, float] = {}
    q: dict[Prefix, np.ndarray] = {}
    policy: dict[Prefix, np.ndarray] = {}
    references: dict[Prefix, np.ndarray] = {}

    def visit(step: int, place: str, letters: tuple[str, ...]) -> float:
        def token_q(token: str) -> float:
            tokens = (*letters, token)
            if toy.is_complete(tokens):
                return _action_q(step, place, tokens, value, task=task, gamma=gamma)
            return gamma_within * visit(step, place, tokens)

        key = (step, place, letters)
        references[key] = reference(step, place, letters)
        q[key] = np.array([token_q(token) for token in toy.TOKENS])
        policy[key] = choose(references[key], q[key])
        return _soft_value(policy[key], references[key], q[key], beta=beta)

    for step in reversed(range(task.max_steps)):
        for place in toy.PLACES:
            value[step, place] = visit(step, place, ())
    return TokenBackup(value, q, policy, references)


def backup_actions(
    task: toy.ToyTask,
    reference: TokenDistribution,
    choose: Choice,
    *,
    beta: float,
    gamma: float,
) -> ActionBackup:
    """Eq. 3 over whole actions; arguments as for `backup_tokens`."""
    value: dict[Place, float] = {}
    q: dict[Place, np.ndarray] = {}
    policy: dict[Place, np.ndarray] = {}
    references: dict[Place, np.ndarray] = {}
    for step in reversed(range(task.max_steps)):
        for place in toy.PLACES:
            key = (step, place)
            references[key] = _chain(reference, step, place)
            q[key] = np.array(
                [
                    _action_q(step, place, tokens, value, task=task, gamma=gamma)
                    for tokens in toy.actions()
                ]
            )
            policy[key] = choose(references[key], q[key])
            value[key] = _soft_value(policy[key], references[key], q[key], beta=beta)
    return ActionBackup(value, q, policy, references)


def kl(policy: np.ndarray, reference: np.ndarray) -> float:
    """KL(policy || reference) in nats; alternatives that the policy never takes count nothing."""
    taken = policy > 0
    return float(np.sum(policy[taken] * np.log(policy[taken] / reference[taken])))


def _soft_value(policy: np.ndarray, reference: np.ndarray, q: np.ndarray, *, beta: float) -> float:
    return float(policy @ q) - beta * kl(policy, reference)


def _action_q(
    step: int,
    place: str,
    tokens: tuple[str, ...],
    value: Mapping[Place, float],
    *,
    task: toy.ToyTask,
    gamma: float,
) -> float:
    letters = "".join(tokens)
    q = toy.reward(place, letters)
    if step + 1 < task.max_steps:
        following = [value[step + 1, next_place] for next_place in toy.PLACES]
        q += gamma * float(toy.transition(place, letters) @ following)
    return q


def _chain(distribution: TokenDistribution, step: int, place: str) -> np.ndarray:
    index = {token: i for i, token in enumerate(toy.TOKENS)}
    return np.array(
        [
            np.prod(
                [
                    distribution(step, place, tokens[:j])[index[token]]
                    for j, token in enumerate(tokens)
                ]
            )
            for tokens in toy.actions()
        ]
    )

"""A new algorithm in one file: REINFORCE with a leave-one-out baseline and a KL to the reference.

    python examples/new_algorithm.py

The same algorithm on the command line, from the folder above this one:

    etpo train --algorithm=examples.new_algorithm:Reinforce --run_dir=runs/reinforce

An action a earns r(a) - w log(pi(a) / rho(a)); its baseline is the mean reward of the other actions
in the same state (Kool et al. 2019). One gradient step follows each collection. The reward of later
steps is not credited, so this is for episodes of one step.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

import etpo_jax
from etpo_jax.algorithms import gradients, optimizer
from etpo_jax.algorithms.clipped_steps import ActorCriticState, score_policy, take_steps
from etpo_jax.algorithms.ppo_kl import is_same_state, leave_one_out
from etpo_jax.algorithms.token_scores import divergences
from etpo_jax.divergence import action_log_ratio

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(eps=1e-5))
PROMPT = "def build_model(x_train, y_train):\n    <FILL_ME>\n    return model\n"


@dataclasses.dataclass(frozen=True)
class ReinforceConfig(etpo_jax.Section):
    """Settings of REINFORCE: flags, and arguments of `etpo_jax.Trainer`.

    The compiled step reads those that are traced as `hyper.NAME`.
    """

    kl_weight: float = etpo_jax.option(
        0.01, "Weight w of the KL to the reference.", lower=0.0, traced=True
    )
    policy_learning_rate: float = etpo_jax.option(
        1e-3, "Learning rate of the policy.", lower=0.0, traced=True
    )


@etpo_jax.register_algorithm("reinforce")
class Reinforce(etpo_jax.Algorithm):
    """One gradient step of the policy per collection; there is no critic."""

    Settings = ReinforceConfig

    def __init__(self, model, base, config, mesh):
        super().__init__(model, base, config, mesh)
        self._step = make_step(self.networks, config, mesh)

    @classmethod
    def initial_state(cls, networks, base, config):
        """The policy starts as the reference."""
        policy = networks.initial_policy(base, gradients.initial_key(config.run.seed))
        moments = optimizer.initial(OPTIMIZER, policy)
        return ActorCriticState(policy, None, moments, None, step=jnp.int32(0))

    def after_collection(self, experience):
        """Takes the step; every metric that it returns becomes a column of `metrics.jsonl`."""
        batch, num_new = experience.collection(), jnp.int32(len(experience.new))
        self.state, metrics = self._step(self.state, self.base, batch, num_new, self.hyper)
        return [metrics]


def make_step(networks, config, mesh):
    """The jitted (state, base, collection, number of new actions, hyper) -> (state, metrics)."""

    def policy_loss(policy, base, batch, advantage_b, hyper):
        reference_bjd = networks.action_hidden(base, {}, batch)
        scores = score_policy(networks, config, base, policy, reference_bjd, batch, hyper)
        log_prob_bj, mask_bj = scores.log_prob_bj, batch.action_mask_bj
        log_ratio_b = action_log_ratio(log_prob_bj, scores.reference_log_prob_bj, mask_bj)
        worth_b = jax.lax.stop_gradient(advantage_b - hyper.kl_weight * log_ratio_b)
        loss = -jnp.mean(worth_b * jnp.sum(jnp.where(mask_bj, log_prob_bj, 0.0), axis=1))
        metrics = {"policy_loss": loss, "advantage_size": jnp.mean(jnp.abs(advantage_b))}
        return loss, metrics | divergences(scores.kl_bj, scores.entropy_bj, batch)

    def step(state, base, batch, num_new, hyper):
        def backward(part, share):
            """Gradient and metrics of a microbatch, weighted with its share of the actions."""
            grad = jax.grad(policy_loss, has_aux=True)
            found = grad(state.policy, base, *part, hyper)
            gradient, metrics = jax.tree.map(lambda leaf: leaf * share.actions, found)
            gradient = gradients.constrain(gradient, mesh)
            return gradients.Backward(metrics, (lambda _: gradient, lambda _: None))

        baseline_b = leave_one_out(batch.reward_b, is_same_state(batch), num_new)
        data, trained = (batch, batch.reward_b - baseline_b), (state.policy, None)
        size = config.finetune.microbatch_size
        found = gradients.in_microbatches(backward, data, batch.action_mask_bj, trained, size, mesh)
        # Nothing changes where a number is NaN or infinite.
        key = jax.random.fold_in(gradients.initial_key(config.run.seed), state.step)
        state, metrics = take_steps(OPTIMIZER, state, found, hyper, key)
        return gradients.constrain(state, mesh), metrics

    return jax.jit(step, donate_argnums=0)


def reward(prompt: str, completion: str) -> float:
    """One point for a logistic regression, less a point for 400 characters."""
    return float("LogisticRegression" in completion) - len(completion) / 400


def main(run_dir: str = "runs/new_algorithm", num_env_steps: int = 320) -> etpo_jax.Result:
    """Trains with the algorithm, then prints how reward and its own metric went."""
    settings = {"algorithm": "reinforce", "kl_weight": 0.01, "num_env_steps": num_env_steps}
    trainer = etpo_jax.Trainer(prompts=[PROMPT], reward=reward, run_dir=run_dir, **settings)
    result = trainer.train()
    for row in result.metrics[:: max(1, len(result.metrics) // 5)]:
        reward_mean, size = row["reward_mean"], row["advantage_size"]
        print(f"update {row['update']:2}: mean reward {reward_mean:6.3f}, advantages {size:.3f}")
    return result


if __name__ == "__main__":
    main()

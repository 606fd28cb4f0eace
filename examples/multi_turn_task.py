"""Trains on a task of several steps: use the classifier that the prompt asks for, in three tries.

    python examples/multi_turn_task.py

The same task on the command line, from the folder above this one:

    etpo train --task=examples.multi_turn_task:make_task --run_dir=runs/tries
"""

import etpo_jax


class Tries(etpo_jax.Task):
    """Episodes of up to three programs; an error becomes part of the next prompt."""

    name = "tries"
    wanted = ("LogisticRegression", "GaussianNB")
    max_steps = 3

    def reset(self, rng):
        """Returns the first state of an episode; states hold JSON values only."""
        return etpo_jax.State(t=0, data={"wanted": str(rng.choice(self.wanted)), "error": ""})

    def render(self, state, *, shorten=0):
        """Returns the prompt of a state; the action goes where `<FILL_ME>` is."""
        return (
            f"def build_model(x_train, y_train):\n"
            f"    # Use {state.data['wanted']}. {state.data['error']}\n"
            f"    <FILL_ME>\n    return model\n"
        )

    def step(self, states, actions, rngs):
        """Returns reward, next state and error of each action; `rngs` are for tasks of chance."""
        return [self._step(state, action) for state, action in zip(states, actions, strict=True)]

    def _step(self, state, action):
        wanted = state.data["wanted"]
        if f"{wanted}(" in action:
            return etpo_jax.Step(reward=1.0, next_state=None, error="", info={"tries": state.t + 1})
        error = f"There is no {wanted}."
        is_over = state.t + 1 == self.max_steps
        following = None if is_over else etpo_jax.State(state.t + 1, {**state.data, "error": error})
        return etpo_jax.Step(reward=0.0, next_state=following, error=error, info={})


def make_task() -> etpo_jax.Task:
    """Makes the task, for `--task`."""
    return Tries()


def main(run_dir: str = "runs/multi_turn_task", num_env_steps: int = 320) -> etpo_jax.Result:
    """Trains, then shows what the policy answers to each first prompt."""
    task = make_task()
    trainer = etpo_jax.Trainer(task=task, run_dir=run_dir, num_env_steps=num_env_steps)
    result = trainer.train()
    for wanted in task.wanted:
        prompt = task.render(etpo_jax.State(t=0, data={"wanted": wanted, "error": ""}))
        (action,) = trainer.generate([prompt])
        print(f"Asked for {wanted}, the policy writes\n\n    {action}\n")
    return result


if __name__ == "__main__":
    main()

"""Trains the stand-in model on a reward of one's own: short programs with a logistic regression.

Run it with `python examples/own_reward.py`.
"""

import etpo_jax

PROMPT = "def build_model(x_train, y_train):\n    <FILL_ME>\n    return model\n"


def reward(prompt: str, completion: str) -> float:
    """One point for a logistic regression, less a point for 400 characters."""
    return float("LogisticRegression" in completion) - len(completion) / 400


def main(run_dir: str = "runs/own_reward", num_env_steps: int = 320) -> etpo_jax.Result:
    """Trains, then prints the best completion and a sample of the policy."""
    trainer = etpo_jax.Trainer(
        prompts=[PROMPT], reward=reward, run_dir=run_dir, num_env_steps=num_env_steps
    )
    result = trainer.train()
    if result.best:
        print(f"\nBest reward {result.best.reward:.2f}:\n\n{result.best.action}")
    print("\nA sample of the policy:\n")
    print(trainer.generate([PROMPT], temperature=0.7)[0])
    return result


if __name__ == "__main__":
    main()

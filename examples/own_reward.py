"""Trains the stand-in model on a reward of one's own: short answers that mention scikit-learn.

python examples/own_reward.py
"""

import sys

import etpo_jax


def reward(prompt: str, completion: str) -> float:
    """1 for a completion that imports from sklearn, less for each line that it takes."""
    del prompt
    return float("sklearn" in completion) - 0.1 * completion.count("\n")


def main(run_dir: str = "runs/own_reward", num_env_steps: int = 256) -> etpo_jax.Result:
    """Trains, then prints what the policy writes."""
    trainer = etpo_jax.Trainer(
        prompts=["def build_model(x_train, y_train):\n    <FILL_ME>\n    return model\n"],
        reward=reward,
        run_dir=run_dir,
        num_env_steps=num_env_steps,
    )
    result = trainer.train()
    print(f"\nbest reward {result.best.reward:.2f}:\n{result.best.action}\n")
    prompt = "def build_model(x_train, y_train):\n    <FILL_ME>\n    return model\n"
    print("a sample of the policy:", *trainer.generate([prompt], temperature=0.7))
    return result


if __name__ == "__main__":
    main(*sys.argv[1:2])

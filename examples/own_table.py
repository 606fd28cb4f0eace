"""Writes a small table of mixed columns as CSV, and trains on it: programs that predict `repaid`.

A fifth of the rows is held out from all rewards; the summary has the best program's score there.
Run it with `python examples/own_table.py`.
"""

import csv
from pathlib import Path

import numpy as np

import etpo_jax


def write_table(path: Path, num_rows: int = 300) -> None:
    """Invented loans: numbers, categories, missing values, and a column to predict."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["age", "income", "town", "owns_home", "repaid"])
        for _ in range(num_rows):
            age, income = int(rng.integers(18, 80)), round(float(rng.lognormal(10, 0.6)))
            town, owns_home = rng.choice(["Altdorf", "Brig", "Chur"]), bool(rng.random() < 0.4)
            score = (income - 25_000) / 12_000 + 1.5 * owns_home - (town == "Brig")
            repaid = "yes" if score + rng.normal() > 0 else "no"
            is_known = rng.random() > 0.1
            table.writerow([age, income if is_known else "", town, owns_home, repaid])


def main(run_dir: str = "runs/own_table", num_env_steps: int = 96) -> etpo_jax.Result:
    """Trains, then prints the best program and the command that uses it."""
    table = Path(run_dir).with_suffix(".csv")
    table.parent.mkdir(parents=True, exist_ok=True)
    write_table(table)
    trainer = etpo_jax.Trainer(
        dataset=str(table),
        target="repaid",
        task_description="Will the loan be repaid?",
        run_dir=run_dir,
        num_env_steps=num_env_steps,
    )
    result = trainer.train()
    if result.best:
        print(f"The program with the best reward, {result.best.reward:.3f}:\n")
        print(result.best.program)
        script = f"python {run_dir}/best_code.py"
        print(f"It predicts other loans: {script} --predict=NEW.csv --output=PREDICTIONS.csv")
    return result


if __name__ == "__main__":
    main()

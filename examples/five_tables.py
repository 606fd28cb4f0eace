"""Writes the five tables of docs/tables.md, and new rows of each, into the working directory.

Four are packaged with scikit-learn; the visits to a shop are made up. Each comes as another kind of
file: CSV, Excel, Parquet, CSV with semicolons and decimal commas, compressed CSV.

Run it with `python examples/five_tables.py`.
"""

import numpy as np
import pandas as pd
from sklearn import datasets


def packaged(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns a table of scikit-learn's, the target by name, and five rows that it then lacks."""
    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    table = bunch.frame
    if "target_names" in bunch:
        table["target"] = bunch.target.map(dict(enumerate(bunch.target_names)))
    new = table.sample(5, random_state=0)
    return table.drop(index=new.index), new.drop(columns="target")


def visits(num_rows: int, seed: int) -> pd.DataFrame:
    """Returns visits to a shop: dates, towns, missing values, and who has bought something."""
    rng = np.random.default_rng(seed)
    day, age = rng.integers(0, 365, num_rows), rng.normal(40, 12, num_rows).round()
    town = rng.choice(["Graz", "Linz", "St. Pölten", "Wien"], num_rows)
    interest = (age - 40) / 12 + 1.5 * (town == "Wien") + np.cos(2 * np.pi * day / 365)
    table = pd.DataFrame(
        {
            "day": (pd.Timestamp("2025-01-01") + pd.to_timedelta(day, "D")).strftime("%d.%m.%Y"),
            "town": town,
            "age": age,
            "came by": rng.choice(["bus", "car", "foot"], num_rows),
        }
    )
    table = table.mask(rng.random(table.shape) < [0, 0.05, 0.1, 0.05])
    return table.assign(bought=np.where(interest + rng.normal(size=num_rows) > 1.8, "yes", "no"))


def main() -> None:
    """Writes the ten files."""
    wine, new_wine = packaged("wine")
    wine.to_csv("wine.csv", index=False)
    new_wine.to_csv("new_wine.csv", index=False)
    cancer, new_cancer = packaged("breast_cancer")
    cancer.to_parquet("cancer.parquet")
    new_cancer.to_parquet("new_cancer.parquet")
    iris, new_iris = packaged("iris")
    iris.to_csv("iris.csv", index=False, sep=";", decimal=",")
    new_iris.to_csv("new_iris.csv", index=False, sep=";", decimal=",")
    diabetes, new_diabetes = packaged("diabetes")
    diabetes.to_csv("diabetes.csv.gz", index=False)
    new_diabetes.to_csv("new_diabetes.csv", index=False)
    visits(1500, seed=0).to_excel("visits.xlsx", index=False)
    visits(5, seed=1).drop(columns="bought").to_csv("new_visits.csv", index=False)


if __name__ == "__main__":
    main()

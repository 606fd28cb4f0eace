"""Tables as people have them, made from seeds: each writes one file and returns its path.

Every table has a target `target` that its columns tell something about.
"""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

CITIES = ("Zürich", "São Paulo", "東京", "Kraków", "Reykjavík")


def _customers(rng: np.random.Generator, num_rows: int) -> pd.DataFrame:
    months = rng.integers(1, 72, num_rows)
    price = rng.gamma(4.0, 15.0, num_rows).round(2)
    left = rng.random(num_rows) < 1 / (1 + np.exp(0.06 * months - 0.02 * price))
    return pd.DataFrame(
        {
            "months": months,
            "price": price,
            "city": rng.choice(CITIES, num_rows),
            "plan": rng.choice(["basic", "plus", "pro"], num_rows),
            "target": np.where(left, "left", "stayed"),
        }
    )


def churn_semicolons(folder: Path, rng: np.random.Generator) -> Path:
    """German export: cp1252, semicolons, decimal commas, points between thousands, dates."""
    frame = _customers(rng, 400)
    german = [f"{price * 100:,.2f}".replace(",", " ").replace(".", ",") for price in frame["price"]]
    frame["price"] = [text.replace(" ", ".") for text in german]
    frame["city"] = frame["city"].replace({"東京": "Köln", "Kraków": "Münster"})
    days = pd.Timestamp(2020, 1, 1) + pd.to_timedelta(rng.integers(0, 1500, 400), "D")
    frame["Geändert am"] = days.strftime("%d.%m.%Y")
    path = folder / "kunden.csv"
    frame.to_csv(path, sep=";", index=False, encoding="cp1252")
    return path


def missing_everywhere(folder: Path, rng: np.random.Generator) -> Path:
    """Clinical table in which each column has its own word for a missing value."""
    num_rows = 300
    age = rng.normal(50, 15, num_rows).round(1)
    pressure = rng.normal(120, 10, num_rows).round()
    ill = age + pressure + rng.normal(0, 15, num_rows) > 172
    frame = pd.DataFrame(
        {
            "age": age,
            "pressure": pressure,
            "smoker": rng.choice(["yes", "no", "None"], num_rows),
            "region": rng.choice(["NA", "EU", "AS"], num_rows),
            "target": np.where(ill, "ill", "healthy"),
        }
    ).astype(object)
    for name, word in (("age", "unknown"), ("pressure", "-999x"), ("smoker", "n/a")):
        share = 0.03 if word == "-999x" else 0.3
        frame.loc[rng.random(num_rows) < share, name] = word
    frame.loc[rng.random(num_rows) < 0.05, "target"] = ""
    path = folder / "clinic.csv"
    frame.to_csv(path, index=False)
    return path


def indexed(folder: Path, rng: np.random.Generator) -> Path:
    """A shuffled frame that was written with its index."""
    frame = _customers(rng, 200).sort_values("target", ignore_index=True)
    path = folder / "shuffled.csv"
    frame.sample(frac=1, random_state=0).to_csv(path)
    return path


def reviews(folder: Path, rng: np.random.Generator) -> Path:
    """Free texts of several lines, with emoji, quotes and separators, as JSON lines."""
    words = ["good", "bad", "slow", "nice", "broken", "fast", 'so-called "new"', "😀", "a, b"]
    num_rows = 250
    texts = [" ".join(rng.choice(words, rng.integers(5, 20))) for _ in range(num_rows)]
    frame = pd.DataFrame(
        {
            "text": [text if i % 9 else text.replace(" ", "\n", 1) for i, text in enumerate(texts)],
            "stars": rng.integers(1, 6, num_rows),
            "helpful": rng.integers(0, 2, num_rows).astype(bool),
            "target": ["bad" in text or "broken" in text for text in texts],
        }
    )
    path = folder / "reviews.jsonl"
    frame.to_json(path, orient="records", lines=True, force_ascii=False)
    return path


def orders_excel(folder: Path, rng: np.random.Generator) -> Path:
    """Excel sheet with a title, dates, money, percentages and an identifier."""
    num_rows = 220
    amount = rng.gamma(2.0, 300.0, num_rows)
    rate = rng.random(num_rows)
    frame = pd.DataFrame(
        {
            "order_id": [f"A-{i:05}" for i in rng.permutation(num_rows) + 7000],
            "ordered": pd.Timestamp(2023, 5, 1) + pd.to_timedelta(rng.integers(0, 9e6, 220), "s"),
            "amount": [f"${value:,.2f}" for value in amount],
            "discount": [f"{100 * value:.0f} %" for value in rate],
            "returned": rng.random(num_rows) < 0.3,
            "target": np.where(amount * (1 - rate) > 300, "large", "small"),
        }
    )
    path = folder / "orders.xlsx"
    with pd.ExcelWriter(path) as writer:
        frame.to_excel(writer, sheet_name="2023", startrow=1, index=False)
        writer.sheets["2023"].cell(1, 1, "Orders")
    return path


def imbalanced(folder: Path, rng: np.random.Generator) -> Path:
    """Fraud in two of a hundred rows, with a timestamp and an amount in brackets if negative."""
    num_rows = 1500
    amount = rng.normal(100, 60, num_rows).round(2)
    fraud = (amount > 210) | (rng.random(num_rows) < 0.005)
    frame = pd.DataFrame(
        {
            "time": pd.date_range("2024-01-01 08:00", periods=num_rows, freq="97s").astype(str),
            "amount": [f"({-value:.2f})" if value < 0 else f"{value:.2f}" for value in amount],
            "country": rng.choice(["DE", "FR", "NA", "US"], num_rows),
            "target": fraud.astype(int),
        }
    )
    path = folder / "fraud.tsv"
    frame.to_csv(path, sep="\t", index=False)
    return path


def many_rare_classes(folder: Path, rng: np.random.Generator) -> Path:
    """Products of which most were sold once or twice: needs --rare_classes."""
    kinds = [f"kind {i}" for i in range(40)]
    chosen = rng.choice(kinds, 400, p=np.array([0.3, 0.25, 0.2] + [0.25 / 37] * 37))
    frame = pd.DataFrame({"weight": rng.normal(0, 1, 400), "size": rng.normal(0, 1, 400)})
    frame["weight"] += [kinds.index(kind) for kind in chosen]
    frame["target"] = chosen
    path = folder / "products.csv.gz"
    path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    return path


def large(folder: Path, rng: np.random.Generator) -> Path:
    """200,000 rows of numbers, categories and codes with leading zeros."""
    frame = pd.concat([_customers(rng, 50_000)] * 4, ignore_index=True)
    frame["zip"] = [f"{code:05}" for code in rng.integers(500, 99_999, len(frame))]
    for i in range(5):
        frame[f"x{i}"] = rng.normal(size=len(frame)).round(4)
    path = folder / "large.csv"
    frame.to_csv(path, index=False)
    return path


def parquet_types(folder: Path, rng: np.random.Generator) -> Path:
    """Parquet with categories, nullable integers, time zones, an empty column and lists."""
    num_rows = 180
    size = pd.Series(rng.integers(0, 100, num_rows), dtype="Int64")
    frame = pd.DataFrame(
        {
            "size": size.mask(pd.Series(rng.random(num_rows) < 0.1)),
            "grade": pd.Categorical(rng.choice(["low", "mid", "high"], num_rows)),
            "seen": pd.date_range("2022-01-01", periods=num_rows, freq="31h", tz="Europe/Berlin"),
            "tags": [list(rng.choice(["a", "b"], 2)) for _ in range(num_rows)],
            "nothing": [None] * num_rows,
            "target": pd.Series(size > 50).map({True: "big", False: "small"}),
        }
    )
    path = folder / "events.parquet"
    frame.set_index(pd.Index(rng.permutation(num_rows), name="event")).to_parquet(path)
    return path


def untidy_names(folder: Path, rng: np.random.Generator) -> Path:
    """Names that repeat, are empty, hold separators, quotes and line breaks; Windows lines."""
    frame = _customers(rng, 160)
    rows = frame.assign(more=frame["months"] // 2, text="x").astype(str).values.tolist()
    header = '"Months, total";Price;"City\r\n(home)";"the ""Plan""";target;Price;'
    lines = [header, *(";".join(row) for row in rows)]
    path = folder / "untidy.csv"
    path.write_bytes(("\r\n".join(lines) + "\r\n").encode("utf-8-sig"))
    return path


def large_labels(folder: Path, rng: np.random.Generator) -> Path:
    """Classes that are long numbers, and identifiers beyond what a float holds."""
    codes = (9_007_199_254_740_993, 9_007_199_254_740_992, 1_000_001)
    code = rng.integers(0, 3, 150)
    frame = pd.DataFrame(
        {
            "a": code + rng.normal(0, 1, 150),
            "account": rng.choice([2**60 + 1, 2**60 + 3], 150),
            "target": [codes[i] for i in code],
        }
    )
    path = folder / "labels.csv"
    frame.to_csv(path, index=False)
    return path


def house_prices(folder: Path, rng: np.random.Generator) -> Path:
    """A quantity with a currency sign, and years; for a regression."""
    num_rows = 300
    area = rng.normal(120, 30, num_rows).round(1)
    price = 3000 * area + rng.normal(0, 40_000, num_rows)
    frame = pd.DataFrame(
        {
            "area m²": area,
            "built": rng.integers(1900, 2020, num_rows),
            "heating": rng.choice(["gas", "oil", "pump", ""], num_rows),
            "target": [f"{value:,.0f} €" for value in price],
        }
    )
    path = folder / "houses.csv"
    frame.to_csv(path, index=False)
    return path


def old_arff(folder: Path, rng: np.random.Generator) -> Path:
    """ARFF with declared categories, INTEGER with fractions, a date and missing values."""
    rows = []
    for i in range(140):
        level = rng.choice(["low", "'very high'", "?"])
        good = "good" if rng.random() < (0.8 if level == "low" else 0.3) else "bad"
        rows.append(f'{i % 17 + 0.5},{level},"2021-{1 + i % 12:02}-01",{good}')
    path = folder / "credit.arff"
    path.write_text(
        "% comment\n@relation credit\n@attribute duration INTEGER\n"
        "@attribute level {'very high', low}\n@attribute since date 'yyyy-MM-dd'\n"
        "@attribute target {good, bad, unused}\n@data\n" + "\n".join(rows) + "\n"
    )
    return path


CLASSIFICATION: tuple[Callable[[Path, np.random.Generator], Path], ...] = (
    churn_semicolons,
    missing_everywhere,
    indexed,
    reviews,
    orders_excel,
    imbalanced,
    many_rare_classes,
    large,
    parquet_types,
    untidy_names,
    large_labels,
    old_arff,
)
OPTIONS = {
    many_rare_classes: {"rare_classes": "merge+stratify"},
    imbalanced: {"rare_classes": "stratify"},
}
"""What a table needs beside its target."""


def write(make: Callable[[Path, np.random.Generator], Path], folder: Path) -> Path:
    """Writes a table with its own fixed seed."""
    return make(folder, np.random.default_rng(sum(make.__name__.encode())))

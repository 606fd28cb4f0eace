"""Realistic tables are prepared in both forms, the same anew from disk, and leak nothing."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from env.datasets import load_dataset
from env.tables import listing, prepared, splits
from tests.env.tables.realistic import (
    CLASSIFICATION,
    OPTIONS,
    house_prices,
    large,
    write,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


SMALL = tuple(make for make in CLASSIFICATION if make is not large)


def check(dataset, form):
    """The dataset is complete, and its preparation gives the same values from disk."""
    preparation = json.loads(json.dumps(dataset.preparation))
    raw = prepared.read(preparation)
    rows = (
        prepared.visible_rows(preparation, raw),
        prepared.holdout_rows(preparation, raw),
    )
    assert not set(rows[0]) & set(rows[1])
    for part, chosen in zip((dataset, dataset.holdout), rows, strict=True):
        assert np.isfinite(part.features).all()
        values = prepared.features(preparation, raw.iloc[chosen])
        if form == "frame":
            assert values.equals(part.frame)
            assert list(values.columns) == list(part.feature_names)
        else:
            np.testing.assert_array_equal(values, part.features, strict=True)
        labels = prepared.labels(preparation, raw)[chosen]
        np.testing.assert_array_equal(labels, part.labels, strict=True)
        assert np.isfinite(labels).all()
    lines = listing.profile_lines(preparation)
    assert all(any(line.startswith(name[:20]) for line in lines) for name in dataset.feature_names)
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("make", "form"),
    [*((make, form) for make in SMALL for form in ("array", "frame")), (large, "frame")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_realistic_tables_can_be_scored(make, form, folder):
    path = write(make, folder)
    dataset = load_dataset(str(path), target="target", table_form=form, **OPTIONS.get(make, {}))
    check(dataset, form)
    assert dataset.num_classes == len(dataset.class_names) >= 2
    assert len(dataset.labels) + len(dataset.holdout.labels) <= 2000
    strata = dataset.labels if dataset.stratified else None
    for seed in range(5):
        for rows in splits.split_rows(len(dataset.labels), seed, strata):
            assert set(dataset.labels[rows]) == set(range(dataset.num_classes))


@pytest.mark.parametrize("form", ["array", "frame"])
def test_a_quantity_is_a_regression(form, folder):
    path = write(house_prices, folder)
    dataset = load_dataset(str(path), target="target", table_form=form, regression=True)
    check(dataset, form)
    assert dataset.is_regression
    area = dataset.features[:, dataset.feature_names.index("area m²")]
    assert np.corrcoef(area, dataset.labels)[0, 1] > 0.8


READ_AS = {
    "churn_semicolons": {"price": "number", "city": "category", "Geändert am": "date"},
    "missing_everywhere": {
        "age": "number",
        "pressure": "number",
        "smoker": "category",
        "region": "category",
    },
    "indexed": {"Unnamed: 0": "dropped", "months": "number"},
    "reviews": {"text": "text", "stars": "number", "helpful": "boolean"},
    "orders_excel": {
        "order_id": "dropped",
        "ordered": "date",
        "amount": "number",
        "discount": "number",
        "returned": "boolean",
    },
    "imbalanced": {"time": "date", "amount": "number", "country": "category"},
    "parquet_types": {
        "size": "number",
        "grade": "category",
        "seen": "date",
        "tags": "category",
        "nothing": "dropped",
    },
    "untidy_names": {"Months, total": "number", "Price.1": "number", 'the "Plan"': "category"},
    "large_labels": {"a": "number", "account": "category"},
    "old_arff": {"duration": "number", "level": "category", "since": "date"},
}


@pytest.mark.parametrize("make", SMALL, ids=lambda make: make.__name__)
def test_columns_are_read_as_a_person_would(make, folder):
    path = write(make, folder)
    dataset = load_dataset(str(path), target="target", **OPTIONS.get(make, {}))
    read = {column["name"]: column["as"] for column in dataset.preparation["columns"]}
    assert read | READ_AS.get(make.__name__, {}) == read


def noise(num_rows=600):
    """Features of noise; the rows were sorted by class before they were shuffled."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "a": rng.normal(size=num_rows).round(6),
            "b": rng.choice(["u", "v", "w"], num_rows),
            "when": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 999, 600), "D"),
            "y": np.repeat(["no", "yes"], num_rows // 2),
        }
    )
    return frame.sample(frac=1, random_state=1)


def arff(frame, path):
    rows = "\n".join(",".join(map(str, row)) for row in frame.reset_index().values)
    path.write_text(
        "@relation r\n@attribute index INTEGER\n@attribute a REAL\n@attribute b {u, v, w}\n"
        f"@attribute when STRING\n@attribute y {{no, yes}}\n@data\n{rows}\n".replace(
            " 00:00:00", ""
        )
    )


def named(name):
    return lambda frame, path: frame.rename_axis(name).reset_index().to_csv(path, index=False)


@pytest.mark.parametrize("form", ["array", "frame"])
@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("index.csv", lambda frame, path: frame.to_csv(path)),
        ("twice.csv", lambda frame, path: frame.assign(**{"Unnamed: 0": frame.index}).to_csv(path)),
        ("part.csv", lambda frame, path: frame.iloc[:300].to_csv(path)),
        ("two_frames.csv", lambda frame, path: frame.set_index(frame.index % 300).to_csv(path)),
        (
            "r.csv",
            lambda frame, path: frame.rename_axis("X").reset_index().to_csv(path, index=False),
        ),
        ("level.csv", named("__index_level_0__")),
        ("id.csv", named("id")),
        ("customer_id.csv", named("CustomerId")),
        ("row.tsv", lambda frame, path: frame.rename_axis("row").to_csv(path, sep="\t")),
        ("index.csv.gz", lambda frame, path: frame.to_csv(path)),
        ("index.xlsx", lambda frame, path: frame.to_excel(path)),
        ("index.parquet", lambda frame, path: frame.to_parquet(path)),
        ("named.parquet", lambda frame, path: frame.rename_axis("key").to_parquet(path)),
        ("level.parquet", lambda f, p: f.rename_axis("level_0").reset_index().to_parquet(p)),
        (
            "index.jsonl",
            lambda f, p: f.reset_index().to_json(
                p, orient="records", lines=True, date_format="iso"
            ),
        ),
        ("index.arff", arff),
    ],
)
def test_noise_stays_noise(tmp_path, name, save, form):
    save(noise(), tmp_path / name)
    dataset = load_dataset(str(tmp_path / name), target="y", table_form=form)
    assert set(dataset.feature_names) == {"a", "b", "when"}
    if form == "frame":
        assert list(dataset.frame.index) == list(range(len(dataset.labels)))
        assert list(dataset.frame.columns) == list(dataset.feature_names)
    scores = []
    for seed in range(3):
        training, validation = splits.split_rows(len(dataset.labels), seed)
        model = RandomForestClassifier(n_estimators=50, random_state=0)
        model.fit(dataset.features[training], dataset.labels[training])
        predicted = model.predict_proba(dataset.features[validation])[:, 1]
        scores.append(roc_auc_score(dataset.labels[validation], predicted))
    assert abs(np.mean(scores) - 0.5) < 0.1

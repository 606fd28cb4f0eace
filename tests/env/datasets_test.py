"""Tables by name: embedded, from a folder, from the cache, and the user's own."""

import subprocess
import sys

import numpy as np
import pytest

from env.base import UsageError
from env.datasets import fetch, load_dataset
from env.tables import cache, prepared, registry

EMBEDDED = ("balance_scale", "tic_tac_toe")


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_tables_have_the_published_checksum(name, cache_dir):
    dataset, entry = load_dataset(name), registry.find(name)
    assert dataset.checksum == entry.checksum
    assert dataset.features.shape == entry.shape
    assert dataset.num_classes == len(dataset.class_names) == len(entry.classes)
    assert (dataset.features.dtype, dataset.labels.dtype) == (np.float64, np.int64)
    assert fetch(name) == "embedded"
    assert not cache_dir.exists()


def test_the_checksum_sees_values_order_and_shape():
    dataset = load_dataset("balance_scale")
    changed = dataset.features.copy()
    changed[0, 0] = np.nextafter(changed[0, 0], 9)
    variants = [
        (changed, dataset.labels),
        (dataset.features[::-1], dataset.labels[::-1]),
        (dataset.features.reshape(250, 2), dataset.labels),
        (dataset.features, 1 - dataset.labels),
    ]
    checksums = {
        type(dataset)("", "", features, labels, ()).checksum for features, labels in variants
    }
    assert len(checksums - {dataset.checksum}) == len(variants)


def test_embedded_tables_import_nothing_heavy():
    code = (
        "import sys; from env.datasets import load_dataset; load_dataset('tic_tac_toe');"
        "print(sorted({m.split('.')[0] for m in sys.modules} &"
        " {'jax', 'pandas', 'openml', 'sklearn', 'scipy', 'pyarrow', 'absl'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", registry.REGISTRY)
def test_a_folder_of_published_files_serves_all_fourteen(name, raw_dir, cache_dir):
    dataset, entry = load_dataset(name, data_dir=raw_dir), registry.find(name)
    assert dataset.features.shape == entry.shape
    assert dataset.description == entry.description
    assert entry.checksum in (None, dataset.checksum)
    raw = prepared.read(dataset.preparation)
    np.testing.assert_array_equal(
        prepared.features(dataset.preparation, raw), dataset.features, strict=True
    )
    np.testing.assert_array_equal(prepared.labels(dataset.preparation, raw), dataset.labels)
    assert not cache_dir.exists()


def test_a_folder_fills_the_cache(raw_dir, cache_dir):
    assert fetch("breast_w", data_dir=raw_dir) == "fetched"
    assert load_dataset("breast_w").checksum == registry.find("breast_w").checksum
    assert fetch("breast_w") == "cached"


def test_a_substitute_without_checksum_is_cached_on_demand_only(raw_dir, cache_dir):
    with pytest.raises(UsageError, match="26969 rows instead of the published 539383"):
        fetch("airlines", data_dir=raw_dir)
    assert not cache_dir.exists()
    assert fetch("airlines", data_dir=raw_dir, strict=False) == "fetched"
    assert load_dataset("airlines").features.shape == (2000, 7)
    with pytest.raises(UsageError, match="--strict_data refuses rows that no checksum verifies"):
        load_dataset("airlines", strict=True)


def test_changed_rows_in_a_folder_are_refused_with_both_checksums(raw_dir, tmp_path):
    text = (raw_dir / "diabetes.arff").read_text().replace("6,148,72,35", "6,149,72,35")
    (tmp_path / "diabetes.arff").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_dataset("diabetes", data_dir=tmp_path)
    changed = load_dataset("diabetes", data_dir=tmp_path, strict=False)
    assert changed.checksum in str(caught.value)
    assert registry.find("diabetes").checksum in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("balance_scal", {}, "unknown data set 'balance_scal'; did you mean balance_scale?"),
        ("zebra", {}, "known: pharyngitis kidney_stone"),
        ("balance_scale", {"target": "class"}, "--target is for a file only"),
        (
            "balance_scale",
            {"data_dir": "/dev/null/such"},
            "--data_dir=/dev/null/such: there is no",
        ),
        ("balance_scale", {"description": 'a """ b'}, "--task_description="),
        ("balance_scale", {"description": "two\nlines"}, "--task_description="),
        ("balance_scale", {"description": " "}, "--task_description="),
        (
            "balance_scale",
            {"num_splits": 2000},
            "balance_scale: class 'B' of the target has too few",
        ),
        ("/dev/null/such.csv", {}, "--dataset=/dev/null/such.csv: there is no such file"),
        (".", {}, "--dataset=.: names a folder"),
        ("balance_scale", {"holdout": 1.0}, "--holdout=1: must be from 0 to 0.9"),
        ("balance_scale", {"rare_classes": "none"}, "--rare_classes=none: must be one of refuse"),
        ("balance_scale", {"rare_classes": "drop"}, "=drop is for a table of your own"),
        ("balance_scale", {"regression": True}, "balance_scale: its target is a class"),
        (
            "csv:/dev/null/such.csv",
            {"target": "y"},
            "--dataset=csv:/dev/null/such.csv: there is no such file",
        ),
        ("csv:x.csv", {"max_rows": 7}, "--max_rows=7: must be at least 8"),
        ("csv:x.csv", {"data_dir": "."}, "--data_dir is for the paper's tables"),
    ],
)
def test_bad_requests_are_refused(name, options, message):
    with pytest.raises(UsageError) as caught:
        load_dataset(name, **options)
    assert message in str(caught.value)


def test_a_description_of_ones_own():
    assert load_dataset("balance_scale", description="Seesaw").description == "Seesaw"


@pytest.fixture
def user_csv(tmp_path):
    path = tmp_path / "customer-churn_Q3.csv"
    rows = [f"{i},{'xyz'[i % 3]},{'left' if i % 2 else 'stayed'}" for i in range(60)]
    path.write_text("\n".join(["months,plan,outcome", *rows]) + "\n")
    return path


def test_a_table_of_the_users(user_csv):
    dataset = load_dataset(str(user_csv), target="outcome", max_rows=50)
    assert (dataset.name, dataset.description) == ("customer-churn_Q3", "Customer Churn Q3")
    assert dataset.features.shape == (40, 2)
    assert dataset.holdout.features.shape == (10, 2)
    assert dataset.class_names == ("left", "stayed")
    assert dataset.feature_names == ("months", "plan")
    assert load_dataset(f"csv:{user_csv}", target="outcome", max_rows=50).checksum == (
        dataset.checksum
    )
    named = load_dataset(f"csv:{user_csv}", target="outcome", description="Telephone")
    assert named.description == "Telephone"


def test_a_missing_target_lists_the_columns(user_csv):
    with pytest.raises(UsageError, match="--target is missing; the columns are: months, plan, out"):
        load_dataset(f"csv:{user_csv}")


def test_problems_of_a_users_table_name_it(user_csv):
    with pytest.raises(UsageError, match=r"Q3\.csv: the target 'months' holds 60 distinct numbers"):
        load_dataset(f"csv:{user_csv}", target="months")


def test_a_damaged_cache_file_counts_as_absent(cache_dir):
    dataset = load_dataset("balance_scale")
    cache.store(cache_dir, dataset)
    path = cache_dir / "balance_scale.npz"
    whole = path.read_bytes()
    loaded = cache.load(cache_dir, "balance_scale")
    assert loaded.checksum == dataset.checksum
    assert loaded.feature_names == dataset.feature_names
    flipped = bytearray(whole)
    flipped[whole.index(dataset.labels.tobytes())] ^= 1
    for content in (b"", whole[: len(whole) // 2], bytes(flipped), b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        assert cache.load(cache_dir, "balance_scale") is None
    assert [p.name for p in cache_dir.iterdir()] == ["balance_scale.npz"]


def test_an_interrupted_write_leaves_the_old_file(cache_dir, monkeypatch):
    dataset = load_dataset("balance_scale")
    cache.store(cache_dir, dataset)

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez", full_disk)
    with pytest.raises(OSError, match="No space left"):
        cache.store(cache_dir, dataset)
    assert [p.name for p in cache_dir.iterdir()] == ["balance_scale.npz"]
    assert cache.load(cache_dir, "balance_scale").checksum == dataset.checksum


def test_a_paper_table_as_a_frame_with_rows_held_out(cache_dir):
    plain = load_dataset("balance_scale")
    dataset = load_dataset("balance_scale", table_form="frame", holdout=0.2)
    assert (len(dataset.labels), len(dataset.holdout.labels)) == (100, 25)
    for part in (dataset, dataset.holdout):
        assert list(part.frame.columns) == list(plain.feature_names)
        np.testing.assert_array_equal(part.frame.to_numpy(), part.features)
    assert len({plain.checksum, dataset.checksum, dataset.holdout.checksum}) == 3
    counts = np.bincount(plain.labels), np.bincount(dataset.holdout.labels)
    np.testing.assert_allclose(counts[1], 0.2 * counts[0], atol=0.5)
    assert plain.frame is plain.holdout is None

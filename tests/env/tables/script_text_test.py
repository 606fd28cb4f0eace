"""The code of preparations stands alone."""

import json
import subprocess
import sys

import numpy as np

from env.datasets import load_dataset
from env.tables.script_text import script_text


def test_the_text_prepares_a_table_without_this_project(tmp_path):
    dataset = load_dataset("balance_scale", holdout=0.2)
    script = script_text() + (
        "preparation = json.load(open('preparation.json'))\n"
        "raw = read(preparation)\n"
        "rows = visible_rows(preparation, raw)\n"
        "import sys\n"
        "np.savez('out.npz', x=features(preparation, raw)[rows],"
        " y=labels(preparation, raw)[rows])\n"
        "assert not {'env', 'etpo_jax', 'absl'} & set(sys.modules)\n"
    )
    (tmp_path / "preparation.json").write_text(json.dumps(dataset.preparation))
    (tmp_path / "script.py").write_text(script)
    subprocess.run([sys.executable, "-I", "script.py"], cwd=tmp_path, check=True)
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_array_equal(out["x"], dataset.features, strict=True)
        np.testing.assert_array_equal(out["y"], dataset.labels, strict=True)

"""Hostile programs on data frames, and a table of noise on which any leak would show.

The rows of the table lie in the order of their labels, and the frame that the trusted side holds
carries the labels in its index and its attributes: whatever of it reaches a program beside the
values gives the labels away.
"""

import textwrap

import numpy as np
import pandas as pd

from env.execution.scoring import ScoredTable

NUM_ROWS = 1000
COLUMNS = ["number", "whole", "is_so", "when", "few", "many"]


def noise(*, is_regression: bool = False, stratified: bool = False) -> ScoredTable:
    """Returns a table in which no column tells anything about the target, with a holdout."""
    held, table = (_noise(seed, is_regression) for seed in (1, 0))
    return ScoredTable(table.features, table.labels, table.frame, held, stratified)


def _noise(seed: int, is_regression: bool) -> ScoredTable:
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.normal(size=NUM_ROWS) if is_regression else rng.integers(2, size=NUM_ROWS))
    texts = [f"text {i}" for i in rng.permutation(NUM_ROWS)]
    few = rng.choice(["red", "green\u00e9", None], NUM_ROWS)
    frame = pd.DataFrame(
        {
            "number": np.where(rng.random(NUM_ROWS) < 0.1, np.nan, rng.normal(size=NUM_ROWS)),
            "whole": rng.integers(0, 10**6, NUM_ROWS),
            "is_so": rng.random(NUM_ROWS) < 0.5,
            "when": rng.integers(0, 2**60, NUM_ROWS).astype("datetime64[ns]"),
            "few": pd.Series(few, dtype=object),
            "many": pd.Series(texts, dtype=object),
        }
    )
    frame.index = pd.Index(labels, name="label")
    frame.attrs["labels"] = labels.tolist()
    # The array form of the rows is no part of what a program on frames gets.
    return ScoredTable(labels[:, None].astype(np.float64), labels, frame)


# Ways to order rows by something that is not their values; each defines `scores(x)`.
_ORDERS = {
    "position": "return np.arange(len(x))",
    "index": "return np.argsort(np.argsort(x.index.to_numpy(), kind='stable'))",
    "index_name": "return np.full(len(x), float(x.index.name == 'label'))",
    "attributes": "return np.resize(np.array([0.0, *map(len, map(str, x.attrs))]), len(x))",
    "addresses_of_texts": "return np.array([id(text) for text in x['many']])",
    "addresses_of_equal_texts": "return np.array([id(text) % 2**24 for text in x['few']])",
    "references_to_texts": """
import sys
return np.array([sys.getrefcount(text) for text in x['few']])""",
    "hashes": "return pd.util.hash_pandas_object(x, index=True).to_numpy() % 2**32",
    "dates": "return x['when'].astype('int64').to_numpy() % 2**40",
    "lengths_of_texts": "return np.cumsum(x['many'].str.len().to_numpy())",
    "missing_values": "return np.cumsum(x['number'].isna().to_numpy())",
    "last_bits": "return x['number'].fillna(0).to_numpy().view('u8') % 256",
    "values": """
return np.linspace(0, 1, len(x)) @ np.linspace(0, 1, len(x)) + x['whole'].rank().to_numpy()""",
}

_REMEMBERED = """
import builtins, sys
known = {}
for store in (np.__dict__, pd.__dict__, builtins.__dict__, sys.__dict__, pd.DataFrame._metadata):
    known.update(store.get('etpo_memory') or {} if isinstance(store, dict) else {})
keys = lambda x: pd.util.hash_pandas_object(x, index=False)
known.update(zip(keys(x_train), y_train))
for store in (np.__dict__, pd.__dict__, builtins.__dict__, sys.__dict__):
    store['etpo_memory'] = known
middle = float(np.mean(y_train))
def scores(x):
    return np.array([known.get(key, middle) for key in keys(x)])
"""

_MODEL = """
class Model:
    def predict(self, x):
        s = np.asarray(scores(x), float)
        return np.mean(y_train) + np.std(y_train) * (s - s.mean()) / (s.std() or 1)
    def predict_proba(self, x):
        s = np.asarray(scores(x), float)
        s = (s - s.min()) / (np.ptp(s) or 1)
        return np.stack([1 - s, s], axis=1)
model = Model()
"""


def _body(code: str) -> str:
    return textwrap.indent(code.strip(), "    ").lstrip()


ORDERS = {
    **{
        name: _body(f"def scores(x):\n{textwrap.indent(code.strip(), '    ')}\n{_MODEL}")
        for name, code in _ORDERS.items()
    },
    "memory": _body(_REMEMBERED + _MODEL),
}
"""Bodies that predict by something else than values: they must not beat chance."""

_DRESS = f"""
def breach(what):
    raise RuntimeError('BREACH ' + what)
def look(x):
    if type(x) is not pd.DataFrame or type(x.index) is not pd.RangeIndex:
        breach('type')
    if (x.index.start, x.index.stop, x.index.step, x.index.name) != (0, len(x), 1, None):
        breach('index')
    if x.attrs or x.columns.name is not None or list(x.columns) != {COLUMNS!r}:
        breach('attributes or columns')
    if [str(kind) for kind in x.dtypes] != [
            'float64', 'int64', 'bool', 'datetime64[ns]', 'object', 'object']:
        breach('types')
    if any(hasattr(x[name], 'cat') or x[name].attrs for name in x):
        breach('categories')
    if set(vars(x)) - {{'_mgr', '_item_cache', '_attrs', '_flags'}}:
        breach(f'hidden state {{set(vars(x))}}')
    for name in x:
        array = x[name].to_numpy()
        while array is not None:
            if isinstance(array, np.ndarray) and array.size % len(x):
                breach(f'the array below {{name}} has {{array.size}} values')
            if not isinstance(array, np.ndarray) and len(array) > 8 * 6 * len(x):
                breach(f'the buffer below {{name}} has {{len(array)}} bytes')
            array = getattr(array, 'base', None)
    for text in x['many']:
        if type(text) is not str:
            breach('texts')
"""

_SEARCH = """
import gc, sys
def suspicious(value):
    if value is x_train or value is y_train:
        return False
    if isinstance(value, pd.DataFrame):
        return len(value) > 100
    if isinstance(value, np.ndarray):
        return value.size == len(y_train) and value.dtype.kind in 'iuf' and value.ndim == 1
    return isinstance(value, (bytes, bytearray)) and len(value) > 8 * len(y_train) and (
        y_train.tobytes() in bytes(value))
own = [x_train[name].to_numpy() for name in x_train] + [x_train.index._cache.get('_data')]
own += [array.base for array in own if array is not None]
frame = sys._getframe()
values = []
while frame is not None:
    values += list(frame.f_locals.values()) + list(frame.f_globals.values())
    frame = frame.f_back
for item in gc.get_objects():
    values += gc.get_referents(item)
for value in values:
    if suspicious(value) and not any(
            isinstance(value, np.ndarray) and part is not None and np.shares_memory(value, part)
            for part in own):
        raise RuntimeError(f'BREACH {type(value)} {getattr(value, "dtype", "")}')
"""

BREACHES = {
    "dress_of_training_rows": _body(
        _DRESS + "look(x_train)\ndef scores(x): return x['whole']" + _MODEL
    ),
    "dress_of_validation_rows": _body(
        _DRESS + "def scores(x):\n    look(x)\n    return x['whole']" + _MODEL
    ),
    "other_frames_and_labels": _body(_SEARCH + "def scores(x): return x['whole']" + _MODEL),
    "no_arrow": _body(
        "import sys\nif 'pyarrow' in sys.modules: raise RuntimeError('BREACH pyarrow')\n"
        "def scores(x): return x['whole']" + _MODEL
    ),
}
"""Bodies that report what a frame carries beside its values."""

"""Loads every module that programs may import, before the walls close.

A cell cannot open files: it finds only modules that are imported already, or whose byte code is in
memory. So imports cost nothing and are the same on every host.
"""

import contextlib
import ctypes
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import marshal
import os
import sys
import types
import warnings
from collections.abc import Mapping, Sequence

from env.sandbox import frames

_STANDARD_LIBRARY = """
abc argparse array ast asyncio base64 binascii bisect calendar cmath codecs collections.abc
concurrent.futures.thread contextlib copy copyreg csv ctypes dataclasses datetime decimal difflib
dis encodings.ascii encodings.cp1252 encodings.idna encodings.latin_1 encodings.punycode
encodings.raw_unicode_escape encodings.unicode_escape encodings.utf_16 encodings.utf_16_le
encodings.utf_32 encodings.utf_8_sig enum fnmatch fractions functools getpass glob graphlib gzip
hashlib heapq html importlib.metadata importlib.resources inspect io itertools json keyword
linecache locale logging math multiprocessing multiprocessing.dummy multiprocessing.pool numbers
operator os pathlib pickle pkgutil platform pprint queue random re reprlib sched secrets select
shutil signal socket stat statistics string struct subprocess sys tempfile textwrap threading time
timeit token tokenize traceback types typing unicodedata unittest unittest.mock urllib.parse uuid
warnings weakref xml.etree.ElementTree zipfile zlib zoneinfo
"""

_SCIPY = """
cluster.hierarchy cluster.vq constants fft fftpack integrate interpolate io linalg ndimage optimize
signal sparse sparse.csgraph sparse.linalg spatial spatial.distance special stats stats.contingency
stats.distributions stats.mstats stats.qmc stats.sampling
"""

# The only distributions that may be imported. Optional dependencies of theirs (torch, matplotlib,
# pyarrow) would cost seconds and make programs behave differently from host to host.
_DISTRIBUTIONS = frozenset(
    {
        "_cyutility",
        "cloudpickle",
        "cython_runtime",
        "dateutil",
        "env",
        "joblib",
        "narwhals",
        "numpy",
        "pandas",
        "pytz",
        "scipy",
        "six",
        "sklearn",
        "threadpoolctl",
        "tzdata",
    }
)


_SKIPPED_FOLDERS = """
__pycache__ config dist-packages ensurepip f2py idlelib lib-dynload lib2to3 pydoc_data site-packages
test tests tkinter turtledemo
"""

_HUGE_PAGE = 2 << 20
# The objects of all these libraries take a little less than this.
_HEAP_BYTES = 72 << 20
# With its header this is a block of 512 bytes, the largest that Python does not take from malloc.
_BLOCK_BYTES = 470
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25


class _Blinkers(importlib.abc.MetaPathFinder):
    """Import hook that hides all packages but the standard library and `_DISTRIBUTIONS`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> None:
        top = name.partition(".")[0]
        is_standard = top in sys.stdlib_module_names or top.startswith("_sysconfigdata_")
        if top not in _DISTRIBUTIONS and not is_standard:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)


class _OnRequest(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook that serves modules which are not imported yet from byte code in memory.

    Libraries import some modules only when they need them, and some modules change the behaviour of
    others when they are imported.

    Args:
      roots: folders of packages, by name; "" is the folder of the standard library.
    """

    def __init__(self, roots: Mapping[str, str]):
        self._files: dict[str, tuple[str, bytes]] = {}
        for package, root in roots.items():
            for folder, subfolders, names in os.walk(root):
                subfolders[:] = sorted(set(subfolders) - set(_SKIPPED_FOLDERS.split()))
                prefix = ".".join(part for part in (package, *_parts(folder, root)) if part)
                for name in names:
                    self._keep(prefix, folder, name)

    def _keep(self, prefix: str, folder: str, name: str) -> None:
        stem, extension = os.path.splitext(name)
        full_name = prefix if stem == "__init__" else f"{prefix}.{stem}".lstrip(".")
        if extension != ".py" or full_name in sys.modules:
            return
        path = os.path.join(folder, name)
        # A module without byte code is left out: each cell would have to compile it.
        with (
            contextlib.suppress(OSError),
            open(importlib.util.cache_from_source(path), "rb") as file,
        ):
            self._files[full_name] = (path, file.read())

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._files:
            return None
        origin, _ = self._files[name]
        is_package = os.path.basename(origin) == "__init__.py"
        spec = importlib.machinery.ModuleSpec(name, self, origin=origin, is_package=is_package)
        spec.has_location = True
        return spec

    def exec_module(self, module: types.ModuleType) -> None:
        # Byte code files have a header of 16 bytes (PEP 552).
        exec(marshal.loads(self._files[module.__name__][1][16:]), module.__dict__)


def _parts(folder: str, root: str) -> list[str]:
    return folder.removeprefix(root).strip(os.sep).split(os.sep)


def _roots() -> dict[str, str]:
    # A module such as six has an empty path: it is no package with files of its own.
    paths = {
        name: list(getattr(sys.modules.get(name), "__path__", ()))
        for name in _DISTRIBUTIONS
        if name != "env"
    }
    packages = {name: path[0] for name, path in paths.items() if path}
    return {"": os.path.dirname(os.__file__), **packages}


def preload(libraries: Sequence[str]) -> None:
    """Imports all modules that programs may use, and leaves a heap that is cheap to fork.

    Args:
      libraries: modules beyond the standard library, numpy, scipy, scikit-learn and pandas.

    Raises:
      ImportError: when numpy, scipy, scikit-learn or one of `libraries` cannot be imported.
    """
    for name in libraries:  # fails before the others take seconds
        top = name.partition(".")[0]
        if importlib.util.find_spec(top) is None:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
    gc.disable()
    reserved = _reserve_heap()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _import_usual()
        for name in libraries:
            importlib.import_module(name)
        _warm_up()
    sys.meta_path.insert(0, _OnRequest(_roots()))
    reserved.clear()
    gc.collect()
    gc.freeze()
    gc.enable()


def _import_usual() -> None:
    blinkers = _Blinkers()
    sys.meta_path.insert(0, blinkers)
    for name in _STANDARD_LIBRARY.split():
        importlib.import_module(name)
    import sklearn

    for name in sklearn.__all__:
        # Some of these names are functions, others need packages that are not installed.
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(f"sklearn.{name}")
    for name in _SCIPY.split():
        importlib.import_module(f"scipy.{name}")
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("pandas")
    sys.meta_path.remove(blinkers)


def _reserve_heap() -> list[bytes]:
    """Makes Python take the memory of its small objects in one stretch, on huge pages.

    A fork copies one entry of the page table for each page, huge or small. By itself Python takes
    memory in pieces that are scattered between libraries and too small for huge pages. The returned
    objects keep the pieces allocated; drop them once the libraries are loaded.
    """
    blocks = [bytes(_BLOCK_BYTES) for _ in range(_HEAP_BYTES // 512)]
    libc = ctypes.CDLL(None)
    length = ctypes.c_size_t(_HUGE_PAGE)
    for page in sorted({id(block) // _HUGE_PAGE for block in blocks}):
        address = ctypes.c_void_p(page * _HUGE_PAGE)
        # Where the kernel does not take this advice, forks are slower.
        libc.madvise(address, length, _MADV_HUGEPAGE)
        libc.madvise(address, length, _MADV_COLLAPSE)
    # A piece is a megabyte and has 1984 blocks; keeping one or two of them keeps the piece.
    return blocks[::1024]


def _warm_up() -> None:
    """Fits the usual models once, so that no cell pays for work that is done on first use.

    This covers specialised byte code, caches of signatures and types, and the set-up of numeric
    libraries: a third of the memory pages that a small program would have to copy.
    """
    import numpy as np
    from sklearn import (
        discriminant_analysis,
        ensemble,
        linear_model,
        model_selection,
        naive_bayes,
        neighbors,
        neural_network,
        pipeline,
        preprocessing,
        svm,
        tree,
    )

    x = np.random.RandomState(0).normal(size=(30, 3))
    y = np.arange(30) % 3
    logistic = linear_model.LogisticRegression(max_iter=5)
    for model in (
        logistic,
        discriminant_analysis.LinearDiscriminantAnalysis(),
        ensemble.AdaBoostClassifier(n_estimators=1),
        ensemble.ExtraTreesClassifier(n_estimators=1),
        ensemble.GradientBoostingClassifier(n_estimators=1),
        ensemble.HistGradientBoostingClassifier(max_iter=1),
        ensemble.RandomForestClassifier(n_estimators=1),
        ensemble.VotingClassifier([("model", logistic)], voting="soft"),
        model_selection.GridSearchCV(logistic, {"C": [1.0]}, cv=2),
        naive_bayes.GaussianNB(),
        neighbors.KNeighborsClassifier(n_neighbors=1),
        neural_network.MLPClassifier((2,), max_iter=1),
        pipeline.make_pipeline(preprocessing.StandardScaler(), logistic),
        svm.SVC(probability=True),
        tree.DecisionTreeClassifier(),
    ):
        model.fit(x, y).predict_proba(x)
    with contextlib.suppress(ModuleNotFoundError):
        _warm_up_frames()


def _warm_up_frames() -> None:
    """Does the same for data frames and what programs usually do with their columns."""
    import numpy as np
    import pandas as pd
    from sklearn import compose, dummy, impute, linear_model, pipeline, preprocessing

    sent = pd.DataFrame(
        {
            "number": np.where(np.arange(30) % 5, np.arange(30) / 7, np.nan),
            "whole": np.arange(30),
            "is_so": np.arange(30) % 2 == 0,
            "when": np.arange(30).astype("datetime64[D]").astype("datetime64[ns]"),
            "text": pd.Series(["a", None, "b"] * 10, dtype=object),
        }
    )
    columns = frames.columns(sent)
    payload = frames.encode(sent, np.arange(30), [kind for _, kind in columns])
    x, y = frames.decode(payload, columns), np.arange(30) % 3
    dummy.DummyClassifier().fit(x, y).predict_proba(x)
    encode = compose.make_column_transformer(
        (
            pipeline.make_pipeline(impute.SimpleImputer(), preprocessing.StandardScaler()),
            ["number"],
        ),
        (preprocessing.OneHotEncoder(handle_unknown="ignore"), x.select_dtypes("object").columns),
        (preprocessing.OrdinalEncoder(), ["text"]),
        remainder="drop",
    )
    model = pipeline.make_pipeline(encode, linear_model.LogisticRegression(max_iter=5))
    model.fit(x, y).predict_proba(x)
    x.assign(year=x["when"].dt.year, text=x["text"].fillna("").str.lower()).groupby("text")[
        ["number", "year"]
    ].mean()
    x["text"].astype("category").cat.codes.to_numpy()
    pd.get_dummies(x[["text", "whole"]]).isna().sum()

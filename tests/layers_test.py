"""Imports point down only: from the programs to the trainer, the mathematics, the models and env.

A rule names the folders and modules that a part may import beside itself; a module that no rule
names belongs to the default part of its package.
"""

import ast
import dataclasses
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("etpo_jax", "models", "env")
ACCELERATOR_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax"}


@dataclasses.dataclass(frozen=True)
class Part:
    """Modules and folders of a package that follow one rule.

    Attributes:
      members: first components of module names within the package; empty is the default part.
      below: names of the parts of the same package whose members may be imported too.
      packages: other packages of this project that may be imported.
    """

    members: frozenset[str]
    below: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


def _part(members: str, *below: str, packages: tuple[str, ...] = ()) -> Part:
    return Part(frozenset(members.split()), below, packages)


_BELOW_ALL = ("models", "env")
PARTS: dict[str, dict[str, Part]] = {
    "etpo_jax": {
        "programs": _part(
            "__init__ cli evaluate export inspect_run plan reproduce train",
            *("trainer", "runs", "learning", "settings", "mathematics"),
            packages=_BELOW_ALL,
        ),
        # The trainer, its loop and what it is built of; also any module that is not named here.
        "trainer": _part("", *("runs", "learning", "settings", "mathematics"), packages=_BELOW_ALL),
        "runs": _part("runs", "learning", "settings", "mathematics", packages=_BELOW_ALL),
        "learning": _part(
            "acting algorithms devices", "settings", "mathematics", packages=_BELOW_ALL
        ),
        "settings": _part(
            "config exploration flags learning model_settings registry renamed settings "
            "task_settings",
            "mathematics",
            packages=_BELOW_ALL,
        ),
        "mathematics": _part("distribution divergence losses roles soft_q"),
    },
    "models": {
        # The programs that teach the stand-in to solve tasks of env.
        "stand_in": _part("stand_in pretrain_tiny", "models", packages=("env",)),
        "models": _part(""),
    },
    "env": {
        "programs": _part(
            "datasets executor isolation run_action",
            *("tasks", "execution", "tables", "sandbox", "base"),
        ),
        "tasks": _part("tasks", "execution", "tables", "base"),
        "execution": _part("execution", "tables", "sandbox", "base"),
        "tables": _part("tables", "base"),
        "sandbox": _part("sandbox"),
        "base": _part(""),
    },
}


def part_of(package: str, module: str) -> str:
    """Name of the part that a module belongs to, given its first component."""
    parts = PARTS[package]
    default = next(name for name, part in parts.items() if not part.members)
    return next((name for name, part in parts.items() if module in part.members), default)


def imported_modules(path: pathlib.Path) -> set[str]:
    """Dotted names of everything that a file imports, at whatever place in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_faults(package: str, module: str, imports: set[str]) -> list[str]:
    """The names among `imports` that a module must not import."""
    own = part_of(package, module)
    part = PARTS[package][own]
    faults = []
    for name in sorted(imports):
        top, _, rest = name.partition(".")
        if top == package:
            # `import etpo_jax` is the Python API, `import env` only the folder.
            target = rest.split(".")[0] or "__init__"
            is_fault = part_of(package, target) not in (own, *part.below)
        elif top in PACKAGES:
            is_fault = top not in part.packages
        else:
            is_fault = package == "env" and top in ACCELERATOR_LIBRARIES
        if is_fault:
            faults.append(name)
    return faults


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_points_up(package):
    faults = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        module = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if found := layer_faults(package, module, imported_modules(path)):
            faults[str(path.relative_to(ROOT))] = found
    assert not faults


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_and_module_exists_that_a_rule_names(package):
    named = {member for part in PARTS[package].values() for member in part.members}
    assert not named - {path.stem for path in (ROOT / package).iterdir()}


@pytest.mark.parametrize(
    ("package", "module", "imports"),
    [
        ("env", "sandbox", "env.base.UsageError"),
        ("env", "tables", "env.datasets.load_dataset"),
        ("env", "tables", "env.sandbox.wire"),
        ("env", "execution", "env.tasks.prompts"),
        ("env", "execution", "jax.numpy"),
        ("env", "base", "env.tables.table"),
        ("env", "tasks", "models.tokenizer"),
        ("models", "transformer", "env.base"),
        ("models", "stand_in", "etpo_jax.config"),
        ("etpo_jax", "losses", "etpo_jax.config.Config"),
        ("etpo_jax", "losses", "models.config"),
        ("etpo_jax", "config", "etpo_jax.devices.mesh"),
        ("etpo_jax", "algorithms", "etpo_jax.runs.files"),
        ("etpo_jax", "loop", "etpo_jax.train.main"),
        ("etpo_jax", "runs", "etpo_jax"),
        ("etpo_jax", "runs", "etpo_jax.trainer.Trainer"),
        ("etpo_jax", "runs", "etpo_jax.build.open_task"),
        ("etpo_jax", "runs", "etpo_jax.loop.Loop"),
    ],
)
def test_an_upward_import_would_be_found(package, module, imports):
    assert layer_faults(package, module, {imports}) == [imports]


def test_imports_that_point_down_are_none():
    assert not layer_faults("env", "tasks", {"env.execution.results.Executor", "numpy"})
    assert not layer_faults("env", "execution", {"env", "env.sandbox.wire", "env.plugins"})
    assert not layer_faults("models", "stand_in", {"env.base", "models.tokenizer", "jax"})
    assert not layer_faults("etpo_jax", "losses", {"etpo_jax.divergence.entropy", "jax"})
    assert not layer_faults("etpo_jax", "train", {"etpo_jax.plan.main", "env.base", "models"})
    assert not layer_faults("etpo_jax", "a_new_module", {"etpo_jax.acting", "etpo_jax.runs"})

"""Imports point down only: programs, parts, mathematics, then models and env beside each other."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

PROGRAMS = {"train", "evaluate", "export", "inspect_run", "plan", "reproduce"}
MATHEMATICS = {"soft_q", "divergence", "losses", "distribution"}
# Programs of models/ that teach the stand-in to solve tasks of env/.
MODELS_THAT_KNOW_ENV = ("pretrain_tiny", "stand_in")


def imported_modules(path: pathlib.Path) -> set[str]:
    """Dotted names of everything that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_faults(package: str, module: str, imports: set[str]) -> list[str]:
    """What of `imports` a module may not import."""
    faults = []
    for name in imports:
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if package == "env":
            is_fault = top in ("jax", "jaxlib", "flax", "optax", "orbax", "models", "etpo_jax")
        elif package == "models":
            knows_env = module.startswith(MODELS_THAT_KNOW_ENV)
            is_fault = top == "etpo_jax" or (top == "env" and not knows_env)
        elif module in MATHEMATICS:
            is_fault = top in ("models", "env") or (top == "etpo_jax" and target not in MATHEMATICS)
        elif module in PROGRAMS:
            is_fault = False
        else:
            # A part; `plan` is also what `--dry_run` prints.
            is_fault = top == "etpo_jax" and target in PROGRAMS
        if is_fault:
            faults.append(name)
    return faults


@pytest.mark.parametrize("package", ["etpo_jax", "models", "env"])
def test_no_import_points_up(package):
    faults = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        module = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        found = layer_faults(package, module, imported_modules(path))
        if found:
            faults[str(path.relative_to(ROOT))] = found
    assert not faults


def test_an_upward_import_would_be_found():
    assert layer_faults("env", "worker", {"jax.numpy"}) == ["jax.numpy"]
    assert layer_faults("models", "transformer", {"env.base"}) == ["env.base"]
    assert layer_faults("models", "stand_in", {"env.base"}) == []
    assert layer_faults("etpo_jax", "losses", {"etpo_jax.algorithms.etpo.make"}) == [
        "etpo_jax.algorithms.etpo.make"
    ]
    assert layer_faults("etpo_jax", "loop", {"etpo_jax.train.main"}) == ["etpo_jax.train.main"]
    assert layer_faults("etpo_jax", "losses", {"etpo_jax.divergence.entropy"}) == []

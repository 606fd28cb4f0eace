"""Algorithms by name: registered ones, and classes that are imported."""

import dataclasses
import re

import pytest

from etpo_jax import registry
from etpo_jax.algorithms.base import Algorithm
from etpo_jax.algorithms.etpo import Etpo
from etpo_jax.algorithms.reflection import Reflection
from etpo_jax.config import Config
from etpo_jax.learning import LearningConfig
from etpo_jax.settings import option

MODULE = """
from etpo_jax.algorithms.ppo_kl import PpoKl

class Mine(PpoKl):
    pass

number = 3
"""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Nothing that a test registers is left for others."""
    monkeypatch.setattr(registry, "_ALGORITHMS", registry.algorithms())


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "registry_test_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "registry_test_module"


def test_the_built_in_algorithms_are_registered():
    assert list(registry.algorithms()) == ["etpo", "poad", "ppo_kl", "reflection"]
    assert registry.find_algorithm("etpo") is Etpo
    assert all(name == found.name for name, found in registry.algorithms().items())


def test_a_registered_class_is_found_by_its_name():
    @registry.register_algorithm("mine")
    class Mine(Etpo):
        pass

    assert registry.find_algorithm("mine") is Mine
    assert Config.from_dict({"algorithm": "mine", "beta": 0.5}).algorithm is Mine
    assert Mine.name == "mine"
    assert Etpo.name == "etpo"


def test_a_class_may_be_registered_again_but_no_other_one_under_its_name():
    def define(base):
        class Mine(base):
            pass

        return Mine

    class Other(Etpo):
        pass

    registry.register_algorithm("mine")(define(Etpo))
    again = registry.register_algorithm("mine")(define(Etpo))
    assert registry.find_algorithm("mine") is again
    with pytest.raises(ValueError, match=r"'mine' is registered already, by .*Mine"):
        registry.register_algorithm("mine")(Other)
    elsewhere = define(Etpo)
    elsewhere.__module__ = "somewhere.else"
    with pytest.raises(ValueError, match="'mine' is registered already"):
        registry.register_algorithm("mine")(elsewhere)
    with pytest.raises(ValueError, match="'etpo' is registered already"):
        registry.register_algorithm("etpo")(Other)


def test_a_class_is_found_by_its_module(module):
    found = registry.find_algorithm(f"{module}:Mine")
    assert found.__name__ == "Mine"
    config = Config.from_dict({"algorithm": f"{module}:Mine", "baseline": "leave_one_out"})
    assert config.algorithm is found
    assert config.learning.baseline == "leave_one_out"
    # It is not registered: whoever names it knows where it is.
    assert f"{module}:Mine" not in registry.algorithms()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("etp", "--algorithm=etp: must be one of etpo, poad, ppo_kl, reflection, or package.mod"),
        ("", "--algorithm=: must be one of etpo"),
        ("registry_test_module:Yours", "--algorithm=registry_test_module:Yours: AttributeError"),
        ("registry_test_module:number", "number: is no subclass of etpo_jax.Algorithm"),
        ("json:JSONDecoder", "--algorithm=json:JSONDecoder: is no subclass of etpo_jax.Algorithm"),
        ("no_such_module:Mine", "--algorithm=no_such_module:Mine: ModuleNotFoundError"),
        (":Mine", "--algorithm=:Mine: must have the form package.module:attribute"),
    ],
)
def test_a_name_without_an_algorithm_is_named(module, name, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        Config.from_dict({"algorithm": name})


def test_a_class_that_cannot_run_is_refused_where_it_is_defined():
    class Unfinished(Algorithm):
        def policy_trunk(self):
            return {}

    with pytest.raises(ValueError, match=r"does not define after_collection, initial_state$"):
        registry.register_algorithm("mine")(Unfinished)
    with pytest.raises(ValueError, match=r"is no subclass of etpo_jax\.Algorithm"):
        registry.register_algorithm("mine")(LearningConfig)


def test_settings_that_would_not_be_read_are_refused():
    class Forgotten(LearningConfig):
        strength: float = option(1.0, "Strength.")

    @dataclasses.dataclass(frozen=True)
    class Taken(LearningConfig):
        seed: int = option(1, "Seed of something else.")

    @dataclasses.dataclass(frozen=True)
    class OfTheTrainer(LearningConfig):
        reward: int = option(1, "Reward of something else.")

    @dataclasses.dataclass(frozen=True)
    class Plain(LearningConfig):
        strength: float = 1.0

    for settings, text in (
        (Forgotten, r"Forgotten needs @dataclasses.dataclass\(frozen=True\)"),
        (Taken, "--seed is taken"),
        (OfTheTrainer, "--reward is taken"),
        (Plain, r"--strength is no etpo_jax.option\(default, help\)"),
    ):
        mine = type("Mine", (Reflection,), {"Settings": settings})
        with pytest.raises(ValueError, match=text):
            registry.register_algorithm("mine")(mine)

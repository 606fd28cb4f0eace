"""Settings: their types, ranges and relations, and what a wrong name is answered with."""

import pathlib
import re

import pytest

from etpo_jax import registry
from etpo_jax.config import SECTIONS, Config, FinetuneConfig, ModelConfig, TaskConfig
from etpo_jax.renamed import RENAMED
from etpo_jax.settings import parse_options
from models.lora import TARGETS


def test_every_setting_has_a_help_and_no_name_is_taken_twice():
    names = [name for section in SECTIONS.values() for name in section.names()]
    assert len(set(names)) == len(names)
    for algorithm in registry.algorithms().values():
        assert not set(algorithm.Settings.names()) & set(names)
    for section in (*SECTIONS.values(), *(a.Settings for a in registry.algorithms().values())):
        for field in section.__dataclass_fields__.values():
            assert field.metadata["help"].endswith((".", ")")), field.name


@pytest.mark.parametrize("algorithm", ["etpo", "ppo_kl", "poad", "reflection"])
def test_a_configuration_survives_its_dict(algorithm):
    config = Config.from_dict({"algorithm": algorithm, "top_k": 7, "temperature": 0.7})
    assert Config.from_dict(config.to_dict()) == config
    assert isinstance(config.learning, config.algorithm.Settings)
    assert config.replace(seed=3).to_dict() == {**config.to_dict(), "seed": 3}


def test_defaults_are_the_recommended_method():
    learning = Config().learning
    assert (learning.critic_loss, learning.lambda_within) == ("retrace", 1.0)
    assert (learning.policy_loss, learning.trust_region) == ("doubly_robust", 0.3)
    assert learning.q_parameterization == "residual"
    assert Config().sampling.support_threshold == 1e-3


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"beta": 0.0}, "--beta=0: must be > 0"),
        ({"beta": float("inf")}, "--beta=inf: must be > 0 and finite"),
        ({"num_envs": 0}, "--num_envs=0: must be >= 1"),
        ({"gamma": 1.5}, "--gamma=1.5: must be >= 0 and <= 1"),
        ({"gamma": float("nan")}, "--gamma=nan: must be >= 0 and <= 1"),
        ({"support_threshold": 0.9}, "must be >= 0 and <= 0.5"),
        ({"num_envs": "abc"}, "--num_envs=abc: must be a whole number"),
        ({"num_envs": 2.0}, "--num_envs=2.0: must be a whole number"),
        ({"num_envs": True}, "--num_envs=True: must be a whole number"),
        ({"gamma": "high"}, "--gamma=high: must be a number"),
        ({"strict_data": 1}, "--strict_data=1: must be true or false"),
        ({"dataset": 3}, "--dataset=3: must be a text"),
        ({"prompt_format": "poem"}, "--prompt_format=poem: must be one of auto, infill, complete"),
        ({"prompt_format": "infill:"}, "with a style after a colon: paper, official, scored"),
        ({"critic_loss": "td"}, "--critic_loss=td: must be one of one_step"),
    ],
    ids=lambda value: str(*value.items()) if isinstance(value, dict) else "",
)
def test_what_is_out_of_range_is_named_with_value_and_range(values, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        Config.from_dict(values)


PATH = {"critic_loss": "path"}
TIED = {"policy_loss": "tied", "trust_region": 0.0}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {**PATH, "policy_loss": "exact", "gamma_within": 0.99},
            "--gamma_within=0.99: --critic_loss=path needs 1",
        ),
        ({**PATH}, "--policy_loss=doubly_robust: path consistency has no targets of tokens"),
        ({"q_parameterization": "logits", **TIED}, "--policy_loss=tied needs residual or dueling"),
        ({"policy_loss": "tied"}, "--trust_region=0.3: must be 0 with --policy_loss=tied"),
        ({"q_parameterization": "policy"}, "--policy_loss=doubly_robust: must be tied with"),
        ({"policy_loss": "uniform"}, "--support_threshold=0.001: must be 0 with"),
        ({"microbatch_size": 3}, "--microbatch_size=3: must divide the 16 transitions of"),
        (
            {"algorithm": "reflection", "microbatch_size": 3},
            "--microbatch_size: --algorithm=reflection does not read it",
        ),
        ({"executor": "ray:actors=-1"}, "--executor=ray:actors=-1: actors must be at least 1"),
        ({"dtype": "float16"}, "--dtype=float16: must be one of float32, bfloat16; settings of"),
        ({"dtype": "float32:precision=low"}, "precision must be one of default, high, highest"),
        ({"dtype": "bfloat16:precision=high"}, "'precision=high' is not a setting of it"),
        ({"remat": "full:logits=0"}, "--remat=full:logits=0: logits must be >= 1"),
        ({"remat": "some"}, "--remat=some: must be one of none, full, dots; settings of none"),
        ({"finetune": "all"}, "--finetune=all: must be one of full, lora; settings of full, lora"),
        ({"finetune": "full:rank=2"}, "--finetune=full:rank=2: 'rank=2' must be one of dtype=..."),
        ({"finetune": "full:dtype=int8"}, "--finetune=full:dtype=int8: dtype must be float32 or"),
        ({"finetune": "lora:dtype=bfloat16"}, "--finetune=lora:dtype=bfloat16: 'dtype=bfloat16' "),
        ({"finetune": "lora:rank=0"}, "--finetune=lora:rank=0: "),
        ({"finetune": "lora:targets=q+x"}, "--finetune=lora:targets=q+x: "),
        ({"critic_loss": "path:huber=1"}, "'huber=1' is not a setting of it"),
        ({"critic_loss": "retrace:huber=0"}, "--critic_loss=retrace:huber=0: huber must be > 0"),
        (
            {"algorithm": "ppo_kl", "baseline": "leave_one_out", "num_envs": 1},
            "--num_envs=1: --baseline=leave_one_out needs at least two",
        ),
        ({"executor": "spark"}, "--executor=spark: must be one of local, ray; settings of"),
        ({"executor": "local:workers=0"}, "--executor=local:workers=0: workers must be at least"),
        ({"executor": "local:actors=2"}, "--executor=local:actors=2: 'actors=2' must be one"),
        ({"limits": "memory_mb=1"}, "--limits=memory_mb=1: memory_mb must be >= 16"),
        ({"optimizer": "sgd"}, "--optimizer=sgd: must be one of adamw, lion; settings"),
        ({"optimizer": "lion:b1=2"}, "--optimizer=lion:b1=2: b1 is out of range"),
    ],
    ids=lambda value: str(list(value.items())[-1]) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_each_other_are_named(values, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        Config.from_dict(values)


def test_a_setting_that_the_algorithm_does_not_read_is_refused():
    with pytest.raises(ValueError, match=r"^--critic_loss: --algorithm=ppo_kl .* it, etpo does$"):
        Config.from_dict({"algorithm": "ppo_kl", "critic_loss": "path"})
    with pytest.raises(ValueError, match="reflection does not read it, etpo and poad and ppo_kl"):
        Config.from_dict({"algorithm": "reflection", "beta": 0.1})


def test_near_names_are_suggested():
    found = r"did you mean (--policy_learning_rate|--critic_learning_rate| or )+\?$"
    with pytest.raises(ValueError, match=f"^--lerning_rate: there is no such setting; {found}"):
        Config.from_dict({"lerning_rate": 1e-3})
    with pytest.raises(ValueError, match=r"^--xyzzy: there is no such setting$"):
        Config.from_dict({"xyzzy": 1})
    with pytest.raises(ValueError, match="--algorithm=dqn: must be one of etpo, poad, ppo_kl, ref"):
        Config.from_dict({"algorithm": "dqn"})


def test_numbers_and_paths_are_taken_as_python_has_them():
    config = Config.from_dict({"beta": 1, "run_dir": pathlib.Path("runs") / "x"})
    assert isinstance(config.learning.beta, float)
    assert config.run.run_dir == "runs/x"


def test_texts_with_several_values_are_read():
    assert parse_options("x", " a=1, b=2.5 ", {"a": int, "b": float}) == {"a": 1, "b": 2.5}
    for text, message in (
        ("a=1,a=2", "'a=2' must be one of a=..., b=..., each once"),
        ("c=1", "'c=1' must be one of"),
        ("a", "'a' must be one of"),
        ("a=x", "--x=a=x: a must be a whole number"),
        ("b=inf", "--x=b=inf: b must be finite"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            parse_options("x", text, {"a": int, "b": float})


def test_sections_give_their_texts_as_values():
    task = TaskConfig(prompt_format="infill:official")
    assert (task.format_name, task.prompt_style) == ("infill", "official")
    assert (TaskConfig().format_name, TaskConfig().prompt_style) == ("auto", "")
    lora = FinetuneConfig(finetune="lora").adapters
    assert (lora.rank, lora.alpha, lora.targets) == (16, 32.0, tuple(TARGETS))
    lora = FinetuneConfig(finetune="lora:rank=2,alpha=8,targets=q+v").adapters
    assert (lora.rank, lora.alpha, lora.targets) == (2, 8.0, ("q", "v"))
    model = ModelConfig(dtype="float32:precision=highest", remat="dots:logits=8")
    assert (model.compute_dtype, model.matmul_precision) == ("float32", "highest")
    assert (model.rematerialized, model.logits_at_once) == ("dots", 8)
    model = ModelConfig(dtype="bfloat16")
    assert (model.compute_dtype, model.matmul_precision) == ("bfloat16", "default")
    assert (model.rematerialized, model.logits_at_once) == ("full", 0)
    config = Config.from_dict({"optimizer": "lion:b2=0.99", "executor": "ray:address=a:1,actors=4"})
    name, options = config.learning.optimizer_settings
    assert (name, options["b1"], options["b2"], options["clip_norm"]) == ("lion", 0.9, 0.99, 1.0)
    assert config.execution.executor_options == {"address": "a:1", "actors": 4}
    limits = config.replace(limits="memory_mb=64,cpu_s=3").execution.named_limits
    assert limits == {"memory_mb": 64, "cpu_s": 3}


def test_settings_of_earlier_versions_name_the_new_ones():
    with pytest.raises(ValueError, match=r"^--lora_rank: it is now --finetune=lora:rank=\.\.\.$"):
        Config.from_dict({"lora_rank": 8})
    assert not RENAMED.keys() & Config.defaults("etpo").keys()

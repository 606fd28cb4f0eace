"""The plan says whether a run fits, without weights or accelerator."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from env.base import UsageError
from etpo_jax import plan
from etpo_jax.config import Config
from etpo_jax.devices import accelerators, aot, memory
from etpo_jax.devices.mesh import abstract_mesh
from models.config import DecoderConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = "codellama/CodeLlama-7b-hf"
LION = {"model": NAME, "dtype": "bfloat16", "finetune": "full:dtype=bfloat16", "optimizer": "lion"}
# A support mask keeps a second copy of the weights for generation.
LION |= {"support_threshold": 0.0}


def test_the_text_says_whether_the_run_fits():
    config = Config.from_dict({**LION, "mesh": "fsdp:1"})
    text, fits = plan._describe(config, accelerators.find("a100-80"))
    assert not fits
    assert "a100-80: 73.60 GiB; does not fit, " in text
    assert text.splitlines()[-1].startswith("flags that save memory, cheapest first: ")
    assert "6,738.55 M     12.55 GiB" in text
    text, fits = plan._describe(config, accelerators.find("h200"))
    assert fits
    assert "h200: 129.17 GiB; fits, " in text
    assert plan._describe(config, None)[1]


@pytest.mark.parametrize(
    ("num_env_steps", "counts"),
    [(1, "1 environment step = 1 update of 16 actions"), (32, "32 environment steps = 2 updates")],
)
def test_counts_are_in_words(num_env_steps, counts):
    text, _ = plan._describe(Config.from_dict({"num_env_steps": num_env_steps}), None)
    assert counts in text
    assert "6 gradient steps of 16 transitions" in text


def test_the_program_needs_no_weights_and_tells_by_its_exit_code(tmp_path):
    config = (ROOT / "models" / "configs" / NAME / "config.json").read_text()
    (tmp_path / "config.json").write_text(json.dumps({**json.loads(config), "vocab_size": 1024}))
    flags = [f"--model={tmp_path}", "--mesh=fsdp:8,tensor:8", "--device=v5e", "--num_env_steps=64"]
    command = [sys.executable, "-m", "etpo_jax.plan", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "64 environment steps = 4 updates of 16 actions" in done.stdout
    assert "mesh fsdp:8, tensor:8: 64 devices" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("v5e: 15.75 GiB; fits, ")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("cpu", None),
    ],
)
def test_devices_as_jax_names_them(kind, name):
    found = accelerators.of_kind(kind)
    assert (found and found.name) == name


def test_unknown_devices_and_topologies_are_one_line():
    with pytest.raises(UsageError, match="--device=h300: must be one of h200"):
        accelerators.find("h300")
    with pytest.raises(UsageError, match="--aot=h200: must be such as v5e:4x4"):
        aot.compile_for(Config(), "h200", aot.PROGRAMS)
    with pytest.raises(UsageError, match="--attention=cudnn is for NVIDIA GPUs"):
        aot.compile_for(Config.from_dict({"attention": "cudnn"}), "v5e:4x4", aot.PROGRAMS)


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu (requirements-tpu.txt)"
)


@pytest.fixture
def few_layers(tmp_path):
    """CodeLlama-7B's width and two of its layers."""
    values = json.loads((ROOT / "models" / "configs" / NAME / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 2}))
    return tmp_path


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x4", "v4:2x2x2"])
def test_both_programs_compile_for_a_tpu(few_layers, topology):
    flags = {**LION, "model": str(few_layers), "loss_chunk_size": 32}
    config = Config.from_dict({**flags, "mesh": "fsdp:4,tensor:2"})
    decoder = DecoderConfig.from_folder(few_layers)
    state = memory.estimate(config, decoder, abstract_mesh(config.model.mesh)).resident
    generation, update = aot.compile_for(config, topology, aot.PROGRAMS)
    assert generation.error == update.error == ""
    # What a gradient step is given is what stays on the device, and a batch.
    assert update.arguments == pytest.approx(memory.total(state), rel=0.01)
    assert 0 < update.temporaries < 2 * 2**30
    assert 0 < generation.temporaries < 2**30


@needs_libtpu
@pytest.mark.slow
def test_what_the_compiler_refuses_is_told(few_layers):
    flags = {**LION, "model": str(few_layers), "minibatch_size": 512, "max_new_tokens": 1024}
    (compiled,) = aot.compile_for(Config.from_dict(flags), "v5e:1x1", ["gradient_step"])
    assert "15.75G" in compiled.error
    with pytest.raises(UsageError, match="--mesh=fsdp:3: 3 devices, --aot=v5e:2x2 has 4"):
        aot.compile_for(Config.from_dict({**flags, "mesh": "fsdp:3"}), "v5e:2x2", ["gradient_step"])


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_is_said_how_to_get_it():
    with pytest.raises(UsageError, match=r"libtpu is not installed \(pip install -r requirements"):
        aot.compile_for(Config(), "v5e:4x4", aot.PROGRAMS)

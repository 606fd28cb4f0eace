"""The plan says whether a run fits, without weights or accelerator."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

from env.base import UsageError
from etpo_jax import plan
from etpo_jax.config import Config
from etpo_jax.devices import accelerators, aot, compiled_table, memory, topologies
from etpo_jax.devices.mesh import abstract_mesh
from models.config import DecoderConfig
from models.repository import config_folder

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = "codellama/CodeLlama-7b-hf"
LION = {"model": NAME, "dtype": "bfloat16", "finetune": "full:dtype=bfloat16", "optimizer": "lion"}
# A support mask keeps a second copy of the weights for generation.
LION |= {"support_threshold": 0.0}


@pytest.fixture
def no_fraction(monkeypatch):
    """An environment that states no share of a GPU's memory."""
    for name in accelerators.FRACTIONS:
        monkeypatch.delenv(name, raising=False)


def verdict(config, name):
    """The plan's text for a kind of device, and whether the run fits."""
    return plan._describe(config, accelerators.stated_limit(accelerators.find(name)))


def test_the_text_says_whether_the_run_fits(monkeypatch, no_fraction):
    config = Config.from_dict({**LION, "mesh": "fsdp:1"})
    text, fits = verdict(config, "a100-80")
    assert not fits
    assert "a100-80: 60.00 GiB by JAX's share of 0.75; does not fit, " in text
    assert "would be enough" not in text
    assert text.splitlines()[-1].startswith("flags that save memory, cheapest first: ")
    assert "6,738.55 M     12.55 GiB" in text
    assert "checkpoints: 75.31 GiB each, 225.93 GiB of disk while one is written" in text
    monkeypatch.setenv(accelerators.FRACTION, "0.92")
    text, fits = verdict(config, "h200")
    assert fits
    assert "h200: 129.17 GiB by XLA_PYTHON_CLIENT_MEM_FRACTION=0.92; fits, " in text
    assert plan._describe(config, None)[1]


def test_the_share_that_jax_takes_is_what_counts(monkeypatch, no_fraction):
    """All weights of CodeLlama-7B on an H200, whose memory would do."""
    lengths = {"max_prompt_length": 512, "max_new_tokens": 256, "remat": "full:logits=32"}
    config = Config.from_dict({**LION, **lengths, "mesh": "fsdp:1"})
    text, fits = verdict(config, "h200")
    assert not fits
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.81 would be enough" in text
    monkeypatch.setenv(accelerators.FRACTION, "0.81")
    assert verdict(config, "h200")[1]
    for wrong in ("much", "nan", "0"):
        monkeypatch.setenv(accelerators.FRACTION, wrong)
        with pytest.raises(UsageError, match=f"{accelerators.FRACTION}={wrong}: must be a number"):
            verdict(config, "h200")


class Card:
    """A device as JAX describes it."""

    device_kind, platform = "NVIDIA H200", "gpu"

    def memory_stats(self):
        return {"bytes_limit": 100 * 2**30}


def test_what_a_device_here_has_counts(monkeypatch):
    assert accelerators.limit_here() is None  # a CPU's is not known
    monkeypatch.setattr(jax, "local_devices", lambda: [Card()])
    limit = accelerators.limit_here()
    assert limit.num_bytes == 100 * 2**30
    assert limit.verdict(90 * 2**30).endswith("that JAX has taken; fits, 10.00 GiB are left")
    flags = {"max_prompt_length": 512, "max_new_tokens": 256}
    config = Config.from_dict({**LION, **flags, "mesh": "fsdp:1"})
    assert "does not fit" in memory.warning(config)
    assert memory.warning(config.replace(finetune="lora")) == ""


def test_a_disk_without_room_is_refused(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    config = Config.from_dict({**LION, "mesh": "fsdp:1", "run_dir": str(tmp_path / "run")})
    assert "of disk while one is written" in plan._describe(config, None)[0]
    with pytest.raises(UsageError, match=r"checkpoints need 225\.9 GiB"):
        plan.check_disk(config)


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
    with pytest.raises(UsageError, match="--aot=h300: must be one of h200, h100, a100-80"):
        topologies.find("h300")


@pytest.mark.parametrize(
    ("device", "attention", "kind"),
    [("v5e:4x4", "cudnn", "NVIDIA GPUs"), ("h200", "splash", "TPUs")],
)
def test_kernels_of_other_devices_are_refused(monkeypatch, device, attention, kind):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UsageError, match=f"--attention={attention} is for {kind}"):
        aot.compile_for(Config.from_dict({"attention": attention}), device, aot.PROGRAMS)


def test_every_card_is_described(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: name)
    for name, device in (("h200", "h200"), ("a100", "a100-80"), ("b200", "b200")):
        assert topologies.find(name).device is accelerators.find(device)
    assert topologies.find("h200").value("memory_bandwidth") == 4.8e12


def test_a_card_of_ones_own_is_read_from_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: name)
    path = tmp_path / "card.txtpb"
    with pytest.raises(UsageError, match=r"cannot read .*card\.txtpb"):
        topologies.find(f"CUDA:{path}")
    path.write_text("platform_name: 'CUDA'")
    with pytest.raises(UsageError, match="holds no gpu_device_info"):
        topologies.find(f"CUDA:{path}")
    path.write_text("gpu_device_info { device_memory_size: 1000 }")
    device = topologies.find(f"CUDA:{path}").device
    assert (device.num_bytes, device.platform) == (1000, "gpu")


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu (requirements-tpu.txt)"
)
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="needs JAX's CUDA plugin (requirements-cuda.txt)",
)


@needs_cuda
@pytest.mark.slow
def test_both_programs_compile_for_four_cards(tmp_path):
    flags = {"mesh": "fsdp:4", "max_prompt_length": 32, "max_new_tokens": 16, "num_envs": 4}
    config = Config.from_dict({**LION, "model": "tiny", **flags})
    made = aot.compile_for(config, "h200", aot.PROGRAMS, folder=tmp_path)
    decoder = DecoderConfig.from_folder(config_folder("tiny"))
    needed = memory.estimate(config, decoder, abstract_mesh("fsdp:4"))
    limit = topologies.find("h200").device.num_bytes
    assert compiled_table.fits(made, needed, limit)
    assert not compiled_table.fits(made, needed, memory.total(needed.resident))
    generation, update = made
    assert update.arguments == pytest.approx(memory.total(needed.resident), rel=0.02)
    # No copy of a cache or of weights for each token; kernels stay where their parts lie.
    assert 0 < generation.figures.largest_copy < 4096
    assert generation.figures.kernels > decoder.num_layers * 10
    assert "all-reduce" in generation.figures.collectives
    assert "all-gather" in update.figures.collectives
    assert update.figures.data_dependent_loops == 0
    text = "\n".join(compiled_table.lines(made, needed, limit))
    assert "each token of generation:" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        "generation.hlo.gz",
        "gradient_step.hlo.gz",
    }


@needs_cuda
def test_a_compilation_that_takes_too_long_is_given_up():
    (made,) = aot.compile_for(Config(), "h200", ["generation"], timeout_s=0.1)
    assert made.error == "not compiled within 0.1 seconds"


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
    flags = {**LION, "model": str(few_layers), "remat": "full:logits=32"}
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


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is not None, reason="the plugin is installed"
)
def test_without_the_cuda_plugin_it_is_said_how_to_get_it():
    with pytest.raises(UsageError, match=r"jax_cuda13_plugin is not installed \(pip install -r"):
        aot.compile_for(Config(), "h200", aot.PROGRAMS)

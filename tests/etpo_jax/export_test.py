"""An exported model gives the logits of the policy, here and in Hugging Face's tools."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import models
from env.base import UsageError
from etpo_jax import build
from etpo_jax import export as program
from etpo_jax.algorithms.networks import Critic, TrainState
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.distribution import Distribution
from etpo_jax.runs import policy_folder
from etpo_jax.runs.checkpoint import Checkpoints
from etpo_jax.runs.directory import RunDirectory
from models import lora
from models.convert import abstract_parameters
from models.lora import LoraConfig
from models.transformer import Decoder, positions
from tests.models.small import small_decoder

ROOT = Path(__file__).resolve().parents[2]
DECODER = small_decoder(
    vocab_size=56,
    hidden_size=24,
    intermediate_size=40,
    num_heads=6,
    num_kv_heads=3,
    rms_norm_eps=1e-6,
)
ADAPTED = LoraConfig(rank=3, alpha=6.0, targets=("q", "v", "o", "down"))
TOKENS = np.random.default_rng(0).integers(0, DECODER.vocab_size, (2, 12), np.int32)
MASK = np.ones_like(TOKENS, bool)
MASK[0, :5] = False


def random_tree(abstract, seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), dtype), abstract
    )


def logits(model, variables):
    mask = jnp.asarray(MASK)
    return np.asarray(jax.jit(model.apply)(variables, jnp.asarray(TOKENS), positions(mask), mask))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A published model: a folder with a value of its own in config.json, and a tokenizer."""
    folder = tmp_path_factory.mktemp("published") / "base"
    params = random_tree(abstract_parameters(DECODER, jnp.float32), seed=1)
    models.save(folder, DECODER, params, extra={"eos_token_id": [2, 6], "torch_dtype": "float32"})
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(ROOT / "models" / "tiny" / name, folder)
    return folder


def export(run_path, output, **options):
    """Calls the program in this process."""
    values = {"run_dir": run_path, "output": output, **options}
    program._flags.unparse_flags()
    program._flags(["export", *(f"--{name}={value}" for name, value in values.items())])
    program.main()


def make_run(path, base, flags, role):
    """A run directory with two checkpoints, the policy of the first being zero."""
    config = Config.from_dict({"model": str(base), **flags})
    # The target critic is read by nobody: it stands for whatever else a checkpoint holds.
    other = Critic({"params": {"w": jnp.full((3,), 7.0)}}, jnp.zeros(()), None)
    tied = not config.learning.has_policy_loss
    critic = dataclasses.replace(other, trunk=role) if tied else other
    state = TrainState({} if tied else role, critic, other, {}, {}, jnp.zeros((), jnp.int32))
    zeros = jax.tree.map(jnp.zeros_like, state)
    with (
        RunDirectory.open(path, config.to_dict(), may_differ=frozenset(), overwrite=False) as run,
        Checkpoints(run.checkpoints_path, 2) as checkpoints,
    ):
        for update, saved in ((1, zeros), (2, state)):
            checkpoints.save(update, saved, {"reward": np.zeros(2)}, {"update": update})
            checkpoints.wait()
    return path


@pytest.fixture(scope="module")
def full(tmp_path_factory, base):
    role = {"params": random_tree(abstract_parameters(DECODER, jnp.float32), seed=2)}
    return make_run(tmp_path_factory.mktemp("full") / "run", base, {}, role), role


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, base):
    abstract = abstract_parameters(DECODER, jnp.float32)
    start = jax.eval_shape(lambda key: lora.init(key, abstract, ADAPTED), jax.random.key(0))
    role = {"lora": random_tree(start, seed=3)}
    flags = {"finetune": "lora:rank=3,alpha=6,targets=q+v+o+down"}
    return make_run(tmp_path_factory.mktemp("adapted") / "run", base, flags, role), role


def expected_logits(base, role):
    model = Decoder(DECODER, lora=ADAPTED if "lora" in role else None)
    return logits(model, {"params": models.load(base)[1], **role})


def test_a_fully_trained_policy_is_a_model(tmp_path, base, full):
    run_path, role = full
    export(run_path, tmp_path / "tuned")
    model, params = models.load(tmp_path / "tuned")
    np.testing.assert_array_equal(logits(model, {"params": params}), expected_logits(base, role))
    values = json.loads((tmp_path / "tuned" / "config.json").read_text())
    published = json.loads((base / "config.json").read_text())
    assert published.pop("torch_dtype") == values["dtype"] == "float32"
    assert values == published
    names = {path.name for path in base.iterdir()}
    assert {path.name for path in (tmp_path / "tuned").iterdir()} == names
    assert (tmp_path / "tuned" / "tokenizer.json").read_bytes() == (
        base / "tokenizer.json"
    ).read_bytes()


def test_adapters_are_merged(tmp_path, base, adapted):
    run_path, role = adapted
    export(run_path, tmp_path / "tuned")
    model, params = models.load(tmp_path / "tuned")
    wanted = expected_logits(base, role)
    assert np.abs(wanted - expected_logits(base, {})).max() > 1
    np.testing.assert_allclose(logits(model, {"params": params}), wanted, rtol=0, atol=2e-5)
    export(run_path, tmp_path / "narrow", dtype="bfloat16")
    stored = safetensors.numpy.load_file(tmp_path / "narrow" / "model.safetensors")
    assert {tensor.dtype.name for tensor in stored.values()} == {"bfloat16"}


def test_an_older_checkpoint_and_a_tied_policy(tmp_path, base, full):
    run_path, role = full
    export(run_path, tmp_path / "older", checkpoint=1)
    _, params = models.load(tmp_path / "older")
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(params))
    tied = make_run(tmp_path / "run", base, {"policy_loss": "tied", "trust_region": 0.0}, role)
    export(tied, tmp_path / "tied")
    _, params = models.load(tmp_path / "tied")
    jax.tree.map(np.testing.assert_array_equal, params, role["params"])


def test_an_adapter_in_the_format_of_peft(tmp_path, base, adapted):
    """Names and orientation as PEFT 0.21 reads them: A is [r, in] and B [out, r]."""
    run_path, role = adapted
    export(run_path, tmp_path / "adapter", format="peft")
    values = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == str(base)
    assert values["target_modules"] == ["down_proj", "o_proj", "q_proj", "v_proj"]
    assert (values["peft_type"], values["r"], values["lora_alpha"]) == ("LORA", 3, 6.0)
    stored = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(stored) == 2 * 4 * 2
    layers = role["lora"]["layers"]
    name = "base_model.model.model.layers.1.{}.lora_{}.weight"
    for path, pair in (
        ("self_attn.v_proj", layers["attention"]["v"]),
        ("mlp.down_proj", layers["mlp"]["down"]),
    ):
        np.testing.assert_array_equal(stored[name.format(path, "A")], pair["a"][1].T)
        np.testing.assert_array_equal(stored[name.format(path, "B")], pair["b"][1].T)
    assert (tmp_path / "adapter" / "tokenizer.json").is_file()


def torch_model(folder):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch", reason="live parity needs torch")
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()


def assert_same_logits(model, wanted):
    import torch

    place = np.where(MASK, np.cumsum(MASK, -1) - 1, 0)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(TOKENS, dtype=torch.long),
            attention_mask=torch.tensor(MASK, dtype=torch.long),
            position_ids=torch.tensor(place, dtype=torch.long),
        ).logits.numpy()
    scale = np.abs(wanted[MASK]).max()
    np.testing.assert_allclose(theirs[MASK], wanted[MASK], rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("kind", ["full", "adapted"])
def test_transformers_loads_it(tmp_path, base, kind, request):
    run_path, role = request.getfixturevalue(kind)
    export(run_path, tmp_path / "tuned")
    assert_same_logits(torch_model(tmp_path / "tuned"), expected_logits(base, role))


# Between peft and transformers; nothing of ours.
@pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")
def test_peft_loads_it(tmp_path, base, adapted):
    peft = pytest.importorskip("peft", reason="needs peft")
    run_path, role = adapted
    export(run_path, tmp_path / "adapter", format="peft")
    model = peft.PeftModel.from_pretrained(torch_model(base), tmp_path / "adapter").eval()
    assert_same_logits(model, expected_logits(base, role))


THETA = np.array([0.4, -0.3, 0.9, 0.2, 0.5, -0.6, 0.7, 0.3, -0.2, 0.8], np.float32)


@pytest.fixture(scope="module")
def tilted(tmp_path_factory, base, adapted):
    role = {**adapted[1], "tilt": jnp.asarray(THETA)}
    flags = {
        "finetune": "lora:rank=3,alpha=6,targets=q+v+o+down,tilt=0.1",
        "support_threshold": 0.01,
        "temperature": 0.8,
    }
    return make_run(tmp_path_factory.mktemp("tilted") / "run", base, flags, role), role


def test_a_tilt_stands_beside_the_weights(tmp_path, base, tilted):
    for form in ("merged", "peft"):
        export(tilted[0], tmp_path / form, format=form)
        found = policy_folder.read_tilt(tmp_path / form)
        assert found == (str(base), tuple(THETA.tolist()), 0.8, 0.01)
        assert (tmp_path / form / "tilt_processor.py").is_file()
    with pytest.raises(UsageError, match="the weights of a tilted policy alone are not"):
        build.load_language(Config.from_dict({"model": str(tmp_path / "merged")}), build_mesh())
    (tmp_path / "peft" / "tilt.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be used as a tilt: 'reference'"):
        policy_folder.read_tilt(tmp_path / "peft")


def test_transformers_samples_from_a_tilted_policy(tmp_path, base, tilted):
    """The processor's distribution at every position is that of the losses."""
    run_path, role = tilted
    export(run_path, tmp_path / "tuned")
    policy, reference = torch_model(tmp_path / "tuned"), torch_model(base)
    import torch

    name = "tilt_processor"
    spec = importlib.util.spec_from_file_location(name, tmp_path / "tuned" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    mask, tokens = torch.tensor(MASK[:, :9]).long(), torch.tensor(TOKENS).long()
    processor = module.TiltProcessor(tmp_path / "tuned" / "tilt.json", reference, mask)
    distribution = Distribution(jnp.float32(0.8), jnp.float32(0.01))
    plain = expected_logits(base, {"lora": role["lora"]})
    wanted = distribution.tilted(
        jnp.asarray(plain),
        distribution.reference(jnp.asarray(expected_logits(base, {}))),
        role["tilt"],
    )
    for last in (8, 11):
        scores = torch.tensor(plain[:, last])
        found = processor(tokens[:, : last + 1], scores) / processor.temperature
        probabilities = jax.nn.softmax(wanted[:, last])
        np.testing.assert_allclose(found.softmax(-1).numpy(), probabilities, rtol=1e-3, atol=1e-6)
    drawn = policy.generate(
        tokens[:, :9],
        attention_mask=mask,
        do_sample=True,
        temperature=processor.temperature,
        top_k=0,
        max_new_tokens=3,
        logits_processor=[processor],
        pad_token_id=0,
    )
    assert drawn.shape == (2, 12)


def test_what_cannot_be_exported_is_one_line(tmp_path, base, full):
    run_path, _ = full
    for arguments, message in (
        ({"run_path": tmp_path}, f"^--run_dir={tmp_path}: is no run directory"),
        ({"checkpoint": 7}, "checkpoints holds 1, 2"),
        ({"format": "peft"}, "--format=peft: the run trained all weights"),
        ({"output": base}, "is there already"),
        ({"model": "no/such/model"}, "no such model folder"),
    ):
        settings = {"run_path": run_path, "output": tmp_path / "x", **arguments}
        with pytest.raises((UsageError, models.ModelError), match=message):
            export(settings.pop("run_path"), settings.pop("output"), **settings)
    assert not (tmp_path / "x").exists()
    reflection = tmp_path / "reflection"
    config = Config.from_dict({"algorithm": "reflection"}).to_dict()
    RunDirectory.open(reflection, config, may_differ=frozenset(), overwrite=False).close()
    with pytest.raises(UsageError, match="trains nothing"):
        export(reflection, tmp_path / "x")


def test_the_program(tmp_path, full, tilted):
    def run(run_path):
        flags = [f"--run_dir={run_path}", f"--output={output}"]
        command = [sys.executable, "-m", "etpo_jax.export", *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    output = tmp_path / "tuned"
    assert run(full[0]) == [f"{output}: the policy of {full[0]} after update 2"]
    assert (output / "model.safetensors").is_file()
    output = tmp_path / "tilted"
    line, remark = run(tilted[0])
    assert line.startswith(f"{output}: the policy of {tilted[0]}")
    assert "sample with tilt_processor.py" in remark

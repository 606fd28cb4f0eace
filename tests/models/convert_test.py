"""Folders are read exactly, into any layout; every kind of damage is named in one line."""

import json
import shutil
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import models
from models import convert, lora
from models.config import DecoderConfig
from models.errors import ModelError
from models.lora import LoraConfig
from tests.models.simulated import output_on_devices
from tests.models.small import small_decoder

CONFIG = small_decoder(vocab_size=130, hidden_size=32, intermediate_size=80, attention_bias=True)
GATE = "model.layers.1.mlp.gate_proj.weight"


def random_params(config=CONFIG, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), dtype),
        convert.abstract_parameters(config, dtype),
    )


@pytest.fixture
def folder(tmp_path):
    models.save(tmp_path, CONFIG, random_params())
    return tmp_path


def tensors_of(folder):
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= safetensors.numpy.load_file(path)
    return tensors


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("max_file_bytes", [2**30, 20_000, 1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_saved_and_loaded(tmp_path, max_file_bytes, dtype):
    params = random_params(dtype=dtype)
    models.save(tmp_path, CONFIG, params, max_file_bytes=max_file_bytes)
    files = list(tmp_path.glob("*.safetensors"))
    names = len(tensors_of(tmp_path))
    assert len(files) == {2**30: 1, 1: names}.get(max_file_bytes, len(files))
    assert max_file_bytes != 20_000 or 1 < len(files) < names
    model, loaded = models.load(tmp_path, dtype=dtype)
    assert (model.config, model.dtype, model.param_dtype) == (CONFIG, dtype, dtype)
    assert_same(params, loaded)
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        stored = sum(tensor.nbytes for tensor in tensors_of(tmp_path).values())
        assert index["metadata"]["total_size"] == stored
        assert set(index["weight_map"]) == set(tensors_of(tmp_path))


def test_published_names_and_orientation(folder):
    """Tensors in the published layout: matrices are [out, in], one tensor per layer."""
    params, tensors = random_params(), tensors_of(folder)
    assert tensors[GATE].shape == (80, 32)
    np.testing.assert_array_equal(tensors[GATE].T, params["layers"]["mlp"]["gate"]["kernel"][1])
    name = "model.layers.0.self_attn.k_proj"
    np.testing.assert_array_equal(
        tensors[f"{name}.bias"], params["layers"]["attention"]["k"]["bias"][0]
    )
    np.testing.assert_array_equal(
        tensors["model.embed_tokens.weight"], params["embedder"]["embedding"]
    )
    assert len(tensors) == 2 * (9 + 3) + 3


@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("wanted", [jnp.float32, jnp.bfloat16])
def test_stored_type_is_converted(tmp_path, stored, wanted):
    params = random_params()
    models.save(tmp_path, CONFIG, params, dtype=stored)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == np.dtype(stored).name
    _, loaded = models.load(tmp_path, dtype=wanted)
    assert_same(jax.tree.map(lambda leaf: leaf.astype(stored).astype(wanted), params), loaded)


def test_subnormal_and_signed_values_survive(tmp_path):
    params = random_params(dtype=jnp.bfloat16)
    odd = np.array([-0.0, 1e-40, -1e-40, 3.3895e38, -3.3895e38] * 6 + [0.0, 1.0])
    odd = odd.astype(ml_dtypes.bfloat16)
    params["final_norm"]["scale"] = odd
    models.save(tmp_path, CONFIG, params)
    _, loaded = models.load(tmp_path)
    bits = np.asarray(loaded["final_norm"]["scale"]).view(np.uint32)
    np.testing.assert_array_equal(bits >> 16, odd.view(np.uint16))
    np.testing.assert_array_equal(bits & 0xFFFF, 0)


def test_head_beside_a_tied_embedding(tmp_path):
    """A copy of the embedding is ignored; another output layer is never dropped."""
    config = DecoderConfig(**{**vars(CONFIG), "tie_word_embeddings": True})
    params = random_params(config)
    models.save(tmp_path, config, params)
    tensors = tensors_of(tmp_path)
    assert "lm_head.weight" not in tensors
    head = tensors["model.embed_tokens.weight"].copy()
    tensors["lm_head.weight"] = head
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    assert_same(params, models.load(tmp_path)[1])
    head[-1, -1] += 1
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lm_head\.weight differs from the embedding") as caught:
        models.load(tmp_path)
    assert "\n" not in str(caught.value)
    values = {**config.to_dict(), "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(values))
    np.testing.assert_array_equal(models.load(tmp_path)[1]["lm_head"]["kernel"], head.T)


def test_old_rotary_buffers_are_ignored(folder):
    tensors = tensors_of(folder)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    assert_same(random_params(), models.load(folder)[1])


def test_saving_again_leaves_nothing_of_before(folder):
    params = random_params()
    models.save(folder, CONFIG, params, max_file_bytes=20_000)
    assert not (folder / "model.safetensors").exists()
    models.save(folder, CONFIG, params)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_saved_extra_values_and_wrong_parameters(tmp_path):
    models.save(tmp_path, CONFIG, random_params(), extra={"eos_token_id": [2, 6]})
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == [2, 6]
    params = random_params()
    params["layers"]["mlp"]["gate"]["kernel"] = jnp.zeros((2, 80, 32))
    with pytest.raises(ValueError, match="layers/mlp/gate/kernel has shape"):
        models.save(tmp_path, CONFIG, params)
    with pytest.raises(ModelError, match=r"needs config\.json"):
        models.load(tmp_path)


def test_adapters_are_added_layer_by_layer_while_saving(tmp_path):
    """Saved kernels equal the result of `lora.merge`; all other weights are unchanged."""
    adapted = LoraConfig(rank=2, alpha=6.0, targets=("k", "down"))
    params = random_params()
    adapters = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(1).normal(size=leaf.shape), jnp.float32),
        jax.eval_shape(lambda key: lora.init(key, params, adapted), jax.random.key(0)),
    )
    models.save(tmp_path, CONFIG, params, adapters=(adapters, adapted), max_file_bytes=20_000)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5),
        lora.merge(params, adapters, adapted),
        models.load(tmp_path)[1],
    )


def test_a_published_configuration_is_kept(tmp_path):
    values = {**CONFIG.to_dict(), "rope_theta": 10000.0, "eos_token_id": 2}
    models.save(tmp_path, CONFIG, random_params(), values=values, dtype=jnp.bfloat16)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored == {**values, "dtype": "bfloat16"}


def rewrite(folder, change):
    tensors = tensors_of(folder)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def refuse(folder, message):
    with pytest.raises(ModelError, match=message) as caught:
        models.load(folder)
    assert "\n" not in str(caught.value)


def test_missing_tensors_are_named(folder):
    rewrite(folder, lambda tensors: tensors.pop(GATE))
    refuse(folder, f"tensors are missing: {GATE}$")
    rewrite(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if "layers.1." in n])
    refuse(folder, r"missing: model\.layers\.1\.[a-z_.]+, [^,]+, [^,]+ and 9 more$")


def test_extra_tensors_are_named(folder):
    rewrite(folder, lambda tensors: tensors.update(score=np.zeros(3, np.float32)))
    refuse(folder, "tensors are not those of this architecture: score$")


def test_more_layers_than_the_configuration_says(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 1}))
    refuse(folder, r"not those of this architecture: model\.layers\.1\..* and 9 more")


def test_other_shapes_are_named(folder):
    rewrite(folder, lambda tensors: tensors.update({GATE: np.ascontiguousarray(tensors[GATE].T)}))
    refuse(folder, rf"tensor {GATE} has shape \(32, 80\), config.json says \(80, 32\)")


def test_other_types_are_named(folder):
    rewrite(folder, lambda tensors: tensors.update({GATE: tensors[GATE].astype(np.int8)}))
    refuse(folder, f"tensor {GATE} is stored as I8; F32, F16, BF16 can be read")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_that_are_no_numbers_are_named(folder, value, dtype):
    def change(tensors):
        damaged = tensors[GATE].astype(dtype)
        damaged[70, 3] = value
        tensors[GATE] = damaged

    rewrite(folder, change)
    refuse(folder, f"tensor {GATE} holds NaN or infinity")


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_file_is_named(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    refuse(folder, r"model\.safetensors: corrupt or truncated safetensors file \(.+\)$")


def test_garbage_is_named(folder):
    (folder / "model.safetensors").write_bytes(b"<!DOCTYPE html>" * 100)
    refuse(folder, r"model\.safetensors: corrupt or truncated")


def test_index_and_its_files(tmp_path):
    models.save(tmp_path, CONFIG, random_params(), max_file_bytes=20_000)
    second = sorted(tmp_path.glob("model-00002-*"))[0]
    copy = second.read_bytes()
    second.unlink()
    refuse(tmp_path, rf"{second.name}, which model\.safetensors\.index\.json names, is missing")
    second.write_bytes(copy[:-1])
    refuse(tmp_path, f"{second.name}: corrupt or truncated")
    shutil.copy(sorted(tmp_path.glob("model-00001-*"))[0], second)
    refuse(tmp_path, "tensor [a-z_0-9.]+ is in two files")
    index = tmp_path / "model.safetensors.index.json"
    for text in ("{}", '{"weight_map": []}'):
        index.write_text(text)
        refuse(tmp_path, "has no weight_map")
    index.write_text("{")
    refuse(tmp_path, "not valid JSON")


def test_folders_without_weights(folder):
    (folder / "model.safetensors").unlink()
    refuse(folder, r"needs model\.safetensors, or model\.safetensors\.index\.json and its files")
    (folder / "pytorch_model.bin").touch()
    refuse(folder, r"holds PyTorch \.bin weights only; model\.safetensors is needed")
    (folder / "config.json").unlink()
    refuse(folder, r"needs config\.json")
    refuse(folder / "absent", "absent: no such model folder")


def test_loads_into_shards(tmp_path):
    """Loads a folder onto eight simulated devices; runs in a process of its own."""
    models.save(tmp_path, CONFIG, random_params(dtype=jnp.bfloat16), max_file_bytes=20_000)
    assert output_on_devices(8, __file__, tmp_path) == ["same", "split", "whole"]


def load_into_shards(folder):
    from models.sharding import shardings

    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    _, params = models.load(folder, mesh=mesh)
    assert_same(random_params(dtype=jnp.bfloat16), params)
    print("same")
    jax.tree.map(
        lambda leaf, sharding: np.testing.assert_equal(leaf.sharding, sharding),
        params,
        shardings(params, mesh),
    )
    down = params["layers"]["mlp"]["down"]["kernel"]
    assert {shard.data.shape for shard in down.addressable_shards} == {(2, 20, 16)}
    print("split")
    # 130 words are no multiple of 4 devices.
    head = params["lm_head"]["kernel"]
    assert {shard.data.shape for shard in head.addressable_shards} == {(16, 130)}
    print("whole")


if __name__ == "__main__":
    load_into_shards(sys.argv[1])

"""Folders, the shipped stand-in and repositories are told apart; failures are one line."""

import math
import pathlib
import types

import huggingface_hub
import pytest
from huggingface_hub import errors

import models
from models.config import DecoderConfig, parameter_shapes
from models.errors import ModelError
from models.repository import config_folder, local_folder
from models.tokenizer import Tokenizer

RESPONSE = types.SimpleNamespace(headers={}, request=None)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A substitute for the hub: answers with a folder, or raises the error that is set."""
    calls = []

    def download(repository, **kwargs):
        calls.append((repository, kwargs))
        if isinstance(download.answer, Exception):
            raise download.answer
        return str(download.answer)

    download.answer = tmp_path
    download.calls = calls
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return download


def test_folder_needs_no_hub(hub, tmp_path, monkeypatch):
    assert local_folder(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path.parent)
    assert local_folder(tmp_path.name).samefile(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert local_folder(f"~/{tmp_path.name}") == tmp_path
    assert not hub.calls


def test_repository_is_downloaded_without_other_formats(hub, tmp_path):
    assert local_folder("org/name-7b.v1") == tmp_path
    ((repository, options),) = hub.calls
    assert repository == "org/name-7b.v1"
    assert "*.safetensors" in options["allow_patterns"]
    assert not any(".bin" in pattern for pattern in options["allow_patterns"])
    assert "original/*" in options["ignore_patterns"]


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("7b", 6_738_546_688), ("13b", 13_016_028_160), ("34b", 33_743_970_304)],
)
def test_published_architectures_need_no_hub(hub, size, parameters):
    config = DecoderConfig.from_folder(config_folder(f"codellama/CodeLlama-{size}-hf"))
    assert sum(map(math.prod, parameter_shapes(config).values())) == parameters
    assert config.rope_theta == 1e6
    assert not hub.calls


def test_of_other_repositories_the_configuration_alone_is_downloaded(hub, tmp_path):
    assert config_folder(tmp_path) == config_folder("org/name") == tmp_path
    ((_, options),) = hub.calls
    assert options["allow_patterns"] == ["config.json"]
    with pytest.raises(ModelError, match="no such model folder"):
        config_folder("absent")


NO_REPOSITORY = [
    *(
        "absent",
        "./absent",
        "../absent",
        "~/absent",
        "~nobody-of-this-name/m",
        ".absent/model",
        "/dev/null/model",
        "a/b/c",
    ),
    *("org/na me", "org/", "/name", "org/.name", "org/..", "org/name.", "-org/name", "org/a--b"),
    *("https://huggingface.co/org/name", "org/näme", "org/name\n", "models/typo", "./tiny", ""),
]


@pytest.mark.parametrize("find", [local_folder, config_folder])
@pytest.mark.parametrize("name", NO_REPOSITORY)
def test_names_that_are_no_repository_are_not_looked_up(hub, tmp_path, monkeypatch, find, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r": no such model folder; give .*org/name") as caught:
        find(name)
    assert str(caught.value).startswith(f"model {name}: ")
    assert not hub.calls


def test_the_stand_in_is_found_from_any_folder(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = pathlib.Path(models.__file__).parent / "tiny"
    for name in ("tiny", "models/tiny", pathlib.Path("tiny")):
        assert local_folder(name) == config_folder(name) == shipped
    model, params = models.load("tiny")
    assert params["embedder"]["embedding"].shape[0] == model.config.vocab_size
    assert Tokenizer("tiny").vocab_size <= model.config.vocab_size
    assert not hub.calls


@pytest.mark.parametrize("name", ["tiny", "models/tiny"])
def test_a_folder_with_the_name_of_the_stand_in_counts_if_it_holds_a_model(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / name
    own.mkdir(parents=True)
    shipped = pathlib.Path(models.__file__).parent / "tiny"
    assert local_folder(name) == config_folder(name) == shipped
    for settings in ("{", "[]", '{"model": "tiny"}'):  # the last one is a run's
        (own / "config.json").write_text(settings)
        assert local_folder(name) == shipped
        assert local_folder(f"./{name}").samefile(own)
    (own / "config.json").write_text('{"model_type": "llama"}')
    assert local_folder(name) == shipped
    (own / "tokenizer.json").touch()
    assert local_folder(name).samefile(own)
    assert config_folder(name).samefile(own)


def test_mistyped_name_beside_other_folders_is_not_looked_up(hub, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"^model models/tinny: no such model folder;"):
        local_folder("models/tinny")
    (tmp_path / "models" / "file").touch()
    with pytest.raises(ModelError, match=r"^model models/file: no such model folder;"):
        local_folder("models/file")
    assert not hub.calls


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            errors.GatedRepoError("Cannot access gated repo\nfor url", response=RESPONSE),
            "org/name: the repository is gated; accept its terms .* `hf auth login`",
        ),
        (
            errors.RepositoryNotFoundError("404 Client Error.", response=RESPONSE),
            "org/name: neither a folder here nor a repository that you may read",
        ),
        (
            errors.LocalEntryNotFoundError("not in the cache and\nno network"),
            r"org/name: no such folder, and .*`hf download org/name .* \(not in the cache and no "
            r"network\)",
        ),
        (errors.OfflineModeIsEnabled("offline mode"), r"org/name: .* \(offline mode\)"),
        (errors.HfHubHTTPError("502 Bad Gateway", response=RESPONSE), r"\(502 Bad Gateway\)"),
        (ConnectionError("refused"), r"\(refused\)"),
        (errors.HFValidationError("bad repo id"), r"\(bad repo id\)"),
    ],
)
def test_failures_are_one_line(hub, error, message):
    hub.answer = error
    with pytest.raises(ModelError, match=message) as caught:
        local_folder("org/name")
    assert "\n" not in str(caught.value)

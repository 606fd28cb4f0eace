"""A folder is taken as it is; a repository is downloaded; what fails is said in one line."""

import math
import types

import huggingface_hub
import pytest
from huggingface_hub import errors

from models.config import DecoderConfig
from models.convert import parameter_shapes
from models.errors import ModelError
from models.repository import config_folder, local_folder

RESPONSE = types.SimpleNamespace(headers={}, request=None)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stands for the hub: answers with a folder, or raises what it is told to."""
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


@pytest.mark.parametrize("name", ["absent", "./absent", "/absent/model", "a/b/c", "org/na me"])
def test_what_can_only_be_a_folder_is_not_looked_up(hub, name):
    with pytest.raises(ModelError, match=r": no such model folder$"):
        local_folder(name)
    assert not hub.calls


def test_mistyped_name_beside_other_folders_is_not_looked_up(hub, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"^models/tinny: no such model folder$"):
        local_folder("models/tinny")
    (tmp_path / "models" / "file").touch()
    with pytest.raises(ModelError, match=r"^models/file: no such model folder$"):
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
            r"org/name: no such folder, and .* \(not in the cache and no network\)",
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

"""Where a model lies: a local folder, or a Hugging Face repository, downloaded into its cache."""

import pathlib
import re

from models.errors import ModelError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILES = ["*.json", "*.safetensors"]
_ARCHITECTURES = pathlib.Path(__file__).parent / "configs"
_OTHER_FORMATS = ["original/*", "consolidated*", "onnx/*"]


def local_folder(path: str | pathlib.Path) -> pathlib.Path:
    """The folder of a model, downloaded first when `path` is a repository such as "org/name".

    Raises:
      ModelError: there is no such folder or repository, it may not be read, or the hub cannot be
        reached and the cache does not have it.
    """
    return _folder(path, _FILES)


def config_folder(path: str | pathlib.Path) -> pathlib.Path:
    """A folder with the config.json of a model, whose weights need not be there.

    For some repositories it is among our own files and needs no network.

    Raises:
      ModelError: as `local_folder`.
    """
    known = _ARCHITECTURES / path
    if not pathlib.Path(path).expanduser().is_dir() and (known / "config.json").is_file():
        return known
    return _folder(path, ["config.json"])


def _folder(path: str | pathlib.Path, patterns: list[str]) -> pathlib.Path:
    folder = pathlib.Path(path).expanduser()
    if folder.is_dir():
        return folder
    # "models/typo" in the project's own folder is a mistyped folder and no repository.
    if folder.exists() or folder.parent.name in ("", "..") or folder.parent.is_dir():
        raise ModelError(f"{path}: no such model folder")
    if not _REPOSITORY.fullmatch(str(path)):
        raise ModelError(f"{path}: no such model folder")
    return _download(str(path), patterns)


def _download(repository: str, patterns: list[str]) -> pathlib.Path:
    # Slow to import, and not needed for a folder.
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            repository, allow_patterns=patterns, ignore_patterns=_OTHER_FORMATS
        )
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repository}: the repository is gated; accept its terms on its page at "
            "huggingface.co, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{repository}: neither a folder here nor a repository that you may read"
        ) from error
    except Exception as error:  # the HTTP library below has exceptions of its own
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{repository}: no such folder, and the repository could not be brought here ({reason})"
        ) from error
    return pathlib.Path(folder)

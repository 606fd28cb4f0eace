"""Folders of models: local ones, the shipped stand-in, and cached Hugging Face repositories."""

import json
import os
import pathlib
import re

from models.errors import ModelError

# A repository is an account and a name. The hub allows no two dots or dashes in a row, and it keeps
# the name "models" for its own pages: "models/tinny" is a mistyped folder.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"(?!models/)(?!.*(?:\.\.|--)){_PART}/{_PART}")
_PACKAGE = pathlib.Path(__file__).parent
_STAND_INS = ("tiny", "small")
_CONFIG = ["config.json"]
_FILES = ["*.json", "*.safetensors"]
_OTHER_FORMATS = ["original/*", "consolidated*", "onnx/*"]


def local_folder(name: str | pathlib.Path) -> pathlib.Path:
    """The folder of a model, which is downloaded first if its name is that of a repository.

    Args:
      name: a folder (`~` is expanded); "tiny", the stand-in that is shipped, also as "models/tiny"
        ("small" if it was made); or a repository "org/name". A folder here that has the name of the
        stand-in counts only if it holds a model, for a run may be called so too; "./tiny" always
        means the folder.

    Raises:
      ModelError: the name is none of these, or the repository can neither be read nor found in the
        cache. Nothing but a name like "org/name" is ever looked up on the hub.
    """
    return _folder(name, _FILES)


def config_folder(name: str | pathlib.Path) -> pathlib.Path:
    """A folder with a model's config.json; its weights need not be there.

    The configurations of CodeLlama are shipped; that of another repository is downloaded.

    Args:
      name: as in `local_folder`.

    Raises:
      ModelError: as in `local_folder`.
    """
    return _folder(name, _CONFIG)


def _folder(name: str | pathlib.Path, patterns: list[str]) -> pathlib.Path:
    folder, spelling = pathlib.Path(os.path.expanduser(name)), str(name)
    stand_in = spelling.removeprefix("models/")
    is_shipped = stand_in in _STAND_INS and (_PACKAGE / stand_in).is_dir()
    if spelling and folder.is_dir() and not (is_shipped and not _holds_model(folder)):
        return folder
    if is_shipped:
        return _PACKAGE / stand_in
    is_repository = _REPOSITORY.fullmatch(spelling)
    published = _PACKAGE / "configs" / spelling
    if is_repository and patterns == _CONFIG and published.is_dir():
        return published
    # A missing entry of a folder that is here is a mistyped folder and no repository.
    if not is_repository or folder.exists() or folder.parent.is_dir():
        raise ModelError(
            f"model {name}: no such model folder; give a folder with config.json and its weights, "
            "a Hugging Face repository (org/name), or tiny for the shipped stand-in"
        )
    return _download(spelling, patterns)


def _holds_model(folder: pathlib.Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    has_tokenizer = any((folder / f"tokenizer.{kind}").is_file() for kind in ("json", "model"))
    return isinstance(config, dict) and "model_type" in config and has_tokenizer


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
            f"{repository}: no such folder, and the repository could not be downloaded; on a "
            f"machine with network run `hf download {repository} --local-dir=FOLDER`, and name "
            f"that folder ({reason})"
        ) from error
    return pathlib.Path(folder)

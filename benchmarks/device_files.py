"""The output of the compiler during a session of `benchmarks.device`, in one small file."""

import gzip
import io
import pathlib
import tarfile

_LIMIT_BYTES = 15_000_000
# In order of value for compiling elsewhere; the rest of a dump is left behind.
_KEPT = (
    "*autotune*",
    "xla_gpu_per_fusion_autotune_cache_dir/*",
    "*gpu_target_config.pbtxt",
    "*memory-usage-report.txt",
    "*after_optimizations.txt",
    "*after_optimizations-buffer-assignment.txt",
)


def pack(folder: pathlib.Path, archive: pathlib.Path) -> tuple[list[str], list[str]]:
    """Packs the compiler's output below a folder, each file compressed by itself.

    Args:
      folder: folders that XLA has dumped into, one for each stage.
      archive: the tar file to be written; with nothing to pack it is not.

    Returns:
      Names of the files that were packed, and of those left out because 15 MB were full.
    """
    found: list[pathlib.Path] = []
    for pattern in _KEPT:
        matching = [path for path in folder.rglob(pattern) if path.is_file()]
        found += [path for path in sorted(matching) if path not in found]
    packed: list[str] = []
    left_out: list[str] = []
    num_bytes = 0
    with tarfile.open(archive, "w") as tar:
        for path in found:
            name = str(path.relative_to(folder))
            content = gzip.compress(path.read_bytes(), mtime=0)
            if num_bytes + len(content) > _LIMIT_BYTES:
                left_out.append(name)
                continue
            num_bytes += len(content)
            entry = tarfile.TarInfo(f"{name}.gz")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
            packed.append(name)
    if not packed:
        archive.unlink()
    return packed, left_out

"""Fewer memory mappings, which are most of what a fork and the end of a process cost.

The linker maps a shared library in five pieces, by what may be done with each; two hundred of them
make sixteen hundred mappings. The kernel joins neighbours that allow the same.
"""

import ctypes
import mmap

_PT_LOAD = 1
_PT_GNU_RELRO = 0x6474E552
_PF_W = 2


class _Segment(ctypes.Structure):
    """`Elf64_Phdr` of elf(5)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("physical_address", ctypes.c_uint64),
        ("file_bytes", ctypes.c_uint64),
        ("memory_bytes", ctypes.c_uint64),
        ("alignment", ctypes.c_uint64),
    )


class _Library(ctypes.Structure):
    """The beginning of `struct dl_phdr_info` of dl_iterate_phdr(3)."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("segments", ctypes.POINTER(_Segment)),
        ("num_segments", ctypes.c_uint16),
    )


_Visitor = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(_Library), ctypes.c_size_t, ctypes.c_void_p
)


def join() -> None:
    """Joins the mappings of every library that is loaded: one to execute, one to write.

    What was only to be read can be executed afterwards, and what the linker has fixed can be
    written. For a process that runs programs of others anyway, in which no wall is made of that.
    """
    libc = ctypes.CDLL(None)
    for start, end, protection in _changes(libc):
        # Advice: where it is not taken, forks are slower and that is all.
        libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(end - start), protection)


def _changes(libc: ctypes.CDLL) -> list[tuple[int, int, int]]:
    """Start, end and new protection of the mappings to change."""
    page = mmap.PAGESIZE
    changes = []

    def visit(library: "ctypes._Pointer[_Library]", _size: int, _data: int | None) -> int:
        for segment in library[0].segments[: library[0].num_segments]:
            start = library[0].base + segment.address
            end = start + segment.memory_bytes
            if segment.type == _PT_LOAD and not segment.flags & _PF_W:
                last, protection = -(-end // page) * page, mmap.PROT_READ | mmap.PROT_EXEC
            elif segment.type == _PT_GNU_RELRO:
                last, protection = end // page * page, mmap.PROT_READ | mmap.PROT_WRITE
            else:
                continue
            changes.append((start // page * page, last, protection))
        return 0

    libc.dl_iterate_phdr(_Visitor(visit), None)
    return changes

"""Figures of a compiled program: kernels, copies, loops, collectives, traffic and arithmetic.

They are counted from the program's text (`compiled_program`), so they need no device.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from etpo_jax.devices.compiled_program import (
    Instruction,
    Program,
    dimensions,
    is_on_chip,
    num_bytes,
)

_COLLECTIVES = (
    *("all-gather", "all-reduce", "all-to-all", "collective-permute", "ragged-all-to-all"),
    "reduce-scatter",
)
_SLICES = {"dynamic-slice", "slice", "gather"}
_VIEWS = {"bitcast", "reshape"}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one part of a program executes on each device.

    Attributes:
      kernels: kernels, copies and library calls that are started.
      kernels_per_layer: those of them that are repeated with every layer of the model.
      copies: number of copies in the device's memory.
      copied_bytes: bytes that they move.
      largest_copy: bytes of the largest.
      data_dependent_loops: loops inside whose turns depend on data. On a GPU the host waits for
        the condition of every turn.
      collectives: number and bytes of results by kind.
      custom_calls: number of calls by target.
    """

    kernels: int = 0
    kernels_per_layer: int = 0
    copies: int = 0
    copied_bytes: int = 0
    largest_copy: int = 0
    data_dependent_loops: int = 0
    collectives: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    custom_calls: dict[str, int] = dataclasses.field(default_factory=dict)


def figures(program: Program, computation: str, num_layers: int = 0) -> Figures:
    """Figures of a computation and all that it executes; loops count as often as is known.

    Args:
      program: the parsed program.
      computation: name of the computation.
      num_layers: layers of the model if they are not in a loop; 0 leaves `kernels_per_layer` at 0.
    """
    kernels = [(one, times) for one, times in program.executed(computation) if one.is_kernel]
    copies = [(program.copy_bytes(one), times) for one, times in kernels]
    copies = [(size, times) for size, times in copies if size]
    collectives: dict[str, tuple[int, int]] = {}
    custom_calls: collections.Counter[str] = collections.Counter()
    alike: collections.Counter[tuple[str, ...]] = collections.Counter()
    for one, times in kernels:
        alike[(one.opcode, one.shape, *program.operand_shapes(one))] += times
        if one.target:
            custom_calls[one.target] += times
        if (kind := one.opcode.removesuffix("-start")) in _COLLECTIVES:
            count, size = collectives.get(kind, (0, 0))
            collectives[kind] = (count + times, size + times * one.result_bytes)
    return Figures(
        kernels=sum(times for _, times in kernels),
        kernels_per_layer=sum(round(count / num_layers) for count in alike.values())
        if num_layers
        else 0,
        copies=sum(times for _, times in copies),
        copied_bytes=sum(size * times for size, times in copies),
        largest_copy=max((size for size, _ in copies), default=0),
        data_dependent_loops=sum(
            program.trip_count(loop) is None for loop in program.loops(computation)
        ),
        collectives=dict(sorted(collectives.items())),
        custom_calls=dict(sorted(custom_calls.items())),
    )


def decode_loops(program: Program) -> list[Instruction]:
    """The loops a turn of which reads and draws one token, in the order of execution.

    Generation may go through several, each of which reads more of the cache. In a loop over rounds
    of tokens, the loop inside is meant.

    Raises:
      ValueError: the program has no loop.
    """
    found = [_innermost(program, loop) for loop in _largest(program, program.entry)]
    if not found:
        raise ValueError("the program has no loop")
    return found


def _innermost(program: Program, loop: Instruction) -> Instruction:
    """The loop inside that does most of the work, if there is one, else the loop itself."""
    inside = _largest(program, loop.called("body"))
    body = program.num_kernels(loop.called("body"))
    if inside and 2 * program.num_kernels(inside[0].called("body")) > body:
        return _innermost(program, inside[0])
    return loop


def _largest(program: Program, computation: str) -> list[Instruction]:
    """The outermost loops of a computation with at least half as many kernels as the largest."""
    nested: set[str] = set()
    sizes: dict[str, int] = {}
    loops = program.loops(computation)
    for loop in loops:
        nested.update(one.name for one in program.loops(loop.called("body")))
        sizes[loop.name] = program.num_kernels(loop.called("body"))
    outer = [loop for loop in loops if loop.name not in nested]
    most = max((sizes[loop.name] for loop in outer), default=0)
    return [loop for loop in outer if 2 * sizes[loop.name] >= most]


@dataclasses.dataclass(frozen=True)
class Work:
    """What one kernel does each time.

    Attributes:
      name: the instruction's name.
      times: how often it is executed.
      read: bytes that it reads from the device's memory.
      written: bytes that it writes.
      flops: floating point operations of its matrix products.
    """

    name: str
    times: int
    read: int
    written: int
    flops: int


def work(program: Program, computation: str) -> Iterator[Work]:
    """The work of every kernel that a computation executes.

    Of an array that a fusion slices or gathers from, the slices count as read; of one that it
    updates in place, the update counts as written.
    """
    for one, times in program.executed(computation):
        if one.is_kernel:
            read, written = _traffic(program, one)
            yield Work(one.name, times, sum(read), written, _flops(program, one))


def carried_bytes(program: Program, body: str) -> int:
    """Bytes of the arrays that a loop carries, weights and caches, as far as a turn reads them.

    An array that several kernels read counts once, and not at all where it is only written.
    """
    read: collections.Counter[str] = collections.Counter()
    carried: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for one in program.computations[body]:
        if one.opcode == "get-tuple-element" and one.operands[0] not in carried:
            sizes[one.name] = one.num_bytes
            carried[one.name] = one.name
        if not one.is_kernel:
            if one.opcode in _VIEWS and one.operands[0] in carried:
                carried[one.name] = carried[one.operands[0]]
            continue
        for name, size in zip(one.operands, _traffic(program, one)[0], strict=True):
            if name in carried:
                read[carried[name]] += size
        if (updated := _updated(program, one)) in carried:
            carried[one.name] = carried[updated]
    return sum(min(size, sizes[name]) for name, size in read.items())


def _updated(program: Program, one: Instruction) -> str:
    """The operand that a kernel updates in place; empty if it updates none."""
    if one.opcode == "dynamic-update-slice":
        return one.operands[0]
    if one.opcode != "fusion":
        return ""
    inside = {each.name: each for each in program.computations[one.called("calls")]}
    value = next(each for each in inside.values() if each.is_root)
    while value.opcode in (*_VIEWS, "dynamic-update-slice"):
        value = inside[value.operands[0]]
    # The parameter's number is the operand's.
    return one.operands[int(value.rest.partition(")")[0])] if value.opcode == "parameter" else ""


def _traffic(program: Program, one: Instruction) -> tuple[list[int], int]:
    """Bytes that a kernel reads of each operand, and bytes that it writes."""
    shapes = program.operand_shapes(one)
    sizes = [num_bytes(shape) for shape in shapes]
    if one.opcode == "dynamic-update-slice":
        return [0, sizes[1], *sizes[2:]], sizes[1]
    if one.opcode in _SLICES:
        return [one.result_bytes, *sizes[1:]], one.result_bytes
    called = one.called("calls") if one.opcode == "fusion" else ""
    if not called:
        return sizes, one.result_bytes
    inside = program.computations[called]
    by_name = {each.name: each for each in inside}
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for each in inside:
        for operand in each.operands:
            users[operand].append(each)
    for each in inside:
        if each.opcode == "parameter":
            sizes[int(each.rest.partition(")")[0])] = _read(each, users, by_name)
    root = next(each for each in inside if each.is_root)
    return sizes, _written(root, by_name)


def _read(
    value: Instruction, users: dict[str, list[Instruction]], by_name: dict[str, Instruction]
) -> int:
    """Bytes of a parameter, or of a view of one, that a fusion reads."""
    if is_on_chip(value.shape):
        return 0
    total = 0
    for user in users[value.name]:
        is_first = user.operands[0] == value.name
        if user.opcode in _VIEWS:
            total += _read(user, users, by_name)
        elif user.opcode in _SLICES and is_first:
            total += user.num_bytes
        elif user.opcode == "dynamic-update-slice" and is_first:
            total += 0
        else:
            return value.num_bytes
    return min(total, value.num_bytes)


def _written(root: Instruction, by_name: dict[str, Instruction]) -> int:
    if root.opcode == "tuple":
        return sum(_written(by_name[name], by_name) for name in root.operands)
    if root.opcode in _VIEWS:
        return _written(by_name[root.operands[0]], by_name)
    if root.opcode == "dynamic-update-slice":
        return by_name[root.operands[1]].num_bytes
    return 0 if is_on_chip(root.shape) else root.num_bytes


def _flops(program: Program, one: Instruction) -> int:
    if one.opcode == "fusion":
        inside = program.computations[one.called("calls")]
        return sum(_flops(program, each) for each in inside)
    if one.opcode in ("dot", "convolution") or "gemm" in one.target or "matmul" in one.target:
        return _product_flops(program, one)
    return _attention_flops(program, one) if "fmha" in one.target else 0


def _product_flops(program: Program, one: Instruction) -> int:
    """Twice the elements of the result times the length of the contracted axes."""
    left = dimensions(program.operand_shapes(one)[0])
    found = re.search(r'lhs_contracting_dim\w*"?\s*[=:]\s*[\[{]([\d",]+)[\]}]', one.rest)
    if one.opcode == "convolution" or not found:
        # A TPU's compiler writes products as convolutions over the last axis of their operand.
        contracted = left[-1:]
    else:
        contracted = tuple(left[int(axis)] for axis in re.findall(r"\d+", found.group(1)))
    return 2 * math.prod(dimensions(one.shape)) * math.prod(contracted)


def _attention_flops(program: Program, one: Instruction) -> int:
    """Products of a fused attention: two in its forward pass, five in its backward pass."""
    b, n, s, h = dimensions(program.operand_shapes(one)[0])
    return 2 * (5 if "Backward" in one.target else 2) * b * n * s * s * h

"""What a compiled program does, read from the text of its optimised HLO.

`parse(compiled.as_text())` takes the text of programs that XLA compiled for CPUs, GPUs or TPUs.
Figures are those of one device. Nothing here imports JAX.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_HEADER = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
# Instructions that name or order values and start nothing on the device.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "domain"),
    *("opt-barrier", "partition-id", "replica-id", "add-dependency"),
}
_MARKERS = {"AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}
_CONTROL = {"while", "conditional", "call", "async-start"}
# Instructions of a fusion that only moves values.
_MOVING = {"parameter", "bitcast", "copy", "transpose", "reshape", "tuple", "get-tuple-element"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO.

    Attributes:
      name: its name, unique in the program.
      shape: text of its result's shape, layouts included.
      opcode: kind of operation, such as "fusion".
      operands: names of its operands.
      rest: text of operands, attributes and metadata.
      is_root: True if it is the result of its computation.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of the result, or of all arrays of a tuple."""
        return num_bytes(self.shape)

    @property
    def result_bytes(self) -> int:
        """Bytes of the result; of an asynchronous start, those that its end will hand out."""
        if not self.opcode.endswith("-start"):
            return self.num_bytes
        # The result holds the operands, then the results, then what the operation needs itself.
        arrays = _ARRAY.findall(self.shape)
        return max((_array_bytes(dtype, sizes) for dtype, sizes, _ in arrays), default=0)

    @property
    def is_kernel(self) -> bool:
        """True if it starts work on the device: a kernel, a copy or a call of a library."""
        if self.opcode in _FREE or self.opcode in _CONTROL:
            return False
        return not self.opcode.endswith(("-done", "-update")) and self.target not in _MARKERS

    def called(self, attribute: str) -> str:
        """The computation that an attribute such as "body" or "calls" names; empty if none."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found.group(1) if found else ""

    @property
    def branches(self) -> tuple[str, ...]:
        """Computations of a conditional, one of which is executed."""
        found = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        if found:
            return tuple(name.strip().lstrip("%") for name in found.group(1).split(","))
        both = (self.called("true_computation"), self.called("false_computation"))
        return tuple(filter(None, both))

    @property
    def target(self) -> str:
        """Target of a custom call, such as "__cublas$gemm"."""
        found = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return found.group(1) if found else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A parsed program.

    Attributes:
      computations: instructions of every computation by its name, in the order of execution.
      entry: name of the computation that the program starts with.
    """

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    def executed(self, computation: str, times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """Instructions that a computation executes outside fusions, and how often.

        Bodies and conditions of loops are included, as often as the loop is known to turn; once
        where that depends on data. Of a conditional the branch with more kernels is taken.
        """
        for instruction in self.computations[computation]:
            yield instruction, times
            if instruction.opcode == "while":
                turns = times * (self.trip_count(instruction) or 1)
                yield from self.executed(instruction.called("condition"), turns)
                yield from self.executed(instruction.called("body"), turns)
            elif instruction.opcode == "conditional":
                longest = max(instruction.branches, key=self.num_kernels)
                yield from self.executed(longest, times)
            elif instruction.opcode == "call":
                yield from self.executed(instruction.called("to_apply"), times)
            elif instruction.opcode == "async-start" and instruction.called("calls"):
                yield from self.executed(instruction.called("calls"), times)

    @functools.cached_property
    def _shapes(self) -> dict[str, str]:
        return {one.name: one.shape for lines in self.computations.values() for one in lines}

    def operand_shapes(self, instruction: Instruction) -> list[str]:
        """Shapes of an instruction's operands."""
        return [self._shapes[name] for name in instruction.operands]

    def trip_count(self, loop: Instruction) -> int | None:
        """Turns of a while loop; None if they depend on data.

        Compilers for CPUs and GPUs note the number. Otherwise a loop is known that ends when a
        counter, which starts at 0, reaches a constant.
        """
        found = re.search(r'known_trip_count"?\s*[:=]\s*\{"?n"?\s*[:=]\s*"?(\d+)', loop.rest)
        if found:
            return int(found.group(1))
        inside = {one.name: one for one in self.computations[loop.called("condition")]}
        test = next(one for one in inside.values() if one.is_root)
        if test.opcode != "compare" or "direction=LT" not in test.rest:
            return None
        counter, limit = (inside[name] for name in test.operands)
        if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
            return None
        return int(limit.rest.partition(")")[0])

    def num_kernels(self, computation: str) -> int:
        """Kernels that a computation executes if every loop turns once."""
        return sum(one.is_kernel for one, _ in self.executed(computation))

    def loops(self, computation: str = "") -> list[Instruction]:
        """The while loops that a computation (the whole program, if empty) executes, nested too."""
        start = computation or self.entry
        return [one for one, _ in self.executed(start) if one.opcode == "while"]

    def copy_bytes(self, instruction: Instruction) -> int:
        """Bytes that a copy moves in the device's memory; 0 if the instruction is none.

        A fusion that changes nothing but order counts. A copy into memory on the chip does not: it
        is how a TPU fetches what a later instruction reads.
        """
        if instruction.opcode == "copy-start":
            return _first_array_bytes(instruction.shape)
        if instruction.opcode == "copy" or (
            instruction.opcode == "fusion"
            and {one.opcode for one in self.computations[instruction.called("calls")]} <= _MOVING
        ):
            return 0 if is_on_chip(instruction.shape) else instruction.num_bytes
        return 0


def parse(text: str) -> Program:
    """Reads the text of a compiled module.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    lines: list[Instruction] = []
    entry = current = ""
    for line in text.splitlines():
        if current:
            # A literal of several lines may have a line that starts with a bracket as well.
            if re.match(r"\}(,|\s*$)", line):
                computations[current] = tuple(lines)
                current, lines = "", []
            elif instruction := _instruction(line):
                lines.append(instruction)
        elif header := _HEADER.match(line):
            current = header.group(1)
            if line.startswith("ENTRY"):
                entry = current
    if not entry:
        raise ValueError("no entry computation in the text of the program")
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    body = line[found.end() :]
    # A tuple's shape holds spaces and comments, another one ends at the first space.
    end = _closing(body, 0) + 1 if body.startswith("(") else body.index(" ")
    opcode, _, rest = body[end:].strip().partition("(")
    operands = rest[: _closing("(" + rest, 0) - 1]
    names = tuple(_NAME.findall(operands))
    return Instruction(found.group(2), body[:end], opcode, names, rest, bool(found.group(1)))


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ValueError(f"unbalanced brackets: {text[:100]}")


def num_bytes(shape: str) -> int:
    """Bytes of an array's shape such as "bf16[8,128]{1,0}", or of all arrays of a tuple's."""
    return sum(_array_bytes(dtype, sizes) for dtype, sizes, _ in _ARRAY.findall(shape))


def dimensions(shape: str) -> tuple[int, ...]:
    """Sizes of the first array in a shape."""
    found = _ARRAY.search(shape)
    return tuple(int(size) for size in found.group(2).split(",") if size) if found else ()


def is_on_chip(shape: str) -> bool:
    """True if the layout of the first array places it in memory on the chip (a TPU's VMEM)."""
    return bool(re.search(r"S\([1-9]\d*\)", shape))


def _first_array_bytes(shape: str) -> int:
    arrays = list(_ARRAY.finditer(shape))
    # The result of an asynchronous copy is (destination, source, context).
    return 0 if is_on_chip(arrays[0].group()) else num_bytes(arrays[0].group())


def _array_bytes(dtype: str, sizes: str) -> int:
    bits = {"pred": 8, "token": 0}.get(dtype)
    if bits is None:
        bits = int(re.search(r"\d+", dtype).group())  # type: ignore[union-attr]
    elements = math.prod(int(size.lstrip("<=")) for size in sizes.split(",") if size)
    return elements * bits // 8

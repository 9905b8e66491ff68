"""What a compiled program moves, read off its text.

XLA says what memory a program takes, and where it has fused everything, its text says what every
operation reads and writes: the shapes of operands and results, and how often each loop goes round.
What is kept on the chip within a fusion costs nothing; what is sliced counts as the slice.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_ELEMENT = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"(\d+)"')
_LAYER = re.compile(r"features[._](\w+)|classifier|fc")
# Operations that move nothing.
_FREE = frozenset(
    "parameter constant get-tuple-element tuple bitcast after-all opt-barrier partition-id "
    "replica-id copy-done async-done async-update all-reduce-done all-gather-done "
    "collective-permute-done".split()
)
_SLICES = ("slice", "dynamic-slice", "gather")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
PRODUCTS, ELEMENTWISE, COLLECTIVES = "products", "elementwise", "collectives"


class Mover(NamedTuple):
    """An operation of a compiled program.

    Attributes:
        name: as in the text.
        kind: convolutions and matrix products, elementwise work and reductions, or collectives.
        layer: of the network, and the shape of its largest array.
        bytes: that it reads and writes, each time.
        flops: multiplications and additions of its products, each time.
        times: how often it runs.
    """

    name: str
    kind: str
    layer: str
    bytes: int
    flops: int
    times: float

    @property
    def total(self) -> float:
        """Bytes over all times."""
        return self.bytes * self.times

    def seconds(self, bandwidth: float, rate: float) -> float:
        """All times at best: what takes longer, its bytes or its arithmetic."""
        if self.kind == COLLECTIVES:
            return 0.0
        return self.times * max(self.bytes / bandwidth, self.flops / rate)


def movers(text: str) -> list[Mover]:
    """Every operation of a program that moves bytes, each loop's as often as it goes round.

    Args:
        text: of `jax.stages.Compiled.as_text()`. Of a conditional's branches, each counts for as
            much as it has of them.

    Raises:
        ValueError: a loop doesn't say how often it goes round, or the text is of another kind.
    """
    computations, entry = _parse(text)
    return list(_walk(computations, entry, 1.0))


def by_kind(operations: list[Mover]) -> dict[str, float]:
    """Bytes of each kind, and of all (`total`), without what goes between devices."""
    sums = {PRODUCTS: 0.0, ELEMENTWISE: 0.0, COLLECTIVES: 0.0}
    for mover in operations:
        sums[mover.kind] += mover.total
    return {**sums, "total": sums[PRODUCTS] + sums[ELEMENTWISE]}


def by_layer(operations: list[Mover]) -> dict[tuple[str, str], float]:
    """Bytes of each `(layer, kind)`, the most first."""
    sums: dict[tuple[str, str], float] = collections.defaultdict(float)
    for mover in operations:
        sums[mover.layer, mover.kind] += mover.total
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


class Roofline(NamedTuple):
    """A program's time at best, operation after operation.

    Attributes:
        seconds: in all.
        waiting: for memory: of the operations whose bytes take longer than their arithmetic.
    """

    seconds: float
    waiting: float


def roofline(operations: list[Mover], bandwidth: float, rate: float) -> Roofline:
    """The time that a program can't be under.

    Args:
        operations: of a program.
        bandwidth: bytes a second.
        rate: operations of products a second.
    """
    seconds = [mover.seconds(bandwidth, rate) for mover in operations]
    bound = [m.bytes / bandwidth > m.flops / rate for m in operations]
    return Roofline(sum(seconds), sum(s for s, waits in zip(seconds, bound) if waits))


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of what it reads."""
        return tuple(_NAME.findall(self.arguments))

    @functools.cached_property
    def size(self) -> int:
        return _size(self.type)


_Computation = dict[str, _Instruction]


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    entry = ""
    current: _Computation = {}
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and (found := _COMPUTATION.match(line)):
            current = computations[found[1]] = {}
            if line.startswith("ENTRY"):
                entry = found[1]
        elif found := _INSTRUCTION.match(line):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("this is not the text of a compiled program")
    return computations, entry


def _instruction(name: str, rest: str, is_root: bool) -> _Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opened = rest.index("(")
    closed = _closing(rest, opened)
    arguments = rest[opened + 1 : closed - 1]
    return _Instruction(name, type_, rest[:opened], arguments, rest[closed:], is_root)


def _closing(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place + 1
    raise ValueError(f"unbalanced: {text[start : start + 80]}")


def _size(type_: str) -> int:
    """Bytes of a type in the device's main memory, with what its tiles fill up."""
    return sum(_array_size(*found.groups()) for found in _ELEMENT.finditer(type_))


def _array_size(dtype: str, sizes: str, layout: str | None) -> int:
    # S(1) and up are memories on the chip, as VMEM of a TPU.
    if dtype == "token" or (layout and re.search(r"S\([1-9]", layout)):
        return 0
    shape = [int(n) for n in sizes.split(",") if n]
    tile = re.search(r"T\(([\d,]+)\)", layout or "")
    if shape and tile and layout:
        order = [int(n) for n in layout.split(":")[0].split(",") if n]
        for axis, side in zip(order, reversed([int(n) for n in tile[1].split(",")])):
            shape[axis] = -(-shape[axis] // side) * side
    return math.prod(shape) * _bits(dtype) // 8


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


def _walk(computations: Mapping[str, _Computation], name: str, times: float) -> Iterator[Mover]:
    computation = computations[name]
    for op in computation.values():
        if op.opcode in _FREE:
            continue
        called = _called(op)
        if op.opcode == "while":
            found = _TRIPS.search(op.attributes)
            if not found:
                raise ValueError(f"loop {op.name} doesn't say how often it goes round")
            for inner in called:
                yield from _walk(computations, inner, times * int(found[1]))
        elif op.opcode == "conditional":
            for inner in called:
                yield from _walk(computations, inner, times / len(called))
        elif op.opcode in ("call", "async-start") and called:
            for inner in called:
                yield from _walk(computations, inner, times)
        else:
            inside = computations.get(called[0]) if op.opcode == "fusion" and called else None
            moved = _moved(op, computation, inside)
            if moved:
                kind, layer = _kind(op, inside), _layer(op, computation)
                flops = 0
                if kind == PRODUCTS:
                    flops = sum(_flops(i, inside) for i in inside.values()) if inside else 0
                    flops = flops or _flops(op, computation)
                yield Mover(op.name, kind, layer, moved, flops, times)


def _called(op: _Instruction) -> list[str]:
    """The computations that an operation runs: a loop's body, branches, a fusion's."""
    branches = re.search(r"branch_computations=\{([^}]*)\}", op.attributes)
    if branches:
        return _NAME.findall(branches[1])
    keys = {
        "while": ("body",),
        "fusion": ("calls",),
        "conditional": ("true_computation", "false_computation"),
    }.get(op.opcode, ("to_apply", "calls") if op.opcode in ("call", "async-start") else ())
    found = (re.search(rf"\b{key}=%?([\w.\-]+)", op.attributes) for key in keys)
    return [match[1] for match in found if match]


def _kind(op: _Instruction, inside: _Computation | None) -> str:
    if op.opcode.startswith(_COLLECTIVES):
        return COLLECTIVES
    opcodes = {op.opcode} if inside is None else {i.opcode for i in inside.values()}
    product = "convolution" in opcodes or "dot" in opcodes
    library = op.opcode == "custom-call" and re.search(
        r'custom_call_target="[^"]*(cudnn|cublas|gemm|conv)', op.attributes, re.IGNORECASE
    )
    return PRODUCTS if product or library else ELEMENTWISE


def _flops(op: _Instruction, computation: _Computation) -> int:
    """Multiplications and additions of a convolution or a matrix product; else 0."""
    target = re.search(r'custom_call_target="([^"]*)"', op.attributes)
    library = target[1] if target else ""
    shapes = [_shape(computation[name].type) for name in op.operands[:2] if name in computation]
    if len(shapes) < 2:
        return 0
    result = _shape(op.type)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes)
    if labels:
        # Of a library's backward passes the labels stay those of the forward pass.
        kernel, output = shapes[1], result
        if "BackwardInput" in library:
            output = shapes[0]
        elif "BackwardFilter" in library:
            kernel, output = result, shapes[1]
        terms = math.prod(kernel) // kernel[labels[2].index("o")]
        return 2 * math.prod(output) * terms
    contracted = re.search(r'lhs_contracting_dim\w*"?[=:][{\[]([\d,"]*)', op.attributes)
    if contracted and (op.opcode == "dot" or "gemm" in library or "cublas" in library):
        axes = [int(n) for n in re.findall(r"\d+", contracted[1])]
        return 2 * math.prod(result) * math.prod(shapes[0][axis] for axis in axes)
    return 0


def _shape(type_: str) -> list[int]:
    """The sides of a type's first array."""
    found = _ELEMENT.search(type_)
    return [int(n) for n in found[2].split(",") if n] if found else []


def _layer(op: _Instruction, computation: _Computation) -> str:
    path = re.search(r'op_name="([^"]*)"', op.attributes)
    found = _LAYER.search(path[1]) if path else None
    values = [op, *(computation[name] for name in op.operands if name in computation)]
    largest = max(
        (found for value in values for found in _ELEMENT.finditer(value.type)),
        key=lambda array: _array_size(*array.groups()),
        default=None,
    )
    shape = largest[2].replace(",", "x") if largest else ""
    return f"{found[0] if found else '-'} {shape}"


def _moved(op: _Instruction, computation: _Computation, inside: _Computation | None) -> int:
    """Bytes that an operation reads and writes."""
    operands = [computation[name] for name in op.operands if name in computation]
    if inside is None:
        return _moved_alone(op, operands)
    parameters = {int(i.arguments): i.name for i in inside.values() if i.opcode == "parameter"}
    read = sum(
        _read(parameters[index], operand.size, inside) for index, operand in enumerate(operands)
    )
    root = next(i for i in inside.values() if i.is_root)
    return read + _written(root, inside)


def _moved_alone(op: _Instruction, operands: list[_Instruction]) -> int:
    if op.opcode in _SLICES:
        return 2 * op.size
    if op.opcode == "dynamic-update-slice":
        return 2 * operands[1].size
    if op.opcode == "scatter":
        return 3 * operands[-1].size
    if op.opcode == "custom-call":
        # Of a library's results the last is scratch memory.
        scratch = re.search(r"u8\[\d*\]", op.type)
        return sum(i.size for i in operands) + op.size - (_size(scratch[0]) if scratch else 0)
    if op.opcode.endswith("-start"):
        # Its result is a tuple of its operands and of what comes of them.
        return 2 * sum(i.size for i in operands)
    return sum(i.size for i in operands) + op.size


def _read(name: str, size: int, inside: _Computation) -> int:
    """What a fusion reads of a parameter: all, or the slices that it takes."""
    users = [i for i in inside.values() if name in i.operands]
    if users and all(_reads_part(i, name) for i in users):
        return min(size, sum(0 if i.opcode == "dynamic-update-slice" else i.size for i in users))
    if len(users) == 1 and users[0].opcode == "bitcast":
        return _read(users[0].name, size, inside)
    return size


def _reads_part(user: _Instruction, name: str) -> bool:
    """Whether an operation reads a slice of its first operand, or writes one into it."""
    first_alone = user.operands[0] == name and name not in user.operands[1:]
    return first_alone and user.opcode in (*_SLICES, "dynamic-update-slice")


def _written(root: _Instruction, inside: _Computation) -> int:
    """What a fusion writes: its results, or the slice that it puts into one."""
    if root.opcode == "tuple":
        return sum(_written(inside[name], inside) for name in root.operands)
    if root.opcode == "bitcast" and root.operands[0] in inside:
        return _written(inside[root.operands[0]], inside)
    if root.opcode == "dynamic-update-slice":
        return inside[root.operands[1]].size
    return root.size

"""What a function costs, told from its trace: arithmetic and memory, nothing compiled or run.

Memory is that of a simple compiler: the results of convolutions, products, reductions and the like
are stored from when they are made to their last use; cheap elementwise work between them is fused
into what reads it, and stored only where such an operation, or the caller, needs it whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core

# Operations whose results are stored.
_STORED = frozenset(
    "argmax argmin concatenate cond conv_general_dilated cumsum dot_general dynamic_update_slice "
    "edf_convolve edf_gated_pool edf_kernel_gradient edf_sum_pixels gather random_bits reduce_max "
    "reduce_min reduce_sum reduce_window scan scatter scatter-add sort split while".split()
)
# Operations that need their operands stored.
_READS_STORED = frozenset(
    "concatenate conv_general_dilated dot_general edf_convolve edf_kernel_gradient gather scatter "
    "scatter-add sort".split()
)
# Operations that only wrap others.
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_LOOPS = frozenset(("scan", "while", "cond"))


class _Value:
    """An intermediate result, compared by identity."""

    def __init__(self, size: int):
        self.size = size


class _Operation(NamedTuple):
    """An equation of a trace whose calls are inlined.

    Attributes:
        name: of the primitive.
        inputs: what it reads.
        results: what it makes.
        inside: bytes that a loop's body, or the largest branch, takes while it runs.
    """

    name: str
    inputs: tuple[_Value, ...]
    results: tuple[_Value, ...]
    inside: int


def peak_bytes(function: Callable, *arguments: Any) -> int:
    """The most memory that a function's intermediate and final results take at once.

    Args:
        function: traceable; its arguments' own memory isn't counted.
        *arguments: arrays or `jax.ShapeDtypeStruct`s.
    """
    return _peak(jax.make_jaxpr(function)(*arguments).jaxpr)


def _peak(jaxpr) -> int:
    operations, results = _inlined(jaxpr)
    operations = _needed(operations, results)
    maker = {value: op for op in operations for value in op.results}
    stored = {value for value in results if value in maker}
    for op in operations:
        if op.name in _STORED:
            stored.update(op.results)
        if op.name in _READS_STORED:
            stored.update(value for value in op.inputs if value in maker)

    sources: dict[_Value, frozenset[_Value]] = {}

    def read(value: _Value) -> frozenset[_Value]:
        """The stored values that making a value reads."""
        if value in stored:
            return frozenset((value,))
        return sources.get(value, frozenset())

    born: dict[_Value, int] = {}
    last_use: dict[_Value, int] = {}
    for time, op in enumerate(operations):
        reads = frozenset().union(*(read(value) for value in op.inputs))
        kept = [value for value in op.results if value in stored]
        sources.update({value: reads for value in op.results if value not in stored})
        if kept:
            last_use.update(dict.fromkeys((*reads, *kept), time))
            born.update(dict.fromkeys(kept, time))
    last_use.update((value, len(operations)) for value in results if value in born)

    change = [0] * (len(operations) + 2)
    for value, time in born.items():
        change[time] += value.size
        change[last_use[value] + 1] -= value.size
    peak = now = 0
    for time, op in enumerate(operations):
        now += change[time]
        peak = max(peak, now + op.inside)
    return max(peak, now + change[len(operations)])


def _inlined(jaxpr) -> tuple[list[_Operation], list[_Value]]:
    environment = {v: _Value(0) for v in (*jaxpr.invars, *jaxpr.constvars)}
    operations: list[_Operation] = []
    _inline(jaxpr, environment, operations)
    return operations, [environment[v] for v in jaxpr.outvars if not isinstance(v, core.Literal)]


def _inline(jaxpr, environment: dict[Any, _Value], operations: list[_Operation]) -> None:
    """Appends a trace's operations, and adds its variables' values to the environment."""
    constant = _Value(0)
    for equation in jaxpr.eqns:
        inputs = tuple(
            constant if isinstance(v, core.Literal) else environment[v] for v in equation.invars
        )
        inner = _called(equation)
        if inner is None:
            results = tuple(_Value(_size(v.aval)) for v in equation.outvars)
            inside = max(map(_peak, _bodies(equation)), default=0)
            operations.append(_Operation(equation.primitive.name, inputs, results, inside))
        else:
            within = dict(zip(inner.invars, inputs))
            within.update((v, constant) for v in inner.constvars)
            _inline(inner, within, operations)
            results = tuple(
                constant if isinstance(v, core.Literal) else within[v] for v in inner.outvars
            )
        environment.update(zip(equation.outvars, results))


def _called(equation):
    """The trace that an equation only calls, or None."""
    if equation.primitive.name in _LOOPS:
        return None
    for name in _CALLS:
        inner = equation.params.get(name)
        if inner is not None:
            inner = getattr(inner, "jaxpr", inner)
            return inner if len(inner.invars) == len(equation.invars) else None
    return None


def _bodies(equation) -> Iterator[Any]:
    """The traces of a loop's body or of a conditional's branches."""
    if equation.primitive.name in _LOOPS:
        for name in ("jaxpr", "body_jaxpr"):
            if name in equation.params:
                yield equation.params[name].jaxpr
        for branch in equation.params.get("branches", ()):
            yield branch.jaxpr


def _size(aval) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize


def _needed(operations: list[_Operation], results: list[_Value]) -> list[_Operation]:
    """The operations that the results depend on, in order."""
    wanted = set(results)
    kept = []
    for op in reversed(operations):
        if any(value in wanted for value in op.results):
            kept.append(op)
            wanted.update(op.inputs)
    return kept[::-1]


def flops(function: Callable, *arguments: Any) -> int:
    """The multiplications and additions of a function's convolutions and matrix products.

    Args:
        function: traceable.
        *arguments: arrays or `jax.ShapeDtypeStruct`s.
    """
    return sum(_flops(e) for e in _equations(jax.make_jaxpr(function)(*arguments).jaxpr))


def _equations(jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        inner = _called(equation)
        if inner is None:
            yield equation
        else:
            yield from _equations(inner)


def _flops(equation) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        terms = math.prod(shape[axis] for axis in contracted)
    elif name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_axis = equation.params["dimension_numbers"].rhs_spec[0]
        terms = math.prod(kernel) // kernel[out_axis]
    elif name in ("edf_convolve", "edf_kernel_gradient"):
        # Each result sums over all of the second operand but its channels.
        terms = math.prod(equation.invars[1].aval.shape[:-1])
    else:
        return 0
    return 2 * terms * math.prod(equation.outvars[0].aval.shape)

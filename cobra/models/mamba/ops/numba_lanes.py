"""Sixteen floats as one value in numba: what is written with them is vector code, whatever LLVM's vectoriser thinks.

A :data:`lanes` is an LLVM vector of `LANES` fp32 numbers, which becomes two registers of AVX2, one of AVX-512, four of
NEON. Memory is read and written at plain addresses (int64), four bytes a number. Sums of products are contracted to
fused multiply-adds; nothing else is reordered, so that results depend on the machine's instructions alone and neither
on the number of threads nor on the place in memory.
"""

import operator
from collections.abc import Callable
from functools import wraps
from typing import Any

import numba
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

LANES = 16
BYTES = 4 * LANES

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR, _INT_VECTOR = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_CONTRACT = ("contract",)

# 2^f = 1 + f P(f) for |f| <= 1/2: minimax in the relative error, 0.09 * 2^-24 with these fp32 coefficients.
_EXP = (
    *(0.6931472420692444, 0.24022655189037323, 0.05550272390246391),
    *(0.009617063216865063, 0.0013418203452602029, 0.0001582050754223019),
)
# atanh(s) = s (1 + s^2 Q(s^2)) for s <= 1/3: minimax, 0.09 * 2^-24.
_ATANH = (0.3333320915699005, 0.2001076191663742, 0.14000928401947021, 0.14005853235721588)
# Added to a number below 2^22 and taken away again, it rounds to a whole one, which stays in the sum's low bits.
_ROUND = 1.5 * 2**23
LOG2_E = 1.4426950408889634
_LOG2_E_HIGH, _LOG2_E_LOW = 1.4426950216293335, 1.925963033500011e-08
LN_2 = 0.6931471805599453


class LanesType(types.Type):
    """Numba's type of a vector."""


lanes = LanesType(name="Lanes")


@extending.register_model(LanesType)
class _LanesModel(extending.models.PrimitiveModel):
    def __init__(self, manager: Any, kind: LanesType) -> None:
        super().__init__(manager, kind, _VECTOR)


def _operator(function: Callable[..., Any], instruction: str) -> None:
    """Teach numba an operator between two vectors."""

    class Template(AbstractTemplate):
        key = function

        def generic(self, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
            return signature(lanes, lanes, lanes) if args == (lanes, lanes) else None

    infer_global(function)(Template)

    @lower_builtin(function, LanesType, LanesType)
    def lower(context: Any, builder: Any, sig: Any, args: tuple[Any, Any]) -> Any:
        return getattr(builder, instruction)(*args, flags=_CONTRACT)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


def _intrinsic(result: types.Type, *arguments: types.Type) -> Callable[[Callable[..., Any]], Any]:
    """Make what writes instructions with LLVM's builder, which it takes first, a function of numba of these types."""

    def decorate(write: Callable[..., Any]) -> Any:
        @wraps(write)
        def typing(typingctx: Any, *kinds: Any) -> Any:
            def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                value = write(builder, *args)
                return context.get_dummy_value() if result is types.void else value

            return result(*arguments), build

        return extending.intrinsic(typing)

    return decorate


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


@_intrinsic(lanes, types.int64)
def load(builder: Any, address: Any) -> Any:
    """Read a vector at an address."""
    return builder.load(_pointer(builder, address, _VECTOR), align=4)


@_intrinsic(types.void, types.int64, lanes)
def store(builder: Any, address: Any, value: Any) -> None:
    """Write a vector at an address."""
    builder.store(value, _pointer(builder, address, _VECTOR), align=4)


@_intrinsic(types.void, types.int64)
def prefetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address, which is read soon."""
    byte = ir.IntType(8)
    kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), _INT, _INT, _INT])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    flags = [ir.Constant(_INT, value) for value in (0, 3, 1)]
    builder.call(function, [_pointer(builder, address, byte), *flags])


@_intrinsic(types.float32, types.int64)
def load_one(builder: Any, address: Any) -> Any:
    """Read one fp32 number."""
    return builder.load(_pointer(builder, address, _FLOAT), align=4)


@_intrinsic(types.void, types.int64, types.float32)
def store_one(builder: Any, address: Any, value: Any) -> None:
    """Write one fp32 number."""
    builder.store(value, _pointer(builder, address, _FLOAT), align=4)


@_intrinsic(lanes, types.float32)
def spread(builder: Any, value: Any) -> Any:
    """Return a vector of sixteen times one number."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INT_VECTOR, None))


@_intrinsic(lanes, lanes, lanes, lanes)
def fused(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x y + z, rounded once on machines that can; a product that is used twice is not fused by itself."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, (x, y, z))


@_intrinsic(lanes, lanes, lanes)
def maximum(builder: Any, x: Any, least: Any) -> Any:
    """Return x where it is not below `least`, and so a NaN in x, else `least`."""
    return builder.select(builder.fcmp_ordered("<", x, least), least, x)


@_intrinsic(lanes, lanes, lanes, lanes)
def where_negative(builder: Any, x: Any, then: Any, otherwise: Any) -> Any:
    """Return `then` where x is below 0, else `otherwise`."""
    return builder.select(builder.fcmp_ordered("<", x, ir.Constant(_VECTOR, None)), then, otherwise)


@_intrinsic(lanes, lanes, lanes)
def _times_power(builder: Any, value: Any, rounded: Any) -> Any:
    """Multiply by 2^n, where n, at least -127, is in the low bits of `rounded`: added to the exponents' bits."""
    shift = ir.Constant(_INT_VECTOR, [ir.Constant(_INT, 23)] * LANES)
    exponent = builder.shl(builder.bitcast(rounded, _INT_VECTOR), shift)
    return builder.bitcast(builder.add(builder.bitcast(value, _INT_VECTOR), exponent), _VECTOR)


@_intrinsic(types.float32, lanes)
def total(builder: Any, value: Any) -> Any:
    """Return the sum of the sixteen numbers, by halves: always in the same order."""
    size = LANES
    while size > 1:
        size //= 2
        masks = (ir.Constant(ir.VectorType(_INT, size), list(range(at, at + size))) for at in (0, size))
        value = builder.fadd(*(builder.shuffle_vector(value, value, mask) for mask in masks))
    return builder.extract_element(value, ir.Constant(_INT, 0))


@_intrinsic(types.int64, types.int64, types.int64)
def fetch_add(builder: Any, address: Any, amount: Any) -> Any:
    """Add to the int64 at an address and return what was there, as one step that no other thread sees half of."""
    return builder.atomic_rmw("add", _pointer(builder, address, cgutils.intp_t), amount, "monotonic")


@numba.njit
def _power(rest: Any, rounded: Any) -> Any:
    """Return 2^(n + rest) for |rest| <= 1/2 and the n in the low bits of `rounded`."""
    series = spread(_EXP[5])
    series = series * rest + spread(_EXP[4])
    series = series * rest + spread(_EXP[3])
    series = series * rest + spread(_EXP[2])
    series = series * rest + spread(_EXP[1])
    series = series * rest + spread(_EXP[0])
    return _times_power(series * rest + spread(1.0), rounded)


@numba.njit
def exp2(x: Any) -> Any:
    """Return 2^x for x <= 127, within 0.6 ulp; below -126 it goes to 0, and NaN stays NaN."""
    x = maximum(x, spread(-127.0))
    rounded = x + spread(_ROUND)
    return _power(x - (rounded - spread(_ROUND)), rounded)


@numba.njit
def exp_of_minus_abs(x: Any) -> Any:
    """Return exp(-|x|), within 1 ulp: log2(e) is taken as a sum of two, so that a large x costs no accuracy."""
    x = maximum(where_negative(x, x, spread(0.0) - x), spread(-88.0))
    rounded = x * spread(_LOG2_E_HIGH) + spread(_ROUND)
    rest = fused(x, spread(_LOG2_E_HIGH), spread(_ROUND) - rounded)
    return _power(x * spread(_LOG2_E_LOW) + rest, rounded)


@numba.njit
def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + exp(-x)), accurate on both sides."""
    small = exp_of_minus_abs(x)
    return where_negative(x, small, spread(1.0)) / (spread(1.0) + small)


@numba.njit
def softplus(x: Any) -> Any:
    """Return log(1 + exp(x)) = max(x, 0) + 2 atanh(e / (2 + e)) with e = exp(-|x|): accurate far below 0 too."""
    small = exp_of_minus_abs(x)
    s = small / (spread(2.0) + small)
    square = s * s
    series = spread(_ATANH[3])
    series = series * square + spread(_ATANH[2])
    series = series * square + spread(_ATANH[1])
    series = series * square + spread(_ATANH[0])
    return maximum(x, spread(0.0)) + (s + s) * (series * square + spread(1.0))

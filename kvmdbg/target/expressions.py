"""Integer expressions over a stopped vCPU, written as in C, as in gdb.

Every value is a 64-bit unsigned number, results wrap. Operators and their precedence are C's;
operands are numbers, registers (``$rax``, ``$pc``), memory (``*ADDR`` is 8 bytes, ``u8(ADDR)`` to
``u64(ADDR)`` are as many bits) and names that the caller provides.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from kvmdbg.addr import Gva
from kvmdbg.errors import ExpressionError

MAX_LENGTH = 400
"""Characters in an expression."""

_MAX_DEPTH = 32
_MASK = (1 << 64) - 1
_LOADS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>0[xX][0-9a-fA-F]+|[0-9]+)(?![0-9A-Za-z_])|(?P<register>\$\w+)"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<operator>&&|\|\||<<|>>|[=!<>]=|[-+*/%&|^~!<>()]))"
)


class Context(Protocol):
    """Where an expression is evaluated."""

    async def register(self, name: str) -> int:
        """Raises RegisterError."""
        ...

    async def load(self, address: Gva, size: int) -> int:
        """``size`` bytes of memory as a number. Raises MemoryFault."""
        ...

    async def name(self, name: str) -> int:
        """One of the names that :func:`parse` was told of."""
        ...


Evaluate = Callable[[Context], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression."""

    text: str
    evaluate: Evaluate
    """Its value in a context. Raises ExpressionError for a division by zero, and what the context
    raises."""


def parse(text: str, registers: Collection[str], names: Collection[str] = ()) -> Expression:
    """Raises ExpressionError; ``registers`` and ``names`` are those that exist."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(
            f"the expression has {len(text)} characters: {MAX_LENGTH} are what it may have"
        )
    return Expression(text, _Parser(text, registers, names).whole())


def _divided(left: int, right: int) -> int:
    if right == 0:
        raise ExpressionError("the expression divides by zero")
    return left // right


def _remainder(left: int, right: int) -> int:
    if right == 0:
        raise ExpressionError("the expression divides by zero")
    return left % right


def _shifted_left(left: int, right: int) -> int:
    return left << right if right < 64 else 0


_LEVELS: tuple[Mapping[str, Callable[[int, int], int]], ...] = (
    {"||": operator.or_},
    {"&&": operator.and_},
    {"|": operator.or_},
    {"^": operator.xor},
    {"&": operator.and_},
    {"==": operator.eq, "!=": operator.ne},
    {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge},
    {"<<": _shifted_left, ">>": operator.rshift},
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": _divided, "%": _remainder},
)
"""Binary operators, those that bind least first."""

_UNARY: Mapping[str, Callable[[int], int]] = {
    "-": operator.neg,
    "+": operator.pos,
    "~": operator.invert,
    "!": operator.not_,
}


class _Parser:
    """Recursive descent; the result is a closure per node."""

    def __init__(self, text: str, registers: Collection[str], names: Collection[str]) -> None:
        self._text = text
        self._registers = registers
        self._names = names
        self._depth = 0
        self._end = 0
        self._advance()

    def _advance(self) -> None:
        rest = self._text[self._end :]
        found = _TOKEN.match(rest)
        if found is None:
            if rest.strip():
                raise self._error(rest.split()[0])
            self._kind, self._token = "end", ""
            return
        self._end += found.end()
        self._kind = found.lastgroup or ""
        self._token = found[self._kind]

    def _error(self, token: str) -> ExpressionError:
        what = f"{token!r} makes no sense" if token else "something is missing at the end"
        return ExpressionError(f"cannot read the expression {self._text!r}: {what}")

    def whole(self) -> Evaluate:
        node = self._binary(0)
        if self._kind != "end":
            raise self._error(self._token)
        return node

    def _binary(self, level: int) -> Evaluate:
        if level == len(_LEVELS):
            return self._unary()
        node = self._binary(level + 1)
        while self._kind == "operator" and self._token in _LEVELS[level]:
            token = self._token
            self._advance()
            node = _joined(token, _LEVELS[level][token], node, self._binary(level + 1))
        return node

    def _unary(self) -> Evaluate:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ExpressionError(f"the expression is nested deeper than {_MAX_DEPTH} levels")
        try:
            if self._kind == "operator" and self._token in (*_UNARY, "*"):
                token = self._token
                self._advance()
                operand = self._unary()
                return _load(operand, 8) if token == "*" else _applied(_UNARY[token], operand)
            return self._primary()
        finally:
            self._depth -= 1

    def _primary(self) -> Evaluate:
        kind, token = self._kind, self._token
        self._advance()
        match kind:
            case "number":
                return _constant(int(token, 16 if token[:2].lower() == "0x" else 10) & _MASK)
            case "register" if token[1:] in self._registers:
                return _register(token[1:])
            case "register":
                raise ExpressionError(f"there is no register {token}")
            case "name" if token in _LOADS:
                return _load(self._parenthesised(), _LOADS[token])
            case "name" if token in self._names:
                return _name(token)
            case "operator" if token == "(":
                return self._closed()
            case _:
                raise self._error(token)

    def _parenthesised(self) -> Evaluate:
        if self._token != "(":
            raise self._error(self._token)
        self._advance()
        return self._closed()

    def _closed(self) -> Evaluate:
        node = self._binary(0)
        if self._token != ")":
            raise self._error(self._token)
        self._advance()
        return node


def _constant(value: int) -> Evaluate:
    async def evaluate(context: Context) -> int:
        return value

    return evaluate


def _register(name: str) -> Evaluate:
    async def evaluate(context: Context) -> int:
        return await context.register(name)

    return evaluate


def _name(name: str) -> Evaluate:
    async def evaluate(context: Context) -> int:
        return await context.name(name)

    return evaluate


def _load(address: Evaluate, size: int) -> Evaluate:
    async def evaluate(context: Context) -> int:
        return await context.load(Gva(await address(context)), size)

    return evaluate


def _applied(function: Callable[[int], int], operand: Evaluate) -> Evaluate:
    async def evaluate(context: Context) -> int:
        return int(function(await operand(context))) & _MASK

    return evaluate


def _joined(
    token: str, function: Callable[[int, int], int], left: Evaluate, right: Evaluate
) -> Evaluate:
    async def evaluate(context: Context) -> int:
        return int(function(await left(context), await right(context))) & _MASK

    async def decide(context: Context) -> int:
        """What need not be known is not asked for: memory that a null pointer leads to."""
        decided = token == "||"
        if bool(await left(context)) is decided:
            return int(decided)
        return int(await right(context) != 0)

    return decide if token in ("||", "&&") else evaluate

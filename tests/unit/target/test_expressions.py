"""Expressions: gdb, which knows C, says what they are worth."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmdbg.addr import Gva
from kvmdbg.errors import ExpressionError
from kvmdbg.target.expressions import MAX_LENGTH, Context, parse

MEMORY = {Gva(0x10): bytes(range(8))}
REGISTERS = {"rax": 7, "pc": 0x10}


class Place:
    async def register(self, name: str) -> int:
        return REGISTERS[name]

    async def load(self, address: Gva, size: int) -> int:
        return int.from_bytes(MEMORY[address][:size], "little")

    async def name(self, name: str) -> int:
        assert name == "value"
        return 99


PLACE: Context = Place()


async def value(text: str) -> int:
    return await parse(text, REGISTERS, ("value",)).evaluate(PLACE)


BINARY = ("||", "&&", "|", "^", "&", "==", "!=", "<", "<=", ">", ">=", "<<", ">>", *"+-*/%")


def random_expression(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.2:
        return f"{rng.choice('-~!') if rng.random() < 0.2 else ''}{rng.randrange(1, 20)}"
    if rng.random() < 0.3:
        return f"({random_expression(rng, depth - 1)})"
    left, right = (random_expression(rng, depth - 1) for _ in range(2))
    operation = rng.choice(BINARY)
    if operation in ("<<", ">>"):
        right = str(rng.randrange(8))
    return f"{left} {operation} {right}"


def test_operators_bind_and_compute_as_c_s_do() -> None:
    rng = random.Random(1)
    expressions = [random_expression(rng, 3) for _ in range(400)]
    # Of 64 bits in gdb too: what a comparison or ! results in is an int there, which is widened.
    as_c = [re.sub(r"(\d+)", r"\1ull", text) for text in expressions]
    commands = [word for text in as_c for word in ("-ex", f"output/d ({text})", "-ex", r"echo \n")]
    run = subprocess.run(
        ["gdb", "-nx", "-batch", *commands], check=False, capture_output=True, text=True
    )
    answers = run.stdout.splitlines()
    assert len(answers) == len(expressions), run.stderr
    compared = 0
    for text, answer in zip(expressions, answers, strict=True):
        if not answer:
            continue  # it divides by zero
        compared += 1
        assert asyncio.run(value(text)) == int(answer) % (1 << 64), text
    assert compared > 300


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0xFF", 0xFF),
        ("$rax + 1", 8),
        ("*$pc", 0x0706050403020100),
        ("*0x10 & 0xffff", 0x0100),
        ("u8($pc)", 0),
        ("u16(0x10) == 256", 1),
        ("u32 ( 16 )", 0x03020100),
        ("u64($pc) == *$pc", 1),
        ("value-1", 98),
        ("-1", (1 << 64) - 1),
        ("1 << 64", 0),
        ("1 >> 64", 0),
        ("0 && *0", 0),  # *0 cannot be read
        ("3 || *0", 1),
        ("! ! 7", 1),
    ],
)
async def test_operands(text: str, expected: int) -> None:
    assert await value(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "something is missing at the end"),
        ("1 +", "something is missing at the end"),
        ("(1", "something is missing at the end"),
        ("1 2", "'2' makes no sense"),
        ("1)", r"'\)' makes no sense"),
        ("12ab", "'12ab' makes no sense"),
        ("u8 1", "'1' makes no sense"),
        ("a == 1", "'a' makes no sense"),
        ("$r1 == 1", "there is no register \\$r1"),
        ("$rax = 1", "'=' makes no sense"),
        ("(" * 50 + "1" + ")" * 50, "nested deeper than 32"),
        ("~" * 50 + "1", "nested deeper than 32"),
        ("1" * (MAX_LENGTH + 1), "characters"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, words: str) -> None:
    with pytest.raises(ExpressionError, match=words):
        parse(text, REGISTERS, ("value",))


@pytest.mark.parametrize("text", ["1 / 0", "$rax % ($rax - 7)"])
async def test_a_division_by_zero_has_no_value(text: str) -> None:
    with pytest.raises(ExpressionError, match="divides by zero"):
        await value(text)


async def test_the_longest_that_may_be_can_be_evaluated() -> None:
    assert await value("+".join("1" * (MAX_LENGTH // 2))) == MAX_LENGTH // 2


@given(st.text(alphabet="019$raxpcuvl ()*+-&|<>=!~%/", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        assert parse(text, REGISTERS, ("value",)).text == text

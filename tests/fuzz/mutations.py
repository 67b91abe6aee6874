"""Random edits of files, and the kinds of outcomes by which those that are new are kept."""

from __future__ import annotations

import random
import re

NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 4095, 32767, 65535, 65536, 2**24, 2**29 - 1, 2**31 - 1, 2**32 - 1)
_VALUE = re.compile(r"""0x[0-9a-f]+|[0-9]+|b?'.*?'|b?".*?\"""")


def mutate(random: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to eight edits: bits, bytes, numbers, cuts, repeats, pieces of other files."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        at = random.randrange(len(out) + 1)
        kind = random.randrange(9)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << random.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = random.randrange(256)
        elif kind == 2:
            number = random.choice(NUMBERS)
            size = random.choice((1, 2, 4, 8))
            order = random.choice(("little", "big"))
            out[at : at + size] = (number % 256**size).to_bytes(size, order)  # type: ignore[arg-type]
        elif kind == 3:
            del out[at : at + random.choice((1, 2, 4, 16, 200))]
        elif kind == 4:
            out[at:at] = random.randbytes(random.choice((1, 2, 4, 16)))
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            begin = random.randrange(len(out) + 1)
            out[at:at] = out[begin : begin + random.choice((1, 4, 32))] * random.choice((1, 2, 50))
        elif kind == 7:
            other = random.choice(others)
            begin = random.randrange(len(other) + 1)
            out[at:at] = other[begin : begin + random.choice((4, 32, 300))]
        else:
            out[at:at] = str(random.choice(NUMBERS)).encode() * random.choice((1, 1, 30))
    return bytes(out[:100_000])


def outcome(error: Exception | None) -> str:
    """Return the kind of an outcome: the message without its numbers, and its cause."""
    if error is None:
        return "read"
    return f"{type(error.__cause__).__name__} {_VALUE.sub('#', str(error))[-80:]}"

"""What may become of an odd input, and the values that nobody expects."""

from __future__ import annotations

import random

SECONDS_PER_INPUT = 180  # a quiet machine takes hundredths
REFUSED, RIGHT, IN_PART, FAULT = "refused", "right", "in part", "fault"

NASTY_NUMBERS = ("0", "-1", "-3", "1", "2", "65", "100", "32768", "65536", "2147483648", "9223372036854775808", "1e30",
                 "-1e30", "1e-30", "1e308", "1e400", "nan", "inf", "-inf", "0.5", "1e9", "1.5")  # fmt: skip
NASTY_TEXTS = ("", " ", "none", "None", "x", "True", "T", "1", "0", "LOCAL", "LIST", "../../etc/passwd", "raw", "gzip",
               "ascii", "hex", "bzip2", "big", "little", "cm", "RAS", "LPS", "list", "RGB-color", "float", "double",
               "block", "MET_CHAR", "MET_DOUBLE", "\u00fc\u4e2d\U0001f600", "%s%n", "\x00", "\\", '"', "(", "(1,2",
               "()", "[" * 3000, "x" * 300, "9" * 400, "a" * 40_000)  # fmt: skip


class WrongError(Exception):
    """A fault, in words."""


def damaged_bytes(rng: random.Random, contents: bytes, header_end: int, share: float = 0.7) -> bytes:
    """Cuts, flips, holes, repeats, insertions and exchanges, a share of them in the header."""
    data = bytearray(contents)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        end = header_end if rng.random() < share else len(data)
        place, length = rng.randrange(max(1, min(end, len(data)))), rng.choice((1, 1, 2, 4, 16, 64, 300))
        action = rng.randrange(8)
        if action == 0:
            data = data[:place]
        elif action == 1:
            data[place : place + length] = bytes(min(length, len(data) - place))
        elif action == 2:
            data[place:place] = data[place : place + length]
        elif action == 3:
            del data[place : place + length]
        elif action == 4:
            data[place:place] = rng.randbytes(length)
        elif action == 5:
            data[place : place + length] = rng.randbytes(min(length, len(data) - place))
        elif place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        if not data:
            break
    return bytes(data)

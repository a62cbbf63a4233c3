"""The demo's picture: the moon over the sea, computed point by point and packed as a PNG with the standard library."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Final

from rich.text import Text

PICTURE_FILE: Final = "agentcredits-demo.png"
"""In the current folder."""
PICTURE_SIZE: Final = (480, 270)
"""Columns and rows of pixels."""

Colour = tuple[int, int, int]

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
HORIZON: Final = 0.56
MOON: Final = (0.68, 0.27)
MOON_RADIUS: Final = 0.085

NIGHT: Final = (12.0, 18.0, 48.0)
DUSK: Final = (232.0, 142.0, 104.0)
SHALLOW: Final = (84.0, 92.0, 128.0)
DEEP: Final = (6.0, 18.0, 40.0)
MOONLIGHT: Final = (255.0, 244.0, 214.0)


def tide_png(width: int, height: int) -> bytes:
    """The picture as the bytes of a PNG file: 8 bits a channel, RGB, not interlaced.

    Source of the format: W3C, Portable Network Graphics, sections 5 (chunks), 9 (filters) and 10 (compression).
    """
    rows = bytearray()
    for y in range(height):
        rows.append(0)  # no filter: the bytes that follow are the row's colours
        for x in range(width):
            rows += bytes(colour_at((x + 0.5) / width, (y + 0.5) / height, width / height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(rows), 9)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def preview(columns: int, lines: int) -> Iterator[Text]:
    """The picture as lines of half blocks, two points above each other in one cell; for a terminal with colours."""
    aspect = columns / (2 * lines)
    for line in range(lines):
        text = Text()
        for column in range(columns):
            x = (column + 0.5) / columns
            upper, lower = (colour_at(x, (2 * line + half) / (2 * lines), aspect) for half in (0.5, 1.5))
            text.append("▀", style=f"{_hex(upper)} on {_hex(lower)}")
        yield text


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def colour_at(x: float, y: float, aspect: float) -> Colour:
    """The colour of a point.

    Args:
        x: From 0 (left) to 1.
        y: From 0 (top) to 1.
        aspect: Width of the picture through its height; keeps the moon round.
    """
    from_moon = math.hypot((x - MOON[0]) * aspect, y - MOON[1])
    if y < HORIZON:
        colour = _mix(NIGHT, DUSK, (y / HORIZON) ** 2.6)
        light = 1.0 if from_moon < MOON_RADIUS else 0.45 * math.exp((MOON_RADIUS - from_moon) * 9)
    else:
        depth = (y - HORIZON) / (1 - HORIZON)
        # Waves lie closer together towards the horizon, as a flat sea is seen.
        wave = math.sin(46 * math.log1p(5 * depth) + 5 * math.sin(7 * x + 9 * depth))
        colour = _mix(SHALLOW, DEEP, min(1.0, depth**0.55 + 0.06 * wave))
        reach = 0.03 + 0.16 * depth
        light = (0.55 + 0.35 * wave) * math.exp(-(((x - MOON[0]) / reach) ** 2))
    red, green, blue = _mix(colour, MOONLIGHT, light)
    return round(red), round(green), round(blue)


def _mix(
    first: tuple[float, float, float], second: tuple[float, float, float], part: float
) -> tuple[float, float, float]:
    """So much of the second colour in the first: part 0 is the first, 1 the second."""
    part = min(1.0, max(0.0, part))
    return (
        first[0] + (second[0] - first[0]) * part,
        first[1] + (second[1] - first[1]) * part,
        first[2] + (second[2] - first[2]) * part,
    )

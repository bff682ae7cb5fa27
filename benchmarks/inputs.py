"""What several benchmarks need beforehand: folders and input files.

Imports nothing of adr, so that whoever runs the contenders stays small: the memory of a child
is never reported as less than that of the process that started it.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

__all__ = ["emptied", "input_files", "random_file", "text_file"]

_WORDS = ("wind", "sand", "flux", "depth", "shear", "grain", "bed", "wave", "level", "velocity")


def emptied(folder: Path) -> Path:
    """Return a folder that is empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def input_files(folder: Path, number: int) -> list[str]:
    """Make small files, and return their names."""
    emptied(folder)
    names = [str(folder / f"case{at:06d}.txt") for at in range(number)]
    for at, name in enumerate(names):
        Path(name).write_text(f"case = {at}\n", "ascii")
    return names


def text_file(path: Path, size_bytes: int) -> None:
    """Write a table of numbers and words, as models read it."""
    chance = random.Random(1)
    lines = "".join(
        f"{chance.choice(_WORDS)} {chance.random():.6f} {chance.gauss(0, 9):10.4f} "
        f"{chance.randrange(10_000):6d} {chance.choice(_WORDS)}\n"
        for _ in range(40_000)
    ).encode()
    with path.open("wb") as file:
        left = size_bytes
        while left > 0:
            # Begun elsewhere each time, so that it does not repeat at one distance.
            start = chance.randrange(len(lines) // 2)
            left -= file.write(lines[start : start + min(left, len(lines) // 2)])


def random_file(path: Path, size_bytes: int) -> None:
    """Write bytes that cannot be compressed."""
    chance = random.Random(2)
    with path.open("wb") as file:
        for _ in range(size_bytes >> 20):
            file.write(chance.randbytes(1 << 20))

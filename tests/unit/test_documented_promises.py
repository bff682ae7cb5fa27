"""Every promise names the tests that hold adr to it, and every suite of faults is named."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def test_promises_name_tests_that_are_there_and_all_of_the_fault_suite() -> None:
    text = (_ROOT / "docs/promises.rst").read_text("utf-8")
    named = set(re.findall(r"``(tests/[^`]+)``", text))
    assert {name for name in named if not (_ROOT / name).is_file()} == set()
    faults = {path.relative_to(_ROOT).as_posix() for path in _ROOT.glob("tests/faults/test_*.py")}
    assert faults <= named

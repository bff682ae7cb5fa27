"""A user at a machine of their own: the installed adr in real processes, with a home of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.conftest import Done, Shell
from tests.machines.gate import JOB


class Client(Shell):
    """Type ``adr …`` with the variables of this user, whatever those of the test are."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        folder.mkdir()
        home = folder / "home"
        home.mkdir()
        work = folder / "work"
        work.mkdir()
        super().__init__(work)
        self._env = {
            **env,
            "HOME": str(home),
            "ADR_CONFIG": str(home / "adr.json"),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "XDG_DATA_HOME": str(home / ".local/share"),
            "XDG_STATE_HOME": str(home / ".local/state"),
            "XDG_CACHE_HOME": str(home / ".cache"),
        }

    def __call__(
        self,
        *words: str | Path,
        status: int = 0,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> Done:
        return super().__call__(
            *words, status=status, stdin=stdin, env={**self._env, **(env or {})}
        )

    def queue(self, runner: str, url: str, *cases: str) -> str:
        """Queue one job for each case, which all wait at the gate; returns the batch."""
        self.write({"model/job.py": JOB, **{f"model/{case}.txt": case for case in cases}})
        command = f"python3 job.py {{}} {url}"
        files = [f"model/{case}.txt" for case in cases]
        words = ["queue", f"--runner={runner}", "--store=[.]csv$", f"--command={command}"]
        return self(*words, *files).out.strip()


def require_installed() -> None:
    """Fail where adr runs from its sources: it could not be brought to any machine."""
    where = "import adr, pathlib; print(pathlib.Path(adr.__file__).parents[1])"
    words = [sys.executable, "-c", where]
    place = subprocess.run(words, cwd="/", capture_output=True, text=True, check=True).stdout
    if "site-packages" not in place:
        pytest.fail(f"adr is linked to {place.strip()}: install it without -e", pytrace=False)

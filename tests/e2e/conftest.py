"""The command line as users have it: each call a process of its own, in a folder of its own."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adr.console import main

#: Starts adr where whoever imports boto3 fails; for `Shell.start`.
WITHOUT_BOTO = (
    "-c",
    "import sys; sys.modules.update(boto3=None, botocore=None)\n"
    "from adr.console import main\n"
    "sys.exit(main())",
)


@dataclass(frozen=True)
class Done:
    """What a command has answered."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Shell:
    """Type ``adr …`` in a folder, and look at files in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: Words between ``python`` and those of adr.
        self.start: Sequence[str] = ("-m", "adr")
        #: Whether commands run in the process of the test, which spares the import of boto3.
        self.inside = False

    def __call__(
        self,
        *words: str | Path,
        status: int | None = 0,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a command to its end, which must have this status and show no traceback.

        With None any status is as good.
        """
        run = self._inside if self.inside else self._outside
        found = run([str(word) for word in words], stdin, {**os.environ, **(env or {})})
        about = f"{words}: status {found.status}\n{found.out}\n{found.err}"
        assert status in (None, found.status), about
        assert "Traceback" not in found.err, found.err
        return found

    def _outside(self, words: list[str], stdin: bytes, env: Mapping[str, str]) -> Done:
        done = subprocess.run(
            [sys.executable, *self.start, *words],
            cwd=self.folder,
            env=env,
            input=stdin,
            capture_output=True,
            timeout=60,
        )
        return Done(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))

    def _inside(self, words: list[str], stdin: bytes, env: Mapping[str, str]) -> Done:
        streams = [io.TextIOWrapper(io.BytesIO(text), errors="surrogateescape", write_through=True)
                   for text in (stdin, b"", b"")]  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            for name, value in env.items():
                patch.setenv(name, value)
            for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
                patch.setattr(sys, name, stream)
            status = main(words)
        out, err = (os.fsdecode(stream.buffer.getvalue()) for stream in streams[1:])
        return Done(status, out, err)

    def begin(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a command and return at once."""
        return subprocess.Popen(
            [sys.executable, *self.start, *map(str, words)],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def tree(self, top: str, hidden: bool = False) -> dict[str, str]:
        """Return the content of every file below a folder, by its path in there."""
        start = self.folder / top
        found = {
            path.relative_to(start).as_posix(): path.read_text(errors="surrogateescape")
            for path in sorted(start.rglob("*"))
            if path.is_file()
        }
        return {name: text for name, text in found.items() if hidden or name[0] != "."}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Return a shell in an empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    logger = logging.getLogger("adr")
    level, handlers = logger.level, list(logger.handlers)
    yield Shell(folder)
    logger.setLevel(level)
    logger.handlers[:] = handlers

"""Jobs that are started without a shell do not differ from those that bash runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adr
from adr.models import Job
from adr.runner import open_runner
from adr.templates import expand
from adr.worker.launcher import Ending, Launcher
from adr.worker.script import job_script, plain_words, program_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")


def job(command: str, **parts: str) -> Job:
    return Job(batch="b", index=1, count=1, label="a", command=command, **parts)


def words_by_bash(commands: list[str]) -> list[list[str]]:
    """Return what bash takes for the words of each command."""
    body = "".join(f"set -- {each}\nprintf '%s\\0' $# \"$@\"\n" for each in commands)
    told = subprocess.run(
        ["bash"], input=os.fsencode(body), capture_output=True, check=True
    ).stdout.split(b"\0")
    found = []
    while len(told) > 1:
        number = int(told.pop(0))
        found.append([os.fsdecode(told.pop(0)) for _ in range(number)])
    return found


_TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
_PIECES = st.one_of(
    st.text("abz09_@%+=:,./- \t'\"\\~#!$*?[]{}()<>|&;`^\n", max_size=6),
    st.sampled_from(["model", "{}", "'a b'", '"c d"', "' '", '"', "'", "a=b", "é", " "]),
    _TEXT.map(lambda text: f"'{text}'"),
    _TEXT.map(lambda text: f'"{text}"'),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(_PIECES, max_size=6), _TEXT), min_size=20, max_size=60))
def test_words_are_those_that_bash_makes(given: list[tuple[list[str], str]]) -> None:
    commands = [
        expand("".join(pieces), "in/" + name.replace("\0", "").replace("/", ""), 3)
        for pieces, name in given
    ]
    plain = {each: words for each in commands if (words := plain_words(job(each)))}

    assert words_by_bash(list(plain)) == [
        [os.fsdecode(word) for word in words] for words in plain.values()
    ]


FOR_BASH = (
    "|  |#|a;b|a&|a>b|a<b|a b*|a ?|a [b]|a ~|a $b|a `b`|(a)|{ a; }|! a|a=1 b|%1|a\\ b|a\nb|a {b,c}"
    "|'' a|cd b|. b|: b|exec b|time a|echo a|[ a ]|'if'|test a|kill 1|/bin/setsid a|nice setsid a"
    "|true --help"
)


@pytest.mark.parametrize("command", FOR_BASH.split("|"))
def test_what_may_mean_something_to_bash_is_left_to_bash(command: str) -> None:
    assert plain_words(job(command)) is None


def test_preprocessing_and_postprocessing_are_left_to_bash() -> None:
    assert plain_words(job("model a.txt")) == [b"model", b"a.txt"]
    assert plain_words(job("model a.txt", preprocessing="module load model")) is None
    assert plain_words(job("model a.txt", postprocessing="rm -f big")) is None


CONCERNING_BASH = (
    "ENV=x BASH_ENV=x BASH_FUNC_model%%=(){ BASHOPTS=x SHELLOPTS=x POSIXLY_CORRECT=1 IFS=x UID=7 "
    "SHLVL=999 SHLVL=x EXECIGNORE=* PATH= PATH=/bin: PATH=bin PATH=~/bin"
)


@pytest.mark.parametrize("variable", CONCERNING_BASH.split())
def test_an_environment_that_concerns_bash_is_left_to_bash(variable: str) -> None:
    name, _, value = variable.encode().partition(b"=")

    assert program_environment({b"PATH": b"/bin", b"A": b"1"}) is not None
    assert program_environment({b"PATH": b"/bin", name: value}) is None
    assert program_environment({b"A": b"1"}) is None


class Both:
    """Run commands with bash and without."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.launcher = Launcher()
        self.env = {b"PATH": os.environb[b"PATH"]}

    def bash(self, command: str) -> Ending:
        script = self.directory.with_suffix(".sh")
        script.write_text(job_script(job(command)))
        return self._run([b"bash", os.fsencode(script)], self.env)

    def program(self, command: str) -> Ending:
        words, env = plain_words(job(command)), program_environment(self.env)
        assert words is not None
        assert env is not None
        return self._run(words, env, instead_of_bash=True)

    def _run(self, words: list[bytes], env: dict[bytes, bytes], **options: bool) -> Ending:
        return self.launcher.run(
            words,
            cwd=self.directory,
            env=env,
            log_path=self.directory.with_suffix(".log"),
            timeout_s=60,
            term_s=30,
            **options,
        )


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    directory = tmp_path / "inputs"
    directory.mkdir()
    made = Both(directory)
    yield made
    made.launcher.close()


def program(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)


def test_a_program_gets_the_environment_that_bash_would_give_it(both: Both) -> None:
    both.env |= {
        **{b"OLDPWD": os.fsencode(both.directory), b"SHLVL": b"3", b"_": b"x", b"PWD": b"/"},
        **{b"A.B": b"1", b"C D": b" 2 ", b"E": b"", b"LC_ALL": b"C.UTF-8", b"HOSTNAME": b"h"},
    }
    program(both.directory, "own", "#!/bin/sh\ncat /proc/$$/environ /proc/$$/cmdline\n")

    for gone in (False, True):
        both.env[b"OLDPWD"] += b"/gone" * gone
        for command in ("env", "/usr/bin/env", "./own 'a b' \"c\"d"):
            by_bash, alone = both.bash(command), both.program(command)
            assert sorted(re.split(rb"[\n\0]", alone.tail)) == sorted(
                re.split(rb"[\n\0]", by_bash.tail)
            )
            assert alone.exit_code == by_bash.exit_code == 0


def said(ending: Ending) -> str:
    """Return what was said, without where bash says it."""
    text = ending.tail.decode()
    return re.sub(r"(?m)^\S+: line \d+: +\d+ (.*?) *(\(core dumped\) )?\./die.*$", r"\1", text)


SIGNALS = "HUP INT QUIT ILL ABRT FPE KILL SEGV PIPE ALRM TERM USR1"


@pytest.mark.parametrize("name", SIGNALS.split())
def test_a_program_that_dies_ends_its_job_as_it_would_end_bash(both: Both, name: str) -> None:
    program(both.directory, "die", "#!/bin/sh\nulimit -c 0\necho begun\nkill -$1 $$\n")

    by_bash, alone = both.bash(f"./die {name}"), both.program(f"./die {name}")

    assert alone.exit_code == by_bash.exit_code
    assert alone.signal is by_bash.signal is None
    assert said(alone) == said(by_bash)


def test_a_program_that_is_stopped_ends_its_job_as_it_would_end_bash(both: Both) -> None:
    os.mkfifo(both.directory / "ready")
    program(
        both.directory,
        "model",
        "#!/bin/bash\ntrap 'sleep 0.1; echo saved; exit 0' TERM\n"
        'if [ "$1" = plain ]; then trap - TERM; fi\necho > ready\nsleep 1000 & wait\n',
    )
    for how in ("cleaning", "plain"):
        with ThreadPoolExecutor(1) as thread:
            endings = []
            for run in (both.bash, both.program):
                running = thread.submit(run, f"./model {how}")
                (both.directory / "ready").read_text()
                both.launcher.stop()
                endings.append(running.result(30))
        by_bash, alone = endings

        assert alone.tail == by_bash.tail
        assert (alone.exit_code, alone.signal, alone.stopped_by) == (143, None, "order")
        assert by_bash.exit_code == 143


def test_what_is_no_program_is_left_to_bash(tmp_path: Path) -> None:
    # given programs that the system does not take for such, and one that it does
    folder = tmp_path / "inputs"
    folder.mkdir()
    program(folder, "script", "echo run by $BASH_VERSION\n")
    program(folder, "broken", "#!/no/such/interpreter\n")
    (folder / "data").write_text("echo no\n")
    runner = adr.create(local=True, directory=str(tmp_path / "runner"))
    commands = {
        "./script": "run by ",
        "./broken": "broken",
        "./data": "Permission denied",
        "./": "Is a directory",
        "no-such-model": "command not found",
        "true": "",
        "false": "",
    }

    # when each is run by a worker
    batches = {
        adr.queue(runner, [folder / "data"], command=f"{each} {{}}", root=folder): each
        for each in commands
    }
    adr.process(runner, str(tmp_path / "work"), stop_on_empty=True, slots=1)

    # then all ends as bash says
    for record in open_runner(runner).ledger.records(batches):
        command = batches.pop(record.batch)
        expected = subprocess.run(
            ["bash", "-c", f"eval -- '{command} data'"], cwd=folder, capture_output=True
        )
        assert record.exit_code == expected.returncode
        words = commands[command]
        assert words in record.tail
        assert bool(words) == bool(record.tail)
    assert not batches

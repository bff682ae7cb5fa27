"""What `adr.worker.script` promises, shown with the real bash."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from adr.models import Job
from adr.worker.launcher import Launcher
from adr.worker.script import job_script


def write_script(
    directory: Path, command: str, before: str | None = None, after: str | None = None
) -> Path:
    job = Job(
        batch="b",
        index=1,
        count=1,
        label="a",
        command=command,
        preprocessing=before,
        postprocessing=after,
    )
    script = directory / "run.sh"
    script.write_bytes(job_script(job).encode("utf-8", "surrogateescape"))
    return script


class Bash:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(
        self, command: str, before: str | None = None, after: str | None = None
    ) -> tuple[int, str]:
        """Run a job's parts; return the exit code and what they printed."""
        done = subprocess.run(
            ["bash", write_script(self.directory, command, before, after)],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
        self.errors = done.stderr.decode("utf-8", "surrogateescape")
        return done.returncode, done.stdout.decode("utf-8", "surrogateescape")


@pytest.fixture
def bash(tmp_path: Path) -> Bash:
    return Bash(tmp_path)


AFTER = 'echo "after $ADR_EXIT_CODE"'


def test_the_exit_code_is_that_of_the_command(bash: Bash) -> None:
    assert bash("echo hello; (exit 7)") == (7, "hello\n")
    assert bash("exit 7", "true") == (7, "")
    assert bash("exit 7", "true", AFTER) == (7, "after 7\n")
    assert bash("true", "true", AFTER) == (0, "after 0\n")


def test_the_command_runs_in_the_shell_of_the_preprocessing(bash: Bash) -> None:
    before = "name=world; greet() { echo hello $name; }; cd /"

    assert bash("greet; pwd", before) == (0, "hello world\n/\n")
    assert bash("greet; pwd", before, "greet") == (0, "hello world\n/\nhello world\n")


def test_a_virtual_environment_can_be_activated(bash: Bash, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run(["python3", "-m", "venv", "--without-pip", environment], check=True)

    code, output = bash(
        "command -v python", f"source {environment}/bin/activate", "command -v python; deactivate"
    )

    assert code == 0
    assert output.splitlines() == [f"{environment}/bin/python"] * 2


def test_the_command_is_not_run_after_a_failed_preprocessing(bash: Bash) -> None:
    assert bash("echo ran", "(exit 3)") == (3, "")
    assert "the preprocessing failed with exit code 3" in bash.errors
    assert bash("echo ran", "(exit 3)", AFTER) == (3, "after 3\n")
    assert bash("echo ran", "exit 4", AFTER) == (4, "after 4\n")
    assert bash("echo ran", "set -e; (exit 5); echo no", AFTER) == (5, "after 5\n")
    assert bash("echo ran", "set -e; (exit 5); echo no") == (5, "")
    assert bash("echo ran", "no-such-command", AFTER) == (127, "after 127\n")
    assert bash("echo ran", "trap 'echo trap' EXIT; exit 6", AFTER) == (6, "trap\nafter 6\n")


@pytest.mark.parametrize(
    "command",
    [
        "exit 9",
        "exec bash -c 'exit 9'",
        "trap 'exit 9' EXIT; exit 1",
        "set -e; (exit 9); echo no",
        "kill -KILL $BASHPID",
        "kill -TERM $BASHPID",
        "set -u; echo $unset",
        "no-such-command",
        "if; then",
        "echo 'open",
        "(",
        "cat <<END",
    ],
)
def test_the_postprocessing_runs_however_the_command_ends(bash: Bash, command: str) -> None:
    code, output = bash(command, "true", AFTER)

    assert output.splitlines()[-1:] == [f"after {code}"]
    assert output.count("after") == 1
    assert (code != 0) == (command != "cat <<END")


def test_a_preprocessing_that_replaces_the_shell_is_followed_by_postprocessing(bash: Bash) -> None:
    assert bash("echo ran", "exec bash -c 'exit 2'", AFTER) == (2, "after 2\n")


def test_options_of_the_preprocessing_hold_for_the_command_alone(bash: Bash) -> None:
    assert bash("(exit 3); echo no", "set -e", f"false; {AFTER}") == (3, "after 3\n")
    assert bash("exit 3", "set -e; name=world", "echo $name") == (3, "world\n")
    assert bash("(exit 3); echo no", "set -e") == (3, "")
    assert bash("(exit 3); echo yes", "set -u", AFTER) == (0, "yes\nafter 0\n")


def test_the_first_failure_is_the_exit_code(bash: Bash) -> None:
    assert bash("true", None, "exit 6") == (6, "")
    assert "the postprocessing failed with exit code 6" in bash.errors
    assert bash("exit 5", None, "exit 6") == (5, "")
    assert bash("exit 5", "exit 4", "exit 6") == (4, "")
    assert bash("true", "true", "if; then")[0] != 0


@pytest.mark.parametrize("broken", ["if; then", "echo 'open", 'echo "$(', "}", "a=(", "-x", ")"])
def test_a_broken_part_leaves_the_others_alone(bash: Bash, broken: str) -> None:
    code, output = bash("echo command", broken, AFTER)
    assert code != 0
    assert output == f"after {code}\n"

    code, output = bash(broken, "echo before", AFTER)
    assert code != 0
    assert output == f"before\nafter {code}\n"

    code, output = bash("echo command", "echo before", broken)
    assert code != 0
    assert output == "before\ncommand\n"


@pytest.mark.parametrize("after", [None, "true"])
def test_all_that_bash_understands_can_be_a_command(bash: Bash, after: str | None) -> None:
    command = r"""
        x=$(printf '%s' "it's") # a comment with ' and "
        for i in 1 2; do
          echo "$x $i" \
            continued
        done
        cat <<'END'
$x `y` \z
END
        cat <<END
$x $((1 + 1))
END
        echo 'last' # no newline after this"""

    code, output = bash(command, "# nothing but a comment", after)

    assert code == 0
    assert output == ("it's 1 continued\nit's 2 continued\n$x `y` \\z\nit's 2\nlast\n")


def test_a_here_document_may_end_with_the_command(bash: Bash) -> None:
    assert bash("cat <<END\nhello\nEND", None, AFTER) == (0, "hello\nafter 0\n")


def test_any_bytes_survive(bash: Bash) -> None:
    odd = os.fsdecode(b"\xff\xfe \xc3\xa9 %s \\ \t {}")

    code, output = bash(f"printf '%s\\n' '{odd}'", f"a='{odd}'", f"printf '%s\\n' \"$a\" '{odd}'")

    assert code == 0
    assert output == f"{odd}\n" * 3


def run_and_stop(
    directory: Path, command: str, before: str | None, after: str | None
) -> tuple[int | None, str]:
    """Run a job that writes to ./ready when it may be stopped, and stop it then."""
    os.mkfifo(directory / "ready")
    script = write_script(directory, command, before, after)
    launcher = Launcher()
    endings = []
    thread = threading.Thread(
        target=lambda: endings.append(
            launcher.run(
                ["bash", str(script)],
                cwd=directory,
                env={b"PATH": os.environb[b"PATH"]},
                log_path=directory / "log",
                timeout_s=60,
            )
        )
    )
    thread.start()
    (directory / "ready").read_text()
    launcher.stop()
    thread.join(30)
    launcher.close()
    return endings[0].exit_code, (directory / "log").read_text()


MODEL = (
    "bash -c 'trap \"sleep 0.2; echo saved; exit 4\" TERM; echo > ready; sleep 1000 & wait';echo no"
)


def test_a_stopped_program_has_time_to_clean_up(tmp_path: Path) -> None:
    code, log = run_and_stop(tmp_path, MODEL, None, None)

    assert (code, log) == (143, "saved\n")


def test_the_postprocessing_runs_after_a_stop(tmp_path: Path) -> None:
    code, log = run_and_stop(tmp_path, MODEL, "name=world", f"{AFTER}; echo $name")

    assert (code, log) == (143, "saved\nafter 143\nworld\n")


def test_the_postprocessing_runs_after_a_stop_in_the_preprocessing(tmp_path: Path) -> None:
    code, log = run_and_stop(tmp_path, "echo command", MODEL, AFTER)

    assert (code, log) == (143, "saved\nafter 143\n")


def test_a_postprocessing_can_be_stopped(tmp_path: Path) -> None:
    code, log = run_and_stop(tmp_path, "echo command", None, MODEL)

    assert code == 143
    assert log.startswith("command\nsaved\n")
    assert "no\n" not in log

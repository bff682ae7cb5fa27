"""The command line: what it understands, what it passes on, what it prints, how it exits.

The core is replaced at its seam, the functions of `adr.adr`, by one that notes its calls.
"""

import gc
import io
import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import adr
from adr import config, console, output
from adr.commands import logs
from adr.console import main
from adr.errors import AdrError, PartialFailure, RunnerGone, ServiceError, UsageError
from adr.fleets.base import Host, HostState, LaunchPlan, LaunchReport
from adr.fleets.specs import Ec2Spec, LocalSpec, SshSpec, Volume, WorkerOptions
from adr.history import Known
from adr.inventory import Hosts, HostView
from adr.models import Job, JobRecord, JobState
from adr.queueing import NewBatch, QueueReport
from adr.views import BatchStatus, Counts, JobView, Status
from adr.workerinfo import SlotInfo, WorkerInfo

RUNNER = "0b3f7d1e-4c55-4a39-9f0e-2d5a8c1b7e66"
OTHER = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
COMMANDS = [name.removeprefix("adr_") for name in console.__all__ if name.startswith("adr_")]
COMMANDS.remove("console")
JOBS = [Job("b", n, 5, f"case{n}", f"model 'case{n}.txt'") for n in range(1, 6)]
FAILED = JobRecord(
    "b",
    2,
    "case2",
    0,
    "a1",
    JobState.FAILED,
    exit_code=3,
    reason="exit code 3",
    tail="no\x1b[2Jsand\n",
)


class Core:
    """Answer like `adr.adr` and note the calls."""

    def __init__(self):
        self.calls = []
        self.plan_of = SimpleNamespace(
            root=Path("/data"), files=["a"] * 14, size_bytes=12_345, left_out=["x", "y", "z"],
            left_out_bytes=1_234_567, inputs_left_out=["z.log"],
            refused=["link leads out of the root"], duplicates=1, jobs=JOBS, too_large=None,
        )  # fmt: skip
        self.ran = SimpleNamespace(
            succeeded=5,
            skipped=0,
            failed=(),
            cancelled=0,
            undecided=0,
            interrupted=False,
            kept=0,
            unpublished=(),
        )
        self.answers = {
            "create": RUNNER,
            "queue_plan": QueueReport("b", 5, (), NewBatch("b", self.plan_of, 99), Known()),
            "process": SimpleNamespace(succeeded=3, failed=1, cancelled=0, interrupted=False),
            "download": SimpleNamespace(fetched=2, unchanged=3, kept=4, size_bytes=5_000),
            "logs": (each for each in [b"one\n", b"\xff\x00two"]),
            "list_runners": [],
            "list_hosts": Hosts(),
            "destroy": None,
            "plan_launch": LaunchPlan(2, LINES, {"fleet": "ec2"}, None, 0.2),
            "launch_plan": LaunchReport(2, [FIRST, SECOND], ["a note"]),
            "prepare": LaunchReport(2, [FIRST]),
            "start": [FIRST],
            "stop": [SECOND],
            "host_output": b"no\xff such package\n",
        }

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, {k: v for k, v in kwargs.items() if k != "progress"}))
            answer = {"plan": self.plan_of, "run_plan": self.ran, **self.answers}[name]
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call

    def only(self, name):
        """Return the arguments of the one call of a function."""
        [(args, kwargs)] = [call[1:] for call in self.calls if call[0] == name]
        return args, kwargs


@pytest.fixture
def core(monkeypatch, tmp_path):
    """Stand in for the core, with a configuration and a current folder of its own."""
    fake = Core()
    monkeypatch.setattr(adr, "adr", fake, raising=False)
    monkeypatch.setitem(sys.modules, "adr.adr", fake)
    monkeypatch.setenv("ADR_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.chdir(tmp_path)
    yield fake
    logger = logging.getLogger("adr")
    logger.setLevel(logging.NOTSET)
    for handler in [each for each in logger.handlers if isinstance(each, logs.Handler)]:
        logger.removeHandler(handler)


FIRST = Host("i-1", "ec2", HostState.RUNNING, "3.0.0.1", "c7i.large", "spot", started_at=0.0)
SECOND = Host("i-2", "ec2", HostState.STOPPED, note="low disk\x1b")
LINES = (("type", "c7i.large"), ("price", "0.20"))
NO_LOGIN = {"user": None, "password": None, "key_filename": None}
#: Options of ``adr process`` that were not given.
UNSET = {
    "slots": None, "host": None, "idle": None, "max_hours": None, "alive": None, "spot": False,
    "job_user": None, "aws_for_jobs": False,
}  # fmt: skip


def local_runner(path):
    path.mkdir()
    (path / "runner.json").write_text('{"schema": 1}')
    return str(path)


def on_terminal(monkeypatch, answer):
    """Make standard input and error look like a terminal at which somebody types."""
    stdin = io.StringIO(answer + "\n")
    stdin.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_its_docstring(command, capsys):
    function = getattr(console, f"adr_{command}")
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.strip() == function.__doc__.strip()
    assert f"adr {command}" in function.__doc__
    assert "--verbose=LEVEL" in function.__doc__
    assert "--quiet" in function.__doc__
    assert "options>" not in function.__doc__, "shared options are filled in"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_command(command, capsys):
    assert main(["--help"]) == 0
    assert f"adr {command} " in capsys.readouterr().out


def test_help_fits_a_terminal_of_80_columns():
    for name in [*COMMANDS, "console"]:
        for line in getattr(console, f"adr_{name}").__doc__.splitlines():
            assert len(line) <= 80, line


@pytest.mark.parametrize("words", [["help", "run"], ["-h", "run"], ["run", "--nonsense", "-h"]])
def test_help_is_found_however_it_is_asked_for(words, capsys):
    assert main(words) == 0
    assert "adr run [options]" in capsys.readouterr().out


def test_python_looks_for_circles_seldom_while_a_command_makes_objects(capsys):
    looks = []
    before = gc.get_threshold()
    try:
        main(["--version"])
        gc.collect()
        gc.callbacks.append(lambda phase, info: looks.append(phase))
        kept = [[number] for number in range(10_000)]
    finally:
        gc.callbacks.pop()
        gc.set_threshold(*before)
    assert (len(kept), looks) == (10_000, [])


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "adr", "--version"], capture_output=True, text=True, check=True
    )
    from adr.version import __version__

    assert done.stdout == f"adr {__version__}\n"


# Wrong usage


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "no command is given; see adr --help"),
        (["quue"], "there is no command 'quue': did you mean queue? see adr --help"),
        (["xyzzy"], "there is no command 'xyzzy'; see adr --help"),
        (["--colour", "run"], "there is no option --colour; see adr --help"),
        (["run", "a"], "--to=DIR is missing; see adr run --help"),
        (["run", "--to"], "--to needs a value, --to=DIR; see adr run --help"),
        (["run", "--to", "--rerun", "a"], "--to needs a value, --to=DIR; see adr run --help"),
        (["run", "--to=x", "--rerun=1", "a"], "--rerun takes no value; see adr run --help"),
        (
            ["run", "--to=x", "--to=y", "a"],
            "--to is given 2 times, where it counts once; see adr run --help",
        ),
        (
            ["queue", "--stor=x", "a"],
            "there is no option --stor: did you mean --store? see adr queue --help",
        ),
        (
            ["queue", "-x.txt"],
            "there is no option -x.txt, and a file whose name begins with a dash goes after --; "
            "see adr queue --help",
        ),
        (["download"], "<path> is missing; see adr download --help"),
        (["download", "d", RUNNER, "e"], "'e' is one argument too many; see adr download --help"),
        (["status", "b"], "'b' is one argument too many; see adr status --help"),
        (["process", "--slots", "0"], "--slots takes a whole number from 1 up, not '0'"),
        (["process", "--slots", "²"], "--slots takes a whole number from 1 up, not '²'"),
        (["queue", "--timeout=abc", "a"], "--timeout takes a number of seconds above 0, not 'abc'"),
        (["queue", "--timeout=nan", "a"], "--timeout takes a number of seconds above 0, not 'nan'"),
        (
            ["queue", "--retry-on=0", "a"],
            "--retry-on takes exit codes from 1 to 255, such as 1,75,100-110, not '0'",
        ),
        (
            ["queue", "--crash-limit=0", "a"],
            "--crash-limit takes a whole number from 1 up, not '0'",
        ),
        (["queue", "--attempts=-1", "a"], "--attempts takes a whole number from 1 up, not '-1'"),
        (["queue", "--env=1X=2", "a"], "--env takes NAME=VALUE or NAME, not '1X=2'"),
        (
            ["queue", "--env=ADR_UNSET", "a"],
            "--env=ADR_UNSET: ADR_UNSET has no value here; give it as ADR_UNSET=VALUE",
        ),
        (["queue", "-0", "a"], "-0 says how --files-from separates files: give that as well"),
        (
            ["queue", "--files-from=none"],
            "--files-from=none cannot be read: No such file or directory",
        ),
        (["queue"], "no input files are given: name them, or list them with --files-from=FILE"),
        (["create", "--dir=x"], "--dir is the folder of a local runner: give --local as well"),
        (
            ["list", "--verbose=loud"],
            "--verbose takes a logging level such as 10, 20, 30, DEBUG or INFO, not 'loud'",
        ),
        (
            ["status", "--runner", RUNNER, "--quiet", "--runner", OTHER],
            "--runner is given 2 times, where it counts once; see adr status --help",
        ),
        (
            ["process", "--runner", RUNNER, OTHER],
            f"two runners are named, {RUNNER} and {OTHER}: name one",
        ),
        (["run", "--to=", "a"], "--to is empty: give it a value"),
        (["download", "", RUNNER], "<path> is empty: give it a value"),
        (["set", "nothing"], "'nothing' is no runner: adr list shows those there are"),
        (["logs"], "<job> is missing; see adr logs --help"),
        (["logs", "--worker=i-1", "job"], "name a job or a --worker, not both"),
        (
            ["logs", "-f", "--worker=i-1"],
            "--follow is for the output of a job: leave it out with --worker",
        ),
        (["logs", "--worker="], "--worker is empty: give it a value, or leave it out"),
        (["process", "--idle=0"], "--idle takes a number of minutes above 0, not '0'"),
        (["process", "--max-hours=x"], "--max-hours takes a number of hours above 0, not 'x'"),
        (
            ["process", "--aws-for-jobs"],
            "--aws-for-jobs is for --job-user: other jobs see these variables anyway",
        ),
        (
            ["list", "--orphans", RUNNER],
            "--orphans looks for instances without a runner: name none",
        ),
        (
            ["destroy", "--hosts=i-1", "--purge"],
            "--hosts ends hosts and nothing else: leave --batch and --purge out",
        ),
        (["destroy", "--hosts="], "--hosts is empty: give it a value, or leave it out"),
        (["stop", "--hosts=a,,b"], "--hosts takes names with commas between them, not 'a,,b'"),
    ],
)
def test_wrong_usage_is_refused_in_a_sentence(core, words, sentence, capsys, tmp_path):
    config.update_config("runner", RUNNER)
    before = (tmp_path / "config.json").read_bytes()
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err == f"adr: {sentence}\n"
    assert said.out == ""
    assert core.calls == []
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_is_understood_by_its_beginning(core, command, capsys):
    assert main([command, "--verb=10"]) == 2
    assert "there is no option --verb: did you mean --verbose?" in capsys.readouterr().err


def test_without_any_runner_the_way_to_one_is_told(core, capsys):
    assert main(["status"]) == 2
    said = capsys.readouterr().err
    assert "there is no current runner" in said
    assert "adr create" in said
    assert "--runner" in said


# What reaches the core


def test_options_of_jobs_reach_the_plan(core, monkeypatch):
    monkeypatch.setenv("MY_KEY", "here")
    words = [
        "run", "--to", "out", "--command", "model {}", "--preprocessing=. env", "--postprocessing=",
        "--store", r"\.csv$", "--store=^log", "--root=/data", "--exclude=*.tmp", "--env=A=b=c",
        "--env", "MY_KEY", "--timeout=1.5", "--attempts=3", "--slots=2", "--rerun",
        "--retry-on=1,75,100-102", "--crash-limit=2", "--",
        "-a.txt", "--to", "b.txt",
    ]  # fmt: skip
    assert main(words) == 0
    assert core.only("plan") == (
        (["-a.txt", "--to", "b.txt"],),
        {
            "command": "model {}",
            "preprocessing": ". env",
            "postprocessing": "",
            "store_patterns": [r"\.csv$", "^log"],
            "root": "/data",
            "exclude": ["*.tmp"],
            "env": {"A": "b=c", "MY_KEY": "here"},
            "timeout": 1.5,
            "attempts": 3,
            "retry_on": (1, 75, 100, 101, 102),
            "crash_limit": 2,
            "avoid": ["out"],
        },
    )
    assert core.only("run_plan") == ((core.plan_of, "out"), {"slots": 2, "rerun": True})


def test_commands_default_to_the_configuration(core):
    config.update_config("command", "command", "configured {}")
    config.update_config("command", "preprocessing", "module load x")
    assert main(["run", "--to=out", "--preprocessing=", "a"]) == 0
    _, options = core.only("plan")
    assert options["command"] == "configured {}"
    assert options["preprocessing"] == "", "an empty option overrides the configuration"
    assert options["postprocessing"] is None


def test_files_may_follow_options_and_words_in_any_order(core):
    assert main(["run", "a", "--to", "out", "b", "--command=x", "--", "--", "-c"]) == 0
    assert core.only("plan")[0] == (["a", "b", "--", "-c"],)


@pytest.mark.parametrize(
    ("option", "listed"),
    [([], b"b c\n\n  \n\xff.txt\r\nd"), (["-0"], b"b c\0\0  \0\xff.txt\r\0d")],
)
def test_files_from_a_list_follow_those_named(core, tmp_path, option, listed):
    (tmp_path / "list").write_bytes(listed)
    assert main(["run", "--to=out", "--files-from=list", *option, "a"]) == 0
    assert core.only("plan")[0] == (["a", "b c", "\udcff.txt\r", "d"],)


def test_files_may_be_listed_on_standard_input(core, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    assert main(["run", "--to=out", "--files-from", "-"]) == 0
    assert core.only("plan")[0] == (["a", "b"],)


def test_the_last_word_of_queue_is_the_runner_where_it_is_the_id_of_one(core, capsys):
    assert main(["queue", "a.txt", "b.txt", RUNNER]) == 0
    assert core.only("plan")[0] == (["a.txt", "b.txt"],)
    assert core.only("queue_plan")[0] == (RUNNER, core.plan_of, None)
    assert capsys.readouterr().out == "b\n"


def test_the_last_word_of_queue_is_the_runner_where_it_is_the_folder_of_one(core, tmp_path):
    path = local_runner(tmp_path / "here")
    (tmp_path / "list").write_text("b.txt\n")
    assert main(["queue", "--files-from=list", "a.txt", "here"]) == 0
    assert core.only("plan")[0] == (["a.txt", "b.txt"],)
    assert core.only("queue_plan")[0] == (path, core.plan_of, None)


def test_a_file_named_like_a_runner_is_a_file(core, tmp_path):
    (tmp_path / RUNNER).touch()
    config.update_config("runner", OTHER)
    assert main(["queue", "a.txt", RUNNER]) == 0
    assert core.only("plan")[0] == (["a.txt", RUNNER],)
    assert core.only("queue_plan")[0][0] == OTHER


def test_with_a_runner_as_option_all_words_of_queue_are_files(core):
    assert main(["queue", "--runner", OTHER, "a.txt", RUNNER]) == 0
    assert core.only("plan")[0] == (["a.txt", RUNNER],)
    assert core.only("queue_plan")[0][0] == OTHER


@pytest.mark.parametrize("words", [["--runner", RUNNER], [RUNNER], []])
def test_a_runner_is_named_by_option_or_word_or_is_the_current_one(core, words):
    config.update_config("runner", OTHER)
    assert main(["process", "--slots=3", "--stop-on-empty", "--region=eu-north-1", *words]) == 0
    expected = RUNNER if words else OTHER
    assert core.only("process") == ((expected, ".", "eu-north-1", True), {**UNSET, "slots": 3})


def test_a_local_runner_is_passed_on_by_its_absolute_path(core, tmp_path):
    path = local_runner(tmp_path / "here")
    assert main(["process", "--workingdir=/scratch", "here"]) == 0
    assert core.only("process") == ((path, "/scratch", None, False), UNSET)


def test_options_may_stand_before_the_command(core):
    assert main(["--verbose", "debug", "--quiet", "process", RUNNER]) == 0
    assert logging.getLogger("adr").level == logging.ERROR


def test_what_to_download_reaches_the_core(core, capsys):
    words = ["--batch=b", "--job=case*", "--match", "x$", "--flat", "--overwrite", "out", RUNNER]
    assert main(["download", *words]) == 0
    assert core.only("download") == (
        (RUNNER, "out", None, True),
        {"batch": "b", "job": "case*", "match": "x$", "flat": True},
    )
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "fetched 2 files (5.0 kB), 3 there already, "
        "4 there that differ and were kept (--overwrite replaces them)\n"
    )


# Fleets


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-n"], "--number needs a value, --number=N; see adr launch --help"),
        (["-n", "0"], "-n takes a whole number from 1 up, or auto, not '0'"),
        (["-nx"], "-n takes a whole number from 1 up, or auto, not 'x'"),
        (["-n=1001"], "-n takes at most 1,000, not 1001"),
        (
            ["-n", "2", "-n3"],
            "--number is given 2 times, where it counts once; see adr launch --help",
        ),
        (["--max=5"], "--max bounds -n auto: give that as well, or leave it out"),
        (["-nauto", "--max=0"], "--max takes a number from 1 to 1,000, not '0'"),
        (["-nauto", "--max=1.5"], "--max takes a whole number, not '1.5'"),
        (
            ["--ait=c7i.large,m5"],
            "--ait takes instance types such as c7i.large, with commas between them, not 'm5'",
        ),
        (["--ami=x"], "--ami takes an id such as ami-0a1b2c3d, not 'x'"),
        (
            ["--ami=ami-1", "--image=ubuntu"],
            "--ami and --image both name the machine image: give one of them",
        ),
        (["--image=windows"], "--image takes ubuntu or amazon, not 'windows'"),
        (
            ["--asg=default"],
            "--asg takes ids of security groups such as sg-0a1b2c3d, with commas between them, "
            "not 'default'",
        ),
        (["--subnet=vpc-1"], "--subnet takes an id such as subnet-0a1b2c3d, not 'vpc-1'"),
        (["--fallback"], "--fallback is for --spot: give that as well, or leave it out"),
        (["--disk=0"], "--disk takes a number from 1 to 65,536, not '0'"),
        (
            ["--volume=snap-1"],
            "--volume takes a snapshot and where to mount it, snap-0a1b2c3d:/mnt/data, "
            "not 'snap-1'",
        ),
        (
            ["--volume=snap-1:/mnt/../etc"],
            "--volume takes a snapshot and where to mount it, snap-0a1b2c3d:/mnt/data, "
            "not 'snap-1:/mnt/../etc'",
        ),
        (
            ["--volume=snap-1:/a", "--volume=snap-2:/a/"],
            "two volumes cannot both be mounted at /a: choose another path",
        ),
        (["--max-hours=0"], "--max-hours takes a number above 0 to 8,760, not '0'"),
        (["--idle=nan"], "--idle takes a number above 0 to 525,600, not 'nan'"),
        (["--keep", "--idle=5"], "--keep turns --idle off: give one of them"),
        (["--slots=0"], "--slots takes a number from 1 to 1,000, not '0'"),
        (["--setup=none"], "--setup=none is no file that can be read: check its name"),
        (
            ["--prepare", "--setup=none"],
            "--setup means nothing with --prepare: give it to adr prepare",
        ),
        (
            ["--prepare", "--aws-for-jobs"],
            "--aws-for-jobs means nothing with --prepare, whose instances have no role but "
            "credentials that adr prepare lends: leave it out",
        ),
        (
            ["--prepare"],
            "--prepare needs a key pair to log in with: name one with --akp, or an image that "
            "lets you in with --ami",
        ),
        (
            ["--prepare", "--akp=mine", "--spot"],
            "--prepare and --spot do not go together: a worker that is set up over SSH gets no "
            "notice of an interruption; leave one of them out",
        ),
        (["--user=me"], "--user means nothing for instances of EC2: leave it out"),
        (["--hosts=a", "-n1"], "-n means nothing with --hosts: as many as are named are launched"),
        (["--hosts=a", "--spot"], "--spot means nothing for hosts over SSH: leave it out"),
        (
            ["--hosts=-oProxyCommand=x"],
            "--hosts takes names such as lab1 or user@lab2:2222, with "
            "commas between them, not '-oProxyCommand=x'",
        ),
        (
            ["--hosts=a", "--hours=1", "--copy-credentials"],
            "--hours is for credentials that end, not for --copy-credentials",
        ),
        (
            ["--hosts=a", "--password=x", "--ask-password"],
            "--password and --ask-password both give the password: choose one",
        ),
        (["--ask-password"], "--ask-password is for --hosts: give that as well, or leave it out"),
    ],
)
def test_a_launch_that_cannot_be_is_refused_in_a_sentence(core, words, sentence, capsys):
    assert main(["launch", f"--runner={RUNNER}", *words]) == 2
    assert capsys.readouterr() == ("", f"adr: {sentence}\n")
    assert core.calls == []


@pytest.mark.parametrize("option", ["--spot", "--setup=x", "--disk=9", "--max=2", "--user=me"])
def test_what_means_nothing_on_this_machine_is_refused(core, tmp_path, option, capsys):
    path = local_runner(tmp_path / "here")
    assert main(["launch", path, option]) == 2
    name = option.partition("=")[0]
    assert capsys.readouterr().err == (
        f"adr: {name} means nothing for workers on this machine: leave it out\n"
    )
    assert core.calls == []


@pytest.mark.parametrize("number", [["-n", "5"], ["-n5"], ["-n=5"], ["--number=5"]])
def test_a_number_of_hosts_may_be_written_in_every_usual_way(core, number):
    assert main(["launch", *number, RUNNER]) == 0
    assert core.only("plan_launch")[0] == (RUNNER, Ec2Spec(n=5), None)


def test_options_of_a_launch_reach_the_plan(core, tmp_path):
    (tmp_path / "setup.sh").touch()
    words = [
        "launch", "-n", "auto", "--max=20", "--ait", "c7i.large,m6i.large", "--ami=ami-1",
        "--asg=sg-1, sg-2", "--akp=my key", "--subnet=subnet-1", "--spot", "--fallback",
        "--disk=50", "--volume=snap-1:/mnt/a", "--volume", "snap-2:/b", "--max-hours=1.5",
        "--idle=3", "--slots=2", "--setup=setup.sh", "--instance-profile=mine", "--aws-for-jobs",
        "--pip-options=--index-url x", "--region=eu-north-1", RUNNER,
    ]  # fmt: skip
    assert main(words) == 0
    spec = Ec2Spec(
        n=None, most=20, types=("c7i.large", "m6i.large"), ami="ami-1", groups=("sg-1", "sg-2"),
        key_pair="my key", subnet="subnet-1", spot=True, fallback=True, disk_gib=50,
        volumes=(Volume("snap-1", "/mnt/a"), Volume("snap-2", "/b")), setup=Path("setup.sh"),
        instance_profile="mine", aws_for_jobs=True, pip_options="--index-url x",
        worker=WorkerOptions(slots=2, idle_min=3, max_hours=1.5),
    )  # fmt: skip
    assert core.only("plan_launch") == ((RUNNER, spec, "eu-north-1"), {})
    assert core.only("launch_plan")[0] == (
        RUNNER, spec, core.answers["plan_launch"], "eu-north-1"
    )  # fmt: skip


def test_options_of_a_launch_default_to_the_configuration(core):
    for name, value in (
        ("machine_image", "ami-1"),
        ("instance_type", "m3.medium"),
        ("security_groups", ["sg-1"]),
        ("key_pair", "mine"),
    ):
        config.update_config("aws", "configuration", name, value)
    assert main(["launch", RUNNER]) == 0
    assert main(["launch", "--ait=c7i.large", "--image=amazon", "--akp=other", RUNNER]) == 0
    first, second = [args[1] for name, args, _ in core.calls if name == "plan_launch"]
    groups = ("sg-1",)
    assert first == Ec2Spec(types=("m3.medium",), ami="ami-1", groups=groups, key_pair="mine")
    assert second == Ec2Spec(types=("c7i.large",), image="amazon", groups=groups, key_pair="other")


def test_hosts_of_ones_own_are_launched_over_ssh(core):
    words = ["--hosts=lab1,me@lab2:2222,lab1", "--user=you", "--password=pw", "--key=id", "--keep"]
    assert main(["launch", *words, "--hours=2", "--timeout=60", RUNNER]) == 0
    spec = SshSpec(
        ("lab1", "me@lab2:2222"), user="you", password="pw", key_filename="id", timeout_s=60,
        credential_hours=2, worker=WorkerOptions(keep=True),
    )  # fmt: skip
    assert core.only("plan_launch")[0][1] == spec


def test_the_user_of_the_configuration_is_used_only_where_it_was_chosen(core):
    assert main(["launch", "--hosts=a", RUNNER]) == 0
    config.update_config("ssh", "user", "me")
    config.update_config("ssh", "key_filename", "~/.ssh/mine")
    assert main(["launch", "--hosts=a", RUNNER]) == 0
    first, second = [args[1] for name, args, _ in core.calls if name == "plan_launch"]
    assert (first.user, first.key_filename) == (None, None)
    assert (second.user, second.key_filename) == ("me", "~/.ssh/mine")


def test_a_local_launch_asks_for_processes(core, tmp_path):
    path = local_runner(tmp_path / "here")
    assert main(["launch", "-n2", "--slots=3", "--keep", "here"]) == 0
    spec = LocalSpec(2, WorkerOptions(slots=3, keep=True))
    assert core.only("plan_launch")[0] == (path, spec, None)


def test_a_launch_says_what_it_costs_and_prints_addresses(core, capsys):
    assert main(["launch", "-n2", RUNNER]) == 0
    said = capsys.readouterr()
    assert said.out == "3.0.0.1\ni-2\n"
    assert said.err.splitlines() == [
        "launching 2 hosts for about 0.2000 USD an hour; disks and traffic come extra",
        "a note",
    ]


def test_a_launch_in_part_is_kept_and_said(core, capsys):
    core.answers["launch_plan"] = LaunchReport(3, [FIRST], failed={"2 of 3": "no capacity"})
    assert main(["launch", "-n3", "--quiet", RUNNER]) == 1
    assert capsys.readouterr() == ("3.0.0.1\n", "adr: could not launch 2 of 3: no capacity\n")
    assert main(["launch", "-n3", "--json", "--quiet", RUNNER]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["failed"] == {"2 of 3": "no capacity"}
    assert printed["hosts"][0]["address"] == "3.0.0.1"


def test_a_dry_run_of_a_launch_shows_the_plan_and_stops(core, capsys):
    assert main(["launch", "--dry-run", RUNNER]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "type   c7i.large",
        "price  0.20",
    ]
    assert main(["launch", "--dry-run", "--json", RUNNER]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1, "n": 2, "fleet": "ec2", "hourly_usd": 0.2,
    }  # fmt: skip
    assert {name for name, _, _ in core.calls} == {"plan_launch"}


def test_what_to_prepare_reaches_the_core(core, capsys):
    words = ["--hosts=a,i-1", "--user=me", "--password=pw", "--key=id", "--timeout=9", "--hours=3"]
    assert main(["prepare", *words, "--setup=s", "--pip-options=-i x", "--slots=2", RUNNER]) == 0
    assert core.only("prepare") == (
        (RUNNER, None, ["a", "i-1"], "me", "pw", "id"),
        {
            "warn_only": True, "timeout": 9.0, "renew": False, "hours": 3.0,
            "copy_credentials": False, "keep": False, "setup": "s", "pip_options": "-i x",
            "slots": "2", "idle": None, "max_hours": None,
        },
    )  # fmt: skip
    assert capsys.readouterr().out == "3.0.0.1\n"


@pytest.mark.parametrize(("warn_only", "status"), [([], 1), (["--warn-only"], 0)])
def test_a_host_that_cannot_be_prepared_is_named(core, capsys, warn_only, status):
    core.answers["prepare"] = LaunchReport(2, [FIRST], failed={"lab2": "it does not answer"})
    assert main(["prepare", *warn_only, RUNNER]) == status
    said = capsys.readouterr()
    assert said == ("3.0.0.1\n", "adr: could not prepare lab2: it does not answer\n")


def test_a_password_is_asked_for_on_a_terminal_only(core, monkeypatch, capsys):
    assert main(["prepare", "--ask-password", RUNNER]) == 2
    assert "--ask-password needs a terminal" in capsys.readouterr().err
    on_terminal(monkeypatch, "")
    monkeypatch.setattr("getpass.getpass", lambda *_: "secret")
    assert main(["prepare", "--ask-password", RUNNER]) == 0
    assert core.only("prepare")[0][4] == "secret"


@pytest.mark.parametrize(
    ("verb", "printed", "said"),
    [
        ("start", "3.0.0.1\n", "i-1: running\n"),
        ("stop", "", "i-2: stopped (low disk\\x1b)\n"),
    ],
)
def test_hosts_are_stopped_and_started(core, verb, printed, said, capsys):
    assert main([verb, "--hosts=i-1,3.0.0.2", "--region=eu-north-1", RUNNER]) == 0
    assert core.only(verb) == ((RUNNER, "eu-north-1", ["i-1", "3.0.0.2"]), NO_LOGIN)
    assert capsys.readouterr() == (printed, said)
    assert main([verb, "--json", "--quiet", RUNNER]) == 0
    assert json.loads(capsys.readouterr().out)["hosts"][0]["fleet"] == "ec2"


@pytest.mark.parametrize("verb", [["start"], ["stop"], ["destroy", "--yes"]])
def test_hosts_over_ssh_can_be_logged_in_to_in_another_way(core, verb):
    assert main([*verb, "--user=me", "--password=pw", "--key=id", RUNNER]) == 0
    login = {"user": "me", "password": "pw", "key_filename": "id"}
    assert login.items() <= core.only(verb[0])[1].items()


def test_who_starts_instances_to_be_prepared_is_told_what_is_missing(core, capsys):
    core.answers["start"] = [Host("i-3", "ec2", HostState.RUNNING, "3.0.0.3", login="ubuntu")]
    assert main(["start", RUNNER]) == 0
    assert capsys.readouterr().err == "i-3: running (adr prepare starts its worker)\n"


def test_nothing_to_stop_is_said(core, capsys):
    core.answers["stop"] = []
    assert main(["stop", RUNNER]) == 0
    assert capsys.readouterr() == ("", "there is nothing to stop\n")


def test_only_the_named_hosts_are_destroyed(core, capsys):
    config.update_config("runner", RUNNER)
    assert main(["destroy", "--yes", "--hosts=i-1, i-2"]) == 0
    assert core.only("destroy") == (
        (RUNNER, None, ["i-1", "i-2"]), {"batch": None, "purge": False, **NO_LOGIN}
    )  # fmt: skip
    assert config.load_config("runner") == RUNNER
    assert capsys.readouterr().err == f"destroyed i-1, i-2 of runner {RUNNER}\n"


def test_destroy_says_how_many_hosts_would_end(core, monkeypatch, capsys):
    core.answers["list_hosts"] = some_hosts()
    on_terminal(monkeypatch, "n")
    assert main(["destroy", RUNNER]) == 1
    assert f"Destroy runner {RUNNER} with 2 hosts, but not its results?" in capsys.readouterr().err
    assert main(["destroy", "--hosts=i-1", RUNNER]) == 1
    assert f"Destroy i-1 of runner {RUNNER}? There is no undo." in capsys.readouterr().err


@pytest.mark.parametrize(("interrupted", "status"), [(False, 0), (True, 130)])
def test_a_worker_that_a_signal_has_ended_exits_130(core, interrupted, status):
    core.answers["process"].interrupted = interrupted
    assert main(["process", RUNNER]) == status


def test_options_of_a_worker_of_a_fleet_reach_the_core(core):
    words = [
        "--host=i-1", "--idle=2.5", "--max-hours=8", "--alive=/run/alive", "--spot",
        "--job-user=adr-job", "--aws-for-jobs",
    ]  # fmt: skip
    assert main(["process", *words, RUNNER]) == 0
    assert core.only("process")[1] == {
        "slots": None, "host": "i-1", "idle": 2.5, "max_hours": 8.0, "alive": "/run/alive",
        "spot": True, "job_user": "adr-job", "aws_for_jobs": True,
    }  # fmt: skip


# Runners


def test_a_new_runner_is_printed_and_becomes_the_current_one(core, capsys):
    assert main(["create", "--local", "--dir=here"]) == 0
    assert core.only("create") == ((None,), {"local": True, "directory": "here"})
    assert capsys.readouterr().out == RUNNER + "\n"
    assert config.load_config("runner") == RUNNER


def test_a_broken_configuration_is_noticed_before_a_runner_is_made(core, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    assert main(["create"]) == 2
    assert "is broken" in capsys.readouterr().err
    assert core.calls == []


def runner_info(runner, waiting=0, running=0, results_only=False):
    kind = "local" if "/" in runner else "aws"
    return SimpleNamespace(
        runner=runner, kind=kind, waiting=waiting, running=running, results_only=results_only
    )


@pytest.mark.parametrize("command", ["list", "set"])
def test_runners_are_listed_with_a_star_at_the_current_one(core, command, capsys):
    config.update_config("runner", OTHER)
    core.answers["list_runners"] = [
        runner_info(RUNNER, None, None, results_only=True),
        runner_info(OTHER, 12, 3),
    ]
    assert main([command]) == 0
    assert capsys.readouterr().out == (
        f"  {RUNNER}  (results only)\n* {OTHER}  12 waiting, 3 running\n"
    )
    assert main([command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [each["current"] for each in printed["runners"]] == [False, True]
    assert printed["runners"][1]["waiting"] == 12


def test_set_chooses_the_current_runner(core, tmp_path):
    path = local_runner(tmp_path / "here")
    (tmp_path / RUNNER).mkdir()
    assert main(["set", RUNNER]) == 0
    assert config.load_config("runner") == RUNNER
    assert main(["set", "--runner=here"]) == 0
    assert config.load_config("runner") == path
    assert core.calls == []


def test_after_the_current_runner_is_destroyed_none_is_current(core, capsys):
    """The same command again must not destroy another one."""
    config.update_config("runner", RUNNER)
    core.answers["list_runners"] = [runner_info(RUNNER), runner_info(OTHER)]
    assert main(["destroy", "--yes", "--purge"]) == 0
    expected = {"batch": None, "purge": True, **NO_LOGIN}
    assert core.only("destroy") == ((RUNNER, None, None), expected)
    assert config.load_config("runner") is None
    assert "there is no current runner now: adr set chooses one" in capsys.readouterr().err
    assert main(["destroy", "--yes", "--purge"]) == 2


@pytest.mark.parametrize("words", [[OTHER], ["--batch=b"]])
def test_the_current_runner_stays_where_something_else_is_destroyed(core, words):
    config.update_config("runner", RUNNER)
    core.answers["list_runners"] = [runner_info(OTHER)]
    assert main(["destroy", "--yes", *words]) == 0
    assert config.load_config("runner") == RUNNER


@pytest.mark.parametrize(
    ("call", "words", "said"),
    [
        ("launch_plan", ["launch", RUNNER], "hosts may have been launched"),
        ("prepare", ["prepare", RUNNER], "what has begun on a host may go on there"),
        ("destroy", ["destroy", "--yes", RUNNER], "it may be half destroyed"),
    ],
)
def test_an_interruption_tells_what_goes_on_elsewhere(core, capsys, call, words, said):
    core.answers[call] = KeyboardInterrupt()
    assert main(words) == 130
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_what_was_changed_is_told_where_some_could_not_be(core, capsys, verb):
    core.answers[verb] = PartialFailure("not all", ["i-1", "i-2"], ["i-3"])
    assert main([verb, RUNNER]) == 1
    assert "ed: i-1, i-2" in capsys.readouterr().err
    assert main([verb, "--json", RUNNER]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["succeeded"], data["failed"]) == (["i-1", "i-2"], ["i-3"])


def test_destroy_is_refused_where_nobody_can_be_asked(core, capsys):
    assert main(["destroy", RUNNER]) == 2
    assert "confirm with --yes" in capsys.readouterr().err
    assert core.calls == []


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("", 1), ("n", 1)])
def test_destroy_asks_on_a_terminal(core, monkeypatch, capsys, answer, status):
    on_terminal(monkeypatch, answer)
    assert main(["destroy", RUNNER]) == status
    assert f"Destroy runner {RUNNER}" in capsys.readouterr().err
    assert ("destroy" in [call[0] for call in core.calls]) == (status == 0)


# Running and queueing


def test_what_is_left_is_not_looked_through_as_python_ends():
    script = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "from adr.console import main\n"
        "main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[1:] == ["True"]


def test_a_run_without_failures_exits_0(core, capsys):
    core.ran.skipped, core.ran.kept = 12, 1
    assert main(["run", "--to=out", "a"]) == 0
    assert capsys.readouterr() == (
        "",
        "12 jobs are done already (--rerun runs them again)\njobs: 5 succeeded\n"
        "1 result not written, since files that are not adr's have those names: "
        "move them away and run the same command again\n",
    )


def test_failed_jobs_are_shown_with_the_end_of_their_output(core, capsys):
    core.ran.failed = (FAILED,)
    assert main(["run", "--to=out", "--quiet", "a"]) == 1
    assert capsys.readouterr().err == "failed: case2 (exit code 3)\n    no\\x1b[2Jsand\n"


def test_of_many_failed_jobs_all_are_named(core, capsys):
    core.ran.failed = (FAILED,) * 1000
    assert main(["run", "--to=out", "--quiet", "a"]) == 1
    said = capsys.readouterr().err
    assert said.count("failed: case2") == 1000
    assert said.count("sand") == 10


@pytest.mark.parametrize("raised", [False, True])
def test_an_interrupted_run_says_how_to_go_on(core, monkeypatch, capsys, raised):
    core.ran.interrupted = True
    if raised:
        core.answers["run_plan"] = KeyboardInterrupt()
    assert main(["run", "--to=out", "a"]) == 130
    assert "interrupted: the same command picks up where it was" in capsys.readouterr().err


def test_the_outcome_of_a_run_is_json_on_standard_output(core, capsys):
    core.ran.failed = (FAILED,)
    assert main(["run", "--to=out", "--json", "a"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == 1
    assert printed["succeeded"] == 5
    assert printed["failed"] == json.loads(json.dumps([FAILED.to_dict()]))


def test_a_dry_run_shows_the_plan_and_stops(core, capsys):
    core.plan_of.too_large = "the root has 10,001 files"
    assert main(["run", "--to=out", "--dry-run", "a"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "root      /data",
        "bundle    14 files, 12.3 kB",
        "left out  3 files, 1.2 MB",
        "jobs      5",
        "  1. model 'case1.txt'",
        "  2. model 'case2.txt'",
        "  ...",
        "  4. model 'case4.txt'",
        "  5. model 'case5.txt'",
    ]
    assert main(["queue", "--dry-run", "--json", "a", RUNNER]) == 0
    assert len(json.loads(capsys.readouterr().out)["jobs"]) == 5
    assert {call[0] for call in core.calls} == {"plan"}


def test_queue_says_what_it_bundled_and_prints_the_batch(core, capsys):
    assert main(["queue", "a", RUNNER]) == 0
    said = capsys.readouterr()
    assert said.out == "b\n"
    assert said.err == (
        "bundled 14 files, 12.3 kB from /data; left out 3 files (1.2 MB), "
        "among them of the kind of the inputs: z.log\n"
        "left out: link leads out of the root\n"
        "1 file named more than once, each queued once\n"
    )
    assert main(["queue", "--json", "--quiet", "a", RUNNER]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["batch"] == "b"
    assert said.err == ""


@pytest.mark.parametrize("command", [["run", "--to=out"], ["queue", f"--runner={RUNNER}"]])
def test_too_large_a_bundle_is_refused_where_nobody_can_be_asked(core, command, capsys):
    core.plan_of.too_large = "the root has 10,001 files"
    assert main([*command, "a"]) == 2
    assert capsys.readouterr().err == (
        "adr: the root has 10,001 files: choose a smaller --root, or confirm with --yes\n"
    )
    assert main([*command, "a", "--yes"]) == 0


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 2)])
def test_too_large_a_bundle_is_asked_about_on_a_terminal(core, monkeypatch, answer, status):
    core.plan_of.too_large = "the root has 10,001 files"
    on_terminal(monkeypatch, answer)
    assert main(["run", "--to=out", "a"]) == status
    assert ("run_plan" in [call[0] for call in core.calls]) == (status == 0)


# Status, logs


def some_status():
    worker = WorkerInfo("w1", "host\x1b", 42, 4, started_at=0.0, adr_version="0")
    batch = BatchStatus(batch="b", jobs=5, queued=3, running=0, succeeded=1, failed=1)
    totals = Counts(jobs=5, queued=3, succeeded=1, failed=1)
    views = [
        JobView(JOBS[0], JobState.QUEUED, None),
        JobView(JOBS[1], JobState.FAILED, FAILED),
    ]
    return Status(RUNNER, totals, [batch], [worker], views, ["3 jobs wait and no worker runs"])


def test_status_is_a_table_for_people(core, capsys):
    core.answers["status"] = some_status()
    assert main(["status", f"--runner={RUNNER}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "BATCH  JOBS  QUEUED  RUNNING  SUCCEEDED  FAILED",
        "b         5       3        0          1       1",
    ]
    assert "host\\x1b" in lines[4]
    assert lines[-1] == "3 jobs wait and no worker runs"


def test_status_shows_unusual_states_only_where_there_are_any(core, capsys):
    status = some_status()
    status.totals.lost = status.batches[0].lost = 1
    core.answers["status"] = status
    assert main(["status", f"--runner={RUNNER}"]) == 0
    printed = capsys.readouterr().out
    assert "LOST" in printed
    assert "CANCELLED" not in printed


def test_status_shows_each_job_where_asked(core, capsys):
    core.answers["status"] = some_status()
    assert main(["status", f"--runner={RUNNER}", "--jobs"]) == 0
    printed = capsys.readouterr().out
    assert "b/case1  queued" in printed
    assert "exit code 3" in printed


@pytest.mark.parametrize("jobs", [[], ["--jobs"]])
def test_status_as_json_is_that_of_the_core(core, capsys, jobs):
    core.answers["status"] = some_status()
    assert main(["status", f"--runner={RUNNER}", "--batch=b", "--json", *jobs]) == 0
    expected = json.dumps(some_status().to_dict(bool(jobs)))
    assert capsys.readouterr().out == expected + "\n"
    assert core.only("status") == ((RUNNER, None), {"batch": "b", "jobs": bool(jobs)})


def some_hosts():
    slot = SlotInfo("b", 1, 0, "a1", 0.0)
    worker = WorkerInfo("w1", "i-1", 42, 4, 0.0, "0", done=7, running=(slot,), note="draining")
    by_hand = WorkerInfo("w2", "desk\x1b", 43, 1, 0.0, "0")
    return Hosts(
        [
            HostView(FIRST, (worker,)),
            HostView(SECOND, setup_failed=True),
            HostView(Host("desk\x1b", "", HostState.RUNNING), (by_hand,)),
        ]
    )


def test_hosts_of_a_runner_are_listed(core, capsys):
    core.answers["list_hosts"] = some_hosts()
    assert main(["list", RUNNER]) == 0
    header, first, second, third = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "HOST", "ADDRESS", "STATE", "TYPE", "MARKET", "AGE", "SLOTS", "DONE", "NOTE"
    ]  # fmt: skip
    assert first.split()[:5] == ["i-1", "3.0.0.1", "running", "c7i.large", "spot"]
    assert first.split()[-3:] == ["1/4", "7", "draining"]
    assert "setup failed" in second
    assert "adr logs --worker=i-2; low disk\\x1b" in second
    assert third.startswith("desk\\x1b ")
    assert "0/1" in third


def test_hosts_of_a_runner_are_listed_as_json(core, capsys):
    core.answers["list_hosts"] = some_hosts()
    assert main(["list", "--json", RUNNER]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in printed["hosts"]] == ["i-1", "i-2", "desk\x1b"]
    first = printed["hosts"][0]
    assert (first["state"], first["slots"], first["busy"], first["done"]) == ("running", 4, 1, 7)
    assert [each["pid"] for each in printed["workers"]] == [42, 43]
    assert printed["not_known"] == []


def test_a_runner_without_hosts_says_so(core, capsys):
    assert main(["list", RUNNER]) == 0
    assert capsys.readouterr() == ("", "there are no hosts: adr launch starts some\n")


def test_hosts_that_are_not_known_are_not_called_none(core, capsys):
    core.answers["list_hosts"] = Hosts([], {"ec2": ServiceError("EC2 does not answer")})

    assert main(["list", RUNNER]) == 1
    said = "adr: whether there are hosts is not known: EC2 does not answer\n"
    assert capsys.readouterr() == ("", said)
    assert main(["list", "--json", RUNNER]) == 0
    assert json.loads(capsys.readouterr().out)["not_known"] == ["ec2"]


def test_a_destroyed_runner_says_so_instead_of_how_to_launch(core, capsys):
    core.answers["list_hosts"] = Hosts()
    core.answers["list_hosts"].destroyed = True

    assert main(["list", RUNNER]) == 0
    assert "has been destroyed" in capsys.readouterr().err


@pytest.mark.parametrize(("notes", "where"), [([], ""), (["x is left out"], " in the regions")])
def test_no_orphans_are_claimed_where_nobody_could_look(core, capsys, notes, where):
    core.answers["list_orphans"] = ([], notes)

    assert main(["list", "--orphans"]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"there are no instances without a runner{where}")
    assert bool(where) == last.endswith("that could be asked")


def test_logs_are_written_byte_by_byte(core, capfdbinary):
    assert main(["logs", f"--runner={RUNNER}", "--", "-case1"]) == 0
    assert capfdbinary.readouterr().out == b"one\n\xff\x00two"
    args, kwargs = core.only("logs")
    assert (args, kwargs["follow"]) == ((RUNNER, "-case1", None), False)


@pytest.mark.parametrize(("quiet", "said"), [([], "it waits\\x1b\n"), (["--quiet"], "")])
def test_logs_are_followed(core, capfd, quiet, said):
    assert main(["logs", "-f", *quiet, f"--runner={RUNNER}", "case1"]) == 0
    args, kwargs = core.only("logs")
    assert (args, kwargs["follow"]) == ((RUNNER, "case1", None), True)
    capfd.readouterr()
    kwargs["tell"]("it waits\x1b")
    assert capfd.readouterr() == ("", said)


def test_what_a_host_has_said_is_written_byte_by_byte(core, capfdbinary):
    assert main(["logs", f"--runner={RUNNER}", "--worker=i-1"]) == 0
    assert capfdbinary.readouterr().out == b"no\xff such package\n"
    assert core.only("host_output") == ((RUNNER, "i-1", None), {})


# Errors


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (UsageError("no such file: x\x1b.txt"), 2, "no such file: x\\x1b.txt"),
        (RunnerGone("there is no such runner"), 2, "there is no such runner"),
        (ServiceError("SQS does not answer"), 1, "SQS does not answer"),
        (AdrError("that failed"), 1, "that failed"),
    ],
)
def test_an_error_is_one_sentence_and_its_exit_status(core, capsys, error, status, sentence):
    core.answers["plan"] = error
    assert main(["run", "--to=out", "a"]) == status
    assert capsys.readouterr() == ("", f"adr: {sentence}\n")


@pytest.mark.parametrize(
    "words", [["queue", "--quiet", "a", RUNNER], ["retry", f"--runner={RUNNER}"]]
)
def test_an_interrupt_exits_130(core, capsys, words):
    core.answers |= {"queue_plan": KeyboardInterrupt(), "retry": KeyboardInterrupt()}
    assert main(words) == 130
    left = "the same command finishes what it has begun to queue"
    assert capsys.readouterr().err == f"adr: {left}\nadr: interrupted\n"


@pytest.mark.parametrize("level", ["10", "DEBUG", "30"])
def test_an_unexpected_error_shows_its_traceback_only_where_asked(core, capsys, level):
    core.answers["plan"] = ZeroDivisionError("oops")
    assert main(["run", "--to=out", f"--verbose={level}", "a"]) == 1
    said = capsys.readouterr().err
    assert "internal error, ZeroDivisionError: oops; please report it" in said
    assert ("Traceback" in said) == (level != "30")


def test_a_reader_that_leaves_is_no_error(tmp_path):
    script = (
        "import sys, types, adr\n"
        "adr.adr = sys.modules['adr.adr'] = types.SimpleNamespace(\n"
        "    logs=lambda *_, **__: (b'x' * 65536 for _ in range(100)))\n"
        "from adr.console import main\n"
        f"sys.exit(main(['logs', '--runner={RUNNER}', 'case1']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_a_name_the_locale_cannot_write_ends_no_command():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from adr.console import main; main(['--version']); print('\\u0160')",
        ],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"\\u0160\n")


# Words and progress


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünï 文", "plain ünï 文"),
        ("[bold]no markup[/]", "[bold]no markup[/]"),
        ("a\x1b[31m\n\t\x9b\u202e", "a\\x1b[31m\\n\\t\\x9b\\u202e"),
        (os.fsdecode(b"\xff.txt"), "\\xff.txt"),
    ],
)
def test_untrusted_text_cannot_steer_the_terminal(text, shown):
    assert output.plain(text) == shown


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (12_345, "12.3 kB"),
        (999_960, "1.0 MB"),
        (5e11, "500 GB"),
    ],
)
def test_sizes_are_for_people(size, text):
    assert output.size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"),
     (3_600, "1 h 0 min"), (200_000, "2 d 7 h")],
)  # fmt: skip
def test_times_are_for_people(seconds, text):
    assert output.duration_text(seconds) == text


def test_columns_stay_aligned_with_wide_letters(capsys):
    output.print_table(["NAME", "N"], [["文字", "1"], ["e\u0301", "1,000"]])
    assert capsys.readouterr().out == "NAME      N\n文字      1\ne\u0301     1,000\n"


PROGRESS = """
from adr import progressbar
progressbar._LINE_EVERY_S = 0
with progressbar.progress(quiet={quiet}) as progress:
    progress.start("running [b]", 3, "jobs")
    progress.note(done=1, failed=1, running=1)
    progress.advance(2)
print("end")
"""


def run_progress(quiet=False, **streams):
    code = PROGRESS.format(quiet=quiet)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, **streams)


def test_progress_on_a_terminal_is_a_live_bar():
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with run_progress(stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:
            pass  # Linux ends a terminal without writers this way.
        assert process.stdout.read() == b"end\n"
    os.close(ours)
    assert b"running [b]" in shown
    assert b"2 of 3 jobs, 1 done, 1 failed, 1 running" in shown
    assert b"/s" in shown
    assert b" left" in shown


def test_progress_elsewhere_is_a_line_now_and_then():
    with run_progress(stderr=subprocess.PIPE) as process:
        said = process.stderr.read().decode().splitlines()
    assert said[0] == "running [b]: 0 of 3 jobs, 1 done, 1 failed, 1 running"
    assert said[1].startswith("running [b]: 2 of 3 jobs, 1 done, 1 failed, 1 running, ")
    assert said[1].endswith(" left")


def test_progress_is_silent_where_asked():
    with run_progress(quiet=True, stderr=subprocess.PIPE) as process:
        assert process.stderr.read() == b""

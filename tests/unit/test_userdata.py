"""The user data of instances: what it writes, how it ends, and what the scripts in it decide.

The scripts are the real ones. Only their places are moved into a folder of the test, and
``systemctl`` is one that writes down how it was called; whole machines are booted elsewhere.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from adr import fleets
from adr.errors import UsageError
from adr.fleets.ec2.userdata import LARGEST_BYTES, Machine, user_data
from adr.fleets.specs import WorkerOptions
from tests.servers import require

RUNNER = "0d5f0a7e-1111-4222-8333-444455556666"
KEEP = WorkerOptions(keep=True)
MACHINE = Machine(
    runner_id=RUNNER,
    region="eu-central-1",
    wheel_key="_install/abc/amazon_distributed_runner-0.2.0-py3-none-any.whl",
    wheel_name="amazon_distributed_runner-0.2.0-py3-none-any.whl",
    wheel_sha256="ab" * 32,
    constraints_key="_install/abc/constraints.txt",
)
#: With all that can be asked for.
FULL = replace(
    MACHINE,
    setup_key="_install/def/setup.sh",
    setup_sha256="cd" * 32,
    volumes=(("/dev/sdf", "/mnt/data"), ("/dev/sdg", "/mnt/more")),
    worker=WorkerOptions(slots=4, max_hours=12),
    spot=True,
    aws_for_jobs=True,
    pip_options="--index-url https://pypi.example.com/simple --find-links '/mnt/data/my wheels'",
    endpoints={"AWS_ENDPOINT_URL": "http://10.0.0.1:9000"},
)
#: What a shell would fall for.
HOSTILE = 'it\'s "$(touch pwned)" `touch pwned`; touch pwned & \\ * ~\nEND\nEND_\n%i é'
#: What the clock of the machine says, in seconds.
UPTIME = 1_000_000


class Place:
    """A folder that stands for the file system of an instance, and its ``systemctl``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lib = folder / "lib"
        self.units = folder / "units"
        self.run_folder = folder / "run"
        self.calls_file = folder / "calls"
        #: Answer of ``systemctl is-system-running``.
        self.state = "running"
        #: What ``systemctl show`` says of the worker: with which status it has ended.
        self.status = "1"
        #: First words of a call of ``systemctl`` that fails.
        self.failing = "nothing"
        self.units.mkdir()
        (folder / "uptime").write_text(f"{UPTIME}.25 1234.50\n")
        self.program(
            "bin/systemctl",
            f'echo "$*" >>"{self.calls_file}"\n'
            '[ "$1" != is-system-running ] || echo "$STATE"\n'
            '[ "$1" != show ] || echo "$STATUS"\n'
            'case "$*" in "$FAILING"*) exit 1 ;; esac\n',
        )

    def program(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(0o755)

    def moved(self, text: str) -> str:
        for there, here in (
            ("/usr/local/lib/adr", self.lib),
            ("/etc/systemd/system", self.units),
            ("/opt/adr", self.folder / "opt"),
            ("/run/adr", self.run_folder / "adr"),
            ("/proc/uptime", self.folder / "uptime"),
            ("/var/log/adr-failed.log", self.folder / "failed.log"),
            ("/etc/needrestart", self.folder / "needrestart"),
            ("cd /root", f"cd {self.folder}"),
        ):
            text = text.replace(there, str(here))
        return text

    def boot(self, machine: Machine) -> subprocess.CompletedProcess[str]:
        """Run the user data."""
        script = self.folder / "user-data"
        script.write_text(self.moved(text_of(machine)))
        return self.run(script)

    def run(self, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "STATE": self.state,
            "STATUS": self.status,
            "FAILING": self.failing,
            **env,
        }
        return subprocess.run(
            ["bash", *map(str, words)], cwd=self.folder, env=variables, capture_output=True,
            text=True,
        )  # fmt: skip

    @property
    def calls(self) -> list[str]:
        """What systemctl was told to do since the last time that this was asked."""
        if not self.calls_file.exists():
            return []
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return [line for line in lines if not line.startswith(("is-system-running", "show "))]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def text_of(machine: Machine) -> str:
    raw = user_data(machine)
    return (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode()


def variable(place: Place, name: str) -> list[str]:
    """Return the values that the scripts find in a variable."""
    code = f'. "$1"; printf "%s\\0" "${{{name}[@]}}"'
    done = subprocess.run(["bash", "-uc", code, "-", place.lib / "values"], capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().split("\0")[:-1]


class TestItsForm:
    @pytest.mark.parametrize("machine", [MACHINE, FULL], ids=["usual", "full"])
    def test_it_is_as_short_as_ec2_wants_it(self, machine: Machine) -> None:
        assert len(user_data(machine)) <= LARGEST_BYTES

    def test_what_is_too_long_in_plain_text_is_compressed(self) -> None:
        assert user_data(replace(MACHINE, prepare=True)).startswith(b"#!/bin/bash\n")

        assert user_data(FULL)[:2] == b"\x1f\x8b"
        assert user_data(FULL) == user_data(FULL)

    def test_what_is_too_long_all_the_same_is_refused(self) -> None:
        noise = " ".join(f"--find-links=/{os.urandom(16).hex()}" for _ in range(1000))

        with pytest.raises(UsageError, match=r"EC2 accepts 16,384: shorten --pip-options"):
            user_data(replace(MACHINE, pip_options=noise))

    @pytest.mark.parametrize(
        "machine",
        [MACHINE, FULL, replace(FULL, worker=KEEP), replace(MACHINE, prepare=True)],
        ids=["usual", "full", "keep", "prepare"],
    )
    def test_it_and_all_that_it_writes_is_right_for_bash(
        self, place: Place, machine: Machine
    ) -> None:
        assert place.boot(machine).returncode == 0

        scripts = [place.folder / "user-data", place.lib / "values", *place.lib.glob("*.sh")]
        for script in scripts:
            done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ""), script

    def test_the_units_are_right_for_systemd(self, place: Place) -> None:
        require(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
        place.boot(FULL)
        for unit in place.units.iterdir():
            unit.write_text(place.moved(unit.read_text()))

        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *sorted(place.units.iterdir())],
            env={**os.environ, "SYSTEMD_UNIT_PATH": f"{place.units}:"},
            capture_output=True,
            text=True,
        )

        assert [line for line in done.stderr.splitlines() if "adr-" in line] == []

    def test_the_files_arrive_as_they_are(self, place: Place) -> None:
        place.boot(FULL)

        source = Path(fleets.__file__).parent / "machine"
        written = [*place.lib.iterdir(), *place.units.iterdir()]
        names = {each.name for each in written} - {"values"}
        assert len(names) >= 12
        for each in written:
            if each.name in names:
                assert each.read_bytes() == place.moved((source / each.name).read_text()).encode()
                assert os.access(each, os.X_OK) == each.name.endswith(".sh")


class TestValues:
    def test_no_value_can_become_a_command(self, place: Place) -> None:
        hostile = replace(
            MACHINE,
            setup_key=HOSTILE,
            setup_sha256=HOSTILE,
            wheel_key=HOSTILE,
            wheel_name=HOSTILE,
            constraints_key=HOSTILE,
            region=HOSTILE,
            volumes=(("/dev/sdf", HOSTILE), ("/dev/sdg", "/a b/'c'")),
            endpoints={"AWS_ENDPOINT_URL_S3": HOSTILE},
            runner_id=HOSTILE,
        )

        assert place.boot(hostile).returncode == 0

        assert not list(place.folder.rglob("pwned"))
        names = "SETUP_KEY SETUP_SHA256 WHEEL_KEY WHEEL_NAME CONSTRAINTS_KEY REGION BUCKET"
        for name in names.split():
            assert variable(place, name) == [HOSTILE], name
        assert variable(place, "VOLUMES") == ["/dev/sdf", HOSTILE, "/dev/sdg", "/a b/'c'"]
        assert variable(place, "ENDPOINTS") == [f"AWS_ENDPOINT_URL_S3={HOSTILE}"]
        assert variable(place, "WORDS")[-1] == HOSTILE
        assert not list(place.folder.rglob("pwned"))

    def test_options_of_pip_are_words_as_in_a_shell(self, place: Place) -> None:
        options = "--index-url https://pypi.example.com --find-links 'my wheels' '$(touch pwned)'"

        place.boot(replace(MACHINE, pip_options=options))

        assert variable(place, "PIP_OPTIONS") == [
            *("--index-url", "https://pypi.example.com", "--find-links", "my wheels"),
            "$(touch pwned)",
        ]
        assert not list(place.folder.rglob("pwned"))

    def test_options_of_pip_that_cannot_be_read_are_refused_without_being_repeated(self) -> None:
        options = "--index-url https://pypi.example.com/hunter2 --find-links 'my wheels"

        with pytest.raises(UsageError, match=r"--pip-options .*quote as in a shell") as refused:
            user_data(replace(MACHINE, pip_options=options))

        assert "hunter2" not in str(refused.value)

    @pytest.mark.parametrize(
        "given",
        [
            {"pip_options": "--index-url https://me:hunter2@pypi.example.com/simple"},
            {"pip_options": "--index-url https://hunter2@pypi.example.com/simple"},
            {"pip_options": "--index-url https://hunter2:@pypi.example.com/simple"},
            {"pip_options": "--index-url 'https:'//me:hun'ter2@'pypi.example.com/simple"},
            {"pip_options": "--proxy me:hunter2@10.0.0.1:3128"},
            {"endpoints": {"AWS_ENDPOINT_URL": "http://me:hunter2@10.0.0.1"}},
            {"endpoints": {"AWS_ENDPOINT_URL_S3": "http://hunter2@10.0.0.1"}},
        ],
    )
    def test_logins_in_addresses_are_refused_without_being_repeated(
        self, given: dict[str, Any]
    ) -> None:
        with pytest.raises(UsageError, match="a user name or a password") as refused:
            user_data(replace(MACHINE, **given))

        assert "ter2" not in str(refused.value)

    def test_an_at_sign_in_the_path_of_an_address_is_no_login(self, place: Place) -> None:
        options = "--find-links https://pypi.example.com/adr@0.2"

        place.boot(replace(MACHINE, pip_options=options))

        assert variable(place, "PIP_OPTIONS") == options.split()

    def test_credentials_of_the_caller_are_nowhere_in_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAHUNTER2")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-secret")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter2-token")

        assert "hunter2" not in text_of(FULL).lower()

    def test_the_worker_is_started_as_asked(self, place: Place) -> None:
        place.boot(FULL)

        assert variable(place, "WORDS") == [
            "process",
            "--host=",
            "--slots=4",
            "--idle=10",
            "--max-hours=12",
            "--region=eu-central-1",
            "--workingdir=/var/lib/adr",
            f"--alive={place.run_folder}/adr/alive",
            "--job-user=adr-job",
            "--spot",
            "--aws-for-jobs",
            RUNNER,
        ]
        assert variable(place, "MAX_S") == ["43200"]

    def test_the_log_of_a_failed_set_up_has_the_key_of_its_host(self, place: Place) -> None:
        place.boot(MACHINE)

        assert variable(place, "LOG_KEY") == ["_workers/setup/@INSTANCE@.log"]


class TestTheFirstBoot:
    def test_the_watch_begins_before_anything_else(self, place: Place) -> None:
        done = place.boot(MACHINE)

        assert done.returncode == 0
        assert [call for call in place.calls if call != "daemon-reload"] == [
            "start adr-deadman.service",
            "enable --now adr-deadman.timer",
            "enable adr-setup.service",
            "start adr-setup.service",
        ]

    def test_it_can_be_run_again(self, place: Place) -> None:
        place.boot(FULL)
        before = {path: path.read_bytes() for path in place.lib.iterdir()}
        calls = place.calls

        assert place.boot(FULL).returncode == 0
        assert {path: path.read_bytes() for path in place.lib.iterdir()} == before
        assert place.calls == calls

    def test_where_it_cannot_go_on_the_machine_ends(self, place: Place) -> None:
        place.failing = "enable adr-setup"

        assert place.boot(MACHINE).returncode != 0
        assert place.calls[-1] == "poweroff"

    def test_the_set_up_ends_the_machine_by_itself(self, place: Place) -> None:
        place.failing = "start adr-setup"

        assert place.boot(MACHINE).returncode != 0
        assert "poweroff" not in place.calls

    def test_a_machine_to_prepare_gets_nothing_but_the_watch(self, place: Place) -> None:
        assert place.boot(replace(MACHINE, prepare=True)).returncode == 0

        names = {path.name for path in (*place.lib.iterdir(), *place.units.iterdir())}
        assert names == {"values", "deadman.sh", "adr-deadman.service", "adr-deadman.timer"}
        assert not [call for call in place.calls if "setup" in call or "worker" in call]


class TestKeep:
    def test_there_is_no_watch_and_no_end(self, place: Place) -> None:
        keep = replace(FULL, worker=replace(FULL.worker, keep=True))

        assert place.boot(keep).returncode == 0

        assert not list(place.folder.rglob("*deadman*"))
        assert not [call for call in place.calls if "deadman" in call]
        assert variable(place, "MAX_S") == [""]
        words = variable(place, "WORDS")
        assert not [word for word in words if word.startswith(("--idle", "--max-hours"))]

    @pytest.mark.parametrize("status", ["0", "2"])
    def test_a_worker_that_has_left_ends_nothing(self, place: Place, status: str) -> None:
        place.boot(replace(MACHINE, worker=KEEP))
        place.calls_file.unlink()

        place.run(place.lib / "worker-ended.sh", EXIT_CODE="exited", EXIT_STATUS=status)

        assert place.calls == []

    def test_a_set_up_that_failed_ends_nothing(self, place: Place) -> None:
        place.boot(replace(MACHINE, worker=KEEP))
        place.calls_file.unlink()

        done = place.run(place.lib / "setup-ended.sh", SERVICE_RESULT="exit-code")

        assert "set up failed (exit-code)" in done.stdout
        assert place.calls == []

    def test_not_even_where_the_first_script_fails(self, place: Place) -> None:
        place.failing = "enable adr-setup"

        assert place.boot(replace(MACHINE, worker=KEEP)).returncode != 0
        assert "poweroff" not in place.calls


class TestTheEndOfTheWorker:
    @pytest.mark.parametrize(
        ("code", "status", "state", "ends"),
        [
            ("exited", "0", "running", True),
            ("exited", "0", "degraded", True),
            ("exited", "2", "running", False),
            ("exited", "1", "running", False),
            ("exited", "130", "running", False),
            ("exited", "143", "running", False),
            ("killed", "KILL", "running", False),
            ("", "", "running", False),
            ("exited", "0", "stopping", False),
        ],
    )
    def test_the_machine_ends_where_the_worker_left_by_itself(
        self, place: Place, code: str, status: str, state: str, ends: bool
    ) -> None:
        place.boot(MACHINE)
        place.calls_file.unlink()
        place.state = state

        place.run(place.lib / "worker-ended.sh", EXIT_CODE=code, EXIT_STATUS=status)

        assert place.calls == (["poweroff"] if ends else [])


class TestAWorkerThatHasFailedForGood:
    def fail(self, place: Place, machine: Machine = MACHINE) -> None:
        place.boot(machine)
        place.calls_file.unlink()
        place.program("bin/journalctl", 'echo "the last of $*"\n')
        # The key and the content of what is stored.
        place.program("opt/bin/python", f'echo "$4 $(cat "$5")" >"{place.folder}/stored"\n')
        place.run(place.lib / "worker-failed.sh")

    def test_it_is_one_that_ends_again_and_again_or_whom_no_other_try_helps(
        self, place: Place
    ) -> None:
        place.boot(MACHINE)

        lines = (place.units / "adr-worker.service").read_text().splitlines()
        assert "OnFailure=adr-failed.service" in lines
        assert "StartLimitIntervalSec=3600" in lines
        assert "StartLimitBurst=20" in lines
        assert "RestartPreventExitStatus=2" in lines
        assert "lib/worker-failed.sh" in (place.units / "adr-failed.service").read_text()

    @pytest.mark.parametrize("status", ["1", "2"])
    def test_what_it_has_said_is_stored_and_the_machine_ends(
        self, place: Place, status: str
    ) -> None:
        place.status = status

        self.fail(place)

        key, _, said = (place.folder / "stored").read_text().strip().partition(" ")
        assert key == "_workers/setup/@INSTANCE@.log"
        assert said == "the last of -q -u adr-worker.service -n 100 --no-pager"
        assert place.calls == ["poweroff"]

    def test_while_the_machine_is_switched_off_nothing_is_said(self, place: Place) -> None:
        place.state = "stopping"

        self.fail(place)

        assert not (place.folder / "stored").exists()
        assert place.calls == []

    @pytest.mark.parametrize(("status", "again"), [("1", True), ("2", False)])
    def test_a_machine_to_keep_stays_and_goes_on_trying_what_may_help(
        self, place: Place, status: str, again: bool
    ) -> None:
        place.status = status

        self.fail(place, replace(MACHINE, worker=KEEP))

        assert (place.folder / "stored").exists()
        tried = ["reset-failed adr-worker.service", "start --no-block adr-worker.service"]
        assert place.calls == (tried if again else [])


class TestTheSetUp:
    def begun(self, place: Place, apt: str) -> subprocess.CompletedProcess[str]:
        """Run it on a system without Python, until it gives up."""
        place.boot(MACHINE)
        for name in ("id", "install", "python3.10", "python3.11", "python3.12", "python3.13"):
            place.program(f"bin/{name}", "[[ $0 != *python* ]]\n")
        place.program("bin/python3.14", "exit 1\n")
        place.program("bin/sleep", f'echo "$1" >>"{place.folder}/slept"\n')
        place.program("bin/apt-get", f'echo "$3" >>"{place.folder}/apt"\n{apt}\n')
        return place.run(place.lib / "setup.sh")

    def test_upgrades_of_libraries_do_not_restart_the_worker(self, place: Place) -> None:
        require(shutil.which("perl"), "perl is not installed")
        self.begun(place, "exit 0")

        # As needrestart reads it, and then asks for each unit.
        code = (
            "our %nrconf; eval do { local(@ARGV, $/) = shift; <> }; die $@ if $@;"
            "for my $unit ('adr-worker.service', 'cron.service') {"
            "  my ($re) = grep { $unit =~ /$_/ } keys %{$nrconf{override_rc}};"
            "  print $unit, ' ', defined $re ? $nrconf{override_rc}{$re} : 1, ';' }"
        )
        asked = ["perl", "-e", code, str(place.folder / "needrestart" / "conf.d" / "adr.conf")]
        done = subprocess.run(asked, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("adr-worker.service 0;cron.service 1;", "")

    def test_it_waits_until_another_apt_lets_the_lists_go(self, place: Place) -> None:
        tries = f'[ "$3" != update ] || [ $(grep -c update "{place.folder}/apt") -ge 10 ]'

        self.begun(place, tries)

        assert (place.folder / "apt").read_text().split() == ["update"] * 10 + ["-y"]
        assert (place.folder / "slept").read_text().split() == ["15"] * 9

    def test_it_does_not_wait_for_ever(self, place: Place) -> None:
        done = self.begun(place, "exit 100")

        assert done.returncode != 0
        assert (place.folder / "apt").read_text().split() == ["update"] * 10
        assert "apt-get -oDPkg::Lock::Timeout=300 -q update" in done.stdout


class TestTheEndOfTheSetUp:
    @pytest.mark.parametrize(
        ("result", "state", "ends"),
        [
            ("success", "starting", False),
            ("exit-code", "starting", True),
            ("signal", "running", True),
            ("signal", "stopping", False),
        ],
    )
    def test_the_machine_ends_where_it_failed(
        self, place: Place, result: str, state: str, ends: bool
    ) -> None:
        place.boot(MACHINE)
        place.calls_file.unlink()
        place.state = state

        place.run(place.lib / "setup-ended.sh", SERVICE_RESULT=result)

        assert place.calls == (["poweroff"] if ends else [])

    def test_the_log_is_stored_even_where_the_watch_has_ended_it(self, place: Place) -> None:
        place.boot(MACHINE)
        place.program("opt/bin/python", f'echo "$*" >"{place.folder}/stored"\n')
        place.state = "stopping"
        (place.run_folder / "adr-deadman").mkdir(parents=True)
        (place.run_folder / "adr-deadman" / "fired").touch()

        place.run(place.lib / "setup-ended.sh", SERVICE_RESULT="signal")

        stored = (place.folder / "stored").read_text().split()
        assert stored[1:] == ["report", RUNNER, "_workers/setup/@INSTANCE@.log", stored[-1]]


class TestTheStartOfTheWorker:
    def started(self, place: Place, machine: Machine, first: int) -> list[str]:
        place.boot(machine)
        place.program("opt/bin/python", "echo i-0abc\n")
        place.program("opt/bin/adr", f'printf "%s\\n" "$@" >"{place.folder}/words"\nexit 7\n')
        (place.run_folder / "adr-deadman").mkdir(parents=True)
        (place.run_folder / "adr-deadman" / "first").write_text(f"{first}\n")
        done = place.run(place.lib / "worker.sh")
        if not (place.folder / "words").exists():
            assert done.returncode == 0, done.stderr
            return []
        assert done.returncode == 7, done.stderr
        return (place.folder / "words").read_text().splitlines()

    def test_the_host_is_the_instance(self, place: Place) -> None:
        words = self.started(place, MACHINE, UPTIME)

        assert words[:3] == ["process", "--host=i-0abc", "--idle=10"]
        assert words[-1] == RUNNER

    def test_the_limit_counts_from_the_boot(self, place: Place) -> None:
        # given a machine that was switched on 1.5 hours ago and may run for 2
        two = replace(MACHINE, worker=WorkerOptions(max_hours=2))

        words = self.started(place, two, UPTIME - 5400)

        hours = next(word for word in words if word.startswith("--max-hours="))
        assert hours == "--max-hours=0.5000"

    def test_no_worker_is_started_after_the_limit(self, place: Place) -> None:
        two = replace(MACHINE, worker=WorkerOptions(max_hours=2))

        assert self.started(place, two, UPTIME - 7300) == []


class TestTheGuard:
    """In a network namespace of its own, whose only user stands for that of the jobs."""

    def rules(self, place: Place, steps: str, machine: Machine = MACHINE) -> str:
        require(shutil.which("ip"), "iproute2 is not installed")
        alone = ["unshare", "--net", "--user", "--map-root-user"]
        able = subprocess.run([*alone, "ip", "rule"], capture_output=True)
        require(able.returncode == 0, "network namespaces cannot be made")
        place.boot(machine)
        place.program("bin/id", "echo 0\n")
        script = place.folder / "steps"
        script.write_text(f"set -e\n{steps}\nip -details -4 rule show to 169.254.169.254\n")
        done = place.run("-c", f"exec {' '.join(alone)} bash {script} {place.lib}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_it_keeps_jobs_off_the_metadata_service(self, place: Place) -> None:
        [rule] = self.rules(place, "$1/guard.sh").splitlines()

        assert "uidrange 0-0" in rule
        assert "prohibit" in rule

    def test_the_rule_is_one_that_networkd_leaves_alone(self, place: Place) -> None:
        assert "proto kernel" in self.rules(place, "$1/guard.sh")

    def test_it_is_put_back_and_never_doubled(self, place: Place) -> None:
        once = self.rules(place, "$1/guard.sh")

        assert self.rules(place, "$1/guard.sh; $1/guard.sh") == once
        assert self.rules(place, "$1/guard.sh; ip -4 rule del pref 10; $1/guard.sh") == once

    def test_the_worker_does_not_start_without_it(self, place: Place) -> None:
        place.boot(MACHINE)
        place.program("bin/id", "echo 0\n")
        place.program("bin/ip", "echo Operation not permitted >&2; exit 2\n")

        done = place.run(place.lib / "worker-before.sh")

        assert done.returncode == 1
        assert done.stdout == (
            "adr: 169.254.169.254/32 cannot be kept from jobs: Operation not permitted\n"
        )

    def test_jobs_that_may_use_the_role_are_kept_off_nothing(self, place: Place) -> None:
        assert self.rules(place, "$1/guard.sh", replace(MACHINE, aws_for_jobs=True)) == ""

    @pytest.mark.parametrize("keep", [False, True])
    def test_it_is_looked_after_for_as_long_as_the_machine_is_on(
        self, place: Place, keep: bool
    ) -> None:
        place.boot(replace(MACHINE, worker=WorkerOptions(keep=keep)))

        wanted = (place.units / "adr-worker.service").read_text()
        assert "adr-guard.timer" in wanted
        assert "OnUnitInactiveSec=60" in (place.units / "adr-guard.timer").read_text()
        assert "lib/guard.sh" in (place.units / "adr-guard.service").read_text()


class TestTheWatch:
    def look(self, place: Place, machine: Machine = MACHINE) -> list[str]:
        if not place.lib.exists():
            place.boot(machine)
            place.calls_file.unlink()
        done = place.run(place.lib / "deadman.sh", place.run_folder)
        assert done.stderr == ""
        return place.calls

    def alive(self, place: Place, text: str) -> None:
        (place.run_folder / "adr" / "alive").write_text(text)

    def first(self, place: Place, ago_s: int) -> None:
        (place.run_folder / "adr-deadman" / "first").write_text(f"{UPTIME - ago_s}\n")

    def test_the_time_begins_at_the_first_look(self, place: Place) -> None:
        assert self.look(place) == []

        seen = (place.run_folder / "adr" / "alive").read_text()
        assert int(seen) == UPTIME
        assert self.look(place) == []

    def test_a_machine_whose_worker_is_silent_ends(self, place: Place) -> None:
        self.look(place)
        self.alive(place, f"{UPTIME - 3500}.12\n")
        assert self.look(place) == []

        self.alive(place, f"{UPTIME - 3700}.12\n")
        assert self.look(place) == ["poweroff"]

    def test_a_heartbeat_winds_it_up_again(self, place: Place) -> None:
        self.look(place)
        self.first(place, 100_000)
        self.alive(place, f"{UPTIME}.08")

        assert self.look(place) == []

    @pytest.mark.parametrize("text", ["", "nonsense\n", "-1\n"])
    def test_a_file_without_a_number_counts_as_the_one_before(
        self, place: Place, text: str
    ) -> None:
        self.look(place)
        self.alive(place, f"{UPTIME - 3000}\n")
        assert self.look(place) == []
        self.alive(place, text)
        assert self.look(place) == []

        values = place.lib / "values"
        values.write_text(values.read_text().replace("SILENCE_S=3600", "SILENCE_S=2900"))
        assert self.look(place) == ["poweroff"]

    def test_a_file_that_was_removed_does_not_help(self, place: Place) -> None:
        self.look(place)
        self.first(place, 4000)
        (place.run_folder / "adr" / "alive").unlink()
        (place.run_folder / "adr-deadman" / "seen").unlink()

        assert self.look(place) == ["poweroff"]

    def test_the_limit_ends_a_machine_whose_worker_has_not(self, place: Place) -> None:
        two = replace(MACHINE, worker=WorkerOptions(max_hours=2))
        self.look(place, two)
        # given a worker that is well, and has been told to be gone by now
        self.alive(place, f"{UPTIME}\n")
        self.first(place, 7300)
        assert self.look(place) == []

        self.first(place, 7200 + 181)
        assert self.look(place) == ["poweroff"]

    def test_without_a_limit_it_may_run_for_ever(self, place: Place) -> None:
        self.look(place)
        self.first(place, 10_000_000)
        self.alive(place, f"{UPTIME}\n")

        assert self.look(place) == []

    def test_where_nothing_can_be_written_it_counts_from_the_boot(self, place: Place) -> None:
        place.boot(replace(MACHINE, silence_s=-1))
        place.calls_file.unlink()
        place.run_folder.write_text("no folder")

        place.run(place.lib / "deadman.sh", place.run_folder)

        assert place.calls == ["poweroff"]

    def test_where_systemd_does_not_answer_the_machine_ends_all_the_same(
        self, place: Place
    ) -> None:
        self.look(place)
        self.alive(place, "0\n")
        place.failing = "poweroff"
        self.first(place, UPTIME)
        values = place.lib / "values"
        values.write_text(values.read_text().replace("SILENCE_S=3600", "SILENCE_S=-1"))

        assert self.look(place) == ["poweroff", "poweroff --force --force"]

    def test_who_logs_in_can_wind_up_a_machine_to_prepare(self, place: Place) -> None:
        self.look(place, replace(MACHINE, prepare=True))

        folder = place.run_folder / "adr"
        assert folder.stat().st_mode & 0o777 == 0o777
        assert (folder / "alive").stat().st_mode & 0o666 == 0o666

    def test_a_machine_to_prepare_ends_when_its_worker_has_left(self, place: Place) -> None:
        prepared = replace(MACHINE, prepare=True)
        assert self.look(place, prepared) == []
        (place.run_folder / "adr" / "left").touch()

        assert self.look(place, prepared) == ["poweroff"]

    def test_the_others_end_by_themselves(self, place: Place) -> None:
        assert self.look(place) == []
        (place.run_folder / "adr" / "left").touch()

        assert self.look(place) == []

    def test_nobody_else_can_wind_up_the_others(self, place: Place) -> None:
        self.look(place)

        folder = place.run_folder / "adr"
        assert not folder.stat().st_mode & 0o022
        assert not (folder / "alive").stat().st_mode & 0o022


def script_module(name: str) -> ModuleType:
    path = Path(fleets.__file__).parent / "machine" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"machine_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


volumes = script_module("volumes")
store = script_module("store")


def identified(name: str, model: str = "Amazon Elastic Block Store") -> bytes:
    """Return the identify data of an NVMe device."""
    data = bytearray(4096)
    data[24:64] = model.encode().ljust(40)
    data[3072:3104] = name.encode().ljust(32)
    return bytes(data)


class TestVolumes:
    @pytest.fixture
    def devices(self, tmp_path: Path) -> dict[str, bytes]:
        found = {
            "nvme0n1": identified("/dev/xvda"),
            "nvme1n1": identified("sdg"),
            "nvme2n1": identified("/dev/sdf"),
            "nvme3n1": identified("sdf", "Amazon EC2 NVMe Instance Storage"),
        }
        for name in found:
            (tmp_path / name).touch()
        return found

    @pytest.mark.parametrize(
        ("asked", "found"),
        [
            ("/dev/sdf", "nvme2n1"),
            ("/dev/sdg", "nvme1n1"),
            ("/dev/xvdg", "nvme1n1"),
            ("/dev/sda", "nvme0n1"),
            ("/dev/sdh", None),
        ],
    )
    def test_the_device_is_the_one_that_holds_the_name(
        self, devices: dict[str, bytes], tmp_path: Path, asked: str, found: str | None
    ) -> None:
        device = volumes.find(asked, tmp_path, lambda path: devices[path.name])

        assert (device and device.name) == found

    def test_a_device_that_does_not_answer_is_none(
        self, devices: dict[str, bytes], tmp_path: Path
    ) -> None:
        def answer(path: Path) -> bytes:
            if path.name == "nvme0n1":
                raise OSError(25, "Inappropriate ioctl for device")
            return devices[path.name]

        assert volumes.find("/dev/sdf", tmp_path, answer).name == "nvme2n1"
        with pytest.raises(OSError, match="ioctl"):
            volumes.identify(tmp_path / "nvme0n1")

    @pytest.mark.parametrize(
        ("disk", "partition"), [("sdf", "sdf"), ("sdf", "sdf1"), ("nvme1n1", "nvme1n1p1")]
    )
    def test_the_filesystem_is_on_the_device_or_its_first_partition(
        self, tmp_path: Path, disk: str, partition: str
    ) -> None:
        require(shutil.which("blkid"), "blkid is not installed")
        (tmp_path / disk).write_bytes(bytes(1 << 20))
        # given a volume descriptor of ISO 9660, for want of a simpler filesystem
        image = bytearray(1 << 20)
        image[32768:32775] = b"\1CD001\1"
        (tmp_path / partition).write_bytes(image)

        source, kind = volumes.filesystem(tmp_path / disk)

        assert (source, kind) == (str(tmp_path / partition), "iso9660")

    def test_a_volume_without_a_filesystem_is_refused_in_a_sentence(self, tmp_path: Path) -> None:
        require(shutil.which("blkid"), "blkid is not installed")
        (tmp_path / "sdf").write_bytes(bytes(1 << 20))

        with pytest.raises(SystemExit, match=r"sdf has no filesystem, neither itself nor on its"):
            volumes.filesystem(tmp_path / "sdf")


class TestTheStore:
    class Bucket:
        """A client of S3 that answers with one body."""

        def get_object(self, **_: str) -> dict[str, Any]:
            return {"Body": type("Body", (), {"read": lambda self: b"content"})()}

    @pytest.fixture(autouse=True)
    def bucket(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store, "patiently", lambda within_s, call: call(self.Bucket()))

    def test_what_is_fetched_has_the_digest_that_was_asked_for(self, tmp_path: Path) -> None:
        sha256 = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
        store.main("fetch", "bucket", "key", str(tmp_path / "file"), sha256)

        assert (tmp_path / "file").read_bytes() == b"content"

    def test_what_was_changed_is_not_even_written(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"key was changed: its SHA-256 is ed7002b4"):
            store.main("fetch", "bucket", "key", str(tmp_path / "file"), "ab" * 32)

        assert list(tmp_path.iterdir()) == []

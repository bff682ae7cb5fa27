"""EPANET over all networks that wntr ships gives with adr what it gives in a plain loop.

The networks are those of wntr's library and of wntr's own tests, 39 in version 1.5; all of them
are used, none is left out. Four give no pressures: three have an error on purpose (a section
that does not exist, a time that is none, a pipe to a node that is not there), and cv_controls
has no junction, which EPANET refuses. A job takes half a second, most of it the import of
wntr; the longest (Net6_plus) takes nine. The jobs go without matplotlib, networkx and SciPy, which
wntr imports but does not need to run EPANET: to import them takes four times as long as all the
rest. The plain loop has them.
"""

import contextlib
import importlib.util
import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.servers import require

ROOT = Path(__file__).parents[2]
BAD_ON_PURPOSE = {"bad_syntax", "bad_times", "bad_values", "cv_controls"}

#: Whatever is imported from these packages can be called and inherited from, and does nothing.
WITHOUT_UNUSED = """\
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

class Anything(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

class Nothing(UserWarning, metaclass=Anything):
    pass

class Unused(ModuleType):
    __path__ = ()
    def __getattr__(self, name):
        return getattr(Nothing, name)

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("matplotlib", "networkx", "scipy"):
            return ModuleSpec(name, Finder, is_package=True)
    @staticmethod
    def create_module(spec):
        return Unused(spec.name)
    @staticmethod
    def exec_module(module):
        pass

sys.meta_path.insert(0, Finder)
"""

pytestmark = pytest.mark.timeout(900)


class Loop(NamedTuple):
    """What a plain loop over the networks gives, by the names of the networks."""

    tables: dict[str, bytes]
    complaints: dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold the networks and the script that runs one of them."""
    found = importlib.util.find_spec("wntr")
    require(found, "wntr is not installed (tox -e epanet installs it)")
    wntr = Path(found.origin).parent
    folder = tmp_path_factory.mktemp("networks")
    for source in ("library/networks", "tests/networks_for_testing"):
        networks = sorted((wntr / source).glob("*.inp"))
        assert networks, f"wntr ships no networks in {source}"
        for network in networks:
            shutil.copy(network, folder)
    shutil.copy(ROOT / "examples" / "epanet" / "pressures.py", folder)
    return folder


@pytest.fixture(scope="module")
def loop(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """Run the script on one network after the other."""
    spec = importlib.util.spec_from_file_location("pressures", folder / "pressures.py")
    pressures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pressures)
    tables, complaints = {}, {}
    here = tmp_path_factory.mktemp("loop")
    for network in sorted(folder.glob("*.inp")):
        shutil.copy(network, here)
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
            patch.chdir(here)
            code = pressures.main([network.name])
        if code == 0:
            tables[network.stem] = (here / f"{network.stem}.csv").read_bytes()
        else:
            complaints[network.stem] = said.getvalue()
    assert set(complaints) >= BAD_ON_PURPOSE
    assert len(tables) >= 30
    return Loop(tables, complaints)


@pytest.fixture(autouse=True)
def without_unused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loop: Loop) -> None:
    """Spare the jobs the import of what they do not use."""
    place = tmp_path / "packages"
    place.mkdir()
    (place / "sitecustomize.py").write_text(WITHOUT_UNUSED)
    monkeypatch.setenv("PYTHONPATH", str(place))


def adr(*arguments: str, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "adr", *arguments], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == expect, done.stderr
    return done


def job_options(folder: Path) -> list[str]:
    command = f"{shlex.quote(sys.executable)} pressures.py {{}}"
    networks = sorted(path.name for path in folder.glob("*.inp"))
    return [f"--command={command}", r"--store=\.csv$", "--root=.", *networks]


def tables(folder: Path) -> dict[str, bytes]:
    """Read what lies in the folder of each job, which must be its one table."""
    found = {}
    for path in folder.glob("[!.]*/*"):
        assert path.name == f"{path.parent.name}.csv"
        found[path.parent.name] = path.read_bytes()
    return found


def compare(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Fail with the names of the tables that differ; the tables themselves are long."""
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_adr_run_gives_the_pressures_of_a_plain_loop(folder, loop, tmp_path):
    # when all networks are run on this machine
    results = tmp_path / "results"
    done = adr("run", f"--to={results}", *job_options(folder), cwd=folder, expect=1)

    # then the tables are those of the loop, to the byte
    compare(tables(results), loop.tables)
    # and of each network without one, adr says what the script said
    for network, complaint in loop.complaints.items():
        assert network in done.stderr
        assert all(line.strip() in done.stderr for line in complaint.splitlines())


def test_two_workers_over_sqs_and_s3_give_the_pressures_of_a_plain_loop(
    folder, loop, aws_env, tmp_path
):
    # given a runner with all networks queued
    runner = adr("create", cwd=tmp_path).stdout.strip()
    batch = adr("queue", f"--runner={runner}", *job_options(folder), cwd=folder).stdout.strip()

    # when two workers process them until none is left
    workers = []
    for name in ("first", "second"):
        place = tmp_path / name
        place.mkdir()
        command = ["process", "--slots=1", "--stop-on-empty", f"--workingdir={place}", runner]
        with (tmp_path / f"{name}.log").open("wb") as log:
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "adr", *command], cwd=place, stdout=log, stderr=log
                )
            )
    try:
        assert [worker.wait(240) for worker in workers] == [0, 0], logs(tmp_path)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()

    # then each network is decided once, by either worker
    status = json.loads(
        adr("status", f"--runner={runner}", "--json", "--jobs", cwd=tmp_path).stdout
    )
    counts = {name: count for name, count in status["totals"].items() if count}
    assert counts == {
        "jobs": len(loop.tables) + len(loop.complaints),
        "succeeded": len(loop.tables),
        "failed": len(loop.complaints),
    }
    assert len({job["worker"] for job in status["jobs"]}) == 2
    # and the bad ones say why
    failed = {job["label"]: job for job in status["jobs"] if job["state"] == "failed"}
    assert {label: job["tail"] for label, job in failed.items()} == loop.complaints
    assert {job["exit_code"] for job in failed.values()} == {1}
    # and the tables are those of the loop, to the byte
    adr("download", f"--runner={runner}", str(tmp_path / "results"), cwd=tmp_path)
    compare(tables(tmp_path / "results" / batch), loop.tables)


def logs(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.glob("*.log"))

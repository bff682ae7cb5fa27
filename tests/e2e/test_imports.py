"""Who imports what: at run time, since it costs a user's time, and in the source by design."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

import adr
from adr import console
from tests.e2e.conftest import WITHOUT_BOTO

PACKAGE = Path(adr.__file__).parent
DOCS = PACKAGE.parent / "docs" / "commands"
COMMANDS = [name.removeprefix("adr_") for name in console.__all__ if name.startswith("adr_")]
COMMANDS.remove("console")

#: From the top: a module imports from its own layer and from those below.
LAYERS = (
    ("__main__",),
    ("console",),
    ("commands", "commands.*"),
    ("commands.base",),
    ("commands.logs",),
    ("current",),
    (
        "options",
        "output",
        "controloutput",
        "joboutput",
        "hostoutput",
        "progressbar",
        "screen",
        "helptexts",
    ),
    ("adr", "__init__"),
    (
        *("control", "hosts", "instances", "jobs", "lifecycle", "resources", "results"),
        *("retrying", "waiting"),
    ),
    ("destruction", "embedded", "following", "preparing"),
    ("launching", "launchoptions"),
    ("inventory",),
    ("worker", "worker.*"),
    ("history", "publish", "queueing", "sending", "survey"),
    ("advice", "choosing", "missing"),
    ("views",),
    ("runner",),
    ("fabfile", "fleets.*"),
    (
        "batch",
        "bundle",
        "entries",
        "inputfiles",
        "joblimits",
        "manifest",
        "members",
        "templates",
        "transfer",
    ),
    ("arrivals", "zipwriter", "ziptable"),
    ("access", "role"),
    ("ledgers.*", "stores.*", "aws", "remote", "logins", "hostkeys", "roster", "orders", "wheel"),
    ("ledgers.base", "stores.base", "fleets.base", "ledgers", "stores", "fleets", "fleets.ec2"),
    ("objectcache", "awserrors"),
    ("fleets.specs",),
    ("config", "awsfiles", "credentials", "privatefiles", "wizard"),
    ("likeness",),
    ("decisions", "jobtext", "workerinfo"),
    ("models", "keys"),
    ("times",),
    ("documents",),
    ("errors", "progress", "clock", "cores", "version"),
)
#: What a backend may import beside its own parts.
FOR_BACKENDS = {
    "ledgers.base",
    "stores.base",
    "documents",
    "decisions",
    "jobtext",
    "models",
    "times",
    "errors",
    "keys",
    "clock",
    "roster",
    "objectcache",
    "aws",
    "remote",
}
#: The backends, each with the parts that are its own.
BACKENDS = {
    "ledgers.aws": {
        "ledgers.sqs",
        "ledgers.journal",
        "ledgers.cards",
        "ledgers.deadletters",
        "ledgers.holds",
        "ledgers.packed",
        "ledgers.pasts",
        "ledgers.settled",
    },
    "ledgers.sqlite": {"ledgers.database"},
    "stores.s3": {"stores.files", "stores.s3parts", "stores.s3wire"},
    "stores.directory": {"stores.files"},
}
#: What a fleet may import beside its own parts.
FOR_FLEETS = {
    "fleets.base",
    "fleets.specs",
    "stores.base",
    "models",
    "errors",
    "keys",
    "progress",
    "version",
}
#: What those may import as well that reach machines elsewhere.
FOR_MACHINES = FOR_FLEETS | {
    *("access", "aws", "clock", "orders"),
    *("fleets.pipoptions", "hostkeys", "remote", "wheel"),
}
#: The fleets, each with the parts that are its own, and what it may import.
FLEETS = {
    "fleets.local": ({"fleets.processes"}, FOR_FLEETS | {"cores"}),
    "fleets.ssh": ({"fleets.sshhost"}, FOR_MACHINES),
    "fleets.ec2.fleet": (
        {
            "fleets.ec2.groups",
            "fleets.ec2.images",
            "fleets.ec2.instances",
            "fleets.ec2.launch",
            "fleets.ec2.launchnotes",
            "fleets.ec2.leftovers",
            "fleets.ec2.orphans",
            "fleets.ec2.plan",
            "fleets.ec2.prices",
            "fleets.ec2.refusals",
            "fleets.ec2.requests",
            "fleets.ec2.sending",
            "fleets.ec2.sizes",
            "fleets.ec2.userdata",
            "fleets.ec2.words",
        },
        FOR_MACHINES,
    ),
}


#: What most commands do without, and takes 2 ms or more each; the ratios that are promised for
#: ``adr --help`` and ``adr status`` are 6 and 15 times the 10 ms of Python itself.
SLOW = {
    *("boto3", "botocore", "fabric", "paramiko", "pathspec", "rich"),
    *("_hashlib", "asyncio", "ctypes", "email", "http.client", "lzma", "secrets", "shutil"),
    *("socket", "ssl", "subprocess", "tempfile", "urllib.request", "uuid", "zipfile"),
}
SLOW_FOR_HELP = {"dataclasses", "inspect", "json", "logging", "pathlib", "platformdirs", "sqlite3"}


# At run time


def loaded_by(*words: str) -> set[str]:
    """Run a command to its end, and return the modules that Python has imported only for it."""
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from adr.console import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(*(set(sys.modules) - before), file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_help_imports_next_to_nothing():
    loaded = loaded_by("--help")

    assert {name for name in loaded if name.startswith("adr.")} == {
        *("adr.adr", "adr.console", "adr.errors", "adr.helptexts", "adr.options", "adr.output"),
        "adr.version",
    }
    assert loaded & (SLOW | SLOW_FOR_HELP) == set()
    assert len(loaded) <= 50, "39 when this was written"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_nothing_that_takes_time(command):
    loaded = loaded_by(command, "--help")

    assert "adr.commands.base" in loaded
    assert loaded & (SLOW | {"json", "pathlib", "platformdirs", "sqlite3"}) == set()
    assert loaded & {"adr.config", "adr.runner"} == set()


def test_status_imports_what_it_calls(tmp_path, monkeypatch):
    monkeypatch.setenv("ADR_CONFIG", str(tmp_path / "none.json"))
    runner = adr.create(local=True, directory=tmp_path / "runner")

    loaded = loaded_by("status", f"--runner={runner}")

    assert {"adr.results", "adr.ledgers.sqlite"} <= loaded
    assert loaded & SLOW == set()
    others = {"adr.batch", "adr.config", "adr.fleets", "adr.hosts", "adr.transfer", "adr.worker"}
    assert loaded & others == set()
    assert len(loaded) <= 150, "121 when this was written"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_help_and_a_page(command):
    function = getattr(console, f"adr_{command}")
    done = subprocess.run(
        [sys.executable, "-m", "adr", command, "--help"], capture_output=True, text=True
    )

    assert done.returncode == 0
    assert done.stdout.strip() == function.__doc__.strip()
    page = (DOCS / f"{command}.rst").read_text("utf-8")
    assert page.startswith(f"adr {command}\n")
    assert f".. adr-help:: {command}\n" in page
    assert f"adr {command} " in console.adr_console.__doc__


def test_a_run_never_imports_boto3(shell):
    shell.start = WITHOUT_BOTO
    shell.write({"a.txt": "a"})

    shell("run", "--to=out", "--command=cp {} copy", "a.txt")

    assert shell.tree("out") == {"a/copy": "a"}


def test_what_has_to_do_with_aws_would_be_noticed(shell, aws_env):
    shell.start = WITHOUT_BOTO
    assert "boto3" in shell("create", status=1).err


def test_destroying_a_local_runner_asks_nothing_of_aws_even_where_there_is_one(shell, aws_env):
    shell.start = WITHOUT_BOTO
    runner = shell("create", "--local").out.strip()

    done = shell("destroy", "--yes", "--purge")

    assert done.err.splitlines()[0] == f"destroyed runner {runner}"


def test_workers_on_this_machine_are_launched_without_boto3(shell, aws_env):
    shell.start = WITHOUT_BOTO
    shell("create", "--local")

    assert shell("launch").lines == ["local-1"]
    shell("stop")
    assert shell("destroy", "--yes", "--purge").status == 0


def test_runners_are_listed_without_boto3_where_nothing_speaks_of_aws(shell):
    shell.start = WITHOUT_BOTO
    runner = shell("create", "--local").out.strip()

    assert shell("list").lines == [f"* {runner}  0 waiting, 0 running"]


# In the source


@cache
def trees() -> dict[str, ast.Module]:
    """Return the syntax tree of every module, by its dotted name within the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[:2] == ("fleets", "machine"):
            # Scripts that are sent to new hosts; nothing here imports them.
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = ast.parse(path.read_text("utf-8"))
    return found


def at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, but not into what is there for type checkers only."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from at_run_time(child)


def imported(tree: ast.Module) -> set[str]:
    """Return the dotted names of the modules that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in at_run_time(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}".removeprefix("adr.") in trees()
                else str(node.module)
                for alias in node.names
            }
    return names


def within(tree: ast.Module) -> set[str]:
    """Return the modules of the package that a module imports."""
    return {name.removeprefix("adr.") for name in imported(tree) if name.startswith("adr.")}


def layer(module: str) -> int:
    # The last one counts: a base is named after the pattern that holds it as well.
    found = [
        n for n, names in enumerate(LAYERS) if any(fnmatchcase(module, each) for each in names)
    ]
    assert found, f"{module} has no layer yet"
    return found[-1]


def calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_the_source_is_found():
    assert {"adr", "console", "ledgers.aws", "worker.loop", "worker"} <= set(trees())
    assert within(trees()["console"]) >= {"output", "errors", "options", "helptexts"}
    assert within(trees()["commands.runners"]) >= {"adr", "config", "current", "hostoutput"}


def test_imports_point_downward_only():
    upward = {
        f"{module} imports {other}"
        for module, tree in trees().items()
        for other in within(tree)
        if layer(other) < layer(module)
    }
    assert upward == set()


def test_imports_go_round_in_no_circle():
    graph = {module: within(tree) & set(trees()) for module, tree in trees().items()}
    while ends := {module for module, others in graph.items() if not others}:
        graph = {module: others - ends for module, others in graph.items() if module not in ends}
    assert graph == {}


def test_backends_know_only_what_is_theirs():
    parts = {part for own in BACKENDS.values() for part in own}
    modules = {name for name in trees() if name.startswith(("ledgers.", "stores."))}
    assert modules == {*BACKENDS, *parts, "ledgers.base", "stores.base"}
    for backend, own in BACKENDS.items():
        for module in (backend, *own):
            assert within(trees()[module]) <= FOR_BACKENDS | own, module
    for module in ("ledgers.sqlite", "stores.directory", "stores.files"):
        assert "aws" not in within(trees()[module]), module


def test_fleets_know_only_what_is_theirs():
    parts = {part for own, _ in FLEETS.values() for part in own}
    modules = {name for name in trees() if name.startswith("fleets.")}
    shared = {"fleets.base", "fleets.specs", "fleets.pipoptions", "fleets.ec2"}
    assert modules == {*FLEETS, *parts, *shared}
    for fleet, (own, others) in FLEETS.items():
        for module in (fleet, *own):
            assert within(trees()[module]) <= own | others, module


def test_launching_knows_no_fleet():
    for module in ("launching", "inventory", "preparing", "destruction", "launchoptions"):
        known = {name for name in within(trees()[module]) if name.startswith("fleets.")}
        assert known <= {"fleets.base", "fleets.specs"}, module


def test_only_one_module_makes_clients_of_boto3():
    for module, tree in trees().items():
        makes = [
            call
            for call in calls(tree)
            if call.startswith("boto3.") or call.endswith((".client", ".resource"))
        ]
        if module == "aws":
            assert makes
        else:
            assert "boto3" not in imported(tree), module
            assert makes == [], module


def test_only_the_console_and_the_wizard_speak_to_people():
    speaking = {
        module
        for module, tree in trees().items()
        if any(
            call == "print" or call.startswith(("sys.stdout", "sys.stderr")) for call in calls(tree)
        )
    }
    speaking = {name for name in speaking if not name.startswith("commands.")}
    shown = {"console", "output", "hostoutput", "progressbar", "screen"}
    assert speaking == shown | {"wizard", "fabfile"}


def test_no_module_takes_the_place_of_a_function():
    assert {name.partition(".")[0] for name in trees()} & set(adr.__all__) == set()

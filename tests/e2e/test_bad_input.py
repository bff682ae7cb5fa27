"""Bad input gets one clear sentence and the right exit status, and nothing is left half-done."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from pathlib import Path

import pytest

from adr.orders import order_destruction
from adr.runner import open_runner

UNKNOWN = "0b3f7d1e-4c55-4a39-9f0e-2d5a8c1b7e66"
QUEUE = ["queue", "--command=true"]
RUN = ["run", "--to=out", "--command=true"]
#: One of each command that needs a runner.
ON_A_RUNNER = {
    "queue": [*QUEUE, "a.txt"],
    "process": ["process"],
    "status": ["status"],
    "logs": ["logs", "a"],
    "download": ["download", "d"],
    "destroy": ["destroy", "--yes"],
}
CHANGES = re.compile(r"\.(Put|Create|Send|Delete|Change|Upload|Copy|Set|Complete)")


@pytest.fixture
def shell(shell):
    """Lay out what the commands are tried on; each runs in this process."""
    shell.inside = True
    shell.write({"a.txt": "a", "sub/b.txt": "b", "empty": ""})
    (shell.folder / "dangling").symlink_to("nothing")
    os.mkfifo(shell.folder / "pipe")
    return shell


@pytest.fixture
def local(shell, tmp_path):
    """Make a local runner the current one; returns its folder."""
    return Path(shell("create", "--local", f"--dir={tmp_path / 'runner'}").out.strip())


def everything(shell):
    """Return all that there is: names, kinds and contents, of runners and settings as well."""
    tops = (shell.folder.parent, Path(os.environ["HOME"]))
    found = {}
    for path in (each for top in tops for each in top.rglob("*")):
        kind = path.lstat().st_mode
        # SQLite rewrites and removes its side files whenever it likes.
        if "ledger.db" not in path.name:
            found[path] = path.read_bytes() if stat.S_ISREG(kind) else stat.S_IFMT(kind)
    return found


def refused(shell, *words, status=2, **how):
    """Run what has to be refused, without an effect; return the sentence."""
    before = everything(shell)
    done = shell(*words, status=status, **how)
    assert everything(shell) == before
    assert done.out == ""
    [sentence] = done.err.splitlines()
    assert sentence.startswith("adr: ")
    assert "Error" not in sentence
    return sentence.removeprefix("adr: ")


@pytest.mark.parametrize("command", [RUN, QUEUE], ids=["run", "queue"])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["none.txt"], "no such file: none.txt"),
        (["a.txt", "none.txt"], "no such file: none.txt"),
        (["dangling"], "no such file: dangling"),
        (["a.txt/x"], "no such file: a.txt/x"),
        (["a" * 300], f"cannot read {'a' * 300}: File name too long"),
        (["sub"], "sub is a folder, not an input file: name the files in it"),
        (["pipe"], "pipe is no regular file: it cannot be an input"),
        (["/dev/null"], "/dev/null is no regular file: it cannot be an input"),
        ([], "no input files are given: name them, or list them with --files-from=FILE"),
        (
            ["--files-from=empty"],
            "no input files are given: name them, or list them with --files-from=FILE",
        ),
        (
            ["--files-from=none"],
            "--files-from=none cannot be read: No such file or directory",
        ),
        (["--files-from=sub"], "--files-from=sub cannot be read: Is a directory"),
        (
            ["--store=(", "a.txt"],
            "the store pattern '(' is no regular expression: "
            "missing ), unterminated subpattern at position 0",
        ),
        (
            ["--root=sub", "a.txt"],
            "FOLDER/a.txt lies outside the root FOLDER/sub: choose a root that holds it",
        ),
        (["--root=a.txt", "a.txt"], "the root a.txt is no folder: name one that holds the files"),
        (["--root=none", "a.txt"], "the root none is no folder: name one that holds the files"),
        (
            ["/etc/passwd", "a.txt"],
            "the files have no folder in common but /, which would be bundled whole: queue them "
            "apart, or copy them into one folder",
        ),
        (["--timeout=0", "a.txt"], "--timeout takes a number of seconds above 0, not '0'"),
        (["--attempts=0", "a.txt"], "--attempts takes a whole number from 1 up, not '0'"),
        (["--env=a b", "a.txt"], "--env takes NAME=VALUE or NAME, not 'a b'"),
        (
            ["--comm=x", "a.txt"],
            "there is no option --comm: did you mean --command? see adr COMMAND --help",
        ),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, list) else "",
)
def test_what_cannot_be_queued_is_refused(shell, local, command, words, sentence):
    sentence = sentence.replace("FOLDER", str(shell.folder)).replace("COMMAND", command[0])
    assert refused(shell, *command, *words) == sentence


@pytest.mark.parametrize("words", [["run", "--to=out"], ["queue"]], ids=["run", "queue"])
def test_without_a_command_nothing_is_queued(shell, local, words):
    assert refused(shell, *words, "a.txt") == (
        "no command: say with --command what to run on each file"
    )
    assert refused(shell, *words, "--command= ", "a.txt") == (
        "no command: say with --command what to run on each file"
    )


@pytest.mark.parametrize("command", [RUN, QUEUE], ids=["run", "queue"])
def test_too_large_a_root_is_refused_where_nobody_can_be_asked(shell, local, command):
    with (shell.folder / "large.bin").open("wb") as file:
        file.truncate((1 << 30) + 1)

    before = sorted(shell.folder.rglob("*"))
    said = shell(*command, "a.txt", status=2).err
    assert said == (
        f"adr: the root {shell.folder} has 1.0 GiB to bundle: choose a smaller --root, or "
        f"confirm with --yes\n"
    )
    assert sorted(shell.folder.rglob("*")) == before


@pytest.mark.parametrize("target", ["a.txt", "a.txt/below", "/proc/adr", "/dev/null"])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "--command=true", "--to={}", "a.txt"], "cannot write results to"),
        (["download", "{}"], "cannot download to"),
        (["process", "--workingdir={}"], "cannot work in"),
        (["create", "--local", "--dir={}"], ""),
    ],
    ids=["run", "download", "process", "create"],
)
def test_an_unwritable_target_is_refused(shell, local, words, sentence, target):
    said = refused(shell, *(word.format(target) for word in words))

    assert said.startswith(sentence)
    assert target in said


def test_a_target_of_another_runner_or_with_files_is_refused_for_a_new_one(shell, local):
    assert refused(shell, "create", "--local", f"--dir={local}") == (
        f"there is a runner in {local} already: use it, or choose another --dir"
    )
    assert refused(shell, "create", "--local", "--dir=sub") == (
        f"{shell.folder}/sub is not an empty directory: choose another --dir"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["logs", "none"], "there is no job 'none': adr status --jobs shows all"),
        (["status", "--batch=b"], "there is no batch b: adr status shows those there are"),
        (["download", "d", "--batch=b"], "there is no batch b: adr status shows those there are"),
        (
            ["destroy", "--yes", "--batch=b"],
            "there is no batch b: adr status shows those there are",
        ),
        (
            ["download", "d", "--job=none"],
            "no job is named like 'none': adr status --jobs shows all",
        ),
        (
            ["download", "d", "--match=("],
            "--match='(' is no regular expression: "
            "missing ), unterminated subpattern at position 0",
        ),
        (["process", "--slots=0"], "--slots takes a whole number from 1 up, not '0'"),
        ([*RUN, "--slots=0", "a.txt"], "--slots takes a whole number from 1 up, not '0'"),
        ([*RUN, "--slots=-1", "a.txt"], "--slots takes a whole number from 1 up, not '-1'"),
        (
            ["destroy"],
            "not destroyed runner RUNNER, as there is no terminal to ask on: confirm with --yes",
        ),
        (["frob"], "there is no command 'frob'; see adr --help"),
        (["statsu"], "there is no command 'statsu': did you mean status? see adr --help"),
        ([], "no command is given; see adr --help"),
        (["status", "--json=1"], "--json takes no value; see adr status --help"),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, list) else "",
)
def test_what_is_not_there_or_not_understood_is_refused(shell, local, words, sentence):
    assert refused(shell, *words) == sentence.replace("RUNNER", str(local))


@pytest.mark.parametrize("words", ON_A_RUNNER.values(), ids=ON_A_RUNNER)
def test_what_is_no_runner_is_refused(shell, local, words):
    assert refused(shell, *words, "--runner=sub") == (
        "'sub' is no runner: give the UUID4 that adr create printed, or the directory of a local "
        "runner"
    )
    assert refused(shell, *words, "--runner=no/where") == (
        "there is no runner at no/where: adr list shows those there are"
    )


@pytest.mark.parametrize("words", ON_A_RUNNER.values(), ids=ON_A_RUNNER)
def test_without_a_runner_the_way_to_one_is_told(shell, words):
    assert refused(shell, *words) == (
        "there is no current runner: make one with adr create, choose one with adr set, or name "
        "one with --runner=ID"
    )


def test_a_runner_of_a_newer_adr_is_refused(shell, local):
    (local / "runner.json").write_text('{"schema": 99}')
    said = refused(shell, "status", status=1)
    assert said.startswith(f"the runner in {local} ")

    (local / "runner.json").write_text("nonsense")
    assert refused(shell, "status", status=1) == (
        f'{local}/runner.json is broken: write {{"schema": 1}} into it'
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        *(
            (["create", "--local"], text)
            for text in ("{", "[]", '{"runner": 3}', '{"aws": 7}', "\xff")
        ),
        (["run", "--to=out", "a.txt"], "{"),
        (["create"], "{"),
        (["list"], "{"),
        *((words, "{") for words in ON_A_RUNNER.values()),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_broken_configuration_file_is_named(shell, words, text):
    settings = Path(os.environ["ADR_CONFIG"])
    settings.write_text(text, "latin-1")

    said = refused(shell, *words)

    assert said.startswith(f"the configuration file {settings} is broken (")
    assert said.endswith("): mend it, or remove it and run 'adr config'")


def test_no_runner_is_made_that_cannot_become_the_current_one(shell, monkeypatch):
    monkeypatch.setenv("ADR_CONFIG", "/proc/adr/config.json")
    runners = Path(os.environ["XDG_DATA_HOME"], "adr", "runners")

    failed = shell("create", "--local", status=2)

    assert failed.out == ""
    assert "or name another one in ADR_CONFIG" in failed.err
    assert list(runners.iterdir()) == []


# AWS


@pytest.mark.parametrize("words", ON_A_RUNNER.values(), ids=ON_A_RUNNER)
def test_a_runner_that_was_never_made_is_refused(shell, proxy, words):
    said = refused(shell, *words, f"--runner={UNKNOWN}")

    assert f"runner {UNKNOWN}" in said
    assert said.endswith("adr list shows those there are")
    done = {name for name, _ in proxy.calls if CHANGES.search(name)}
    # The tombstone comes first, and there was no bucket to hold it.
    assert done <= ({"s3.PutObject"} if words[0] == "destroy" else set())


@pytest.fixture
def on_aws(shell):
    """Make a runner that AWS is said to have the current one, without asking AWS."""
    Path(os.environ["ADR_CONFIG"]).write_text(json.dumps({"runner": UNKNOWN}))
    return shell


@pytest.mark.parametrize("words", [["create"], *ON_A_RUNNER.values()], ids=["create", *ON_A_RUNNER])
def test_without_credentials_the_way_to_them_is_told(on_aws, proxy, monkeypatch, words):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    said = refused(on_aws, *words, status=1)

    assert said.endswith(
        "there are no AWS credentials: run adr config, or set AWS_PROFILE or AWS_ACCESS_KEY_ID "
        "and AWS_SECRET_ACCESS_KEY"
    )
    assert proxy.total == 0


@pytest.mark.parametrize(
    "words", [["create"], ["list"], *ON_A_RUNNER.values()], ids=["create", "list", *ON_A_RUNNER]
)
def test_an_endpoint_out_of_reach_is_named(on_aws, moto_env, monkeypatch, words):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

        said = refused(on_aws, *words, status=1)

    assert f'Could not connect to the endpoint URL: "{url}/' in said
    assert said.endswith("check the network, the region and AWS_ENDPOINT_URL")


@pytest.mark.parametrize("words", [["create"], ["status"]], ids=["create", "status"])
@pytest.mark.parametrize(
    ("variables", "options", "sentence"),
    [
        ({}, ["--region=mars"], "there is no AWS region 'mars': give one such as eu-central-1"),
        (
            {"AWS_DEFAULT_REGION": "mars"},
            [],
            "there is no AWS region 'mars': give one such as eu-central-1",
        ),
        (
            {},
            ["--region=on mars"],
            "cannot use s3 in region on mars: this is no region: give one such as eu-central-1",
        ),
        (
            {"AWS_ENDPOINT_URL": "nonsense"},
            [],
            "Invalid endpoint: nonsense: correct AWS_ENDPOINT_URL (a URL such as "
            "http://127.0.0.1:9000) or AWS_MAX_ATTEMPTS (a number)",
        ),
        (
            {"AWS_PROFILE": "nobody"},
            [],
            "cannot find credentials for AWS: The config profile (nobody) could not be found: set "
            "AWS_PROFILE to one of those in ~/.aws/config",
        ),
    ],
    ids=["option", "environment", "no region at all", "endpoint", "profile"],
)
def test_a_region_endpoint_or_profile_that_is_none_is_refused(
    on_aws, moto_env, monkeypatch, words, variables, options, sentence
):
    # Nothing may be sent to anybody: these would be the endpoints of AWS itself.
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("something was sent"))

    assert refused(on_aws, *words, *options, env=variables) == sentence


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        *((words, "AccessDenied") for words in (["create"], ["list"], *ON_A_RUNNER.values())),
        (["create"], "InvalidClientTokenId"),
        (["status"], "SignatureDoesNotMatch"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_refused_credentials_are_named(on_aws, proxy, words, refusal):
    proxy.fail(lambda call: True, 403, refusal)

    said = refused(on_aws, *words, status=1)

    assert ("AWS denies" if refusal == "AccessDenied" else "AWS does not accept") in said
    assert "adr config" in said


def test_a_batch_whose_bundle_cannot_be_stored_is_not_queued(shell, proxy):
    runner = shell("create").out.strip()
    proxy.fail("s3.PutObject", 403, "AccessDenied")
    proxy.reset()

    said = refused(shell, *QUEUE, "a.txt", status=1)

    assert runner in said
    assert proxy.count("s3.PutObject") == 1
    assert proxy.count("sqs.SendMessageBatch") == 0
    assert shell("status").out == "no batches\n"


def test_nothing_is_queued_into_a_runner_that_is_half_destroyed(shell):
    # given a runner whose destruction was cut off after its first step
    runner = shell("create", "--local").out.strip()
    order_destruction(open_runner(runner).store)
    shell.write({"a.txt": "a"})

    done = shell("queue", "--command=true", "a.txt", status=2)

    assert "has been destroyed: adr destroy goes on" in done.err
    assert shell("status", "--json").json["totals"]["jobs"] == 0

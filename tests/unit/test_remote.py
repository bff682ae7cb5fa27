"""SSH connections: whom they trust, how they log in, and what they say when it fails."""

from __future__ import annotations

import socket
import stat
import subprocess
import threading
from pathlib import Path, PurePosixPath

import pytest

from adr import remote
from adr.errors import ServiceError, Unavailable, UsageError
from adr.hostkeys import KnownHosts
from adr.remote import CommandFailed, Login, connect, on_hosts
from tests.servers import free_port
from tests.sshd import LoopbackSshd, make_key

RUNNER = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def key(isolated_home, monkeypatch):
    """Make the key of the user, where ssh looks for it."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return make_key(isolated_home / ".ssh" / "id_ed25519")


@pytest.fixture
def sshd(key, tmp_path):
    server = LoopbackSshd(tmp_path / "sshd", key.with_suffix(".pub"))
    server.start()
    yield server
    server.stop()
    server.kill_processes()


@pytest.fixture
def known_hosts(isolated_home):
    return KnownHosts(RUNNER)


@pytest.fixture
def reach(sshd, known_hosts):
    """Return a function that makes a connection to the server, with this login."""

    def make(login=Login(), timeout_s=30.0, host=f"127.0.0.1:{sshd.port}"):  # noqa: B008
        return connect(host, login, known_hosts, timeout_s)

    return make


def say(made, *words, what="say something"):
    with made as host:
        return host.run(words or ("echo", "hello"), what).out.strip()


# Whom they trust


def test_the_key_of_a_new_host_is_noted_once(reach, sshd, known_hosts):
    say(reach())
    say(reach())

    public = sshd.host_key.with_suffix(".pub").read_text().split()[1]
    assert known_hosts.path.read_text() == f"{sshd.name} ssh-ed25519 {public}\n"
    assert stat.S_IMODE(known_hosts.path.stat().st_mode) == 0o600


def test_a_changed_host_key_is_refused_before_anybody_logs_in(reach, sshd, known_hosts):
    say(reach())
    known_hosts.path.write_text("# mine\n" + known_hosts.path.read_text())
    sshd.change_key()
    sshd.log.write_text("")

    with pytest.raises(ServiceError, match="has changed") as told:
        say(reach())

    assert f"remove line 2 of {known_hosts.path}" in str(told.value)
    assert "only if you know that the host was set up anew" in str(told.value)
    assert "Accepted" not in sshd.log.read_text()


def test_every_runner_notes_the_keys_for_itself(reach, sshd):
    say(reach())
    sshd.change_key()

    other = connect(f"127.0.0.1:{sshd.port}", Login(), KnownHosts("another"), 30)

    assert say(other) == "hello"


@pytest.mark.parametrize("hashed", [False, True])
def test_what_the_user_knows_of_a_host_counts(reach, sshd, known_hosts, isolated_home, hashed):
    other = make_key(isolated_home / "other").with_suffix(".pub").read_text()
    own = isolated_home / ".ssh" / "known_hosts"
    own.write_text(f"{sshd.name} {other}")
    if hashed:
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", own], check=True, capture_output=True)
    own.write_text(f"@cert-authority *.example.org {other}nonsense\n{own.read_text()}")

    with pytest.raises(ServiceError, match=r"has changed .* remove line \d of ") as told:
        say(reach())

    assert str(own) in str(told.value)
    assert not known_hosts.path.exists()


@pytest.mark.parametrize("is_known", [False, True])
def test_a_revoked_host_key_is_refused_even_if_it_was_noted(
    reach, sshd, known_hosts, isolated_home, is_known
):
    if is_known:
        say(reach())
    public = " ".join(sshd.host_key.with_suffix(".pub").read_text().split()[:2])
    own = isolated_home / ".ssh" / "known_hosts"
    own.write_text(f"{sshd.name} {public}\n@revoked\t*  {public} lost in May\n")
    sshd.log.write_text("")

    with pytest.raises(ServiceError, match=f"is revoked .*line 2 of {own}"):
        say(reach())

    assert known_hosts.path.exists() == is_known
    assert "Accepted" not in sshd.log.read_text()


def test_connections_at_the_same_time_note_a_new_key_once(sshd, known_hosts):
    hosts = [f"127.0.0.1:{sshd.port}"] + [f"other{n}" for n in range(11)]

    def to_the_same(name):
        return connect(hosts[0], Login(), known_hosts, 30)

    results = on_hosts(hosts, to_the_same, lambda host: host.run(["true"], "go on"), "testing")

    assert results.failed == {}
    assert len(known_hosts.path.read_text().splitlines()) == 1


# How they log in


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_a_key_of_any_kind_can_be_named_and_have_a_passphrase(reach, sshd, tmp_path, kind):
    mine = make_key(tmp_path / "keys" / kind, passphrase="open sesame", kind=kind)
    (sshd.folder / "authorized_keys").write_text(mine.with_suffix(".pub").read_text())

    assert say(reach(Login(password="open sesame", key_filename=str(mine)))) == "hello"
    with pytest.raises(UsageError, match=r"has a passphrase: give it as the password"):
        reach(Login(key_filename=str(mine)))


def test_a_key_that_cannot_be_used_is_refused_before_anything_is_tried(reach, tmp_path):
    (tmp_path / "text").write_text("no key")

    with pytest.raises(UsageError, match=r"cannot read the key .*absent: No such file"):
        reach(Login(key_filename=str(tmp_path / "absent")))
    with pytest.raises(UsageError, match="is no private key that can be used"):
        reach(Login(key_filename=str(tmp_path / "text")))


def test_the_settings_of_ssh_are_honoured(reach, sshd, key, isolated_home, tmp_path):
    mine = key.rename(tmp_path / "mine")
    (isolated_home / ".ssh" / "config").write_text(
        f"Host lab\n  HostName 127.0.0.1\n  Port {sshd.port}\n"
        f"  IdentityFile {tmp_path}/absent\n  IdentityFile {mine}\n"
    )

    assert say(reach(host="lab")) == "hello"


def test_the_way_may_lead_over_another_host(reach, sshd, known_hosts, isolated_home):
    (isolated_home / ".ssh" / "config").write_text(
        f"Host inner\n  HostName 127.0.0.1\n  Port {sshd.port}\n  ProxyJump gate\n"
        f"Host gate\n  HostName localhost\n  Port {sshd.port}\n"
    )

    assert say(reach(host="inner")) == "hello"
    names = [line.split()[0] for line in known_hosts.path.read_text().splitlines()]
    assert names == [f"[localhost]:{sshd.port}", f"[127.0.0.1]:{sshd.port}"]


def test_a_host_on_the_way_that_fails_is_named(reach, sshd, isolated_home):
    (isolated_home / ".ssh" / "config").write_text(
        f"Host inner\n  HostName 127.0.0.1\n  ProxyJump gate\n"
        f"Host gate\n  HostName 127.0.0.1\n  Port {free_port()}\n"
    )

    with pytest.raises(Unavailable, match=r"the way leads over gate: .* refuses connections"):
        say(reach(host="inner"))


# What they say


def test_a_host_that_nobody_knows_is_said(reach):
    with pytest.raises(Unavailable, match=r"nobody knows a host nowhere\.invalid"):
        say(reach(host="nowhere.invalid"))


def test_a_port_where_nothing_listens_is_said(reach):
    port = free_port()
    with pytest.raises(Unavailable, match=f"127.0.0.1 port {port} refuses connections"):
        say(reach(host=f"127.0.0.1:{port}"))


def test_a_host_that_never_answers_is_given_up(reach, monkeypatch):
    monkeypatch.setattr(remote, "_CONNECT_WITHIN_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(Unavailable, match=r"does not speak SSH|does not answer"):
            say(reach(host=host))


def test_a_refused_login_says_what_was_tried(reach, sshd, key, tmp_path):
    (sshd.folder / "authorized_keys").write_text("")

    with pytest.raises(ServiceError, match=r"does not let nobody-here in; tried ") as told:
        say(reach(Login(user="nobody-here", password="secret-word", key_filename=str(key))))

    assert "the key given, the agent and the keys in ~/.ssh, the password" in str(told.value)
    assert "authorized_keys" in str(told.value)
    assert "secret-word" not in str(told.value)


def test_text_that_is_no_host_is_refused(reach):
    with pytest.raises(UsageError, match=r"cannot use 'lab:first' as a host"):
        reach(host="lab:first")


def test_a_command_that_fails_is_told_with_the_end_of_its_output(reach):
    script = "for n in 1 2 3 4 5 6 7; do echo line $n; done; echo trouble >&2; exit 3"

    with pytest.raises(CommandFailed) as told:
        say(reach(), "sh", "-c", script, what="do it")

    assert str(told.value) == "cannot do it: line 4 / line 5 / line 6 / line 7 / trouble"
    assert told.value.finished.status == 3


def test_a_host_has_so_much_time_and_no_more(reach):
    with pytest.raises(Unavailable, match=r"cannot do it: it was not done 1 s after the beginning"):
        say(reach(timeout_s=1), "sleep", "600", what="do it")


def test_a_connection_that_breaks_is_said(reach, sshd, wait_for):
    trouble = []

    def work():
        with reach() as host:
            try:
                host.run(["sh", "-c", "touch running; sleep 600"], "do it")
            except Unavailable as error:
                trouble.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    wait_for(lambda: (sshd.home / "running").exists())
    sshd.drop_connections()
    thread.join(20)

    assert trouble == ["cannot do it: the connection was lost"]


# Files


def test_a_file_is_written_whole_and_for_its_owner_alone(reach, sshd):
    path = PurePosixPath(".adr/runner/secret")
    with reach() as host:
        assert not host.exists(path)
        host.write(path, b"one")
        host.write(path, b"two")
        assert host.exists(path)

    written = sshd.home / path
    assert written.read_bytes() == b"two"
    assert [each.name for each in written.parent.iterdir()] == ["secret"]
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert stat.S_IMODE(written.parent.stat().st_mode) == 0o700


def test_a_file_that_cannot_be_written_is_named(reach, sshd):
    (sshd.home / ".adr").write_text("in the way")
    with reach() as host, pytest.raises(ServiceError, match=r"cannot write ~/\.adr/file: "):
        host.write(PurePosixPath(".adr/file"), b"")


# Many hosts


class Counting:
    def __init__(self):
        self.calls = []

    def start(self, what, total, unit):
        self.calls.append((what, total, unit))

    def advance(self, amount=1):
        self.calls.append(amount)

    def note(self, **counts):
        pass

    def finish(self):
        self.calls.append("finished")


def test_a_bad_host_stops_no_other(reach, sshd):
    good, bad = f"127.0.0.1:{sshd.port}", f"127.0.0.1:{free_port()}"
    progress = Counting()

    def work(host):
        if host.name.startswith("root@"):
            raise RuntimeError("not foreseen")
        return host.run(["echo", host.name], "speak").out

    results = on_hosts(
        [bad, good, f"root@{good}", good], lambda name: reach(host=name), work, "trying", progress
    )

    assert results.done == {good: f"{good}\n"}
    assert list(results.failed) == [bad, f"root@{good}"]
    assert str(results.failed[f"root@{good}"]) == "RuntimeError: not foreseen"
    assert progress.calls == [("trying", 3, "hosts"), 1, 1, 1, "finished"]


def test_who_is_told_to_stop_waits_for_no_host(reach, sshd, tmp_path, wait_for):
    begun = threading.Event()

    class Impatient(Counting):
        def advance(self, amount=1):
            begun.wait(20)
            raise KeyboardInterrupt

    def work(host):
        if host.name == "quick":
            return
        begun.set()
        host.run(["sleep", "600"], "sleep")

    with pytest.raises(KeyboardInterrupt):
        on_hosts(["quick", "slow"], lambda name: named(reach(), name), work, "", Impatient())


def named(made, name):
    made.name = name
    return made


def test_nothing_is_done_for_no_hosts(reach):
    assert on_hosts([], reach, say, "").done == {}


def test_a_password_is_shown_to_nobody():
    assert "secret" not in repr(Login(password="secret"))


def test_home_is_where_commands_run_and_words_stay_words(reach, sshd):
    assert say(reach(), "pwd") == str(Path(sshd.home).resolve())
    assert say(reach(), "printf", "%s|", "a b", "$HOME", "'") == "a b|$HOME|'|"


# What can be a host


@pytest.mark.parametrize(
    "host", ["lab1:x", "lab1:99999", "lab1:0", "lab1:", "", "@lab1", "a b", "[::1", "[::1]x"]
)
def test_what_can_be_no_host_is_refused_before_anything_is_sent(host, known_hosts):
    with pytest.raises(UsageError, match=r"as a host: .*host.:port") as told:
        connect(host, Login(), known_hosts, 10)

    assert repr(host) in str(told.value)


@pytest.mark.parametrize(
    ("host", "parts"),
    [
        ("[::1]:22", (None, "::1", 22)),
        ("anna@[::1]", ("anna", "::1", None)),
        ("fe80::1%eth0", (None, "fe80::1%eth0", None)),
        ("anna@tower:2222", ("anna", "tower", 2222)),
    ],
)
def test_a_host_is_taken_apart(host, parts, known_hosts):
    made = connect(host, Login(user=parts[0] or "lab"), known_hosts, 10)

    there = made._connection
    assert made.name == host
    assert (there.user, there.host, there.port) == (parts[0] or "lab", parts[1], parts[2] or 22)

"""The settings file, the wizard, and what they write for the AWS CLI."""

from __future__ import annotations

import configparser
import copy
import io
import json
import os
import pty
import re
import select
import shlex
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from adr import config
from adr.errors import UsageError

DOCUMENTED = [
    "JSON_DEFAULT",
    "ask_question",
    "disp_item",
    "get_item",
    "load_config",
    "set_item",
    "update_config",
    "wizard",
    "write_aws_config",
    "write_config",
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Give every test a home of its own, with no settings."""
    for name in ("AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ADR_CONFIG", str(tmp_path / "settings" / "adr.json"))
    return tmp_path


@pytest.fixture
def path(home):
    return home / "settings" / "adr.json"


def run_python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options
    )


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def aws_profile(path, section):
    """Read a section as botocore does."""
    parser = configparser.RawConfigParser(default_section=None)
    parser.read_string(path.read_text())
    return dict(parser.items(section))


def with_keys(**changes):
    cfg = copy.deepcopy(config.JSON_DEFAULT)
    cfg["aws"]["credentials"] = {"access_key_id": "AKIANEW", "secret_access_key": "new/+%s%%"}
    cfg["aws"]["configuration"].update(region="eu-west-1", **changes)
    return cfg


# The file


def test_documented_names_are_public():
    assert set(DOCUMENTED) <= set(config.__all__)
    assert all(hasattr(config, name) for name in config.__all__)


def test_without_a_file_everything_has_its_default(path):
    assert config.load_config() == config.JSON_DEFAULT
    assert not path.exists()


def test_what_was_loaded_can_be_changed_without_changing_the_defaults():
    config.load_config("aws", "configuration", "security_groups").append("sg-1")
    config.load_config()["ssh"]["user"] = "somebody"

    assert config.load_config("aws", "configuration", "security_groups") == []
    assert config.load_config("ssh", "user") == "ubuntu"


def test_the_region_is_unset_by_default_so_that_precedence_can_work():
    assert config.load_config("aws", "configuration", "region") is None


def test_a_part_is_found_by_its_keys():
    config.update_config("aws", "credentials", "access_key_id", "AKIA1")

    assert config.load_config("aws", "credentials") == {
        "access_key_id": "AKIA1",
        "secret_access_key": None,
    }
    assert config.load_config("aws", "credentials", "access_key_id") == "AKIA1"


def test_defaults_fill_what_an_older_file_lacks_at_every_depth(path):
    write(path, '{"ssh": {"password": "p"}, "aws": {"configuration": {"region": "us-east-1"}}}')

    cfg = config.load_config()

    assert cfg["ssh"] == {"user": "ubuntu", "password": "p", "key_filename": None}
    assert cfg["aws"]["configuration"]["output"] == "json"
    assert cfg["aws"]["configuration"]["region"] == "us-east-1"
    assert cfg["aws"]["credentials"] == config.JSON_DEFAULT["aws"]["credentials"]


def test_unset_settings_in_the_file_hide_no_default(path):
    write(
        path, '{"ssh": {"user": null}, "aws": {"configuration": {"output": ""}}, "command": null}'
    )

    assert config.load_config("ssh", "user") == "ubuntu"
    assert config.load_config("aws", "configuration", "output") == "json"
    assert config.load_config("command") == config.JSON_DEFAULT["command"]


def test_the_file_is_json_with_an_indent_of_four(path):
    config.update_config("runner", "r")

    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=4) + "\n"
    assert '\n    "runner": "r"' in text


def test_settings_of_a_newer_version_survive_an_update(path):
    write(path, '{"new": {"deep": [1]}, "ssh": {"port": 22}}')

    config.update_config("runner", "r")

    assert config.load_config("new") == {"deep": [1]}
    assert config.load_config("ssh", "port") == 22
    assert config.load_config("runner") == "r"


@pytest.mark.parametrize("value", ["C:\\new\\1 \\g<0> $(x) {} %s", "köln 🜨", "\udcff", "a\nb"])
def test_any_text_survives_being_written(value):
    config.update_config("command", "command", value)

    assert config.load_config("command", "command") == value


def test_none_unsets_a_setting():
    config.update_config("ssh", "user", "somebody")
    config.update_config("ssh", "user", None)

    assert config.load_config("ssh", "user") == "ubuntu"


def test_the_file_is_private_before_its_first_byte(path):
    # Given a process that may make anything readable to all
    watch = """
import os, stat, sys
os.umask(0)
from adr import config
def hook(event, args):
    if event == "os.chmod":
        print("mode changed afterwards")
    if event == "os.rename":
        print(oct(stat.S_IMODE(os.stat(args[0]).st_mode)), os.path.dirname(args[0]))
sys.addaudithook(hook)
config.update_config("aws", "credentials", "secret_access_key", "secret")
cfg = config.load_config()
cfg["aws"]["credentials"]["access_key_id"] = "AKIA"
config.write_aws_config(cfg)
"""
    # When it writes secrets
    done = run_python(watch)

    # Then each file was made private, beside the one it replaces
    aws = Path.home() / ".aws"
    assert done.stdout.splitlines() == [f"0o600 {path.parent}", f"0o600 {aws}", f"0o600 {aws}"]
    files = [path, aws / "credentials", aws / "config"]
    assert [stat.S_IMODE(each.stat().st_mode) for each in files] == [0o600] * 3
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_others_could_read_is_private_once_written(path):
    write(path, "{}")
    path.chmod(0o644)

    config.update_config("runner", "r")

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_other(path):
    config.update_config("runner", "old")
    before = path.read_bytes()

    done = run_python(
        "import resource\n"
        "from adr import config\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try: config.update_config('runner', 'new')\n"
        "except config.UsageError as error: print(error)\n"
    )

    assert done.stdout == (
        f"cannot write {path}: File too large; "
        f"make it a writable file, or name another one in ADR_CONFIG\n"
    )
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_linked_file_stays_linked(path, home):
    real = home / "dotfiles" / "adr.json"
    write(real, "{}")
    path.parent.mkdir()
    path.symlink_to(real)

    config.update_config("runner", "r")

    assert path.is_symlink()
    assert json.loads(real.read_text())["runner"] == "r"


def test_the_file_lies_where_the_platform_keeps_configuration(home):
    environment = {**os.environ, "XDG_CONFIG_HOME": str(home / "xdg")}
    del environment["ADR_CONFIG"]
    code = (
        "import platformdirs; from adr import config; config.update_config('runner', 'r');"
        "print(platformdirs.user_config_dir('adr'))"
    )

    folder = Path(run_python(code, env=environment).stdout.strip())

    assert home in folder.parents
    assert json.loads((folder / "config.json").read_text())["runner"] == "r"


def test_a_tilde_in_adr_config_is_the_home(home, monkeypatch):
    monkeypatch.setenv("ADR_CONFIG", "~/mine.json")

    config.update_config("runner", "r")

    assert (home / "mine.json").exists()


def test_reading_settings_imports_nothing_slow():
    code = (
        "import sys; from adr import config; config.load_config();"
        "print([m for m in ('boto3', 'botocore', 'platformdirs', 'fabric', 'rich')"
        " if m in sys.modules])"
    )

    assert run_python(code).stdout == "[]\n"


# Bad input


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1 column 2"),
        ("", "line 1 column 1"),
        (b'{"runner": "\xff"}', "utf-8"),
        ("[" * 100_000, "recursion"),
        ("[]", "it holds a list where an object is expected"),
        ("null", "it holds null where an object is expected"),
        ('{"runner": 3}', "'runner' holds a number where a text is expected"),
        ('{"ssh": "ubuntu"}', "'ssh' holds a text where an object is expected"),
        ('{"ssh": {"user": true}}', "'ssh.user' holds a truth value where a text is expected"),
        ('{"job": {"timeout": "60"}}', "'job.timeout' holds a text where a number is expected"),
        (
            '{"job": {"retry_on": [1.5]}}',
            "'job.retry_on' holds a list where a list of exit codes is expected",
        ),
        (
            '{"aws": {"configuration": {"security_groups": "sg-1"}}}',
            "'aws.configuration.security_groups' holds a text where a list of texts is expected",
        ),
        (
            '{"aws": {"configuration": {"security_groups": [1]}}}',
            "'aws.configuration.security_groups' holds a list where a list of texts is expected",
        ),
    ],
)
def test_a_broken_file_is_one_sentence_that_names_it(path, text, said):
    write(path, text)

    with pytest.raises(UsageError) as caught:
        config.load_config()

    sentence = str(caught.value)
    assert sentence.startswith(f"the configuration file {path} is broken (")
    assert said in sentence
    assert sentence.endswith("mend it, or remove it and run 'adr config'")
    assert "\n" not in sentence


def test_a_broken_file_is_not_overwritten_by_an_update(path):
    write(path, "{")

    with pytest.raises(UsageError, match="is broken"):
        config.update_config("runner", "r")

    assert path.read_text() == "{"


def test_a_broken_file_does_not_show_its_secrets(path):
    write(path, '{"ssh": {"password": ["hush"]}}')

    with pytest.raises(UsageError) as caught:
        config.load_config()

    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("action", [config.load_config, lambda: config.write_config({})])
def test_a_place_that_cannot_hold_a_file_is_one_sentence(path, action):
    path.mkdir(parents=True)

    with pytest.raises(UsageError, match=f"cannot (read|write) {path}: .*ADR_CONFIG$"):
        action()


def test_a_file_as_folder_of_the_file_is_one_sentence(home, monkeypatch):
    write(home / "plain", "")
    monkeypatch.setenv("ADR_CONFIG", str(home / "plain" / "adr.json"))

    with pytest.raises(UsageError, match=r"cannot read .*Not a directory"):
        config.load_config()
    with pytest.raises(UsageError, match=r"cannot write .*Not a directory"):
        config.write_config({})


def test_what_is_no_ordinary_file_is_never_replaced(home, monkeypatch):
    fifo = home / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setenv("ADR_CONFIG", str(fifo))

    with pytest.raises(UsageError, match="not an ordinary file"):
        config.write_config({})

    assert fifo.is_fifo()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("regoin",), "'regoin': the configuration holds runner, aws, ssh, command, job"),
        (("ssh", "usr"), "'ssh.usr': 'ssh' holds user, password, key_filename"),
        (("ssh", "user", "x"), "'ssh.user.x': 'ssh.user' is a value and holds no other"),
    ],
)
def test_an_unknown_setting_is_refused_and_the_known_ones_are_named(path, keys, said):
    for action in (config.load_config, lambda *keys: config.update_config(*keys, "value")):
        with pytest.raises(UsageError) as caught:
            action(*keys)
        assert str(caught.value) == f"there is no setting {said}"
    assert not path.exists()


def test_a_value_of_the_wrong_kind_is_not_written(path):
    with pytest.raises(UsageError, match=r"'ssh\.user' holds a number"):
        config.update_config("ssh", "user", 3)
    with pytest.raises(UsageError, match="holds a text where a list of texts"):
        config.update_config("aws", "configuration", "security_groups", "sg-1")
    with pytest.raises(UsageError, match="cannot be written"):
        config.write_config({"new": object()})

    assert not path.exists()


def test_an_update_without_a_value_is_refused():
    with pytest.raises(UsageError, match="needs the keys of a setting, and then its value"):
        config.update_config("runner")


# Items


def test_get_item_without_keys_is_the_whole():
    assert config.get_item({"a": 1}, ()) == {"a": 1}


def test_set_item_changes_the_structure_and_returns_it():
    cfg = {"a": {"b": 1}}

    changed = config.set_item(cfg, ("a", "c", "d"), 2)

    assert changed is cfg
    assert cfg == {"a": {"b": 1, "c": {"d": 2}}}


def test_set_item_does_not_replace_a_value_by_an_object():
    cfg = {"a": {"b": 1}}

    with pytest.raises(UsageError, match=r"'a\.b\.c': 'a\.b' is a value"):
        config.set_item(cfg, ("a", "b", "c"), 2)

    assert cfg == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("value", "masked", "shown"),
    [
        (None, False, ""),
        (None, True, ""),
        ("plain", False, "plain"),
        (["a", "b"], False, "a,b"),
        ([], False, ""),
        ("0123456789", True, "********89"),
        ("x" * 16 + "tail", True, "*" * 16 + "tail"),
        ("abc", True, "***"),
        ("a", True, "*"),
    ],
)
def test_values_are_shown_joined_and_secrets_hidden_for_80_percent(value, masked, shown):
    assert config.disp_item(value, masked) == shown


# The wizard

LINES = [
    "AKIA0123456789",
    "secret\\1/+%s",
    "debian",
    "pass word",
    "~/.ssh/id",
    "us-east-1",
    "c7i.large",
    "ami-1",
    "sg-1, sg-2,",
    "key",
    "model {} \\d",
    "source env",
    "deactivate",
    "table",
]

PROMPTS = [
    "AWS access key ID",
    "AWS secret access key",
    "SSH user",
    "SSH password",
    "SSH key file",
    "AWS region",
    "AWS instance type",
    "AWS machine image",
    "AWS security groups",
    "AWS key pair",
    "Command",
    "Preprocessing",
    "Postprocessing",
    "AWS output format",
]


def answer(monkeypatch, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_the_wizard_asks_in_the_documented_order_and_writes_the_answers(monkeypatch, capsys, home):
    answer(monkeypatch, *LINES, "n")

    config.wizard()

    asked = capsys.readouterr()
    places = [asked.err.index(prompt) for prompt in PROMPTS]
    assert places == sorted(places)
    assert asked.err.endswith("Also write AWSCLI config [Y/n]? ")
    assert asked.out == ""
    assert config.load_config() == {
        "runner": None,
        "aws": {
            "credentials": {
                "access_key_id": "AKIA0123456789",
                "secret_access_key": "secret\\1/+%s",
            },
            "configuration": {
                "region": "us-east-1",
                "machine_image": "ami-1",
                "instance_type": "c7i.large",
                "security_groups": ["sg-1", "sg-2"],
                "key_pair": "key",
                "output": "table",
            },
        },
        "ssh": {"user": "debian", "password": "pass word", "key_filename": "~/.ssh/id"},
        "command": {
            "command": "model {} \\d",
            "preprocessing": "source env",
            "postprocessing": "deactivate",
        },
        "job": config.JSON_DEFAULT["job"],
    }
    assert not (home / ".aws").exists()


def test_the_wizard_shows_what_is_set_and_hides_secrets(monkeypatch, capsys):
    answer(monkeypatch, *LINES, "n")
    config.wizard()
    capsys.readouterr()
    answer(monkeypatch, *[""] * 14, "n")

    config.wizard()

    shown = capsys.readouterr().err
    assert "AWS access key ID [************89]: " in shown
    assert "SSH password [********d]: " in shown
    assert "SSH user [debian]: " in shown
    assert "AWS security groups [sg-1,sg-2]: " in shown
    assert "secret\\1" not in shown
    assert "pass word" not in shown


def test_empty_answers_change_nothing(monkeypatch):
    answer(monkeypatch, *LINES, "n")
    config.wizard()
    before = config.load_config()
    answer(monkeypatch, *[" "] * 14, "n")

    config.wizard()

    assert config.load_config() == before


@pytest.mark.parametrize("answers", range(15))
def test_the_end_of_the_input_writes_nothing(monkeypatch, answers, path, home):
    answer(monkeypatch, *[*LINES, "y"][:answers])

    with pytest.raises(UsageError, match=r"ended before the last question .* nothing has been"):
        config.wizard()

    assert not path.exists()
    assert not (home / ".aws").exists()


def test_answers_that_are_not_text_write_nothing(monkeypatch, path):
    stdin = io.TextIOWrapper(io.BytesIO(b"AKIA\nsecret\n\xff\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)

    with pytest.raises(UsageError, match="not text in utf-8, so nothing has been written"):
        config.wizard()

    assert not path.exists()


@pytest.mark.parametrize(
    ("replies", "written"),
    [(["n"], False), (["No"], False), ([""], True), (["Y"], True), (["what", "yes"], True)],
)
def test_the_last_question_decides_on_the_files_of_the_aws_cli(monkeypatch, replies, written, home):
    answer(monkeypatch, *LINES, *replies)

    config.wizard()

    assert (home / ".aws" / "credentials").exists() is written
    if written:
        assert aws_profile(home / ".aws" / "credentials", "default") == {
            "aws_access_key_id": "AKIA0123456789",
            "aws_secret_access_key": "secret\\1/+%s",
        }


def test_a_runner_chosen_while_the_wizard_asks_stays_chosen(monkeypatch):
    config.update_config("runner", "before")

    class Slow(io.StringIO):
        def readline(self, *args):
            config.update_config("runner", "during")
            return super().readline(*args)

    monkeypatch.setattr("sys.stdin", Slow("AKIA\n" + "\n" * 13 + "n\n"))

    config.wizard()

    assert config.load_config("runner") == "during"
    assert config.load_config("aws", "credentials", "access_key_id") == "AKIA"


class Terminal:
    """A wizard in a process of its own, on a terminal of its own."""

    def __init__(self, redirect=""):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            code = "from adr import config; config.wizard()"
            command = f"{shlex.join([sys.executable, '-c', code])} {redirect}"
            os.execv("/bin/sh", ["sh", "-c", f"exec {command}"])
        self.seen = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.master)

    def reply(self, prompt, keys):
        asked = re.compile(re.escape(prompt) + r"( \[.*\])?[:?] $")
        while not asked.search(self.seen):
            self.seen += os.read(self.master, 4096).decode()
        os.write(self.master, keys.encode())

    def exit_code(self, keys=""):
        """Wait for the end, pressing `keys` again and again until it comes."""
        try:
            while True:
                if select.select([self.master], [], [], 0.5)[0]:
                    chunk = os.read(self.master, 4096)
                    if not chunk:
                        break
                    self.seen += chunk.decode()
                elif keys:
                    os.write(self.master, keys.encode())
        except OSError:
            pass  # Linux says EIO where the other side has left.
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.parametrize("redirect", ["", ">out.txt"])
def test_secrets_typed_on_a_terminal_are_not_echoed(redirect, monkeypatch, home):
    monkeypatch.chdir(home)
    with Terminal(redirect) as terminal:
        for prompt, line in zip(PROMPTS, LINES, strict=True):
            terminal.reply(prompt, f"{line}\n")
        terminal.reply("Also write AWSCLI config [Y/n]", "n\n")
        assert terminal.exit_code() == 0

    assert config.load_config("aws", "credentials", "secret_access_key") == "secret\\1/+%s"
    assert config.load_config("ssh", "password") == "pass word"
    assert "us-east-1" in terminal.seen
    for secret in (LINES[0], LINES[1], LINES[3]):
        assert secret not in terminal.seen


@pytest.mark.parametrize("questions", [3, 4, 14])
def test_ctrl_c_in_the_wizard_writes_nothing(questions, path, home):
    with Terminal() as terminal:
        for prompt, line in zip(PROMPTS[:questions], LINES, strict=False):
            terminal.reply(prompt, f"{line}\n")
        terminal.reply([*PROMPTS, "Also write AWSCLI config [Y/n]"][questions], "\x03")
        # readline misses a signal that comes between its prompt and its first look at the keys.
        assert terminal.exit_code("\x03") == -signal.SIGINT

    assert not path.exists()
    assert not (home / ".aws").exists()


# The files of the AWS CLI

CREDENTIALS = """\
# mine, do not touch
[work]
aws_access_key_id = AKIAWORK
aws_secret_access_key = a%b%(c)s

[default]
; the old one
AWS_ACCESS_KEY_ID=AKIAOLD
aws_secret_access_key: old
aws_session_token = stale
  and its second line
# more to come

[last]
aws_access_key_id = AKIALAST
"""


def test_other_profiles_comments_and_order_survive(home):
    credentials = home / ".aws" / "credentials"
    write(credentials, CREDENTIALS)

    config.write_aws_config(with_keys())

    assert credentials.read_text() == CREDENTIALS.replace(
        "AWS_ACCESS_KEY_ID=AKIAOLD", "aws_access_key_id = AKIANEW"
    ).replace("aws_secret_access_key: old", "aws_secret_access_key = new/+%s%%").replace(
        "aws_session_token = stale\n  and its second line\n", ""
    )


def test_new_files_hold_keys_region_and_output(home):
    config.write_aws_config(with_keys())

    assert (home / ".aws" / "credentials").read_text() == (
        "[default]\naws_access_key_id = AKIANEW\naws_secret_access_key = new/+%s%%\n"
    )
    assert (home / ".aws" / "config").read_text() == (
        "[default]\nregion = eu-west-1\noutput = json\n"
    )


def test_writing_twice_changes_nothing_the_second_time(home):
    write(home / ".aws" / "credentials", CREDENTIALS)
    config.write_aws_config(with_keys())
    before = [each.read_bytes() for each in sorted((home / ".aws").iterdir())]

    config.write_aws_config(with_keys())

    assert [each.read_bytes() for each in sorted((home / ".aws").iterdir())] == before


def test_the_profile_of_the_environment_is_written_and_the_default_left(home, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "work")
    write(home / ".aws" / "credentials", CREDENTIALS)
    write(home / ".aws" / "config", "[default]\nregion = us-west-2\n\n[profile other]\nregion = x")

    config.write_aws_config(with_keys())

    assert aws_profile(home / ".aws" / "credentials", "work")["aws_access_key_id"] == "AKIANEW"
    assert aws_profile(home / ".aws" / "credentials", "default")["aws_access_key_id"] == "AKIAOLD"
    assert (home / ".aws" / "config").read_text() == (
        "[default]\nregion = us-west-2\n\n[profile other]\nregion = x\n\n"
        "[profile work]\nregion = eu-west-1\noutput = json\n"
    )


def test_the_files_named_in_the_environment_are_written_instead(home, monkeypatch):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "~/a/keys")
    monkeypatch.setenv("AWS_CONFIG_FILE", "$HOME/b/conf")

    config.write_aws_config(with_keys())

    assert aws_profile(home / "a" / "keys", "default")["aws_access_key_id"] == "AKIANEW"
    assert aws_profile(home / "b" / "conf", "default")["region"] == "eu-west-1"
    assert not (home / ".aws").exists()


def test_one_file_can_be_both(home, monkeypatch):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "~/one")
    monkeypatch.setenv("AWS_CONFIG_FILE", "~/one")

    config.write_aws_config(with_keys())

    assert set(aws_profile(home / "one", "default")) == {
        "aws_access_key_id",
        "aws_secret_access_key",
        "region",
        "output",
    }


def test_unset_settings_leave_the_files_alone(home):
    write(home / ".aws" / "credentials", CREDENTIALS)
    write(home / ".aws" / "config", "[default]\nregion = us-west-2\n")
    cfg = copy.deepcopy(config.JSON_DEFAULT)
    cfg["aws"]["credentials"]["access_key_id"] = "half a pair"

    config.write_aws_config(cfg)

    assert (home / ".aws" / "credentials").read_text() == CREDENTIALS
    assert (home / ".aws" / "config").read_text() == (
        "[default]\nregion = us-west-2\noutput = json\n"
    )


def test_nested_settings_of_the_profile_survive(home):
    text = "[default]\ns3 =\n  max_concurrent_requests = 5\n  region = nested\n[profile b]\nx = 1\n"
    write(home / ".aws" / "config", text)

    config.write_aws_config(with_keys())

    assert (home / ".aws" / "config").read_text() == text.replace(
        "nested\n", "nested\nregion = eu-west-1\noutput = json\n"
    )


def test_bytes_that_are_not_utf_8_survive(home):
    write(home / ".aws" / "config", b"# caf\xe9\r\n[profile b]\r\nregion = x\r\n")

    config.write_aws_config(with_keys())

    content = (home / ".aws" / "config").read_bytes()
    assert content.startswith(b"# caf\xe9\r\n[profile b]\r\nregion = x\r\n")


@pytest.mark.parametrize("profile", ["default", "work", "my profile", "o'neil", "a]b", "50%"])
def test_boto3_finds_what_was_written(home, monkeypatch, profile):
    from botocore.session import Session

    monkeypatch.setenv("AWS_PROFILE", profile)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    write(home / ".aws" / "credentials", CREDENTIALS)

    config.write_aws_config(with_keys())

    session = Session()
    assert session.get_config_variable("region") == "eu-west-1"
    found = session.get_credentials()
    assert (found.access_key, found.secret_key, found.token) == ("AKIANEW", "new/+%s%%", None)


@pytest.mark.parametrize("bad", ["a\n[other]", "a\rb", "\ud800"])
def test_values_that_would_break_the_files_are_refused(home, bad):
    cfg = with_keys()
    cfg["aws"]["credentials"]["secret_access_key"] = bad

    with pytest.raises(UsageError, match=r"control character .* cannot hold it") as caught:
        config.write_aws_config(cfg)

    assert bad not in str(caught.value)
    assert not (home / ".aws").exists()


def test_answers_are_kept_when_the_files_of_the_aws_cli_cannot_be_written(monkeypatch, home):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home))
    answer(monkeypatch, *LINES, "y")

    with pytest.raises(UsageError, match=f"cannot read {home}: .*AWS_CONFIG_FILE"):
        config.wizard()

    assert config.load_config("ssh", "user") == "debian"

"""Packing the installed adr: what is in it, that it installs, and what is refused."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import adr
from adr.version import __version__

INFO = f"amazon_distributed_runner-{__version__}.dist-info"
METADATA = f"""Metadata-Version: 2.1
Name: amazon-distributed-runner
Version: {__version__}
Requires-Dist: boto3>=1.36
Requires-Dist: docopt-ng (>=0.9)
Requires-Dist: no-such-package; python_version < "3"
Requires-Dist: pytest>=8; extra == "test"
"""
PACK = """
import json, sys
from adr.errors import UsageError
from adr.wheel import pack_wheel
try:
    wheel = pack_wheel()
except UsageError as error:
    print(json.dumps({"refused": str(error)}))
else:
    open(wheel.name, "wb").write(wheel.body)
    print(json.dumps({"name": wheel.name, "sha256": wheel.sha256, "pins": wheel.constraints}))
"""


class Installation:
    """An adr as pip installs it, in a folder of its own."""

    def __init__(self, site: Path) -> None:
        self.site = site
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(adr.__file__).parent, site / "adr", ignore=skip)
        self.write(f"{INFO}/METADATA", METADATA)
        self.write(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        self.write(f"{INFO}/entry_points.txt", "[console_scripts]\nadr = adr.console:main\n")
        self.write(f"{INFO}/INSTALLER", "pip\n")
        self.write(f"{INFO}/REQUESTED", "")
        self.write(f"{INFO}/direct_url.json", '{"dir_info": {}, "url": "file:///src"}')
        self.write("../bin/adr", "#!/bin/python\n")
        self.record()

    def write(self, name: str, text: str) -> None:
        path = self.site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def record(self) -> None:
        lines = io.StringIO()
        writer = csv.writer(lines)
        for path in sorted(self.site.rglob("*")):
            if path.is_file():
                raw = hashlib.sha256(path.read_bytes()).digest()
                digest = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
                name = path.relative_to(self.site).as_posix()
                writer.writerow((name, f"sha256={digest}", path.stat().st_size))
        writer.writerow(("../bin/adr", "sha256=0", 1))
        writer.writerow(("adr/__pycache__/__init__.cpython-311.pyc", "", ""))
        writer.writerow((f"{INFO}/RECORD", "", ""))
        self.write(f"{INFO}/RECORD", lines.getvalue())

    def run(self, code: str, folder: Path, *before: Path, words: tuple[str, ...] = ()) -> Any:
        """Run code where this adr is found, after that in the folders `before`."""
        paths = os.pathsep.join(map(str, (*before, self.site)))
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def pack(self, folder: Path, *before: Path) -> Any:
        return self.run(PACK, folder, *before)


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "lib")


class TestWhatIsPacked:
    def test_it_installs_into_a_new_environment_and_runs(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        wheel = installation.pack(tmp_path)

        # when it is installed where only what adr needs is there
        home = tmp_path / "venv"
        venv.create(home, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", home / "bin" / "python"]
        install = ["install", "-q", "--no-index", "--no-deps", wheel["name"]]
        subprocess.run([*pip, *install], cwd=tmp_path, check=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
        (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        said = subprocess.run(
            [home / "bin" / "adr", "--version"], cwd=tmp_path, capture_output=True, text=True
        )

        assert said.stdout == f"adr {__version__}\n", said.stderr
        assert (site / "adr" / "fleets" / "machine" / "setup.sh").is_file()
        assert (site / INFO / "METADATA").read_text() == METADATA

    def test_the_record_names_every_file_with_its_digest(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        wheel = installation.pack(tmp_path)

        with zipfile.ZipFile(tmp_path / wheel["name"]) as archive:
            lines = list(csv.reader(archive.read(f"{INFO}/RECORD").decode().splitlines()))
            assert [line[0] for line in lines] == archive.namelist()
            for name, digest, size in lines[:-1]:
                body = archive.read(name)
                raw = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=")
                assert (digest, size) == (f"sha256={raw.decode()}", str(len(body)))
        assert lines[-1] == [f"{INFO}/RECORD", "", ""]
        assert wheel["name"] == f"amazon_distributed_runner-{__version__}-py3-none-any.whl"
        body = (tmp_path / wheel["name"]).read_bytes()
        assert wheel["sha256"] == hashlib.sha256(body).hexdigest()

    def test_nothing_is_packed_that_the_installer_has_added(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        wheel = installation.pack(tmp_path)

        names = zipfile.ZipFile(tmp_path / wheel["name"]).namelist()
        assert {name.partition("/")[0] for name in names} == {"adr", INFO}
        assert {name for name in names if name.startswith(INFO)} == {
            f"{INFO}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")
        }
        assert not [name for name in names if name.endswith(".pyc")]

    def test_the_same_installation_gives_the_same_bytes(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        before = installation.pack(tmp_path)

        for path in installation.site.rglob("*"):
            os.utime(path, (1, 1))
            path.chmod(0o700)

        assert installation.pack(tmp_path) == before

    def test_the_constraints_hold_all_that_is_needed_in_the_versions_of_here(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        pins = dict(line.split("==") for line in installation.pack(tmp_path)["pins"].splitlines())

        assert {"boto3", "botocore", "six", "docopt-ng"} <= set(pins)
        assert pins == {name: metadata.version(name) for name in pins}
        assert not {"no-such-package", "pytest", "amazon-distributed-runner"} & set(pins)

    def test_it_is_published_once_with_its_constraints(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        code = """
import json, sys
from pathlib import Path
from adr.stores.directory import DirectoryStore
from adr.wheel import publish_wheel
store = DirectoryStore(Path(sys.argv[1]))
store.create()
etags = []
for _ in range(2):
    wheel = publish_wheel(store)
    found = list(store.list("_install/"))
    etags.append({each.key: each.etag for each in found if each.key.endswith(".whl")})
    keys = [each.key for each in found]
print(json.dumps([wheel.sha256, wheel.name, keys, etags]))
"""
        store = tmp_path / "store"
        store.mkdir()

        sha256, name, keys, etags = installation.run(code, tmp_path, words=(str(store),))

        assert keys == [f"_install/{sha256}/{name}", f"_install/{sha256}/constraints.txt"]
        assert etags[0] == etags[1]


class TestWhatIsRefused:
    def test_a_file_that_was_changed_since(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        with (installation.site / "adr" / "keys.py").open("a") as file:
            file.write("# patched\n")

        assert installation.pack(tmp_path)["refused"].startswith(
            "adr was changed after it was installed (adr/keys.py)"
        )

    def test_a_file_that_is_missing(self, installation: Installation, tmp_path: Path) -> None:
        (installation.site / "adr" / "py.typed").unlink()

        refused = installation.pack(tmp_path)["refused"]
        assert refused.startswith("adr is not complete (adr/py.typed: No such file")

    def test_an_editable_installation(self, installation: Installation, tmp_path: Path) -> None:
        url = '{"dir_info": {"editable": true}, "url": "file:///src"}'
        installation.write(f"{INFO}/direct_url.json", url)

        refused = installation.pack(tmp_path)["refused"]
        assert refused.startswith("adr is linked to a source folder (editable)")
        assert "pip install . (without -e)" in refused

    def test_an_editable_installation_that_does_not_say_so(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        installation.write(f"{INFO}/direct_url.json", "")
        link = "__editable__.amazon_distributed_runner-0.pth"
        installation.write(f"{INFO}/RECORD", f"{link},,\n{INFO}/METADATA,,\n")

        assert "(editable)" in installation.pack(tmp_path)["refused"]

    def test_a_source_folder_beside_the_installation(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        source = tmp_path / "source"
        shutil.copytree(installation.site / "adr", source / "adr")

        refused = installation.pack(tmp_path, source)["refused"]
        assert refused.startswith(f"adr runs from the source folder {source.resolve()}")
        assert "pip install ." in refused

    def test_what_pip_has_not_installed(self, installation: Installation, tmp_path: Path) -> None:
        (installation.site / INFO / "RECORD").unlink()

        refused = installation.pack(tmp_path)["refused"]
        assert f"lies in {installation.site.resolve()}, where pip has not installed it" in refused

    def test_what_is_made_for_one_kind_of_machine(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        tag = "cp311-cp311-linux_x86_64"
        installation.write(f"{INFO}/WHEEL", f"Tag: {tag}\n")

        assert f"made for {tag} only" in installation.pack(tmp_path)["refused"]

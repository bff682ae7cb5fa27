"""Package metadata of adr; tool settings stand in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "adr" / "version.py").read_text("utf-8"), re.M
)
assert VERSION, "adr/version.py names the version"

setup(
    name="amazon-distributed-runner",
    version=VERSION[1],
    description="Run a folder of model inputs on a laptop, a fleet of instances, or any machine",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["adr", "adr.*"]),
    package_data={"adr": ["py.typed"], "adr.fleets": ["machine/*"]},
    python_requires=">=3.10",
    install_requires=[
        "boto3>=1.36",
        "docopt-ng>=0.9",
        "fabric>=3",
        "paramiko>=3.4",
        "pathspec>=0.12",
        "platformdirs>=4",
        "rich>=13",
    ],
    extras_require={"fast": ["isal>=1.5"]},
    entry_points={"console_scripts": ["adr = adr.console:main"]},
    classifiers=[
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
)

"""The command: choose benchmarks, run them one after the other, print their tables."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Failed, Missing, Setting

#: Function that returns the tables of each benchmark, and what it measures.
BENCHMARKS = {
    "jobs": ("benchmarks.jobs:tables", "short jobs on this machine"),
    "queue": ("benchmarks.queueing:local_tables", "queueing into a local runner"),
    "queue-sqs": ("benchmarks.queueing:sqs_tables", "queueing at a distance"),
    "process-sqs": ("benchmarks.processing:tables", "processing at a distance"),
    "download": ("benchmarks.downloading:tables", "downloading small results at a distance"),
    "bundle": ("benchmarks.bundling:tables", "bundling and uploading"),
    "status": ("benchmarks.status:tables", "the status of many jobs"),
    "restore": ("benchmarks.restoring:tables", "restoring a workspace"),
    "start": ("benchmarks.starting:tables", "starting a command"),
    "memory": ("benchmarks.memory:tables", "memory of queueing and of a worker"),
    "simulation": ("benchmarks.simulation:tables", "thousands of workers, millions of jobs"),
    "tail": ("benchmarks.tail:tables", "the end of a batch of short and long jobs"),
}


#: Those that are about processes alone, whose figures depend on the disk otherwise: ext4 without
#: a journal is long in making files where others were removed in the last minutes.
_IN_MEMORY = ("jobs",)
_MEMORY = "/dev/shm"


def main() -> int:
    """Run what was asked for; return 1 where something failed, whatever the figures."""
    listed = "\n".join(f"  {name:12} {what}" for name, (_, what) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure adr beside its peers.",
        epilog=f"benchmarks:\n{listed}\n\nADR_BENCH_CLOUD names another stand-in for SQS and S3, "
        f"see benchmarks/cloud.py.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all without")
    parser.add_argument("--quick", action="store_true", help="small sizes: to try it out")
    parser.add_argument("--rounds", type=int, help="turns of each contender [3; quick: 1]")
    parser.add_argument(
        "--dir", help="where to write [the folder for temporary files; jobs: /dev/shm]"
    )
    parser.add_argument("--json", metavar="FILE", help="write the tables to a file as well")
    given = parser.parse_args()
    wrong = [name for name in given.names if name not in BENCHMARKS]
    if wrong:
        parser.error(f"there is no benchmark {wrong[0]!r}; there are {', '.join(BENCHMARKS)}")
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores\n")
    found = []
    failed = False
    for name in given.names or BENCHMARKS:
        began = time.monotonic()
        module, _, function = BENCHMARKS[name][0].partition(":")
        where = given.dir or (_MEMORY if name in _IN_MEMORY and os.path.isdir(_MEMORY) else None)
        if where:
            os.makedirs(where, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="adr-bench-", dir=where) as folder:
            rounds = given.rounds or (1 if given.quick else 3)
            setting = Setting(given.quick, Path(folder), rounds)
            try:
                tables = getattr(importlib.import_module(module), function)(setting)
            except (Missing, Failed) as error:
                print(f"{name}: {error}\n", flush=True)
                failed = failed or isinstance(error, Failed)
                continue
        for table in tables:
            print(table, flush=True)
            found.append(table.to_dict())
        print(f"  ({name}: {time.monotonic() - began:.0f} s)\n", flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The functions of adr: one for each command, and those that the commands are made of.

Each takes a runner id, which is the UUID4 of an AWS runner or the path of a local one, and
delegates. This module only says where they are: runners as a whole in `adr.lifecycle`, queueing
and processing in `adr.jobs`, machines in `adr.hosts`, what became of jobs in `adr.results`,
what waits for them in `adr.waiting` and steers them in `adr.control`, what takes boto3
resources in `adr.resources` and `adr.instances`.

Where a function says that a value comes from the configuration, see `adr.config`. The
documented defaults that belonged to one account or one model are not built in any more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adr.batch import find_root
    from adr.control import cancel, failures, pause, resume
    from adr.hosts import (
        host_output,
        launch,
        launch_plan,
        list_hosts,
        list_orphans,
        plan_launch,
        prepare,
        start,
        stop,
    )
    from adr.instances import (
        deregister_workers,
        get_workers,
        isiterable,
        iterate_workers,
        launch_workers,
        register_workers,
    )
    from adr.jobs import plan, process, queue, queue_plan, run, run_plan
    from adr.lifecycle import RunnerInfo, create, destroy, get_runners, list_runners
    from adr.resources import (
        create_bucket,
        create_queue,
        download_batch,
        get_job,
        key_exists,
        parse_message,
        process_job,
        queue_job,
        upload_batch,
        upload_files,
    )
    from adr.results import download, logs, status
    from adr.retrying import dead_letters, retry
    from adr.waiting import wait, watch
    from adr.worker.contents import cache_contents, restore_contents

__all__ = [
    "RunnerInfo",
    "cache_contents",
    "cancel",
    "create",
    "create_bucket",
    "create_queue",
    "dead_letters",
    "deregister_workers",
    "destroy",
    "download",
    "download_batch",
    "failures",
    "find_root",
    "get_job",
    "get_runners",
    "get_workers",
    "host_output",
    "isiterable",
    "iterate_workers",
    "key_exists",
    "launch",
    "launch_plan",
    "launch_workers",
    "list_hosts",
    "list_orphans",
    "list_runners",
    "logs",
    "parse_message",
    "pause",
    "plan",
    "plan_launch",
    "prepare",
    "process",
    "process_job",
    "queue",
    "queue_job",
    "queue_plan",
    "register_workers",
    "restore_contents",
    "resume",
    "retry",
    "run",
    "run_plan",
    "start",
    "status",
    "stop",
    "upload_batch",
    "upload_files",
    "wait",
    "watch",
]

#: Where the functions are. Each is imported when it is asked for: together they take ten times
#: as long as most commands.
_ELSEWHERE = {
    "adr.batch": ("find_root",),
    "adr.control": ("cancel", "failures", "pause", "resume"),
    "adr.hosts": (
        *("host_output", "launch", "launch_plan", "list_hosts", "list_orphans"),
        *("plan_launch", "prepare", "start", "stop"),
    ),
    "adr.instances": (
        *("deregister_workers", "get_workers", "isiterable", "iterate_workers"),
        *("launch_workers", "register_workers"),
    ),
    "adr.jobs": ("plan", "process", "queue", "queue_plan", "run", "run_plan"),
    "adr.lifecycle": ("RunnerInfo", "create", "destroy", "get_runners", "list_runners"),
    "adr.resources": (
        *("create_bucket", "create_queue", "download_batch", "get_job", "key_exists"),
        *("parse_message", "process_job", "queue_job", "upload_batch", "upload_files"),
    ),
    "adr.results": ("download", "logs", "status"),
    "adr.retrying": ("dead_letters", "retry"),
    "adr.waiting": ("wait", "watch"),
    "adr.worker.contents": ("cache_contents", "restore_contents"),
}


def __getattr__(name: str) -> Any:
    for module, names in _ELSEWHERE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

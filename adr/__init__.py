"""adr, the Amazon Distributed Runner: from a folder of inputs to a folder of results.

The functions of `adr.adr` are to be had from here: ``adr.create()``, ``adr.queue(…)``. They
are imported when one of them is first asked for, so that ``adr --help`` stays instant.

A module of this package must not be named like one of them, or it would take its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adr.version import __version__

if TYPE_CHECKING:
    from adr.adr import (
        RunnerInfo,
        cache_contents,
        cancel,
        create,
        create_bucket,
        create_queue,
        dead_letters,
        deregister_workers,
        destroy,
        download,
        download_batch,
        failures,
        find_root,
        get_job,
        get_runners,
        get_workers,
        host_output,
        isiterable,
        iterate_workers,
        key_exists,
        launch,
        launch_plan,
        launch_workers,
        list_hosts,
        list_orphans,
        list_runners,
        logs,
        parse_message,
        pause,
        plan,
        plan_launch,
        prepare,
        process,
        process_job,
        queue,
        queue_job,
        queue_plan,
        register_workers,
        restore_contents,
        resume,
        retry,
        run,
        run_plan,
        start,
        status,
        stop,
        upload_batch,
        upload_files,
        wait,
        watch,
    )

__all__ = [
    "RunnerInfo",
    "__version__",
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


def __getattr__(name: str) -> Any:
    if name in __all__:
        from adr import adr

        return getattr(adr, name)
    raise AttributeError(f"module 'adr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

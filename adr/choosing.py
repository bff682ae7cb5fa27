"""Which jobs somebody means: by name, by number, or by a glob of names."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from adr.errors import UsageError
from adr.models import JobId
from adr.views import JobView

__all__ = ["choose_jobs"]


def choose_jobs(views: Sequence[JobView], patterns: Sequence[str]) -> list[JobView]:
    """Return the jobs, of those in `views`, that any pattern names; without any, all of them.

    A job is named by label or ``batch/label``; what is no name is a number, and else a glob.

    Raises
    ------
    UsageError
        If there is no job of one of these names.
    """
    if not patterns:
        return list(views)
    # A shell may have made a hundred thousand names of one pattern.
    named: dict[str, list[JobView]] = {}
    numbered: dict[str, list[JobView]] = {}
    for view in views:
        numbered.setdefault(str(view.job.index), []).append(view)
        for name in (view.job.label, view.job.name):
            named.setdefault(name, []).append(view)
    chosen: dict[JobId, JobView] = {}
    for pattern in patterns:
        found = named.get(pattern) or numbered.get(pattern) or _matching(views, pattern)
        if not found:
            raise UsageError(f"no job is named like {pattern!r}: adr status --jobs shows all")
        chosen.update((view.job.id, view) for view in found)
    return [view for view in views if view.job.id in chosen]


def _matching(views: Sequence[JobView], glob: str) -> list[JobView]:
    return [
        view
        for view in views
        if any(fnmatch.fnmatchcase(name, glob) for name in (view.job.label, view.job.name))
    ]

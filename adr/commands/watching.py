"""What ``adr status --watch`` does: show the state of a runner again and again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from adr import joboutput, output
from adr.screen import Screen, can_redraw
from adr.times import moment_text

if TYPE_CHECKING:
    from adr.waiting import Look

__all__ = ["watch_status"]


def watch_status(
    looks: Iterable[Look], *, interval_s: float | None, jobs: bool, as_json: bool
) -> None:
    """Show one look after the other until Ctrl-C, in place where there is a terminal.

    Parameters
    ----------
    looks : iterable of Look
        Each is made when it is asked for.
    interval_s : float, optional
        Seconds between two of them; without, as they advise.
    jobs : bool
        Show each job as well.
    as_json : bool
        Print each as a line of JSON.
    """
    with suppress(KeyboardInterrupt):
        if can_redraw() and not as_json:
            _redraw(looks, interval_s, jobs)
        else:
            _print(looks, interval_s, jobs, as_json)


def _redraw(looks: Iterable[Look], interval_s: float | None, jobs: bool) -> None:
    looks = iter(looks)
    # Before the screen is taken: a refusal of the first look is to be read on the usual one.
    look = next(looks)
    try:
        with Screen() as screen:
            while True:
                head = list(_head(look))
                until = time.monotonic() + (interval_s or look.pause_s)
                again = True
                while again:
                    frame = joboutput.status_frame(look.status, head, screen.size[1], jobs)
                    screen.show(frame)
                    again = screen.wait(until - time.monotonic())
                look = next(looks)
    finally:
        for line in joboutput.status_lines(look.status, jobs=False):
            print(line)


def _print(looks: Iterable[Look], interval_s: float | None, jobs: bool, as_json: bool) -> None:
    for look in looks:
        if look.trouble:
            output.say(f"adr: {output.plain(look.trouble)}")
        elif as_json:
            output.print_json(look.status.to_dict(jobs))
        else:
            print(moment_text(time.time()))
            for line in joboutput.status_lines(look.status, jobs):
                print(line)
            print(flush=True)
        time.sleep(interval_s or look.pause_s)


def _head(look: Look) -> Iterator[str]:
    yield f"{moment_text(time.time())}  {output.plain(look.status.runner)}"
    if look.trouble:
        yield f"cannot be read now, as it was before: {output.plain(look.trouble)}"

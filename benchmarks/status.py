"""The status of many jobs, all decided: by the command, and again in the same process."""

from __future__ import annotations

import time

from benchmarks.cloud import Cloud, opened
from benchmarks.inputs import emptied
from benchmarks.measure import Race, Run, Setting, adr_command, call, run, take_turns
from benchmarks.table import Goal, Table

__all__ = ["tables"]

_COLUMNS = ["", "s", "CPU s", "peak MB", "calls"]


def tables(setting: Setting) -> list[Table]:
    """Measure."""
    number = setting.size(100_000, 2000)
    folder = setting.folder / "runner"
    call("benchmarks.status:prepare", str(folder), number)
    found = [_table(f"status of {number:,} jobs, local", str(folder), setting, None)]
    with opened() as cloud:
        with cloud.near():
            runner_id = call("benchmarks.status:prepare", None, number, env=cloud.env).result
        title = f"status of {number:,} jobs on AWS at {cloud.rtt_ms:g} ms, records of 10 workers"
        found.append(_table(title, runner_id, setting, cloud))
    return found


def _table(title: str, runner_id: str, setting: Setting, cloud: Cloud | None) -> Table:
    kept = setting.folder / "cache"
    env = {**(cloud.env if cloud else {}), "XDG_CACHE_HOME": str(kept)}
    calls: dict[str, int] = {}

    def look(who: str) -> Run:
        if cloud:
            cloud.reset()
        done = run(adr_command("status", f"--runner={runner_id}"), env=env)
        if cloud:
            calls[who] = sum(cloud.calls().values())
        return done

    def first() -> Run:
        emptied(kept)
        return look("adr status")

    race = take_turns(
        {
            "adr status": first,
            "and once more": lambda: look("and once more"),
            "in one process": lambda: call("benchmarks.status:again", runner_id, env=env),
        },
        setting.rounds,
    )
    table = Table(title, _COLUMNS)
    for who in race.runs:
        figures = [
            race.median(who, lambda run: run.wall_s),
            race.median(who, lambda run: run.cpu_s),
            race.median(who, lambda run: run.peak_bytes) / 1e6,
        ]
        if who == "in one process":
            continue
        table.rows.append([who, *figures, calls.get(who)])
    for what in ("first", "again"):
        if "in one process" in race.runs:
            table.rows.append([f"{what}, in one process", *_within(race, what), None, None])
    found = [
        race.median(who, lambda run: run.wall_s) if who in race.runs else None
        for who in ("adr status", "and once more")
    ]
    table.goals += [
        Goal("seconds of the first adr status", found[0], most=3),
        Goal("seconds of the next adr status", found[1], most=1),
    ]
    if cloud:
        table.goals.append(Goal("calls", calls.get("adr status"), most=250))
    table.notes += [f"{who}: not measured: {why}" for who, why in race.absent.items()]
    return table


def _within(race: Race, what: str) -> list[float]:
    """Return wall and CPU seconds of the first or the second look of one process."""
    return [
        race.median("in one process", lambda run: run.result[what][0]),
        race.median("in one process", lambda run: run.result[what][1]),
    ]


def prepare(directory: str | None, number: int) -> str:
    """Make a runner with a batch that is decided; return its id."""
    from benchmarks.batches import decided_batch, new_runner

    runner_id = new_runner(directory)
    decided_batch(runner_id, number)
    return runner_id


def again(runner_id: str) -> dict[str, tuple[float, float]]:
    """Ask twice; return wall and CPU seconds of each."""
    from adr.runner import open_runner
    from adr.survey import Survey

    survey = Survey(open_runner(runner_id))
    found = {}
    for what in ("first", "again"):
        began, cpu_s = time.perf_counter(), time.process_time()
        survey.status()
        found[what] = (time.perf_counter() - began, time.process_time() - cpu_s)
    return found

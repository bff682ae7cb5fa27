"""Bundling text against ``zip -1``, and queueing bytes that cannot be compressed against boto3."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cloud import opened
from benchmarks.inputs import emptied, random_file, text_file
from benchmarks.measure import Race, Run, Setting, call, run, take_turns
from benchmarks.table import Goal, Table

__all__ = ["tables"]


def tables(setting: Setting) -> list[Table]:
    """Measure."""
    size_bytes = setting.size(1 << 30, 32 << 20)
    return [_text(setting, size_bytes), _random(setting, size_bytes)]


def _text(setting: Setting, size_bytes: int) -> Table:
    folder = setting.folder
    inputs = emptied(folder / "text")
    text_file(inputs / "table.txt", size_bytes)
    ours, theirs = folder / "adr.zip", folder / "zip.zip"

    def zipped() -> Run:
        theirs.unlink(missing_ok=True)
        return run(["zip", "-1", "-q", str(theirs), "table.txt"], cwd=inputs)

    def bundled() -> Run:
        ours.unlink(missing_ok=True)
        return call("benchmarks.bundling:bundle", str(inputs), str(ours))

    race = take_turns({"zip -1": zipped, "adr": bundled}, setting.rounds)
    sizes = {"zip -1": theirs, "adr": ours}
    table = _table(f"bundling {size_bytes >> 20:,} MiB of text", race, size_bytes, "zip -1", sizes)
    speed = race.ratio("adr", "zip -1", lambda run: 1 / run.wall_s)
    both = {"adr", "zip -1"} <= race.runs.keys()
    larger = ours.stat().st_size / theirs.stat().st_size if both else None
    table.goals += [
        Goal("speed against zip -1", speed, least=1.8),
        Goal("size against zip -1", larger, most=1.15),
    ]
    return table


def _random(setting: Setting, size_bytes: int) -> Table:
    folder = setting.folder
    inputs = emptied(folder / "random")
    random_file(inputs / "field.bin", size_bytes)
    with opened() as cloud:

        def contender(name: str, path: Path) -> Run:
            # A new one each time: what is queued already would not be queued again.
            with cloud.near():
                runner_id = call("benchmarks.queueing:new_adr_sqs", env=cloud.env).result
            return call(name, str(path), runner_id, env=cloud.env)

        race = take_turns(
            {
                "boto3 upload_file": lambda: contender(
                    "benchmarks.bundling:upload", inputs / "field.bin"
                ),
                "adr queue": lambda: contender("benchmarks.queueing:adr_sqs", inputs),
            },
            setting.rounds,
        )
    title = f"queueing {size_bytes >> 20:,} MiB of random bytes at {cloud.rtt_ms:g} ms"
    table = _table(title, race, size_bytes, "boto3 upload_file", {})
    table.goals.append(
        Goal(
            "time against boto3 alone",
            race.ratio("adr queue", "boto3 upload_file", lambda run: run.wall_s),
            most=1.1,
        )
    )
    for each in race.runs.get("adr queue", [])[-1:]:
        parts = ", ".join(f"{what} {took_s:.2f} s" for what, took_s in each.result.items())
        table.notes.append(f"adr, last run: {parts} (with uploading)")
    return table


def _table(
    title: str, race: Race, size_bytes: int, reference: str, files: dict[str, Path]
) -> Table:
    columns = ["", "MB/s", f"x {reference}", "CPU s", "peak MB"]
    table = Table(title, [*columns, "size MB"] if files else columns)
    for who in race.runs:
        row = [
            who,
            size_bytes / 1e6 / race.median(who, lambda run: run.wall_s),
            race.ratio(who, reference, lambda run: 1 / run.wall_s),
            race.median(who, lambda run: run.cpu_s),
            race.median(who, lambda run: run.peak_bytes) / 1e6,
        ]
        table.rows.append([*row, files[who].stat().st_size / 1e6] if files else row)
    table.notes += [f"{who}: not measured: {why}" for who, why in race.absent.items()]
    return table


def bundle(inputs: str, target: str) -> None:
    """Bundle all files of a folder as for AWS."""
    from adr.batch import plan_batch
    from adr.bundle import write_bundle

    plan = plan_batch(sorted(Path(inputs).iterdir()), command="true")
    write_bundle(plan.root, plan.members, target, compress=True)


def upload(path: str, bucket: str) -> None:
    """Upload a file with boto3 alone."""
    import boto3

    boto3.client("s3").upload_file(path, bucket, "field.bin")

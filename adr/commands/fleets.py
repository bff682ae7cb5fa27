"""The commands about hosts: launch, prepare, start and stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adr import hostoutput, output, progressbar
from adr.commands.base import command, telling_if_interrupted
from adr.commands.login import login_of, password_of
from adr.current import runner_of
from adr.errors import PartialFailure, UsageError
from adr.options import Arguments

if TYPE_CHECKING:
    from adr.fleets.base import LaunchReport

__all__ = ["adr_launch", "adr_prepare", "adr_start", "adr_stop"]

#: Options of a launch, apart from those that have to be read in a special way.
_TEXTS = (
    "max", "ait", "ami", "image", "asg", "akp", "subnet", "disk", "instance-profile", "setup",
    "pip-options", "slots", "idle", "max-hours", "user", "key", "hours", "timeout",
)  # fmt: skip
_FLAGS = ("spot", "fallback", "aws-for-jobs", "prepare", "keep", "copy-credentials")


@command
def adr_launch(given: Arguments) -> int:
    """Launch workers on EC2, on your own hosts, or on this machine; print addresses.

    Usage:
      adr launch [options] [--volume=SNAP]... [--] [<runner>]

    For a runner on AWS, instances install adr, work, and end by themselves when
    there is nothing to do. With --hosts your own machines are set up over SSH. For
    a local runner worker processes are started on this machine.

    Options:
      -n N, --number=N       How many; auto is as many as the waiting jobs ask for;
                             without, 1
      --max=N                At most N, with -n auto; without, 10
      --dry-run              Show what would be launched, and stop
      --json                 Print what was launched as JSON
      <runner options>
      <general options>

    Worker options:
      <worker options>
      --setup=FILE           Run this script on each host before the first job
      --pip-options=TEXT     Options for pip, such as an index of your own

    EC2 options:
      --ait=TYPE             Instance types, with commas; without, c7i.large
      --ami=AMI              Machine image
      --image=NAME           Newest machine image of ubuntu or amazon; without,
                             ubuntu
      --asg=SG               Ids of security groups, with commas; without, one is
                             made that lets nothing in
      --akp=KEY              Name of a key pair; without, none
      --subnet=SUBNET        Id of a subnet; without, those of the default VPC
      --spot                 Spot instances
      --fallback             On-demand instances where there are too few of spot
      --disk=GIB             Size of the disk; without, what the bundles need
      --volume=SNAP          Data volume from a snapshot, and where it is mounted,
                             snap-...:/mnt/data; repeatable
      --instance-profile=P   Instance profile; without, one is made that reaches
                             this runner and nothing else
      --aws-for-jobs         Let jobs use the role of their instance
      --prepare              Only boot, with SSH open to this machine: adr prepare
                             does the rest

    SSH options:
      --hosts=HOSTS          Your own machines, [user@]host[:port] as ssh knows
                             them, with commas
      <login options>
    """
    from adr import adr as core
    from adr.launchoptions import launch_spec
    from adr.runner import is_runner_id

    runner, region = runner_of(given), given.text("--region")
    options: dict[str, Any] = {name.replace("-", "_"): given.text(f"--{name}") for name in _TEXTS}
    options |= {name.replace("-", "_"): given.flag(f"--{name}") for name in _FLAGS}
    options["volume"] = given.texts("--volume")
    options["hosts"] = given.listed("--hosts")
    if given.flag("--ask-password") and options["hosts"] is None:
        raise UsageError("--ask-password is for --hosts: give that as well, or leave it out")
    options["password"] = password_of(given)
    kind = "ec2" if is_runner_id(runner) else "local"
    spec = launch_spec(kind, given.text("--number"), options)
    plan = core.plan_launch(runner, spec, region)
    if given.flag("--dry-run"):
        if given.flag("--json"):
            output.print_json(hostoutput.plan_data(plan))
        else:
            for line in hostoutput.plan_lines(plan):
                print(line)
        return 0
    if not given.flag("--quiet"):
        for line in hostoutput.cost_lines(plan):
            output.say(line)
    left = "hosts may have been launched: adr list RUNNER shows them, adr destroy ends them"
    with telling_if_interrupted(left), progressbar.progress(given.flag("--quiet")) as progress:
        report = core.launch_plan(runner, spec, plan, region, progress=progress)
    return _shown(given, runner, report, "launch")


@command
def adr_prepare(given: Arguments) -> int:
    """Install adr on hosts over SSH and start their workers; print their addresses.

    Usage:
      adr prepare [options] [--] [<runner>]

    Instances that adr has launched need none of this, unless with --prepare.

    Options:
      --hosts=HOSTS          Hosts: instances, or [user@]host[:port] as ssh knows
                             them, with commas; without, those prepared before, and
                             instances launched with --prepare
      <login options>
      --renew                Only lend new credentials
      --setup=FILE           Run this script on each host before the first job
      --pip-options=TEXT     Options for pip, such as an index of your own
      --warn-only            Exit with 0 even where a host could not be prepared
      --json                 Print the outcome as JSON
      <worker options>
      <runner options>
      <general options>
    """
    from adr import adr as core

    runner = runner_of(given)
    names = ("setup", "pip-options", "slots", "idle", "max-hours")
    options: dict[str, Any] = {name.replace("-", "_"): given.text(f"--{name}") for name in names}
    timeout = given.number("--timeout", "seconds")
    if timeout is not None:
        options["timeout"] = timeout
    left = "what has begun on a host may go on there: adr prepare again, or adr stop --hosts=HOST"
    with telling_if_interrupted(left), progressbar.progress(given.flag("--quiet")) as progress:
        report = core.prepare(
            runner,
            given.text("--region"),
            given.listed("--hosts"),
            given.text("--user"),
            password_of(given),
            given.text("--key"),
            warn_only=True,
            renew=given.flag("--renew"),
            hours=given.number("--hours", "hours"),
            copy_credentials=given.flag("--copy-credentials"),
            keep=given.flag("--keep"),
            progress=progress,
            **options,
        )
    status = _shown(given, runner, report, "prepare")
    return 0 if given.flag("--warn-only") else status


@command
def adr_start(given: Arguments) -> int:
    """Start stopped workers, and their instances, again; print their addresses.

    Usage:
      adr start [options] [--] [<runner>]

    Options:
      --hosts=HOSTS          Only these, by name or address, with commas; without,
                             all that are stopped, or whose worker has left
      <ssh options>
      --json                 Print the outcome as JSON
      <runner options>
      <general options>
    """
    return _change(given, "start")


@command
def adr_stop(given: Arguments) -> int:
    """Stop workers, which give their jobs back, and their instances.

    Usage:
      adr stop [options] [--] [<runner>]

    What is stopped costs its disks only, and starts again with adr start.

    Options:
      --hosts=HOSTS          Only these, by name or address, with commas; without,
                             all that run
      <ssh options>
      --json                 Print the outcome as JSON
      <runner options>
      <general options>
    """
    return _change(given, "stop")


def _change(given: Arguments, verb: str) -> int:
    from adr import adr as core

    runner, chosen = runner_of(given), given.listed("--hosts")
    act = core.start if verb == "start" else core.stop
    login = login_of(given)
    try:
        with progressbar.progress(given.flag("--quiet")) as progress:
            hosts = act(runner, given.text("--region"), chosen, **login, progress=progress)
    except PartialFailure as error:
        done, failed = list(error.succeeded), list(error.failed)
        if given.flag("--json"):
            output.print_json({"runner": runner, "succeeded": done, "failed": failed})
        elif done and not given.flag("--quiet"):
            past = "started" if verb == "start" else "stopped"
            output.say(f"{past}: {output.plain(', '.join(done))} (adr list RUNNER shows all)")
        raise
    if not given.flag("--quiet"):
        for line in hostoutput.change_lines(hosts, verb):
            output.say(line)
    if given.flag("--json"):
        output.print_json({"runner": runner, "hosts": list(map(hostoutput.host_data, hosts))})
    elif verb == "start":
        hostoutput.print_addresses(hosts)
    return 0


def _shown(given: Arguments, runner: str, report: LaunchReport, verb: str) -> int:
    """Show what was launched or prepared, and return the exit status."""
    for line in hostoutput.failure_lines(report, verb):
        output.say(line)
    if not given.flag("--quiet"):
        for note in report.notes:
            output.say(output.plain(note))
    if given.flag("--json"):
        output.print_json({"runner": runner, **hostoutput.report_data(report)})
    else:
        hostoutput.print_addresses(report.hosts)
    return 1 if report.failed else 0

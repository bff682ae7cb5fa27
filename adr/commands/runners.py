"""The commands about runners: create, list, set, config and destroy."""

from __future__ import annotations

import logging

from adr import hostoutput, output, progressbar
from adr.commands.base import command, telling_if_interrupted
from adr.commands.login import login_of
from adr.current import configured_runner, runner_of, same_runner
from adr.errors import AdrError, UsageError
from adr.options import Arguments

__all__ = ["adr_config", "adr_create", "adr_destroy", "adr_list", "adr_set"]


_log = logging.getLogger(__name__)


@command
def adr_create(given: Arguments) -> int:
    """Create a runner, print its id and make it the current one.

    Usage:
      adr create [options]

    Options:
      --local                A runner in a folder of this machine, not on AWS
      --dir=DIR              Its folder; without, one of its own among the data of
                             the user
      --region=REGION        Amazon region
      --json                 Print the id as JSON
      <general options>
    """
    from adr import adr as core
    from adr import config

    local, directory = given.flag("--local"), given.text("--dir")
    if directory is not None and not local:
        raise UsageError("--dir is the folder of a local runner: give --local as well")
    # A broken configuration is to be noticed before there is a runner that it cannot name.
    config.load_config()
    runner = core.create(given.text("--region"), local=local, directory=directory)
    try:
        config.update_config("runner", runner)
    except AdrError:
        core.destroy(runner, given.text("--region"), purge=True)
        raise
    if given.flag("--json"):
        output.print_json({"runner": runner})
    else:
        print(runner)
    return 0


@command
def adr_list(given: Arguments) -> int:
    """List runners, the current one with a star; or the hosts of one runner.

    Usage:
      adr list [options] [--] [<runner>]

    Options:
      --orphans              List instances that adr has launched, in all regions,
                             whose runner is gone
      --json                 Print JSON
      <runner options>
      <general options>
    """
    from adr import adr as core

    named = given.text("<runner>") or given.text("--runner")
    if given.flag("--orphans"):
        if named:
            raise UsageError("--orphans looks for instances without a runner: name none")
        return _list_orphans(given)
    if not named:
        return _list_runners(given)
    runner = runner_of(given)
    hosts = core.list_hosts(runner, given.text("--region"))
    if given.flag("--json"):
        workers = [worker.to_dict() for host in hosts for worker in host.workers]
        found = [host.to_dict() for host in hosts]
        data = {"hosts": found, "workers": workers, "not_known": list(hosts.not_known)}
        output.print_json({"runner": runner, **data})
    elif hosts:
        hostoutput.print_hosts(hosts)
    elif hosts.not_known:
        why = "; ".join(map(str, hosts.not_known.values()))
        raise AdrError(f"whether there are hosts is not known: {why}")
    elif hosts.destroyed:
        output.say("the runner has been destroyed, and has no hosts any more")
    else:
        output.say("there are no hosts: adr launch starts some")
    return 0


def _list_orphans(given: Arguments) -> int:
    from adr import adr as core

    orphans, notes = core.list_orphans(given.text("--region"))
    for note in notes:
        _log.warning("%s", note)
    if given.flag("--json"):
        found = [hostoutput.orphan_data(each) for each in orphans]
        output.print_json({"orphans": found, "notes": notes})
    elif orphans:
        hostoutput.print_orphans(orphans)
    if not given.flag("--quiet"):
        for line in hostoutput.orphan_lines(orphans, everywhere=not notes):
            output.say(line)
    return 0


@command
def adr_set(given: Arguments) -> int:
    """Choose the current runner; without one, list those there are.

    Usage:
      adr set [options] [--] [<runner>]

    Options:
      --json                 Print JSON
      <runner options>
      <general options>
    """
    from adr import config
    from adr.runner import is_local_runner, is_runner_id

    if not (given.text("<runner>") or given.text("--runner")):
        return _list_runners(given)
    runner = runner_of(given)
    if not (is_runner_id(runner) or is_local_runner(runner)):
        raise UsageError(f"{runner!r} is no runner: adr list shows those there are")
    config.update_config("runner", runner)
    if given.flag("--json"):
        output.print_json({"runner": runner})
    return 0


@command
def adr_config(given: Arguments) -> int:
    """Answer the questions of the configuration wizard; Enter keeps a value.

    Usage:
      adr config [options]

    Options:
      <general options>
    """
    from adr import config

    config.wizard()
    return 0


@command
def adr_destroy(given: Arguments) -> int:
    """Destroy a runner: its hosts, queue and inputs; results and records are kept.

    Usage:
      adr destroy [options] [--] [<runner>]

    Workers notice within seconds. What they wrote of a purged batch meanwhile is
    removed by the same command again.

    Options:
      --hosts=HOSTS          Only end these hosts, by name or address, with commas
      --batch=BATCH          Only this batch
      --purge                Remove results and records as well
      <ssh options>
      --yes                  Ask nothing
      --json                 Print the outcome as JSON
      <runner options>
      <general options>
    """
    from adr import adr as core
    from adr import config

    runner, batch, purge = runner_of(given), given.text("--batch"), given.flag("--purge")
    hosts = given.listed("--hosts")
    if hosts is not None and (batch is not None or purge):
        raise UsageError("--hosts ends hosts and nothing else: leave --batch and --purge out")
    whole = hosts is None and batch is None
    what = f"runner {runner}"
    if batch is not None:
        what = f"batch {batch} of {what}"
    elif hosts is not None:
        what = f"{', '.join(hosts)} of {what}"
    if not given.flag("--yes") and not _agreed(given, runner, what, whole, hosts is not None):
        output.say("nothing has been destroyed")
        return 1
    login = login_of(given)
    left = "it may be half destroyed: the same command goes on"
    with telling_if_interrupted(left), progressbar.progress(given.flag("--quiet")) as progress:
        core.destroy(
            runner,
            given.text("--region"),
            hosts,
            batch=batch,
            purge=purge,
            **login,
            progress=progress,
        )
    before = configured_runner()
    current = before
    if whole and before is not None and same_runner(before, runner):
        # No other takes its place: the same command again must not destroy that one.
        config.update_config("runner", None)
        current = None
    if not given.flag("--quiet"):
        output.say(f"destroyed {output.plain(what)}")
        if current != before:
            output.say("there is no current runner now: adr set chooses one")
    if given.flag("--json"):
        output.print_json(
            {"runner": runner, "hosts": hosts, "batch": batch, "purged": purge, "current": current}
        )
    return 0


def _agreed(given: Arguments, runner: str, what: str, whole: bool, hosts: bool) -> bool:
    """Ask whether that is to be destroyed, with all that would go with it."""
    refusal = f"not destroyed {what}, as there is no terminal to ask on: confirm with --yes"
    output.need_terminal(refusal)
    also = _hosts_that_end(given, runner) if whole else ""
    kept = "with all its results" if given.flag("--purge") else "but not its results"
    question = f"Destroy {output.plain(what)}{also}{'' if hosts else ', ' + kept}?"
    return output.confirm(f"{question} There is no undo.", refusal)


def _hosts_that_end(given: Arguments, runner: str) -> str:
    from adr import adr as core

    try:
        hosts = core.list_hosts(runner, given.text("--region"))
    except AdrError as error:
        # What is half destroyed can be destroyed all the same.
        _log.debug("the hosts are not known: %s", error)
        return ""
    number = sum(1 for host in hosts if host.host.fleet and host.host.state.value != "ended")
    return f" with {output.count(number, 'host')}" if number else ""


def _list_runners(given: Arguments) -> int:
    from adr import adr as core

    current = configured_runner()
    runners = core.list_runners(given.text("--region"))
    stars = [current is not None and same_runner(info.runner, current) for info in runners]
    if given.flag("--json"):
        rows = zip(runners, stars, strict=True)
        output.print_json({"runners": [output.runner_data(info, star) for info, star in rows]})
        return 0
    for info, star in zip(runners, stars, strict=True):
        print(("* " if star else "  ") + output.runner_line(info))
    if not runners:
        output.say("there are no runners: adr create makes one")
    return 0

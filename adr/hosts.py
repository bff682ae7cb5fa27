"""The functions of adr that are about machines: launch, prepare, stop, start and list them.

They are part of the Python API, and to be had from `adr.adr` and from ``adr`` itself. Each
opens the runner and delegates to `adr.launching` or `adr.inventory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adr import inventory, launching, preparing
from adr.errors import PartialFailure
from adr.fleets.base import Host, LaunchPlan, LaunchReport
from adr.inventory import Hosts
from adr.launching import Spec
from adr.launchoptions import launch_spec, ssh_spec
from adr.progress import SILENT, Progress
from adr.runner import open_runner

if TYPE_CHECKING:
    from adr.fleets.ec2.orphans import Orphan

__all__ = [
    "host_output",
    "launch",
    "launch_plan",
    "list_hosts",
    "list_orphans",
    "plan_launch",
    "prepare",
    "start",
    "stop",
]


def launch(
    runner_id: str, n: int | str | None, region_name: str | None = None, **kwargs: Any
) -> list[str]:
    """Launch Amazon workers for specific runner.

    Launches Amazon instances for a given runner and registers the workers in the Amazon S3
    Bucket. Each Amazon instance is tagged with the runner ID. The instances install adr, work,
    and end themselves. For a local runner worker processes are started on this machine.

    Parameters
    ----------
    runner_id : str
        Runner ID
    n : int
        Number of instances to launch; ``"auto"`` for as many as the waiting jobs ask for; None
        where `hosts` names machines of one's own
    region_name : str, optional
        Amazon region identifier
    kwargs : dict, optional
        Options of ``adr launch`` by their long names, with underscores: `ami`, `asg`, `akp`,
        `ait`, `spot`, `max_hours` …

    Returns
    -------
    list
        List with public IP addresses of workers; of those that have none the names

    See Also
    --------
    prepare, stop, launch_workers, register_workers

    Raises
    ------
    UsageError
        If an option cannot be used; nothing has been launched.
    PartialFailure
        If some of them could not be had; the others are there.

    Examples
    --------
    >>> adr.launch(runner, 5, ait="c7i.2xlarge", spot=True, max_hours=12)
    """
    runner = open_runner(runner_id, region_name)
    spec = launch_spec(next(iter(runner.fleets)), n, kwargs)
    report = launching.launch(runner, spec, launching.plan_launch(runner, spec), SILENT)
    _raise_failed(report, "launch")
    return [host.address or host.name for host in report.hosts]


def plan_launch(runner_id: str, spec: Spec, region_name: str | None = None) -> LaunchPlan:
    """Say what a launch would do, and what an hour of it costs; changes nothing.

    Parameters
    ----------
    runner_id : str
        Runner ID
    spec : Ec2Spec, SshSpec or LocalSpec
        What is wanted, see `adr.fleets.specs`
    region_name : str, optional
        Amazon region identifier

    Raises
    ------
    UsageError
        If it cannot be had.
    """
    return launching.plan_launch(open_runner(runner_id, region_name), spec)


def launch_plan(
    runner_id: str,
    spec: Spec,
    plan: LaunchPlan,
    region_name: str | None = None,
    *,
    progress: Progress = SILENT,
) -> LaunchReport:
    """Carry out what `plan_launch` has planned, and register the hosts.

    Parameters
    ----------
    runner_id : str
        Runner ID
    spec : Ec2Spec, SshSpec or LocalSpec
        What was planned
    plan : LaunchPlan
        The plan
    region_name : str, optional
        Amazon region identifier
    progress : Progress, optional
        Told of the advance.
    """
    return launching.launch(open_runner(runner_id, region_name), spec, plan, progress)


def prepare(
    runner_id: str,
    region_name: str | None = None,
    hosts: Sequence[str] | None = None,
    user: str | None = None,
    password: str | None = None,
    key_filename: str | None = None,
    warn_only: bool = False,
    timeout: float = 600,
    *,
    renew: bool = False,
    hours: float | None = None,
    copy_credentials: bool = False,
    progress: Progress = SILENT,
    **kwargs: Any,
) -> LaunchReport:
    """Prepare workers for specific runner.

    Install the Amazon Distributed Runner to all workers over SSH and start processing the
    queue. Instances that set themselves up need none of this.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier
    hosts : list, optional
        List of specific hosts to prepare: instances, or names as ssh knows them [default: the
        hosts that were prepared before, and instances that were launched to be prepared]
    user : str, optional
        SSH username [default: from the configuration or ``~/.ssh/config``; for instances ubuntu]
    password : str, optional
        SSH password, also the passphrase of the key
    key_filename : str, optional
        Path to SSH key file [default: from the configuration]
    warn_only : bool, optional
        Only report errors, do not raise them [default: False]
    timeout : int, optional
        Maximum duration in seconds of installation execution [default: 600]
    renew : bool, optional
        Hand over new credentials and do nothing else [default: False]
    hours : float, optional
        Hours for which credentials are lent [default: 12]
    copy_credentials : bool, optional
        Hand over the caller's own keys instead; whoever is root there has them [default: False]
    progress : Progress, optional
        Told of the advance.
    kwargs : dict, optional
        Further options of ``adr prepare`` by their names: `setup`, `pip_options`, `slots` …

    Returns
    -------
    LaunchReport
        Which hosts are ready, and which are not

    See Also
    --------
    fabfile

    Raises
    ------
    PartialFailure
        If some could not be prepared; the others are.
    """
    spec = ssh_spec(
        hosts=hosts,
        user=user,
        password=password,
        key=key_filename,
        timeout=timeout,
        renew=renew,
        hours=hours,
        copy_credentials=copy_credentials,
        **kwargs,
    )
    report = preparing.prepare(open_runner(runner_id, region_name), spec, progress)
    if not warn_only:
        _raise_failed(report, "prepare")
    return report


def start(
    runner_id: str,
    region_name: str | None = None,
    hosts: Sequence[str] | None = None,
    *,
    user: str | None = None,
    password: str | None = None,
    key_filename: str | None = None,
    progress: Progress = SILENT,
) -> list[Host]:
    """Start stopped workers for specific runner.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier
    hosts : list, optional
        List of specific hosts to start, by name or address [default: all that are
        stopped, or whose worker has left]
    user, password, key_filename : str, optional
        How to log in to hosts over SSH [default: as they were prepared]
    progress : Progress, optional
        Told of the advance.

    Returns
    -------
    list of Host
        The hosts as they are now; addresses may have changed

    See Also
    --------
    stop, register_workers
    """
    runner = launching.logging_in(open_runner(runner_id, region_name), user, password, key_filename)
    return launching.start(runner, hosts, progress)


def stop(
    runner_id: str,
    region_name: str | None = None,
    hosts: Sequence[str] | None = None,
    *,
    user: str | None = None,
    password: str | None = None,
    key_filename: str | None = None,
    progress: Progress = SILENT,
) -> list[Host]:
    """Stop running workers for specific runner; they give their jobs back.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier
    hosts : list, optional
        List of specific hosts to stop, by name or address [default: all that run]
    user, password, key_filename : str, optional
        How to log in to hosts over SSH [default: as they were prepared]
    progress : Progress, optional
        Told of the advance.

    Returns
    -------
    list of Host
        The hosts as they are now

    See Also
    --------
    start, deregister_workers
    """
    runner = launching.logging_in(open_runner(runner_id, region_name), user, password, key_filename)
    return launching.stop(runner, hosts, progress)


def list_hosts(runner_id: str, region_name: str | None = None) -> Hosts:
    """List the hosts of a runner: launched, prepared, and joined by hand.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier

    Returns
    -------
    Hosts
        A list of `HostView`; its `not_known` names the fleets that could not be asked
    """
    return inventory.hosts(open_runner(runner_id, region_name))


def list_orphans(region_name: str | None = None) -> tuple[list[Orphan], list[str]]:
    """List the instances that adr has launched and whose runner is gone, in all regions.

    Parameters
    ----------
    region_name : str, optional
        Amazon region identifier: one that can be asked for all others

    Returns
    -------
    list of Orphan, list of str
        The instances, and which regions could not be asked
    """
    from adr.aws import session
    from adr.fleets.ec2.orphans import orphans

    return orphans(session(region_name))


def host_output(runner_id: str, host: str, region_name: str | None = None) -> bytes:
    """Return what a host has said: why its setup failed, or the log of its worker.

    Parameters
    ----------
    runner_id : str
        Runner ID
    host : str
        Its name or address
    region_name : str, optional
        Amazon region identifier

    Raises
    ------
    UsageError
        If there is no such host.
    AdrError
        If nothing is known.
    """
    return inventory.output_of(open_runner(runner_id, region_name), host)


def _raise_failed(report: LaunchReport, verb: str) -> None:
    if report.failed:
        said = "; ".join(f"{name}: {why}" for name, why in report.failed.items())
        raise PartialFailure(
            f"could not {verb} {len(report.failed)} of {report.wanted} hosts ({said})",
            succeeded=[host.name for host in report.hosts],
            failed=list(report.failed),
        )

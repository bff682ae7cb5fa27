"""Fleets, heartbeats and registered addresses taken together; and how a runner is destroyed.

The runner is a local one, with fleets that only note what is asked of them.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from adr import inventory, launching
from adr.destruction import destroy_runner
from adr.errors import (
    AdrError,
    Denied,
    PartialFailure,
    RunnerGone,
    ServiceError,
    Unavailable,
    UsageError,
)
from adr.fleets.base import Demand, Host, HostState, LaunchPlan, LaunchReport
from adr.fleets.specs import Ec2Spec, LocalSpec, SshSpec
from adr.keys import setup_key
from adr.models import new_id
from adr.orders import order_destruction, read_orders
from adr.preparing import prepare
from adr.progress import SILENT
from adr.runner import create_runner
from adr.workerinfo import WorkerInfo


class Bare:
    """A fleet that can only launch and end; notes the calls in `done`."""

    def __init__(self, kind, *hosts):
        self.kind = kind
        self.known = {host.name: host for host in hosts}
        self.done = []
        self.broken = {}

    def plan(self, spec, demand):
        self.done.append(("plan", spec, demand))
        return LaunchPlan(1, (), {}, spec)

    def launch(self, plan, progress):
        self.done.append(("launch", plan.request))
        names = getattr(plan.request, "hosts", ("new",))
        hosts = [Host(name, self.kind, HostState.RUNNING, name) for name in names]
        return LaunchReport(len(names), hosts)

    def hosts(self):
        self._fail("hosts")
        return list(self.known.values())

    def terminate(self, hosts, progress):
        self.done.append(("terminate", [host.name for host in hosts]))
        self._fail("terminate")
        for host in hosts:
            self.known.pop(host.name, None)

    def dissolve(self, progress):
        self.done.append(("dissolve",))
        self._fail("dissolve")

    def _fail(self, verb):
        if verb in self.broken:
            raise self.broken[verb]


class Resting(Bare):
    """A fleet that can also stop and start its hosts."""

    def stop(self, hosts, progress):
        self.done.append(("stop", [host.name for host in hosts]))
        return self._all(hosts, "stop", HostState.STOPPED, "")

    def start(self, hosts, progress):
        self.done.append(("start", [host.name for host in hosts]))
        return self._all(hosts, "start", HostState.RUNNING, "new-{}")

    def output(self, host):
        return {"i-1": b"said", "i-2": b""}.get(host.name)

    def _all(self, hosts, verb, state, address):
        failed = getattr(self.broken.get(verb), "failed", ())
        for host in hosts:
            if host.name not in failed:
                changed = replace(host, state=state, address=address.format(host.name))
                self.known[host.name] = changed
        self._fail(verb)
        return [self.known[host.name] for host in hosts]


RUNNING = Host("i-1", "ec2", HostState.RUNNING, "3.0.0.1")
WAITING = Host("i-2", "ec2", HostState.RUNNING, "3.0.0.2", login="ubuntu")
STOPPED = Host("i-3", "ec2", HostState.STOPPED)
LAB = Host("lab1", "ssh", HostState.RUNNING, "lab1")


@pytest.fixture
def ec2():
    return Resting("ec2", RUNNING, WAITING, STOPPED)


@pytest.fixture
def ssh():
    return Resting("ssh", LAB)


@pytest.fixture
def runner(tmp_path, ec2, ssh):
    made = create_runner(local=True, directory=tmp_path / "runner")
    return replace(made, fleets={"ec2": lambda: ec2, "ssh": lambda: ssh})


def beat(runner, host, **about):
    """Write the heartbeat of a worker, which lives as long as this process."""
    worker = new_id()
    runner.roster._locks.hold(worker)
    runner.roster.beat(WorkerInfo(worker, host, 1, 4, time.time(), "0", **about))


def registered(runner):
    return inventory.addresses(runner.store)


# Lists


def test_hosts_are_joined_with_their_workers(runner):
    # given a worker by the name of its host, one by its address, and one of no fleet
    beat(runner, "i-1", done=3, note="draining")
    beat(runner, "3.0.0.2", done=1)
    beat(runner, "desk")
    beat(runner, "desk")
    # when
    views = {view.name: view for view in inventory.hosts(runner)}
    # then
    assert list(views) == ["i-1", "i-2", "i-3", "lab1", "desk"]
    assert [view.done for view in views.values()] == [3, 1, 0, 0, 0]
    assert [view.slots for view in views.values()] == [4, 4, 0, 0, 8]
    assert views["i-1"].note == "draining"
    assert views["desk"].host.fleet == ""


def test_a_failed_setup_is_shown_also_where_the_host_is_gone(runner):
    for name in ("i-1", "i-2", "i-9"):
        runner.store.write(setup_key(name), b"no such package")
    # a worker lives there by now
    beat(runner, "i-2")

    views = {view.name: view for view in inventory.hosts(runner)}

    assert [name for name, view in views.items() if view.setup_failed] == ["i-1", "i-9"]
    assert views["i-9"].host.state is HostState.ENDED
    assert "adr logs --worker=i-9" in views["i-9"].note
    assert inventory.output_of(runner, "i-9") == b"no such package"


class Lasting(Resting):
    """A fleet that knows some hosts after they have ended."""

    gone: tuple[Host, ...] = ()

    def former(self, name):
        return next((host for host in self.gone if host.name == name), None)

    def ended(self):
        return list(self.gone)


def test_a_host_that_ended_without_a_word_is_shown(runner):
    fleet = Lasting("ec2", RUNNING)
    names = ("i-6", "i-7", "i-8")
    fleet.gone = tuple(Host(name, "ec2", HostState.ENDED) for name in names)
    runner = replace(runner, fleets={"ec2": lambda: fleet})
    # one had a worker that has left, one could say why its setup failed
    runner.roster.leave(WorkerInfo(new_id(), "i-6", 1, 4, time.time(), "0"))
    runner.store.write(setup_key("i-7"), b"no such package")

    views = {view.name: view for view in inventory.hosts(runner)}

    assert list(views) == ["i-1", "i-7", "i-8"]
    assert views["i-8"].host.state is HostState.ENDED
    assert views["i-8"].note == "ended before its worker was heard of: adr logs --worker=i-8"
    assert views["i-7"].note == "setup failed: adr logs --worker=i-7"
    # Nothing of a destroyed runner is heard of.
    order_destruction(runner.store)
    assert [view.name for view in inventory.hosts(runner)] == ["i-1", "i-7"]


def test_a_fleet_that_cannot_be_asked_hides_no_other(runner, ec2, caplog):
    ec2.broken["hosts"] = ServiceError("AWS denies DescribeInstances")

    assert [view.name for view in inventory.hosts(runner)] == ["lab1"]
    assert "the hosts of the fleet ec2 are not known: AWS denies" in caplog.text


def test_what_is_not_known_is_not_called_none(runner, ec2, ssh):
    ec2.broken["hosts"] = error = ServiceError("AWS is busy")
    ssh.known = {}

    assert inventory.hosts(runner).not_known == {"ec2": error}
    for ask in (
        lambda: prepare(runner, SshSpec(()), SILENT),
        lambda: inventory.output_of(runner, "i-1"),
    ):
        with pytest.raises(ServiceError, match="AWS is busy"):
            ask()


@pytest.mark.parametrize("ask", [launching.plan_launch, lambda *a: prepare(*a, SILENT)])
@pytest.mark.parametrize("names", [("lab1",), ()])
def test_a_local_runner_says_that_other_hosts_do_not_reach_it(runner, ask, names):
    here = replace(runner, fleets={"local": lambda: Resting("local")})

    with pytest.raises(UsageError, match="a folder of this machine, which other hosts do not"):
        ask(here, SshSpec(names))


def test_a_destroyed_runner_is_known_to_have_no_hosts(runner, ec2, ssh):
    ec2.known, ssh.known = {}, {}
    assert not inventory.hosts(runner).destroyed

    order_destruction(runner.store)
    assert inventory.hosts(runner).destroyed


def test_whoever_may_not_look_for_instances_is_told_only_where_there_may_be_some(
    runner, ec2, caplog
):
    ec2.broken["hosts"] = Denied("AWS denies DescribeInstances")
    inventory.register(runner.store, ["lab1"])

    inventory.hosts(runner)
    assert "AWS denies" not in caplog.text

    inventory.register(runner.store, ["3.0.0.1"])
    inventory.hosts(runner)
    assert "AWS denies" in caplog.text


def test_hosts_are_chosen_by_name_or_address(runner):
    views = inventory.hosts(runner)

    chosen = inventory.choose(views, ["lab1", "3.0.0.1"])
    assert [view.name for view in chosen] == ["i-1", "lab1"]
    with pytest.raises(UsageError, match="no host 'i-7': it has i-1, i-2, i-3, lab1"):
        inventory.choose(views, ["i-1", "i-7"])
    with pytest.raises(UsageError, match="no host ''"):
        inventory.choose(views, [""])


def test_what_a_host_has_said_is_given_by_its_fleet(runner):
    assert inventory.output_of(runner, "3.0.0.1") == b"said"
    with pytest.raises(AdrError, match="i-2 has said nothing yet"):
        inventory.output_of(runner, "i-2")
    with pytest.raises(AdrError, match="nothing of what lab1 says"):
        inventory.output_of(runner, "lab1")


# Launches


def test_more_slots_than_can_ever_have_a_job_are_not_launched(runner, ec2):
    few = replace(runner, most_leased=120)
    ec2.plan = lambda spec, demand: LaunchPlan(10, (), {}, spec, slots=121)

    with pytest.raises(UsageError, match=r"10 hosts would run 121 jobs at once.* lends 120 at a"):
        launching.plan_launch(few, Ec2Spec(n=10))

    ec2.plan = lambda spec, demand: LaunchPlan(10, (), {}, spec, slots=120)
    assert launching.plan_launch(few, Ec2Spec(n=10)).n == 10


def test_launched_hosts_are_registered(runner, ec2):
    spec = Ec2Spec()
    report = launching.launch(runner, spec, launching.plan_launch(runner, spec), SILENT)

    assert [host.name for host in report.hosts] == ["new"]
    assert registered(runner) == ["new"]
    assert ec2.done == [("plan", spec, Demand()), ("launch", spec)]


def test_only_hosts_that_work_are_registered_by_a_launch(runner, ssh):
    # given hosts of which one stays stopped, as where only credentials are renewed
    states = (HostState.STOPPED, HostState.RUNNING, HostState.PENDING, HostState.UNKNOWN)
    reported = [Host(state.value, "ssh", state, f"at-{state.value}") for state in states]
    ssh.launch = lambda plan, progress: LaunchReport(4, reported)
    spec = SshSpec(hosts=("lab1",), renew=True)
    # when
    report = launching.launch(runner, spec, launching.plan_launch(runner, spec), SILENT)
    # then
    assert report.hosts == reported
    assert registered(runner) == ["at-pending", "at-running", "at-unknown"]


@pytest.mark.parametrize("broken", [None, ServiceError("AWS denies TerminateInstances")])
def test_what_was_launched_is_ended_where_the_runner_was_destroyed_meanwhile(runner, ec2, broken):
    plan = launching.plan_launch(runner, Ec2Spec())
    order_destruction(runner.store)
    if broken:
        ec2.broken["terminate"] = broken

    said = "not all that was launched could be ended .AWS denies" if broken else "is ended again"
    with pytest.raises(RunnerGone, match=f"was destroyed meanwhile.*{said}.*adr destroy"):
        launching.launch(runner, Ec2Spec(), plan, SILENT)
    assert ("terminate", ["new"]) in ec2.done
    assert registered(runner) == []


def test_a_runner_without_such_a_fleet_says_which_it_has(runner):
    with pytest.raises(UsageError, match="no fleet of the kind local: it has ec2 and ssh"):
        launching.plan_launch(runner, LocalSpec())


# Rest


def test_stopping_deregisters_and_starting_registers_the_new_address(runner, ec2, ssh):
    inventory.register(runner.store, ["3.0.0.1", "3.0.0.2", "lab1"])

    launching.stop(runner, None, SILENT)
    assert registered(runner) == []
    assert (ec2.done, ssh.done) == ([("stop", ["i-1", "i-2"])], [("stop", ["lab1"])])

    launching.start(runner, ["i-1"], SILENT)
    assert registered(runner) == ["new-i-1"]
    assert ec2.done[-1] == ("start", ["i-1"])


def test_all_hosts_without_a_worker_are_started(runner, ec2):
    # given a fleet of each kind, with a host that works and hosts whose worker is gone
    here = Resting("local", *(Host(f"local-{n}", "local", HostState.ENDED) for n in (1, 2)))
    labs = Resting("ssh", LAB, replace(LAB, name="lab2", address="lab2"))
    fleets = {"ec2": lambda: ec2, "ssh": lambda: labs, "local": lambda: here}
    runner = replace(runner, fleets=fleets)
    beat(runner, "lab1")
    beat(runner, "local-2")
    # when
    views = {view.name: view for view in inventory.hosts(runner)}
    launching.start(runner, None, SILENT)
    # then an instance that runs is left alone, which may be setting itself up
    assert [fleet.done for fleet in (ec2, labs, here)] == [
        [("start", ["i-3"])],
        [("start", ["lab2"])],
        [("start", ["local-1"])],
    ]
    # and a list says how
    notes = {name: view.note for name, view in views.items() if view.note}
    assert notes == {"lab2": "no worker: adr start --hosts=lab2"}


def test_of_many_hosts_the_failing_ones_are_named_and_the_others_dealt_with(runner, ec2, ssh):
    # given
    inventory.register(runner.store, ["3.0.0.1", "3.0.0.2", "lab1"])
    ec2.broken["stop"] = PartialFailure("i-2 has a hiccup", ["i-1"], ["i-2"])
    # when
    with pytest.raises(
        PartialFailure, match="could not stop all hosts: i-2 has a hiccup"
    ) as caught:
        launching.stop(runner, None, SILENT)
    # then
    assert (caught.value.succeeded, caught.value.failed) == (("i-1", "lab1"), ("i-2",))
    assert registered(runner) == ["3.0.0.2"]
    assert ssh.done == [("stop", ["lab1"])]


def test_one_error_alone_stays_what_it_is(runner, ec2):
    ec2.broken["stop"] = UsageError("no")

    with pytest.raises(UsageError, match=r"^no$"):
        launching.stop(runner, ["i-1"], SILENT)


def test_a_fleet_that_cannot_rest_says_so_before_anything_is_done(runner, ssh):
    other = replace(runner, fleets={**runner.fleets, "ec2": lambda: Bare("ec2", RUNNING)})

    with pytest.raises(UsageError, match="the fleet ec2 cannot stop its hosts: adr destroy"):
        launching.stop(other, None, SILENT)
    assert ssh.done == []


def test_workers_started_by_hand_are_left_alone(runner):
    beat(runner, "desk")

    for act in (launching.stop, launching.start, launching.terminate):
        with pytest.raises(UsageError, match="desk, whose worker was started by hand"):
            act(runner, ["desk"], SILENT)


def test_nothing_is_called_stopped_where_a_fleet_cannot_be_asked(runner, ec2, ssh):
    ec2.broken["hosts"] = ServiceError("AWS is busy")

    for act in (launching.stop, launching.start, launching.terminate):
        with pytest.raises(ServiceError, match="AWS is busy"):
            act(runner, ["lab1"], SILENT)
    assert ssh.done == []


def test_hosts_over_ssh_are_logged_in_to_as_asked(runner, ssh):
    ssh.login = SshSpec(())  # with the same fields

    there = launching.logging_in(runner, "me", "pw", None)

    assert launching.stop(there, ["lab1"], SILENT)
    assert (ssh.login.user, ssh.login.password) == ("me", "pw")
    assert launching.logging_in(runner, None, None, None) is runner


def test_a_login_is_refused_where_nothing_is_reached_over_ssh(runner, ec2):
    other = replace(runner, fleets={"ec2": lambda: ec2})

    with pytest.raises(UsageError, match="not reached over SSH"):
        launching.logging_in(other, "me", None, None)


def test_ended_hosts_are_forgotten(runner, ec2):
    inventory.register(runner.store, ["3.0.0.1", "3.0.0.2"])
    for name in ("i-1", "i-9"):
        runner.store.write(setup_key(name), b"x")

    launching.terminate(runner, ["i-1", "i-9"], SILENT)

    assert registered(runner) == ["3.0.0.2"]
    assert [view.name for view in inventory.hosts(runner)] == ["i-2", "i-3", "lab1"]


# Preparing


def test_the_hosts_of_a_runner_are_prepared_as_they_are_reached(runner, ssh):
    report = prepare(runner, SshSpec(()), SILENT)

    assert [request for verb, request, *_ in ssh.done if verb == "launch"] == [
        SshSpec(("lab1",)),
        SshSpec(("3.0.0.2",), user="ubuntu", remember=False),
    ]
    assert report.wanted == 2
    assert report.notes == [
        "i-1 sets itself up and needs no preparation",
        "i-3 sets itself up and needs no preparation",
    ]
    assert registered(runner) == ["3.0.0.2", "lab1"]


def test_instances_are_logged_in_to_as_their_image_has_it(runner, ec2, ssh):
    amazon = Host("i-4", "ec2", HostState.RUNNING, "3.0.0.4", login="ec2-user")
    ec2.known, ssh.known = {"i-2": WAITING, "i-4": amazon}, {}

    prepare(runner, SshSpec(()), SILENT)

    assert [request for verb, request, *_ in ssh.done if verb == "launch"] == [
        SshSpec(("3.0.0.2",), user="ubuntu", remember=False),
        SshSpec(("3.0.0.4",), user="ec2-user", remember=False),
    ]


class Shut(Resting):
    """A fleet whose hosts let nobody in by themselves."""

    def let_in(self):
        self.done.append(("let_in",))
        self._fail("let_in")


def test_this_machine_is_let_in_to_the_instances_that_it_prepares(runner, ssh):
    shut = Shut("ec2", WAITING, replace(WAITING, name="i-5", address="3.0.0.5"))
    runner = replace(runner, fleets={**runner.fleets, "ec2": lambda: shut})

    prepare(runner, SshSpec(("lab1",)), SILENT)
    assert shut.done == []
    prepare(runner, SshSpec(()), SILENT)
    assert shut.done == [("let_in",)]

    shut.broken["let_in"] = Denied("AWS denies it")
    report = prepare(runner, SshSpec(()), SILENT)
    assert report.notes == ["SSH may be closed to this machine: AWS denies it"]
    assert report.wanted == 3


def test_only_the_named_hosts_are_prepared(runner, ssh):
    prepare(runner, SshSpec(("i-2", "lab2"), user="me"), SILENT)

    assert [request for verb, request, *_ in ssh.done if verb == "launch"] == [
        SshSpec(("lab2",), user="me"),
        SshSpec(("3.0.0.2",), user="me", remember=False),
    ]


def test_hosts_that_set_themselves_up_need_no_preparation(runner, ec2, ssh):
    ec2.known, ssh.known = {"i-1": RUNNING}, {}

    report = prepare(runner, SshSpec(()), SILENT)

    assert report == LaunchReport(0, notes=["i-1 sets itself up and needs no preparation"])
    assert ssh.done == []


def test_without_any_host_to_prepare_the_way_to_one_is_told(runner, ec2, ssh):
    ec2.known, ssh.known = {}, {}

    with pytest.raises(UsageError, match="no hosts to prepare: name some with --hosts"):
        prepare(runner, SshSpec(()), SILENT)


# The end


def test_a_runner_is_destroyed_with_all_its_hosts(runner, ec2, ssh):
    inventory.register(runner.store, ["3.0.0.1"])
    runner.store.write(setup_key("i-1"), b"x")
    # what workers see when their hosts end
    seen = []
    ending = ec2.terminate
    ec2.terminate = lambda hosts, progress: (
        seen.append(read_orders(runner.store).destroyed),
        ending(hosts, progress),
    )

    destroy_runner(runner, False, SILENT)

    assert seen == [True]
    assert ec2.done == [("terminate", ["i-1", "i-2", "i-3"]), ("dissolve",)]
    assert ssh.done == [("terminate", ["lab1"]), ("dissolve",)]
    assert [entry.key for entry in runner.store.list("_workers/")] == []
    # and again
    destroy_runner(runner, False, SILENT)


def test_a_host_that_cannot_be_ended_stops_nothing_else_and_can_be_ended_later(runner, ec2, ssh):
    # given
    ec2.broken["terminate"] = ServiceError("AWS is busy")
    runner.store.write("batch.zip", b"x")
    # when
    with pytest.raises(PartialFailure, match="AWS is busy; once that is mended, the same command"):
        destroy_runner(runner, False, SILENT)
    # then
    assert ("dissolve",) not in ec2.done
    assert ssh.done == [("terminate", ["lab1"]), ("dissolve",)]
    assert [entry.key for entry in runner.store.list("", flat=True)] == []
    with pytest.raises(RunnerGone):
        runner.ledger.send([])
    # and later
    del ec2.broken["terminate"]
    destroy_runner(runner, False, SILENT)
    assert ec2.done[-1] == ("dissolve",)


@pytest.mark.parametrize("kind", [Denied, Unavailable])
def test_whoever_does_not_reach_instances_can_destroy_what_has_none(runner, ec2, ssh, kind):
    for verb in ("hosts", "dissolve"):
        ec2.broken[verb] = kind("it is out of reach")
    inventory.register(runner.store, ["lab1"])

    destroy_runner(runner, False, SILENT)

    assert ("dissolve",) in ssh.done
    assert registered(runner) == []


@pytest.mark.parametrize("trace", ["_install/x/y", "_launches/x", "_workers/3.0.0.1"])
def test_what_may_have_instances_is_not_called_destroyed_unseen(runner, ec2, trace):
    for verb in ("hosts", "dissolve"):
        ec2.broken[verb] = Denied("AWS denies it")
    runner.store.write(trace, b"")

    for _ in range(2):
        with pytest.raises(PartialFailure, match="AWS denies it"):
            destroy_runner(runner, False, SILENT)


def test_nothing_is_purged_while_something_that_costs_is_left(runner, ec2):
    ec2.broken["dissolve"] = AdrError("the volume vol-1 is left")

    with pytest.raises(PartialFailure, match="vol-1 is left"):
        destroy_runner(runner, True, SILENT)
    assert read_orders(runner.store).destroyed

    del ec2.broken["dissolve"]
    destroy_runner(runner, True, SILENT)
    with pytest.raises(RunnerGone):
        runner.store.write("x", b"")


def test_a_lost_host_does_not_keep_a_runner_from_being_purged(runner, ssh):
    ssh.broken["terminate"] = PartialFailure("lab1 does not answer", (), ["lab1"])

    with pytest.raises(PartialFailure, match=r"lab1 does not answer$"):
        destroy_runner(runner, True, SILENT)

    with pytest.raises(RunnerGone):
        runner.store.write("x", b"")


def test_hosts_are_ended_also_where_all_else_is_gone(runner, ec2, ssh):
    runner.remove()
    ssh.broken["hosts"] = RunnerGone("what it remembers lay in the store")

    destroy_runner(runner, False, SILENT)

    assert ec2.done == [("terminate", ["i-1", "i-2", "i-3"]), ("dissolve",)]
    # and when nothing at all is left
    with pytest.raises(RunnerGone):
        destroy_runner(runner, False, SILENT)

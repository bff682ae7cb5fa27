"""The worker: leases jobs, hands them to its slots, holds on to its leases, and ends well.

Threads, each with one duty: ``receive`` leases, one thread per slot runs, the outbox stores
and settles, ``keep`` extends leases and gives back those that do not get their turn
(`adr.worker.leases`), ``heart`` writes the heartbeat and reads the orders
(`adr.worker.heartbeat`), ``notice`` looks whether EC2 takes the machine away
(`adr.worker.notice`), ``hurry`` bounds how long the end takes. The thread that calls `Worker.run`
waits for the end, and ends jobs for which there is no time. What they share is small: the leases
at hand (`adr.worker.turns`), and whether it ends (`adr.worker.ending`).
"""

from __future__ import annotations

import logging
import math
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adr.errors import AdrError, NotFound, RunnerGone, ServiceError
from adr.models import JobRecord, JobState, Lease, WorkerInfo
from adr.orders import Orders, read_orders
from adr.runner import Runner
from adr.survey import Survey
from adr.version import __version__
from adr.worker.bundles import Bundles, DiskTooSmall
from adr.worker.ending import Ending
from adr.worker.heartbeat import Heartbeat
from adr.worker.leases import LeaseKeeper
from adr.worker.lifetime import Lifetime
from adr.worker.notice import watch
from adr.worker.outbox import Outbox
from adr.worker.place import Place, cores
from adr.worker.policy import Policy
from adr.worker.slot import Delivery, Limits, Slot
from adr.worker.tree import discard_tree
from adr.worker.turns import Turns

__all__ = ["Worker", "WorkerReport"]

_log = logging.getLogger(__name__)

_TICK_S = 0.5
_LISTEN_S = 0.1
_LONGEST_PAUSE_S = 30.0
_AFTER_TROUBLE_S = 5.0
_LONGEST_BACKOFF_S = 600.0


@dataclass
class WorkerReport:
    """Count the jobs that a worker has settled."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    #: Whether it was told to stop by a signal; a worker itself knows of none.
    interrupted: bool = False


class Worker:
    """Process the jobs of a runner in this process.

    Parameters
    ----------
    runner : Runner
        The runner, opened for `worker`.
    worker : str
        Id of this worker; no other process ever had it.
    workingdir : Path
        Where the worker makes its own directory.
    slots : int, optional
        How many jobs run at once; without, as many as there are cores.
    stop_on_empty : bool, optional
        Leave when the queue is proved to be empty.
    most_jobs : int, optional
        Leave after so many jobs, and when there is none to lease.
    limits : Limits, optional
        Bounds for jobs.
    on_settled : callable, optional
        Called with each record once it is durable, from another thread.
    host : str, optional
        What lists and records call this machine; without, its host name.
    idle_s : float, optional
        Leave when the jobs of at least one batch are all decided, or after so many seconds
        with nothing to do; see `Policy`.
    max_s : float, optional
        Seconds after which all has to be over: jobs that run by then have failed; see `Lifetime`.
    alive : Path, optional
        File that tells a timer of the system that this worker lives; see `Heartbeat`.
    watch_notice : bool, optional
        Look whether EC2 is about to take this machine away: jobs are given back then, apart from
        those that succeed in the time that is left.
    """

    def __init__(
        self,
        runner: Runner,
        worker: str,
        workingdir: Path,
        *,
        slots: int | None = None,
        stop_on_empty: bool = False,
        most_jobs: int | None = None,
        limits: Limits | None = None,
        on_settled: Callable[[JobRecord], None] | None = None,
        host: str | None = None,
        idle_s: float | None = None,
        max_s: float | None = None,
        alive: Path | None = None,
        watch_notice: bool = False,
    ) -> None:
        self._runner = runner
        self._worker = worker
        self._workingdir = workingdir
        self._slots = slots or cores()
        self._limits = limits or Limits()
        self._on_settled = on_settled
        self._host = host or socket.gethostname()
        self._watch_notice = watch_notice
        self._turns = Turns()
        self._ending = Ending(self._host, Lifetime(max_s, self._limits.term_s))
        self._outbox = Outbox(runner, self._settled, lambda: self._turns.is_idle, self._leave)
        self._policy = Policy(
            runner.ledger,
            Survey(runner),
            stop_on_empty=stop_on_empty,
            most_jobs=most_jobs,
            idle_s=idle_s,
            worker=worker,
            alive=runner.roster.alive,
        )
        self._leases = LeaseKeeper(
            runner.ledger, self._turns, self._outbox.leases, self._policy.given_back, self._leave
        )
        self._heartbeat = Heartbeat(runner, self._info, self._obey, self._leave, alive)
        self._started_at = time.time()
        self.report = WorkerReport()
        #: Guards the number of slots.
        self._guard = threading.Lock()
        self._orders = Orders()

    @property
    def running(self) -> int:
        """Return how many jobs run now."""
        return len(self._turns)

    def run(self) -> WorkerReport:
        """Work until `stop` is called, the runner is gone, or there is no reason to stay.

        Raises
        ------
        UsageError
            If the working directory cannot be used.
        RunnerGone, ServiceError
            If the runner cannot be reached at the start.
        """
        self._orders = read_orders(self._runner.store)
        if self._orders.destroyed:
            raise RunnerGone(f"the runner {self._runner.id} has been destroyed")
        self._runner.ledger.send([])
        self._place = Place(self._workingdir, self._worker)
        bundles = Bundles(self._runner.store, self._place.path / "bundles")
        slots = [
            Slot(
                number,
                self._place.path / f"slot-{number}",
                bundles,
                self._worker,
                self._runner.id,
                self._limits,
                self._host,
            )
            for number in range(1, self._slots + 1)
        ]
        # Before anything is leased: others must not take this worker for a dead one.
        self._heartbeat.begin()
        self._outbox.start()
        threads = [
            threading.Thread(target=self._run_slot, args=(slot,), name=f"slot-{slot.number}")
            for slot in slots
        ]
        ending = self._ending
        keepers = [
            _daemon("keep", self._leases.keep, ending),
            _daemon("heart", self._heartbeat.go_on, ending.over),
            _daemon("hurry", self._hurry),
        ]
        others = [receiver := _daemon("receive", self._receive_all)]
        if self._watch_notice:
            others.append(_daemon("notice", watch, ending.over, ending.interrupt))
        for thread in (*keepers, *threads, *others):
            thread.start()
        # A signal may come to another thread, which does not wake this one from a wait without
        # end, and its handler sets the event, whose lock this thread must not hold then.
        while not ending.begun.is_set():
            receiver.join(_LISTEN_S)
            ending.look(self._policy.usual_s)
        self._drain(slots, threads)
        self._outbox.close()
        ending.over.set()
        for thread in keepers:
            thread.join()
        # It may be in a long poll of an empty queue, which is not worth waiting for.
        receiver.join(_TICK_S)
        self._heartbeat.end(ending.gone)
        self._place.remove()
        return self.report

    def stop(self) -> None:
        """Lease nothing more, end the jobs, give their leases back; from any thread.

        What is done is settled, if that is possible soon (`Limits.settle_s`).
        """
        self._ending.drop()

    def _leave(self) -> None:
        """End because the runner is gone: drop everything and write nothing more."""
        self._ending.gone = True
        self._outbox.abandon()
        self.stop()

    def _drain(self, slots: list[Slot], threads: list[threading.Thread]) -> None:
        """Give back what has not begun, and wait until the slots are empty."""
        unstarted = self._turns.close()
        self._stop_jobs()
        self._leases.release(unstarted)
        while any(thread.is_alive() for thread in threads):
            # Again and again, since a job that is about to start does not hear of it.
            self._stop_jobs()
            if self._turns:
                self._turns.wait(_TICK_S)
        for slot in slots:
            slot.close()

    def _stop_jobs(self) -> None:
        """End what runs, if it has to."""
        reason = self._ending.reason
        if reason is not None:
            self._turns.stop(lambda _: True, reason, self._ending.term_s(reason))

    def _receive_all(self) -> None:
        pause_s = _TICK_S
        ending = self._ending.begun
        while not ending.is_set():
            idle = self._turns.is_idle
            wanted = self._policy.wanted(self._slots, *self._turns.load())
            if wanted <= 0:
                if idle and self._policy.is_used_up:
                    ending.set()
                else:
                    self._turns.wait(_TICK_S)
                continue
            room_s = self._ending.lifetime.room_s(self._policy.usual_s)
            patience_s = max(0.0, min(room_s, self._policy.patience_s(idle)))
            try:
                leases = self._runner.ledger.receive(wanted, patience_s)
                idle = self._turns.is_idle and self._outbox.is_empty
                if not leases and self._policy.is_finished(idle):
                    ending.set()
                pause_s = _TICK_S
            except RunnerGone as error:
                _log.warning("%s", error)
                self._leave()
                return
            except AdrError as error:
                _log.warning("%s; trying again in %.0f s", error, pause_s)
                ending.wait(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
                continue
            except Exception:
                _log.exception("leasing failed; trying again in %.0f s", _LONGEST_PAUSE_S)
                ending.wait(_LONGEST_PAUSE_S)
                continue
            self._policy.leased(len(leases))
            self._take(leases)

    def _take(self, leases: list[Lease]) -> None:
        """Put leases in front of the slots, or away if they are not wanted any more."""
        called_off = [lease for lease in leases if self._is_called_off(lease)]
        for lease in called_off:
            self._outbox.settle(lease, self._cancelled(lease))
        wanted = [lease for lease in leases if lease not in called_off]
        if self._ending.begun.is_set() or not self._turns.add(wanted):
            self._leases.release(wanted)

    def _run_slot(self, slot: Slot) -> None:
        while lease := self._turns.take(slot):
            staging = self._place.path / "outbox" / lease.attempt
            retire = False
            try:
                retire = self._work(slot, lease, staging)
            except RunnerGone:
                self._leave()
                return
            except ServiceError as error:
                _log.warning("%s; giving %s back", error, lease.job.name)
                self._leases.release([lease], delay_s=_AFTER_TROUBLE_S)
                self._ending.begun.wait(_AFTER_TROUBLE_S)
            except Exception as error:
                _log.exception("slot %d could not run %s", slot.number, lease.job.name)
                discard_tree(staging)
                self._outbox.settle(lease, slot.refusal(lease, f"adr failed: {error!r}"))
            finally:
                self._turns.end(slot)
            if retire:
                return

    def _work(self, slot: Slot, lease: Lease, staging: Path) -> bool:
        """Run one job and hand on what it left; return whether the slot has to retire."""
        slots = self._slots
        try:
            slot.prepare(lease)
        except DiskTooSmall as error:
            return self._make_room(slot, lease, error, slots)
        except ServiceError:
            raise
        except (AdrError, OSError) as error:
            reason = f"its inputs cannot be had: {error}"
            if isinstance(error, NotFound) and self._is_called_off(lease):
                self._outbox.settle(lease, self._cancelled(lease))
            else:
                self._outbox.settle(lease, slot.refusal(lease, reason))
            return False
        if self._ending.reason is not None or self._is_called_off(lease):
            self._give_up(lease)
            return False
        if not self._runner.ledger.start([lease]):
            return False
        self._turns.begin(slot)
        began = time.monotonic()
        try:
            delivery = slot.run(lease, staging)
        except (OSError, ValueError) as error:
            discard_tree(staging)
            reason = f"it could not be run: {error}"
            self._outbox.settle(lease, slot.refusal(lease, reason))
            return False
        self._policy.ended(time.monotonic() - began)
        if delivery is None:
            self._give_up(lease, self._ending.job_note)
        elif self._is_to_repeat(delivery):
            discard_tree(staging)
            backoff_s = min(_LONGEST_BACKOFF_S, 2.0 ** min(lease.failures, 10))
            delay_s = backoff_s * random.uniform(0.75, 1.25)
            self._leases.release([lease], delay_s, failed=True)
        else:
            self._outbox.put(delivery)
        return False

    def _make_room(self, slot: Slot, lease: Lease, error: DiskTooSmall, slots: int) -> bool:
        """Do with a slot less, or without a job; return whether this slot retires.

        Of `slots`, as there were before, another may have retired meanwhile: try again then.
        """
        with self._guard:
            retire = self._slots == slots > 1
            if retire:
                self._slots -= 1
        if retire:
            _log.warning("%s: going on with %d slots", error, slots - 1)
            slot.close()
        if slots > 1:
            self._leases.release([lease])
        else:
            self._outbox.settle(lease, slot.refusal(lease, str(error)))
        return retire

    @staticmethod
    def _is_to_repeat(delivery: Delivery) -> bool:
        lease = delivery.lease
        failed = delivery.record.state is JobState.FAILED and not delivery.final
        return failed and lease.failures + 1 < lease.job.attempts

    def _give_up(self, lease: Lease, note: str = "") -> None:
        """Deal with the lease of a job that was ended before it was done."""
        if self._turns.is_lost(lease):
            _log.warning("the lease of %s was lost; its run is dropped", lease.job.name)
        elif self._is_called_off(lease):
            self._outbox.settle(lease, self._cancelled(lease))
        else:
            self._leases.release([lease], note=note)

    def _is_called_off(self, lease: Lease) -> bool:
        return lease.job.batch in self._orders.destroyed_batches

    def _cancelled(self, lease: Lease) -> JobRecord:
        return JobRecord.of(
            lease.job,
            lease.attempt,
            JobState.CANCELLED,
            "its batch was destroyed",
            leased_at=lease.leased_at,
            ended_at=time.time(),
            host=self._host,
            worker=self._worker,
            notes=lease.notes,
        )

    def _settled(self, record: JobRecord) -> None:
        name = record.state.value
        setattr(self.report, name, getattr(self.report, name) + 1)
        if self._on_settled:
            self._on_settled(record)

    def _hurry(self) -> None:
        """Let the end not last for ever where the services are away."""
        until = math.inf
        while not self._ending.over.wait(_TICK_S):
            now = time.monotonic()
            if self._ending.dropping.is_set():
                until = min(until, now + self._limits.settle_s)
            if now >= until or self._ending.lifetime.is_over:
                self._outbox.hurry()
                return

    def _info(self) -> WorkerInfo:
        report = self.report
        return WorkerInfo(
            worker=self._worker,
            host=self._host,
            pid=os.getpid(),
            slots=self._slots,
            started_at=self._started_at,
            adr_version=__version__,
            done=report.succeeded + report.failed + report.cancelled,
            running=self._turns.infos(),
            note=self._ending.note,
        )

    def _obey(self, orders: Orders) -> None:
        self._orders = orders
        if orders.destroyed:
            self._leave()
        self._turns.stop(self._is_called_off)


def _daemon(name: str, target: Callable[..., None], *args: Any) -> threading.Thread:
    return threading.Thread(target=target, args=args, name=name, daemon=True)

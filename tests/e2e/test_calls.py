"""What a batch costs in calls of AWS: they are its price and, far away, its time."""

from __future__ import annotations

JOBS = 100


def test_a_batch_of_a_hundred_jobs_costs_few_calls(proxy, shell):
    # given
    shell.write({f"case{number:03}.txt": f"{number}\n" for number in range(JOBS)})
    cases = sorted(path.name for path in shell.folder.iterdir())
    shell("create")

    def cost(*words):
        proxy.reset()
        shell(*words)
        return proxy.total, dict(proxy.counts)

    # when each job leaves one result
    queue = cost("queue", "--command", "cp {} out.csv; sleep 0.05", *cases)
    process = cost("process", "--stop-on-empty", "--slots=2")
    download = cost("download", "results")
    # then
    assert queue[0] <= 0.15 * JOBS, queue
    assert process[0] <= 1.5 * JOBS, process
    assert download[0] <= 1.1 * JOBS, download
    assert sorted(shell.tree("results").values()) == sorted(f"{number}\n" for number in range(JOBS))
    # and looking at all of it costs next to nothing
    status = cost("status")
    assert status[0] <= 10, status

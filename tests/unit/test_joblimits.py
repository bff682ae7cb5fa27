"""How long and how often a job may run: what is given, the configuration, defaults."""

from __future__ import annotations

import pytest

from adr import config, plan
from adr.errors import UsageError
from adr.joblimits import JobLimits, job_limits, read_codes


def test_what_is_given_hides_the_configuration_and_that_the_defaults(tmp_path):
    (tmp_path / "a.txt").touch()
    assert job_limits() == JobLimits(None, 1, (), 5)
    # given
    config.update_config("job", "timeout", 60)
    config.update_config("job", "attempts", 3)
    config.update_config("job", "retry_on", [75, "100-102", 75])
    # when
    found = job_limits(attempts=2, crash_limit=1)
    # then
    assert found == JobLimits(60, 2, (75, 100, 101, 102), 1)
    assert job_limits(1.5, retry_on=["139"]) == JobLimits(1.5, 3, (139,), 5)
    # and it is the same where a batch is planned
    (job,) = plan([tmp_path / "a.txt"], command="true", attempts=2, crash_limit=1).jobs
    assert JobLimits.of(job) == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"timeout": 0}, "timeout is 0: give a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout is nan: give"),
        ({"attempts": 0}, "attempts is 0: give a whole number from 1 up"),
        ({"crash_limit": 1.5}, "crash_limit is 1.5: give a whole number"),
        ({"retry_on": [256]}, "retry_on takes exit codes from 1 to 255, such as .*, not 256"),
    ],
)
def test_what_is_no_limit_is_named_wherever_it_stands(given, said):
    with pytest.raises(UsageError, match=f"^{said}"):
        job_limits(**given)
    ((name, value),) = given.items()
    if value == value:
        config.update_config("job", name, value)
        with pytest.raises(UsageError, match=f"^'job.{name}' of the configuration "):
            job_limits()


@pytest.mark.parametrize("text", ["", "0", "256", "1-", "-1", "5-4", "1-2-3", "x", "٣"])
def test_what_is_no_exit_code_is_refused(text):
    with pytest.raises(UsageError, match="--retry-on takes exit codes"):
        read_codes([text], "--retry-on")


def test_codes_come_in_order_and_once():
    assert read_codes(["139", " 3 - 5", "4", 1], "x") == (1, 3, 4, 5, 139)

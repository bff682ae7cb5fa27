"""moto, whose fleets give their instances all that machines of these tests need of a template.

Run instead of ``python -m moto.server``. moto itself leaves out the instance profile, and what
an instance does when it shuts itself down.
"""

from __future__ import annotations

from typing import Any

from moto.ec2.models.fleets import Fleet
from moto.server import main

_make = Fleet.__init__


def _made(self: Fleet, ec2_backend: Any, *args: Any, **options: Any) -> None:
    _make(self, ec2_backend, *args, **options)
    for each in self.instances or ():
        found = each["LaunchTemplateAndOverrides"]["LaunchTemplateSpecification"]
        template = ec2_backend.get_launch_template(found["LaunchTemplateId"])
        data = template.get_version(found["Version"]).data
        for name in each["InstanceIds"]:
            instance = ec2_backend.get_instance(name)
            instance.instance_initiated_shutdown_behavior = data.get(
                "InstanceInitiatedShutdownBehavior", "stop"
            )
            profile = data.get("IamInstanceProfile", {})
            if profile:
                ec2_backend.associate_iam_instance_profile(
                    name, profile.get("Name"), profile.get("Arn")
                )


if __name__ == "__main__":
    Fleet.__init__ = _made  # type: ignore[method-assign]
    main()

"""Whether it is worth asking boto3 for credentials: what can be told without importing it.

Importing boto3 takes a noticeable time, and where nothing says that there are credentials it
would in the end wait for the metadata service of EC2. `adr.aws` is the one that really finds them.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from adr.config import load_config

__all__ = ["may_have_credentials"]

#: Variables of AWS that tell of no credentials.
_NO_CREDENTIALS = ("AWS_EC2_METADATA_DISABLED",)
#: Files and folders in which boto3 may find credentials.
_OF_BOTO = ("~/.aws", "~/.boto", "/etc/boto.cfg")
#: Files of Linux whose beginning tells of a machine of EC2, which may have a role.
_SIGNS_OF_EC2 = (
    ("/sys/devices/virtual/dmi/id/sys_vendor", "amazon"),
    ("/sys/hypervisor/uuid", "ec2"),
)


def may_have_credentials() -> bool:
    """Tell whether anything on this machine speaks of AWS; False is certain, True is not."""
    if any(name.startswith("AWS_") and name not in _NO_CREDENTIALS for name in os.environ):
        return True
    if load_config("aws", "credentials", "access_key_id"):
        return True
    if "BOTO_CONFIG" in os.environ or any(Path(each).expanduser().exists() for each in _OF_BOTO):
        return True
    for path, beginning in _SIGNS_OF_EC2:
        with suppress(OSError):
            if Path(path).read_text("ascii", "replace").lower().startswith(beginning):
                return True
    return False

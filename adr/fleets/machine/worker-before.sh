#!/bin/bash
# What the worker needs at each start: data volumes, and jobs that cannot use its role.
set -euo pipefail
. "${0%/*}/values"
if [ ${#VOLUMES[@]} -gt 0 ]; then /opt/adr/bin/python "${0%/*}/volumes.py" "${VOLUMES[@]}"; fi
if [ -n "$AWS_FOR_JOBS" ]; then exit 0; fi

user=$(id -u adr-job)
prohibit() { # 4|6 ADDRESS
    local rule=(pref 10 uidrange "$user-$user" to "$2" prohibit)
    ip "-$1" rule del "${rule[@]}" 2>/dev/null || true
    ip "-$1" rule add "${rule[@]}"
}
prohibit 4 169.254.169.254/32
if [ -e /proc/net/if_inet6 ]; then prohibit 6 fd00:ec2::254/128; fi

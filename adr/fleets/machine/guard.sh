#!/bin/bash
# Keeps jobs off the metadata service, so that they cannot use the role of this machine.
# Run before each start of the worker and every minute, since others clear such rules away.
set -euo pipefail
. "${0%/*}/values"
if [ -n "$AWS_FOR_JOBS" ]; then exit 0; fi

user=$(id -u adr-job)
prohibit() { # 4|6 ADDRESS
    local said
    # systemd-networkd removes the rules of others when it starts, apart from the kernel's.
    # Added and never replaced: there must be no moment without it.
    said=$(LC_ALL=C ip "-$1" rule add pref 10 uidrange "$user-$user" to "$2" protocol kernel \
        prohibit 2>&1) && return 0
    case $said in *'File exists'*) ;; *) echo "adr: $2 cannot be kept from jobs: $said"; exit 1 ;; esac
}
prohibit 4 169.254.169.254/32
if [ -e /proc/net/if_inet6 ]; then prohibit 6 fd00:ec2::254/128; fi

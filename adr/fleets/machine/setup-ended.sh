#!/bin/bash
# Where the set up failed: shows why, and ends the machine.
set -u
lib=${0%/*}
. "$lib/values"
if [ "${SERVICE_RESULT:-}" = success ]; then exit 0; fi
# What the end of the machine cut off is done at its next start.
if [ "$(systemctl is-system-running)" = stopping ] && [ ! -e /run/adr-deadman/fired ]; then
    exit 0
fi
log=/var/log/adr-setup.log
echo "adr: set up failed ($SERVICE_RESULT)"
cat "$log" >/dev/console
export AWS_DEFAULT_REGION=$REGION "${ENDPOINTS[@]}"
timeout 120 /opt/adr/bin/python "$lib/store.py" report "$BUCKET" "$LOG_KEY" "$log"
if [ -z "$KEEP" ]; then systemctl poweroff; fi

#!/bin/bash
# The worker has failed for good: stores what it has said last, and ends the machine.
set -u
lib=${0%/*}
. "$lib/values"
# A machine that starts anew tries again.
if [ "$(systemctl is-system-running)" = stopping ]; then exit 0; fi
log=/var/log/adr-failed.log
journalctl -q -u adr-worker.service -n 100 --no-pager >"$log"
echo "adr: the worker has failed for good"
export AWS_DEFAULT_REGION=$REGION "${ENDPOINTS[@]}"
timeout 120 /opt/adr/bin/python "$lib/store.py" report "$BUCKET" "$LOG_KEY" "$log"
if [ -z "$KEEP" ]; then
    systemctl poweroff
elif [ "$(systemctl show --value -p ExecMainStatus adr-worker.service)" != 2 ]; then
    # Where nobody wants the machine to end, it is tried for ever.
    systemctl reset-failed adr-worker.service
    systemctl start --no-block adr-worker.service
fi

#!/bin/bash
# Becomes the worker.
set -euo pipefail
. "${0%/*}/values"
export AWS_DEFAULT_REGION=$REGION "${ENDPOINTS[@]}"
instance=$(/opt/adr/bin/python "${0%/*}/store.py" instance)
words=("${WORDS[@]/#--host=*/--host=$instance}")
if [ -n "$MAX_S" ]; then
    # Since the boot, so that a worker that is started again gets no more.
    read -r now _ </proc/uptime
    read -r first </run/adr-deadman/first
    left=$((MAX_S - ${now%%.*} + first))
    if [ "$left" -le 0 ]; then exit 0; fi
    printf -v hours '%d.%04d' $((left / 3600)) $((left % 3600 * 10000 / 3600))
    words=("${words[@]/#--max-hours=*/--max-hours=$hours}")
fi
exec /opt/adr/bin/adr "${words[@]}"

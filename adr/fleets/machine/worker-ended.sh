#!/bin/bash
# Ends the machine where its worker has left by itself: nothing is left to do, or to do it for.
set -u
. "${0%/*}/values"
if [ -n "$KEEP" ]; then exit 0; fi
if [ "${EXIT_CODE:-}/${EXIT_STATUS:-}" != exited/0 ]; then exit 0; fi
# Else a machine that starts anew would be switched off.
if [ "$(systemctl is-system-running)" = stopping ]; then exit 0; fi
echo "adr: the worker has left, this machine ends"
systemctl poweroff

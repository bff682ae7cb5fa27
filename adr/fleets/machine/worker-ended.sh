#!/bin/bash
# Ends the machine where its worker has left by itself: nothing is left to do, or to do it for.
set -u
. "${0%/*}/values"
if [ -n "$KEEP" ]; then exit 0; fi
case ${EXIT_CODE:-}/${EXIT_STATUS:-} in exited/0 | exited/2) ;; *) exit 0 ;; esac
# Else a machine that starts anew would be switched off.
if [ "$(systemctl is-system-running)" = stopping ]; then exit 0; fi
echo "adr: the worker has left with status $EXIT_STATUS, this machine ends"
systemctl poweroff

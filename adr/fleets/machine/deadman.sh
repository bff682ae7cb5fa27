#!/bin/bash
# Powers this machine off when its worker has been silent for too long, or its time is over.
# Knows nothing of adr but one file: a worker writes the boot-time clock into it after each
# heartbeat. Run every minute. On a machine that was set up over SSH nothing else ends it: there
# a second file says that the worker has left by itself.
set -u
. "${0%/*}/values"
run=${1:-/run}
alive=$run/adr/alive
state=$run/adr-deadman

number() { # FILE OTHERWISE: the whole part of the number in a file
    local text=''
    { read -r text <"$1"; } 2>/dev/null
    text=${text%%.*}
    case $text in '' | *[!0-9]*) text=$2 ;; esac
    echo $((10#$text))
}

now=$(number /proc/uptime 0)
if [ ! -e "$state/first" ]; then
    mkdir -p "$run/adr" "$state"
    echo "$now" >"$alive"
    if [ -n "$PREPARE" ]; then chmod a+rwx "$run/adr" && chmod a+rw "$alive"; fi
    echo "$now" >"$state/first"
fi
first=$(number "$state/first" 0)
# A file that is just being written is empty.
seen=$(number "$alive" "$(number "$state/seen" "$first")")
echo "$seen" >"$state/seen"

if [ -n "$PREPARE" ] && [ -e "$run/adr/left" ]; then
    why="its worker has left"
elif [ $((now - seen)) -gt "$SILENCE_S" ]; then
    why="its worker has been silent for $((now - seen)) s"
elif [ -n "$MAX_S" ] && [ $((now - first)) -gt $((MAX_S + GRACE_S)) ]; then
    why="it has run for $((now - first)) s, the limit is $MAX_S s"
else
    exit 0
fi
echo "adr: this machine ends: $why"
: >"$state/fired"
systemctl poweroff || systemctl poweroff --force --force

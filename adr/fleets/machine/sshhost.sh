#!/bin/sh
# What adr does on a host that it reaches over SSH, as its user there and without input.
# adr copies this file to the host and runs it (adr.fleets.sshhost). In the home directory:
#
#   .envs/adr                      the environment with adr in it
#   .adr/install/                  what was installed
#   .adr/RUNNER/                   credentials lent to this host
#   .adr/RUNNER/NODE/worker.*      the worker; homes can be shared between machines
#
# What adr is to read stands behind "adr:", since a login shell may greet.

set -u
usual=$(umask)
umask 077
PATH=$PATH:/usr/local/bin:$HOME/.local/bin
top=$HOME/.adr
env=$HOME/.envs/adr
mark=$env/.adr-wheel
node=$(uname -n)
stop_within_s=60
reach_within_s=60
silent_min=15

fail() {
    echo "$*" >&2
    exit 1
}

# Hold a lock until the end, where there is flock; whatever goes on must not inherit it.
lock() {
    mkdir -p "$top"
    exec 9>"$top/lock"
    if command -v flock >/dev/null; then
        flock -n 9 && return
        # Said at once: the client may give up sooner.
        echo "another adr is busy on this host" >&2
        flock -w 300 9 || fail "it has been busy for 5 minutes: repeat this later"
        echo "that one is done" >&2
    fi
}

# The worker of a folder: its command line names that folder, whatever else got its pid.
is_running() {
    pid=$(cat "$1/worker.pid" 2>/dev/null)
    case $pid in '' | *[!0-9]*) return 1 ;; esac
    if [ -d /proc/self ]; then
        words=$({ tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null)
    else
        words=$(ps -ww -o args= -p "$pid" 2>/dev/null)
    fi
    case "$words " in *" process "*"--workingdir=$1/work "*) return 0 ;; esac
    return 1
}

# The first of these folders with a worker that runs. One of another machine shows no process
# here: it counts unless it has ended, or has been silent for long.
find_worker() {
    for folder in "$@"; do
        if [ "${folder##*/}" = "$node" ]; then
            if is_running "$folder"; then return 0; fi
        elif [ -e "$folder/worker.pid" ] && [ ! -e "$folder/worker.exit" ] &&
            [ -n "$(find "$folder/alive" -mmin "-$silent_min" 2>/dev/null)" ]; then
            return 0
        fi
    done
    return 1
}

# What tells one order to stop the worker of a folder from all before it.
last_stop() {
    cat "$1/stopped" 2>/dev/null
}

# Whether the worker of a folder was stopped or removed since: was_stopped FOLDER LAST_STOP
was_stopped() {
    [ ! -e "$1/worker.sh" ] || [ "$(last_stop "$1")" != "$2" ]
}

can_be_root() {
    [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Install packages of the system where that is possible.
packages() {
    can_be_root || return 1
    if command -v apt-get >/dev/null; then
        set -- env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 \
            install -y --no-install-recommends "$@"
        as_root "$@" || { as_root apt-get -q update && as_root "$@"; }
    elif command -v dnf >/dev/null; then
        as_root dnf -q install -y "$@"
    else
        return 1
    fi </dev/null >&2
}

is_new_enough() {
    "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

find_python() {
    for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if is_new_enough "$name"; then
            python=$name
            return 0
        fi
    done
    return 1
}

make_environment() {
    if ! find_python; then
        packages python3 python3-venv || packages python3.12 || packages python3.11
        find_python || fail "there is no Python 3.10 or newer, and it cannot be installed without" \
            "root: install one for this user, in ~/.local/bin"
    fi
    if ! "$python" -c 'import ensurepip' 2>/dev/null && command -v apt-get >/dev/null; then
        packages "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv --clear "$env"
    else
        "$python" -m venv --clear --without-pip "$env"
    fi || fail "cannot make the environment $env"
}

# Say where things are: look RUNNER
look() {
    folder=$top/$1/$node
    echo "adr:home=$HOME"
    echo "adr:node=$node"
    echo "adr:installed=$(cat "$mark" 2>/dev/null)"
    if [ -w /run/adr/alive ]; then
        echo "adr:alive=/run/adr/alive"
    else
        echo "adr:alive=$folder/alive"
    fi
    if is_running "$folder"; then echo "adr:running=yes"; fi
}

# Install adr: install SHA256 WHEEL CONSTRAINTS PIP WORDS...
# PIP is a wheel of pip, or empty; exit status 10 asks for one. WORDS are for pip: options, packages.
install() {
    sha256=$1 wheel=$2 constraints=$3 pip=$4
    shift 4
    lock
    before=$(cat "$mark" 2>/dev/null)
    if [ "$before" != "$sha256" ]; then
        if find_worker "$top"/*/*; then
            fail "a worker runs with another version of adr ($folder): stop it first"
        fi
    fi
    if ! command -v dtach >/dev/null; then
        # A convenience: without it nobody can attach to the worker, which runs all the same.
        packages dtach
    fi
    is_new_enough "$env/bin/python" || make_environment
    if ! "$env/bin/python" -m pip --version >/dev/null 2>&1; then
        [ -n "$pip" ] || exit 10
        "$env/bin/python" "$pip/pip" install -q --no-index "$pip" || fail "pip cannot be installed"
    fi
    # What is cut off from here on is done again.
    rm -f "$mark"
    run_pip -c "$constraints" "$@" "$wheel"
    if [ "$before" != "$sha256" ]; then
        # One of the same version would have been left as it is.
        run_pip --no-deps --no-index --force-reinstall "$wheel"
    fi
    "$env/bin/adr" --version >/dev/null || fail "what was installed does not run"
    printf '%s' "$sha256" >"$mark.new"
    mv "$mark.new" "$mark"
}

run_pip() {
    "$env/bin/python" -m pip --disable-pip-version-check install -q "$@" </dev/null || exit 1
}

# Remove the credentials of a runner unless a worker has them, here or on another node of the
# same home: withdraw RUNNER
withdraw() {
    lock
    if ! find_worker "$top/$1"/*; then
        rm -f "$top/$1/credentials.json" "$top/$1/aws.conf"
    fi
}

# Run the user's own script once: setup RUNNER SHA256
setup() {
    folder=$top/$1/$node
    lock
    mkdir -p "$folder"
    if [ "$(cat "$folder/setup.done" 2>/dev/null)" = "$2" ]; then exit 0; fi
    (
        umask "$usual"
        export PATH="$env/bin:$PATH" VIRTUAL_ENV="$env"
        "$top/$1/setup" </dev/null 9>&-
    ) || exit $?
    printf '%s' "$2" >"$folder/setup.done"
}

# Start the worker unless it runs, and wait until it has reached the runner: start RUNNER ALIVE
# An order to stop that comes later is stronger, also where whoever asked for this is gone.
start() {
    folder=$top/$1/$node alive=$2
    asked_after=$(last_stop "$folder")
    lock
    if is_running "$folder"; then
        echo "adr:worker=running"
        exit 0
    fi
    cd "$folder" 2>/dev/null && [ -e worker.sh ] || fail "there is no worker to start: adr prepare sets one up"
    if was_stopped "$folder" "$asked_after"; then
        fail "it was told to stop meanwhile: repeat this to start it"
    fi
    mkdir -p work
    rm -f worker.pid worker.exit worker.socket "${alive%/*}/left"
    if [ -e worker.log ]; then mv worker.log worker.log.1; fi
    before=$(cat "$alive" 2>/dev/null)
    umask "$usual"
    if command -v dtach >/dev/null; then
        dtach -n worker.socket sh "$folder/worker.sh" </dev/null >/dev/null 2>&1 9>&-
    elif command -v setsid >/dev/null; then
        setsid sh "$folder/worker.sh" </dev/null >/dev/null 2>&1 9>&- &
    else
        nohup sh "$folder/worker.sh" </dev/null >/dev/null 2>&1 9>&- &
    fi
    looks=$((reach_within_s * 5))
    while [ "$(cat "$alive" 2>/dev/null)" = "$before" ]; do
        if [ -e worker.exit ]; then
            status=$(cat worker.exit)
            if [ "$status" = 0 ]; then
                echo "adr:worker=ended"
                exit 0
            fi
            tail -n 5 worker.log >&2
            fail "the worker has ended with status $status"
        fi
        if was_stopped "$folder" "$asked_after"; then
            end "$folder"
            fail "it was told to stop meanwhile: repeat this to start it"
        fi
        looks=$((looks - 1))
        if [ "$looks" -le 0 ]; then
            end "$folder"
            tail -n 5 worker.log >&2
            fail "the worker has not reached the runner within $reach_within_s s"
        fi
        sleep 0.2
    done
    echo "adr:worker=started"
}

# End the workers of folders in good order, also those about to be started.
halt() {
    for folder in "$@"; do
        if [ -d "$folder" ]; then echo "$(date +%s) $$" >"$folder/stopped"; fi
    done
    end "$@"
}

# End the workers of folders in good order.
end() {
    for folder in "$@"; do
        if is_running "$folder"; then kill "$pid"; fi
    done
    looks=$((stop_within_s * 5))
    for folder in "$@"; do
        while is_running "$folder"; do
            looks=$((looks - 1))
            if [ "$looks" -le 0 ]; then
                echo "the worker in $folder is still about to end after $stop_within_s s" >&2
                return 1
            fi
            sleep 0.2
        done
        rm -f "$folder/worker.pid" "$folder/alive"
    done
}

# End the worker of a runner, or those of all runners: stop [RUNNER]
stop() {
    if [ $# = 0 ]; then
        halt "$top"/*/"$node"
    else
        halt "$top/$1/$node"
    fi
}

# Show the end of what a worker has said: log RUNNER
log() {
    if [ -e "$top/$1/$node/worker.log" ]; then tail -c 100000 "$top/$1/$node/worker.log"; fi
}

# End the worker of a runner and remove what it had: remove RUNNER
remove() {
    [ -n "$1" ] || exit 1
    halt "$top/$1/$node" || exit 1
    # Jobs may leave folders that are closed even to their owner.
    chmod -R u+rwx "$top/$1/$node" 2>/dev/null
    rm -rf "$top/$1/$node"
    for other in "$top/$1"/*/; do
        if [ -d "$other" ]; then exit 0; fi
    done
    rm -rf "${top:?}/$1"
}

verb=$1
shift
"$verb" "$@"

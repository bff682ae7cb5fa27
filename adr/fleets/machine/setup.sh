#!/bin/bash
# Installs the worker of adr and starts it. Harmless to run again.
set -eEuo pipefail
umask 022
lib=${0%/*}
. "$lib/values"
venv=/opt/adr
trap 'say "the step in line $LINENO failed: $BASH_COMMAND"' ERR
export HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off
export PIP_ROOT_USER_ACTION=ignore
export AWS_DEFAULT_REGION=$REGION "${ENDPOINTS[@]}"
cd /root

say() {
    echo "adr: $*"
}

again() { # TRIES SECONDS COMMAND...: locks are let go and services come back
    local tries=$1 pause=$2
    shift 2
    until "$@"; do
        if [ $((--tries)) -le 0 ]; then return 1; fi
        say "failed, trying again: $*"
        sleep "$pause"
    done
}

find_python() {
    local name
    for name in python3.14 python3.13 python3.12 python3.11 python3.10; do
        if "$name" -c 'import ensurepip, venv' 2>/dev/null; then
            python=$(command -v "$name")
            return 0
        fi
    done
    return 1
}

install_python() {
    if command -v apt-get >/dev/null; then
        # For what cloud-init or the system itself installs at the same time. The lock of the
        # lists is not waited for.
        local lock=-oDPkg::Lock::Timeout=300
        again 10 15 apt-get "$lock" -q update
        again 3 10 apt-get "$lock" -q -y install --no-install-recommends python3-venv
    else
        again 3 10 dnf -q -y install python3.11
    fi
}

say "set up begins at $(date -u +%FT%TZ)"
id adr >/dev/null 2>&1 ||
    useradd --system --user-group --home-dir /var/lib/adr --shell /usr/sbin/nologin adr
# A system user has no subordinate ids, under which jobs could reach the metadata service.
id adr-job >/dev/null 2>&1 ||
    useradd --system --user-group --create-home --home-dir /home/adr-job --shell /bin/bash adr-job
install -d -o adr -g adr -m 0711 /var/lib/adr
if command -v apt-get >/dev/null; then
    # Else the worker is restarted, and its jobs are lost, after each upgrade of a library.
    mkdir -p /etc/needrestart/conf.d
    echo '$nrconf{override_rc}{qr(^adr-)} = 0;' >/etc/needrestart/conf.d/adr.conf
fi

find_python || install_python
find_python || { say "there is no Python from 3.10 to 3.14: use another image"; exit 1; }
# Before anything is installed, since wheels may lie on a volume.
trouble=
if [ ${#VOLUMES[@]} -gt 0 ]; then
    "$python" "$lib/volumes.py" "${VOLUMES[@]}" || trouble="a data volume cannot be mounted, see above"
fi
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
again 3 10 "$venv/bin/python" -m pip install "${PIP_OPTIONS[@]}" boto3
# Only now, since without boto3 nobody would hear of it.
if [ -n "$trouble" ]; then say "$trouble"; exit 1; fi
fetch() { "$venv/bin/python" "$lib/store.py" fetch "$BUCKET" "$@"; }
fetch "$CONSTRAINTS_KEY" "$lib/constraints.txt"
fetch "$WHEEL_KEY" "$lib/$WHEEL_NAME" "$WHEEL_SHA256"
again 3 10 "$venv/bin/python" -m pip install "${PIP_OPTIONS[@]}" -c "$lib/constraints.txt" \
    "$lib/$WHEEL_NAME"
"$venv/bin/adr" --version

if [ -n "$SETUP_KEY" ] && [ ! -e "$lib/setup.done" ]; then
    fetch "$SETUP_KEY" "$lib/setup-user" "$SETUP_SHA256"
    chmod 0700 "$lib/setup-user"
    say "the setup script begins"
    "$lib/setup-user" </dev/null || { say "the setup script failed with status $?"; exit 1; }
    : >"$lib/setup.done"
fi

systemctl enable adr-worker.service
systemctl disable adr-setup.service
systemctl start --no-block adr-worker.service
say "set up is done"

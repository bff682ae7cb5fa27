#!/bin/bash
# What the worker needs at each start: data volumes, and jobs that cannot use its role.
set -euo pipefail
. "${0%/*}/values"
if [ ${#VOLUMES[@]} -gt 0 ]; then /opt/adr/bin/python "${0%/*}/volumes.py" "${VOLUMES[@]}"; fi
"${0%/*}/guard.sh"

#!/bin/sh
# How this machine is, every five minutes: disk, memory and load as JSON. Any executable file is a function like this one:
# the event comes on standard input, the result goes to standard output, the log to standard error.
#
#     [triggers.heartbeat]
#     type = "schedule"
#     schedule = "*/5 * * * *"
#     function = "heartbeat"
#
# With HEARTBEAT_PATH in the function's environment, that file system is measured in place of "/". A disk over 95 % full makes
# the run fail, so that `eventd runs --outcome failed`, or an `on_failure` destination, shows it.
set -eu

path=${HEARTBEAT_PATH:-/}
# On its own line, so that a failing df ends the script: in a pipe only the last command's status counts.
table=$(df -P -k -- "$path")
disk=$(printf '%s\n' "$table" | awk 'END { print $5 + 0 }')
free=$(printf '%s\n' "$table" | awk 'END { printf "%d", $4 / 1024 }')
memory=$(awk '/^MemAvailable:/ { printf "%d", $2 / 1024 }' /proc/meminfo)
load=$(cut -d ' ' -f 1 /proc/loadavg)
host=$(uname -n | tr -cd 'A-Za-z0-9._-')

printf '{"host": "%s", "load": %s, "memory_available_mib": %s, "disk_used_percent": %s, "disk_free_mib": %s}\n' \
    "$host" "$load" "${memory:-0}" "$disk" "$free"

if [ "$disk" -gt 95 ]; then
    echo "the disk of $path is $disk % full" >&2
    exit 1
fi

#!/usr/bin/env bash
# One step of one program, for the driver `run`: `step.sh PROGRAM STEP`. Each NAME.sh beside this file sets `packages`, what apt
# has to install, and `binary`, what the allocator has to be found in; it has the steps `prepare`, which makes what the program
# works on, and `run`, which writes to standard output what must be the same under every allocator.
#
# The driver sets LIBRARY, what is preloaded; SIZE, how much there is to do, 1 to check, 10 to measure; PORT, free for a server;
# CARGO, of the toolchain that builds Hayloft; FIGURES, the file to append to what was measured, as lines of "kind elapsed user
# system peak" in seconds and KiB. Steps run in a folder of their own.
set -euo pipefail
export LC_ALL=C TZ=UTC PATH=/usr/sbin:/usr/bin:/sbin:/bin
here=$(dirname "$(realpath "$0")")

measured() {
    local kind=$1
    shift
    /usr/bin/time --quiet --append --output="$FIGURES" --format="$kind %e %U %S %M" "$@"
}

# The program, under the allocator: its time counts, and its memory.
under() { measured program env LD_PRELOAD="$LIBRARY" "$@"; }

# serve PIDFILE SERVER...: the same for a server, of which only the memory counts. It is ended with this step at the latest.
serve() {
    pidfile=$1
    shift
    rm -f "$pidfile"
    measured "$served_as" "${as[@]}" env LD_PRELOAD="$LIBRARY" "$@" &
    server=$!
    trap '[ ! -s "$pidfile" ] || kill "$(head -n 1 "$pidfile")"' EXIT
}

# Waits until the server has ended by itself.
served() {
    wait "$server"
    trap - EXIT
}

# client COMMAND...: what a server is asked, without the allocator: its time counts.
client() { measured client "$@"; }

# patiently COMMAND...: tries for ten seconds.
patiently() {
    for _ in $(seq 100); do
        "$@" > /dev/null 2>&1 && return
        sleep 0.1
    done
    "$@"
}

# How a server runs, and what it is: `forked` if its memory is measured in another way.
as=()
served_as=server

source "$here/$1.sh"
case $2 in
    packages) echo "$packages" ;;
    binary) echo "$binary" ;;
    *) "$2" ;;
esac

#!/usr/bin/env bash
# Runs one step of one program, for the driver `run`: `step.sh PROGRAM STEP`.
#
# Each NAME.sh beside this file sets `packages`, the packages that apt must install, and `binary`,
# the file that must call the allocator. It defines two steps: `prepare` makes the program's input,
# and `run` writes the answer to standard output, which must be the same with every allocator.
#
# The driver sets these variables:
#   LIBRARY  the library to preload
#   SIZE     the amount of work: 1 to check, 10 to measure
#   PORT     a free port for a server
#   CARGO    the cargo of the toolchain that builds Hayloft
#   FIGURES  the file to which measurements are appended, as lines of
#            "kind elapsed user system peak" in seconds and KiB
#
# Each step runs in a folder of its own.
set -euo pipefail
export LC_ALL=C TZ=UTC PATH=/usr/sbin:/usr/bin:/sbin:/bin
here=$(dirname "$(realpath "$0")")

measure() {
    local kind=$1
    shift
    /usr/bin/time --quiet --append --output="$FIGURES" --format="$kind %e %U %S %M" "$@"
}

# preloaded COMMAND...: runs the program with the library preloaded. Its time and its memory count.
preloaded() { measure program env LD_PRELOAD="$LIBRARY" "$@"; }

# start_server PIDFILE SERVER...: starts a server with the library preloaded. Its memory and
# processor time count, not its elapsed time. It ends with this step at the latest.
start_server() {
    pidfile=$1
    shift
    rm -f "$pidfile"
    measure "$server_kind" "${run_as[@]}" env LD_PRELOAD="$LIBRARY" "$@" &
    server=$!
    trap '[ ! -s "$pidfile" ] || kill "$(head -n 1 "$pidfile")"' EXIT
}

# Waits until the server has ended by itself.
wait_for_server() {
    wait "$server"
    trap - EXIT
}

# client COMMAND...: runs a client of the server without the allocator. Its elapsed time counts.
client() { measure client "$@"; }

# retry COMMAND...: repeats a command until it succeeds, for ten seconds at most.
retry() {
    for _ in $(seq 100); do
        "$@" > /dev/null 2>&1 && return
        sleep 0.1
    done
    "$@"
}

# The prefix of the server's command, and the kind of its figures: `forked` if its memory is
# measured in another way.
run_as=()
server_kind=server

source "$here/$1.sh"
case $2 in
    packages) echo "$packages" ;;
    binary) echo "$binary" ;;
    *) "$2" ;;
esac

# A PostgreSQL server runs the transactions of pgbench, and queries that sort and hash. The sums of
# all changes must match. Its shared memory does not come from the allocator, and it has many
# processes. The measured memory is therefore the sum of the processes' peaks, without shared and
# file-backed memory.
packages="postgresql procps"
binary=$(echo /usr/lib/postgresql/*/bin/postgres)

bin=$(dirname "$binary")
# The server refuses to run as root. Its user may lack access to this folder, and a socket's path
# must be short, so its data is in /tmp.
[ "$(id -u)" != 0 ] || run_as=(runuser -u postgres --)

prepare() { :; }

run() {
    data=$("${run_as[@]}" mktemp -d /tmp/postgres.XXXXXX)
    cd "$data"
    trap 'rm -rf "$data"' EXIT
    "${run_as[@]}" "$bin/initdb" --no-sync --username postgres --locale C --encoding UTF8 . > /dev/null
    server_kind=forked
    start_server "$data/postmaster.pid" "$bin/postgres" -D "$data" -k "$data" -p "$PORT" -c listen_addresses= -c fsync=off \
        -c max_parallel_workers_per_gather=0 -c jit=off -c autovacuum=off
    trap '[ ! -s "$pidfile" ] || kill -QUIT "$(head -n 1 "$pidfile")"; wait; rm -rf "$data"' EXIT
    local bench=("${run_as[@]}" "$bin/pgbench" -h "$data" -p "$PORT" -U postgres)
    local query=("${run_as[@]}" "$bin/psql" -h "$data" -p "$PORT" -U postgres -X -q -A -t)
    retry "${query[@]}" -c 'SELECT 1'
    client "${bench[@]}" -i -q -s 4 postgres 2> /dev/null
    client "${bench[@]}" -n -c 4 -j 1 -t $((500 * SIZE)) --random-seed 7 postgres | grep 'actually processed\|failed'
    client "${bench[@]}" -n -c 4 -j 1 -S -t $((1000 * SIZE)) --random-seed 7 postgres | grep 'actually processed\|failed'
    local postmaster sum='/^VmHWM/ { n += $2 } /^Rss(File|Shmem)/ { n -= $2 } END { print "memory 0 0 0", n }'
    postmaster=$(head -n 1 postmaster.pid)
    client "${query[@]}" <<Q
SET work_mem = '64MB';
SELECT sum(abalance), count(*) FROM pgbench_accounts;
SELECT sum(bbalance) FROM pgbench_branches;
SELECT sum(tbalance) FROM pgbench_tellers;
SELECT sum(delta), count(*) FROM pgbench_history;
SELECT md5(string_agg(t, ',' ORDER BY t))
    FROM (SELECT md5(n::text) AS t FROM generate_series(1, 30000 * $SIZE) AS n) AS s;
SELECT count(*), sum(n)
    FROM (SELECT md5((n % 50000)::text) AS k, count(*) AS n FROM generate_series(1, 60000 * $SIZE) AS n GROUP BY 1) AS s;
SELECT sum(length(j->>'name')) FROM (SELECT jsonb_build_object('id', n, 'name', repeat('x', n % 100)) AS j
    FROM generate_series(1, 20000 * $SIZE) AS n) AS s;
\! pgrep -P $postmaster | sed 's,.*,/proc/&/status,' | xargs awk '$sum' /proc/$postmaster/status > memory
Q
    cat memory >> "$FIGURES"
    kill -INT "$postmaster"
    wait
    rm -rf "$data"
    trap - EXIT
}

# A Redis server executes commands on data of all types, and then those of its benchmark, whose keys
# differ from run to run. The answer is a digest of the data before the benchmark, the invariants of
# the benchmark's data, and whether all data can be saved and loaded.
packages="redis-server redis-tools"
binary=/usr/bin/redis-server

prepare() {
    perl -e '
        srand 7;
        for my $i (1 .. 150_000 * shift) {
            my $key = int rand 100_000;
            my $kind = int rand 12;
            my $value = chr(97 + $key % 26) x (1 + int(exp(rand(6))));
            if ($kind < 4) { print "SET s$key $value\r\n" }
            elsif ($kind == 4) { print "APPEND s$key $value\r\n" }
            elsif ($kind == 5) { print "HSET h", $key % 5000, " f$key $value\r\n" }
            elsif ($kind == 6) { print "RPUSH l", $key % 3000, " $value\r\n" }
            elsif ($kind == 7) { print "LPOP l", $key % 3000, "\r\n" }
            elsif ($kind == 8) { print "SADD m", $key % 4000, " $value$key\r\n" }
            elsif ($kind == 9) { print "ZADD z", $key % 2000, " $key $value\r\n" }
            elsif ($kind == 10) { print "DEL s$key\r\n" }
            else { print "HDEL h", $key % 5000, " f$key\r\n" }
        }' "$SIZE" > commands
}

query() { redis-cli -p "$PORT" "$@"; }

run() {
    rm -f dump.rdb
    start_server "$PWD/redis.pid" redis-server --port "$PORT" --save '' --enable-debug-command local --daemonize no \
        --pidfile "$PWD/redis.pid" --logfile redis.log --dir "$PWD"
    retry query ping
    client redis-cli -p "$PORT" --pipe < commands | grep errors
    query debug digest
    client redis-benchmark -p "$PORT" -q -P 16 -c 20 -n $((40000 * SIZE)) -r 100000 -d 200 -t set,get,incr,lpush,rpop,sadd,hset \
        > /dev/null
    # The counters add up to the number of `incr`, each `lpush` has its `rpop`, and each value has
    # the requested length.
    query eval "local sum, odd = 0, 0
        for _, key in ipairs(redis.call('keys', 'counter:*')) do sum = sum + redis.call('get', key) end
        for _, key in ipairs(redis.call('keys', 'key:*')) do odd = odd + math.abs(redis.call('strlen', key) - 200) end
        return {sum, odd, redis.call('llen', 'mylist')}" 0
    local before after
    before=$(query debug digest)
    query debug reload > /dev/null
    after=$(query debug digest)
    [ "$before" = "$after" ] && echo "the reloaded data is the same"
    query shutdown nosave
    wait_for_server
}

# An nginx server with two worker processes compresses each requested file. Each file must arrive
# unchanged.
packages="nginx-light apache2-utils curl"
binary=/usr/sbin/nginx

prepare() {
    mkdir -p files
    perl -e '
        srand 7;
        for my $number (1 .. 40) {
            open my $file, ">", "files/$number.txt" or die;
            print $file join(" ", map { int rand 1e6 } 1 .. 30 + $number ** 2), "\n";
        }'
}

run() {
    rm -f error.log
    cat > nginx.conf <<N
daemon off;
worker_processes 2;
pid $PWD/nginx.pid;
error_log $PWD/error.log;
events { worker_connections 256; }
http {
    access_log off;
    gzip on;
    gzip_min_length 100;
    gzip_types text/plain;
    default_type text/plain;
    server { listen 127.0.0.1:$PORT; root $PWD/files; autoindex on; }
}
N
    [ "$(id -u)" != 0 ] || sed -i '1i user root;' nginx.conf
    start_server "$PWD/nginx.pid" nginx -p "$PWD" -c "$PWD/nginx.conf" -e "$PWD/error.log"
    retry curl --fail --silent "http://127.0.0.1:$PORT/1.txt"
    client ab -q -k -c 20 -n $((4000 * SIZE)) -H 'Accept-Encoding: gzip' "http://127.0.0.1:$PORT/20.txt" \
        | grep -E '^(Complete|Failed|Non-2xx)'
    client ab -q -c 20 -n $((3000 * SIZE)) "http://127.0.0.1:$PORT/40.txt" | grep -E '^(Complete|Failed|Non-2xx)'
    for number in $(seq 40); do
        curl --fail --silent --compressed "http://127.0.0.1:$PORT/$number.txt" | cmp - "files/$number.txt"
    done
    curl --fail --silent "http://127.0.0.1:$PORT/" | grep -c 'txt'
    kill -QUIT "$(cat nginx.pid)"
    wait_for_server
    cat error.log >&2
}

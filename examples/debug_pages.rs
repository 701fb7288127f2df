//! What a service's memory is, on pages of the service itself, with the standard library alone.
//!
//! `cargo run --release -p examples --bin debug_pages` serves until it is killed. Meanwhile
//!
//! ```sh
//! go tool pprof -http : http://localhost:8080/debug/pprof/heap            # or -top
//! go tool pprof -top 'http://localhost:8080/debug/pprof/heap?seconds=30'  # what stays of 30 s
//! curl localhost:8080/metrics                                             # for Prometheus
//! curl localhost:8080/debug/tags
//! ```
//!
//! A service that has an HTTP server needs the first line of `main`, and `page`, of which each page
//! is a line. With `--check` the program requests the pages itself, checks them, and ends.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use hayloft::profile;

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

/// Longest request that is read: more than browsers send.
const MOST_BYTES: usize = 16 << 10;
/// Seconds without a byte after which a connection is closed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest time of a profile of growth, in seconds.
const MOST_SECONDS: u64 = 3600;

/// Returns the type and the content of the page at `path`. `None` if there is none, or no memory
/// for it.
fn page(path: &str) -> Option<(&'static str, Vec<u8>)> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    match path {
        "/debug/pprof/heap" => Some(("application/octet-stream", heap(query)?)),
        "/metrics" => Some((
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            hayloft::stats().open_metrics().to_string().into_bytes(),
        )),
        "/debug/tags" => Some(("text/plain; charset=utf-8", tags().into_bytes())),
        _ => None,
    }
}

/// Returns a heap profile; with `seconds=N`, as Go's servers have it, one of the growth within that
/// time.
fn heap(query: &str) -> Option<Vec<u8>> {
    let seconds = query.split('&').find_map(|part| part.strip_prefix("seconds="));
    match seconds.and_then(|seconds| seconds.parse().ok()) {
        Some(seconds @ 1..=MOST_SECONDS) => {
            let mark = profile::mark();
            thread::sleep(Duration::from_secs(seconds));
            profile::growth_to_vec(mark)
        }
        _ => profile::to_vec(),
    }
}

/// Returns a table of tags, that with the most bytes in use first.
fn tags() -> String {
    let mut tags: Vec<_> = hayloft::stats().tags().collect();
    tags.sort_by_key(|tag| std::cmp::Reverse(tag.live_bytes));
    let mut text = format!("{:>14} {:>14} {:>12} TAG\n", "BYTES IN USE", "ERROR", "BLOCKS");
    for tag in tags {
        let name = if tag.name.as_str().is_empty() { "(none)" } else { tag.name.as_str() };
        // A string takes what is written to it.
        let _ =
            writeln!(text, "{:>14} {:>14} {:>12} {name}", tag.live_bytes, tag.live_error, tag.live);
    }
    text
}

/// Answers the request of a connection, and closes it.
fn answer(mut connection: TcpStream) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MOST_BYTES {
        match connection.read(&mut part)? {
            0 => return Ok(()),
            read => request.extend_from_slice(&part[..read]),
        }
    }
    let request = String::from_utf8_lossy(&request);
    let mut words = request.split_ascii_whitespace();
    let (status, kind, content) = match (words.next(), words.next().map(page)) {
        (Some("GET"), Some(Some((kind, content)))) => ("200 OK", kind, content),
        (Some("GET"), _) => ("404 Not Found", "text/plain", b"no such page\n".to_vec()),
        _ => ("405 Method Not Allowed", "text/plain", b"only GET\n".to_vec()),
    };
    write!(
        connection,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        content.len()
    )?;
    connection.write_all(&content)
}

/// Answers each connection in a thread of its own.
fn serve(listener: &TcpListener) {
    for connection in listener.incoming() {
        thread::spawn(move || {
            if let Err(error) = connection.and_then(answer) {
                eprintln!("a connection failed: {error}");
            }
        });
    }
}

// The rest of the service.

/// Documents of the service.
const DOCUMENTS: usize = 20_000;
/// Bytes of each, in the index and in the cache: exactly those of a size class.
const IN_INDEX: usize = 1024;
const IN_CACHE: usize = 256;

type Blocks<const SIZE: usize> = Vec<Box<[u8; SIZE]>>;

/// Builds what the service holds, each part in its tag.
fn build() -> (Blocks<IN_INDEX>, Blocks<IN_CACHE>) {
    let index = hayloft::tag("index", || (0..DOCUMENTS).map(|_| Box::new([1; IN_INDEX])).collect());
    let cache = hayloft::tag("cache", || (0..DOCUMENTS).map(|_| Box::new([2; IN_CACHE])).collect());
    (index, cache)
}

/// Requests a page. Returns the status and the content.
fn get(address: SocketAddr, path: &str) -> Result<(String, Vec<u8>), Box<dyn Error>> {
    let mut connection = TcpStream::connect(address)?;
    write!(connection, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n").ok_or("no end of the head")?;
    let head = String::from_utf8(answer[..end].to_vec())?;
    let status = head.lines().next().unwrap_or_default().to_owned();
    let content = answer.split_off(end + 4);
    if !head.contains(&format!("Content-Length: {}\r\n", content.len())) {
        return Err(format!("{path}: {} bytes of\n{head}", content.len()).into());
    }
    Ok((status, content))
}

/// Requests all pages, and checks them.
fn check(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let ok = |path: &str| match get(address, path)? {
        (status, content) if status == "HTTP/1.1 200 OK" => Ok(content),
        (status, _) => Err::<_, Box<dyn Error>>(format!("{path}: {status}").into()),
    };
    for path in ["/debug/pprof/heap", "/debug/pprof/heap?seconds=1", "/debug/pprof/heap?debug=0"] {
        if !ok(path)?.starts_with(&[0x1f, 0x8b]) {
            return Err(format!("{path} is not compressed").into());
        }
    }
    let metrics = String::from_utf8(ok("/metrics")?)?;
    if !metrics.contains("\nhayloft_tag_bytes{tag=\"index\"} ") || !metrics.ends_with("# EOF\n") {
        return Err(metrics.into());
    }
    let table = String::from_utf8(ok("/debug/tags")?)?;
    for (name, size) in [("index", IN_INDEX), ("cache", IN_CACHE)] {
        let row = table.lines().find(|line| line.ends_with(&format!(" {name}")));
        let numbers: Vec<f64> = row.map_or(Vec::new(), |row| {
            row.split_whitespace().filter_map(|number| number.parse().ok()).collect()
        });
        // The list of the blocks is in the tag as well.
        let bytes = (DOCUMENTS * (size + size_of::<usize>())) as f64;
        match numbers[..] {
            [found, error, _] if (found - bytes).abs() < 5.0 * error + 0.02 * bytes => {}
            _ => return Err(format!("{name} has {bytes} bytes:\n{table}").into()),
        }
    }
    match get(address, "/debug/other")? {
        (status, _) if status.ends_with("404 Not Found") => Ok(()),
        (status, _) => Err(format!("a page that is not there: {status}").into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    if !profile::start(64 << 10) {
        return Err("there is no memory for profiles".into());
    }
    let (mut address, mut checks) = ("127.0.0.1:8080".to_owned(), false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match &*argument {
            "--check" => checks = true,
            "--listen" => address = arguments.next().ok_or("--listen ADDRESS:PORT")?,
            other => return Err(format!("{other}: only --check and --listen ADDRESS").into()),
        }
    }
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    let (index, cache) = build();
    println!("listening on http://{address}");
    if !checks {
        serve(&listener);
        return Ok(());
    }
    thread::spawn(move || serve(&listener));
    check(address)?;
    println!("all pages of {} documents are right", index.len().max(cache.len()));
    Ok(())
}

//! A small key-value server on loopback: tokio with two workers, a line protocol, eight
//! connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

use crate::prng::Prng;
use crate::run::Run;

const CLIENTS: u64 = 8;
/// Requests that a client sends before it waits for the answers.
const PIPELINE: usize = 8;

type Store = Arc<Mutex<HashMap<String, String>>>;

pub(super) fn run(run: &mut Run) {
    let rounds: usize = run.pick(300, 40, 2);
    let requests = CLIENTS * (rounds * PIPELINE) as u64;
    let runtime =
        Builder::new_multi_thread().worker_threads(2).enable_io().build().expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let server = runtime.spawn(serve(listener));
    run.time(requests, || {
        runtime.block_on(async {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|seed| async move {
                    let stream = TcpStream::connect(address).await?;
                    ask(stream, seed, rounds).await
                })
                .map(tokio::spawn)
                .collect();
            for client in clients {
                client.await.expect("a client panicked").expect("loopback works");
            }
        });
    });
    server.abort();
}

/// Accepts connections forever.
async fn serve(listener: TcpListener) -> std::io::Result<()> {
    let store = Store::default();
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(answer(stream, Arc::clone(&store)));
    }
}

/// Serves one connection until the client closes it.
async fn answer(stream: TcpStream, store: Store) -> std::io::Result<()> {
    let (mut lines, mut output) = split(stream);
    while let Some(line) = lines.next_line().await? {
        output.write_all(execute(&line, &store).as_bytes()).await?;
    }
    Ok(())
}

/// Executes `SET key value` or `GET key`, and returns the line to send as the answer.
fn execute(request: &str, store: &Store) -> String {
    let mut words = request.splitn(3, ' ');
    let (verb, key, value) = (words.next(), words.next(), words.next());
    let mut store = store.lock().expect("no task panics here");
    match (verb, key, value) {
        (Some("SET"), Some(key), Some(value)) => {
            let old = store.insert(key.to_owned(), value.to_owned());
            format!("OK {}\n", old.map_or(0, |old| old.len()))
        }
        (Some("GET"), Some(key), None) => match store.get(key) {
            Some(value) => format!("VALUE {value}\n"),
            None => "NONE\n".to_owned(),
        },
        _ => format!("ERROR {request}\n"),
    }
}

/// Sends `PIPELINE` requests and reads as many answers, `rounds` times.
async fn ask(stream: TcpStream, seed: u64, rounds: usize) -> std::io::Result<()> {
    let (mut lines, mut output) = split(stream);
    let mut prng = Prng::new(seed);
    for _ in 0..rounds {
        let requests: String = (0..PIPELINE).map(|_| request(&mut prng)).collect();
        output.write_all(requests.as_bytes()).await?;
        for _ in 0..PIPELINE {
            let answer = lines.next_line().await?.expect("the server answers every request");
            assert!(!answer.starts_with("ERROR"), "{answer}");
        }
    }
    Ok(())
}

/// Returns one line of the protocol.
fn request(prng: &mut Prng) -> String {
    let key = prng.below(2000);
    match prng.below(2) {
        0 => format!("GET key:{key}\n"),
        _ => format!("SET key:{key} {}\n", "value ".repeat(1 + prng.below(60)).trim_end()),
    }
}

/// Splits a connection into lines to read and a half to write to.
fn split(stream: TcpStream) -> (Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf) {
    // Without it the kernel would delay small answers. Failure costs only time.
    let _ = stream.set_nodelay(true);
    let (input, output) = stream.into_split();
    (BufReader::new(input).lines(), output)
}

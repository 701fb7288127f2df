//! The one-liner in a server: an HTTP service on tokio that counts words and answers in JSON.
//!
//! `cargo run --release -p examples --bin server` serves until it is interrupted. Meanwhile
//! `curl -d 'so much hay, so little' localhost:8080/words` counts words, and
//! `curl localhost:8080/metrics` returns the statistics of the allocator for Prometheus, and
//! `go tool pprof localhost:8080/debug/pprof/heap` reads a heap profile.
//!
//! With `--requests 1000` the program sends itself 1000 requests, several at a time, checks each
//! answer, and ends.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;

use axum::Json;
use axum::Router;
use axum::body::{self, Body};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use clap::Parser;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

/// Concurrent requests.
const CLIENTS: usize = 8;

type Failure = Box<dyn Error + Send + Sync>;

/// Counts words in JSON over HTTP.
#[derive(Parser)]
struct Arguments {
    /// The address to listen on; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Sends this many requests to itself, and ends.
    #[arg(long)]
    requests: Option<usize>,
}

fn count(text: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for word in text.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty())
    {
        *counts.entry(word.to_lowercase()).or_insert(0) += 1;
    }
    counts
}

async fn words(text: String) -> Json<BTreeMap<String, usize>> {
    Json(count(&text))
}

async fn metrics() -> impl IntoResponse {
    let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([("content-type", format)], hayloft::stats().open_metrics().to_string())
}

async fn heap() -> impl IntoResponse {
    hayloft::profile::to_vec().ok_or(StatusCode::SERVICE_UNAVAILABLE)
}

/// Serves until `end` completes, and finishes the requests that have already come in.
async fn serve(
    listener: TcpListener,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Failure> {
    let router = Router::new()
        .route("/words", post(words))
        .route("/metrics", get(metrics))
        .route("/debug/pprof/heap", get(heap));
    Ok(axum::serve(listener, router).with_graceful_shutdown(end).await?)
}

/// Sends every `CLIENTS`th request from `first` on, and checks the answers. Returns their number.
async fn ask(address: SocketAddr, first: usize, requests: usize) -> Result<usize, Failure> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let mut answers = 0;
    for number in (first..requests).step_by(CLIENTS) {
        let text = format!("hay {number} ").repeat(number % 500) + "loft";
        let request = axum::http::Request::post(format!("http://{address}/words"))
            .header("content-type", "text/plain")
            .body(Body::from(text))?;
        let answer = Body::new(client.request(request).await?.into_body());
        let counts: Value = serde_json::from_slice(&body::to_bytes(answer, usize::MAX).await?)?;
        let expected = match number % 500 {
            0 => json!({ "loft": 1 }),
            times => json!({ "hay": times, number.to_string(): times, "loft": 1 }),
        };
        if counts != expected {
            return Err(format!("request {number}: {counts} instead of {expected}").into());
        }
        answers += 1;
    }
    Ok(answers)
}

/// Checks that `/metrics` returns statistics, and `/debug/pprof/heap` a compressed profile.
async fn look(address: SocketAddr) -> Result<(), Failure> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let page = async |path: &str| -> Result<Vec<u8>, Failure> {
        let answer = client.get(format!("http://{address}{path}").parse()?).await?;
        Ok(body::to_bytes(Body::new(answer.into_body()), usize::MAX).await?.to_vec())
    };
    if !page("/debug/pprof/heap").await?.starts_with(&[0x1f, 0x8b]) {
        return Err("no profile".into());
    }
    let metrics = String::from_utf8(page("/metrics").await?)?;
    let held = metrics.lines().find_map(|line| line.strip_prefix("hayloft_held_bytes "));
    if held.is_none_or(|held| held.parse::<u64>().is_ok_and(|held| held == 0)) {
        return Err(format!("no statistics:\n{metrics}").into());
    }
    Ok(())
}

/// Sends all requests, from `CLIENTS` tasks. Returns the number of correct answers.
async fn ask_all(address: SocketAddr, requests: usize) -> Result<usize, Failure> {
    let mut clients = JoinSet::new();
    for first in 0..CLIENTS {
        clients.spawn(ask(address, first, requests));
    }
    let mut answers = 0;
    while let Some(client) = clients.join_next().await {
        answers += client??;
    }
    Ok(answers)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    hayloft::profile::start(hayloft::profile::DEFAULT_MEAN);
    let listener = TcpListener::bind(arguments.listen).await?;
    let address = listener.local_addr()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    println!("listening on {address}");
    let Some(requests) = arguments.requests else {
        return serve(listener, async move {
            tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
        })
        .await;
    };
    let (done, is_done) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, async {
        // An error means that the sender was dropped, which ends the server as well.
        let _ = is_done.await;
    }));
    let answers = ask_all(address, requests).await;
    let statistics = look(address).await;
    drop(done);
    server.await??;
    statistics?;
    println!("{} requests answered rightly, {:?}", answers?, hayloft::stats());
    Ok(())
}

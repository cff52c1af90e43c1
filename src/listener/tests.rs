//! Limits, with times that a test can wait for, and clients that behave as none should.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::time::Instant;

use axum::{
    body::{Body, Bytes},
    routing::{get, post},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(20);

/// A port with everything short that `shorten` makes short.
async fn port(shorten: impl FnOnce(&mut Limits)) -> (Listener, SocketAddr) {
    let mut limits = Limits {
        connections: 8,
        handshake: LONG,
        headers: LONG,
        body: LONG,
        call: LONG,
        write: LONG,
        idle: LONG,
        stranger: LONG,
        sweep: Duration::from_millis(50),
    };
    shorten(&mut limits);
    let doors = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/echo", post(|body: Bytes| async { body }))
        .route("/never", get(std::future::pending::<()>))
        .route("/flood", get(|| async { Body::from(vec![b'x'; 64 << 20]) }))
        .route("/capturedrain.v1.CaptureService/Deliver", post(std::future::pending::<()>));
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    (Listener::start(socket, doors, None, limits).unwrap(), addr)
}

async fn send(addr: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// All that comes until the server closes, and how long that took.
async fn heard(mut stream: TcpStream) -> (String, Duration) {
    let (mut bytes, began) = (Vec::new(), Instant::now());
    let read = time::timeout(LONG / 2, stream.read_to_end(&mut bytes)).await;
    // A reset is an end, too.
    let _ = read.expect("an end of the connection");
    (String::from_utf8_lossy(&bytes).into_owned(), began.elapsed())
}

/// The first line of the answer.
async fn status(stream: TcpStream) -> String {
    heard(stream).await.0.lines().next().unwrap_or_default().to_owned()
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_good_call_is_answered() {
    let (_listener, addr) = port(|_| {}).await;
    assert_eq!(status(send(addr, HEALTH).await).await, "HTTP/1.1 200 OK");
    let echo = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";
    let (answer, _) = heard(send(addr, echo).await).await;
    assert!(answer.contains("content-length: 2") && answer.ends_with("hi"), "{answer}");
}

#[tokio::test]
async fn headers_have_to_come_in_time() {
    let (_listener, addr) = port(|limits| limits.headers = SHORT).await;
    // Silent, in the middle of the headers, in the middle of what may become HTTP/2, and idle after a call.
    let idle = HEALTH.replace("connection: close\r\n", "");
    for beginning in ["", "GET /healthz HTTP/1.1\r\nhost: x\r\nx: ", "PRI * HTT", &idle] {
        let (_, took) = heard(send(addr, beginning).await).await;
        assert!(took < LONG / 4, "{beginning:?}: {took:?}");
    }
    // One byte now and then is no more than silence.
    let mut trickle = send(addr, "GET /healthz HTTP/1.1\r\nhost: x\r\nx: ").await;
    let began = Instant::now();
    while trickle.write_all(b"x").await.is_ok() {
        assert!(began.elapsed() < LONG / 4, "the server listens to a trickle");
        time::sleep(SHORT / 10).await;
    }
}

#[tokio::test]
async fn headers_are_few_and_short() {
    let (_listener, addr) = port(|_| {}).await;
    let request = HEALTH.replace("host: x\r\n", &format!("host: x\r\n{}", "x: y\r\n".repeat(HEADERS_MAX)));
    assert!(status(send(addr, &request).await).await.starts_with("HTTP/1.1 431 "));
    let long = format!("x: {}\r\n", "y".repeat(HEADERS_MAX_BYTES as usize));
    let request = HEALTH.replace("host: x\r\n", &format!("host: x\r\n{long}"));
    assert!(status(send(addr, &request).await).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn a_body_has_to_come_in_time_and_whole() {
    let (_listener, addr) = port(|limits| limits.body = SHORT).await;
    let post = |length: &str| format!("POST /echo HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n");
    let slow = send(addr, &post("content-length: 5")).await;
    let (answer, took) = heard(slow).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("did not come within"), "{answer}");
    assert!(took < LONG / 4, "{took:?}");
    // Too long, said and unsaid.
    let said = send(addr, &post(&format!("content-length: {}", 100 << 20))).await;
    assert!(status(said).await.starts_with("HTTP/1.1 413 "));
    let mut unsaid = send(addr, &post("transfer-encoding: chunked")).await;
    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
    for _ in 0..3 {
        unsaid.write_all(chunk.as_bytes()).await.unwrap();
    }
    let (answer, _) = heard(unsaid).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("BODY_TOO_LONG"), "{answer}");
}

#[tokio::test]
async fn an_answer_has_to_come_in_time_but_for_captures() {
    let (_listener, addr) = port(|limits| limits.call = SHORT).await;
    let call = |path: &str| HEALTH.replace("/healthz", path);
    let (answer, _) = heard(send(addr, &call("/never")).await).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("took longer than"), "{answer}");
    let stream = call("/capturedrain.v1.CaptureService/Deliver").replace("GET", "POST");
    let mut stream = send(addr, &stream).await;
    assert!(time::timeout(SHORT * 3, stream.read_u8()).await.is_err(), "the stream of a capture is cut");
}

#[tokio::test]
async fn who_does_not_read_is_cut() {
    let (listener, addr) = port(|limits| limits.write = SHORT).await;
    let mut greedy = send(addr, &HEALTH.replace("/healthz", "/flood")).await;
    greedy.read_u8().await.unwrap();
    let gone = async {
        while listener.handle.connection_count() > 0 {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    time::timeout(LONG / 2, gone).await.expect("an end of the connection");
    drop(greedy);
}

#[tokio::test]
async fn the_silent_get_up_for_newcomers_and_the_busy_do_not() {
    let (_listener, addr) = port(|limits| limits.connections = 4).await;
    let busy = send(addr, &HEALTH.replace("/healthz", "/never")).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(addr).await.unwrap());
        assert_eq!(status(send(addr, HEALTH).await).await, "HTTP/1.1 200 OK");
    }
    let mut first = silent.remove(0);
    let closed = time::timeout(LONG / 2, first.read(&mut [0])).await;
    assert!(!matches!(closed.expect("an end"), Ok(1..)));
    let mut busy = busy;
    assert!(time::timeout(SHORT, busy.read_u8()).await.is_err(), "a call that is open is cut");
}

#[tokio::test]
async fn a_full_room_of_busy_ones_turns_newcomers_away() {
    let (_listener, addr) = port(|limits| limits.connections = 2).await;
    let call = HEALTH.replace("/healthz", "/never");
    let mut busy = [send(addr, &call).await, send(addr, &call).await];
    assert!(time::timeout(SHORT, busy[1].read_u8()).await.is_err());
    let (answer, took) = heard(send(addr, HEALTH).await).await;
    assert!(answer.is_empty() && took < LONG / 4, "{answer} {took:?}");
}

#[tokio::test]
async fn connections_end_when_the_listener_does() {
    let (listener, addr) = port(|_| {}).await;
    let open = send(addr, &HEALTH.replace("/healthz", "/never")).await;
    drop(listener);
    let (answer, took) = heard(open).await;
    assert!(answer.is_empty() && took < LONG / 4, "{answer} {took:?}");
}

//! The one port of a capture, for gRPC and HTTP, with or without TLS: who may come in, as whom, and for how long.
//!
//! Strangers are expected: each way to hold on to something has a limit in [`Limits`].

mod admission;
mod guarded;
mod seats;
#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router, middleware};
use axum_server::{
    Handle, Server,
    accept::Accept,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use futures::future::BoxFuture;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    task, time,
};
use tower::Layer as _;

use self::{
    admission::{Porter, admit},
    guarded::Guarded,
    seats::{Seat, Seats},
};
use crate::tls::{Current, TlsError};

/// How many connections there are at once.
const CONNECTIONS_MAX: usize = 512;
/// How many calls are open on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// How many headers a request has over HTTP/1.
const HEADERS_MAX: usize = 64;
/// How long all headers of a request are, in bytes.
const HEADERS_MAX_BYTES: u32 = 16 << 10;
/// How long the TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the headers of a request may take; over HTTP/1 also how long a connection may be idle.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the body of a request may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the answer to a call may take, streams of captures excepted.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long nothing can be written to a client that does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a silent HTTP/2 client is asked whether it is there, and how long it has to answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long a connection may be there without a call.
const IDLE_TIMEOUT: Duration = Duration::from_mins(5);
/// How long a connection of somebody without a role lives, whatever it does.
const STRANGER_TIMEOUT: Duration = Duration::from_mins(1);
/// How often connections are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How long calls that are open may take when the capture ends.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(300);

/// What somebody who comes to the port may use up.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each is a constant of this module, with its words")]
pub struct Limits {
    pub connections: usize,
    pub handshake: Duration,
    pub headers: Duration,
    pub body: Duration,
    pub call: Duration,
    pub write: Duration,
    pub idle: Duration,
    pub stranger: Duration,
    pub sweep: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS_MAX,
            handshake: HANDSHAKE_TIMEOUT,
            headers: HEADERS_TIMEOUT,
            body: BODY_TIMEOUT,
            call: CALL_TIMEOUT,
            write: WRITE_TIMEOUT,
            idle: IDLE_TIMEOUT,
            stranger: STRANGER_TIMEOUT,
            sweep: SWEEP_INTERVAL,
        }
    }
}

/// A port that is being served. When this goes, all connections are cut.
#[derive(Debug)]
pub struct Listener {
    handle: Handle<SocketAddr>,
    task: task::JoinHandle<io::Result<()>>,
}

impl Listener {
    /// Begins to serve: the doors behind a port, over TLS when there are credentials.
    ///
    /// # Errors
    /// When there are credentials without a certificate.
    pub fn start(
        listener: TcpListener,
        doors: Router,
        credentials: Option<Current>,
        limits: Limits,
    ) -> Result<Self, TlsError> {
        let tls = match credentials {
            None => None,
            Some(current) => Some((current.get().server_config()?, Some(current))),
        };
        Ok(Self::begin(listener, doors, tls, limits))
    }

    /// Begins to serve strangers over TLS as the configuration has it, which finds its certificate by itself.
    pub fn start_for_strangers(
        listener: TcpListener,
        doors: Router,
        config: Arc<ServerConfig>,
        limits: Limits,
    ) -> Self {
        Self::begin(listener, doors, Some((config, None)), limits)
    }

    fn begin(
        listener: TcpListener,
        doors: Router,
        tls: Option<(Arc<ServerConfig>, Option<Current>)>,
        limits: Limits,
    ) -> Self {
        let handle = Handle::new();
        let seats = Seats::new(limits.connections);
        let mutual = tls.as_ref().and_then(|(_, current)| current.as_ref()).is_some_and(|all| all.get().is_mutual());
        let porter = Porter { mutual, limits: limits.clone() };
        let doors = doors.layer(middleware::from_fn_with_state(porter, admit));
        let mut server = Server::<SocketAddr>::from_listener(listener)
            .handle(handle.clone())
            .first_request_timeout(limits.headers)
            .accept_error_handler(|from, error| tracing::debug!(?from, %error, "connection is refused"));
        restrict(&mut server, &limits);
        let seating = Seating { seats: seats.clone(), limits: limits.clone(), secure: tls.is_some() };
        let doors = doors.into_make_service();
        let task = match tls {
            None => task::spawn(async move {
                tokio::select! {
                    outcome = server.acceptor(seating).serve(doors) => outcome,
                    () = sweep(seats, None, limits) => Ok(()),
                }
            }),
            Some((config, current)) => {
                let config = RustlsConfig::from_config(config);
                let acceptor =
                    RustlsAcceptor::new(config.clone()).handshake_timeout(limits.handshake).acceptor(seating);
                task::spawn(async move {
                    tokio::select! {
                        outcome = server.acceptor(acceptor).serve(doors) => outcome,
                        () = renew(current.clone(), config) => Ok(()),
                        () = sweep(seats, current, limits) => Ok(()),
                    }
                })
            }
        };
        Self { handle, task }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn ended(&mut self) -> Result<io::Result<()>, task::JoinError> {
        (&mut self.task).await
    }

    /// Ends: no new calls, and a moment for those that are open.
    pub async fn end(mut self) {
        self.handle.graceful_shutdown(Some(GOODBYE_TIMEOUT));
        let _ = (&mut self.task).await;
    }

    /// Ends at once.
    pub async fn cut(mut self) {
        self.handle.shutdown();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.handle.shutdown();
    }
}

fn restrict<A>(server: &mut Server<SocketAddr, A>, limits: &Limits) {
    let builder = server.http_builder();
    builder
        .http1()
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADERS_MAX_BYTES as usize)
        .header_read_timeout(limits.headers);
    builder
        .http2()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL / 2);
}

/// Gives new connections the credentials of now.
async fn renew(current: Option<Current>, config: RustlsConfig) {
    let Some(mut current) = current else { return std::future::pending().await };
    loop {
        current.changed().await;
        match current.get().server_config() {
            Ok(renewed) => config.reload_from_config(renewed),
            Err(error) => tracing::warn!(%error, "new credentials cannot be used by the server"),
        }
    }
}

/// Ends the connections whose time is up, or whose certificate is no longer trusted.
async fn sweep(seats: Seats, current: Option<Current>, limits: Limits) {
    loop {
        time::sleep(limits.sweep).await;
        let (seats, credentials, limits) = (seats.clone(), current.as_ref().map(Current::get), limits.clone());
        // Certificates are judged there, which takes a while. Only a panic ends it, and that one is logged.
        let _ = task::spawn_blocking(move || seats.sweep(credentials.as_deref(), &limits)).await;
    }
}

/// Gives each connection a seat, before anything is read from it.
#[derive(Clone)]
struct Seating {
    seats: Seats,
    limits: Limits,
    /// Whether TLS is spoken next.
    secure: bool,
}

impl<S: Send + 'static> Accept<TcpStream, S> for Seating {
    type Stream = Guarded;
    type Service = middleware::AddExtension<S, Arc<Seat>>;
    type Future = BoxFuture<'static, io::Result<(Guarded, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let Self { seats, limits, secure } = self.clone();
        Box::pin(async move {
            let taken = seats.take().ok_or_else(|| io::Error::other("too many connections"))?;
            let service = Extension(taken.seat().clone()).layer(service);
            stream.set_nodelay(true)?;
            let mut stream = Guarded::new(stream, taken, limits.write);
            if secure && !time::timeout(limits.handshake, stream.begins_with_tls()).await?? {
                // It does not matter whether he hears it.
                let _ = time::timeout(limits.handshake, stream.answer(&admission::speak_tls())).await;
                return Err(io::Error::other("no TLS is spoken"));
            }
            Ok((stream, service))
        })
    }
}

//! A cluster of `TiCDC` that is played: three captures that answer what a test has written down for them.

use std::{
    collections::VecDeque,
    net::TcpListener,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, Response, StatusCode, Uri, header},
};
use axum_server::tls_rustls::RustlsConfig;
use serde_json::json;
use tokio::{task::JoinHandle, time};

/// An answer.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// This status and this body.
    Text(u16, String),
    /// More is announced than comes.
    CutOff(u16, String),
    /// Go there.
    Redirect(String),
    /// After this long, 202 and 0.
    Slow(Duration),
}

/// So many are left.
pub(crate) fn left(count: u64) -> Reply {
    Reply::Text(202, json!({"current_table_count": count}).to_string())
}

/// An error as `TiCDC` writes it.
pub(crate) fn complaint(status: u16, code: &str, sentence: &str) -> Reply {
    Reply::Text(status, json!({"error_msg": sentence, "error_code": code}).to_string())
}

/// A call that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) what: String,
    pub(crate) body: String,
    pub(crate) login: Option<String>,
}

/// What it answers, and what it was asked.
pub(crate) struct Play {
    /// Id and version of each capture; one without a version does not say it.
    pub(crate) captures: Vec<(String, Option<String>)>,
    addresses: Vec<String>,
    pub(crate) owner: usize,
    /// Whom the ownership goes to when the owner resigns.
    pub(crate) heir: usize,
    /// Whether the ownership goes back and forth between `c0` and `c2` with each request for a drain.
    pub(crate) is_restless: bool,
    /// Answers to requests for a drain; the last goes on for ever.
    pub(crate) drain: VecDeque<Reply>,
    /// Answers to all but `/status`, in place of what would be answered; then it is as usual again.
    pub(crate) instead: VecDeque<Reply>,
    /// What `Authorization` has to be for all but `/status`, where a user is required.
    pub(crate) login: Option<String>,
    /// How many captures are listed.
    pub(crate) listed: usize,
    pub(crate) seen: Vec<Seen>,
}

impl Play {
    /// How often a call came.
    pub(crate) fn count(&self, what: &str) -> usize {
        self.seen.iter().filter(|seen| seen.what == what).count()
    }

    fn list(&self) -> Reply {
        let item = |n: usize| {
            json!({"id": self.captures[n].0, "is_owner": n == self.owner, "address": self.addresses[n],
                "cluster_id": "default"})
        };
        Reply::Text(200, json!((0..self.listed).map(item).collect::<Vec<_>>()).to_string())
    }

    fn answer(&mut self, at: usize, call: &Seen) -> Reply {
        let is_status = call.what == "GET /status";
        if let Some(reply) = self.instead.pop_front().filter(|_| !is_status) {
            return reply;
        }
        if !is_status && self.login.is_some() && self.login != call.login {
            return complaint(401, "CDC:ErrUnauthorized", "user is required");
        }
        match call.what.as_str() {
            "GET /status" => match &self.captures[at] {
                (id, Some(version)) => {
                    let status = json!({"version": version, "git_hash": "", "id": id, "pid": 1,
                        "is_owner": at == self.owner, "liveness": 0});
                    Reply::Text(200, status.to_string())
                }
                (_, None) => Reply::Text(500, String::new()),
            },
            "GET /api/v1/captures" => self.list(),
            "POST /api/v1/owner/resign" => {
                self.owner = self.heir;
                Reply::Text(202, String::new())
            }
            "PUT /api/v1/captures/drain" => {
                if self.is_restless {
                    self.owner = 2 - self.owner;
                }
                let last = self.drain.len() == 1;
                let next = if last { self.drain.front().cloned() } else { self.drain.pop_front() };
                next.unwrap_or_else(|| Reply::Text(404, "404 page not found".to_owned()))
            }
            "GET /elsewhere" => left(0),
            _ => Reply::Text(404, "404 page not found".to_owned()),
        }
    }
}

/// Where it is played.
pub(crate) struct Stage<'a> {
    /// An address of this machine.
    pub(crate) host: &'a str,
    /// The host by which a capture advertises itself, by its number; without it, the same address.
    pub(crate) advertised: Option<&'a dyn Fn(usize) -> String>,
    /// How it speaks TLS.
    pub(crate) tls: Option<RustlsConfig>,
}

/// The captures `c0` (the owner), `c1` and `c2`; they end when this goes.
pub(crate) struct Fake {
    play: Arc<Mutex<Play>>,
    servers: Vec<String>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Fake {
    pub(crate) fn start(versions: [&str; 3], drain: impl IntoIterator<Item = Reply>) -> Self {
        Self::start_on(&Stage { host: "127.0.0.1", advertised: None, tls: None }, versions, drain)
    }

    pub(crate) fn start_on(stage: &Stage<'_>, versions: [&str; 3], drain: impl IntoIterator<Item = Reply>) -> Self {
        let listeners = versions.map(|_| TcpListener::bind((stage.host, 0)).unwrap());
        let servers: Vec<_> = listeners.iter().map(|at| at.local_addr().unwrap().to_string()).collect();
        let advertised = |n: usize, at: &TcpListener| match stage.advertised {
            Some(host) => format!("{}:{}", host(n), at.local_addr().unwrap().port()),
            None => servers[n].clone(),
        };
        let addresses = listeners.iter().enumerate().map(|(n, at)| advertised(n, at)).collect();
        let captures = versions.iter().enumerate();
        let captures = captures.map(|(n, version)| (format!("c{n}"), Some((*version).to_owned()))).collect();
        let play = Arc::new(Mutex::new(Play {
            captures,
            addresses,
            owner: 0,
            heir: 1,
            is_restless: false,
            drain: drain.into_iter().collect(),
            instead: VecDeque::new(),
            login: None,
            listed: 3,
            seen: Vec::new(),
        }));
        let serve = |(n, listener): (usize, TcpListener)| {
            let service = Router::new().fallback(serve).with_state((play.clone(), n)).into_make_service();
            let tls = stage.tls.clone();
            tokio::spawn(async move {
                match tls {
                    Some(tls) => axum_server::from_tcp_rustls(listener, tls).unwrap().serve(service).await.unwrap(),
                    None => axum_server::from_tcp(listener).unwrap().serve(service).await.unwrap(),
                }
            })
        };
        let tasks = listeners.into_iter().enumerate().map(serve).collect();
        Self { play, servers, tasks }
    }

    pub(crate) fn play(&self) -> MutexGuard<'_, Play> {
        self.play.lock().unwrap()
    }

    /// `host:port` of every capture.
    pub(crate) fn servers(&self) -> Vec<String> {
        self.servers.clone()
    }

    /// A capture starts anew: under the same address, as somebody else.
    pub(crate) fn restart(&self, at: usize, id: &str, version: &str) {
        self.play().captures[at] = (id.to_owned(), Some(version.to_owned()));
    }
}

async fn serve(
    State((play, at)): State<(Arc<Mutex<Play>>, usize)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let login = headers.get(header::AUTHORIZATION).map(|login| login.to_str().unwrap().to_owned());
    let body = String::from_utf8_lossy(&body).into_owned();
    let call = Seen { what: format!("{method} {}", uri.path()), body, login };
    let reply = {
        let mut play = play.lock().unwrap();
        play.seen.push(call.clone());
        play.answer(at, &call)
    };
    let build = |status: u16| Response::builder().status(StatusCode::from_u16(status).unwrap());
    match reply {
        Reply::Text(status, text) => build(status).body(text.into()).unwrap(),
        Reply::CutOff(status, text) => {
            let parts = futures::stream::iter([Ok(text), Err(std::io::Error::other("cut off"))]);
            build(status).header(header::CONTENT_LENGTH, 4096).body(Body::from_stream(parts)).unwrap()
        }
        Reply::Redirect(to) => build(302).header(header::LOCATION, to).body(Body::empty()).unwrap(),
        Reply::Slow(pause) => {
            time::sleep(pause).await;
            build(202).body(json!({"current_table_count": 0}).to_string().into()).unwrap()
        }
    }
}

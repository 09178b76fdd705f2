//! What is told of requests: an access log of one JSON object a line, and counters for Prometheus.

use crate::instance::Phase;
use crate::proxy::Proxy;
use crate::say;
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use uuid::Uuid;

/// Lines wait for each other up to this size and this time.
const LOG_BUFFER_BYTES: usize = 32 << 10;
const LOG_TIME: Duration = Duration::from_millis(250);
/// Of a path in the log.
const PATH_MAX_BYTES: usize = 2048;
/// The longest name that a client may give its request.
const ID_MAX_BYTES: usize = 64;

/// Counts of durations by powers of two of microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Histogram {
    /// How many took less than 2^n us and not less than half of that.
    pub counts: [u64; 32],
    sum_us: u64,
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let at = (u64::BITS - micros.leading_zeros()).min(31);
        self.counts[at as usize] += 1;
        self.sum_us = self.sum_us.saturating_add(micros);
    }

    fn print(&self, out: &mut String, name: &str, help: &str) {
        // Writing to a String can't fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut total = 0;
        for (at, count) in self.counts.iter().enumerate() {
            total += count;
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {total}", (1_u64 << at) as f64 / 1e6);
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {total}");
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {total}", self.sum_us as f64 / 1e6);
    }
}

/// See the module's text.
pub struct Telemetry {
    log: RefCell<Option<Log>>,
    /// By hundreds of the status.
    answers: RefCell<[u64; 6]>,
    times: RefCell<Histogram>,
    /// From asking torpord for a wake to its answer.
    pub wakes: RefCell<Histogram>,
    ids: (u64, Cell<u64>),
}

struct Log {
    path: PathBuf,
    file: File,
    lines: Vec<u8>,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Telemetry {
    /// With `log` an access log is appended to that file.
    ///
    /// # Errors
    /// Where it can't be opened.
    pub fn new(log: Option<&Path>) -> io::Result<Self> {
        let log = match log {
            Some(path) => {
                let file =
                    open(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
                Some(Log { path: path.to_owned(), file, lines: Vec::new() })
            }
            None => None,
        };
        Ok(Self {
            log: RefCell::new(log),
            answers: RefCell::default(),
            times: RefCell::default(),
            wakes: RefCell::default(),
            ids: (Uuid::new_v4().as_u64_pair().0, Cell::new(0)),
        })
    }

    /// The name of a request: the client's if that is harmless, else a new one.
    #[must_use]
    pub fn request_id(&self, given: Option<&http::HeaderValue>) -> String {
        let harmless = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let given = given.and_then(|value| value.to_str().ok());
        match given {
            Some(text) if !text.is_empty() && text.len() <= ID_MAX_BYTES && text.bytes().all(harmless) => {
                text.to_owned()
            }
            _ => {
                self.ids.1.set(self.ids.1.get() + 1);
                format!("{:016x}-{:x}", self.ids.0, self.ids.1.get())
            }
        }
    }

    /// Writes the log whenever there is something, for ever.
    pub async fn write(proxy: Rc<Proxy>) {
        loop {
            tokio::time::sleep(LOG_TIME).await;
            proxy.telemetry.flush();
        }
    }

    /// Writes what waits.
    pub fn flush(&self) {
        if let Some(log) = &mut *self.log.borrow_mut() {
            log.flush();
        }
    }

    /// Opens the log anew, for who has moved it away.
    pub fn reopen(&self) {
        if let Some(log) = &mut *self.log.borrow_mut() {
            log.flush();
            match open(&log.path) {
                Ok(file) => log.file = file,
                Err(error) => say!("{}: {error}", log.path.display()),
            }
        }
    }
}

impl Log {
    fn flush(&mut self) {
        if let Err(error) = self.file.write_all(&self.lines) {
            say!("{}: {error}", self.path.display());
        }
        self.lines.clear();
    }
}

/// A request, told of when this is dropped.
pub struct Record {
    proxy: Rc<Proxy>,
    since: Instant,
    /// Its name.
    pub id: String,
    client: IpAddr,
    method: Method,
    path: String,
    /// Whom it asked for.
    pub host: Option<crate::host::Host>,
    /// Who has answered.
    pub instance: Option<Uuid>,
    /// How.
    pub status: StatusCode,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// Why not as the client wished.
    pub reason: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: f64,
    id: &'a str,
    client: IpAddr,
    method: &'a str,
    host: Option<&'a str>,
    path: &'a str,
    status: u16,
    bytes: u64,
    ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl Record {
    /// A request that has begun.
    #[must_use]
    pub fn new(proxy: Rc<Proxy>, client: IpAddr, request: &http::Request<impl Sized>) -> Self {
        let id = proxy.telemetry.request_id(request.headers().get("x-request-id"));
        let logs = proxy.telemetry.log.borrow().is_some();
        let mut path = String::new();
        if logs {
            // The query may hold what is no concern of a log's.
            path.push_str(request.uri().path());
            path.truncate(path.floor_char_boundary(PATH_MAX_BYTES));
        }
        Self {
            proxy,
            since: Instant::now(),
            id,
            client,
            method: request.method().clone(),
            path,
            host: None,
            instance: None,
            status: StatusCode::OK,
            bytes: 0,
            reason: None,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let telemetry = &self.proxy.telemetry;
        let took = self.since.elapsed();
        telemetry.times.borrow_mut().add(took);
        telemetry.answers.borrow_mut()[usize::from(self.status.as_u16() / 100).min(5)] += 1;
        let mut log = telemetry.log.borrow_mut();
        let Some(log) = &mut *log else { return };
        let line = Line {
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            id: &self.id,
            client: self.client.to_canonical(),
            method: self.method.as_str(),
            host: self.host.as_ref().map(crate::host::Host::as_str),
            path: &self.path,
            status: self.status.as_u16(),
            bytes: self.bytes,
            ms: took.as_micros() as f64 / 1e3,
            instance: self.instance,
            reason: self.reason.as_deref(),
        };
        // Into memory: it can't fail.
        let _ = serde_json::to_writer(&mut log.lines, &line);
        log.lines.push(b'\n');
        if log.lines.len() >= LOG_BUFFER_BYTES {
            log.flush();
        }
    }
}

/// All counters as Prometheus reads them.
#[must_use]
pub fn metrics(proxy: &Proxy) -> String {
    let mut out = String::new();
    let mut print = |name: &str, kind: &str, help: &str, values: &[(String, u64)]| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    let one = |value: usize| vec![(String::new(), value as u64)];
    let answers = proxy.telemetry.answers.borrow();
    let classes: Vec<_> = (1..6).map(|n| (format!("{{code=\"{n}xx\"}}"), answers[n])).collect();
    print("torpor_proxy_requests_total", "counter", "Requests answered, by class of status.", &classes);
    let routes = proxy.routes.borrow();
    let count = |phase: fn(Phase) -> bool| routes.instances().filter(|instance| phase(instance.phase())).count();
    let running = count(|phase| matches!(phase, Phase::Running | Phase::Draining | Phase::Quiet));
    print("torpor_proxy_instances", "gauge", "Instances that run.", &one(running));
    let asleep = count(|phase| phase == Phase::Asleep);
    print("torpor_proxy_instances_asleep", "gauge", "Instances that sleep with connections open.", &one(asleep));
    let requests = routes.instances().map(|instance| instance.requests()).sum();
    print("torpor_proxy_requests_in_flight", "gauge", "Requests that guests are answering.", &one(requests));
    let connections = routes.instances().map(|instance| instance.connections()).sum();
    print("torpor_proxy_connections", "gauge", "Connections that are open through to guests.", &one(connections));
    print("torpor_proxy_clients", "gauge", "Clients that are connected.", &one(proxy.clients.count()));
    print("torpor_proxy_waiting", "gauge", "Requests that wait for an instance.", &one(proxy.wakes.waiting()));
    let asked = [(String::new(), proxy.wakes.asked())];
    print("torpor_proxy_wakes_total", "counter", "Wakes that torpord was asked for.", &asked);
    let present = usize::from(proxy.control.is_present());
    print("torpor_proxy_torpord_up", "gauge", "Whether torpord is connected.", &one(present));
    let wakes = &proxy.telemetry.wakes.borrow();
    wakes.print(&mut out, "torpor_proxy_wake_seconds", "From asking for a wake to its answer.");
    let times = &proxy.telemetry.times.borrow();
    times.print(&mut out, "torpor_proxy_request_seconds", "From a request's head to its answer's end.");
    out
}

/// Serves counters at `/metrics` for ever.
pub async fn serve(proxy: Rc<Proxy>, listener: TcpListener) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(LOG_TIME).await;
            continue;
        };
        let proxy = proxy.clone();
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let mut response = Response::new(Full::new(Bytes::new()));
            if request.uri().path() == "/metrics" {
                *response.body_mut() = Full::new(metrics(&proxy).into());
            } else {
                *response.status_mut() = StatusCode::NOT_FOUND;
            }
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(60))
            .serve_connection(TokioIo::new(socket), service);
        // Whoever asked has gone: nothing depends on it.
        tokio::task::spawn_local(async move { drop(connection.await) });
    }
}

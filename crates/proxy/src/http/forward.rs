//! A request's way: whose it is, an instance that takes it, and the answer back.

use super::answer::Refused;
use super::body::{Body, RequestBody};
use super::client::Connection;
use super::headers::{self, Entrance};
use super::tunnel::Tunnel;
use super::upstream::{self, SendError};
use crate::control::messages::Handler;
use crate::host::Host;
use crate::instance::{Kind, Phase};
use crate::proxy::{Admitted, HTTPS_PORT, Proxy};
use crate::say;
use crate::telemetry::Record;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use tokio::sync::oneshot;

/// An instance is lost, or a connection not taken up, so often before the client is told.
const TRIES_MAX: usize = 3;

/// Through which door a request came.
#[derive(Clone)]
pub struct Door {
    /// The proxy.
    pub proxy: Rc<Proxy>,
    /// The service port.
    pub port: u16,
    /// What guests are told of the client.
    pub entrance: Entrance,
    /// The name that TLS was begun with, if there was one.
    pub name: Option<Host>,
}

/// Answers a request, with the guest's answer or one that tells why there is none. The connection is busy from this call
/// on, not from the future's first poll.
pub fn answer(
    door: Door,
    client: Rc<Connection>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> {
    let in_flight = client.begin();
    let mut record = Record::new(door.proxy.clone(), door.entrance.peer, &request);
    async move {
        // What comes behind a chunked body is not looked at: a Content-Length beside Transfer-Encoding is void, so hyper
        // does not show it, and whoever stands before us may have believed it (RFC 9112, 6.1).
        let mut last = !client.is_multiplexed() && request.headers().contains_key(header::TRANSFER_ENCODING);
        let mut response = match forward(&door, &client, request, &mut record).await {
            Ok(response) => response,
            Err(refused) => {
                if refused.status.is_server_error() {
                    let reason = refused.reason.as_deref().unwrap_or(refused.text).lines().next().unwrap_or_default();
                    say!("request {}: {}: {reason}", record.id, refused.status.as_u16());
                }
                last |= refused.ends_connection() && !client.is_multiplexed();
                record.reason = refused.reason.clone();
                refused.response()
            }
        };
        record.status = response.status();
        if last && record.status != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.body_mut().hold(in_flight, record);
        Ok(response)
    }
}

/// Where a plain request for a service of HTTPS is to go.
fn redirect(door: &Door, host: &Host, path: &str) -> Response<Body> {
    let port = door.proxy.public_port(HTTPS_PORT);
    let port = if port == HTTPS_PORT { String::new() } else { format!(":{port}") };
    let mut response = Response::new(Body::text(""));
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    if let Ok(location) = HeaderValue::from_str(&format!("https://{host}{port}{path}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

async fn forward(
    door: &Door,
    client: &Rc<Connection>,
    request: Request<Incoming>,
    record: &mut Record,
) -> Result<Response<Body>, Refused> {
    let host = headers::host_of(&request)?;
    record.host = Some(host.clone());
    if door.name.as_ref().is_some_and(|name| *name != host) {
        return Err(Refused::new(StatusCode::MISDIRECTED_REQUEST, "the connection was made for another name"));
    }
    if !door.entrance.secure && door.proxy.redirects(&host, door.port) {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        return Ok(redirect(door, &host, path));
    }
    let upgrade = request.version() == Version::HTTP_11 && headers::wants_upgrade(request.headers());
    let (parts, body) = request.into_parts();
    let mut request = Request::from_parts(parts, RequestBody::new(body, client.clone()));
    headers::prepare_request(&mut request, &host, door.entrance, &record.id, upgrade);
    let bodiless = request.body().is_end_stream() && !upgrade;
    let repeatable = request.method().is_idempotent() && bodiless;
    let mut repeated = false;
    // It follows the opening of its connection at once, since it can be sent again where that is refused.
    let mut ahead = bodiless;
    let mut tries = 0;
    let mut admitted_before = None;
    loop {
        let admitted = match admitted_before.take() {
            Some(admitted) => admitted,
            None => door.proxy.admit(&host, door.port, Kind::Request).await?,
        };
        let instance = admitted.busy.instance().clone();
        if !door.entrance.secure && admitted.handlers.contains(&Handler::Redirect) {
            return Ok(redirect(door, &host, request.uri().path_and_query().map_or("/", |path| path.as_str())));
        }
        if !door.entrance.secure && admitted.handlers.contains(&Handler::Tls) {
            return Err(Refused::new(StatusCode::BAD_REQUEST, "this port speaks TLS"));
        }
        record.instance = Some(instance.id);
        let lost = |error: &dyn std::fmt::Display| {
            let reason = format!("{host}: instance {}: port {}: {error}", instance.id, admitted.destination);
            Refused::because(StatusCode::BAD_GATEWAY, "the program behind this name gave no answer", reason)
        };
        tries += 1;
        let upstream = match upstream::connect(&instance, admitted.destination, ahead).await {
            Ok(upstream) => upstream,
            // Its VM has gone, or goes to sleep, and no byte was sent.
            Err(_) if instance.phase() != Phase::Running && tries < TRIES_MAX => continue,
            Err(error) => return Err(lost(&error)),
        };
        let again = repeatable && admitted.retry_idempotent && !repeated;
        let copy = (again || upstream.is_ahead()).then(|| repeat(&request, client));
        match upstream.send(&instance, request).await {
            Ok((mut response, lease)) => {
                let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                if switches && !upgrade {
                    return Err(lost(&"it switches protocols unasked"));
                }
                headers::prepare_response(response.headers_mut(), &record.id, switches);
                if switches {
                    let (sender, guest) = oneshot::channel();
                    tokio::task::spawn_local(async move {
                        // The client may have gone meanwhile; the connection then ends here.
                        let _ = sender.send(lease.leftover().await);
                    });
                    let busy = admitted.busy.into_kind(Kind::Connection);
                    client.tunnel.replace(Some(Tunnel { guest, busy }));
                    return Ok(response.map(|_| Body::text("")));
                }
                return Ok(response.map(|body| Body::guest(body, lease, admitted.busy)));
            }
            Err(SendError::Unsent(unsent)) if tries < TRIES_MAX => {
                request = *unsent;
                admitted_before = still_admitted(admitted);
            }
            Err(SendError::Unsent(_)) => return Err(lost(&io::Error::from(io::ErrorKind::ConnectionReset))),
            Err(SendError::Unopened(error)) => {
                let may_try = tries < TRIES_MAX && error.kind() != io::ErrorKind::TimedOut;
                request = copy.filter(|_| may_try).ok_or_else(|| lost(&error))?;
                ahead = false;
                admitted_before = still_admitted(admitted);
            }
            Err(SendError::Broken(error)) => {
                request = copy.filter(|_| again).ok_or_else(|| lost(&error))?;
                repeated = true;
                admitted_before = still_admitted(admitted);
            }
        }
    }
}

/// It has its turn already, where the instance is still there: it is not to be counted twice.
fn still_admitted(admitted: Admitted) -> Option<Admitted> {
    matches!(admitted.busy.instance().phase(), Phase::Running | Phase::Draining).then_some(admitted)
}

/// A request without a body once more.
fn repeat(request: &Request<RequestBody>, client: &Rc<Connection>) -> Request<RequestBody> {
    let mut again = Request::new(RequestBody::none(client.clone()));
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    again
}

/// What the log says of a host that is not served.
#[must_use]
pub fn not_found(host: &Host, port: u16) -> Refused {
    Refused::because(StatusCode::NOT_FOUND, "no service has this name", format!("{host} on port {port}: unknown"))
}

//! A request's way: whose it is, an instance that takes it, and the answer back.

use super::answer::Refused;
use super::body::{Body, RequestBody};
use super::client::Connection;
use super::headers::{self, Entrance};
use super::tunnel::Tunnel;
use super::upstream::{self, SendError};
use crate::host::Host;
use crate::instance::{Kind, Phase};
use crate::proxy::Proxy;
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
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
}

/// Answers a request, with the guest's answer or one that tells why there is none.
///
/// # Errors
/// None.
pub async fn answer(
    door: Door,
    client: Rc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let in_flight = client.begin();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let response = match forward(&door, &client, request).await {
        Ok(mut response) => {
            response.body_mut().hold(in_flight);
            response
        }
        Err(refused) => {
            if let Some(reason) = &refused.reason {
                let status = refused.status.as_u16();
                eprintln!("torpor-proxy: {method} {path}: {status}: {}", reason.lines().next().unwrap_or_default());
            }
            refused.response()
        }
    };
    Ok(response)
}

async fn forward(door: &Door, client: &Rc<Connection>, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
    let host = headers::host_of(&request)?;
    let upgrade = request.version() == Version::HTTP_11 && headers::wants_upgrade(request.headers());
    let (parts, body) = request.into_parts();
    let mut request = Request::from_parts(parts, RequestBody::new(body, client.clone()));
    headers::prepare_request(&mut request, &host, door.entrance, upgrade);
    let mut tries = 0;
    loop {
        let admitted = door.proxy.admit(&host, door.port, Kind::Request).await?;
        let instance = admitted.busy.instance().clone();
        let lost = |error: &dyn std::fmt::Display| {
            let reason = format!("{host}: instance {}: port {}: {error}", instance.id, admitted.destination);
            Refused::because(StatusCode::BAD_GATEWAY, "the program behind this name gave no answer", reason)
        };
        tries += 1;
        let upstream = match upstream::connect(&instance, admitted.destination).await {
            Ok(upstream) => upstream,
            // Its VM has gone, or goes to sleep, and no byte was sent.
            Err(_) if instance.phase() != Phase::Running && tries < TRIES_MAX => continue,
            Err(error) => return Err(lost(&error)),
        };
        match upstream.send(&instance, request).await {
            Ok((mut response, lease)) => {
                let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                if switches && !upgrade {
                    return Err(lost(&"it switches protocols unasked"));
                }
                headers::prepare_response(response.headers_mut(), switches);
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
            Err(SendError::Unsent(unsent)) if tries < TRIES_MAX => request = *unsent,
            Err(SendError::Unsent(_)) => return Err(lost(&io::Error::from(io::ErrorKind::ConnectionReset))),
            Err(SendError::Broken(error)) => return Err(lost(&error)),
        }
    }
}

/// What the log says of a host that is not served.
#[must_use]
pub fn not_found(host: &Host, port: u16) -> Refused {
    Refused::because(StatusCode::NOT_FOUND, "no service has this name", format!("{host} on port {port}: unknown"))
}

//! Which header fields go on to the other side, and which are for this connection alone (RFC 9110, 7.6).

use crate::host::{BadHost, Host};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri, Version, uri};
use std::net::IpAddr;

use super::answer::Refused;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Fields of one connection whether or not `Connection` names them.
const OF_CONNECTION: [HeaderName; 8] = [
    header::CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Fields that tell how long a message is or where it goes: a `Connection` that names them means harm.
const NEVER_NAMED: [HeaderName; 4] =
    [header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::AUTHORIZATION];

/// What else a program may take for one of those that the proxy fills in: the standard's own field (RFC 7239), and names
/// that CGI and WSGI do not tell from them.
const FORGED: [&str; 6] =
    ["forwarded", "x_forwarded_for", "x_forwarded_host", "x_forwarded_port", "x_forwarded_proto", "x_real_ip"];

/// Where a request came in.
#[derive(Debug, Clone, Copy)]
pub struct Entrance {
    /// The client.
    pub peer: IpAddr,
    /// The port that the client believes to speak to.
    pub public_port: u16,
    /// Over TLS.
    pub secure: bool,
}

const fn bad(text: &'static str) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, text)
}

/// Whose a request is, by its target or its one Host field; a message that could mean two things is refused.
///
/// # Errors
/// What the client is answered.
pub fn host_of<B>(request: &Request<B>) -> Result<Host, Refused> {
    let headers = request.headers();
    if request.method() == Method::CONNECT {
        return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "this proxy opens no tunnels"));
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let field = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(bad("more than one Host field")),
        (Some(value), None) => Some(value.to_str().map_err(|_| bad("the Host field names no host"))?),
        (None, None) => None,
    };
    if field.is_none() && request.version() == Version::HTTP_11 {
        return Err(bad("the Host field is missing"));
    }
    if headers.contains_key(header::TRANSFER_ENCODING) {
        if headers.contains_key(header::CONTENT_LENGTH) {
            return Err(bad("Content-Length and Transfer-Encoding together"));
        }
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        let only = (codings.next(), codings.next());
        if !matches!(only, (Some(value), None) if value.as_bytes().eq_ignore_ascii_case(b"chunked")) {
            return Err(Refused::new(StatusCode::NOT_IMPLEMENTED, "a transfer coding other than chunked"));
        }
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return Err(bad("more than one Content-Length field"));
    }
    let of_target = match request.uri().authority() {
        // A user's name in front of the host is for no server to see, and misleads who reads it.
        Some(authority) if authority.as_str().contains('@') => return Err(bad("the target names a user")),
        Some(authority) => Some(authority.as_str()),
        None => None,
    };
    let parse = |text: &str| Host::parse(text).map_err(|BadHost| bad("the Host field names no host"));
    // RFC 9112, 3.2.2: the target's host counts, and the field is to be the same.
    match (of_target, field) {
        (Some(target), Some(field)) => {
            let (host, other) = (parse(target)?, parse(field)?);
            if host == other { Ok(host) } else { Err(bad("target and Host field differ")) }
        }
        (Some(text), None) | (None, Some(text)) => parse(text),
        (None, None) => Err(bad("no host is named")),
    }
}

/// Whether this asks to switch to another protocol. HTTP/2 is none: its requests would be neither counted nor filled in.
#[must_use]
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|protocol| !protocol.as_bytes().eq_ignore_ascii_case(b"h2c"))
        && named_by_connection(headers).any(|name| name.eq_ignore_ascii_case("upgrade"))
}

fn named_by_connection(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONNECTION).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim)
}

/// Takes out what is for one connection alone.
pub fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = named_by_connection(headers).filter_map(|name| name.parse().ok()).collect();
        for name in named.iter().filter(|name| !NEVER_NAMED.contains(name)) {
            headers.remove(name);
        }
    }
    for name in &OF_CONNECTION {
        headers.remove(name);
    }
}

/// Makes a client's request one to a guest, in origin form. `upgrade`: it asks for another protocol.
pub fn prepare_request<B>(request: &mut Request<B>, host: &Host, entrance: Entrance, id: &str, upgrade: bool) {
    let origin = request.uri().path_and_query().cloned();
    let origin = origin.unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    *request.uri_mut() = Uri::from(origin);
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    let protocol = if upgrade { headers.get(header::UPGRADE).cloned() } else { None };
    let trailers = headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    strip(headers);
    // RFC 9113, 8.2.3: HTTP/2 may have it in pieces, HTTP/1 may not.
    if headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let pieces: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(cookie) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
            headers.insert(header::COOKIE, cookie);
        }
    }
    // The proxy answers it to the client itself.
    headers.remove(header::EXPECT);
    if let Some(protocol) = protocol {
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if !headers.contains_key(header::HOST) {
        let text = authority.as_deref().unwrap_or(host.as_str());
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(header::HOST, value);
        }
    }
    let text = |value: String| HeaderValue::from_str(&value).expect("letters, digits, dots and colons");
    headers.insert(REQUEST_ID, text(id.to_owned()));
    // What a client says of itself here is not believed.
    for name in FORGED {
        headers.remove(name);
    }
    let peer = text(entrance.peer.to_canonical().to_string());
    headers.insert(FORWARDED_FOR, peer.clone());
    headers.insert(REAL_IP, peer);
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if entrance.secure { "https" } else { "http" }));
    headers.insert(FORWARDED_PORT, text(entrance.public_port.to_string()));
    if let Some(value) = headers.get(header::HOST).cloned() {
        headers.insert(FORWARDED_HOST, value);
    }
}

/// Makes a guest's answer one to a client.
pub fn prepare_response(headers: &mut HeaderMap, id: &str, upgrade: bool) {
    let protocol = if upgrade { headers.get(header::UPGRADE).cloned() } else { None };
    strip(headers);
    if let (false, Ok(id)) = (headers.contains_key(REQUEST_ID), HeaderValue::from_str(id)) {
        headers.insert(REQUEST_ID, id);
    }
    if let Some(protocol) = protocol {
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, fields: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::get(target);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).expect("a request")
    }

    fn status(target: &str, fields: &[(&str, &str)]) -> u16 {
        host_of(&request(target, fields)).map_or_else(|refused| refused.status.as_u16(), |_| 200)
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        assert_eq!(status("/", &[("host", "a.example")]), 200);
        assert_eq!(status("/", &[]), 400);
        assert_eq!(status("/", &[("host", "a.example"), ("host", "a.example")]), 400);
        assert_eq!(status("http://a.example/", &[("host", "A.example:80")]), 200);
        assert_eq!(status("http://a.example/", &[("host", "b.example")]), 400);
        assert_eq!(status("http://user@a.example/", &[("host", "a.example")]), 400);
        let host = ("host", "a.example");
        assert_eq!(status("/", &[host, ("transfer-encoding", "chunked")]), 200);
        assert_eq!(status("/", &[host, ("transfer-encoding", "gzip, chunked")]), 501);
        assert_eq!(status("/", &[host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]), 501);
        assert_eq!(status("/", &[host, ("transfer-encoding", "chunked"), ("content-length", "5")]), 400);
        assert_eq!(status("/", &[host, ("content-length", "5"), ("content-length", "5")]), 400);
    }

    #[test]
    fn fields_of_the_connection_stay_behind() {
        let fields = [
            ("host", "a.example"),
            ("connection", "X-Private, close, Host, content-length"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("content-length", "0"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6;proto=https"),
            ("expect", "100-continue"),
            ("cookie", "a=b"),
        ];
        let mut request = request("http://a.example/path?query", &fields);
        let host = host_of(&request).expect("clear");
        let entrance = Entrance { peer: [10, 0, 0, 1].into(), public_port: 8080, secure: false };
        prepare_request(&mut request, &host, entrance, "7-1", false);
        assert_eq!(request.uri(), "/path?query");
        let mut left: Vec<String> = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        left.sort();
        let expected = [
            "content-length: 0",
            "cookie: a=b",
            "host: a.example",
            "te: trailers",
            "x-forwarded-for: 10.0.0.1",
            "x-forwarded-host: a.example",
            "x-forwarded-port: 8080",
            "x-forwarded-proto: http",
            "x-real-ip: 10.0.0.1",
            "x-request-id: 7-1",
        ];
        assert_eq!(left, expected);
    }

    #[test]
    fn an_upgrade_is_kept_where_it_is_asked_for() {
        let asks = [("host", "a.example"), ("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        let mut asking = request("/", &asks);
        assert!(wants_upgrade(asking.headers()));
        let host = host_of(&asking).expect("clear");
        let entrance = Entrance { peer: [10, 0, 0, 1].into(), public_port: 80, secure: true };
        prepare_request(&mut asking, &host, entrance, "7-1", true);
        assert_eq!(asking.headers()["connection"], "upgrade");
        assert_eq!(asking.headers()["upgrade"], "websocket");
        assert!(!wants_upgrade(request("/", &[("upgrade", "websocket")]).headers()));
        let plain = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")];
        assert!(!wants_upgrade(request("/", &plain).headers()));
    }
}

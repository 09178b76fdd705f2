//! The data plane: every host socket of clients and of guests. docs/proxy.md is for who runs it, docs/proxy-socket.md
//! tells how it and torpord speak.
//!
//! One thread and one runtime: what is decided between two awaits is decided at once, there are no locks, and a request
//! crosses no thread on its way to a guest.

pub mod control;
pub mod doors;
pub mod host;
pub mod http;
pub mod instance;
pub mod limits;
pub mod link;
pub mod options;
pub mod proxy;
pub mod routes;
pub mod said;
pub mod telemetry;
pub mod tls;
pub mod wake;
pub mod watched;

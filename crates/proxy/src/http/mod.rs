//! HTTP between clients and guests.

pub mod answer;
pub mod body;
pub mod client;
pub mod forward;
pub mod headers;
pub mod server;
pub mod tunnel;
pub mod upstream;

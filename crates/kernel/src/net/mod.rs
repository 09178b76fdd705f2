//! Sockets: Unix sockets, TCP and UDP, vsock. No packets are made: a connection inside the guest is a pair of sockets that
//! put bytes into each other's queues, one to the outside is a stream to the host ([`crate::host::connection`]).

pub mod address;
mod bound;
pub mod control;
mod inet;
mod interfaces;
mod netlink;
pub mod options;
pub mod outside;
mod packet;
mod path;
pub mod queue;
pub mod report;
pub mod socket;
pub mod traffic;
mod transfer;
mod unix;
mod vsock;

pub use socket::{Socket, SocketFile};
pub use transfer::msg;

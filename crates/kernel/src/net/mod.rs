//! Sockets inside the guest: Unix sockets, and TCP and UDP over the loopback interface. No packets are made: a
//! connection is a pair of sockets that put bytes into each other's queues.

pub mod address;
mod bound;
pub mod control;
mod inet;
pub mod options;
mod path;
pub mod queue;
pub mod socket;
mod transfer;
mod unix;

pub use socket::{Socket, SocketFile};
pub use transfer::msg;

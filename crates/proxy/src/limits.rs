//! Every bound of the proxy on what clients, guests and torpord can make it hold or wait for.

use std::time::Duration;

/// Connections of clients.
pub const CLIENTS_MAX: usize = 65_536;
/// A request's head, HTTP/1 and HTTP/2: the client gets 431 beyond.
pub const HEAD_MAX_BYTES: usize = 64 << 10;
/// Header lines of a request.
pub const HEADERS_MAX: usize = 128;
/// From a head's first byte to its last.
pub const HEAD_TIME: Duration = Duration::from_secs(10);
/// A connection without a request on it.
pub const KEEP_ALIVE: Duration = Duration::from_secs(600);
/// A body that is waited for, or an answer that the client does not take, without a byte.
pub const STALL_TIME: Duration = Duration::from_secs(60);
/// A client that has ended its direction gets its answer within this time, or is taken for gone.
pub const HALF_CLOSED_TIME: Duration = Duration::from_secs(30);
/// What is still read from a client after the last answer, so that the answer is not lost to a reset.
pub const LINGER_MAX_BYTES: usize = 256 << 10;
/// The same in time.
pub const LINGER_TIME: Duration = Duration::from_secs(2);
/// Requests that wait for one host to wake.
pub const WAITING_PER_HOST_MAX: usize = 1024;
/// Requests that wait for any.
pub const WAITING_MAX: usize = 16_384;
/// A wake, from the request to the instance that can take it.
pub const WAKE_TIME: Duration = Duration::from_secs(30);
/// After an attach connections that are refused are tried again for so long: the program may be starting.
pub const STARTING_TIME: Duration = Duration::from_secs(10);
/// A connection to a guest, from OPEN to its answer.
pub const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Hosts that torpord does not know and that are remembered.
pub const MISSES_MAX: usize = 16_384;
/// Idle connections to one port of one guest.
pub const POOLED_MAX: usize = 128;
/// How long one is used again. Servers close theirs after 2 s and more (gunicorn; Node.js 5 s), and a request that meets
/// the close is lost.
pub const POOLED_TIME: Duration = Duration::from_secs(1);
/// Output of one link that torpord has not taken.
pub const OUTPUT_MAX_BYTES: usize = 256 << 10;
/// The same of all links together.
pub const OUTPUT_ALL_MAX_BYTES: usize = 64 << 20;
/// What torpord may be behind.
pub const CONTROL_QUEUE_MAX_BYTES: usize = 16 << 20;
/// After torpord has refused an `idle` it is not asked again for at least this long.
pub const IDLE_AGAIN: Duration = Duration::from_secs(1);
/// An instance that was attached and has had nothing to do yet stays awake for at least this long.
pub const UNUSED_TIME: Duration = Duration::from_secs(1);
/// Connections that a guest has opened and that are kept while it sleeps: with more it is not put to sleep for silence, and
/// the youngest are reset where it is all the same.
pub const PARKED_MAX: usize = 64;
/// Requests at once on one connection of HTTP/2.
pub const STREAMS_MAX: u32 = 128;
/// Streams that a client has reset before they were answered, and that the proxy had to: the connection ends beyond.
pub const RESETS_MAX: usize = 64;
/// What a client may send of one body before it is read, and what waits to be sent to it.
pub const WINDOW_BYTES: u32 = 64 << 10;
/// A group with nothing left to wake is not asked for more within this time.
pub const EXHAUSTED_TIME: Duration = Duration::from_secs(5);

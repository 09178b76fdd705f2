//! Numbered streams between VM processes and their host: the link that carries them ([`link`]), the rules that both
//! ends check ([`ledger`]), moving them to another VM process ([`parked`]), and the broker of the host's sockets
//! ([`sockets`]) with its policy for what guests may reach ([`policy`]). The datagrams by which controllers speak
//! to either end are here as well ([`envelope`]).

pub mod envelope;
pub mod ledger;
pub mod link;
pub mod outbox;
pub mod parked;

pub mod policy;
pub mod sockets;

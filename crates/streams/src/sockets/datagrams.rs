//! A datagram stream of a guest: one UDP socket of the guest, or one published UDP port.
//!
//! Each peer has a connected socket of the host's: so only who was written to can answer, and a refusal reaches the guest.
//! A published port has the one socket that is bound to it.

use super::bytes::is_readable;
use super::names::Asker;
use super::{Chunk, Reach, errno_of, guests_name, hosts_name};
use crate::outbox::Outbox;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use torpor_abi::endpoint::{ENDPOINT_BYTES, Endpoint};
use torpor_abi::frame::{CONNECTION_WINDOW_BYTES, Header, MAX_PAYLOAD_BYTES, MAX_WINDOW_BYTES, kind};

/// The peers that one socket of the guest can hear at a time; the one written to longest ago goes.
const PEERS_MAX: usize = 32;
/// Who a published port may answer.
const CALLERS_MAX: usize = 1024;
/// Frames that wait for room.
const PENDING_MAX: usize = 64;
/// The largest datagram that fits into a frame.
pub(super) const DATAGRAM_MAX_BYTES: usize = MAX_PAYLOAD_BYTES as usize - ENDPOINT_BYTES;

struct Peer {
    /// As the guest names it.
    address: SocketAddr,
    socket: OwnedFd,
    token: u64,
    readable: bool,
}

/// A frame to be sent as soon as it fits.
enum Pending {
    Fault(u32),
    Datagram(SocketAddr, Vec<u8>),
}

/// See the module's text.
pub(super) struct DatagramStream {
    /// Tells streams apart that had the same number at different times.
    pub(super) serial: u64,
    published: Option<(OwnedFd, VecDeque<SocketAddr>)>,
    readable: bool,
    peers: VecDeque<Peer>,
    pending: VecDeque<Pending>,
    /// Taken from the guest, to be handed back.
    taken_bytes: u32,
}

impl DatagramStream {
    /// Datagrams are passed on or dropped, never held: the guest may have the largest window at once.
    pub(super) fn new(serial: u64, published: Option<OwnedFd>) -> Self {
        Self {
            serial,
            published: published.map(|socket| (socket, VecDeque::new())),
            readable: true,
            peers: VecDeque::new(),
            pending: VecDeque::new(),
            taken_bytes: MAX_WINDOW_BYTES - CONNECTION_WINDOW_BYTES,
        }
    }

    /// Sends a datagram of the guest.
    pub(super) fn send(&mut self, to: SocketAddr, bytes: &[u8], reach: &mut Reach<'_>, number: u32) {
        if let Err(error) = self.try_send(to, bytes, reach, number) {
            self.push(Pending::Fault(errno_of(error)));
        }
    }

    /// Counts the payload of a frame that was taken.
    pub(super) fn taken(&mut self, bytes: u32) {
        self.taken_bytes = self.taken_bytes.saturating_add(bytes);
    }

    fn try_send(&mut self, to: SocketAddr, bytes: &[u8], reach: &mut Reach<'_>, number: u32) -> Result<(), Errno> {
        if reach.is_names(to) {
            let asker = Asker { stream: number, serial: self.serial, server: to };
            if let Some(answer) = reach.ask(asker, bytes) {
                self.answer(to, answer);
            }
            return Ok(());
        }
        if let Some((socket, callers)) = &mut self.published {
            let caller = hosts_name(to);
            let target = if callers.contains(&caller) { caller } else { reach.judge(to)? };
            return send_to(socket, bytes, Some(target));
        }
        let peer = self.peer(to, reach, number)?;
        send_to(&peer.socket, bytes, None)
    }

    /// The socket that is connected to an address; made where there is none.
    fn peer(&mut self, to: SocketAddr, reach: &mut Reach<'_>, number: u32) -> Result<&mut Peer, Errno> {
        if let Some(at) = self.peers.iter().position(|peer| peer.address == to) {
            let peer = self.peers.remove(at).expect("just found");
            self.peers.push_back(peer);
        } else {
            let target = reach.judge(to)?;
            let family = if target.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
            rustix::net::connect(&socket, &target)?;
            let token = reach.watch_peer(&socket, number)?;
            if self.peers.len() == PEERS_MAX
                && let Some(oldest) = self.peers.pop_front()
            {
                reach.forget(oldest.token);
            }
            self.peers.push_back(Peer { address: to, socket, token, readable: false });
        }
        Ok(self.peers.back_mut().expect("just pushed"))
    }

    /// connect(2) of the guest's socket.
    pub(super) fn connect(&mut self, to: SocketAddr, reach: &mut Reach<'_>, number: u32) -> Result<(), Errno> {
        if reach.is_names(to) { Ok(()) } else { self.peer(to, reach, number).map(|_| ()) }
    }

    /// An answer to a name query.
    pub(super) fn answer(&mut self, server: SocketAddr, bytes: Vec<u8>) {
        self.push(Pending::Datagram(server, bytes));
    }

    fn push(&mut self, pending: Pending) {
        if self.pending.len() < PENDING_MAX {
            self.pending.push_back(pending);
        }
    }

    /// epoll has said that a socket has something.
    pub(super) fn ready(&mut self, token: u64) {
        match self.peers.iter_mut().find(|peer| peer.token == token) {
            Some(peer) => peer.readable = true,
            None => self.readable = true,
        }
    }

    /// Whether someone has something for the guest.
    pub(super) fn has_word(&self) -> bool {
        !self.pending.is_empty() || self.peers.iter().any(|peer| peer.readable && is_readable(&peer.socket))
    }

    /// Sends what there is to the guest; returns whether the message is full.
    pub(super) fn serve(&mut self, number: u32, out: &mut Outbox, buffer: &mut Chunk) -> bool {
        if self.taken_bytes >= CONNECTION_WINDOW_BYTES {
            if !out.message.fits(0) {
                return true;
            }
            let argument = std::mem::take(&mut self.taken_bytes);
            out.push(Header { stream: number, kind: kind::CREDIT, len: 0, argument }, &[]);
        }
        while let Some(first) = self.pending.front() {
            match first {
                Pending::Fault(errno) => {
                    if !out.message.fits(0) {
                        return true;
                    }
                    out.push(Header { stream: number, kind: kind::FAULT, len: 0, argument: *errno }, &[]);
                }
                Pending::Datagram(from, bytes) => {
                    let len = (ENDPOINT_BYTES + bytes.len()) as u32;
                    if !out.message.fits(len) {
                        return true;
                    }
                    if len <= out.ledger.free_bytes(number) {
                        push_datagram(number, out, *from, bytes);
                    }
                }
            }
            self.pending.pop_front();
        }
        let mut faults = Vec::new();
        let published = self.published.as_mut();
        let mut full = false;
        if let Some((socket, callers)) = published
            && self.readable
        {
            full = receive(socket, number, None, out, buffer, &mut self.readable, &mut faults, |from| {
                if !callers.contains(&from) {
                    if callers.len() == CALLERS_MAX {
                        callers.pop_front();
                    }
                    callers.push_back(from);
                }
            });
        }
        for peer in &mut self.peers {
            if peer.readable && !full {
                let from = Some(peer.address);
                full = receive(&peer.socket, number, from, out, buffer, &mut peer.readable, &mut faults, |_| {});
            }
        }
        let any_fault = !faults.is_empty();
        faults.into_iter().for_each(|fault| self.push(Pending::Fault(fault)));
        full || any_fault
    }

    /// Gives up the sockets.
    pub(super) fn close(self, mut forget: impl FnMut(u64)) {
        self.peers.iter().for_each(|peer| forget(peer.token));
    }
}

fn send_to(socket: &OwnedFd, bytes: &[u8], to: Option<SocketAddr>) -> Result<(), Errno> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = match to {
        Some(to) => rustix::net::sendto(socket, bytes, flags, &to),
        None => rustix::net::send(socket, bytes, flags),
    };
    match sent {
        // A queue that is full loses datagrams, as any network may.
        Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => Ok(()),
        Err(error) => Err(error),
    }
}

fn push_datagram(number: u32, out: &mut Outbox, from: SocketAddr, bytes: &[u8]) {
    let payload = [&Endpoint::Inet(from).encode()[..], bytes].concat();
    let len = payload.len() as u32;
    out.push(Header { stream: number, kind: kind::DATA, len, argument: 0 }, &payload);
}

/// Passes on what a socket has received; returns whether the message is full.
#[allow(clippy::too_many_arguments, reason = "one caller per kind of socket")]
fn receive(
    socket: &OwnedFd,
    number: u32,
    from: Option<SocketAddr>,
    out: &mut Outbox,
    buffer: &mut Chunk,
    readable: &mut bool,
    faults: &mut Vec<u32>,
    mut heard: impl FnMut(SocketAddr),
) -> bool {
    loop {
        if !out.message.fits(MAX_PAYLOAD_BYTES) {
            return true;
        }
        // The guest is behind: what comes meanwhile waits in the host's socket, or is lost there.
        if out.ledger.free_bytes(number) < MAX_PAYLOAD_BYTES {
            return false;
        }
        match rustix::net::recvfrom(socket, &mut buffer[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((_, len, source)) => {
                let source = from.or_else(|| source.and_then(|source| SocketAddr::try_from(source).ok()));
                // What is too long for a frame is lost, as a datagram that is too long for a link.
                if let Some(source) = source
                    && len <= DATAGRAM_MAX_BYTES
                {
                    heard(source);
                    push_datagram(number, out, guests_name(source), &buffer[..len]);
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                *readable = false;
                return false;
            }
            Err(error) => {
                faults.push(errno_of(error));
                return false;
            }
        }
    }
}

//! Sending and receiving (send(2), recv(2)).

use super::address::{Address, UnixName};
use super::control::Passed;
use super::inet::{self, DatagramTarget};
use super::packet::Packet;
use super::queue::{Message, Sender};
use super::socket::{Family, Kind, Socket, message};
use super::traffic::{self, Way};
use super::{netlink, outside, unix};
use crate::errno::{Errno, Result};
use crate::fs::file::OpenFile;
use crate::mm::user::{Dest, Source};
use crate::task::signal;
use crate::wait::Events;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;

/// Flags of send(2) and recv(2).
#[allow(missing_docs, reason = "the names of recv(2)")]
pub mod msg {
    pub const OOB: u32 = 1;
    pub const PEEK: u32 = 2;
    pub const CTRUNC: u32 = 8;
    pub const TRUNC: u32 = 0x20;
    pub const DONTWAIT: u32 = 0x40;
    pub const WAITALL: u32 = 0x100;
    pub const NOSIGNAL: u32 = 0x4000;
    pub const CMSG_CLOEXEC: u32 = 0x4000_0000;
}

/// The largest datagram over IP; over Unix sockets the buffer is the bound.
const MAX_UDP_BYTES: usize = 65_507;
/// How much of a stream is copied at a time.
const PIECE_BYTES: usize = 16 << 10;

/// What a receive gave.
pub struct Received {
    /// Bytes put into the destination; with MSG_TRUNC those that there were.
    pub bytes: usize,
    /// Source of a datagram.
    pub from: Option<Address>,
    /// Descriptors that came along.
    pub rights: Vec<Rc<OpenFile>>,
    /// Who sent, on Unix sockets.
    pub sender: Option<Sender>,
    /// What the packet of a datagram over IP says.
    pub packet: Option<Packet>,
    /// When a message arrived: CLOCK_REALTIME in ns.
    pub arrived_ns: Option<u64>,
    /// MSG_TRUNC for `msg_flags`.
    pub truncated: bool,
}

impl Received {
    fn end() -> Self {
        Self {
            bytes: 0,
            from: None,
            rights: Vec::new(),
            sender: None,
            packet: None,
            arrived_ns: None,
            truncated: false,
        }
    }
}

impl Socket {
    /// Receives. `flags` are those of recv(2).
    ///
    /// # Errors
    /// As recv(2).
    pub fn receive(&self, dst: &mut Dest<'_>, flags: u32, nonblocking: bool) -> Result<Received> {
        if flags & msg::OOB != 0 {
            return Err(Errno::EINVAL);
        }
        let nonblocking = nonblocking || flags & msg::DONTWAIT != 0;
        self.let_in(nonblocking)?;
        if self.kind != Kind::Datagram && !self.is_connected() {
            if let Some(error) = self.take_error_if(self.is_inet()) {
                return Err(error);
            }
            if self.is_inet() && self.read_ended.get() && !self.is_listening() {
                return Ok(Received::end());
            }
            return Err(if self.kind == Kind::Stream && self.is_unix() { Errno::EINVAL } else { Errno::ENOTCONN });
        }
        let deadline = self.receive_deadline();
        if self.kind != Kind::Stream {
            return self.wait(nonblocking, deadline, &self.queue, || self.try_receive_message(dst, flags).transpose());
        }
        let wanted = if flags & msg::WAITALL != 0 && flags & msg::PEEK == 0 { dst.remaining() } else { 1 };
        let mut all = Received::end();
        loop {
            let step =
                self.wait(nonblocking, deadline, &self.queue, || self.try_receive_stream(dst, flags).transpose());
            match step {
                Ok(part) => {
                    let ended = part.bytes == 0 || !part.rights.is_empty();
                    all.bytes += part.bytes;
                    all.sender = all.sender.or(part.sender);
                    all.from = all.from.or(part.from);
                    all.rights.extend(part.rights);
                    if ended || all.bytes >= wanted || dst.remaining() == 0 {
                        return Ok(all);
                    }
                }
                Err(_) if all.bytes > 0 => return Ok(all),
                Err(error) => return Err(error),
            }
        }
    }

    /// What is sent and received while a listener has no room for the connection waits with it.
    fn let_in(&self, nonblocking: bool) -> Result<()> {
        match () {
            () if !self.is_waiting() => Ok(()),
            () if nonblocking => Err(Errno::EAGAIN),
            () => inet::await_admission(self),
        }
    }

    fn take_error_if(&self, heard: bool) -> Option<Errno> {
        if heard { self.take_error() } else { None }
    }

    /// The peer may go on: there is room in our queue.
    fn room_made(&self) {
        self.queue.wake(Events::WRITABLE);
        if let Some(peer) = self.peer() {
            peer.queue.wake(Events::WRITABLE);
        }
        self.wake_senders();
    }

    /// Tells those that have connected datagram sockets to this one.
    pub(super) fn wake_senders(&self) {
        let senders = self.senders.borrow().clone();
        for sender in senders.iter().filter_map(alloc::rc::Weak::upgrade).filter(|sender| sender.points_to(self)) {
            sender.queue.wake(Events::WRITABLE);
        }
    }

    fn try_receive_stream(&self, dst: &mut Dest<'_>, flags: u32) -> Result<Option<Received>> {
        if self.incoming.is_empty() {
            // What came in order came to its end, whatever became of our own half later.
            let in_order = self.is_inet() && self.error.get() == Some(Errno::EPIPE);
            if let Some(error) = self.take_error_if(!in_order) {
                return Err(error);
            }
            let over = self.read_ended.get() || (self.peer().is_none() && self.outside().is_none());
            return Ok(over.then(Received::end));
        }
        if dst.remaining() == 0 {
            return Ok(Some(Received::end()));
        }
        let (sender, from) = self.incoming.first(|m| (m.sender, m.from.clone())).unwrap_or_default();
        let boundary = self.options.on(1, super::options::name::PASSCRED);
        let bytes = self.incoming.read_pieces(boundary, |piece| dst.put(piece))?;
        let rights = if flags & msg::PEEK != 0 {
            self.incoming.first(|m| m.rights.clone()).unwrap_or_default()
        } else {
            let rights = self.incoming.consume(bytes);
            match self.outside() {
                Some(connection) => connection.consumed(bytes),
                None => self.room_made(),
            }
            rights
        };
        Ok(Some(Received { bytes, from, rights, sender, ..Received::end() }))
    }

    fn try_receive_message(&self, dst: &mut Dest<'_>, flags: u32) -> Result<Option<Received>> {
        if let Some(error) = self.take_error() {
            return Err(error);
        }
        let first = self.incoming.first(|message| -> Result<Received> {
            let (put, len) = (dst.put(message.bytes())?, message.bytes().len());
            let bytes = if flags & msg::TRUNC != 0 { len } else { put };
            let (from, rights) = (message.from.clone(), message.rights.clone());
            let (sender, packet, arrived_ns) = (message.sender, message.packet, Some(message.arrived_ns));
            Ok(Received { bytes, from, rights, sender, packet, arrived_ns, truncated: put < len })
        });
        let Some(received) = first.transpose()? else {
            let over = self.read_ended.get() || (self.kind == Kind::SeqPacket && self.peer().is_none());
            return Ok(over.then(Received::end));
        };
        if flags & msg::PEEK == 0 {
            self.incoming.pop();
            self.room_made();
        }
        Ok(Some(received))
    }

    /// Sends; `to` is the address of sendto(2).
    ///
    /// # Errors
    /// As send(2); EPIPE comes with SIGPIPE unless MSG_NOSIGNAL.
    pub fn send(
        self: &Rc<Self>,
        src: &mut Source<'_>,
        to: Option<&Address>,
        passed: &Passed,
        flags: u32,
        nonblocking: bool,
    ) -> Result<usize> {
        if flags & msg::OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let nonblocking = nonblocking || flags & msg::DONTWAIT != 0;
        self.let_in(nonblocking)?;
        let sent = match self.kind {
            Kind::Datagram => self.send_datagram(src, to, passed, nonblocking),
            Kind::Stream if to.is_some() && self.is_unix() => {
                Err(if self.is_connected() { Errno::EISCONN } else { Errno::EOPNOTSUPP })
            }
            Kind::SeqPacket => self.send_packet(src, passed, nonblocking),
            Kind::Stream => self.send_stream(src, passed, nonblocking),
        };
        if sent == Err(Errno::EPIPE) && self.kind == Kind::Stream && flags & msg::NOSIGNAL == 0 {
            signal::send_self(signal::SIGPIPE);
        }
        sent
    }

    fn send_stream(&self, src: &mut Source<'_>, passed: &Passed, nonblocking: bool) -> Result<usize> {
        if !self.is_connected() {
            let lost = self.take_error_if(self.is_inet()).unwrap_or(Errno::EPIPE);
            return Err(if self.is_unix() { Errno::ENOTCONN } else { lost });
        }
        let deadline = self.send_deadline();
        let mut sent = 0;
        loop {
            let rights = if sent == 0 { passed.clone() } else { Passed { rights: Vec::new(), ..passed.clone() } };
            let step = self.wait(nonblocking, deadline, &self.queue, || {
                // The error is the next call's, which has sent nothing yet.
                let is_next_calls = sent > 0 && self.is_inet() && self.error.get().is_some();
                if is_next_calls { Some(Ok(0)) } else { self.try_send_stream(src, &rights).transpose() }
            });
            match step {
                Ok(0) if sent > 0 => return Ok(sent),
                Ok(n) => sent += n,
                Err(_) if sent > 0 => return Ok(sent),
                Err(error) => return Err(error),
            }
            if src.remaining() == 0 {
                return Ok(sent);
            }
        }
    }

    fn try_send_stream(&self, src: &mut Source<'_>, passed: &Passed) -> Result<Option<usize>> {
        // Who sends on a Unix socket does not hear of what the peer left unread.
        if let Some(error) = self.take_error_if(self.is_inet()) {
            return Err(error);
        }
        if self.write_ended.get() {
            return Err(Errno::EPIPE);
        }
        if let Some(connection) = self.outside() {
            let written = connection.write(src)?;
            if let Some(bytes) = written.filter(|_| self.is_inet()) {
                traffic::count(Way::Out, bytes);
            }
            return Ok(written);
        }
        if self.is_unix() && src.remaining() == 0 {
            return Ok(Some(0));
        }
        let Some(peer) = self.peer() else {
            // The peer is gone. TCP finds out by the reset that answers its first bytes.
            if self.is_inet() {
                if src.remaining() == 0 {
                    return Ok(Some(0));
                }
                let mut lost = vec![0; src.remaining().min(PIECE_BYTES)];
                let taken = src.take(&mut lost)?;
                self.reset();
                return Ok(Some(taken));
            }
            return Err(Errno::EPIPE);
        };
        let n = self.send_room(&peer).min(src.remaining()).min(PIECE_BYTES);
        if n == 0 && src.remaining() > 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; n];
        let taken = src.take(&mut bytes)?;
        bytes.truncate(taken);
        // TCP takes what comes after SHUT_RD, too.
        if taken > 0 {
            if self.is_inet() {
                traffic::count(Way::Inside, taken);
            }
            peer.incoming.push_stream(message(bytes, self.sender_name(), passed, self.is_unix()));
            peer.queue.wake(Events::READABLE);
        }
        Ok(Some(taken))
    }

    fn send_packet(&self, src: &mut Source<'_>, passed: &Passed, nonblocking: bool) -> Result<usize> {
        if !self.is_connected() {
            return Err(Errno::ENOTCONN);
        }
        let packet = self.whole_message(src)?;
        self.wait(nonblocking, self.send_deadline(), &self.queue, || {
            self.try_deliver(&packet, passed, self.peer(), self.sender_name()).transpose()
        })
    }

    fn whole_message(&self, src: &mut Source<'_>) -> Result<Vec<u8>> {
        let limit = if self.is_inet() { MAX_UDP_BYTES } else { self.incoming.limit_bytes.get() };
        if src.remaining() > limit {
            return Err(Errno::EMSGSIZE);
        }
        let mut bytes = vec![0; src.remaining()];
        let mut filled = 0;
        while src.remaining() > 0 {
            filled += src.take(&mut bytes[filled..])?;
        }
        Ok(bytes)
    }

    /// Puts one message into the target's queue: `None` while it does not fit.
    fn try_deliver(
        &self,
        bytes: &[u8],
        passed: &Passed,
        target: Option<Rc<Socket>>,
        from: Option<Address>,
    ) -> Result<Option<usize>> {
        if let Some(error) = self.take_error() {
            return Err(error);
        }
        let gone = if self.kind == Kind::Datagram { Errno::ECONNREFUSED } else { Errno::EPIPE };
        if self.write_ended.get() {
            return Err(Errno::EPIPE);
        }
        let target = target.ok_or(gone)?;
        if target.read_ended.get() {
            return Err(Errno::EPIPE);
        }
        let fits = self.send_room(&target) >= bytes.len().max(1) || target.incoming.is_empty();
        if !fits {
            return Ok(None);
        }
        target.incoming.push(message(bytes.to_vec(), from, passed, self.is_unix()));
        target.queue.wake(Events::READABLE);
        Ok(Some(bytes.len()))
    }

    fn send_datagram(
        self: &Rc<Self>,
        src: &mut Source<'_>,
        to: Option<&Address>,
        passed: &Passed,
        nonblocking: bool,
    ) -> Result<usize> {
        if self.is_inet() {
            inet::ensure_bound(self)?;
            if src.remaining() > usize::from(u16::MAX) {
                return Err(Errno::EMSGSIZE);
            }
        }
        if !self.has_target(to.is_some()) {
            return Err(Errno::EDESTADDRREQ);
        }
        let bytes = self.whole_message(src)?;
        if self.family == Family::Netlink {
            self.bind_netlink(0);
            return netlink::send(self, &bytes);
        }
        if self.is_inet() {
            return self.send_udp(&bytes, to, passed, nonblocking);
        }
        let target = match to {
            Some(Address::Unix(name)) => Some(unix::find(self.kind, name)?),
            Some(_) => return Err(Errno::EINVAL),
            None if self.is_connected() => self.peer(),
            None => return Err(Errno::ENOTCONN),
        };
        if target.as_ref().is_some_and(|t| t.kind != Kind::Datagram) {
            return Err(Errno::EPROTOTYPE);
        }
        // A socket that is connected elsewhere takes datagrams from its peer only.
        if let Some(other) = target.as_ref().and_then(|t| t.peer())
            && !Rc::ptr_eq(&other, self)
        {
            return Err(Errno::EPERM);
        }
        let queue = target.as_ref().map_or_else(|| Rc::clone(&self.queue), |t| Rc::clone(&t.queue));
        let from = self.sender_name();
        // Who waits does not keep the target: it may be closed meanwhile.
        let weak = target.as_ref().map(Rc::downgrade);
        drop(target);
        let sent = self.wait(nonblocking, self.send_deadline(), &queue, || {
            let target = weak.as_ref().and_then(alloc::rc::Weak::upgrade);
            self.try_deliver(&bytes, passed, target, from.clone()).transpose()
        });
        if sent == Err(Errno::ECONNREFUSED) && to.is_none() {
            // The peer is gone: the next call finds none.
            unix::leave_peer(self);
        }
        sent
    }

    /// The name that receivers are told, if a Unix socket has one.
    fn sender_name(&self) -> Option<Address> {
        let unnamed = Address::Unix(UnixName::Unnamed);
        Some(self.local_address()).filter(|name| self.is_unix() && *name != unnamed)
    }

    /// Whether it is known where a message goes; for what comes before a look at the message.
    pub fn has_target(&self, is_named: bool) -> bool {
        match self.kind {
            Kind::Stream if self.is_inet() => self.is_connected() && !self.write_ended.get(),
            Kind::SeqPacket => self.is_connected(),
            Kind::Datagram if self.is_inet() => is_named || self.remote_inet().is_some(),
            _ => true,
        }
    }

    /// Inside the guest UDP never waits: what does not fit is lost. To the outside it waits for room on the way.
    fn send_udp(
        self: &Rc<Self>,
        bytes: &[u8],
        to: Option<&Address>,
        passed: &Passed,
        nonblocking: bool,
    ) -> Result<usize> {
        if let Some(error) = self.take_error() {
            return Err(error);
        }
        let to = match to {
            Some(Address::Inet(address)) if address.port == 0 && address.ip.is_ipv6() == self.is_v6() => {
                return Err(Errno::EINVAL);
            }
            Some(Address::Inet(address)) => *address,
            Some(_) => return Err(Errno::EAFNOSUPPORT),
            None => self.remote_inet().ok_or(Errno::EDESTADDRREQ)?,
        };
        match inet::datagram_target(self, to, passed.source)? {
            DatagramTarget::Outside { to, from } => {
                self.wait(nonblocking, self.send_deadline(), &self.queue, || {
                    let sent = outside::send_datagram(self, to, from, bytes);
                    sent.map(|sent| sent.then_some(())).transpose()
                })?;
                traffic::count(Way::Out, bytes.len());
            }
            DatagramTarget::Local { to, target: Some((target, source)) }
                if self.send_room(&target) >= bytes.len().max(1) && !target.read_ended.get() =>
            {
                traffic::count(Way::Inside, bytes.len());
                target.incoming.push(Message::datagram(bytes.to_vec(), source, Packet::sent(self, to, passed)));
                target.queue.wake(Events::READABLE);
            }
            // What does not fit is lost.
            DatagramTarget::Local { target: Some(_), .. } => {}
            // ICMP port unreachable reaches a connected socket.
            DatagramTarget::Local { target: None, .. } if self.remote_inet().is_some() => {
                self.error.set(Some(Errno::ECONNREFUSED));
                self.queue.wake_all(Events::ERR | Events::READABLE);
            }
            DatagramTarget::Local { target: None, .. } => {}
        }
        Ok(bytes.len())
    }
}

//! Who is bound to which name or port.

use super::address::{InetAddress, UnixName};
use super::options::{level, name};
use super::socket::{Kind, Socket};
use crate::errno::{Errno, Result};
use alloc::collections::BTreeMap;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// net.ipv4.ip_local_port_range.
const EPHEMERAL: core::ops::RangeInclusive<u16> = 32768..=60999;

/// By type and name: sockets of different types don't meet (unix(7)).
type Names = BTreeMap<(Kind, Vec<u8>), Weak<Socket>>;

crate::global! {
    static ABSTRACT: RefCell<Names> = RefCell::new(Names::new());
}

crate::global! {
    /// By protocol and port.
    static PORTS: RefCell<BTreeMap<(u32, u16), Holders>> = RefCell::new(BTreeMap::new());
}

crate::global! {
    /// Where the search for a free port goes on.
    static NEXT: Cell<u16> = Cell::new(0);
}

/// Sockets that share a port.
type Holders = Vec<Weak<Socket>>;

/// Takes an abstract name.
///
/// # Errors
/// EADDRINUSE.
pub(super) fn bind_abstract(socket: &Rc<Socket>, name: &[u8]) -> Result<()> {
    ABSTRACT.with(|names| {
        let mut names = names.borrow_mut();
        let key = (socket.kind, name.to_vec());
        if names.get(&key).is_some_and(|s| s.strong_count() > 0) {
            return Err(Errno::EADDRINUSE);
        }
        names.insert(key, Rc::downgrade(socket));
        Ok(())
    })
}

/// A free abstract name (autobind of unix(7)): five hexadecimal digits.
pub(super) fn autobind(socket: &Rc<Socket>) -> Result<UnixName> {
    for _ in 0..1 << 20 {
        let number = crate::random::u64() & 0xf_ffff;
        let name = alloc::format!("{number:05x}").into_bytes();
        if bind_abstract(socket, &name).is_ok() {
            return Ok(UnixName::Abstract(name));
        }
    }
    Err(Errno::ENOSPC)
}

/// Gives an abstract name back; one that another socket has stays.
pub(super) fn release_abstract(socket: &Socket, name: &[u8]) {
    ABSTRACT.with(|names| {
        let mut names = names.borrow_mut();
        let key = (socket.kind, name.to_vec());
        if names.get(&key).is_some_and(|holder| core::ptr::eq(holder.as_ptr(), socket)) {
            names.remove(&key);
        }
    });
}

/// Who has an abstract name.
pub(super) fn find_abstract(kind: Kind, name: &[u8]) -> Option<Rc<Socket>> {
    ABSTRACT.with(|names| names.borrow().get(&(kind, name.to_vec())).and_then(Weak::upgrade))
}

/// Whether two bound addresses cover a common one. An IPv6 wildcard covers IPv4 unless the socket is V6ONLY.
fn overlap(a: InetAddress, a_v6only: bool, b: InetAddress, b_v6only: bool) -> bool {
    let covers = |x: InetAddress, x_only: bool, y: InetAddress| {
        x.ip == y.ip || x.ip.is_unspecified() && (x.ip.is_ipv4() == y.ip.is_ipv4() || (x.ip.is_ipv6() && !x_only))
    };
    let (a, b) = (a.canonical(), b.canonical());
    covers(a, a_v6only, b) || covers(b, b_v6only, a)
}

fn conflicts(socket: &Socket, wanted: InetAddress, other: &Socket) -> bool {
    if core::ptr::eq(socket, other) || !overlap(wanted, socket.v6_only(), other.local_inet(), other.v6_only()) {
        return false;
    }
    let both = |option: u32| socket.options.on(level::SOCKET, option) && other.options.on(level::SOCKET, option);
    if both(name::REUSEPORT) {
        return false;
    }
    // SO_REUSEADDR: a TCP port can be shared unless somebody listens on it; UDP ports always.
    !(both(name::REUSEADDR) && (socket.kind == Kind::Datagram || !other.is_listening()))
}

/// Takes a port, a free one for 0; returns it.
///
/// # Errors
/// EADDRINUSE.
pub(super) fn bind_port(socket: &Rc<Socket>, wanted: InetAddress) -> Result<u16> {
    PORTS.with(|ports| {
        let mut ports = ports.borrow_mut();
        let mut free = |port: u16| {
            let holders = ports.entry((socket.protocol, port)).or_default();
            holders.retain(|s| s.strong_count() > 0);
            let taken = holders.iter().filter_map(Weak::upgrade).any(|other| conflicts(socket, wanted, &other));
            if !taken {
                holders.push(Rc::downgrade(socket));
            } else if holders.is_empty() {
                ports.remove(&(socket.protocol, port));
            }
            !taken
        };
        if wanted.port != 0 {
            return if free(wanted.port) { Ok(wanted.port) } else { Err(Errno::EADDRINUSE) };
        }
        let count = EPHEMERAL.end() - EPHEMERAL.start() + 1;
        let start = NEXT.with(|next| next.replace(next.get().wrapping_add(1)));
        let start = start.wrapping_mul(2477).wrapping_add(crate::random::u64() as u16 & 0xff) % count;
        for n in 0..count {
            let port = EPHEMERAL.start() + (start + n) % count;
            if free(port) {
                return Ok(port);
            }
        }
        Err(Errno::EADDRINUSE)
    })
}

/// Gives a port back.
pub(super) fn release_port(socket: &Socket, port: u16) {
    let key = (socket.protocol, port);
    PORTS.with(|ports| {
        let mut ports = ports.borrow_mut();
        if let Some(holders) = ports.get_mut(&key) {
            holders.retain(|s| s.strong_count() > 0 && !core::ptr::eq(s.as_ptr(), socket));
            if holders.is_empty() {
                ports.remove(&key);
            }
        }
    });
}

/// Who receives what is sent to an address: the most specific binding; among equals (SO_REUSEPORT) any one. For
/// streams only listeners count. `from` matters to connected datagram sockets.
pub(super) fn find_port(protocol: u32, to: InetAddress, from: InetAddress) -> Option<Rc<Socket>> {
    let to = to.canonical();
    let stream = protocol == level::TCP;
    let holders: Vec<_> =
        PORTS.with(|p| p.borrow().get(&(protocol, to.port)).into_iter().flatten().filter_map(Weak::upgrade).collect());
    let score = |socket: &Rc<Socket>| -> Option<u32> {
        if stream && !socket.is_listening() {
            return None;
        }
        let bound = socket.local_inet().canonical();
        if !overlap(bound, socket.v6_only(), to, false) || (bound.ip != to.ip && !bound.ip.is_unspecified()) {
            return None;
        }
        let mut score = 1;
        score += 2 * u32::from(!bound.ip.is_unspecified()) + u32::from(bound.ip.is_ipv4() == to.ip.is_ipv4());
        if !stream && let Some(remote) = socket.remote_inet() {
            if remote.canonical() != from.canonical() {
                return None;
            }
            score += 8;
        }
        Some(score)
    };
    let best = holders.iter().filter_map(score).max()?;
    let equals: Vec<_> = holders.iter().filter(|s| score(s) == Some(best)).collect();
    equals.get(crate::random::u64() as usize % equals.len()).map(|s| Rc::clone(s))
}

//! Sockets between guest and host (vsock(7)): streams to context 2, and listeners that programs of the host reach.

use super::address::{Address, VsockAddress};
use super::options::level;
use super::outside;
use super::socket::{Family, Kind, Socket, State};
use crate::errno::{Errno, Result};
use crate::host::connection::{Connection, refuse};
use alloc::collections::BTreeMap;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use torpor_abi::endpoint::{Endpoint, Transport, network};
use torpor_abi::frame::Header;

/// VMADDR_CID_ANY and VMADDR_PORT_ANY.
const ANY: u32 = u32::MAX;
/// Ports below need CAP_NET_BIND_SERVICE, and are not given out.
const LAST_RESERVED_PORT: u32 = 1023;

crate::global! {
    static PORTS: RefCell<BTreeMap<u32, Weak<Socket>>> = RefCell::new(BTreeMap::new());
}

crate::global! {
    static NEXT: Cell<u32> = Cell::new(LAST_RESERVED_PORT + 1);
}

fn endpoint(address: VsockAddress) -> Endpoint {
    Endpoint::Vsock { cid: address.cid, port: address.port }
}

/// bind(2).
///
/// # Errors
/// EINVAL if bound already, EADDRNOTAVAIL for another context than ours, EACCES, EADDRINUSE.
pub(super) fn bind(socket: &Rc<Socket>, wanted: VsockAddress) -> Result<()> {
    if socket.local_vsock().port != ANY {
        return Err(Errno::EINVAL);
    }
    if wanted.cid != ANY && wanted.cid != network::GUEST_CID {
        return Err(Errno::EADDRNOTAVAIL);
    }
    let privileged = crate::task::current().creds().has(linux_raw_sys::general::CAP_NET_BIND_SERVICE);
    if wanted.port <= LAST_RESERVED_PORT && !privileged {
        return Err(Errno::EACCES);
    }
    PORTS.with(|ports| {
        let mut ports = ports.borrow_mut();
        let port = if wanted.port == ANY {
            loop {
                let next = NEXT.with(|n| n.replace(n.get().checked_add(1).filter(|p| *p != ANY).unwrap_or(1024)));
                if !ports.contains_key(&next) {
                    break next;
                }
            }
        } else {
            wanted.port
        };
        if ports.get(&port).is_some_and(|holder| holder.strong_count() > 0) {
            return Err(Errno::EADDRINUSE);
        }
        ports.insert(port, Rc::downgrade(socket));
        *socket.local.borrow_mut() = Address::Vsock(VsockAddress { cid: wanted.cid, port });
        Ok(())
    })
}

/// Gives a port back.
pub(super) fn release(socket: &Socket) {
    let port = socket.local_vsock().port;
    PORTS.with(|ports| {
        let mut ports = ports.borrow_mut();
        if ports.get(&port).is_some_and(|holder| core::ptr::eq(holder.as_ptr(), socket)) {
            ports.remove(&port);
        }
    });
}

/// Names of the options that are sizes of buffers.
mod size {
    pub(super) const NOW: u32 = 0;
    pub(super) const MIN: u32 = 1;
    pub(super) const MAX: u32 = 2;
}

/// Sets the size of a socket's buffer, or its bounds, as a number of 64 bits. What is beyond i32 is that.
///
/// # Errors
/// EINVAL, ENOPROTOOPT.
pub(super) fn set_buffer(socket: &Socket, name: u32, bytes: &[u8]) -> Result<()> {
    let value = bytes.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)).ok_or(Errno::EINVAL)?;
    let (level, what, options) = (level::VSOCK, socket.what(), &socket.options);
    options.set(level, name, what, i32::try_from(value).unwrap_or(i32::MAX))?;
    let [now, min, max] = [size::NOW, size::MIN, size::MAX].map(|name| options.get(level, name, what));
    options.set(level, size::NOW, what, now?.min(max?).max(min?))
}

/// What [`set_buffer`] set.
///
/// # Errors
/// ENOPROTOOPT.
pub(super) fn buffer(socket: &Socket, name: u32) -> Result<Vec<u8>> {
    let value = socket.options.get(level::VSOCK, name, socket.what())?;
    Ok(u64::from(value.unsigned_abs()).to_ne_bytes().to_vec())
}

/// connect(2).
///
/// # Errors
/// ENODEV for any context but the host's; as the host says.
pub(super) fn connect(socket: &Rc<Socket>, to: VsockAddress, nonblocking: bool) -> Result<()> {
    if let Some(done) = socket.connecting_again(nonblocking) {
        return done;
    }
    if to.cid != network::HOST_CID {
        return Err(Errno::ENODEV);
    }
    if socket.local_vsock().port == ANY {
        bind(socket, VsockAddress { cid: network::GUEST_CID, port: ANY })?;
    }
    let from = VsockAddress { cid: network::GUEST_CID, port: socket.local_vsock().port };
    let owner: Weak<Socket> = Rc::downgrade(socket);
    let connection = Connection::open(Transport::Vsock, endpoint(to), endpoint(from), owner, Rc::clone(&socket.queue))?;
    *socket.state.borrow_mut() = State::Outside(connection);
    *socket.remote.borrow_mut() = Some(Address::Vsock(to));
    if nonblocking {
        socket.connecting.set(true);
        return Err(Errno::EINPROGRESS);
    }
    outside::await_connection(socket)
}

/// A program of the host has connected to port `to`.
pub(super) fn accept(header: Header, to: u32, from: u32) {
    let listener = PORTS.with(|ports| ports.borrow().get(&to).and_then(Weak::upgrade));
    let Some(listener) = listener.filter(|socket| socket.is_listening()) else {
        return refuse(header.stream, Errno::ECONNREFUSED);
    };
    let Ok(child) = Socket::new(Family::Vsock, Kind::Stream, 0) else {
        return refuse(header.stream, Errno::ENOBUFS);
    };
    *child.local.borrow_mut() = Address::Vsock(VsockAddress { cid: network::GUEST_CID, port: to });
    *child.remote.borrow_mut() = Some(Address::Vsock(VsockAddress { cid: network::HOST_CID, port: from }));
    outside::offer(header, Transport::Vsock, &listener, &child);
}

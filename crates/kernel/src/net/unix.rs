//! Unix sockets (unix(7)): names, and who connects to whom.

use super::address::{Address, UnixName};
use super::bound;
use super::socket::{Kind, Socket, State, sender};
use crate::errno::{Errno, Result};
use crate::wait::Events;
use alloc::rc::Rc;

pub(super) fn bind(socket: &Rc<Socket>, name: &UnixName) -> Result<()> {
    if socket.local_address() != Address::Unix(UnixName::Unnamed) {
        return Err(Errno::EINVAL);
    }
    let name = match name {
        UnixName::Unnamed => bound::autobind(socket)?,
        UnixName::Abstract(text) => {
            bound::bind_abstract(socket, text)?;
            name.clone()
        }
        UnixName::Path(path) => {
            super::path::bind(socket, path)?;
            name.clone()
        }
    };
    *socket.local.borrow_mut() = Address::Unix(name);
    Ok(())
}

/// The socket that has a name.
///
/// # Errors
/// ECONNREFUSED if nobody has it; the path's errors.
pub(super) fn find(kind: Kind, name: &UnixName) -> Result<Rc<Socket>> {
    match name {
        UnixName::Unnamed => Err(Errno::EINVAL),
        UnixName::Abstract(text) => bound::find_abstract(kind, text).ok_or(Errno::ECONNREFUSED),
        UnixName::Path(path) => super::path::find(path),
    }
}

/// A datagram socket gives up its peer. What it had not read is lost, and a peer that is connected back hears of that.
pub(super) fn leave_peer(socket: &Socket) {
    let peer = socket.peer();
    if !socket.is_connected() {
        return;
    }
    let lost = socket.incoming.take_all();
    if let Some(peer) = peer.filter(|peer| !lost.is_empty() && peer.points_to(socket)) {
        peer.error.set(Some(Errno::ECONNRESET));
        peer.queue.wake_all(Events::all());
    }
    *socket.state.borrow_mut() = State::Idle;
    *socket.remote.borrow_mut() = None;
    socket.queue.wake_all(Events::all());
}

pub(super) fn connect(socket: &Rc<Socket>, name: &UnixName, nonblocking: bool) -> Result<()> {
    let target = find(socket.kind, name)?;
    if target.kind != socket.kind {
        return Err(Errno::EPROTOTYPE);
    }
    if socket.kind == Kind::Datagram {
        if socket.peer().is_none_or(|peer| !Rc::ptr_eq(&peer, &target)) {
            leave_peer(socket);
        }
        *socket.state.borrow_mut() = State::Connected(Rc::downgrade(&target));
        let mut senders = target.senders.borrow_mut();
        senders.retain(|sender| {
            sender.upgrade().is_some_and(|sender| !Rc::ptr_eq(&sender, socket) && sender.points_to(&target))
        });
        senders.push(Rc::downgrade(socket));
        drop(senders);
        *socket.remote.borrow_mut() = Some(target.local_address());
        return Ok(());
    }
    if !target.is_listening() {
        return Err(Errno::ECONNREFUSED);
    }
    if socket.is_connected() {
        return Err(Errno::EISCONN);
    }
    let child = Socket::new(socket.family, socket.kind, 0)?;
    *child.local.borrow_mut() = target.local_address();
    *child.remote.borrow_mut() = Some(socket.local_address());
    child.inherit(&target);
    child.peer_sender.set(sender());
    let deadline = socket.send_deadline();
    let mut offered = Some(child);
    socket.wait(nonblocking, deadline, &target.queue, || {
        let child = offered.take()?;
        // Joined before it is offered: who accepts it finds a whole connection.
        match target.offer(Rc::clone(&child)) {
            Ok(Some(())) => {
                Socket::join(socket, &child);
                Some(Ok(()))
            }
            Ok(None) => {
                offered = Some(child);
                None
            }
            Err(error) => Some(Err(error)),
        }
    })?;
    *socket.remote.borrow_mut() = Some(target.local_address());
    socket.peer_sender.set(target.peer_sender.get());
    socket.queue.wake(Events::WRITABLE);
    Ok(())
}

//! When a program is ready to be made a template: the first of a write of `1` to /uk/libukp/template_instance (taken at
//! its return), of /run/torpor/ready and of listen(2) on a port that is wanted and not of the loopback interface (both
//! taken when nothing is runnable). The VM process has a time limit besides.

use super::restored;
use crate::fs::caller::Caller;
use crate::net::address::Address;
use crate::net::socket::Socket;
use crate::task::creds::Credentials;
use alloc::rc::Rc;
use core::cell::Cell;
use linux_raw_sys::general::AT_FDCWD;
use torpor_abi::boot::READY_PORTS_MAX;

/// How far a program is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    /// Nobody wants to know.
    Unwanted,
    /// Not yet.
    Waiting,
    /// At the next idle point.
    WhenIdle,
    /// At the next return to a program.
    Now,
}

crate::global! {
    static STATE: Cell<Ready> = Cell::new(Ready::Unwanted);
}

crate::global! {
    static PORTS: Cell<[u16; READY_PORTS_MAX]> = Cell::new([0; READY_PORTS_MAX]);
}

/// Says that the VM process wants a stop at readiness, and at which ports that is.
pub(super) fn want(ports: [u16; READY_PORTS_MAX]) {
    STATE.with(|state| state.set(Ready::Waiting));
    PORTS.with(|wanted| wanted.set(ports));
}

/// A program has said so itself.
pub(super) fn program_is_ready() {
    STATE.with(|state| {
        if state.get() != Ready::Unwanted {
            state.set(Ready::Now);
        }
    });
}

/// A program listens on a socket.
pub fn listening(socket: &Socket) {
    let Address::Inet(address) = socket.local_address() else { return };
    let is_wanted = is_wanted(&PORTS.with(Cell::get), address.port) && !address.canonical().ip.is_loopback();
    STATE.with(|state| {
        if is_wanted && state.get() == Ready::Waiting {
            state.set(Ready::WhenIdle);
        }
    });
}

fn is_wanted(ports: &[u16], port: u16) -> bool {
    ports.contains(&port) || ports.iter().all(|named| *named == 0)
}

pub(super) fn is_due(idle: bool) -> bool {
    match STATE.with(Cell::get) {
        Ready::Unwanted => false,
        Ready::Now => true,
        Ready::WhenIdle => idle,
        Ready::Waiting => idle && ready_file_exists(),
    }
}

fn ready_file_exists() -> bool {
    restored::fs().is_some_and(|fs| {
        let caller = Caller { creds: Rc::new(Credentials::root()), fs };
        caller.find(AT_FDCWD, b"/run/torpor/ready", true).is_ok()
    })
}

/// The stop is about to happen; there is no second one.
pub(super) fn done() {
    STATE.with(|state| state.set(Ready::Unwanted));
}

#[cfg(test)]
mod tests {
    use super::is_wanted;

    #[test]
    fn any_port_is_wanted_where_none_is_named() {
        assert!(is_wanted(&[0, 0], 9000));
        assert!(is_wanted(&[8080, 9000, 0], 9000));
        assert!(!is_wanted(&[8080, 0, 0], 9000));
    }
}

//! When a program is ready to be made a template: the first of a write of `1` to /uk/libukp/template_instance (taken at
//! its return), of /run/torpor/ready and of listen(2) on a port that is not of the loopback interface (both taken when
//! nothing is runnable). The VM process has a time limit besides.

use super::restored;
use crate::fs::caller::Caller;
use crate::net::address::Address;
use crate::net::socket::Socket;
use crate::task::creds::Credentials;
use alloc::rc::Rc;
use core::cell::Cell;
use linux_raw_sys::general::AT_FDCWD;

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

/// Says whether the VM process wants a stop at readiness.
pub(super) fn set_wanted(wanted: bool) {
    STATE.with(|state| state.set(if wanted { Ready::Waiting } else { Ready::Unwanted }));
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
    let outside = match socket.local_address() {
        Address::Inet(address) => !address.canonical().ip.is_loopback(),
        _ => false,
    };
    STATE.with(|state| {
        if outside && state.get() == Ready::Waiting {
            state.set(Ready::WhenIdle);
        }
    });
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

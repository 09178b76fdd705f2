//! A clone is a fork to OpenSSL.
//!
//! Its generators keep their state in memory. They are seeded anew after a fork, which they notice by one thing: getpid(2)
//! answers with another number than the last time. So after a restore, OpenSSL is answered with a number that no process
//! has; it uses it for this and as entropy, and for nothing else. All other code gets the process's own number. OpenSSL is
//! known by its library's name, or, where a program such as Node.js has it built in and shows its symbols, by the functions
//! that ask.

use super::symbols;
use crate::mm::addr::UserAddr;
use crate::mm::space::{AddressSpace, Backing, Label};
use crate::random;
use crate::task::current;
use core::cell::Cell;

/// Above every process's number (2^22 is the most on Linux).
const BASE: u32 = 1 << 30;
const LIBRARY: &[u8] = b"libcrypto.so";
/// Of OpenSSL 3 (providers/implementations/rands/drbg.c): the one that draws numbers and looks whether it is a fork first,
/// and the one that compilers copy it into, where a generator is the seed of another.
const ASKING: [&[u8]; 2] = [b"ossl_prov_drbg_generate", b"ossl_drbg_get_seed"];

struct State(Cell<u32>);

crate::global! {
    /// 0 before the first restore.
    static FORK_ID: State = State(Cell::new(0));
}

/// The state goes on in another place: every clone is a fork of its own.
pub(super) fn renew() {
    FORK_ID.with(|id| id.0.set(BASE | (random::u64() as u32 & (BASE - 1))));
}

/// getpid(2) for the running thread.
pub fn process_number() -> u32 {
    let me = current();
    let id = FORK_ID.with(|id| id.0.get());
    if id != 0 && called_by_openssl() { id } else { me.process.pid() }
}

/// Whether the C library's getpid, which is a system call and a return, was called from there.
fn called_by_openssl() -> bool {
    let me = current();
    let space = me.process.space();
    let mut return_address = [0; 8];
    let stack = UserAddr(me.state.regs().rsp);
    if space.read(stack, &mut return_address).is_err() {
        return false;
    }
    let caller = u64::from_le_bytes(return_address);
    is_library(&space, caller) || ASKING.iter().any(|name| symbols::is_in_function(&space, caller, name))
}

fn is_library(space: &AddressSpace, address: u64) -> bool {
    space.backing_of(address).is_some_and(|backing| match backing {
        Backing::Object(object) => match &object.label {
            Label::File(file) => crate::fs::anonymous::location(file).entry.name().starts_with(LIBRARY),
            _ => false,
        },
        Backing::Anonymous => false,
    })
}

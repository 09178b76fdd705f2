//! Another link for a stopped VM, whose link's other end is gone.
//!
//! The new end knows of no connection: the guest resets them when it goes on, and what it had sent for them is dropped.
//! Console output that no link has taken goes to the new one.

use super::super::rings::outlives_link;
use super::super::{Fatal, Ledger, Transmit};
use super::{Refusal, Vm};
use std::os::fd::OwnedFd;
use torpor_abi::frame::{Header, kind};
use torpor_streams::link::split_frame;

impl Vm {
    /// Makes `link` the link of a stopped VM.
    ///
    /// # Errors
    /// [`Refusal::Host`].
    pub fn relink(&mut self, link: &OwnedFd) -> Result<(), Refusal> {
        let machine = self.machine;
        machine.gate.close();
        machine.attach(Some(link))?;
        machine.inbox.lock().expect("no holder panics").forget();
        let mut transmit = machine.transmit.lock().expect("no holder panics");
        let mut ledger = machine.ledger.lock().expect("no holder panics");
        *ledger = Ledger::new(self.tty);
        let mut unsent_bytes = [0; 3];
        let mut count = |header: &Header| {
            if header.kind == kind::DATA
                && let Some(bytes) = unsent_bytes.get_mut(header.stream as usize)
            {
                *bytes += header.len;
            }
        };
        let Transmit { ring, message } = &mut *transmit;
        let pending = std::mem::take(message).into_bytes();
        let mut rest = &pending[..];
        while !rest.is_empty() {
            let (header, payload, tail) = split_frame(rest).map_err(Fatal::from)?;
            if outlives_link(&header) {
                ledger.from_guest(&header).map_err(Fatal::from)?;
                message.push(&header, payload);
                count(&header);
            }
            rest = tail;
        }
        ring.relink(&machine.memory, count)?;
        self.relinked = Some(unsent_bytes);
        Ok(())
    }
}

//! What the host has to say to a VM process: one message at a time, each frame entered in the ledger as it is written.

use crate::ledger::Ledger;
use crate::link::Message;
use torpor_abi::frame::Header;

/// See the module's text.
#[derive(Debug)]
pub struct Outbox {
    /// The rules, and what was said so far.
    pub ledger: Ledger,
    /// Frames that are not sent yet.
    pub message: Message,
}

impl Outbox {
    /// An empty one; `tty` as for [`Ledger::new`].
    #[must_use]
    pub fn new(tty: bool) -> Self {
        Self { ledger: Ledger::new(tty), message: Message::default() }
    }

    /// Appends a frame; the caller has asked [`Message::fits`].
    ///
    /// # Panics
    /// Where the frame breaks a rule: that is a fault in this program, not in the guest.
    pub fn push(&mut self, header: Header, payload: &[u8]) {
        if let Err(violation) = self.ledger.to_guest(&header) {
            unreachable!("the host keeps to the protocol: {violation}");
        }
        self.message.push(&header, payload);
    }
}

//! The VM's terminal (`torpor vm run -t`): a pseudoterminal whose master is the host, at the other end of a stream.

use super::pty::{self, Pty};
use super::{Line, Tty};
use crate::errno::Result;
use crate::host::stream::HostStream;
use crate::mm::user::{Dest, Source};
use crate::wait::{Events, Registration, WaitQueue, Wake};
use alloc::rc::{Rc, Weak};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use torpor_abi::frame::stream;

/// The stream as a terminal's line.
struct HostLine {
    stream: Rc<HostStream>,
    tty: Weak<Tty>,
    registration: RefCell<Option<Registration>>,
}

impl HostLine {
    /// Moves input from the stream to the terminal as far as that has room; the rest stays in the stream's window.
    fn pump(&self) {
        let Some(tty) = self.tty.upgrade() else { return };
        loop {
            let room = tty.input_room();
            if room == 0 {
                return;
            }
            let mut chunk = vec![0; room.min(1024)];
            match self.stream.try_read(&mut Dest::kernel(&mut chunk)) {
                Ok(Some(0)) => return tty.hang_up(),
                Ok(Some(n)) => tty.receive(&chunk[..n]),
                Ok(None) | Err(_) => return,
            }
        }
    }
}

impl Wake for HostLine {
    fn wake(&self, events: Events) -> bool {
        if events.intersects(Events::READABLE) {
            self.pump();
        }
        true
    }
}

impl Line for HostLine {
    fn transmit(&self, bytes: &[u8]) {
        let mut source = Source::kernel(bytes);
        while source.remaining() > 0 && matches!(self.stream.try_write(&mut source), Ok(Some(1..))) {}
    }

    fn room(&self) -> usize {
        self.stream.write_room()
    }

    fn room_queues(&self) -> Vec<Rc<WaitQueue>> {
        self.stream.write_queues().into()
    }

    fn input_taken(&self) {
        self.pump();
    }
}

/// The terminal of the given size, which belongs to `owner_uid`. It becomes the controlling terminal of whoever opens it
/// first.
///
/// # Errors
/// None in practice: it is the first pseudoterminal.
pub fn open(rows: u16, columns: u16, owner_uid: u32) -> Result<Rc<Pty>> {
    let pty = pty::open_hosted([rows, columns, 0, 0], owner_uid)?;
    let line = Rc::new(HostLine {
        stream: HostStream::open(stream::STDIN),
        tty: Rc::downgrade(pty.tty()),
        registration: RefCell::new(None),
    });
    let queue = line.stream.wait_queue();
    *line.registration.borrow_mut() = Some(queue.register(line.clone(), false));
    pty.tty().set_line(line);
    Ok(pty)
}

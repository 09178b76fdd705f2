//! Named pipes (fifo(7)).

use super::{Pipe, PipeEnd};
use crate::errno::{Errno, Result};
use crate::fs::file::{FileOps, OpenFlags};
use crate::fs::inode::{Attachment, Inode};
use crate::task::sched::{Sleep, wait_until};
use crate::wait::Events;
use alloc::rc::Rc;
use core::any::Any;
use core::cell::Cell;

/// open(2) of the FIFO `inode`, whose openers share a pipe as long as there are any. Without O_NONBLOCK a reader waits for
/// a writer and a writer for a reader.
///
/// # Errors
/// ENXIO for a writer that would have to wait and must not, or an inode that is no FIFO; ERESTARTSYS.
pub fn open_inode(inode: &Rc<dyn Inode>, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
    open_attached(inode.attachment().ok_or(Errno::ENXIO)?, flags)
}

pub(super) fn open_attached(attachment: &Attachment, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
    let shared = attachment.get().and_then(|object| object.downcast::<Pipe>().ok());
    let pipe = shared.unwrap_or_else(|| {
        let pipe = Pipe::new();
        attachment.set(&(Rc::clone(&pipe) as Rc<dyn Any>));
        pipe
    });
    open(&pipe, flags)
}

/// Opens the pipe by fifo(7)'s rules.
fn open(pipe: &Rc<Pipe>, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
    let (reads, writes) = (flags.readable(), flags.writable());
    let nonblock = flags.contains(OpenFlags::NONBLOCK);
    if writes && !reads && nonblock && pipe.readers.get() == 0 {
        return Err(Errno::ENXIO);
    }
    let end = PipeEnd::new(pipe, reads, writes);
    pipe.wake_everybody(Events::empty());
    match (reads, writes) {
        (true, false) if pipe.writers.get() == 0 => {
            if nonblock {
                end.ignored_openings.set(Some(pipe.writer_openings.get()));
            } else {
                wait_for_partner(pipe, &pipe.writer_openings)?;
            }
        }
        (false, true) if pipe.readers.get() == 0 => wait_for_partner(pipe, &pipe.reader_openings)?,
        _ => {}
    }
    Ok(end)
}

/// Waits for another opening; it counts even if the partner is gone again by the time that this thread runs.
fn wait_for_partner(pipe: &Pipe, openings: &Cell<u64>) -> Result<()> {
    let before = openings.get();
    Ok(wait_until(&[&pipe.readable, &pipe.writable], None, Sleep::Interruptible, || {
        (openings.get() != before).then_some(())
    })?)
}

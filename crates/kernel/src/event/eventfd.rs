//! Event counters (eventfd(2)).

use super::anon;
use crate::errno::{Errno, Result};
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::inode::Metadata;
use crate::mm::user::{Dest, Source};
use crate::task::sched::{Sleep, wait_until};
use crate::wait::{Events, WaitQueue};
use alloc::rc::Rc;
use alloc::string::String;
use core::any::Any;
use core::cell::Cell;

/// The counter never reaches this value by write(2).
const LIMIT: u64 = u64::MAX;

crate::global! {
    static NEXT_ID: Cell<u32> = Cell::new(0);
}

/// An event counter.
pub struct EventFd {
    count: Cell<u64>,
    semaphore: bool,
    id: u32,
    queue: Rc<WaitQueue>,
}

/// Opens a new counter; `flags` may have O_NONBLOCK.
#[must_use]
pub fn eventfd(initial: u32, semaphore: bool, flags: OpenFlags) -> Rc<OpenFile> {
    let id = NEXT_ID.with(|next| next.replace(next.get().wrapping_add(1)));
    let ops = EventFd { count: Cell::new(initial.into()), semaphore, id, queue: WaitQueue::new() };
    OpenFile::anonymous(Rc::new(ops), flags | OpenFlags::RDWR)
}

impl EventFd {
    /// Takes what read(2) gives, if the counter is not zero.
    fn take(&self) -> Option<u64> {
        let count = self.count.get();
        let taken = if self.semaphore { count.min(1) } else { count };
        self.count.set(count - taken);
        (taken > 0).then_some(taken)
    }

    fn add(&self, value: u64) -> Option<()> {
        let sum = self.count.get().checked_add(value).filter(|sum| *sum < LIMIT)?;
        self.count.set(sum);
        Some(())
    }
}

impl FileOps for EventFd {
    fn knows_nowait(&self, _file: &OpenFile) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, file: &OpenFile, dst: &mut Dest<'_>, _offset: u64) -> Result<usize> {
        if dst.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let value = match self.take() {
            Some(value) => value,
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => wait_until(&[&self.queue], None, Sleep::Interruptible, || self.take())?,
        };
        self.queue.wake(Events::OUT);
        // As in Linux, what can't be stored is lost.
        if dst.put(&value.to_ne_bytes()) != Ok(8) {
            return Err(Errno::EFAULT);
        }
        Ok(8)
    }

    fn write(&self, file: &OpenFile, src: &mut Source<'_>, offset: u64) -> Result<(usize, u64)> {
        if src.remaining() != 8 {
            return Err(Errno::EINVAL);
        }
        let mut bytes = [0; 8];
        if src.take(&mut bytes) != Ok(8) {
            return Err(Errno::EFAULT);
        }
        let value = u64::from_ne_bytes(bytes);
        if value == LIMIT {
            return Err(Errno::EINVAL);
        }
        if self.add(value).is_none() {
            if file.nonblocking() {
                return Err(Errno::EAGAIN);
            }
            wait_until(&[&self.queue], None, Sleep::Interruptible, || self.add(value))?;
        }
        self.queue.wake(Events::IN);
        Ok((8, offset))
    }

    fn poll(&self, _file: &OpenFile) -> Events {
        let count = self.count.get();
        let mut events = Events::empty();
        events.set(Events::IN, count > 0);
        events.set(Events::OUT, count < LIMIT - 1);
        events
    }

    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        Some(Rc::clone(&self.queue))
    }

    fn metadata(&self) -> Metadata {
        anon::metadata()
    }

    fn describe(&self) -> String {
        String::from("anon_inode:[eventfd]")
    }

    fn fdinfo(&self) -> String {
        alloc::format!(
            "eventfd-count: {:16x}\neventfd-id: {}\neventfd-semaphore: {}\n",
            self.count.get(),
            self.id,
            u8::from(self.semaphore)
        )
    }
}

//! Pipes and FIFOs (pipe(7), fifo(7)).

mod fifo;
mod queue;
pub mod splice;

pub use fifo::open_inode;

use super::anon;
use crate::errno::{Errno, Result};
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::inode::{FileType, Metadata, SetMetadata};
use crate::mm::addr::UserAddr;
use crate::mm::user::{self, Dest, Source};
use crate::task::sched::{Sleep, wait_until_exclusive};
use crate::task::signal;
use crate::wait::{Events, WaitQueue};
use alloc::rc::Rc;
use alloc::string::String;
use core::any::Any;
use core::cell::{Cell, RefCell};
use linux_raw_sys::general::{F_GETPIPE_SZ, F_SETPIPE_SZ};
use queue::{Kind, Queue, SLOT_BYTES};

/// Capacity of a new pipe in bytes.
pub const DEFAULT_CAPACITY_BYTES: usize = 65536;
/// Largest capacity that F_SETPIPE_SZ gives to a process without CAP_SYS_RESOURCE (fs.pipe-max-size).
pub const MAX_CAPACITY_BYTES: usize = 1 << 20;
/// Writes of up to so many bytes are atomic.
pub const PIPE_BUF: usize = SLOT_BYTES;

/// A pipe. It is alive as long as one of its ends is open; [`PipeEnd`] is what is opened.
pub struct Pipe {
    queue: RefCell<Queue>,
    readers: Cell<u32>,
    writers: Cell<u32>,
    /// How often it was opened for reading and for writing: what a blocked open(2) of a FIFO waits for.
    reader_openings: Cell<u64>,
    writer_openings: Cell<u64>,
    readable: Rc<WaitQueue>,
    writable: Rc<WaitQueue>,
    /// For descriptions that are open in both ways (a FIFO with O_RDWR): hears of both.
    both: RefCell<Option<Rc<WaitQueue>>>,
    metadata: Cell<Metadata>,
}

/// A pipe as one open file description sees it.
pub struct PipeEnd {
    pipe: Rc<Pipe>,
    reads: bool,
    writes: bool,
    /// Writer openings when this reader of a FIFO came without waiting: no HUP before there was another.
    ignored_openings: Cell<Option<u64>>,
}

/// Makes a pipe: its read end and its write end. `flags` may have O_NONBLOCK and O_DIRECT.
#[must_use]
pub fn pipe(flags: OpenFlags) -> (Rc<OpenFile>, Rc<OpenFile>) {
    let pipe = Pipe::new();
    let nonblock = flags & OpenFlags::NONBLOCK;
    let reader = OpenFile::anonymous(PipeEnd::new(&pipe, true, false), nonblock);
    let writer =
        OpenFile::anonymous(PipeEnd::new(&pipe, false, true), OpenFlags::WRONLY | nonblock | flags & OpenFlags::DIRECT);
    (reader, writer)
}

impl Pipe {
    fn new() -> Rc<Self> {
        let creds = crate::task::current().creds();
        let now = crate::fs::clock::now();
        let metadata = Metadata {
            dev: anon::PIPE_DEV,
            ino: anon::unique_ino(),
            file_type: FileType::Fifo,
            uid: creds.fsuid,
            gid: creds.fsgid,
            atime: now,
            mtime: now,
            ctime: now,
            ..anon::metadata()
        };
        Rc::new(Self {
            queue: RefCell::new(Queue::new(DEFAULT_CAPACITY_BYTES / SLOT_BYTES)),
            readers: Cell::new(0),
            writers: Cell::new(0),
            reader_openings: Cell::new(0),
            writer_openings: Cell::new(0),
            readable: WaitQueue::new(),
            writable: WaitQueue::new(),
            both: RefCell::new(None),
            metadata: Cell::new(metadata),
        })
    }

    fn wake_readers(&self) {
        self.readable.wake(Events::READABLE);
        self.wake_both(Events::READABLE);
    }

    fn wake_writers(&self) {
        self.writable.wake(Events::WRITABLE);
        self.wake_both(Events::WRITABLE);
    }

    /// After a change of who has it open.
    fn wake_everybody(&self, events: Events) {
        self.readable.wake_all(events);
        self.writable.wake_all(events);
        self.wake_both(events);
    }

    fn wake_both(&self, events: Events) {
        let both = self.both.borrow().clone();
        if let Some(both) = both {
            both.wake_all(events);
        }
    }

    fn is_readable(&self) -> bool {
        !self.queue.borrow().is_empty() || self.writers.get() == 0
    }

    fn is_writable(&self) -> bool {
        !self.queue.borrow().is_full() || self.readers.get() == 0
    }

    /// Waits until there is something to read or nobody to write it; EAGAIN instead if `nonblock`.
    fn wait_readable(&self, nonblock: bool) -> Result<()> {
        if self.is_readable() {
            return Ok(());
        }
        if nonblock {
            return Err(Errno::EAGAIN);
        }
        Ok(wait_until_exclusive(&[&self.readable], None, Sleep::Interruptible, || self.is_readable().then_some(()))?)
    }

    /// Waits until there is room or nobody to read; EAGAIN instead if `nonblock`.
    fn wait_writable(&self, nonblock: bool) -> Result<()> {
        if self.is_writable() {
            return Ok(());
        }
        if nonblock {
            return Err(Errno::EAGAIN);
        }
        Ok(wait_until_exclusive(&[&self.writable], None, Sleep::Interruptible, || self.is_writable().then_some(()))?)
    }

    /// Takes content out and tells writers if there was no room for them before.
    fn take<R>(&self, take: impl FnOnce(&mut Queue) -> R) -> R {
        let was_full = self.queue.borrow().is_full();
        let result = take(&mut self.queue.borrow_mut());
        if was_full && !self.queue.borrow().is_full() {
            self.wake_writers();
        }
        result
    }

    /// A wake-up is one reader's: whoever has waited and leaves something wakes the next.
    fn pass_on_reading(&self) {
        if !self.queue.borrow().is_empty() {
            self.readable.wake(Events::READABLE);
        }
    }

    /// As [`Pipe::pass_on_reading`], for writers and room.
    fn pass_on_writing(&self) {
        if !self.queue.borrow().is_full() {
            self.writable.wake(Events::WRITABLE);
        }
    }

    /// EPIPE and SIGPIPE if nobody has it open for reading.
    fn check_readers(&self) -> Result<()> {
        if self.readers.get() > 0 {
            return Ok(());
        }
        signal::send_self(signal::SIGPIPE);
        Err(Errno::EPIPE)
    }

    /// One pass of write(2) that does not block: as much as there is room for.
    fn fill(&self, src: &mut Source<'_>, kind: Kind) -> Result<usize> {
        let mut done = 0;
        while src.remaining() > 0 && !self.queue.borrow().is_full() {
            match self.queue.borrow_mut().push_from(src, kind) {
                Ok(n) => done += n,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn write(&self, src: &mut Source<'_>, kind: Kind, nonblock: bool) -> Result<usize> {
        if src.remaining() == 0 {
            return Ok(0);
        }
        self.check_readers()?;
        let mut done = self.queue.borrow_mut().append(src)?;
        let mut waited = false;
        while src.remaining() > 0 {
            let step = self.fill(src, kind);
            if let Ok(n @ 1..) = step {
                done += n;
                continue;
            }
            if done > 0 {
                self.wake_readers();
            }
            let blocked = step.and_then(|_| self.wait_writable(nonblock)).and_then(|()| self.check_readers());
            match blocked {
                Ok(()) => waited = true,
                Err(error) if done == 0 => return Err(error),
                Err(_) => return Ok(done),
            }
        }
        if waited {
            self.pass_on_writing();
        }
        self.wake_readers();
        Ok(done)
    }

    /// F_SETPIPE_SZ of fcntl(2): gives back the capacity in bytes.
    fn set_capacity(&self, bytes: u64) -> Result<u64> {
        if bytes > 1 << 31 {
            return Err(Errno::EINVAL);
        }
        let rounded = bytes.max(SLOT_BYTES as u64).next_power_of_two();
        let slots = rounded as usize / SLOT_BYTES;
        let grows = slots > self.queue.borrow().limit();
        if grows && rounded as usize > MAX_CAPACITY_BYTES && !crate::task::current().creds().has(CAP_SYS_RESOURCE) {
            return Err(Errno::EPERM);
        }
        self.queue.borrow_mut().set_limit(slots)?;
        if grows {
            self.wake_writers();
        }
        Ok(rounded)
    }
}

/// Override resource limits (capabilities(7)).
const CAP_SYS_RESOURCE: u32 = 24;

impl PipeEnd {
    fn new(pipe: &Rc<Pipe>, reads: bool, writes: bool) -> Rc<Self> {
        if reads {
            pipe.readers.set(pipe.readers.get() + 1);
            pipe.reader_openings.set(pipe.reader_openings.get() + 1);
        }
        if writes {
            pipe.writers.set(pipe.writers.get() + 1);
            pipe.writer_openings.set(pipe.writer_openings.get() + 1);
        }
        Rc::new(Self { pipe: Rc::clone(pipe), reads, writes, ignored_openings: Cell::new(None) })
    }

    /// The pipe's end behind an open file, if it is one.
    #[must_use]
    pub fn of(file: &OpenFile) -> Option<&Self> {
        file.ops.as_any().downcast_ref()
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        let pipe = &self.pipe;
        pipe.readers.set(pipe.readers.get() - u32::from(self.reads));
        pipe.writers.set(pipe.writers.get() - u32::from(self.writes));
        if pipe.readers.get() == 0 || pipe.writers.get() == 0 {
            pipe.wake_everybody(Events::all());
        }
        if pipe.readers.get() == 0 && pipe.writers.get() == 0 {
            // What a FIFO still holds is lost with its last end, even while somebody waits for a partner.
            *pipe.queue.borrow_mut() = Queue::new(DEFAULT_CAPACITY_BYTES / SLOT_BYTES);
        }
    }
}

impl FileOps for PipeEnd {
    fn knows_nowait(&self, file: &OpenFile) -> bool {
        file.location.is_none() // pipes, not FIFOs
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, file: &OpenFile, dst: &mut Dest<'_>, _offset: u64) -> Result<usize> {
        if dst.remaining() == 0 {
            return Ok(0);
        }
        let mut waited = false;
        loop {
            if !self.pipe.queue.borrow().is_empty() {
                let taken = self.pipe.take(|queue| queue.pop_into(dst));
                if waited {
                    self.pipe.pass_on_reading();
                }
                return taken;
            }
            if self.pipe.writers.get() == 0 {
                return Ok(0);
            }
            self.pipe.wait_readable(file.nonblocking())?;
            waited = true;
        }
    }

    fn write(&self, file: &OpenFile, src: &mut Source<'_>, offset: u64) -> Result<(usize, u64)> {
        let kind = if file.flags.get().contains(OpenFlags::DIRECT) { Kind::Packet } else { Kind::Stream };
        Ok((self.pipe.write(src, kind, file.nonblocking())?, offset))
    }

    fn poll(&self, _file: &OpenFile) -> Events {
        let pipe = &self.pipe;
        let mut events = Events::empty();
        if self.reads {
            if !pipe.queue.borrow().is_empty() {
                events |= Events::READABLE;
            }
            if pipe.writers.get() == 0 && self.ignored_openings.get() != Some(pipe.writer_openings.get()) {
                events |= Events::HUP;
            }
        }
        if self.writes {
            if !pipe.queue.borrow().is_full() {
                events |= Events::WRITABLE;
            }
            if pipe.readers.get() == 0 {
                events |= Events::ERR;
            }
        }
        events
    }

    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        Some(match (self.reads, self.writes) {
            (true, true) => Rc::clone(self.pipe.both.borrow_mut().get_or_insert_with(WaitQueue::new)),
            (true, false) => Rc::clone(&self.pipe.readable),
            _ => Rc::clone(&self.pipe.writable),
        })
    }

    fn ioctl(&self, _file: &OpenFile, request: u32, argument: u64) -> Result<u64> {
        match request {
            linux_raw_sys::ioctl::FIONREAD => {
                let bytes = self.pipe.queue.borrow().len_bytes();
                user::write(UserAddr(argument), &(bytes.min(i32::MAX as usize) as i32))?;
                Ok(0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn fcntl(&self, _file: &OpenFile, command: u32, argument: u64) -> Result<u64> {
        match command {
            F_GETPIPE_SZ => Ok((self.pipe.queue.borrow().limit() * SLOT_BYTES) as u64),
            // The argument is an int.
            F_SETPIPE_SZ => self.pipe.set_capacity(u64::from(argument as u32)),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Through /proc/PID/fd. That is not the opening of a FIFO: it waits for nobody (fs/pipe.c of Linux, `fifo_open`).
    fn reopen(&self, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
        let end = PipeEnd::new(&self.pipe, flags.readable(), flags.writable());
        self.pipe.wake_everybody(Events::empty());
        Ok(end)
    }

    fn metadata(&self) -> Metadata {
        self.pipe.metadata.get()
    }

    fn set_metadata(&self, change: &SetMetadata) -> Result<()> {
        anon::change(&self.pipe.metadata, change);
        Ok(())
    }

    fn describe(&self) -> String {
        alloc::format!("pipe:[{}]", self.pipe.metadata.get().ino)
    }
}

#[cfg(test)]
mod splice_tests;
#[cfg(test)]
mod tests;

//! Moving data between pipes and files: splice(2), tee(2), vmsplice(2), sendfile(2), copy_file_range(2).
//!
//! Pages are copied, not shared: what a program can see of that is only the time it takes.

use super::queue::{Kind, SLOT_BYTES, Slot};
use super::{Pipe, PipeEnd};
use crate::errno::{Errno, Result};
use crate::fs::file::{OpenFile, OpenFlags};
use crate::fs::inode::FileType;
use crate::mm::user::{Dest, Source};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The most that one call moves (MAX_RW_COUNT).
pub const MAX_BYTES: usize = 0x7fff_f000;
/// Copies between files go through a buffer of this size.
const BUFFER_BYTES: usize = 64 << 10;

/// An open file and where in it: `None` is its own position, which moves.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The file.
    pub file: &'a OpenFile,
    /// Offset in bytes, instead of the file's position.
    pub offset: Option<u64>,
}

impl Place<'_> {
    fn position(&self) -> u64 {
        self.offset.unwrap_or(self.file.position.get())
    }

    fn advance(&mut self, len: usize) {
        match &mut self.offset {
            Some(offset) => *offset += len as u64,
            None if self.file.ops.seekable() => self.file.position.set(self.file.position.get() + len as u64),
            None => {}
        }
    }

    /// Reads and moves on.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let n = self.file.ops.read(self.file, &mut Dest::kernel(buffer), self.position())?;
        self.advance(n);
        Ok(n)
    }

    /// Writes and moves on.
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let (n, end) = self.file.ops.write(self.file, &mut Source::kernel(bytes), self.position())?;
        match &mut self.offset {
            Some(offset) => *offset = end,
            None if self.file.ops.seekable() => self.file.position.set(end),
            None => {}
        }
        Ok(n)
    }
}

fn buffer(len: usize) -> Result<Vec<u8>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    buffer.resize(len, 0);
    Ok(buffer)
}

/// Whether data can be moved out of the file without a program's buffer: eventfd and its kind have messages, not data.
fn check_data(file: &OpenFile) -> Result<()> {
    if PipeEnd::of(file).is_some() {
        return Err(Errno::EINVAL); // sendfile(2) takes none; splice(2) has a way of its own between pipes
    }
    match file.metadata().file_type {
        FileType::Anonymous | FileType::Directory => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// Runs `call` with the file in non-blocking mode. The call itself does not block then, so nobody else sees the mode.
fn without_blocking<T>(file: &OpenFile, nonblock: bool, call: impl FnOnce() -> T) -> T {
    if !nonblock {
        return call(); // It may block, and others may change the mode meanwhile.
    }
    file.with_flags(OpenFlags::NONBLOCK, OpenFlags::empty(), call)
}

/// splice(2) from a file into a pipe: one read's worth of data.
///
/// # Errors
/// EPIPE, EAGAIN, ERESTARTSYS, EINVAL, those of the file.
pub fn from_file(from: &mut Place<'_>, to: &PipeEnd, len: usize, nonblock: bool) -> Result<usize> {
    let pipe = &to.pipe;
    pipe.check_readers()?;
    pipe.wait_writable(nonblock)?;
    pipe.check_readers()?;
    check_data(from.file)?;
    let mut done = 0;
    while done < len && !pipe.queue.borrow().is_full() {
        // As a page of the page cache takes a slot, so does a piece up to a page boundary here.
        let room =
            if from.file.ops.seekable() { SLOT_BYTES - from.position() as usize % SLOT_BYTES } else { SLOT_BYTES };
        let mut data = buffer((len - done).min(room))?;
        let wanted = data.len();
        // What is there is taken; only the first byte is waited for.
        let n = match without_blocking(from.file, nonblock || done > 0, || from.read(&mut data)) {
            Ok(n) => n,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        };
        if n > 0 {
            data.truncate(n);
            data.shrink_to_fit();
            pipe.queue.borrow_mut().push(Slot::new(data, Kind::Spliced))?;
            done += n;
        }
        if n < wanted {
            break;
        }
    }
    if done > 0 {
        pipe.wake_readers();
    }
    pipe.pass_on_writing();
    Ok(done)
}

/// splice(2) from a pipe into a file: waits for data, then moves what is there.
///
/// # Errors
/// EAGAIN, ERESTARTSYS, those of the file.
pub fn to_file(from: &PipeEnd, to: &mut Place<'_>, len: usize, nonblock: bool) -> Result<usize> {
    if to.file.metadata().file_type == FileType::Anonymous {
        return Err(Errno::EINVAL);
    }
    let pipe = &from.pipe;
    pipe.wait_readable(nonblock)?;
    let mut done = 0;
    while done < len {
        // Taken out while the file may block: others do not see it twice.
        let Some(slot) = pipe.take(super::Queue::pop) else { break };
        let wanted = slot.bytes().len().min(len - done);
        let result = to.write(&slot.bytes()[..wanted]);
        pipe.queue.borrow_mut().restore(slot, *result.as_ref().unwrap_or(&0));
        match result {
            Ok(n) => done += n,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
        if result != Ok(wanted) {
            break;
        }
    }
    pipe.pass_on_reading();
    Ok(done)
}

/// splice(2) between two pipes.
///
/// # Errors
/// EINVAL for a pipe and itself, EPIPE, EAGAIN, ERESTARTSYS.
pub fn between_pipes(from: &PipeEnd, to: &PipeEnd, len: usize, nonblock: bool) -> Result<usize> {
    let (from, to) = (&from.pipe, &to.pipe);
    if !wait_for_both(from, to, nonblock)? {
        return Ok(0);
    }
    let mut done = 0;
    while done < len && !to.queue.borrow().is_full() {
        let Some(slot) = from.take(super::Queue::pop) else { break };
        let part = slot.bytes().len().min(len - done);
        let moved = if part == slot.bytes().len() {
            slot
        } else {
            let copy = slot.copy(part);
            from.queue.borrow_mut().restore(slot, part);
            copy?
        };
        to.queue.borrow_mut().push(moved)?;
        done += part;
    }
    to.wake_readers();
    from.pass_on_reading();
    to.pass_on_writing();
    Ok(done)
}

/// tee(2): copies without taking.
///
/// # Errors
/// As [`between_pipes`].
pub fn tee(from: &PipeEnd, to: &PipeEnd, len: usize, nonblock: bool) -> Result<usize> {
    let (from, to) = (&from.pipe, &to.pipe);
    if !wait_for_both(from, to, nonblock)? {
        return Ok(0);
    }
    let mut done = 0;
    let count = from.queue.borrow().slots();
    for n in 0..count {
        if done == len || to.queue.borrow().is_full() {
            break;
        }
        let copy = from.queue.borrow().get(n).map(|slot| slot.copy(len - done)).transpose()?;
        let Some(copy) = copy else { break };
        done += copy.bytes().len();
        to.queue.borrow_mut().push(copy)?;
    }
    to.wake_readers();
    from.pass_on_reading();
    to.pass_on_writing();
    Ok(done)
}

/// Waits until there is data in `from` and room in `to`; false if there never will be data.
fn wait_for_both(from: &Rc<Pipe>, to: &Rc<Pipe>, nonblock: bool) -> Result<bool> {
    if Rc::ptr_eq(from, to) {
        return Err(Errno::EINVAL);
    }
    loop {
        from.wait_readable(nonblock)?;
        to.wait_writable(nonblock)?;
        to.check_readers()?;
        if !from.queue.borrow().is_empty() {
            return Ok(true);
        }
        if from.writers.get() == 0 {
            return Ok(false);
        }
    }
}

/// vmsplice(2) from a program's memory into a pipe: what there is room for.
///
/// # Errors
/// EPIPE, EAGAIN, ERESTARTSYS, EFAULT.
pub fn from_memory(src: &mut Source<'_>, to: &PipeEnd, nonblock: bool) -> Result<usize> {
    let pipe = &to.pipe;
    if src.remaining() == 0 {
        return Ok(0);
    }
    pipe.check_readers()?;
    pipe.wait_writable(nonblock)?;
    pipe.check_readers()?;
    let done = pipe.fill(src, Kind::Spliced)?;
    pipe.wake_readers();
    pipe.pass_on_writing();
    Ok(done)
}

/// vmsplice(2) from a pipe into a program's memory: as read(2).
///
/// # Errors
/// EAGAIN, ERESTARTSYS, EFAULT.
pub fn to_memory(from: &PipeEnd, dst: &mut Dest<'_>, nonblock: bool) -> Result<usize> {
    if dst.remaining() == 0 {
        return Ok(0);
    }
    from.pipe.wait_readable(nonblock)?;
    let taken = from.pipe.take(|queue| queue.pop_into(dst));
    from.pipe.pass_on_reading();
    taken
}

/// sendfile(2) and copy_file_range(2): copies until `len` bytes are done, the input ends or the output takes no more.
///
/// # Errors
/// Those of the files, if nothing was copied; EINVAL where no data can be taken from the input.
pub fn copy(from: &mut Place<'_>, to: &mut Place<'_>, len: usize) -> Result<usize> {
    check_data(from.file)?;
    let mut data = buffer(len.min(BUFFER_BYTES))?;
    let mut done = 0;
    while done < len {
        let wanted = data.len().min(len - done);
        let before = from.position();
        let step = from.read(&mut data[..wanted]).and_then(|n| {
            let written = if n == 0 { Ok(0) } else { to.write(&data[..n]) };
            // What was read and not written is not taken.
            let taken = *written.as_ref().unwrap_or(&0) as u64;
            match &mut from.offset {
                Some(offset) => *offset = before + taken,
                None => from.file.position.set(before + taken),
            }
            written.map(|written| (n, written))
        });
        match step {
            Ok((0, _)) => break,
            Ok((read, written)) => {
                done += written;
                if written < read {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

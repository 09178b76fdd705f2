//! Standard input, output and error without a terminal: to programs they are pipes, as under `docker run`.

use super::stream::HostStream;
use crate::errno::{Errno, Result};
use crate::event::anon;
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::inode::{FileType, Metadata, SetMetadata};
use crate::mm::user::{Dest, Source};
use crate::task::sched::{Sleep, wait_until};
use crate::wait::{Events, WaitQueue};
use alloc::rc::Rc;
use alloc::string::String;
use core::any::Any;
use core::cell::Cell;
use torpor_abi::frame::stream as number;

/// One end of a pipe whose other end is the host.
#[derive(Clone)]
struct Stdio {
    stream: Rc<HostStream>,
    number: u32,
    metadata: Rc<Cell<Metadata>>,
}

impl FileOps for Stdio {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, file: &OpenFile, dst: &mut Dest<'_>, _offset: u64) -> Result<usize> {
        if let Some(n) = self.stream.try_read(dst)? {
            return Ok(n);
        }
        if file.nonblocking() {
            return Err(Errno::EAGAIN);
        }
        wait_until(&[&self.stream.wait_queue()], None, Sleep::Interruptible, || self.stream.try_read(dst).transpose())?
    }

    fn write(&self, file: &OpenFile, src: &mut Source<'_>, _offset: u64) -> Result<(usize, u64)> {
        let mut written = 0;
        loop {
            let step = match self.stream.try_write(src) {
                Ok(Some(n)) => Ok(n),
                Ok(None) if file.nonblocking() => Err(Errno::EAGAIN),
                Ok(None) => {
                    let queues = self.stream.write_queues();
                    wait_until(&[&queues[0], &queues[1]], None, Sleep::Interruptible, || {
                        self.stream.try_write(src).transpose()
                    })
                    .map_err(Errno::from)
                    .and_then(core::convert::identity)
                }
                Err(error) => Err(error),
            };
            match step {
                Ok(n) => written += n,
                Err(Errno::EPIPE) if written == 0 => {
                    crate::task::signal::send_self(crate::task::signal::SIGPIPE);
                    return Err(Errno::EPIPE);
                }
                Err(error) if written == 0 => return Err(error),
                Err(_) => break,
            }
            if src.remaining() == 0 {
                break;
            }
        }
        Ok((written, 0))
    }

    fn poll(&self, file: &OpenFile) -> Events {
        let ready = self.stream.poll();
        let mut wanted = Events::ERR;
        wanted.set(Events::READABLE, file.flags.get().readable());
        wanted.set(Events::WRITABLE, file.flags.get().writable());
        ready & wanted
    }

    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        Some(self.stream.wait_queue())
    }

    fn ioctl(&self, _file: &OpenFile, request: u32, argument: u64) -> Result<u64> {
        if request != linux_raw_sys::ioctl::FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let available = i32::try_from(self.stream.available()).unwrap_or(i32::MAX);
        crate::mm::user::write(crate::mm::addr::UserAddr(argument), &available)?;
        Ok(0)
    }

    fn reopen(&self, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
        // The other end is the host's: nothing can be written to standard input, nor read alone from output.
        let possible = if self.number == number::STDIN { !flags.writable() } else { flags.writable() };
        if possible { Ok(Rc::new(self.clone())) } else { Err(Errno::ENXIO) }
    }

    fn metadata(&self) -> Metadata {
        self.metadata.get()
    }

    fn set_metadata(&self, change: &SetMetadata) -> Result<()> {
        anon::change(&self.metadata, change);
        Ok(())
    }

    fn describe(&self) -> String {
        alloc::format!("pipe:[{}]", self.metadata.get().ino)
    }
}

/// Descriptors 0, 1 and 2 of the first program. Without `connected`, standard input is at its end.
///
/// As container engines do, the user whom the program runs as owns them, who may open /dev/stderr so.
#[must_use]
pub fn open_stdio(connected: bool, owner_uid: u32) -> [Rc<OpenFile>; 3] {
    [(number::STDIN, OpenFlags::empty()), (number::STDOUT, OpenFlags::WRONLY), (number::STDERR, OpenFlags::WRONLY)].map(
        |(n, flags)| {
            let stream = HostStream::open(n);
            if n == number::STDIN && !connected {
                stream.set_end();
            }
            let metadata = Metadata {
                dev: anon::PIPE_DEV,
                ino: anon::unique_ino(),
                file_type: FileType::Fifo,
                uid: owner_uid,
                ..anon::metadata()
            };
            OpenFile::anonymous(Rc::new(Stdio { stream, number: n, metadata: Rc::new(Cell::new(metadata)) }), flags)
        },
    )
}

//! /proc/PID/mem: a process's memory as a debugger reaches it, at the file position, whatever its protection.

use crate::errno::{Errno, Result};
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::generated::Attributes;
use crate::fs::inode::{FileType, FsStatistics, Inode, Metadata, SetMetadata};
use crate::mm::space::{AddressSpace, Respect};
use crate::mm::user::{Dest, Source};
use crate::task::inspection;
use crate::task::thread::Thread;
use alloc::boxed::Box;
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use core::any::Any;

/// Bytes that are copied at a time, through the kernel's stack.
const CHUNK_BYTES: usize = 2048;

pub(super) struct MemoryFile {
    pub(super) attributes: Attributes,
    pub(super) thread: Box<dyn Fn() -> Result<Rc<Thread>>>,
}

impl Inode for MemoryFile {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Metadata {
        self.attributes.metadata(FileType::Regular, 1)
    }

    fn statistics(&self) -> Result<FsStatistics> {
        Ok(self.attributes.statistics())
    }

    fn set_metadata(&self, change: &SetMetadata) -> Result<()> {
        self.attributes.set_metadata(change)
    }

    fn open(self: Rc<Self>, _flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
        let thread = (self.thread)()?;
        inspection::check(&thread).map_err(|_| Errno::EACCES)?;
        let space = thread.process.try_space().as_ref().map_or_else(Weak::new, Rc::downgrade);
        Ok(Rc::new(OpenMemory { inode: self, space }))
    }
}

/// The memory that the process had when the file was opened: once that has gone (execve(2), exit), there is nothing to read.
struct OpenMemory {
    inode: Rc<MemoryFile>,
    space: Weak<AddressSpace>,
}

/// How far a copy came that an access ended after `copied` bytes.
fn reached(result: core::result::Result<(), usize>, len: usize) -> usize {
    result.map_or_else(|copied| copied, |()| len)
}

impl FileOps for OpenMemory {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, _file: &OpenFile, dst: &mut Dest<'_>, offset: u64) -> Result<usize> {
        let Some(space) = self.space.upgrade() else { return Ok(0) };
        let mut done = 0;
        while dst.remaining() > 0 {
            let mut chunk = [0; CHUNK_BYTES];
            let len = dst.remaining().min(CHUNK_BYTES);
            let there =
                reached(space.read_memory(offset.wrapping_add(done as u64), &mut chunk[..len], Respect::Nothing), len);
            match dst.put(&chunk[..there]) {
                Ok(0) | Err(_) if done > 0 => break,
                Ok(0) => return Err(Errno::EIO),
                put => done += put?,
            }
        }
        Ok(done)
    }

    fn write(&self, _file: &OpenFile, src: &mut Source<'_>, offset: u64) -> Result<(usize, u64)> {
        let Some(space) = self.space.upgrade() else { return Ok((0, offset)) };
        let mut done = 0;
        while src.remaining() > 0 {
            let mut chunk = [0; CHUNK_BYTES];
            let len = match src.take(&mut chunk) {
                Err(_) if done > 0 => break,
                taken => taken?,
            };
            let there =
                reached(space.write_memory(offset.wrapping_add(done as u64), &chunk[..len], Respect::Nothing), len);
            done += there;
            if there < len {
                break;
            }
        }
        if done == 0 && src.done() > 0 { Err(Errno::EIO) } else { Ok((done, offset.wrapping_add(done as u64))) }
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, _file: &OpenFile, _offset: i64, _whence: u32) -> Result<u64> {
        Err(Errno::EINVAL)
    }

    fn metadata(&self) -> Metadata {
        Inode::metadata(&*self.inode)
    }

    fn describe(&self) -> String {
        String::from("memory")
    }
}

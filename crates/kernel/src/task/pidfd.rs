//! Descriptors of processes (pidfd_open(2)).

use super::process::Process;
use crate::errno::{Errno, Result};
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::inode::{FileType, Metadata, Timestamp};
use crate::wait::{Events, WaitQueue};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::any::Any;

/// What a descriptor of a process does: it becomes readable when the process has ended.
pub struct PidFd {
    process: Rc<Process>,
}

/// A new descriptor's description; `flags` may have [`OpenFlags::NONBLOCK`] (PIDFD_NONBLOCK).
#[must_use]
pub fn open(process: &Rc<Process>, flags: OpenFlags) -> Rc<OpenFile> {
    OpenFile::anonymous(Rc::new(PidFd { process: Rc::clone(process) }), flags | OpenFlags::RDWR)
}

/// The process behind a description.
///
/// # Errors
/// EBADF if it is of something else.
pub fn process_of(file: &OpenFile) -> Result<Rc<Process>> {
    let pidfd = file.ops.as_any().downcast_ref::<PidFd>().ok_or(Errno::EBADF)?;
    Ok(Rc::clone(&pidfd.process))
}

impl FileOps for PidFd {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn can_read(&self) -> bool {
        false
    }

    fn can_write(&self) -> bool {
        false
    }

    fn poll(&self, _: &OpenFile) -> Events {
        if self.process.is_alive() { Events::empty() } else { Events::READABLE }
    }

    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        Some(Rc::clone(&self.process.own_events))
    }

    fn metadata(&self) -> Metadata {
        let never = Timestamp::default();
        Metadata {
            dev: 0,
            ino: u64::from(self.process.pid()),
            file_type: FileType::Regular,
            mode: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            block_bytes: 4096,
            blocks: 0,
            atime: never,
            mtime: never,
            ctime: never,
            btime: None,
        }
    }

    fn describe(&self) -> String {
        String::from("anon_inode:[pidfd]")
    }

    fn fdinfo(&self) -> String {
        let pid = if self.process.is_reaped() { -1 } else { i64::from(self.process.pid()) };
        format!("Pid:\t{pid}\nNSpid:\t{pid}\n")
    }
}

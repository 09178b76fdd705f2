//! Shared memory segments (shmget(2), shmat(2)).

use super::permissions::{Permissions, Want};
use super::table::{IPC_PRIVATE, Object, Request, Table};
use super::{caller, limits, now_s};
use crate::errno::{Errno, Result};
use crate::mm::addr::PAGE_BYTES;
use crate::mm::frame;
use crate::mm::space::SharedMemory;
use crate::task::current;
use crate::task::limits::{INFINITY, Resource};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use linux_raw_sys::general::CAP_IPC_LOCK;

/// Mode bit of a segment that goes with its last attachment.
pub const SHM_DEST: u32 = 0o1000;
/// Mode bit of a segment that stays in memory.
pub const SHM_LOCKED: u32 = 0o2000;
/// Flag of shmget(2): memory need not be there for all of it.
pub const SHM_NORESERVE: u32 = 0o10000;

/// A segment.
pub struct Segment {
    permissions: Permissions,
    /// The key that it was made with.
    pub first_key: i32,
    /// What is mapped.
    pub memory: Rc<SharedMemory>,
    /// As it was asked for.
    pub bytes: u64,
    /// When it was last attached, in seconds of CLOCK_REALTIME; 0 for never.
    pub attached_s: Cell<i64>,
    /// When it was last detached.
    pub detached_s: Cell<i64>,
    /// When it was made or changed.
    pub changed_s: Cell<i64>,
    /// Who made it.
    pub creator_pid: u32,
    /// Who attached or detached it last.
    pub last_pid: Cell<u32>,
    /// Areas that map it.
    pub attachments: Cell<u64>,
    /// User that its memory is locked for.
    locked_by: Cell<Option<u32>>,
}

crate::global! {
    static SEGMENTS: RefCell<Table<Segment>> = RefCell::new(Table::new());
}

impl Object for Segment {
    fn permissions(&self) -> &Permissions {
        &self.permissions
    }
}

/// One shmat(2): what the areas are labelled with that came from it.
pub struct Attachment {
    /// What is attached.
    pub segment: Rc<Segment>,
    /// Not with SHM_RDONLY.
    pub writable: bool,
}

impl Attachment {
    /// An area more maps the segment.
    pub fn opened(&self) {
        let segment = &self.segment;
        segment.attached_s.set(now_s());
        segment.last_pid.set(caller());
        segment.attachments.set(segment.attachments.get() + 1);
    }

    /// An area less maps it.
    pub fn closed(&self) {
        let segment = &self.segment;
        segment.detached_s.set(now_s());
        segment.last_pid.set(caller());
        segment.attachments.set(segment.attachments.get() - 1);
        segment.remove_if_unused();
    }
}

impl Segment {
    const fn pages(&self) -> u64 {
        self.bytes.div_ceil(PAGE_BYTES)
    }

    fn remove_if_unused(&self) {
        if self.permissions.mode.get() & SHM_DEST != 0 && self.attachments.get() == 0 {
            SEGMENTS.with(|table| table.borrow_mut().remove(self));
        }
    }

    /// IPC_RMID: it goes now or with its last attachment.
    pub fn remove(&self) {
        self.permissions.key.set(IPC_PRIVATE);
        self.permissions.mode.set(self.permissions.mode.get() | SHM_DEST);
        self.remove_if_unused();
    }

    /// SHM_LOCK. There is no swap, so it only counts.
    ///
    /// # Errors
    /// EPERM; ENOMEM beyond RLIMIT_MEMLOCK.
    pub fn lock(&self) -> Result<()> {
        let me = current();
        let creds = me.creds();
        let limit = me.process.limit(Resource::LockedMemory);
        if !creds.has(CAP_IPC_LOCK) {
            if !self.permissions.owned_by_caller() || limit == 0 {
                return Err(Errno::EPERM);
            }
            let locked = |s: &Rc<Segment>| if s.locked_by.get() == Some(creds.uid) { s.pages() } else { 0 };
            let mine: u64 = all().iter().map(locked).sum();
            if limit != INFINITY && mine + self.pages() > limit / PAGE_BYTES {
                return Err(Errno::ENOMEM);
            }
        }
        self.locked_by.set(Some(creds.uid));
        self.permissions.mode.set(self.permissions.mode.get() | SHM_LOCKED);
        Ok(())
    }

    /// SHM_UNLOCK.
    ///
    /// # Errors
    /// EPERM.
    pub fn unlock(&self) -> Result<()> {
        if !current().creds().has(CAP_IPC_LOCK) && !self.permissions.owned_by_caller() {
            return Err(Errno::EPERM);
        }
        self.locked_by.set(None);
        self.permissions.mode.set(self.permissions.mode.get() & !SHM_LOCKED);
        Ok(())
    }
}

/// shmget(2): the identifier of a segment of at least `bytes`.
///
/// # Errors
/// EINVAL, EEXIST, ENOENT, EACCES, ENOSPC, ENOMEM.
pub fn get(request: Request, bytes: u64) -> Result<i32> {
    let used_pages = all().iter().map(|segment| segment.pages()).sum::<u64>();
    let check = |segment: &Segment| if segment.bytes < bytes { Err(Errno::EINVAL) } else { Ok(()) };
    let make = |permissions| {
        if bytes == 0 || bytes > limits::shmmax_bytes() {
            return Err(Errno::EINVAL);
        }
        let pages = bytes.div_ceil(PAGE_BYTES);
        if used_pages.checked_add(pages).is_none_or(|total| total > limits::shmall_pages()) {
            return Err(Errno::ENOSPC);
        }
        if bytes > i64::MAX as u64 {
            return Err(Errno::EINVAL); // larger than a file
        }
        if request.flags & SHM_NORESERVE == 0 && bytes > frame::usage().limit_bytes {
            return Err(Errno::ENOMEM);
        }
        Ok(Segment {
            permissions,
            first_key: request.key,
            memory: SharedMemory::new(bytes),
            bytes,
            attached_s: Cell::new(0),
            detached_s: Cell::new(0),
            changed_s: Cell::new(now_s()),
            creator_pid: caller(),
            last_pid: Cell::new(0),
            attachments: Cell::new(0),
            locked_by: Cell::new(None),
        })
    };
    SEGMENTS.with(|table| table.borrow_mut().get(request, limits::shmmni() as usize, check, make))
}

/// The segment with an identifier.
///
/// # Errors
/// EINVAL.
pub fn find(id: i32) -> Result<Rc<Segment>> {
    SEGMENTS.with(|table| table.borrow().find(id))
}

/// The segment at an index (SHM_STAT).
///
/// # Errors
/// EINVAL.
pub fn at_index(index: i32) -> Result<Rc<Segment>> {
    SEGMENTS.with(|table| table.borrow().at_index(index))
}

/// All segments.
#[must_use]
pub fn all() -> Vec<Rc<Segment>> {
    SEGMENTS.with(|table| table.borrow().all())
}

/// The largest index in use.
#[must_use]
pub fn highest_index() -> u32 {
    SEGMENTS.with(|table| table.borrow().highest_index())
}

/// What shmat(2) maps, once access has been checked.
///
/// # Errors
/// EINVAL, EACCES.
pub fn attach(id: i32, writable: bool, executable: bool) -> Result<Rc<Attachment>> {
    let segment = find(id)?;
    let want = if writable { Want::READ.and(Want::WRITE) } else { Want::READ };
    segment.permissions.check(if executable { want.and(Want::EXECUTE) } else { want })?;
    Ok(Rc::new(Attachment { segment, writable }))
}

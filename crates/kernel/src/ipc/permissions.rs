//! Who may do what with an object (`struct ipc_perm` of sysvipc(7)).

use crate::errno::{Errno, Result};
use crate::task::creds::Credentials;
use crate::task::current;
use core::cell::Cell;
use linux_raw_sys::general::{CAP_IPC_OWNER, CAP_SYS_ADMIN};

/// Permission bits of a mode.
const MODE_BITS: u32 = 0o777;

/// Owner, creator and mode of an object.
#[derive(Debug)]
pub struct Permissions {
    /// Its identifier.
    pub id: i32,
    /// The key by which it is found; IPC_PRIVATE for none.
    pub key: Cell<i32>,
    /// Owner's user.
    pub uid: Cell<u32>,
    /// Owner's group.
    pub gid: Cell<u32>,
    /// Creator's user.
    pub cuid: u32,
    /// Creator's group.
    pub cgid: u32,
    /// Permission bits.
    pub mode: Cell<u32>,
    removed: Cell<bool>,
}

/// What access is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want(u32);

impl Want {
    /// Looking at it.
    pub const READ: Want = Want(4);
    /// Changing it.
    pub const WRITE: Want = Want(2);
    /// Executing code in it.
    pub const EXECUTE: Want = Want(1);

    /// What a mode asks for, in any of its three parts.
    #[must_use]
    pub const fn of_mode(mode: u32) -> Self {
        Self((mode >> 6 | mode >> 3 | mode) & 7)
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What IPC_SET changes of owner and mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// New owner.
    pub uid: u32,
    /// New group.
    pub gid: u32,
    /// New mode; only its permission bits count.
    pub mode: u32,
}

impl Permissions {
    /// Of an object that the caller makes.
    #[must_use]
    pub(super) fn new(id: i32, key: i32, mode: u32) -> Self {
        let creds = current().creds();
        Self {
            id,
            key: Cell::new(key),
            uid: Cell::new(creds.euid),
            gid: Cell::new(creds.egid),
            cuid: creds.euid,
            cgid: creds.egid,
            mode: Cell::new(mode & MODE_BITS),
            removed: Cell::new(false),
        }
    }

    fn is_owner(&self, creds: &Credentials) -> bool {
        creds.euid == self.cuid || creds.euid == self.uid.get()
    }

    /// Checks access for the caller.
    ///
    /// # Errors
    /// EACCES.
    pub fn check(&self, want: Want) -> Result<()> {
        let creds = current().creds();
        let granted = if self.is_owner(&creds) {
            self.mode.get() >> 6
        } else if creds.in_group(self.cgid) || creds.in_group(self.gid.get()) {
            self.mode.get() >> 3
        } else {
            self.mode.get()
        };
        if want.0 & !granted & 7 == 0 || creds.has(CAP_IPC_OWNER) { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Checks that the caller may change owner and mode, or remove the object.
    ///
    /// # Errors
    /// EPERM.
    pub fn check_control(&self) -> Result<()> {
        let creds = current().creds();
        if self.is_owner(&creds) || creds.has(CAP_SYS_ADMIN) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// Whether the caller owns or has made it.
    #[must_use]
    pub fn owned_by_caller(&self) -> bool {
        self.is_owner(&current().creds())
    }

    /// IPC_SET.
    ///
    /// # Errors
    /// EINVAL for ids that there can't be.
    pub fn change(&self, change: Change) -> Result<()> {
        if change.uid == u32::MAX || change.gid == u32::MAX {
            return Err(Errno::EINVAL);
        }
        self.uid.set(change.uid);
        self.gid.set(change.gid);
        self.mode.set(self.mode.get() & !MODE_BITS | change.mode & MODE_BITS);
        Ok(())
    }

    /// Whether the object is gone.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed.get()
    }

    pub(super) fn set_removed(&self) {
        self.removed.set(true);
    }

    /// How often identifiers of its place in the table were used before.
    #[must_use]
    pub const fn sequence(&self) -> u16 {
        (self.id >> super::table::INDEX_BITS) as u16
    }
}

//! /dev/pts (pts(4)): the slaves of the pseudoterminals that exist.

use super::generated::{Attributes, Directory, Listing, ino_of};
use super::inode::{FileType, Inode, Metadata, SetMetadata};
use super::{device, file, special};
use crate::dev::tty::pty;
use crate::errno::{Errno, Result};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::any::Any;

/// DEVPTS_SUPER_MAGIC.
const MAGIC: u64 = 0x1cd1;

struct Slave {
    attributes: Attributes,
    rdev: u64,
}

impl Inode for Slave {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Metadata {
        let meta = self.attributes.metadata(FileType::CharDevice, 1);
        Metadata { rdev: self.rdev, ..meta }
    }

    fn set_metadata(&self, change: &SetMetadata) -> Result<()> {
        pty::set_owner(device::minor(self.rdev), change.uid, change.gid, change.mode).ok_or(Errno::ENXIO)
    }

    fn open(self: Rc<Self>, flags: file::OpenFlags) -> Result<Rc<dyn file::FileOps>> {
        special::open(&(self as Rc<dyn Inode>), flags)
    }
}

struct Slaves(Attributes);

impl Listing for Slaves {
    fn names(&self) -> Vec<(Vec<u8>, FileType)> {
        let slaves = pty::list();
        let names = slaves.iter().map(|(n, _)| (format!("{n}").into_bytes(), FileType::CharDevice));
        names.chain([(b"ptmx".to_vec(), FileType::CharDevice)]).collect()
    }

    fn find(&self, name: &[u8]) -> Option<Rc<dyn Inode>> {
        let attributes = Attributes { ino: ino_of(self.0.ino, name), ..self.0 };
        if name == b"ptmx" {
            let attributes = Attributes { mode: 0o666, ..attributes };
            return Some(Rc::new(Slave { attributes, rdev: device::make(5, 2) }));
        }
        let number: u32 = core::str::from_utf8(name).ok()?.parse().ok()?;
        let (_, (uid, gid, mode)) = pty::list().into_iter().find(|(n, _)| *n == number)?;
        let attributes = Attributes { owner: (uid, gid), mode, ..attributes };
        Some(Rc::new(Slave { attributes, rdev: device::make(136, number) }))
    }
}

/// The root of /dev/pts.
#[must_use]
pub fn root() -> Rc<dyn Inode> {
    let attributes = Attributes { home: super::init::home(MAGIC), ino: 1, mode: 0o755, owner: (0, 0) };
    Rc::new(Directory { attributes, listing: Box::new(Slaves(attributes)) })
}

//! /proc/PID/ns (namespaces(7)): there is one namespace of each kind, with the number that Linux gives the initial one. The
//! links can be read and opened; nothing can be entered or made by them.

use crate::errno::{Errno, Result};
use crate::fs::anonymous;
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::generated::{Attributes, Link, Listing, ino_of};
use crate::fs::inode::{FileType, Inode, Metadata, Timestamp};
use crate::task::fork::CloneFlags;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::any::Any;

/// NS_GET_NSTYPE of ioctl_nsfs(2).
const GET_TYPE: u32 = 0xb703;

/// A namespace.
#[derive(Clone, Copy)]
struct Namespace {
    /// What its link says before the number.
    kind: &'static str,
    /// Its inode number.
    number: u64,
    /// The flag of clone(2) that would make another.
    flag: CloneFlags,
}

const fn initial(kind: &'static str, number: u64, flag: CloneFlags) -> Namespace {
    Namespace { kind, number, flag }
}

const PID: Namespace = initial("pid", 0xefff_fffc, CloneFlags::NEWPID);
const TIME: Namespace = initial("time", 0xefff_fffa, CloneFlags::NEWTIME);

/// The names of the links.
const LINKS: &[(&str, Namespace)] = &[
    ("cgroup", initial("cgroup", 0xefff_fffb, CloneFlags::NEWCGROUP)),
    ("ipc", initial("ipc", 0xefff_ffff, CloneFlags::NEWIPC)),
    ("mnt", initial("mnt", 0xf000_0000, CloneFlags::NEWNS)),
    ("net", initial("net", 0xf000_0001, CloneFlags::NEWNET)),
    ("pid", PID),
    ("pid_for_children", PID),
    ("time", TIME),
    ("time_for_children", TIME),
    ("user", initial("user", 0xefff_fffd, CloneFlags::NEWUSER)),
    ("uts", initial("uts", 0xefff_fffe, CloneFlags::NEWUTS)),
];

/// An open namespace.
pub struct NamespaceFile(Namespace);

impl NamespaceFile {
    /// The flag of clone(2) for the kind of namespace behind a description; `None` if it is of something else.
    #[must_use]
    pub fn kind_of(file: &OpenFile) -> Option<CloneFlags> {
        file.ops.as_any().downcast_ref::<Self>().map(|namespace| namespace.0.flag)
    }
}

impl FileOps for NamespaceFile {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn ioctl(&self, _: &OpenFile, request: u32, _: u64) -> Result<u64> {
        if request == GET_TYPE { Ok(self.0.flag.bits()) } else { Err(Errno::ENOTTY) }
    }

    fn metadata(&self) -> Metadata {
        let start = Timestamp::default();
        Metadata {
            dev: 4,
            ino: self.0.number,
            file_type: FileType::Regular,
            mode: 0o444,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            block_bytes: 4096,
            blocks: 0,
            atime: start,
            mtime: start,
            ctime: start,
            btime: None,
        }
    }

    fn describe(&self) -> String {
        format!("{}:[{}]", self.0.kind, self.0.number)
    }

    fn reopen(&self, flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
        if flags.writable() { Err(Errno::EPERM) } else { Ok(Rc::new(Self(self.0))) }
    }
}

/// The directory.
pub(super) struct Namespaces {
    pub(super) attributes: Attributes,
}

impl Listing for Namespaces {
    fn names(&self) -> Vec<(Vec<u8>, FileType)> {
        LINKS.iter().map(|(name, _)| (name.as_bytes().to_vec(), FileType::Symlink)).collect()
    }

    fn find(&self, name: &[u8]) -> Option<Rc<dyn Inode>> {
        let (name, namespace) = LINKS.iter().find(|(n, _)| n.as_bytes() == name)?;
        let ino = ino_of(self.attributes.ino, name.as_bytes());
        let attributes = Attributes { ino, mode: 0o777, ..self.attributes };
        let file = OpenFile::anonymous(Rc::new(NamespaceFile(*namespace)), OpenFlags::empty());
        let target = file.ops.describe().into_bytes();
        Some(Rc::new(Link {
            attributes,
            target: Rc::new(move || Ok(target.clone())),
            magic: Some(Rc::new(move || Some(anonymous::location(&file)))),
        }))
    }
}

//! /proc (proc(5)), as far as programs read it.

mod mem;
mod memory;
pub mod namespace;
mod net;
pub mod process;
mod status;
mod sysctl;
mod system;
mod sysvipc;

#[cfg(not(feature = "hosted"))]
pub(crate) use sysctl::forget_boot_id;

use super::generated::{Attributes, Directory, Fixed, Home, Listing, Tree, ino_of};
use super::inode::{FileType, Inode};
use crate::task::{current, pid};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// PROC_SUPER_MAGIC.
const MAGIC: u64 = 0x9fa0;
/// Number of the root directory, as on Linux.
const ROOT_INO: u64 = 1;

struct Root {
    home: Home,
    fixed: Fixed,
}

impl Listing for Root {
    fn names(&self) -> Vec<(Vec<u8>, FileType)> {
        let mut names = self.fixed.names();
        names
            .extend(pid::processes().iter().map(|p| (alloc::format!("{}", p.pid()).into_bytes(), FileType::Directory)));
        names
    }

    fn find(&self, name: &[u8]) -> Option<Rc<dyn Inode>> {
        if let Some(found) = self.fixed.find(name) {
            return Some(found);
        }
        // A thread's id leads to its process's directory as well, though it is not listed.
        let process =
            pid::thread(number(name)?).map(|t| Rc::clone(&t.process)).or_else(|| pid::process(number(name)?))?;
        Some(process::directory(self.home, ino_of(ROOT_INO, name), &process))
    }
}

/// A decimal number without sign or leading zero.
fn number(name: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(name).ok().filter(|t| t.starts_with(|c: char| ('1'..='9').contains(&c)))?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The root of a new proc file system.
#[must_use]
pub fn root() -> Rc<dyn Inode> {
    let home = Home { dev: super::device::anonymous(), magic: MAGIC };
    let mut tree = Tree::new(home, ROOT_INO);
    system::fill(&mut tree);
    tree.directory("sys", sysctl::fill);
    tree.directory("sysvipc", sysvipc::fill);
    tree.link("self", || alloc::format!("{}", current().process.pid()));
    tree.link("thread-self", || alloc::format!("{}/task/{}", current().process.pid(), current().tid()));
    tree.link("mounts", || "self/mounts".into());
    tree.link("net", || "self/net".into());
    let attributes = Attributes { home, ino: ROOT_INO, mode: 0o555, owner: (0, 0) };
    Rc::new(Directory { attributes, listing: Box::new(Root { home, fixed: tree.entries() }) })
}

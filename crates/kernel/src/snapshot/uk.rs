//! /uk/libukp, by which programs for Unikraft speak with their platform: that they are ready to be made a template, and
//! that they want to stay awake.

use super::{awake, ready};
use crate::fs::generated::Tree;
use crate::fs::inode::Inode;
use alloc::rc::Rc;

/// No such file system is known to statfs(2): proc's magic would mislead, tmpfs's does not.
const MAGIC: u64 = 0x0102_1994;

/// The root of /uk.
pub(crate) fn root() -> Rc<dyn Inode> {
    let mut tree = Tree::new(crate::fs::init::home(MAGIC), 1);
    tree.directory("libukp", |t| {
        let write = |bytes: &[u8]| {
            if bytes.trim_ascii() == b"1" {
                ready::program_is_ready();
                Ok(())
            } else {
                Err(crate::errno::Errno::EINVAL)
            }
        };
        t.setting("template_instance", || "0\n".into(), Rc::new(write));
        t.setting("scale_to_zero_disable", awake::text, Rc::new(awake::write));
    });
    tree.root()
}

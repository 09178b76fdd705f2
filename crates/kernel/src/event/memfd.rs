//! Files without a name (memfd_create(2)).

use crate::errno::{Errno, Result};
use crate::fs::anonymous;
use crate::fs::context::Location;
use crate::fs::entry::Entry;
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::inode::{FileType, Inode, NewInode};
use crate::fs::overlay::{Limits, Node, Tree};
use crate::task;
use alloc::rc::Rc;
use core::cell::RefCell;
use linux_raw_sys::general::{F_SEAL_EXEC, F_SEAL_SEAL};

/// Longest name in bytes, without the prefix.
pub const MAX_NAME_BYTES: usize = 249;
const PREFIX: &[u8] = b"memfd:";
/// Room for the nodes themselves; data is limited by the VM's memory only.
const LIMITS: Limits = Limits { pages: u64::MAX, metadata_bytes: 32 << 20 };

crate::global! {
    /// The file system in which they are, once there was one.
    static TREE: RefCell<Option<Location>> = RefCell::new(None);
}

fn tree() -> Result<Location> {
    if let Some(root) = TREE.with(|tree| tree.borrow().clone()) {
        return Ok(root);
    }
    let new = NewInode { file_type: FileType::Directory, mode: 0o777, uid: 0, gid: 0, rdev: 0 };
    let root = anonymous::unmounted(Tree::tmpfs(LIMITS, &new)?);
    TREE.with(|tree| tree.replace(Some(root.clone())));
    Ok(root)
}

/// Makes and opens a file called `name`. It can be sealed if `sealable`; it is not executable, and sealed to stay so, if
/// `no_exec`.
///
/// # Errors
/// ENOSPC if there are too many.
pub fn memfd(name: &[u8], sealable: bool, no_exec: bool) -> Result<Rc<OpenFile>> {
    let root = tree()?;
    let creds = task::current().creds();
    let mode = if no_exec { 0o666 } else { 0o777 };
    let new = NewInode { file_type: FileType::Regular, mode, uid: creds.fsuid, gid: creds.fsgid, rdev: 0 };
    let inode = root.inode.tmpfile(&new, false)?;
    let node = inode.as_any().downcast_ref::<Node>().ok_or(Errno::EINVAL)?;
    node.set_seals(match (no_exec, sealable) {
        (true, _) => F_SEAL_EXEC,
        (false, true) => 0,
        (false, false) => F_SEAL_SEAL,
    })?;
    let entry = Entry::nameless(&root.entry, &[PREFIX, name].concat(), Rc::clone(&inode));
    let flags = OpenFlags::RDWR | OpenFlags::LARGEFILE;
    let ops: Rc<dyn FileOps> = Inode::open(inode, flags)?;
    Ok(OpenFile::new(ops, flags, Some(Location::new(entry, root.mount))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::inode::SetMetadata;
    use crate::mm::user::{Dest, Source};
    use linux_raw_sys::general::{
        F_ADD_SEALS, F_GET_SEALS, F_SEAL_GROW, F_SEAL_WRITE, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE,
    };

    #[test]
    fn a_file_with_seals() {
        let _thread = crate::task::testing::enter();
        let file = memfd(b"name", true, false).expect("makes a file");
        let text = crate::fs::path::link_text(file.location.as_ref().expect("a place"), &tree().expect("a tree"));
        assert_eq!(text, b"/memfd:name (deleted)");
        assert_eq!((file.metadata().mode, file.metadata().nlink), (0o777, 0));
        assert_eq!(file.write(&mut Source::kernel(b"hello")), Ok(5));
        let fcntl = |command, argument: u32| file.ops.fcntl(&file, command, argument.into());
        assert_eq!(fcntl(F_GET_SEALS, 0), Ok(0));
        assert_eq!(fcntl(F_ADD_SEALS, 1 << 20), Err(Errno::EINVAL));
        assert_eq!(fcntl(F_ADD_SEALS, F_SEAL_GROW), Ok(0));
        assert_eq!(file.write(&mut Source::kernel(b"more")), Err(Errno::EPERM));
        assert_eq!(fcntl(F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL), Ok(0));
        assert_eq!(fcntl(F_ADD_SEALS, F_SEAL_EXEC), Err(Errno::EPERM));
        file.position.set(0);
        assert_eq!(file.write(&mut Source::kernel(b"more")), Err(Errno::EPERM));
        let mut bytes = [0; 9];
        assert_eq!(file.read(&mut Dest::kernel(&mut bytes)), Ok(5));
    }

    #[test]
    fn unsealable_and_not_executable() {
        let _thread = crate::task::testing::enter();
        let file = memfd(b"", false, false).expect("makes a file");
        assert_eq!(file.ops.fcntl(&file, F_GET_SEALS, 0), Ok(F_SEAL_SEAL.into()));
        assert_eq!(file.ops.fcntl(&file, F_ADD_SEALS, F_SEAL_GROW.into()), Err(Errno::EPERM));
        let file = memfd(b"", false, true).expect("makes a file");
        assert_eq!(file.ops.fcntl(&file, F_GET_SEALS, 0), Ok(F_SEAL_EXEC.into()));
        assert_eq!(file.metadata().mode, 0o666);
        let inode = file.inode().expect("an inode");
        let change = |mode| inode.set_metadata(&SetMetadata { mode: Some(mode), ..SetMetadata::default() });
        assert_eq!((change(0o600), change(0o700)), (Ok(()), Err(Errno::EPERM)));
    }

    #[test]
    fn room_that_cannot_be_had_is_given_back() {
        crate::mm::frame::reset_hosted(64 << 20, 64 << 20);
        let _thread = crate::task::testing::enter();
        let file = memfd(b"", true, false).expect("makes a file");
        assert_eq!(file.write(&mut Source::kernel(b"hello")), Ok(5));
        let allocate = |mode, offset, len| file.ops.allocate(&file, mode, offset, len);
        let used = || file.metadata().blocks;
        let before = used();
        for len in [60 << 20, 1 << 40, i64::MAX as u64 - 1] {
            assert_eq!((allocate(0, 0, len), used(), file.metadata().size), (Err(Errno::ENOSPC), before, 5));
        }
        assert_eq!((allocate(0, 0, 16 << 20), used()), (Ok(()), (16 << 20) / 512));
        // One by one: each costs what it gives back, not what is there.
        for page in 0..4096 {
            assert_eq!(allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * 4096, 4096), Ok(()));
        }
        assert_eq!((used(), file.metadata().size), (0, 16 << 20));
        assert_eq!(file.write(&mut Source::kernel(b"more")), Ok(4));
    }
}

//! What fstat(2) tells of objects that stand in no directory.

use crate::fs::inode::{FileType, Metadata, SetMetadata, Timestamp};
use core::cell::Cell;

/// Device number of the anonymous inodes (epoll, eventfd, ...): major 0, minor 16.
pub const ANON_INODE_DEV: u64 = 16;
/// Device number of pipes: major 0, minor 15.
pub const PIPE_DEV: u64 = 15;
/// The one inode number that all anonymous inodes share, as in Linux.
const ANON_INODE_INO: u64 = 1;

crate::global! {
    static NEXT_INO: Cell<u64> = Cell::new(1000);
}

/// A number for a pipe or socket that no other has or had.
#[must_use]
pub fn unique_ino() -> u64 {
    NEXT_INO.with(|next| {
        let ino = next.get();
        next.set(ino + 1);
        ino
    })
}

/// Changes what fstat(2) tells of a pipe or socket.
pub fn change(metadata: &Cell<Metadata>, change: &SetMetadata) {
    let mut m = metadata.get();
    m.mode = change.mode.unwrap_or(m.mode);
    m.uid = change.uid.unwrap_or(m.uid);
    m.gid = change.gid.unwrap_or(m.gid);
    m.atime = change.atime.unwrap_or(m.atime);
    m.mtime = change.mtime.unwrap_or(m.mtime);
    m.ctime = crate::fs::clock::now();
    metadata.set(m);
}

/// fstat(2) of an anonymous inode: permission bits and no type at all.
#[must_use]
pub fn metadata() -> Metadata {
    Metadata {
        dev: ANON_INODE_DEV,
        ino: ANON_INODE_INO,
        file_type: FileType::Anonymous,
        mode: 0o600,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        block_bytes: 4096,
        blocks: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: None,
    }
}

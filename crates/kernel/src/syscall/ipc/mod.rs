//! System V IPC: what its calls share. The constants at hand lack those of sysvipc(7).

pub(super) mod msg;
pub(super) mod sem;
pub(super) mod shm;

use super::table::Args;
use crate::errno::{Errno, Result};
use crate::ipc::{Change, Permissions, Request};
use crate::mm::addr::UserAddr;
use crate::mm::user;

const IPC_RMID: i32 = 0;
const IPC_SET: i32 = 1;
const IPC_STAT: i32 = 2;
const IPC_INFO: i32 = 3;
const IPC_NOWAIT: u32 = 0o4000;

/// What msgctl(2) and its like do to an object that is named by an identifier, or looked at by an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lookup {
    /// IPC_STAT.
    Id,
    /// MSG_STAT and its like.
    Index,
    /// MSG_STAT_ANY and its like: without asking for permission.
    IndexUnchecked,
}

/// Key and flags.
fn request(args: Args, flags: usize) -> Request {
    Request { key: args.i32(0), flags: args.u32(flags) }
}

fn not_negative(value: i32) -> Result<i32> {
    if value < 0 { Err(Errno::EINVAL) } else { Ok(value) }
}

/// Words of `struct ipc64_perm`.
const PERMISSION_WORDS: usize = 6;

/// `struct ipc64_perm`: key, uid, gid, cuid, cgid, mode, sequence number.
fn permission_words(permissions: &Permissions) -> [u64; PERMISSION_WORDS] {
    [
        pair(permissions.key.get().cast_unsigned(), permissions.uid.get()),
        pair(permissions.gid.get(), permissions.cuid),
        pair(permissions.cgid, permissions.mode.get()),
        u64::from(permissions.sequence()),
        0,
        0,
    ]
}

/// Two 32-bit members, the first one first.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Writes a structure: its permissions and what follows.
fn write_object(addr: UserAddr, permissions: &Permissions, rest: &[u64]) -> Result<()> {
    let words = permission_words(permissions);
    write_words(addr, words.iter().chain(rest).copied())
}

fn write_words(addr: UserAddr, words: impl Iterator<Item = u64>) -> Result<()> {
    let bytes: alloc::vec::Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
    user::write_bytes(addr, &bytes)
}

/// The permissions that IPC_SET gives.
fn read_change(addr: UserAddr) -> Result<Change> {
    let words: [u64; 3] = user::read(addr)?;
    Ok(Change { uid: (words[0] >> 32) as u32, gid: words[1] as u32, mode: (words[2] >> 32) as u32 })
}

/// Members of type `int`.
fn write_ints(addr: UserAddr, ints: &[u32]) -> Result<()> {
    let bytes: alloc::vec::Vec<u8> = ints.iter().flat_map(|int| int.to_ne_bytes()).collect();
    user::write_bytes(addr, &bytes)
}

/// A limit as a member of type `int`.
fn int(limit: u64) -> u32 {
    limit.min(i32::MAX as u64) as u32
}

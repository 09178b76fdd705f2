//! Operations: system calls with arguments that mean the same on both sides.

use crate::sides::{CWD, Side};
use crate::tree::{NAMES, Stat, TARGETS, list, stat};
use linux_raw_sys::general as linux;
use proptest::prelude::*;
use std::ffi::CString;

/// Descriptors that operations name by slot.
const SLOTS: usize = 4;

/// A path: relative to the working directory, or to an open one.
#[derive(Clone, Debug)]
pub(crate) struct At {
    slot: Option<usize>,
    path: String,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Open { at: At, flags: u32, mode: u32, slot: usize },
    OpenBelow { at: At, resolve: u64, slot: usize },
    Close { slot: usize },
    Dup { from: usize, to: usize },
    Read { slot: usize, len: usize },
    Write { slot: usize, len: usize, byte: u8 },
    Pread { slot: usize, offset: i64, len: usize },
    Pwrite { slot: usize, offset: i64, len: usize, byte: u8 },
    Seek { slot: usize, offset: i64, whence: u32 },
    Ftruncate { slot: usize, size: i64 },
    Truncate { at: At, size: i64 },
    Fallocate { slot: usize, mode: u32, offset: i64, len: i64 },
    Mkdir { at: At, mode: u32 },
    Mknod { at: At, mode: u32 },
    Symlink { target: &'static str, at: At },
    Link { from: At, to: At, flags: u32 },
    LinkOpen { slot: usize, to: At },
    Unlink { at: At },
    Rmdir { at: At },
    Rename { from: At, to: At, flags: u32 },
    Stat { at: At, flags: u32 },
    Fstat { slot: usize },
    Readlink { at: At },
    List { slot: usize, buffer_bytes: usize },
    Chmod { at: At, mode: u32 },
    Chown { at: At, uid: u32, gid: u32, flags: u32 },
    Times { at: At, sec: i64 },
    Access { at: At, mode: u32 },
    Chdir { at: At },
    Fchdir { slot: usize },
    SetXattr { at: At, name: &'static str, len: usize, flags: u32 },
    GetXattr { at: At, name: &'static str },
    RemoveXattr { at: At, name: &'static str },
    ListXattr { at: At },
    Flags { slot: usize, set: u32 },
    Copy { from: usize, to: usize, offsets: Option<(i64, i64)>, len: usize },
    Lock { slot: usize, command: u32, kind: u32, start: i64, len: i64 },
    Flock { slot: usize, operation: u32 },
}

fn component() -> impl Strategy<Value = String> {
    prop_oneof![
        30 => prop::sample::select(NAMES.to_vec()).prop_map(String::from),
        2 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just(String::new()),
        1 => Just("n".repeat(256)),
    ]
}

fn at() -> impl Strategy<Value = At> {
    let path = (prop::collection::vec(component(), 1..4), prop::bool::weighted(0.1)).prop_map(|(names, slash)| {
        let mut path = names.join("/").trim_start_matches('/').to_owned();
        if slash {
            path.push('/');
        }
        if path.is_empty() || path == "/" { ".".to_owned() } else { path }
    });
    (prop::option::weighted(0.2, 0..SLOTS), path).prop_map(|(slot, path)| At { slot, path })
}

fn flags() -> impl Strategy<Value = u32> {
    let access = prop::sample::select(vec![linux::O_RDONLY, linux::O_WRONLY, linux::O_RDWR, linux::O_RDWR]);
    let others = vec![
        0,
        0,
        linux::O_CREAT,
        linux::O_CREAT,
        linux::O_CREAT | linux::O_EXCL,
        linux::O_TRUNC,
        linux::O_CREAT | linux::O_TRUNC,
        linux::O_APPEND,
        linux::O_CREAT | linux::O_APPEND,
        linux::O_DIRECTORY,
        linux::O_DIRECTORY,
        linux::O_NOFOLLOW,
        linux::O_PATH,
        linux::O_PATH | linux::O_NOFOLLOW,
        linux::O_DIRECTORY | linux::O_CREAT,
        linux::__O_TMPFILE | linux::O_DIRECTORY,
        linux::__O_TMPFILE | linux::O_DIRECTORY | linux::O_EXCL,
        linux::O_NOATIME,
    ];
    // A FIFO whose other end nobody opens is waited for without O_NONBLOCK, for ever.
    (access, prop::sample::select(others)).prop_map(|(access, others)| access | others | linux::O_NONBLOCK)
}

fn offset() -> impl Strategy<Value = i64> {
    prop_oneof![6 => 0..30_000i64, 2 => prop::sample::select(vec![0, 4095, 4096, 4097, 8192, 12288]), 1 => -2..0i64]
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..9000usize, 1 => Just(4096), 1 => Just(8192)]
}

fn mode() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0o644, 0o755, 0o600, 0o777, 0o4755, 0o2775, 0o1777, 0o0])
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS;
    let names = prop::sample::select(vec!["user.index", "user.x", "trusted.y", "security.z", "nothing.x", "user."]);
    let link_flags = prop::sample::select(vec![0, linux::AT_SYMLINK_FOLLOW]);
    let stat_flags = prop::sample::select(vec![0, linux::AT_SYMLINK_NOFOLLOW, linux::AT_EMPTY_PATH]);
    let rename_flags = prop::sample::select(vec![0, 0, 0, 0, linux::RENAME_NOREPLACE, linux::RENAME_EXCHANGE]);
    let fallocate = vec![
        0,
        linux::FALLOC_FL_KEEP_SIZE,
        linux::FALLOC_FL_PUNCH_HOLE | linux::FALLOC_FL_KEEP_SIZE,
        linux::FALLOC_FL_PUNCH_HOLE | linux::FALLOC_FL_KEEP_SIZE,
        linux::FALLOC_FL_PUNCH_HOLE,
        linux::FALLOC_FL_COLLAPSE_RANGE,
    ];
    let whence = prop::sample::select(vec![0, 1, 2, 9]);
    let resolve = prop::sample::select(vec![
        0,
        linux::RESOLVE_BENEATH,
        linux::RESOLVE_IN_ROOT,
        linux::RESOLVE_NO_SYMLINKS,
        linux::RESOLVE_NO_XDEV,
        linux::RESOLVE_NO_MAGICLINKS,
    ]);
    let id = || prop::sample::select(vec![0, 1, 1000, u32::MAX]);
    // Locks of descriptions: those of processes would be the test's own process's on one side.
    let lock_command = prop::sample::select(vec![linux::F_OFD_SETLK, linux::F_OFD_SETLK, linux::F_OFD_GETLK]);
    let lock_kind = prop::sample::select(vec![linux::F_RDLCK, linux::F_WRLCK, linux::F_UNLCK]);
    let flock = prop::sample::select(vec![linux::LOCK_SH, linux::LOCK_EX, linux::LOCK_UN]);
    let files = prop_oneof![
        12 => (at(), flags(), mode(), slot()).prop_map(|(at, flags, mode, slot)| Op::Open { at, flags, mode, slot }),
        2 => (at(), resolve, slot()).prop_map(|(at, resolve, slot)| Op::OpenBelow { at, resolve: u64::from(resolve), slot }),
        2 => slot().prop_map(|slot| Op::Close { slot }),
        1 => (slot(), slot()).prop_map(|(from, to)| Op::Dup { from, to }),
        4 => (slot(), len()).prop_map(|(slot, len)| Op::Read { slot, len }),
        4 => (slot(), len(), 1..=255u8).prop_map(|(slot, len, byte)| Op::Write { slot, len, byte }),
        3 => (slot(), offset(), len()).prop_map(|(slot, offset, len)| Op::Pread { slot, offset, len }),
        4 => (slot(), offset(), len(), 1..=255u8)
            .prop_map(|(slot, offset, len, byte)| Op::Pwrite { slot, offset, len, byte }),
        4 => (slot(), offset(), whence).prop_map(|(slot, offset, whence)| Op::Seek { slot, offset, whence }),
        3 => (slot(), offset()).prop_map(|(slot, size)| Op::Ftruncate { slot, size }),
        2 => (at(), offset()).prop_map(|(at, size)| Op::Truncate { at, size }),
        3 => (slot(), prop::sample::select(fallocate), offset(), offset())
            .prop_map(|(slot, mode, offset, len)| Op::Fallocate { slot, mode, offset, len }),
        2 => slot().prop_map(|slot| Op::Fstat { slot }),
        2 => (slot(), 30..400usize).prop_map(|(slot, buffer_bytes)| Op::List { slot, buffer_bytes }),
        1 => (slot(), prop::sample::select(vec![linux::O_NONBLOCK, linux::O_NONBLOCK | linux::O_APPEND]))
            .prop_map(|(slot, set)| Op::Flags { slot, set }),
        3 => (slot(), slot(), prop::option::of((offset(), offset())), len())
            .prop_map(|(from, to, offsets, len)| Op::Copy { from, to, offsets, len }),
        4 => (slot(), lock_command, lock_kind, 0..20i64, -3..12i64)
            .prop_map(|(slot, command, kind, start, len)| Op::Lock { slot, command, kind, start, len }),
        2 => (slot(), flock).prop_map(|(slot, operation)| Op::Flock { slot, operation }),
    ];
    let tree = prop_oneof![
        5 => (at(), mode()).prop_map(|(at, mode)| Op::Mkdir { at, mode }),
        1 => (at(), mode(), prop::sample::select(vec![0, linux::S_IFIFO, linux::S_IFREG, linux::S_IFSOCK, linux::S_IFDIR]))
            .prop_map(|(at, mode, kind)| Op::Mknod { at, mode: mode | kind }),
        3 => (prop::sample::select(TARGETS.to_vec()), at()).prop_map(|(target, at)| Op::Symlink { target, at }),
        4 => (at(), at(), link_flags).prop_map(|(from, to, flags)| Op::Link { from, to, flags }),
        1 => (slot(), at()).prop_map(|(slot, to)| Op::LinkOpen { slot, to }),
        4 => at().prop_map(|at| Op::Unlink { at }),
        4 => at().prop_map(|at| Op::Rmdir { at }),
        10 => (at(), at(), rename_flags).prop_map(|(from, to, flags)| Op::Rename { from, to, flags }),
        3 => (at(), stat_flags).prop_map(|(at, flags)| Op::Stat { at, flags }),
        1 => at().prop_map(|at| Op::Readlink { at }),
        2 => (at(), mode()).prop_map(|(at, mode)| Op::Chmod { at, mode }),
        1 => (at(), id(), id(), prop::sample::select(vec![0, linux::AT_SYMLINK_NOFOLLOW]))
            .prop_map(|(at, uid, gid, flags)| Op::Chown { at, uid, gid, flags }),
        1 => (at(), 900_000..901_000i64).prop_map(|(at, sec)| Op::Times { at, sec }),
        1 => (at(), 0..8u32).prop_map(|(at, mode)| Op::Access { at, mode }),
        1 => at().prop_map(|at| Op::Chdir { at }),
        1 => slot().prop_map(|slot| Op::Fchdir { slot }),
        1 => (at(), names.clone(), 0..300usize, 0..3u32)
            .prop_map(|(at, name, len, flags)| Op::SetXattr { at, name, len, flags }),
        1 => (at(), names.clone()).prop_map(|(at, name)| Op::GetXattr { at, name }),
        1 => (at(), names).prop_map(|(at, name)| Op::RemoveXattr { at, name }),
        1 => at().prop_map(|at| Op::ListXattr { at }),
    ];
    prop_oneof![files, tree]
}

/// What an operation gave.
#[derive(Debug, PartialEq)]
pub(crate) enum Gave {
    Value(u64),
    Values(Vec<u64>),
    Bytes(Vec<u8>),
    Stat(Stat),
    Names(Vec<String>),
    Error(String),
}

impl Gave {
    fn of(outcome: Result<Gave, i32>) -> Self {
        outcome.unwrap_or_else(|error| Gave::Error(format!("{error} {}", std::io::Error::from_raw_os_error(error))))
    }
}

/// Keeps each side's descriptors.
pub(crate) struct Runner {
    descriptors: [[i32; SLOTS]; 2],
    /// Inode numbers that fstat(2) told of them: they never change.
    inodes: [[u64; SLOTS]; 2],
}

impl Runner {
    pub(crate) fn new() -> Self {
        Self { descriptors: [[-1; SLOTS]; 2], inodes: [[0; SLOTS]; 2] }
    }

    /// The descriptors that a side has now.
    pub(crate) fn descriptors<S: Side>(&self) -> [i32; SLOTS] {
        self.descriptors[S::INDEX]
    }

    fn fd<S: Side>(&self, slot: usize) -> u64 {
        i64::from(self.descriptors[S::INDEX][slot]) as u64
    }

    fn start<S: Side>(&self, at: &At) -> u64 {
        at.slot.map_or(CWD, |slot| self.fd::<S>(slot))
    }

    /// Puts a new descriptor into a slot.
    fn keep<S: Side>(&mut self, side: &mut S, slot: usize, fd: u64) {
        let old = std::mem::replace(&mut self.descriptors[S::INDEX][slot], fd as i32);
        self.inodes[S::INDEX][slot] = 0;
        if old >= 0 {
            side.call(linux::__NR_close, [old as u64, 0, 0, 0, 0, 0]).expect("closes");
        }
    }

    pub(crate) fn run<S: Side>(&mut self, side: &mut S, op: &Op) -> Gave {
        Gave::of(self.attempt(side, op))
    }

    fn attempt<S: Side>(&mut self, side: &mut S, op: &Op) -> Result<Gave, i32> {
        let c = |at: &At| CString::new(at.path.as_str()).expect("no NUL");
        let value = |outcome: Result<u64, i32>| outcome.map(Gave::Value);
        match op {
            Op::Open { at, flags, mode, slot } => {
                let path = c(at);
                let args = [self.start::<S>(at), path.as_ptr() as u64, u64::from(*flags), u64::from(*mode), 0, 0];
                let fd = side.call(linux::__NR_openat, args)?;
                self.keep(side, *slot, fd);
                Ok(Gave::Value(0))
            }
            Op::OpenBelow { at, resolve, slot } => {
                let path = c(at);
                let how = [u64::from(linux::O_PATH), 0, *resolve];
                let args = [self.start::<S>(at), path.as_ptr() as u64, how.as_ptr() as u64, 24, 0, 0];
                let fd = side.call(linux::__NR_openat2, args)?;
                self.keep(side, *slot, fd);
                Ok(Gave::Value(0))
            }
            Op::Close { slot } => {
                let fd = self.fd::<S>(*slot);
                self.descriptors[S::INDEX][*slot] = -1;
                value(side.call(linux::__NR_close, [fd, 0, 0, 0, 0, 0]))
            }
            Op::Dup { from, to } => {
                let fd = side.call(linux::__NR_dup, [self.fd::<S>(*from), 0, 0, 0, 0, 0])?;
                self.keep(side, *to, fd);
                Ok(Gave::Value(0))
            }
            Op::Read { slot, len } => {
                let mut buffer = vec![0; *len];
                let args = [self.fd::<S>(*slot), buffer.as_mut_ptr() as u64, *len as u64, 0, 0, 0];
                let n = side.call(linux::__NR_read, args)?;
                buffer.truncate(n as usize);
                Ok(Gave::Bytes(buffer))
            }
            Op::Pread { slot, offset, len } => {
                let mut buffer = vec![0; *len];
                let args = [self.fd::<S>(*slot), buffer.as_mut_ptr() as u64, *len as u64, *offset as u64, 0, 0];
                let n = side.call(linux::__NR_pread64, args)?;
                buffer.truncate(n as usize);
                Ok(Gave::Bytes(buffer))
            }
            Op::Write { slot, len, byte } => {
                let buffer = vec![*byte; *len];
                let args = [self.fd::<S>(*slot), buffer.as_ptr() as u64, *len as u64, 0, 0, 0];
                value(side.call(linux::__NR_write, args))
            }
            Op::Pwrite { slot, offset, len, byte } => {
                let buffer = vec![*byte; *len];
                let args = [self.fd::<S>(*slot), buffer.as_ptr() as u64, *len as u64, *offset as u64, 0, 0];
                value(side.call(linux::__NR_pwrite64, args))
            }
            Op::Seek { slot, offset, whence } => {
                let fd = self.fd::<S>(*slot);
                // The positions in a directory are each side's own.
                if stat(side, linux::__NR_fstat, [fd, 0, 0, 0, 0, 0], 1)?.0.is_directory() {
                    return Ok(Gave::Value(0));
                }
                value(side.call(linux::__NR_lseek, [fd, *offset as u64, u64::from(*whence), 0, 0, 0]))
            }
            Op::Ftruncate { slot, size } => {
                value(side.call(linux::__NR_ftruncate, [self.fd::<S>(*slot), *size as u64, 0, 0, 0, 0]))
            }
            Op::Truncate { at, size } => {
                let path = c(at);
                value(side.call(linux::__NR_truncate, [path.as_ptr() as u64, *size as u64, 0, 0, 0, 0]))
            }
            Op::Fallocate { slot, mode, offset, len } => {
                let args = [self.fd::<S>(*slot), u64::from(*mode), *offset as u64, *len as u64, 0, 0];
                value(side.call(linux::__NR_fallocate, args))
            }
            Op::Fstat { slot } => {
                let found = stat(side, linux::__NR_fstat, [self.fd::<S>(*slot), 0, 0, 0, 0, 0], 1)?;
                let known = &mut self.inodes[S::INDEX][*slot];
                assert!(*known == 0 || *known == found.1, "the inode number of an open file has changed");
                *known = found.1;
                Ok(Gave::Stat(found.0))
            }
            Op::List { slot, buffer_bytes } => list(side, self.fd::<S>(*slot), *buffer_bytes).map(Gave::Names),
            Op::Flags { slot, set } => {
                let fd = self.fd::<S>(*slot);
                side.call(linux::__NR_fcntl, [fd, u64::from(linux::F_SETFL), u64::from(*set), 0, 0, 0])?;
                value(side.call(linux::__NR_fcntl, [fd, u64::from(linux::F_GETFL), 0, 0, 0, 0]))
            }
            Op::Copy { from, to, offsets, len } => {
                let mut places = offsets.unwrap_or_default();
                let (source, target) = match offsets {
                    Some(_) => (&raw mut places.0 as u64, &raw mut places.1 as u64),
                    None => (0, 0),
                };
                let args = [self.fd::<S>(*from), source, self.fd::<S>(*to), target, *len as u64, 0];
                let n = side.call(linux::__NR_copy_file_range, args)?;
                Ok(Gave::Values(vec![n, places.0 as u64, places.1 as u64]))
            }
            Op::Lock { slot, command, kind, start, len } => {
                // struct flock: s16 type, s16 whence, s64 start, s64 len, s32 pid.
                let mut flock = [u64::from(*kind), *start as u64, *len as u64, 0];
                let args = [self.fd::<S>(*slot), u64::from(*command), flock.as_mut_ptr() as u64, 0, 0, 0];
                side.call(linux::__NR_fcntl, args)?;
                // Padding is nobody's.
                Ok(Gave::Values(vec![flock[0] & 0xffff_ffff, flock[1], flock[2], flock[3] & 0xffff_ffff]))
            }
            Op::Flock { slot, operation } => {
                let operation = u64::from(operation | linux::LOCK_NB);
                value(side.call(linux::__NR_flock, [self.fd::<S>(*slot), operation, 0, 0, 0, 0]))
            }
            _ => self.attempt_on_tree(side, op),
        }
    }

    fn attempt_on_tree<S: Side>(&mut self, side: &mut S, op: &Op) -> Result<Gave, i32> {
        let c = |at: &At| CString::new(at.path.as_str()).expect("no NUL");
        let value = |outcome: Result<u64, i32>| outcome.map(Gave::Value);
        // The calls that have no form with a descriptor take the path alone.
        match op {
            Op::Mkdir { at, mode } => {
                let path = c(at);
                value(
                    side.call(
                        linux::__NR_mkdirat,
                        [self.start::<S>(at), path.as_ptr() as u64, u64::from(*mode), 0, 0, 0],
                    ),
                )
            }
            Op::Mknod { at, mode } => {
                let path = c(at);
                value(
                    side.call(
                        linux::__NR_mknodat,
                        [self.start::<S>(at), path.as_ptr() as u64, u64::from(*mode), 0, 0, 0],
                    ),
                )
            }
            Op::Symlink { target, at } => {
                let (target, path) = (CString::new(*target).expect("no NUL"), c(at));
                let args = [target.as_ptr() as u64, self.start::<S>(at), path.as_ptr() as u64, 0, 0, 0];
                value(side.call(linux::__NR_symlinkat, args))
            }
            Op::Link { from, to, flags } => {
                let (old, new) = (c(from), c(to));
                let (old_at, new_at) = (self.start::<S>(from), self.start::<S>(to));
                let args = [old_at, old.as_ptr() as u64, new_at, new.as_ptr() as u64, u64::from(*flags), 0];
                value(side.call(linux::__NR_linkat, args))
            }
            Op::LinkOpen { slot, to } => {
                let new = c(to);
                let flags = u64::from(linux::AT_EMPTY_PATH);
                let (old, new_at) = (self.fd::<S>(*slot), self.start::<S>(to));
                let args = [old, c"".as_ptr() as u64, new_at, new.as_ptr() as u64, flags, 0];
                value(side.call(linux::__NR_linkat, args))
            }
            Op::Unlink { at } => {
                let path = c(at);
                value(side.call(linux::__NR_unlinkat, [self.start::<S>(at), path.as_ptr() as u64, 0, 0, 0, 0]))
            }
            Op::Rmdir { at } => {
                let path = c(at);
                let flags = u64::from(linux::AT_REMOVEDIR);
                value(side.call(linux::__NR_unlinkat, [self.start::<S>(at), path.as_ptr() as u64, flags, 0, 0, 0]))
            }
            Op::Rename { from, to, flags } => {
                let (old, new) = (c(from), c(to));
                let (old_at, new_at) = (self.start::<S>(from), self.start::<S>(to));
                let args = [old_at, old.as_ptr() as u64, new_at, new.as_ptr() as u64, u64::from(*flags), 0];
                value(side.call(linux::__NR_renameat2, args))
            }
            Op::Stat { at, flags } => {
                let path = c(at);
                let args = [self.start::<S>(at), path.as_ptr() as u64, 0, u64::from(*flags), 0, 0];
                stat(side, linux::__NR_newfstatat, args, 2).map(|(stat, _)| Gave::Stat(stat))
            }
            Op::Readlink { at } => {
                let path = c(at);
                let mut target = vec![0; 100];
                let args = [self.start::<S>(at), path.as_ptr() as u64, target.as_mut_ptr() as u64, 100, 0, 0];
                let n = side.call(linux::__NR_readlinkat, args)?;
                target.truncate(n as usize);
                Ok(Gave::Bytes(target))
            }
            Op::Chmod { at, mode } => {
                let path = c(at);
                value(
                    side.call(
                        linux::__NR_fchmodat,
                        [self.start::<S>(at), path.as_ptr() as u64, u64::from(*mode), 0, 0, 0],
                    ),
                )
            }
            Op::Chown { at, uid, gid, flags } => {
                let path = c(at);
                let ids = (u64::from(*uid), u64::from(*gid));
                let args = [self.start::<S>(at), path.as_ptr() as u64, ids.0, ids.1, u64::from(*flags), 0];
                value(side.call(linux::__NR_fchownat, args))
            }
            Op::Times { at, sec } => {
                let path = c(at);
                let times = [*sec, 5, *sec + 1, 999_999_999];
                let args = [self.start::<S>(at), path.as_ptr() as u64, times.as_ptr() as u64, 0, 0, 0];
                value(side.call(linux::__NR_utimensat, args))
            }
            Op::Access { at, mode } => {
                let path = c(at);
                value(side.call(
                    linux::__NR_faccessat,
                    [self.start::<S>(at), path.as_ptr() as u64, u64::from(*mode), 0, 0, 0],
                ))
            }
            Op::Chdir { at } => {
                // Down only, so that nobody climbs out of the tree step by step.
                let path = c(at);
                if at.path.contains("..") {
                    return Ok(Gave::Value(0));
                }
                value(side.call(linux::__NR_chdir, [path.as_ptr() as u64, 0, 0, 0, 0, 0]))
            }
            Op::Fchdir { slot } => value(side.call(linux::__NR_fchdir, [self.fd::<S>(*slot), 0, 0, 0, 0, 0])),
            Op::SetXattr { at, name, len, flags } => {
                let (path, name) = (c(at), CString::new(*name).expect("no NUL"));
                let content = vec![b'v'; *len];
                let (name, content) = (name.as_ptr() as u64, content.as_ptr() as u64);
                let args = [path.as_ptr() as u64, name, content, *len as u64, u64::from(*flags), 0];
                value(side.call(linux::__NR_lsetxattr, args))
            }
            Op::GetXattr { at, name } => {
                let (path, name) = (c(at), CString::new(*name).expect("no NUL"));
                let mut content = vec![0; 100];
                let args = [path.as_ptr() as u64, name.as_ptr() as u64, content.as_mut_ptr() as u64, 100, 0, 0];
                let n = side.call(linux::__NR_lgetxattr, args)?;
                content.truncate(n as usize);
                Ok(Gave::Bytes(content))
            }
            Op::RemoveXattr { at, name } => {
                let (path, name) = (c(at), CString::new(*name).expect("no NUL"));
                value(side.call(linux::__NR_lremovexattr, [path.as_ptr() as u64, name.as_ptr() as u64, 0, 0, 0, 0]))
            }
            Op::ListXattr { at } => {
                let path = c(at);
                let mut list = vec![0; 1000];
                let n =
                    side.call(linux::__NR_llistxattr, [path.as_ptr() as u64, list.as_mut_ptr() as u64, 1000, 0, 0, 0])?;
                let mut names: Vec<String> = list[..n as usize]
                    .split(|b| *b == 0)
                    .map(|name| String::from_utf8_lossy(name).into_owned())
                    .collect();
                names.sort();
                Ok(Gave::Names(names))
            }
            other => unreachable!("{other:?} is an operation on files"),
        }
    }
}

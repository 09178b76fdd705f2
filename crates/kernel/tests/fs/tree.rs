//! The tree that both sides start from, and what it looks like in the end.

use crate::sides::{CWD, Outcome, Side};
use linux_raw_sys::general as linux;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

#[derive(Clone, Debug)]
pub(crate) enum Initial {
    File { size: usize, mode: u32 },
    Directory { mode: u32 },
    Symlink { target: &'static str },
    Hardlink { to: String },
}

/// Paths in the order of their making.
#[derive(Clone, Debug)]
pub(crate) struct InitialTree(Vec<(String, Initial)>);

/// Names that trees and operations use: few, so that they meet.
pub(crate) const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Targets of symbolic links.
pub(crate) const TARGETS: [&str; 7] = ["a", "b/c", "../a", ".", "c/", "nowhere", "../../b"];

fn initial() -> impl Strategy<Value = Initial> {
    prop_oneof![
        4 => (0..20_000usize, prop::sample::select(vec![0o644, 0o600, 0o4755, 0o2755, 0o444]))
            .prop_map(|(size, mode)| Initial::File { size, mode }),
        4 => prop::sample::select(vec![0o755, 0o1777, 0o2775, 0o700]).prop_map(|mode| Initial::Directory { mode }),
        1 => prop::sample::select(TARGETS.to_vec()).prop_map(|target| Initial::Symlink { target }),
        1 => path().prop_map(|to| Initial::Hardlink { to }),
    ]
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..4).prop_map(|names| names.join("/"))
}

pub(crate) fn initial_tree() -> impl Strategy<Value = InitialTree> {
    prop::collection::vec((path(), initial()), 0..24).prop_map(InitialTree)
}

/// How deep the operations' first working directory is, so that no `..` leads out of the tree.
const START_DEPTH: usize = 40;

/// Where the operations start.
pub(crate) fn start() -> String {
    vec!["w"; START_DEPTH].join("/")
}

/// Changes to the directory where the operations start; gives a descriptor of the present one.
pub(crate) fn enter(side: &mut impl Side, start: &str) -> u64 {
    let top = open(side, &CString::new(".").expect("no NUL"), linux::O_RDONLY).expect("the top is open");
    let path = CString::new(start).expect("no NUL");
    side.call(linux::__NR_chdir, [path.as_ptr() as u64, 0, 0, 0, 0, 0]).expect("the start is there");
    top
}

impl InitialTree {
    /// Makes what can be made; entries whose directory is missing or whose name is taken are left out.
    pub(crate) fn build(&self, root: &Path) {
        fs::create_dir_all(root).expect("the start");
        for (index, (path, initial)) in self.0.iter().enumerate() {
            let at = root.join(path);
            if fs::symlink_metadata(&at).is_ok() || !at.parent().is_some_and(Path::is_dir) {
                continue;
            }
            let mode = match initial {
                Initial::File { size, mode } => {
                    // No zero bytes, so that no tool makes holes of them.
                    let content: Vec<u8> = (0..*size).map(|i| (i % 251 + index) as u8 | 1).collect();
                    fs::write(&at, content).expect("a file");
                    Some(mode)
                }
                Initial::Directory { mode } => fs::create_dir(&at).ok().map(|()| mode),
                Initial::Symlink { target } => symlink(target, &at).ok().and(None),
                Initial::Hardlink { to } => fs::hard_link(root.join(to), &at).ok().and(None),
            };
            if let Some(mode) = mode {
                fs::set_permissions(&at, fs::Permissions::from_mode(*mode)).expect("a mode");
            }
            if index % 3 == 0 {
                set_xattr(&at, index);
            }
        }
        for (index, (path, _)) in self.0.iter().enumerate() {
            set_time(&root.join(path), 1_000_000 + index as i64);
        }
        set_time(root, 999_999);
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL")
}

fn set_time(path: &Path, sec: i64) {
    let time = libc::timespec { tv_sec: sec, tv_nsec: 123_456_789 };
    let path = c_path(path);
    // SAFETY: a NUL-terminated string and an array of two, alive for the call. The name may be missing: no matter.
    unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), [time; 2].as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
}

fn set_xattr(path: &Path, index: usize) {
    let value = format!("value {index}");
    let path = c_path(path);
    // SAFETY: NUL-terminated strings and a buffer with its length. Links and devices take none: no matter.
    unsafe { libc::lsetxattr(path.as_ptr(), c"user.index".as_ptr(), value.as_ptr().cast(), value.len(), 0) };
}

/// What can be compared of a file's state. Inode numbers are replaced by the first path that they were seen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    path: String,
    stat: Result<Stat, i32>,
    same_as: Option<String>,
    content: Option<Result<Vec<u8>, i32>>,
    target: Option<Result<Vec<u8>, i32>>,
    xattr: Result<Vec<u8>, i32>,
    names: Option<Result<Vec<String>, i32>>,
}

/// The comparable part of a `struct stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    mode: u32,
    nlink: u64,
    uid: u32,
    gid: u32,
    /// Not of directories: file systems count differently.
    size: Option<i64>,
    /// In seconds, `None` if it was set during the test: the clocks differ.
    mtime: Option<i64>,
    rdev: u64,
}

impl Stat {
    pub(crate) fn is_directory(&self) -> bool {
        self.mode & linux::S_IFMT == linux::S_IFDIR
    }
}

/// Times that the test sets; the clocks of both sides are outside.
const SET_S: std::ops::Range<i64> = 900_000..900_000_000;

/// Calls a stat call whose result buffer is argument `at`.
pub(crate) fn stat(side: &mut impl Side, number: u32, mut args: [u64; 6], at: usize) -> Result<(Stat, u64), i32> {
    let mut raw = std::mem::MaybeUninit::<linux::stat>::zeroed();
    args[at] = raw.as_mut_ptr() as u64;
    side.call(number, args)?;
    // SAFETY: zeroed to begin with, and filled by the call.
    let raw = unsafe { raw.assume_init() };
    let directory = raw.st_mode & linux::S_IFMT == linux::S_IFDIR;
    let mtime = raw.st_mtime.cast_signed();
    let stat = Stat {
        mode: raw.st_mode,
        nlink: raw.st_nlink,
        uid: raw.st_uid,
        gid: raw.st_gid,
        size: (!directory).then_some(raw.st_size),
        mtime: SET_S.contains(&mtime).then_some(mtime),
        rdev: raw.st_rdev,
    };
    Ok((stat, raw.st_ino))
}

/// The names in an open directory, from the start, sorted.
pub(crate) fn list(side: &mut impl Side, fd: u64, buffer_bytes: usize) -> Result<Vec<String>, i32> {
    side.call(linux::__NR_lseek, [fd, 0, 0, 0, 0, 0])?;
    let mut names = Vec::new();
    let mut buffer = vec![0u8; buffer_bytes];
    loop {
        let n = side.call(linux::__NR_getdents64, [fd, buffer.as_mut_ptr() as u64, buffer_bytes as u64, 0, 0, 0])?;
        if n == 0 {
            names.sort();
            return Ok(names);
        }
        let mut at = 0;
        while at < n as usize {
            let len = u16::from_ne_bytes([buffer[at + 16], buffer[at + 17]]) as usize;
            let name = &buffer[at + 19..at + len];
            let end = name.iter().position(|b| *b == 0).expect("a NUL");
            names.push(format!("{} type {}", String::from_utf8_lossy(&name[..end]), buffer[at + 18]));
            at += len;
        }
    }
}

/// Everything below `top`.
pub(crate) fn snapshot(side: &mut impl Side, top: u64) -> Vec<Seen> {
    side.call(linux::__NR_fchdir, [top, 0, 0, 0, 0, 0]).expect("the top is open");
    let mut seen = Vec::new();
    let mut first_path = BTreeMap::new();
    look(side, ".", &mut seen, &mut first_path, 0);
    seen
}

fn open(side: &mut impl Side, path: &CString, flags: u32) -> Outcome {
    side.call(linux::__NR_openat, [CWD, path.as_ptr() as u64, u64::from(flags), 0, 0, 0])
}

fn look(side: &mut impl Side, path: &str, seen: &mut Vec<Seen>, inodes: &mut BTreeMap<u64, String>, depth: usize) {
    let c_path = CString::new(path).expect("no NUL");
    let pointer = c_path.as_ptr() as u64;
    let found = stat(side, linux::__NR_newfstatat, [CWD, pointer, 0, u64::from(linux::AT_SYMLINK_NOFOLLOW), 0, 0], 2);
    let (stat, same_as) = match found {
        Ok((stat, ino)) => {
            let first = inodes.entry(ino).or_insert_with(|| path.to_owned()).clone();
            (Ok(stat), Some(first))
        }
        Err(error) => (Err(error), None),
    };
    let kind = stat.as_ref().map_or(0, |stat| stat.mode & linux::S_IFMT);
    let mut value = vec![0; 4096];
    let get = [pointer, c"user.index".as_ptr() as u64, value.as_mut_ptr() as u64, 4096, 0, 0];
    let xattr = side.call(linux::__NR_lgetxattr, get).map(|n| value[..n as usize].to_vec());
    let mut entry = Seen { path: path.into(), stat, same_as, content: None, target: None, xattr, names: None };
    let mut below = Vec::new();
    match kind {
        linux::S_IFREG => {
            entry.content = Some(open(side, &c_path, linux::O_RDONLY).and_then(|fd| {
                let mut content = vec![0; 1 << 20];
                let read = [fd, content.as_mut_ptr() as u64, 1 << 20, 0, 0, 0];
                let n = side.call(linux::__NR_pread64, read);
                side.call(linux::__NR_close, [fd, 0, 0, 0, 0, 0]).expect("closes");
                content.truncate(n? as usize);
                Ok(content)
            }));
        }
        linux::S_IFLNK => {
            let mut target = vec![0; 4096];
            let args = [CWD, pointer, target.as_mut_ptr() as u64, 4096, 0, 0];
            entry.target = Some(side.call(linux::__NR_readlinkat, args).map(|n| target[..n as usize].to_vec()));
        }
        linux::S_IFDIR => {
            let names = open(side, &c_path, linux::O_RDONLY | linux::O_DIRECTORY).and_then(|fd| {
                let names = list(side, fd, 300 + depth * 10);
                side.call(linux::__NR_close, [fd, 0, 0, 0, 0, 0]).expect("closes");
                names
            });
            if let Ok(names) = &names {
                below
                    .extend(names.iter().filter_map(|name| name.split_once(" type ")).map(|(name, _)| name.to_owned()));
            }
            entry.names = Some(names);
        }
        _ => {}
    }
    seen.push(entry);
    if depth < START_DEPTH + 12 {
        for name in below.iter().filter(|name| *name != "." && *name != "..") {
            look(side, &format!("{path}/{name}"), seen, inodes, depth + 1);
        }
    }
}

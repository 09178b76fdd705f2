//! The name space of a new VM: the image's root with a writable layer, /proc, /dev and /run/torpor.

use super::caller::Caller;
use super::context::{FsContext, Location};
use super::file::{OpenFile, OpenFlags};
use super::inode::{FileType, NewInode};
use super::mount::{self, Description, MountFlags};
use super::open::{self, How};
use super::overlay::{Limits, Lower, Tree};
use super::path::Resolve;
use super::{generated, names, proc};
use crate::errno::{Errno, Result};
use crate::mm::frame;
use crate::mm::user::Source;
use crate::task::creds::Credentials;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

/// Limits of a tmpfs for which nothing else is said: half of the memory, and a quarter of it for names.
#[must_use]
pub fn default_limits() -> Limits {
    let bytes = frame::usage().limit_bytes;
    Limits { pages: (bytes / 2).div_ceil(4096), metadata_bytes: bytes / 4 }
}

fn description(fs_type: &'static str, source: &str, options: &str) -> Description {
    Description { fs_type, source: source.as_bytes().into(), options: String::from(options) }
}

/// Mounts everything; gives the context of the first process.
///
/// # Errors
/// EUCLEAN for a damaged image, ENOMEM.
pub fn init(lower: Lower) -> Result<Rc<FsContext>> {
    let limits = Limits { pages: frame::usage().limit_bytes.div_ceil(4096), ..default_limits() };
    let root = mount::mount_root(Tree::over(lower, limits)?, description("overlay", "overlay", ""))?;
    root.mount.flags.set(root.mount.flags.get() | MountFlags::RELATIME);
    let context = FsContext::new(root);
    let caller = Caller { creds: Rc::new(Credentials::root()), fs: Rc::clone(&context) };
    for directory in ["/proc", "/sys", "/dev", "/run", "/tmp"] {
        make_directory(&caller, directory, if directory == "/tmp" { 0o1777 } else { 0o755 })?;
    }
    let plain = MountFlags::NOSUID | MountFlags::RELATIME;
    let place = |path: &str| caller.find(linux_raw_sys::general::AT_FDCWD, path.as_bytes(), true);
    mount::mount(
        &place("/proc")?,
        proc::root(),
        description("proc", "proc", ""),
        plain | MountFlags::NODEV | MountFlags::NOEXEC,
    )?;
    mount::mount(
        &place("/sys")?,
        super::sys::root(),
        description("sysfs", "sysfs", ""),
        plain | MountFlags::NODEV | MountFlags::NOEXEC,
    )?;
    #[cfg(not(feature = "hosted"))]
    {
        make_directory(&caller, "/uk", 0o755)?;
        mount::mount(
            &place("/uk")?,
            crate::snapshot::uk_root(),
            description("uk", "uk", ""),
            plain | MountFlags::NODEV,
        )?;
    }
    mount::mount(
        &place("/sys/fs/cgroup")?,
        super::sys::control_group(),
        description("cgroup2", "cgroup2", ""),
        plain | MountFlags::NODEV | MountFlags::NOEXEC,
    )?;
    let directory = NewInode { file_type: FileType::Directory, mode: 0o755, uid: 0, gid: 0, rdev: 0 };
    mount::mount(
        &place("/dev")?,
        Tree::tmpfs(default_limits(), &directory)?,
        description("tmpfs", "tmpfs", "mode=755"),
        plain,
    )?;
    fill_dev(&caller)?;
    make_directory(&caller, "/dev/pts", 0o755)?;
    make_directory(&caller, "/dev/shm", 0o1777)?;
    mount::mount(
        &place("/dev/pts")?,
        super::devpts::root(),
        description("devpts", "devpts", "mode=620,ptmxmode=666"),
        plain | MountFlags::NOEXEC,
    )?;
    let shared = NewInode { mode: 0o1777, ..directory };
    mount::mount(
        &place("/dev/shm")?,
        Tree::tmpfs(default_limits(), &shared)?,
        description("tmpfs", "shm", ""),
        plain | MountFlags::NODEV,
    )?;
    Ok(context)
}

fn tolerate_existing<T>(result: Result<T>) -> Result<()> {
    match result {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

fn make_directory(caller: &Caller, path: &str, mode: u32) -> Result<()> {
    let new = NewInode { file_type: FileType::Directory, mode, uid: 0, gid: 0, rdev: 0 };
    tolerate_existing(names::make(caller, caller.walk_at(linux_raw_sys::general::AT_FDCWD, path.as_bytes())?, new))
}

fn fill_dev(caller: &Caller) -> Result<()> {
    for (name, rdev, mode) in crate::dev::NODES {
        let path = alloc::format!("/dev/{name}");
        let new = NewInode { file_type: FileType::CharDevice, mode: *mode, uid: 0, gid: 0, rdev: *rdev };
        names::make(caller, caller.walk_at(linux_raw_sys::general::AT_FDCWD, path.as_bytes())?, new)?;
    }
    for (name, target) in crate::dev::LINKS {
        let path = alloc::format!("/dev/{name}");
        names::symlink(caller, caller.walk_at(linux_raw_sys::general::AT_FDCWD, path.as_bytes())?, target.as_bytes())?;
    }
    Ok(())
}

/// Writes a small file, with the directories above it, as root.
///
/// # Errors
/// As open(2) and write(2).
pub fn write_file(context: &Rc<FsContext>, path: &str, content: &[u8]) -> Result<()> {
    let caller = Caller { creds: Rc::new(Credentials::root()), fs: Rc::clone(context) };
    for (at, _) in path.match_indices('/').skip(1) {
        make_directory(&caller, &path[..at], 0o755)?;
    }
    let start: Location = context.root.borrow().clone();
    let flags = OpenFlags::WRONLY | OpenFlags::CREAT | OpenFlags::TRUNC;
    let file: Rc<OpenFile> =
        open::open(&caller, start, path.as_bytes(), How { flags, mode: 0o644, resolve: Resolve::empty() })?;
    file.write(&mut Source::kernel(content))?;
    Ok(())
}

/// Reads a small file (at most 1 MiB), as root.
///
/// # Errors
/// As open(2) and read(2).
pub fn read_file(context: &Rc<FsContext>, path: &str) -> Result<Vec<u8>> {
    let caller = Caller { creds: Rc::new(Credentials::root()), fs: Rc::clone(context) };
    let start: Location = context.root.borrow().clone();
    let file = open::open(
        &caller,
        start,
        path.as_bytes(),
        How { flags: OpenFlags::empty(), mode: 0, resolve: Resolve::empty() },
    )?;
    let mut content = alloc::vec![0; (file.metadata().size as usize).min(1 << 20)];
    let mut len = 0;
    loop {
        let n = file.read(&mut crate::mm::user::Dest::kernel(&mut content[len..]))?;
        len += n;
        if n == 0 || len == content.len() {
            content.truncate(len);
            return Ok(content);
        }
    }
}

/// Device number and magic for /sys and /dev/pts.
pub(crate) fn home(magic: u64) -> generated::Home {
    generated::Home { dev: super::device::anonymous(), magic }
}

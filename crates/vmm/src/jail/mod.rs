//! What a VM process gives up before it looks at the first byte of a guest or of a snapshot.
//!
//! In this order: names of the host (user, mount, IPC and UTS namespaces of its own, a root directory that is empty and
//! read-only), resources, privileges, and last, in [`filter`], system calls. It keeps the descriptors that it was given.
//!
//! There is no network namespace: making one takes 0.7 ms, and 15 ms while others are made, which is longer than all the
//! rest of a VM process's start; no system call that could use it passes the filter. There is no PID namespace: a process
//! can't enter one without a fork, and the filter lets no signal out.

pub mod filter;

use rustix::fs::{CWD, Mode, OFlags, openat};
use std::io;
use std::os::fd::OwnedFd;

/// Descriptors that a VM process has at most: its own, and those of a few messages.
const MAX_DESCRIPTORS: u64 = 256;
/// No memory file becomes larger.
const MAX_FILE_BYTES: u64 = 32 << 30;

/// Gives up everything but system calls. What the host does not permit is left out; the text says what, for people.
///
/// # Errors
/// A text, where the process would keep a privilege.
pub fn enter() -> Result<Option<String>, String> {
    let fail = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    // Among all processes these are the first to go: they hold the most, and nothing that is not stored elsewhere.
    let _ = write("/proc/self/oom_score_adj", "1000");
    let missing =
        leave_host().err().map(|error| format!("no namespaces ({error}): system calls are filtered all the same"));
    // Where a thread has a heap of its own glibc opens a file before that heap shrinks, which the filter does not let pass.
    // SAFETY: changes a setting of this process, which has one thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    limit().map_err(fail("setrlimit"))?;
    drop_privileges().map_err(fail("dropping privileges"))?;
    Ok(missing)
}

fn leave_host() -> io::Result<()> {
    // SAFETY: asks for a number.
    let user = unsafe { libc::geteuid() };
    // SAFETY: concerns this process alone, which has one thread or shares nothing of this between its threads.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) })?;
    // The same number inside, so that a peer's can be compared with ours.
    write("/proc/self/uid_map", &format!("{user} {user} 1"))?;
    let root = empty_directory()?;
    rustix::process::fchdir(&root)?;
    rustix::process::chroot(".")?;
    Ok(())
}

/// The root of a file system that is in no name space.
fn empty_directory() -> io::Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

fn limit() -> io::Result<()> {
    for (resource, most) in [
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_MEMLOCK, 0),
        (libc::RLIMIT_MSGQUEUE, 0),
        (libc::RLIMIT_RTPRIO, 0),
        (libc::RLIMIT_NOFILE, MAX_DESCRIPTORS),
        (libc::RLIMIT_FSIZE, MAX_FILE_BYTES),
    ] {
        let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: fills in the structure.
        check(unsafe { libc::getrlimit(resource, &raw mut now) })?;
        // Never more than there was.
        let new = libc::rlimit { rlim_cur: most.min(now.rlim_max), rlim_max: most.min(now.rlim_max) };
        // SAFETY: reads the structure.
        check(unsafe { libc::setrlimit(resource, &raw const new) })?;
    }
    Ok(())
}

fn drop_privileges() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// _LINUX_CAPABILITY_VERSION_3, which has two words of each set.
    const VERSION: u32 = 0x2008_0522;
    let header = Header { version: VERSION, pid: 0 };
    let none = [0_u32; 6];
    // SAFETY: prctl(2) with numbers; capset(2) reads the two structures, which are as version 3 wants them.
    unsafe {
        // Fails where there is no privilege to give up, or no such capability.
        for capability in 0..64 {
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) as i32)?;
        // After this nobody without privilege may look into the process.
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn write(path: &str, text: &str) -> io::Result<()> {
    let file = openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, text.as_bytes())?;
    Ok(())
}

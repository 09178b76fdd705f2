//! This process among others: what it keeps of its parent's, how it ends, and how much memory it holds.

use super::Fatal;
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use torpor_abi::layout::{PAGE_BYTES, ram_bytes};
use torpor_streams::link::{Message, report};

/// Ends the process at once: what it holds is the kernel's to clean up.
pub(super) fn exit() -> ! {
    // SAFETY: runs no destructors and no handlers, and does not return.
    unsafe { libc::_exit(0) }
}

/// Ends this process when its parent ends. To be called when its credentials change no more: that undoes it.
///
/// # Errors
/// [`Fatal::System`].
pub(super) fn die_with(parent: Pid) -> Result<(), Fatal> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Fatal::system("prctl"))?;
    if rustix::process::getppid() != Some(parent) {
        // The parent was gone before prctl(2) could know it.
        exit();
    }
    Ok(())
}

/// Makes the forked process one of its own: it receives no signals of the terminal, and holds no descriptors but `keep` and
/// /dev/null as its standard streams.
///
/// # Errors
/// [`Fatal::System`].
pub(super) fn isolate(keep: &[BorrowedFd<'_>]) -> Result<(), Fatal> {
    rustix::process::setsid().map_err(Fatal::system("setsid"))?;
    reset_signals();
    let null = File::options().read(true).write(true).open("/dev/null").map_err(Fatal::system("/dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(Fatal::system("dup2"))?;
    rustix::stdio::dup2_stdout(&null).map_err(Fatal::system("dup2"))?;
    rustix::stdio::dup2_stderr(&null).map_err(Fatal::system("dup2"))?;
    drop(null);
    close_all_but(keep)
}

/// The broker has blocked the signals that it reads from a descriptor; here they have their default effect.
fn reset_signals() {
    // SAFETY: an empty set is initialised by sigemptyset, and setting the mask of the only thread can't fail.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

fn close_all_but(keep: &[BorrowedFd<'_>]) -> Result<(), Fatal> {
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for kept in keep.into_iter().chain([u32::MAX]) {
        if first < kept {
            // SAFETY: no one in this process owns these descriptors any more: the broker's owners are never dropped here,
            // because this process only ever ends through `exit`.
            let closed = unsafe { libc::syscall(libc::SYS_close_range, first, kept - 1, 0) };
            if closed != 0 {
                return Err(Fatal::system("close_range")(std::io::Error::last_os_error()));
            }
        }
        first = kept.saturating_add(1);
    }
    Ok(())
}

/// Reports a panic of this process to the broker: it has no standard error to print to.
pub(super) fn report_panics(link: BorrowedFd<'static>) {
    std::panic::set_hook(Box::new(move |info| {
        let mut message = Message::default();
        message.push_report(report::FAILED, 0, &format!("the VM process panicked: {info}"));
        // Without room the broker still sees the process end.
        let _ = message.send(link);
        exit();
    }));
}

/// Keeps a descriptor open for the rest of the process.
pub(super) fn keep_for_ever(fd: &OwnedFd) -> BorrowedFd<'static> {
    // SAFETY: the caller's owner lives in the `Machine`, which is never dropped.
    unsafe { BorrowedFd::borrow_raw(fd.as_fd().as_raw_fd()) }
}

/// How much anonymous memory this process holds, against a bound.
#[derive(Debug)]
pub(super) struct ResidentMemory {
    statm: File,
    bound_bytes: u64,
}

impl ResidentMemory {
    /// Opens what [`ResidentMemory::new`] needs.
    ///
    /// # Errors
    /// [`Fatal::System`].
    pub(super) fn open() -> Result<File, Fatal> {
        File::open("/proc/self/statm").map_err(Fatal::system("/proc/self/statm"))
    }

    /// For a VM whose programs may use `limit_bytes`. The kernel's own records (page tables, a descriptor of each frame),
    /// whole large pages and this process come on top.
    pub(super) fn new(statm: File, limit_bytes: u64) -> Self {
        let bound_bytes = limit_bytes + limit_bytes / 8 + ram_bytes(limit_bytes) / 32 + (48 << 20);
        Self { statm, bound_bytes }
    }

    /// What this process has of its own.
    ///
    /// # Errors
    /// [`Fatal::System`].
    pub(super) fn used_bytes(&self) -> Result<u64, Fatal> {
        let mut text = [0; 128];
        let len = self.statm.read_at(&mut text, 0).map_err(Fatal::system("/proc/self/statm"))?;
        Ok(anonymous_pages(&text[..len]).unwrap_or(0) * PAGE_BYTES)
    }

    /// # Errors
    /// [`Fatal::Resident`] where the bound is broken.
    pub(super) fn check(&self) -> Result<(), Fatal> {
        let used_bytes = self.used_bytes()?;
        if used_bytes > self.bound_bytes {
            return Err(Fatal::Resident { used_mib: used_bytes >> 20, bound_mib: self.bound_bytes >> 20 });
        }
        Ok(())
    }
}

/// proc(5): size, resident, shared, ...; what is resident and not shared is anonymous.
fn anonymous_pages(statm: &[u8]) -> Option<u64> {
    let text = str::from_utf8(statm).ok()?;
    let mut fields = text.split_ascii_whitespace().skip(1).map(|field| field.parse::<u64>().ok());
    Some(fields.next()??.saturating_sub(fields.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_memory_is_what_is_not_shared() {
        assert_eq!(anonymous_pages(b"1000 300 100 5 0 200 0\n"), Some(200));
        assert_eq!(anonymous_pages(b""), None);
    }

    #[test]
    fn the_bound_is_checked() {
        let mut resident = ResidentMemory::new(ResidentMemory::open().expect("proc"), 64 << 20);
        resident.check().expect("a test is small");
        resident.bound_bytes = 0;
        assert!(matches!(resident.check(), Err(Fatal::Resident { .. })));
    }
}

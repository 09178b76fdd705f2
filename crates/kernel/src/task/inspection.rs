//! Who may look into another process, and change it: "Ptrace access mode checking" of ptrace(2).

use super::current;
use super::thread::Thread;
use crate::errno::{Errno, Result};
use linux_raw_sys::general::CAP_SYS_PTRACE;

/// Whether the current thread may attach to another one (PTRACE_MODE_ATTACH_REALCREDS).
///
/// # Errors
/// EPERM.
pub fn check(thread: &Thread) -> Result<()> {
    let me = current();
    if me.process.pid() == thread.process.pid() {
        return Ok(());
    }
    let (mine, theirs) = (me.creds(), thread.creds());
    let same_user = [theirs.uid, theirs.euid, theirs.suid].iter().all(|id| *id == mine.uid);
    let same_group = [theirs.gid, theirs.egid, theirs.sgid].iter().all(|id| *id == mine.gid);
    let subset = theirs.permitted & !mine.permitted == 0;
    let equal = same_user && same_group && subset && thread.process.dumpable.get();
    if equal || mine.has(CAP_SYS_PTRACE) { Ok(()) } else { Err(Errno::EPERM) }
}

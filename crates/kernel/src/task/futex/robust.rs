//! Robust locks: what becomes of locks whose owner ends (get_robust_list(2), and Linux's
//! Documentation/locking/robust-futex-ABI.rst).

use super::{MATCH_ANY, Scope, wake};
use crate::errno::Result;
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::current;
use linux_raw_sys::general::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS, ROBUST_LIST_LIMIT};

/// A pointer of the list: the lowest bit says that the lock is one that the kernel hands over.
fn entry(word: u64) -> (u64, bool) {
    (word & !1, word & 1 != 0)
}

/// The current thread is about to end, or its program to be replaced: marks the locks that it holds and wakes a waiter of
/// each. The list is the program's: where it is broken, this stops.
pub fn thread_exits() {
    let head = current().robust_list.replace(UserAddr::NULL);
    if !head.is_null() {
        // Nobody is left to be told of a list that can't be read.
        let _ = walk(head);
    }
    super::pi::owner_exits();
}

fn walk(head: UserAddr) -> Result<()> {
    let [first, offset, pending] = user::read::<[u64; 3]>(head)?;
    let (pending, pending_pi) = entry(pending);
    let (mut at, mut pi) = entry(first);
    let mut left = ROBUST_LIST_LIMIT;
    while at != head.0 && left > 0 {
        // Read before the lock is given away: its memory may be gone then.
        let next = user::read::<u64>(UserAddr(at));
        if at != pending {
            release(UserAddr(at.wrapping_add(offset)), pi, false)?;
        }
        (at, pi) = entry(next?);
        left -= 1;
    }
    if pending != 0 {
        release(UserAddr(pending.wrapping_add(offset)), pending_pi, true)?;
    }
    Ok(())
}

fn release(addr: UserAddr, pi: bool, pending: bool) -> Result<()> {
    let tid = current().tid();
    let old =
        user::update_u32(addr, |old| (old & FUTEX_TID_MASK == tid).then_some(old & FUTEX_WAITERS | FUTEX_OWNER_DIED))?;
    let owner = old & FUTEX_TID_MASK;
    // An unlock that was cut off between clearing the word and waking, or a lock that others wait for. Locks that the
    // kernel hands over are handed over by it.
    if !pi && (pending && owner == 0 || owner == tid && old & FUTEX_WAITERS != 0) {
        wake(addr, Scope::Shared, 1, MATCH_ANY)?;
    }
    Ok(())
}

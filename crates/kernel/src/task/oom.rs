//! What happens when memory is short: a process ends, as under Linux's OOM killer.
//!
//! Programs' pages are refused once the limit is reached. What the kernel takes for itself (sockets, descriptors, messages)
//! is not refused: a call that is half done can't go on without it. Whoever makes a call after which the kernel holds more
//! than the limit and a reserve makes room instead, before the call returns. So one call's need is all that the limit may be
//! exceeded by; the RAM behind it is several times as large, and the VM process's own bound leaves room for that.
//!
//! What a call writes to a program once its work is done (an address, a status, a signal's frame) can't be refused either: the
//! work would be lost. A page for it is lent, and again somebody makes room before the call returns.

use super::exit::exit_group;
use super::process::Process;
use super::sched::{self, Sleep};
use super::status::WaitStatus;
use super::{current, log, pid, signal};
use crate::mm::addr::PAGE_BYTES;
use crate::mm::frame;
use alloc::rc::Rc;

/// Pages that a thread is lent at most before it makes room: enough for the results of any call, not for all that read(2)
/// can be asked for, of which a part is an answer as well.
const LENT_PAGES: u32 = 32;

/// Frames that one page can need: with an object's own page and the tables on the way to it.
const FRAMES_FOR_A_PAGE: u64 = 8;

/// Makes room if the kernel holds too much, or the thread was lent something: at the end of a system call, with nothing
/// borrowed.
pub fn relieve() {
    let is_lent = current().lent_pages.replace(0) > 0;
    while frame::kernel_exceeds() || is_lent && frame::limit_exceeded() {
        if !make_room() {
            return;
        }
    }
}

/// Does what has failed for want of a page again, with one page beyond the limit, if the current thread may have one more.
pub fn lend<R>(again: impl FnOnce() -> R) -> R {
    let pages = &current().lent_pages;
    if pages.get() == LENT_PAGES {
        return again();
    }
    pages.set(pages.get() + 1);
    frame::beyond_limit(FRAMES_FOR_A_PAGE, again)
}

/// Ends a process for its memory and waits until it has let go of it. Whether the caller may go on: not if it is the one.
pub fn make_room() -> bool {
    let victim = pid::processes().into_iter().find(|process| process.is_alive() && process.is_exiting());
    let victim = victim.unwrap_or_else(kill);
    if Rc::ptr_eq(&victim, &current().process) {
        return false;
    }
    // A tracer that is to look at its end may be who waits here.
    victim.makes_room.set(true);
    victim.threads().iter().for_each(|thread| thread.interrupt());
    let ended = || (!victim.is_alive()).then_some(());
    sched::wait_until(&[&victim.own_events], None, Sleep::Killable, ended).is_ok()
}

/// Marks the process that uses most memory to end; the process that asked is as good as any other for the score. It may be
/// the caller's.
fn kill() -> Rc<Process> {
    sched::account();
    let victim = pid::processes()
        .into_iter()
        .filter(|process| process.is_alive() && process.oom_score_adj.get() > -1000)
        .filter_map(|process| Some((score(&process)?, process)))
        .max_by_key(|(score, process)| (*score, process.pid()));
    let victim = victim.map_or_else(|| Rc::clone(&current().process), |(_, process)| process);
    let resident_kib = victim.try_space().map_or(0, |space| space.resident_bytes() / 1024);
    log::message(format_args!(
        "Out of memory: Killed process {} ({}) total-rss:{resident_kib}kB kernel:{}kB",
        victim.pid(),
        victim.name().escape_ascii(),
        kernel_bytes(&victim) / 1024,
    ));
    victim.out_of_memory.set(true);
    exit_group(&victim, WaitStatus::signaled(signal::SIGKILL.number(), false));
    victim
}

/// What the kernel took while it worked for the process, less what it gave back.
fn kernel_bytes(process: &Process) -> u64 {
    process.kernel_pages.get().max(0).cast_unsigned() * PAGE_BYTES
}

/// Bytes, shifted by thousandths of the memory limit; `None` for what can't give any memory back.
fn score(process: &Process) -> Option<i64> {
    let space = process.try_space()?;
    if process.is_exiting() {
        return None;
    }
    let total = frame::usage().limit_bytes.cast_signed();
    let used = (space.resident_bytes() + kernel_bytes(process)).cast_signed();
    Some(used + total / 1000 * i64::from(process.oom_score_adj.get()))
}

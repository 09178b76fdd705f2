//! Stopping the VM so that all of its state is in its memory, and going on from there (`torpor_abi::handover`).
//!
//! A stop happens at one of two points, both on the current thread's kernel stack with no borrow held: where nothing is
//! runnable, and last thing before a return to a program. What `snapshot_stop` returns to may be the same VM a moment
//! later, or a clone of it in another process, on another machine, years later: [`restored`] makes up for that before
//! any program runs.

mod awake;
mod fork_id;
mod identity;
mod point;
mod ready;
mod restored;
mod symbols;
mod uk;

pub use fork_id::process_number;
pub use identity::Identity;
pub use ready::listening;
pub use restored::generation;
pub(crate) use uk::root as uk_root;

use crate::arch::thread;
use crate::fs::context::FsContext;
use crate::host::{self, control};
use crate::mm::{frame, paging};
use crate::task::process::Process;
use crate::task::{pid, sched};
use crate::time::{self, Instant};
use alloc::rc::Rc;
use core::ptr::write_volatile;
use core::sync::atomic::Ordering;
use torpor_abi::boot::READY_PORTS_MAX;
use torpor_abi::handover::{Handover, command, quiesce, reason};
use torpor_abi::layout::{DIRECT_MAP_BASE, HANDOVER_GPA, HANDOVER_LIST_GPA, HANDOVER_LIST_MAX};

/// Called at boot: `fs` is the name space in which the first program runs, `ready_ports` those at which it is ready, where a
/// stop then is wanted.
pub fn start(fs: Rc<FsContext>, ready_ports: Option<[u16; READY_PORTS_MAX]>) {
    restored::set_fs(fs);
    if let Some(ports) = ready_ports {
        ready::want(ports);
    }
}

fn handover() -> &'static Handover {
    // SAFETY: in the direct map for ever; words are atomics, and the byte arrays are written by the VM process only while
    // the vCPU does not run.
    unsafe { &*((DIRECT_MAP_BASE + HANDOVER_GPA) as *const Handover) }
}

/// Stops if the VM process wants it or the program is ready; returns whether it did. `idle`: nothing is runnable.
pub fn stop_if_wanted(idle: bool) -> bool {
    let wanted = control().quiesce.load(Ordering::Relaxed);
    let requested = wanted == quiesce::AT_ENTRY || (wanted == quiesce::AT_IDLE && idle && !awake::is_held());
    if requested {
        stop(reason::REQUESTED);
    } else if ready::is_due(idle) {
        ready::done();
        stop(reason::READY);
    } else {
        return false;
    }
    true
}

fn stop(reason: u32) {
    thread::save_running();
    let before = restored::Before::now();
    describe();
    point::stop(reason);
    thread::load_running();
    match handover().command.load(Ordering::Acquire) {
        command::RESUME => restored::restored(&before),
        command::RELINK => {
            let unsent_bytes = handover().unsent_bytes.each_ref().map(|bytes| bytes.load(Ordering::Relaxed));
            host::relinked(unsent_bytes);
            awake::reattached();
        }
        _ => {}
    }
}

/// Tells the VM process what it has to know of the memory.
fn describe() {
    let handover = handover();
    let (tables, bytes) = paging::range();
    handover.tables_gpa.store(tables.0, Ordering::Relaxed);
    handover.tables_bytes.store(bytes, Ordering::Relaxed);
    let next = sched::next_deadline();
    let left_ns = if next == Instant::FAR { u64::MAX } else { next.0.saturating_sub(time::now().0) };
    handover.next_deadline_ns.store(left_ns, Ordering::Relaxed);
    let wiped = |process: Rc<Process>| process.try_space().is_some_and(|space| space.has_wiped_areas());
    handover.drew_random.store(u32::from(pid::processes().into_iter().any(wiped)), Ordering::Relaxed);
    let mut entries = 0;
    frame::each_free_dirty(|gpa, len| {
        // What finds no room is kept in the snapshot: larger, not wrong.
        if entries < HANDOVER_LIST_MAX {
            let pair = (DIRECT_MAP_BASE + HANDOVER_LIST_GPA + u64::from(entries) * 16) as *mut u64;
            // SAFETY: within the list, which is the guest's to write until it rings the doorbell.
            unsafe {
                write_volatile(pair, gpa.0);
                write_volatile(pair.add(1), len);
            }
            entries += 1;
        }
    });
    handover.entries.store(entries, Ordering::Release);
}

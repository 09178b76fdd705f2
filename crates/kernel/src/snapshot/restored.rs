//! What has to happen before any program goes on in another place and at another time than it was stopped.

use super::handover;
use super::identity::Identity;
use crate::arch::trap;
use crate::fs::context::FsContext;
use crate::fs::proc;
use crate::task::{pid, uts};
use crate::{host, random, rewrite, time};
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::sync::atomic::Ordering;
use torpor_abi::handover::HOST_NAME_BYTES;

struct State {
    fs: RefCell<Option<Rc<FsContext>>>,
    generation: Cell<u64>,
}

crate::global! {
    static STATE: State = State { fs: RefCell::new(None), generation: Cell::new(0) };
}

/// Generation of the instance's state: 0 at boot, from then on what the VM process says at each restore.
#[must_use]
pub fn generation() -> u64 {
    STATE.with(|state| state.generation.get())
}

/// Keeps the name space of the first program, in which identity files lie.
pub(super) fn set_fs(fs: Rc<FsContext>) {
    STATE.with(|state| state.fs.replace(Some(fs)));
}

/// The name space of the first program.
pub(super) fn fs() -> Option<Rc<FsContext>> {
    STATE.with(|state| state.fs.borrow().clone())
}

/// The clocks at the stop.
pub(super) struct Before {
    monotonic_ns: u64,
    boottime_ns: u64,
    realtime_ns: u64,
}

impl Before {
    pub(super) fn now() -> Self {
        Self { monotonic_ns: time::now().0, boottime_ns: time::boottime_ns(), realtime_ns: time::realtime_ns() }
    }
}

pub(super) fn restored(before: &Before) {
    let handover = handover();
    trap::forget_events();
    rewrite::restored();
    let slept_ns = handover.slept_ns.load(Ordering::Relaxed);
    time::resume(
        handover.tsc_hz.load(Ordering::Relaxed),
        (handover.host_monotonic_ns.load(Ordering::Relaxed), handover.host_realtime_ns.load(Ordering::Relaxed)),
        before.monotonic_ns,
        before.boottime_ns.saturating_add(slept_ns),
        before.realtime_ns.saturating_add(slept_ns),
    );
    random::reseed(&handover.seed);
    super::fork_id::renew();
    proc::forget_boot_id();
    crate::dev::renew_generation();
    let generation = handover.generation.load(Ordering::Relaxed);
    STATE.with(|state| state.generation.set(generation));
    identify(generation);
    for process in pid::processes() {
        if let Some(space) = process.try_space() {
            // Fails for want of a page table only: an area that can't be wiped may not be seen again.
            space.wipe().unwrap_or_else(|error| panic!("memory under MADV_WIPEONFORK can't be wiped: {error:?}"));
        }
    }
    host::stream::reattached([0; 3]);
    host::connection::moved(generation as u32);
    super::awake::reattached();
    time::note_step(false);
}

fn identify(generation: u64) {
    let handover = handover();
    let before = uts::host_name();
    let len = (handover.host_name_len.load(Ordering::Relaxed) as usize).min(HOST_NAME_BYTES);
    if len > 0 {
        // No longer than a host name may be.
        let _ = uts::set_host_name(&handover.host_name[..len]);
    }
    let name = uts::host_name();
    let identity = Identity { uuid: &handover.uuid, name: &name, generation };
    let Some(fs) = fs() else { return };
    if let Err(error) = identity.write(&fs) {
        // A full file system, say: a wrong identity would be worse than none.
        host::stream::log(format_args!("/run/torpor/instance could not be written: {error}"));
        let _ = crate::fs::init::write_file(&fs, "/run/torpor/instance", b"");
    }
    if name != before
        && let Err(error) = crate::hosts::write(&fs, &name)
    {
        host::stream::log(format_args!("/etc/hosts could not be written: {error}"));
    }
}

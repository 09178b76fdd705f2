//! Who has which id: threads, processes, process groups and sessions share one number space.

use super::process::Process;
use super::session::{Group, Session};
use super::thread::Thread;
use crate::errno::{Errno, Result};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// One past the largest id (kernel.pid_max's default).
pub const PID_MAX: u32 = 32768;
/// After a wrap the search goes on here, as on Linux: small numbers stay with those who came first.
const RESERVED: u32 = 300;

struct Tables {
    threads: RefCell<BTreeMap<u32, Rc<Thread>>>,
    processes: RefCell<BTreeMap<u32, Rc<Process>>>,
    groups: RefCell<BTreeMap<u32, Weak<Group>>>,
    sessions: RefCell<BTreeMap<u32, Weak<Session>>>,
    /// Of threads that have ended, but not for their tracers.
    kept: RefCell<BTreeSet<u32>>,
    last: Cell<u32>,
}

crate::global! {
    static TABLES: Tables = Tables {
        threads: RefCell::new(BTreeMap::new()),
        processes: RefCell::new(BTreeMap::new()),
        groups: RefCell::new(BTreeMap::new()),
        sessions: RefCell::new(BTreeMap::new()),
        kept: RefCell::new(BTreeSet::new()),
        last: Cell::new(0),
    };
}

impl Tables {
    fn in_use(&self, id: u32) -> bool {
        let alive = |weak: Option<bool>| weak.unwrap_or(false);
        self.threads.borrow().contains_key(&id)
            || self.processes.borrow().contains_key(&id)
            || self.kept.borrow().contains(&id)
            || alive(self.groups.borrow().get(&id).map(|g| g.strong_count() > 0))
            || alive(self.sessions.borrow().get(&id).map(|s| s.strong_count() > 0))
    }
}

/// A free id. It is taken once something is registered under it; nothing may block in between.
///
/// # Errors
/// EAGAIN if all are in use.
pub fn allocate() -> Result<u32> {
    TABLES.with(|tables| {
        let mut id = tables.last.get();
        for _ in 0..PID_MAX {
            id = if id + 1 >= PID_MAX { RESERVED } else { id + 1 };
            if !tables.in_use(id) {
                tables.last.set(id);
                return Ok(id);
            }
        }
        Err(Errno::EAGAIN)
    })
}

/// Whether an id can be asked for by number (clone3(2) with `set_tid`).
///
/// # Errors
/// EINVAL if it is out of range, EEXIST if it is in use.
pub fn claim(id: u32) -> Result<u32> {
    if id == 0 || id >= PID_MAX {
        return Err(Errno::EINVAL);
    }
    if TABLES.with(|tables| tables.in_use(id)) { Err(Errno::EEXIST) } else { Ok(id) }
}

/// The living thread with this id.
#[must_use]
pub fn thread(tid: u32) -> Option<Rc<Thread>> {
    TABLES.with(|tables| tables.threads.borrow().get(&tid).cloned())
}

/// The process with this id, zombies included.
#[must_use]
pub fn process(pid: u32) -> Option<Rc<Process>> {
    TABLES.with(|tables| tables.processes.borrow().get(&pid).cloned())
}

/// The process group with this id.
#[must_use]
pub fn group(pgid: u32) -> Option<Rc<Group>> {
    TABLES.with(|tables| tables.groups.borrow().get(&pgid).and_then(Weak::upgrade))
}

/// The session with this id.
#[must_use]
pub fn session(sid: u32) -> Option<Rc<Session>> {
    TABLES.with(|tables| tables.sessions.borrow().get(&sid).and_then(Weak::upgrade))
}

/// All processes by ascending id, zombies included.
#[must_use]
pub fn processes() -> Vec<Rc<Process>> {
    TABLES.with(|tables| tables.processes.borrow().values().cloned().collect())
}

/// How many threads live.
#[must_use]
pub fn thread_count() -> usize {
    TABLES.with(|tables| tables.threads.borrow().len())
}

/// The id given out last (the last field of /proc/loadavg).
#[must_use]
pub fn last() -> u32 {
    TABLES.with(|tables| tables.last.get())
}

pub(super) fn add_thread(thread: &Rc<Thread>) {
    TABLES.with(|tables| tables.threads.borrow_mut().insert(thread.tid(), Rc::clone(thread)));
}

pub(super) fn remove_thread(tid: u32) {
    let gone = TABLES.with(|tables| tables.threads.borrow_mut().remove(&tid));
    drop(gone);
}

/// Keeps an id from being given out until [`release`].
pub(super) fn keep(id: u32) {
    TABLES.with(|tables| tables.kept.borrow_mut().insert(id));
}

/// The id of a thread that ended may be given out again.
pub(super) fn release(id: u32) {
    TABLES.with(|tables| tables.kept.borrow_mut().remove(&id));
}

pub(super) fn add_process(process: &Rc<Process>) {
    TABLES.with(|tables| tables.processes.borrow_mut().insert(process.pid(), Rc::clone(process)));
}

pub(super) fn remove_process(pid: u32) {
    let gone = TABLES.with(|tables| tables.processes.borrow_mut().remove(&pid));
    drop(gone);
}

pub(super) fn add_group(group: &Rc<Group>) {
    TABLES.with(|tables| tables.groups.borrow_mut().insert(group.pgid(), Rc::downgrade(group)));
}

pub(super) fn remove_group(pgid: u32) {
    TABLES.with(|tables| tables.groups.borrow_mut().remove(&pgid));
}

pub(super) fn add_session(session: &Rc<Session>) {
    TABLES.with(|tables| tables.sessions.borrow_mut().insert(session.sid(), Rc::downgrade(session)));
}

pub(super) fn remove_session(sid: u32) {
    TABLES.with(|tables| tables.sessions.borrow_mut().remove(&sid));
}

/// Hosted tests start with nobody.
#[cfg(feature = "hosted")]
pub(super) fn reset() {
    TABLES.with(|tables| {
        let gone = (tables.threads.take(), tables.processes.take());
        drop(gone);
        tables.groups.take();
        tables.sessions.take();
        tables.kept.take();
        tables.last.set(0);
    });
}

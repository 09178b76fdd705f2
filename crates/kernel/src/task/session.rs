//! Process groups and sessions (credentials(7), setsid(2), setpgid(2)), and the terminal that controls a session.

use super::pid;
use super::process::Process;
use super::signal::{self, SIGCONT, SIGHUP, Signal, SignalInfo};
use crate::errno::{Errno, Result};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::cell::RefCell;

/// A terminal in its role as a controlling terminal. It knows its session and foreground group itself.
pub trait Terminal: Any {
    /// For downcasts.
    fn as_any(&self) -> &dyn Any;

    /// Its device number (`tty_nr` of /proc/PID/stat).
    fn device(&self) -> u64;

    /// Id of the foreground process group; `None` if there is none.
    fn foreground(&self) -> Option<u32>;

    /// The session leader is gone or has given the terminal up (TIOCNOTTY): the terminal belongs to no session any more.
    /// Signals to the foreground group have been sent by the caller.
    fn disassociate(&self);
}

/// A session.
pub struct Session {
    sid: u32,
    terminal: RefCell<Option<Rc<dyn Terminal>>>,
}

impl Session {
    /// Its id: the pid of its first process.
    #[must_use]
    pub fn sid(&self) -> u32 {
        self.sid
    }

    /// The controlling terminal.
    #[must_use]
    pub fn terminal(&self) -> Option<Rc<dyn Terminal>> {
        self.terminal.borrow().clone()
    }

    /// Sets the controlling terminal; rules (session leader, not anyone else's) are the caller's.
    pub fn set_terminal(&self, terminal: Option<Rc<dyn Terminal>>) {
        let before = self.terminal.replace(terminal);
        drop(before);
    }

    /// Whether the process is the leader.
    #[must_use]
    pub fn is_leader(&self, process: &Process) -> bool {
        self.sid == process.pid()
    }

    /// Ends the session's hold of its terminal, as when its leader exits: SIGHUP and SIGCONT to the foreground group.
    pub fn release_terminal(&self) {
        let Some(terminal) = self.terminal.take() else { return };
        if let Some(group) = terminal.foreground().and_then(pid::group) {
            group.signal(SIGHUP);
            group.signal(SIGCONT);
        }
        terminal.disassociate();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        pid::remove_session(self.sid);
    }
}

/// A process group.
pub struct Group {
    pgid: u32,
    session: Rc<Session>,
    members: RefCell<Vec<Weak<Process>>>,
}

impl Group {
    /// Its id: the pid of its first process.
    #[must_use]
    pub fn pgid(&self) -> u32 {
        self.pgid
    }

    /// The session it is in.
    #[must_use]
    pub fn session(&self) -> &Rc<Session> {
        &self.session
    }

    /// Its processes, zombies included.
    #[must_use]
    pub fn members(&self) -> Vec<Rc<Process>> {
        self.members.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    /// Sends a signal of the kernel's own to all members.
    pub fn signal(&self, signal: Signal) {
        for member in self.members() {
            // A standard signal from the kernel always finds room.
            let _ = signal::send_to_process(&member, SignalInfo::kernel(signal));
        }
    }

    /// Whether no member has a parent in another group of the same session (setpgid(2)): nobody does job control for it.
    #[must_use]
    pub fn is_orphaned(&self) -> bool {
        !self.members().iter().any(|member| self.is_supervised(member, member.parent().as_deref()))
    }

    /// Whether `member` lives and `parent` could do job control for it.
    fn is_supervised(&self, member: &Process, parent: Option<&Process>) -> bool {
        let Some(parent) = parent.filter(|parent| member.is_alive() && !parent.is_init()) else { return false };
        let group = parent.group();
        group.pgid != self.pgid && Rc::ptr_eq(&group.session, &self.session)
    }

    fn add(&self, process: &Rc<Process>) {
        self.members.borrow_mut().push(Rc::downgrade(process));
    }

    fn remove(&self, process: &Process) {
        self.members
            .borrow_mut()
            .retain(|member| !core::ptr::eq(member.as_ptr(), process) && member.strong_count() > 0);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        pid::remove_group(self.pgid);
    }
}

fn new_group(pgid: u32, session: Rc<Session>) -> Rc<Group> {
    let group = Rc::new(Group { pgid, session, members: RefCell::default() });
    pid::add_group(&group);
    group
}

/// A session with a group for a process that is in none yet: the first one.
#[must_use]
pub(super) fn first(sid: u32) -> Rc<Group> {
    let session = Rc::new(Session { sid, terminal: RefCell::new(None) });
    pid::add_session(&session);
    new_group(sid, session)
}

/// Registers a new process in the group that it was made with.
pub(super) fn join(process: &Rc<Process>) {
    process.group().add(process);
}

/// Takes a process that has been reaped out of its group.
pub(super) fn leave(process: &Process) {
    process.group().remove(process);
}

fn move_to(process: &Rc<Process>, group: Rc<Group>) {
    let before = process.set_group(Rc::clone(&group));
    before.remove(process);
    group.add(process);
}

/// setsid(2): the process becomes leader of a new session and of a new group in it.
///
/// # Errors
/// EPERM if there is a group with the process's id.
pub fn set_sid(process: &Rc<Process>) -> Result<u32> {
    let pid = process.pid();
    if pid::group(pid).is_some() || pid::session(pid).is_some() {
        return Err(Errno::EPERM);
    }
    move_to(process, first(pid));
    Ok(pid)
}

/// setpgid(2) by process `caller`.
///
/// # Errors
/// ESRCH, EPERM, EACCES as setpgid(2) says.
pub fn set_pgid(caller: &Rc<Process>, target_pid: u32, pgid: u32) -> Result<()> {
    let target_pid = if target_pid == 0 { caller.pid() } else { target_pid };
    let pgid = if pgid == 0 { target_pid } else { pgid };
    let target = pid::process(target_pid).filter(|target| target.is_alive()).ok_or(Errno::ESRCH)?;
    if !Rc::ptr_eq(&target, caller) {
        if target.parent().is_none_or(|parent| !Rc::ptr_eq(&parent, caller)) {
            return Err(Errno::ESRCH);
        }
        if !Rc::ptr_eq(target.group().session(), caller.group().session()) {
            return Err(Errno::EPERM);
        }
        if target.has_executed() {
            return Err(Errno::EACCES);
        }
    }
    let session = Rc::clone(target.group().session());
    if session.is_leader(&target) {
        return Err(Errno::EPERM);
    }
    let group = match pid::group(pgid) {
        Some(group) if Rc::ptr_eq(group.session(), &session) => group,
        None if pgid == target_pid => new_group(pgid, session),
        _ => return Err(Errno::EPERM),
    };
    if group.pgid != target.group().pgid {
        move_to(&target, group);
    }
    Ok(())
}

/// `process` is about to end, or its parent is: groups that this leaves orphaned with stopped members get SIGHUP and
/// SIGCONT (POSIX, exit()). `parent` is the parent that counted until now.
pub(super) fn signal_if_orphaned(process: &Process, parent: Option<&Process>) {
    let group = process.group();
    let mattered = parent.is_some_and(|parent| {
        let theirs = parent.group();
        theirs.pgid != group.pgid && Rc::ptr_eq(&theirs.session, &group.session)
    });
    if mattered && group.is_orphaned() && group.members().iter().any(|member| member.signals.stopped().is_some()) {
        group.signal(SIGHUP);
        group.signal(SIGCONT);
    }
}

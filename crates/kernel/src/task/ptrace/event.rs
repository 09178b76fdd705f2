//! What a tracer can ask to be stopped at: new threads and processes, execve(2), the end.

use super::{Kind, Options, stop};
use crate::errno::Errno;
use crate::task::fork::CloneFlags;
use crate::task::signal::{self, SI_USER, SIGCHLD, SIGTRAP, Signal, SignalInfo};
use crate::task::thread::Thread;
use alloc::rc::Rc;
use linux_raw_sys::ptrace as linux;

/// PTRACE_EVENT_*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "ptrace(2)")]
pub(in crate::task) enum Event {
    Fork = linux::PTRACE_EVENT_FORK as isize,
    Vfork = linux::PTRACE_EVENT_VFORK as isize,
    Clone = linux::PTRACE_EVENT_CLONE as isize,
    Exec = linux::PTRACE_EVENT_EXEC as isize,
    VforkDone = linux::PTRACE_EVENT_VFORK_DONE as isize,
    Exit = linux::PTRACE_EVENT_EXIT as isize,
}

impl Event {
    const fn option(self) -> Options {
        match self {
            Self::Fork => Options::FORK,
            Self::Vfork => Options::VFORK,
            Self::Clone => Options::CLONE,
            Self::Exec => Options::EXEC,
            Self::VforkDone => Options::VFORK_DONE,
            Self::Exit => Options::EXIT,
        }
    }
}

fn is_wanted(thread: &Thread, event: Event) -> bool {
    thread.ptrace.link().is_some_and(|link| link.options.get().contains(event.option()))
}

/// Stops the current thread for an event if its tracer has asked for it; whether it has.
pub(in crate::task) fn report(me: &Rc<Thread>, event: Event, message: u64) -> bool {
    let wanted = is_wanted(me, event);
    if wanted {
        let kind = if event == Event::Exit { Kind::Exit } else { Kind::Event };
        // What it goes on with is of no effect.
        stop::trap(me, kind, SIGTRAP, SIGTRAP.number() | (event as u32) << 8, message);
    }
    wanted
}

/// The event that a clone(2) of the current thread is, if the tracer has asked for it.
pub(in crate::task) fn fork_event(me: &Thread, flags: CloneFlags, exit_signal: Option<Signal>) -> Option<Event> {
    if flags.contains(CloneFlags::UNTRACED) {
        return None;
    }
    let event = if flags.contains(CloneFlags::VFORK) {
        Event::Vfork
    } else if exit_signal == Some(SIGCHLD) {
        Event::Fork
    } else {
        Event::Clone
    };
    Some(event).filter(|event| is_wanted(me, *event))
}

/// The current thread runs another program now; `former` was its id before.
pub(in crate::task) fn executed(me: &Rc<Thread>, former: u32) {
    let Some(link) = me.ptrace.link() else { return };
    // The call has no result yet.
    me.state.set_result(i64::from(-Errno::ENOSYS.0).cast_unsigned());
    let reported = report(me, Event::Exec, former.into());
    me.state.set_result(0);
    if !reported && !link.seized {
        // Who knows of no options sees a signal.
        let info = SignalInfo::process(SIGTRAP, SI_USER, me.process.pid(), me.creds().uid);
        // A standard signal always finds room.
        let _ = signal::send_to_thread(me, info);
    }
}

/// The current thread is about to end.
pub(in crate::task) fn exits(me: &Rc<Thread>) {
    if me.ptrace.is_traced() && !me.process.makes_room.get() {
        let status = me.process.group_exit.get().unwrap_or(me.exit_status.get());
        report(me, Event::Exit, status.0.into());
    }
}

//! Stops, as the tracee makes them.

use super::{Kind, Link, Share, Stop, attach, is_reparented};
use crate::task::process::Process;
use crate::task::sched::{self, Sleep};
use crate::task::signal::{
    self, CLD_CONTINUED, CLD_STOPPED, CLD_TRAPPED, SI_USER, SIGCONT, SIGKILL, SIGTRAP, Signal, SignalInfo, USED_BYTES,
};
use crate::task::thread::Thread;
use alloc::rc::Rc;
use linux_raw_sys::ptrace as linux;

/// How a stop ended.
pub(super) struct Outcome {
    /// The signal that the thread goes on with; 0 for none. Not checked to be one.
    pub(super) code: u32,
    info: Option<[u8; USED_BYTES]>,
}

/// Stops the current thread until its tracer lets it go on. Without a tracer, and for a thread that is to end, it is as if
/// the tracer had let the signal through.
pub(super) fn stop(me: &Rc<Thread>, kind: Kind, code: u32, message: u64, info: Option<[u8; USED_BYTES]>) -> Outcome {
    let Some(link) = me.ptrace.link().filter(|_| kind == Kind::Exit || !me.dying()) else {
        return Outcome { code, info };
    };
    link.stop.set(Some(Stop { kind, code, message, info, listening: false, resumed: false }));
    let last_to_stop = kind == Kind::Group && me.signals.stop_due.get() && signal::participate(me);
    // Any stop is as good as the one that was wanted.
    link.trap.set(false);
    if kind == Kind::Group {
        link.notice.set(false);
    }
    signal::refresh(me);
    tell_tracer(&link, me, kind, code);
    if last_to_stop && is_reparented(me) {
        signal::tell_parent(&me.process);
    }

    let is_over = || {
        let stop = link.stop.get();
        let resumed = stop.is_none_or(|stop| stop.resumed || stop.listening && link.trap_due());
        let killed = kind == Kind::Exit && (me.ptrace.killed_again.get() || me.process.makes_room.get());
        (resumed || killed || !is_current(&me.ptrace, &link)).then_some(())
    };
    let sleep = if kind == Kind::Exit { Sleep::Uninterruptible } else { Sleep::Killable };
    let _ = sched::wait_until(&[], None, sleep, is_over);
    let stop = link.stop.take();
    signal::refresh(me);
    stop.map_or(Outcome { code: 0, info: None }, |stop| Outcome { code: stop.code, info: stop.info })
}

fn is_current(share: &Share, link: &Rc<Link>) -> bool {
    share.link.borrow().as_ref().is_some_and(|now| Rc::ptr_eq(now, link))
}

fn tell_tracer(link: &Link, me: &Thread, kind: Kind, code: u32) {
    let Some(tracer) = link.tracer.upgrade() else { return };
    let stopped_by = me.signals.stop_signal.get().filter(|_| me.process.signals.stopping());
    let (why, status) = match kind {
        Kind::Group => (CLD_STOPPED, stopped_by.map_or(0, Signal::number)),
        _ => (CLD_TRAPPED, code & 0x7f),
    };
    signal::tell(&tracer.process, &me.process, me.tid(), why, status);
}

/// A stop that is no signal's, with SIGTRAP's information: `code` as wait4(2) shows it.
pub(super) fn trap(me: &Rc<Thread>, kind: Kind, signal: Signal, code: u32, message: u64) -> Outcome {
    let info = SignalInfo::process(signal, code.cast_signed(), me.tid(), me.creds().uid);
    stop(me, kind, code, message, Some(info.to_bytes()))
}

/// Whether the stop of its process that the current thread is to take part in is to be one for its tracer.
pub(in crate::task) fn takes_over_stop(me: &Thread) -> bool {
    me.ptrace.link().inspect(|link| link.trap.set(true)).is_some()
}

/// Stops the current thread if it is to: for PTRACE_INTERRUPT, or because its process stops or goes on.
pub(in crate::task) fn stop_if_due(me: &Rc<Thread>) -> bool {
    let Some(link) = me.ptrace.link().filter(|link| link.trap_due()) else { return false };
    let signal = me.signals.stop_signal.get();
    if link.seized {
        let signal = signal.filter(|_| me.process.signals.stopping()).unwrap_or(SIGTRAP);
        trap(me, Kind::Group, signal, signal.number() | linux::PTRACE_EVENT_STOP << 8, 0);
    } else {
        stop(me, Kind::Group, signal.unwrap_or(SIGTRAP).number(), 0, None);
    }
    true
}

/// A stop of the process begins or ends: a seized thread tells its tracer.
pub(in crate::task) fn note_job_change(thread: &Thread) {
    if let Some(link) = thread.ptrace.link().filter(|link| link.seized) {
        link.notice.set(true);
        thread.interrupt();
    }
}

/// A process goes on: its parent has been told, and the tracer of its first thread wants to know as well.
pub(in crate::task) fn tell_continued(process: &Process) {
    let Some(leader) = process.threads().into_iter().find(|thread| thread.is_leader()) else { return };
    if let Some(tracer) = leader.ptrace.tracer().filter(|_| is_reparented(&leader)) {
        signal::tell(&tracer.process, process, process.pid(), CLD_CONTINUED, SIGCONT.number());
    }
}

/// Shows a signal to the tracer before it is delivered: what is to be delivered, if anything.
pub(in crate::task) fn show_signal(me: &Rc<Thread>, info: SignalInfo) -> Option<SignalInfo> {
    if info.signal == SIGKILL || !me.ptrace.is_traced() {
        return Some(info);
    }
    let number = info.signal.number();
    let outcome = stop(me, Kind::Signal, number, 0, Some(info.to_bytes()));
    let signal = Signal::new(outcome.code)?;
    let bytes = outcome.info.unwrap_or(info.to_bytes());
    let info = if u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) == signal.number() {
        SignalInfo::from_user(signal, &bytes)
    } else {
        let (pid, uid) = attach::sender(me);
        SignalInfo::process(signal, SI_USER, pid, uid)
    };
    if me.signals.blocked().has(signal) || me.dying() {
        // It waits with the others. Of a real-time signal that finds no room nothing is left, as on Linux.
        let _ = signal::send_to_thread(me, info);
        return None;
    }
    Some(info)
}

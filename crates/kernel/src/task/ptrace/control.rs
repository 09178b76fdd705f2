//! What a tracer does to a tracee besides reading and writing it. Tracees are those that [`super::stopped_tracee`] gave, where
//! nothing else is said.

use super::{Kind, Options, link_of, step};
use crate::errno::{Errno, Result};
use crate::task::current;
use crate::task::signal::{self, SI_USER, SIGKILL, SIGNALS, SignalInfo, SignalSet, USED_BYTES};
use crate::task::thread::Thread;
use alloc::rc::Rc;

/// The number of a signal that a tracer lets a thread go on with; 0 for none.
pub(super) fn signal_code(signal: u64) -> Result<u32> {
    if signal <= SIGNALS as u64 { Ok(signal as u32) } else { Err(Errno::EIO) }
}

/// PTRACE_CONT, PTRACE_SYSCALL (`calls`) and PTRACE_SINGLESTEP (`single`): the tracee goes on, with a signal if that is not 0.
///
/// # Errors
/// EIO for what is no signal.
pub fn resume(tracee: &Rc<Thread>, signal: u64, calls: bool, single: bool) -> Result<()> {
    let code = signal_code(signal)?;
    let link = link_of(tracee);
    link.calls.set(calls);
    if single {
        step::begin_step(tracee);
    } else {
        step::end_step(tracee);
    }
    link.change_stop(|stop| (stop.code, stop.resumed) = (code, true));
    tracee.interrupt();
    Ok(())
}

/// PTRACE_KILL, of any tracee.
pub fn kill(tracee: &Rc<Thread>) {
    let me = current();
    let info = SignalInfo::process(SIGKILL, SI_USER, me.process.pid(), me.creds().uid);
    // SIGKILL always finds room.
    let _ = signal::send_to_thread(tracee, info);
}

/// PTRACE_INTERRUPT, of any tracee.
///
/// # Errors
/// EIO if it was not seized.
pub fn interrupt(tracee: &Rc<Thread>) -> Result<()> {
    let link = link_of(tracee);
    if !link.seized {
        return Err(Errno::EIO);
    }
    link.trap.set(true);
    signal::refresh(tracee);
    tracee.interrupt();
    Ok(())
}

/// PTRACE_LISTEN: the tracee stays stopped as its process is, and tells of what comes.
///
/// # Errors
/// EIO if it was not seized or is in another stop.
pub fn listen(tracee: &Rc<Thread>) -> Result<()> {
    let link = link_of(tracee);
    if !link.seized || link.stop.get().is_none_or(|stop| stop.kind != Kind::Group) {
        return Err(Errno::EIO);
    }
    link.change_stop(|stop| stop.listening = true);
    if link.notice.get() {
        tracee.interrupt();
    }
    Ok(())
}

/// PTRACE_SETOPTIONS.
///
/// # Errors
/// EINVAL for unknown ones.
pub fn set_options(tracee: &Thread, options: u64) -> Result<()> {
    let options = u32::try_from(options).ok().and_then(Options::from_bits).ok_or(Errno::EINVAL)?;
    link_of(tracee).options.set(options);
    Ok(())
}

/// PTRACE_GETEVENTMSG.
#[must_use]
pub fn event_message(tracee: &Thread) -> u64 {
    link_of(tracee).stop.get().map_or(0, |stop| stop.message)
}

/// PTRACE_GETSIGINFO.
///
/// # Errors
/// EINVAL where there is none: a stop of the process.
pub fn signal_info(tracee: &Thread) -> Result<[u8; USED_BYTES]> {
    link_of(tracee).stop.get().and_then(|stop| stop.info).ok_or(Errno::EINVAL)
}

/// PTRACE_SETSIGINFO.
///
/// # Errors
/// As [`signal_info`].
pub fn set_signal_info(tracee: &Thread, info: [u8; USED_BYTES]) -> Result<()> {
    signal_info(tracee)?;
    link_of(tracee).change_stop(|stop| stop.info = Some(info));
    Ok(())
}

/// PTRACE_SETSIGMASK.
pub fn set_mask(tracee: &Thread, mask: SignalSet) {
    tracee.signals.replace_mask(mask);
    signal::refresh(tracee);
}

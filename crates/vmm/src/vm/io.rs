//! Moving frames between the guest's rings and the broker, and keeping the timer.
//!
//! A thread of its own does that while the guest is busy. A guest that is idle, or gets idle again soon, has it done by the
//! vCPU's thread, which would have to be woken for each message otherwise: it has been lent the work ([`Gate::lend`]), and
//! gives it back when the guest has run for a millisecond ([`super::kick::Stint`]).

use super::{End, Fatal, Machine};
use crate::vm::rings::ReceiveRing;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use torpor_abi::frame::{Header, kind, stream};
use torpor_streams::ledger::Violation;
use torpor_streams::link::{MESSAGE_MAX_BYTES, receive, split_frame};

/// While the guest runs its memory is measured this often; an idle guest takes none.
const RESIDENT_CHECK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
const RESIDENT_CHECK_EVERY: Duration = Duration::from_millis(100);

/// A message of the broker, as far as the guest's ring had no room for it yet.
#[derive(Debug)]
pub(super) struct Inbox {
    ring: ReceiveRing,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Nothing behind this was written since the last reset.
    used: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { ring: ReceiveRing::default(), buffer: vec![0; MESSAGE_MAX_BYTES], start: 0, end: 0, used: 0 }
    }
}

impl Inbox {
    /// Whether all that was received is in the guest's ring.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// A message of `len` bytes is in the buffer.
    fn received(&mut self, len: usize) {
        (self.start, self.end) = (0, len);
        self.used = self.used.max(len);
    }

    /// The link is another one.
    pub(super) fn forget(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// The guest is another one, its ring empty; nothing of the former one stays.
    pub(super) fn reset(&mut self) {
        self.ring.reset();
        self.buffer[..self.used].fill(0);
        self.used = 0;
        self.forget();
    }
}

/// Keeps the I/O thread away from the guest while its memory is put together.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    is_closed: bool,
    /// The vCPU's thread moves frames.
    is_lent: bool,
    /// How often it was closed or lent.
    closings: u64,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().expect("no holder panics")
    }

    /// I/O thread: waits until the gate is open and holds it so.
    fn pass(&self) -> MutexGuard<'_, GateState> {
        self.opened.wait_while(self.lock(), |state| state.is_closed || state.is_lent).expect("no holder panics")
    }

    /// vCPU thread: from the return of this call on it moves frames, and the I/O thread does not.
    pub(super) fn lend(&self) {
        let mut state = self.lock();
        if !state.is_lent {
            state.is_lent = true;
            state.closings += 1;
        }
    }

    /// vCPU thread: whether it moves frames.
    pub(super) fn is_lent(&self) -> bool {
        self.lock().is_lent
    }

    /// vCPU thread: the I/O thread moves frames again.
    pub(super) fn give_back(&self) {
        self.lock().is_lent = false;
        self.opened.notify_all();
    }

    /// From the return of this call on the I/O thread touches neither guest memory nor what is kept of it.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.closings += 1;
    }

    /// Lets the I/O thread go on, unless its work is lent: returns whether it does.
    pub(super) fn open(&self) -> bool {
        let mut state = self.lock();
        state.is_closed = false;
        if !state.is_lent {
            self.opened.notify_all();
        }
        !state.is_lent
    }
}

/// Runs until the process ends.
pub(super) fn run(machine: &'static Machine) -> ! {
    let fatal = match serve(machine) {
        Ok(never) => never,
        Err(fatal) => fatal,
    };
    machine.finish(End::Failed(fatal.to_string()))
}

fn serve(machine: &Machine) -> Result<Fatal, Fatal> {
    let mut behind = false;
    loop {
        let closings = machine.gate.pass().closings;
        let Some(events) = Events::wait(machine, behind, Some(&RESIDENT_CHECK))? else {
            machine.resident.check()?;
            continue;
        };
        let open = machine.gate.pass();
        if open.closings != closings {
            // What poll(2) said was of another guest, or another link, or is done.
            behind = false;
            continue;
        }
        events.handle(machine, &mut behind)?;
    }
}

/// vCPU thread, while the guest is idle: moves frames until there is something for the guest. `checked_at` is when the memory
/// was measured last.
pub(super) fn serve_idle(machine: &Machine, checked_at: &mut Instant) -> Result<(), Fatal> {
    machine.gate.lend();
    if checked_at.elapsed() > RESIDENT_CHECK_EVERY {
        machine.resident.check()?;
        *checked_at = Instant::now();
    }
    machine.timer.update(&machine.memory).map_err(Fatal::system("timerfd_settime"))?;
    let mut behind = !transmit(machine)?;
    let pending = machine.control().pending();
    while pending.load(Ordering::SeqCst) == 0 {
        let events = machine.kicker.asleep(|| {
            // An event since the last look has found nobody asleep.
            let is_awaited = pending.load(Ordering::SeqCst) != 0;
            if is_awaited { Ok(None) } else { Events::wait(machine, behind, None) }
        })?;
        if let Some(events) = events {
            events.handle(machine, &mut behind)?;
        }
    }
    Ok(())
}

/// What poll(2) has found.
struct Events {
    link: PollFlags,
    notify: PollFlags,
    timer: PollFlags,
}

impl Events {
    /// Waits for some; none where the time is over. `behind`: frames wait for the broker.
    fn wait(machine: &Machine, behind: bool, timeout: Option<&Timespec>) -> Result<Option<Self>, Fatal> {
        // SAFETY: the eventfd lives in the machine, as long as this function runs.
        let notify = unsafe { BorrowedFd::borrow_raw(machine.notify.as_raw_fd()) };
        let mut link_events = PollFlags::empty();
        link_events.set(PollFlags::IN, machine.inbox.lock().expect("no holder panics").is_empty());
        link_events.set(PollFlags::OUT, behind && !machine.is_unlinked());
        let mut descriptors = [
            PollFd::new(&machine.link, link_events),
            PollFd::from_borrowed_fd(notify, PollFlags::IN),
            PollFd::from_borrowed_fd(machine.timer.descriptor(), PollFlags::IN),
        ];
        match poll(&mut descriptors, timeout) {
            Ok(0) => return Ok(None),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Fatal::system("poll")(error)),
        }
        let [link, notify, timer] = descriptors.map(|descriptor| descriptor.revents());
        Ok(Some(Self { link, notify, timer }))
    }

    /// Does what they ask for. The caller is the only one who moves frames.
    fn handle(self, machine: &Machine, behind: &mut bool) -> Result<(), Fatal> {
        let Self { link, notify, timer } = self;
        let mut inbox = machine.inbox.lock().expect("no holder panics");
        if timer.contains(PollFlags::IN)
            && machine.timer.expired(&machine.memory).map_err(Fatal::system("timerfd_settime"))?
        {
            machine.raise();
        }
        let notified = notify.contains(PollFlags::IN);
        if notified {
            // Only drains the counter; that it could not be is no different from its being 0.
            let _ = machine.notify.read();
            machine.timer.update(&machine.memory).map_err(Fatal::system("timerfd_settime"))?;
        }
        if notified || link.contains(PollFlags::OUT) {
            *behind = !transmit(machine)?;
        }
        // What its other end has said before it went still counts.
        if link.intersects(PollFlags::HUP | PollFlags::ERR) && !link.contains(PollFlags::IN) {
            if machine.unlink("its other end was closed")? {
                return Ok(());
            }
            // The broker is gone, and with it everyone who could be told.
            super::process::exit();
        }
        let asked = machine.signals.load(Ordering::SeqCst) != 0;
        if link.contains(PollFlags::IN) || (notified && (asked || !inbox.is_empty())) {
            receive_frames(machine, &mut inbox)?;
        }
        Ok(())
    }
}

/// Sends until the ring is empty and the guest knows that it has to notify again; false where the broker is behind.
fn transmit(machine: &Machine) -> Result<bool, Fatal> {
    let control = machine.control();
    control.tx_polling().store(1, Ordering::SeqCst);
    loop {
        if !machine.transmit()? {
            return Ok(false);
        }
        control.tx_polling().store(0, Ordering::SeqCst);
        if !machine.transmit.lock().expect("no holder panics").ring.has_frames(&machine.memory) {
            return Ok(true);
        }
        control.tx_polling().store(1, Ordering::SeqCst);
    }
}

/// Moves messages of the broker into the guest's ring until there are no more, or no room.
pub(super) fn receive_frames(machine: &Machine, inbox: &mut Inbox) -> Result<(), Fatal> {
    let wants_room = machine.control().rx_wants_room();
    wants_room.store(0, Ordering::SeqCst);
    let mut any = false;
    'messages: loop {
        while inbox.start < inbox.end {
            let message = &inbox.buffer[inbox.start..inbox.end];
            let (_, _, rest) = split_frame(message).map_err(|violation| broken_broker(&violation))?;
            let frame = &message[..message.len() - rest.len()];
            if !inbox.ring.put(&machine.memory, frame)? {
                wants_room.store(1, Ordering::SeqCst);
                // The guest may have made room before it could see that.
                if !inbox.ring.put(&machine.memory, frame)? {
                    break 'messages;
                }
                wants_room.store(0, Ordering::SeqCst);
            }
            inbox.start += frame.len();
            any = true;
        }
        if let Some(signal) = machine.take_signal() {
            let header = Header { stream: stream::CONTROL, kind: kind::SIGNAL, len: 0, argument: signal };
            let frame = header.encode();
            inbox.buffer[..frame.len()].copy_from_slice(&frame);
            inbox.received(frame.len());
            continue;
        }
        match receive(&machine.link, &mut inbox.buffer) {
            Ok(0) => {
                if machine.unlink("its other end was closed")? {
                    break;
                }
                super::process::exit()
            }
            Ok(len) => {
                inbox.received(len);
                if let Err(violation) = judge(machine, &inbox.buffer[..len]) {
                    inbox.forget();
                    if machine.unlink(&violation.to_string())? {
                        break;
                    }
                    return Err(broken_broker(&violation));
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if machine.unlink(&error.to_string())? => {
                // A message that was too long was received in part.
                inbox.used = inbox.buffer.len();
                break;
            }
            Err(error) => return Err(Fatal::system("receiving from the broker")(error)),
        }
    }
    if any {
        machine.raise();
    }
    Ok(())
}

/// Enters a message's frames in the ledger, before the guest can answer any of them.
fn judge(machine: &Machine, mut message: &[u8]) -> Result<(), Violation> {
    let mut ledger = machine.ledger.lock().expect("no holder panics");
    while !message.is_empty() {
        let (header, _, rest) = split_frame(message)?;
        ledger.to_guest(&header)?;
        message = rest;
    }
    Ok(())
}

fn broken_broker(violation: &Violation) -> Fatal {
    Fatal::System { what: "message of the broker", error: std::io::Error::other(violation.to_string()) }
}

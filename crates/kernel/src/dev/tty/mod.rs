//! Terminals (tty(4), termios(3), tty_ioctl(4)): the line discipline, job control, and what is behind the line.

#[cfg(not(feature = "hosted"))]
pub mod console;
mod control;
mod discipline;
pub mod pty;

use crate::errno::{Errno, Result};
use crate::fs::file::{FileOps, OpenFile};
use crate::fs::inode::Metadata;
use crate::mm::user::{Dest, Source};
use crate::task::sched::{Sleep, WaitError, wait_until};
use crate::task::session::Terminal;
use crate::task::signal::{self, SignalInfo};
use crate::task::{current, pid};
use crate::time;
use crate::wait::{Events, WaitQueue};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, RefCell};
use discipline::{Discipline, Interrupt};

/// What a terminal's bytes come from and go to.
pub trait Line {
    /// Sends bytes on; the caller has asked for [`Line::room`].
    fn transmit(&self, bytes: &[u8]);

    /// Bytes that can be sent now.
    fn room(&self) -> usize;

    /// Woken when there is more room.
    fn room_queues(&self) -> Vec<Rc<WaitQueue>>;

    /// Called after a program has read: there is room for more input.
    fn input_taken(&self) {}

    /// The terminal's settings or queues changed in a way that the other end may watch (packet mode, flushes).
    fn control_changed(&self, change: Change) {
        let _ = change;
    }
}

/// What the other end of a pseudoterminal in packet mode is told (TIOCPKT of tty_ioctl(4)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the TIOCPKT_ bits")]
pub enum Change {
    FlushRead,
    FlushWrite,
    Stop,
    Start,
    UsualFlowControl,
    OtherFlowControl,
    Settings,
}

/// Rows, columns, and the size in pixels.
pub(crate) type WindowSize = [u16; 4];

/// A terminal.
pub struct Tty {
    device: u64,
    discipline: RefCell<Discipline>,
    line: RefCell<Option<Rc<dyn Line>>>,
    size: Cell<WindowSize>,
    queue: Rc<WaitQueue>,
    /// Session that it controls, 0 for none.
    session: Cell<u32>,
    /// Foreground process group of that session, 0 for none.
    foreground: Cell<u32>,
    hung_up: Cell<bool>,
    exclusive: Cell<bool>,
}

impl Terminal for Tty {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn device(&self) -> u64 {
        self.device
    }

    fn foreground(&self) -> Option<u32> {
        Some(self.foreground.get()).filter(|group| *group != 0)
    }

    fn disassociate(&self) {
        self.session.set(0);
        self.foreground.set(0);
    }
}

impl Tty {
    /// A terminal with default settings and no line yet.
    #[must_use]
    pub fn new(device: u64, size: WindowSize) -> Rc<Self> {
        Rc::new(Self {
            device,
            discipline: RefCell::default(),
            line: RefCell::new(None),
            size: Cell::new(size),
            queue: WaitQueue::new(),
            session: Cell::new(0),
            foreground: Cell::new(0),
            hung_up: Cell::new(false),
            exclusive: Cell::new(false),
        })
    }

    /// Connects the line.
    pub fn set_line(&self, line: Rc<dyn Line>) {
        *self.line.borrow_mut() = Some(line);
    }

    fn line(&self) -> Option<Rc<dyn Line>> {
        self.line.borrow().clone()
    }

    /// Bytes that may be received now.
    #[must_use]
    pub fn input_room(&self) -> usize {
        self.discipline.borrow().room()
    }

    /// Bytes from the line, at most [`Tty::input_room`].
    pub fn receive(&self, bytes: &[u8]) {
        let mut echo = Vec::new();
        for byte in bytes {
            let was_stopped = self.discipline.borrow().stopped();
            let interrupt = self.discipline.borrow_mut().receive(*byte, &mut echo);
            let is_stopped = self.discipline.borrow().stopped();
            if was_stopped != is_stopped {
                self.control_changed(if is_stopped { Change::Stop } else { Change::Start });
                self.queue.wake(Events::WRITABLE);
            }
            if let Some(interrupt) = interrupt {
                self.control_changed(Change::FlushRead);
                self.signal_foreground(match interrupt {
                    Interrupt::Intr => signal::SIGINT,
                    Interrupt::Quit => signal::SIGQUIT,
                    Interrupt::Suspend => signal::SIGTSTP,
                });
            }
        }
        if let Some(line) = self.line().filter(|_| !echo.is_empty()) {
            // An echo for which there is no room is lost, as on a real line.
            echo.truncate(line.room());
            line.transmit(&echo);
        }
        self.queue.wake(Events::READABLE);
    }

    /// The other end is gone: reads give the end of file, or EIO if they wait already, writes EIO, and the session leader is told.
    pub fn hang_up(&self) {
        if self.hung_up.replace(true) {
            return;
        }
        self.signal_foreground(signal::SIGHUP);
        self.signal_foreground(signal::SIGCONT);
        if let Some(leader) = pid::process(self.session.get()) {
            // The kernel's own signals always find room.
            let _ = signal::send_to_process(&leader, SignalInfo::kernel(signal::SIGHUP));
        }
        self.queue.wake_all(Events::all());
    }

    fn signal_foreground(&self, number: signal::Signal) {
        if let Some(group) = self.foreground().and_then(pid::group) {
            group.signal(number);
        }
    }

    fn control_changed(&self, change: Change) {
        if let Some(line) = self.line() {
            line.control_changed(change);
        }
    }

    /// Changes the window's size; SIGWINCH to the foreground group if it differs.
    pub fn set_size(&self, size: WindowSize) {
        if self.size.replace(size) != size {
            self.signal_foreground(signal::SIGWINCH);
        }
    }

    /// Whether this is the controlling terminal of the current process.
    fn controls_current(&self) -> bool {
        let session = self.session.get();
        session != 0 && current().process.group().session().sid() == session
    }

    /// Job control: a background process that reads or changes its controlling terminal is stopped (tcsetpgrp(3),
    /// `tty_check_change` in Linux's words).
    ///
    /// # Errors
    /// EIO for an orphaned group (or, reading, a signal that is blocked or ignored), ERESTARTSYS when the group was signalled.
    fn check_background(&self, number: signal::Signal, reading: bool) -> Result<()> {
        if !self.controls_current() || self.foreground.get() == 0 {
            return Ok(());
        }
        let thread = current();
        let process = &thread.process;
        let group = process.group();
        if group.pgid() == self.foreground.get() {
            return Ok(());
        }
        let ignored = process.signals.actions().get(number).handler == signal::action::SIG_IGN;
        if ignored || current().signals.blocked().has(number) {
            return if reading { Err(Errno::EIO) } else { Ok(()) };
        }
        if group.is_orphaned() {
            return Err(Errno::EIO);
        }
        group.signal(number);
        Err(Errno::ERESTARTSYS)
    }

    /// open(2) without O_NOCTTY by a session leader without a terminal: it becomes the controlling one.
    pub fn opened(self: &Rc<Self>, no_controlling: bool) -> Result<()> {
        if self.hung_up.get() {
            return Err(Errno::EIO);
        }
        if self.exclusive.get() && !current().creds().has(linux_raw_sys::general::CAP_SYS_ADMIN) {
            return Err(Errno::EBUSY);
        }
        let process = &current().process;
        let group = process.group();
        let session = group.session();
        if !no_controlling && session.is_leader(process) && session.terminal().is_none() && self.session.get() == 0 {
            self.take_control();
        }
        Ok(())
    }

    /// Makes this the controlling terminal of the current session; rules are the caller's.
    pub fn take_control(self: &Rc<Self>) {
        let group = current().process.group();
        self.session.set(group.session().sid());
        self.foreground.set(group.pgid());
        group.session().set_terminal(Some(Rc::clone(self) as Rc<dyn Terminal>));
    }

    fn read(&self, file: &OpenFile, dst: &mut Dest<'_>) -> Result<usize> {
        self.check_background(signal::SIGTTIN, true)?;
        if dst.remaining() == 0 {
            return Ok(0);
        }
        let (canonical, min, tenths) = {
            let discipline = self.discipline.borrow();
            let t = discipline.termios();
            (
                t.lflag & linux_raw_sys::general::ICANON != 0,
                usize::from(t.cc[linux_raw_sys::general::VMIN as usize]),
                u64::from(t.cc[linux_raw_sys::general::VTIME as usize]),
            )
        };
        let wanted = if canonical { 1 } else { min.min(dst.remaining()) };
        let ready = |at_least: usize| self.hung_up.get() || self.discipline.borrow().readable(at_least);
        let at_once = !canonical && min == 0 && tenths == 0;
        let waits = !ready(wanted) && !at_once;
        if waits {
            if file.nonblocking() {
                if !ready(1) {
                    return Err(Errno::EAGAIN);
                }
            } else {
                self.wait_for_input(canonical, min, wanted, tenths, ready)?;
            }
        }
        if self.hung_up.get() && !self.discipline.borrow().readable(1) {
            return if waits { Err(Errno::EIO) } else { Ok(0) };
        }
        let bytes = self.discipline.borrow_mut().take(dst.remaining());
        if let Some(line) = self.line() {
            line.input_taken();
        }
        dst.put(&bytes)
    }

    /// The four cases of VMIN and VTIME (termios(3)).
    fn wait_for_input(
        &self,
        canonical: bool,
        min: usize,
        wanted: usize,
        tenths: u64,
        ready: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let queues = [&self.queue];
        let timeout = || time::now().after_ns(tenths * 100_000_000);
        if canonical || tenths == 0 {
            wait_until(&queues, None, Sleep::Interruptible, || ready(wanted).then_some(()))?;
            return Ok(());
        }
        if min > 0 {
            wait_until(&queues, None, Sleep::Interruptible, || ready(1).then_some(()))?;
        }
        // With VMIN the timer runs between bytes, without it from the call on.
        loop {
            let had = self.discipline.borrow().available();
            let goal = wanted.max(1);
            let more = || (ready(goal) || self.discipline.borrow().available() > had).then_some(());
            match wait_until(&queues, Some(timeout()), Sleep::Interruptible, more) {
                Ok(()) if ready(goal) => return Ok(()),
                Ok(()) => {}
                Err(WaitError::TimedOut) => return Ok(()),
                Err(WaitError::Interrupted) if had > 0 => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn write(&self, file: &OpenFile, src: &mut Source<'_>) -> Result<usize> {
        if self.discipline.borrow().termios().lflag & linux_raw_sys::general::TOSTOP != 0 {
            self.check_background(signal::SIGTTOU, false)?;
        }
        let mut written = 0;
        while src.remaining() > 0 {
            let Some(line) = self.line().filter(|_| !self.hung_up.get()) else { return Err(Errno::EIO) };
            // Output processing makes at most 8 bytes of one (a tab).
            let room = if self.discipline.borrow().stopped() { 0 } else { line.room() / 8 };
            if room == 0 {
                let blocked = if file.nonblocking() { Err(Errno::EAGAIN) } else { self.wait_for_room(&line) };
                match blocked {
                    Ok(()) => continue,
                    Err(error) if written == 0 => return Err(error),
                    Err(_) => break,
                }
            }
            let mut chunk = vec![0; room.min(src.remaining()).min(1024)];
            let n = match src.take(&mut chunk) {
                Ok(n) => n,
                Err(error) if written == 0 => return Err(error),
                Err(_) => break,
            };
            let mut out = Vec::with_capacity(n + 16);
            self.discipline.borrow_mut().output(&chunk[..n], &mut out);
            line.transmit(&out);
            written += n;
        }
        Ok(written)
    }

    fn wait_for_room(&self, line: &Rc<dyn Line>) -> Result<()> {
        let queues = line.room_queues();
        let mut all: Vec<&Rc<WaitQueue>> = queues.iter().collect();
        all.push(&self.queue);
        let writable = || self.hung_up.get() || (!self.discipline.borrow().stopped() && line.room() >= 8);
        Ok(wait_until(&all, None, Sleep::Interruptible, || writable().then_some(()))?)
    }

    fn poll(&self) -> Events {
        if self.hung_up.get() {
            return Events::READABLE | Events::WRITABLE | Events::HUP | Events::ERR;
        }
        let mut ready = Events::empty();
        let discipline = self.discipline.borrow();
        let t = discipline.termios();
        let min = if t.cc[linux_raw_sys::general::VTIME as usize] == 0 {
            t.cc[linux_raw_sys::general::VMIN as usize]
        } else {
            1
        };
        if discipline.readable(usize::from(min)) {
            ready |= Events::READABLE;
        }
        if !discipline.stopped() && self.line().is_some_and(|line| line.room() >= 8) {
            ready |= Events::WRITABLE;
        }
        ready
    }

    fn describe(&self) -> String {
        alloc::format!("/dev/pts/{}", crate::fs::device::minor(self.device))
    }
}

/// An open terminal.
pub struct TtyFile(pub Rc<Tty>);

impl FileOps for TtyFile {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, file: &OpenFile, dst: &mut Dest<'_>, _offset: u64) -> Result<usize> {
        self.0.read(file, dst)
    }

    fn write(&self, file: &OpenFile, src: &mut Source<'_>, _offset: u64) -> Result<(usize, u64)> {
        Ok((self.0.write(file, src)?, 0))
    }

    fn poll(&self, _file: &OpenFile) -> Events {
        self.0.poll()
    }

    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        Some(Rc::clone(&self.0.queue))
    }

    fn ioctl(&self, _file: &OpenFile, request: u32, argument: u64) -> Result<u64> {
        control::ioctl(&self.0, request, argument)
    }

    fn metadata(&self) -> Metadata {
        crate::dev::device_metadata(self.0.device, 0o620)
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}

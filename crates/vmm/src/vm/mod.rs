//! The VM process: one running VM. It is given descriptors and opens nothing by name but its own memory statistics,
//! before the guest's first instruction.
//!
//! Two threads: the first runs the virtual CPU ([`vcpu`]), the other moves frames and keeps the timer ([`io`]). What
//! they share is [`Machine`]. Either may end the process: [`Machine::finish`].
//!
//! Lock order: [`Machine::transmit`], then [`Machine::ledger`]. The timer has a lock of its own, under which no other is
//! taken.

pub mod boot;
mod control;
mod cpu;
mod crash;
mod io;
mod kernel;
mod kick;
mod memory;
mod process;
mod rings;
pub mod served;
mod slots;
mod start;
mod tables;
mod timer;
mod traps;
mod vcpu;

use control::Control;
use io::{Gate, Inbox};
use kick::Kicker;
use memory::{Gpa, GuestMemory, ImageMapping, OutOfRange};
use process::ResidentMemory;
use rings::TransmitRing;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use served::Pager;
use slots::RamSlots;
use std::borrow::Cow;
use std::fs::File;
use std::io::ErrorKind;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use thiserror::Error;
use timer::Timer;
use torpor_abi::ring::CorruptRing;
use torpor_streams::ledger::{Ledger, Violation};
use torpor_streams::link::{Message, report};
use vmm_sys_util::eventfd::EventFd;

pub use kernel::embedded as embedded_kernel;
pub(crate) use start::fail;
pub use start::run;

/// What the VM process is given.
#[derive(Debug)]
pub struct Given {
    /// An open /dev/kvm.
    pub kvm: OwnedFd,
    /// The guest kernel's ELF file.
    pub kernel: Cow<'static, [u8]>,
    /// The EROFS image.
    pub image: File,
    /// Its size in bytes, as checked by the broker.
    pub image_bytes: u64,
    /// The VM process's end of [`torpor_streams::link::pair`].
    pub link: OwnedFd,
    /// What the guest's programs may use.
    pub memory_limit_bytes: u64,
    /// What to run.
    pub program: boot::Program,
    /// Report every exit of the vCPU.
    pub debug_exits: bool,
    /// Of a VM that can be stored, or was.
    pub managed: Option<crate::serve::Managed>,
}

/// Why a VM can't go on.
#[derive(Debug, Error)]
enum Fatal {
    /// An ioctl of KVM failed.
    #[error("{call}: {error}")]
    Kvm {
        /// Which.
        call: &'static str,
        /// As it says.
        error: std::io::Error,
    },
    /// Another system call failed.
    #[error("{what}: {error}")]
    System {
        /// Which.
        what: &'static str,
        /// As it says.
        error: std::io::Error,
    },
    /// The host can't run this guest kernel.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The kernel file is bad.
    #[error(transparent)]
    Kernel(#[from] kernel::BadKernel),
    /// Counters that no ring can have.
    #[error("the guest kernel broke the ring protocol: head {:#x}, tail {:#x}", .0.head, .0.tail)]
    Ring(CorruptRing),
    /// A frame that breaks the protocol.
    #[error("the guest kernel broke the stream protocol: {0}")]
    Frame(#[from] Violation),
    /// The guest named memory that it has not got.
    #[error("the guest kernel named memory that it has not got: {0}")]
    Range(#[from] OutOfRange),
    /// A doorbell that does not exist.
    #[error("the guest kernel wrote {len} bytes to {gpa:?}, where there is neither memory nor a doorbell")]
    Doorbell {
        /// Where.
        gpa: Gpa,
        /// How much.
        len: usize,
    },
    /// A state that can't be had whole.
    #[error(transparent)]
    Lost(#[from] served::Lost),
    /// More host memory than allowed.
    #[error("the VM uses {used_mib} MiB of host memory, more than the {bound_mib} MiB that its size allows")]
    Resident {
        /// In use.
        used_mib: u64,
        /// Allowed.
        bound_mib: u64,
    },
    /// The image's file has changed under the VM.
    #[error("the image shrank from {from} to {to} bytes while it was in use; do not change the file of a running VM")]
    ImageShrank {
        /// At the start.
        from: u64,
        /// Now.
        to: u64,
    },
}

impl From<CorruptRing> for Fatal {
    fn from(error: CorruptRing) -> Self {
        Self::Ring(error)
    }
}

impl Fatal {
    /// For `map_err` on an ioctl.
    fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm { call, error: error.into() }
    }

    /// For `map_err` on a system call.
    fn system<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::System { what, error: error.into() }
    }
}

/// How a VM ends.
#[derive(Debug)]
pub enum End {
    /// The program ended with this wait status.
    Exited(u32),
    /// The program was killed because the VM's memory is used up.
    OutOfMemory {
        /// Its wait status.
        status: u32,
        /// For people.
        text: String,
    },
    /// The guest kernel could not start the program.
    StartFailed {
        /// As exec(2) would give it.
        errno: u32,
        /// For people.
        text: String,
    },
    /// The VM failed.
    Failed(String),
    /// Its state can't be had whole: what is stored of it is damaged.
    Damaged(String),
}

impl From<Fatal> for End {
    fn from(fatal: Fatal) -> Self {
        match fatal {
            Fatal::Lost(lost) => lost.into(),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<served::Lost> for End {
    fn from(lost: served::Lost) -> Self {
        Self::Damaged(lost.to_string())
    }
}

/// Frames on their way out.
#[derive(Debug, Default)]
struct Transmit {
    ring: TransmitRing,
    message: Message,
}

/// What both threads share.
#[derive(Debug)]
struct Machine {
    memory: GuestMemory,
    ram_slots: RamSlots,
    link: OwnedFd,
    transmit: Mutex<Transmit>,
    ledger: Mutex<Ledger>,
    timer: Timer,
    kicker: Kicker,
    /// Rung by [`torpor_abi::shared::doorbell::NOTIFY`].
    notify: EventFd,
    resident: ResidentMemory,
    /// How often the guest was told that there is something new.
    raised: AtomicU64,
    image: File,
    image_bytes: u64,
    image_mapping: ManuallyDrop<ImageMapping>,
    debug_exits: bool,
    /// For names in backtraces.
    kernel: Cow<'static, [u8]>,
    inbox: Mutex<Inbox>,
    /// Signals that the controller sends to the guest's first program: bit N - 1 for signal N.
    signals: AtomicU64,
    gate: Gate,
    /// Of a VM process that takes commands.
    served: Option<Serving>,
}

/// What a VM process that serves has besides.
struct Serving {
    /// A link without anybody at its other end, which stays here so that there never is a hang-up. None where the VM
    /// belongs to a broker, and ends with it.
    nobody: Option<(OwnedFd, OwnedFd)>,
    /// The link's other end is gone, and there is no new one yet: nothing is taken from the guest.
    is_unlinked: AtomicBool,
    watcher: Box<dyn Watcher>,
    /// For states that arrive by and by; none where the host has no userfaultfd for this process.
    pager: Option<Arc<Pager>>,
}

/// Hears of a served VM. Called from either thread.
pub trait Watcher: Send + Sync {
    /// The VM has ended. When this returns the process does.
    fn ended(&self, end: &End);
    /// The link's other end is gone, or broke the protocol; the VM goes on without.
    fn unlinked(&self, why: &str);
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}

impl Machine {
    fn control(&self) -> Control<'_> {
        Control(&self.memory)
    }

    /// Tells the guest that there is something new.
    fn raise(&self) {
        self.raised.fetch_add(1, Ordering::SeqCst);
        if self.control().pending().swap(1, Ordering::SeqCst) == 0 && self.kicker.kick() {
            self.notify_io();
        }
    }

    /// Sends what the guest has put into its ring, as far as the broker takes it without waiting. Returns whether all of
    /// it is sent.
    fn transmit(&self) -> Result<bool, Fatal> {
        let mut transmit = self.transmit.lock().expect("no holder panics");
        if self.is_unlinked() {
            return Ok(false);
        }
        let Transmit { ring, message } = &mut *transmit;
        loop {
            let taken = {
                let mut ledger = self.ledger.lock().expect("no holder panics");
                ring.take(&self.memory, &mut ledger, message)?
            };
            if taken && self.control().tx_wants_room().swap(0, Ordering::SeqCst) != 0 {
                self.raise();
            }
            if message.is_empty() {
                return Ok(true);
            }
            match message.send(&self.link) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if self.unlink(&error.to_string())? => return Ok(false),
                Err(error) => return Err(Fatal::system("sending to the broker")(error)),
            }
        }
    }

    /// Sends a report, however long the broker takes.
    fn report(&self, kind: u16, argument: u32, text: &str) -> Result<(), Fatal> {
        let mut transmit = self.transmit.lock().expect("no holder panics");
        let message = &mut transmit.message;
        let len = u32::try_from(text.len()).unwrap_or(u32::MAX).min(torpor_abi::frame::MAX_PAYLOAD_BYTES);
        if !message.fits(len) {
            send_waiting(message, &self.link)?;
        }
        message.push_report(kind, argument, text);
        send_waiting(message, &self.link)
    }

    /// Has whoever moves frames look anew.
    fn notify_io(&self) {
        // A counter that is full has been written to.
        let _ = self.notify.write(1);
    }

    /// Has a signal, 1 to 64, sent to the guest's first program.
    fn signal(&self, number: u32) {
        self.signals.fetch_or(1 << (number - 1), Ordering::SeqCst);
        self.notify_io();
    }

    /// The next signal that is to be sent.
    fn take_signal(&self) -> Option<u32> {
        let asked = self.signals.load(Ordering::SeqCst);
        let number = asked.trailing_zeros() + 1;
        (asked != 0).then(|| {
            self.signals.fetch_and(!(1 << (number - 1)), Ordering::SeqCst);
            number
        })
    }

    /// The link is of no use any more: the VM goes on without, and what the guest sends waits for the next one. False where
    /// a VM does not go on without.
    fn unlink(&self, why: &str) -> Result<bool, Fatal> {
        let Some(served) = &self.served else { return Ok(false) };
        let Some((nobody, _)) = &served.nobody else { return Ok(false) };
        if !served.is_unlinked.swap(true, Ordering::SeqCst) {
            self.replace_link(nobody)?;
            served.watcher.unlinked(why);
        }
        Ok(true)
    }

    /// Whether the link was lost.
    fn is_unlinked(&self) -> bool {
        self.served.as_ref().is_some_and(|served| served.is_unlinked.load(Ordering::SeqCst))
    }

    /// Makes `link` the link, or one without anybody at its other end. The caller sees to it that frames and ledger are
    /// those of its beginning.
    fn attach(&self, link: Option<&OwnedFd>) -> Result<(), Fatal> {
        let served = self.served.as_ref().expect("only the links of a VM that is served are replaced");
        if let Some(link) = link.or(served.nobody.as_ref().map(|(nobody, _)| nobody)) {
            self.replace_link(link)?;
        }
        served.is_unlinked.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Lets the I/O thread go on, unless frames are moved without it, and makes it look anew: it may be waiting for events of
    /// a link that was replaced.
    fn open_gate(&self) {
        if self.gate.open() {
            self.notify_io();
        }
    }

    /// Puts `link` under the number of the former one.
    fn replace_link(&self, link: &OwnedFd) -> Result<(), Fatal> {
        // SAFETY: dup3(2) replaces what our own descriptor refers to at once; its owner stays its owner.
        let done = unsafe { libc::dup3(link.as_raw_fd(), self.link.as_raw_fd(), libc::O_CLOEXEC) };
        if done < 0 { Err(Fatal::system("dup3")(std::io::Error::last_os_error())) } else { Ok(()) }
    }

    /// Ends the process. What the program wrote is sent before, all of it, unless the guest has broken the protocol.
    fn finish(&self, end: End) -> ! {
        if let Some(served) = &self.served {
            if let Some((nobody, _)) = &served.nobody {
                // Nobody may be reading: what is sent without waiting is all.
                let _ = self.transmit();
                // That the link ends here is seen at its other end, however long a controller is waited for.
                let _ = self.replace_link(nobody);
            }
            served.watcher.ended(&end);
            if served.nobody.is_some() {
                process::exit()
            }
        }
        let orderly = !matches!(end, End::Failed(_) | End::Damaged(_));
        if orderly {
            loop {
                match self.transmit() {
                    Ok(true) => break,
                    Ok(false) => wait_writable(&self.link, None),
                    Err(fatal) => self.finish(fatal.into()),
                }
            }
        }
        // Where even this fails the broker is gone, or sees the end of the socket and says so.
        let _ = match end {
            // The guest kernel has said more of its memory in its log.
            End::Exited(status) | End::OutOfMemory { status, .. } => self.report(report::EXITED, status, ""),
            End::StartFailed { errno, text } => self.report(report::START_FAILED, errno, &text),
            End::Failed(text) | End::Damaged(text) => self.report(report::FAILED, 0, &text),
        };
        process::exit()
    }

    /// Makes whole pages ordinary memory: what is late of them arrives.
    fn provide(&self, gpa: Gpa, len: u64) -> Result<(), Fatal> {
        match self.served.as_ref().and_then(|served| served.pager.as_ref()) {
            Some(pager) => Ok(pager.provide(gpa.0, len)?),
            None => Ok(()),
        }
    }

    /// Ends the process with the reason, if there is one.
    fn expect<T>(&self, result: Result<T, Fatal>) -> T {
        result.unwrap_or_else(|fatal| self.finish(fatal.into()))
    }
}

fn wait_writable(link: &OwnedFd, timeout: Option<&Timespec>) {
    // An error shows at the next send.
    let _ = poll(&mut [PollFd::new(link, PollFlags::OUT)], timeout);
}

fn send_waiting(message: &mut Message, link: &OwnedFd) -> Result<(), Fatal> {
    while !message.is_empty() {
        match message.send(link) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait_writable(link, None),
            Err(error) => return Err(Fatal::system("sending to the broker")(error)),
        }
    }
    Ok(())
}

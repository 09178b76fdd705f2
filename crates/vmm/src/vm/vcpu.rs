//! The thread that runs the virtual CPU: exits, doorbells, injection of events, idle.

use super::kernel::Symbols;
use super::kick::Stint;
use super::memory::Gpa;
use super::timer::now_ns;
use super::{End, Fatal, Machine, crash, io};
use kvm_bindings::{KVMIO, kvm_interrupt};
use kvm_ioctls::{IoEventAddress, NoDatamatch, SyncReg, VcpuExit, VcpuFd, VmFd};
use rustix::time::ClockId;
use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::Instant;
use torpor_abi::layout::{DOORBELL_GPA, PAGE_BYTES};
use torpor_abi::shared::{EVENT_VECTOR, doorbell, exit};
use torpor_streams::link::report;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);

const NOTIFY: Gpa = Gpa(DOORBELL_GPA + doorbell::NOTIFY);
const IDLE: Gpa = Gpa(DOORBELL_GPA + doorbell::IDLE);

const RFLAGS_IF: u64 = 1 << 9;

/// After so many notifications they become an ioeventfd, which no longer stops the vCPU: an exit costs 25 us on a software
/// KVM, an ioeventfd 2, but Linux 6.18 takes 14 ms longer to end a VM that has one (it waits for an SRCU grace period).
const NOTIFICATIONS_BY_EXIT: u32 = 256;

/// What KVM_RUN returned with, copied out of the shared page.
#[derive(Debug)]
enum Exit {
    /// Nothing to do: interrupted, or an interrupt window.
    None,
    /// A write where there is no memory.
    Write { gpa: Gpa, data: [u8; 8], len: usize },
    /// The guest can't continue.
    Crash(String),
}

/// A doorbell at which the VM waits for a command ([`torpor_abi::handover`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// QUIESCED, with its reason.
    Quiesced(u32),
    /// PARKED.
    Parked,
}

/// What is kept from one entry to the next.
#[derive(Debug)]
pub(super) struct Progress {
    wants_event: bool,
    notifications: u32,
    stint: Stint,
    /// When this process's memory was measured.
    checked_at: Instant,
}

impl Progress {
    /// For the calling thread, which is the vCPU's.
    ///
    /// # Errors
    /// [`Fatal::System`].
    pub(super) fn new(machine: &Machine) -> Result<Self, Fatal> {
        let stint = Stint::new(&machine.kicker).map_err(Fatal::system("timer_create"))?;
        Ok(Self { wants_event: false, notifications: 0, stint, checked_at: Instant::now() })
    }

    /// The guest is another one, and was told of nothing yet.
    pub(super) fn forget_events(&mut self) {
        self.wants_event = false;
    }
}

/// Runs the guest until it ends, and the process with it.
pub(super) fn run(machine: &'static Machine, vm: &VmFd, mut vcpu: VcpuFd) -> ! {
    let mut progress = machine.expect(Progress::new(machine));
    let stop = run_until_stop(machine, vm, &mut vcpu, &mut progress);
    machine.finish(End::Failed(format!("the guest kernel stopped though nobody had asked for it: {stop:?}")))
}

/// Runs the guest until it waits for a command. If it ends, the process does.
pub(super) fn run_until_stop(machine: &'static Machine, vm: &VmFd, vcpu: &mut VcpuFd, progress: &mut Progress) -> Stop {
    loop {
        let Progress { wants_event, notifications, stint, checked_at } = progress;
        *wants_event |= machine.kicker.before_run();
        if machine.gate.is_lent() && stint.is_over() {
            machine.gate.give_back();
            // It may be behind, or asked to do something.
            machine.notify_io();
        }
        machine.expect(deliver_event(machine, vcpu, wants_event));
        let exit = machine.expect(enter(machine, vcpu));
        machine.kicker.after_run();
        if machine.debug_exits {
            let rip = vcpu.sync_regs().regs.rip;
            machine.expect(machine.report(report::DEBUG, 0, &format!("exit {exit:x?} rip {rip:#x}")));
        }
        match exit {
            Exit::None => {}
            Exit::Write { gpa: NOTIFY, len: 4, .. } => {
                machine.expect(look_at_rings(machine));
                *notifications += 1;
                if *notifications == NOTIFICATIONS_BY_EXIT {
                    let address = IoEventAddress::Mmio(NOTIFY.0);
                    let registered = vm.register_ioevent(&machine.notify, &address, NoDatamatch);
                    machine.expect(registered.map_err(Fatal::kvm("KVM_IOEVENTFD")));
                }
            }
            Exit::Write { gpa: IDLE, len: 4, .. } => {
                machine.expect(io::serve_idle(machine, checked_at));
                stint.idle();
                // The first thing that it does now is to look at everything.
                machine.kicker.forget();
                *wants_event = false;
            }
            Exit::Write { gpa, data, len } => {
                if let Some(stop) = machine.expect(ring(machine, vm, gpa, &data[..len])) {
                    return stop;
                }
            }
            Exit::Crash(what) => {
                let text = crash::describe(&what, &machine.memory, &vcpu.sync_regs(), &Symbols::new(&machine.kernel));
                machine.finish(End::Failed(text));
            }
        }
    }
}

/// Runs the guest until it exits.
fn enter(machine: &Machine, vcpu: &mut VcpuFd) -> Result<Exit, Fatal> {
    let crash = |what: String| Ok(Exit::Crash(what));
    match vcpu.run() {
        Ok(VcpuExit::MmioWrite(gpa, bytes)) => {
            let mut data = [0; 8];
            let len = bytes.len().min(data.len());
            data[..len].copy_from_slice(&bytes[..len]);
            Ok(Exit::Write { gpa: Gpa(gpa), data, len })
        }
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Ok(Exit::None),
        Ok(VcpuExit::MmioRead(gpa, _)) => crash(format!("the guest read {gpa:#x}, where there is no memory")),
        Ok(VcpuExit::Shutdown) => crash("the guest kernel triple-faulted".into()),
        Ok(VcpuExit::InternalError) => crash(internal_error(vcpu)),
        Ok(VcpuExit::FailEntry(reason, _)) => crash(format!("KVM could not enter the guest: reason {reason:#x}")),
        Ok(VcpuExit::MemoryFault { gpa, .. }) => memory_fault(machine, Some(gpa)),
        Ok(other) => crash(format!("the guest stopped in an unexpected way: {other:?}")),
        Err(error) => {
            let error = std::io::Error::from(error);
            match error.kind() {
                ErrorKind::Interrupted | ErrorKind::WouldBlock => Ok(Exit::None),
                _ if error.raw_os_error() == Some(libc::EFAULT) => memory_fault(machine, None),
                _ => Err(Fatal::Kvm { call: "KVM_RUN", error }),
            }
        }
    }
}

/// The host could not supply a page: of the image, because its file has shrunk, or because it is out of memory.
fn memory_fault(machine: &Machine, gpa: Option<u64>) -> Result<Exit, Fatal> {
    let now = machine.image.metadata().map_err(Fatal::system("fstat of the image"))?.len();
    if now < machine.image_bytes {
        return Err(Fatal::ImageShrank { from: machine.image_bytes, to: now });
    }
    let place = gpa.map_or(String::new(), |gpa| format!(" at guest-physical {gpa:#x}"));
    Ok(Exit::Crash(format!("the host could not supply memory{place}: out of memory, or the image can't be read")))
}

fn internal_error(vcpu: &mut VcpuFd) -> String {
    // SAFETY: the exit reason says that this is the union's valid member.
    let internal = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    let data = &internal.data[..(internal.ndata as usize).min(internal.data.len())];
    let what = match internal.suberror {
        1 => "an instruction that it can't emulate",
        2 => "an exception while it delivered another",
        _ => "an internal error",
    };
    format!("KVM gave up: {what} (suberror {}, {data:x?})", internal.suberror)
}

/// Injects [`EVENT_VECTOR`] if there is an event that the guest has not been told about, and it can be told now.
fn deliver_event(machine: &Machine, vcpu: &mut VcpuFd, wants_event: &mut bool) -> Result<(), Fatal> {
    vcpu.get_kvm_run().request_interrupt_window = 0;
    if !*wants_event {
        return Ok(());
    }
    let control = machine.control();
    // Seen already, or about to be: a guest that handles an interrupt looks at `pending` when it is through.
    if control.pending().load(Ordering::SeqCst) == 0 || control.interrupt_busy().load(Ordering::SeqCst) != 0 {
        *wants_event = false;
        return Ok(());
    }
    let sync = vcpu.sync_regs_mut();
    if sync.sregs.ss.dpl == 0 && sync.regs.rflags & RFLAGS_IF != 0 {
        // In the system call stub at CPL 0, which no handler could return to (see `SYSCALL_FLAG_MASK`): IF as SFMASK
        // would have left it. The stub's `iretq` sets it again, and that opens the window.
        sync.regs.rflags &= !RFLAGS_IF;
        vcpu.set_sync_dirty_reg(SyncReg::Register);
        vcpu.get_kvm_run().request_interrupt_window = 1;
    } else if vcpu.get_kvm_run().ready_for_interrupt_injection != 0 {
        control.interrupt_busy().store(1, Ordering::SeqCst);
        let interrupt = kvm_interrupt { irq: u32::from(EVENT_VECTOR) };
        // SAFETY: KVM_INTERRUPT reads a struct kvm_interrupt.
        if unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &interrupt) } != 0 {
            return Err(Fatal::Kvm { call: "KVM_INTERRUPT", error: std::io::Error::last_os_error() });
        }
        *wants_event = false;
    } else {
        vcpu.get_kvm_run().request_interrupt_window = 1;
    }
    Ok(())
}

/// Does what a doorbell asks for.
fn ring(machine: &'static Machine, vm: &VmFd, gpa: Gpa, data: &[u8]) -> Result<Option<Stop>, Fatal> {
    let unknown = || Fatal::Doorbell { gpa, len: data.len() };
    let offset = gpa.0.checked_sub(DOORBELL_GPA).filter(|&offset| offset < PAGE_BYTES).ok_or_else(unknown)?;
    let value = u32::from_le_bytes(data.try_into().map_err(|_| unknown())?);
    let control = machine.control();
    match offset {
        doorbell::EXIT => end(machine, value),
        doorbell::CLOCK => {
            control.handshake_monotonic_ns().store(now_ns(ClockId::Monotonic), Ordering::SeqCst);
            control.handshake_realtime_ns().store(now_ns(ClockId::Realtime), Ordering::SeqCst);
        }
        doorbell::POPULATE | doorbell::DISCARD => {
            let gpa = Gpa(control.populate_gpa().load(Ordering::SeqCst));
            let len = control.populate_bytes().load(Ordering::SeqCst);
            machine.provide(gpa, len)?;
            if offset == doorbell::POPULATE {
                machine.ram_slots.cover(vm, &machine.memory, gpa.0.saturating_add(len))?;
                machine.memory.populate(gpa, len)?.map_err(Fatal::system("backing the guest's memory"))?;
                machine.resident.check()?;
            } else {
                machine.memory.discard(gpa, len)?.map_err(Fatal::system("taking back the guest's memory"))?;
            }
        }
        doorbell::QUIESCED => return Ok(Some(Stop::Quiesced(value))),
        doorbell::PARKED => return Ok(Some(Stop::Parked)),
        _ => return Err(unknown()),
    }
    Ok(None)
}

/// Does what the I/O thread does when it is notified, as far as that can be done at once.
fn look_at_rings(machine: &Machine) -> Result<(), Fatal> {
    let control = machine.control();
    machine.timer.update(&machine.memory).map_err(Fatal::system("timerfd_settime"))?;
    let sent = control.tx_polling().load(Ordering::SeqCst) != 0 || machine.transmit()?;
    // The broker is behind, or a message of its waits for room: the I/O thread knows how to wait.
    if !sent || control.rx_wants_room().load(Ordering::SeqCst) != 0 {
        machine.notify.write(1).map_err(Fatal::system("eventfd"))?;
    }
    Ok(())
}

fn end(machine: &Machine, value: u32) -> ! {
    let control = machine.control();
    let status = control.exit_status().load(Ordering::SeqCst);
    machine.finish(match value {
        exit::PROGRAM => End::Exited(status),
        exit::OUT_OF_MEMORY => End::OutOfMemory { status, text: control.panic_text() },
        exit::START_FAILED => End::StartFailed { errno: status, text: control.panic_text() },
        exit::PANIC => End::Failed(crash::panic(&control.panic_text(), &Symbols::new(&machine.kernel))),
        other => End::Failed(format!("the guest kernel ended with the unknown reason {other}")),
    })
}

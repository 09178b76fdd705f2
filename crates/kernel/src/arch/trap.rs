//! What entries call: system calls, exceptions, host events, and the last checks before a program goes on.

use super::regs::UserRegs;
use super::{entry, fpu, tsc};
use crate::host;
use crate::mm::addr::UserAddr;
use crate::mm::space::{FaultAccess, FaultOutcome};
use crate::task::sched;
use crate::task::signal::{self, Fault};
use crate::time::{self, Instant};
use crate::{rewrite, task};
use core::cell::Cell;
use core::sync::atomic::Ordering;
use torpor_abi::layout::{PAGE_BYTES, USER_END};

struct Announced {
    /// Host CLOCK_MONOTONIC of the event asked for since the last one came.
    deadline_ns: Cell<u64>,
    tick_at: Cell<Instant>,
}

/// Where user space ends on Linux; ours ends below.
const TASK_SIZE_MAX: u64 = (1 << 47) - PAGE_BYTES;

crate::global! {
    static ANNOUNCED: Announced = Announced { deadline_ns: Cell::new(u64::MAX), tick_at: Cell::new(Instant::FAR) };
}

/// A system call that trapped. The result is in `rax` when this returns.
#[unsafe(no_mangle)]
extern "C" fn handle_syscall(regs: *const UserRegs) {
    sched::enter_kernel();
    // SAFETY: the entry built the frame at the top of this thread's kernel stack; nothing changes it meanwhile.
    if rewrite::count_trap(unsafe { (*regs).rip }, super::tlb::active().0) {
        // SAFETY: as above.
        let regs = unsafe { regs.read() };
        rewrite::rewrite(&task::current().process.space(), &regs, entry::entry_fast as *const () as u64);
    }
    crate::syscall::entry::system_call();
    before_return();
}

/// A system call that came by an island.
#[unsafe(no_mangle)]
extern "C" fn handle_fast_syscall() {
    sched::enter_kernel();
    rewrite::count_fast();
    crate::syscall::entry::system_call();
    before_return();
}

/// An interrupt came while the kernel was on its way out.
#[unsafe(no_mangle)]
extern "C" fn handle_return() {
    before_return();
}

/// A host event interrupted the program.
#[unsafe(no_mangle)]
extern "C" fn handle_event(regs: *mut UserRegs) {
    // The frame is copied and the handler's stack is free: the next may come.
    host::control().interrupt_busy.store(0, Ordering::SeqCst);
    sched::enter_kernel();
    leave_island(regs);
    before_return();
}

/// Registers of a program that was interrupted are those of its own code.
fn leave_island(regs: *mut UserRegs) {
    let thread = task::current();
    if let Some(space) = thread.process.try_space() {
        // SAFETY: the entry built the frame at the top of this thread's kernel stack; nobody else refers to it now.
        rewrite::leave_island(&space, unsafe { &mut *regs });
    }
}

/// First thing that a new thread does on its kernel stack.
#[unsafe(no_mangle)]
extern "C" fn handle_thread_start() {
    sched::finish_switch();
    before_return();
}

/// Looks at what the host has sent and at timers that are due. Called with every entry that an event may have caused,
/// and by the scheduler around idling.
pub fn handle_host_events() {
    // SAFETY: an atomic that the interrupt entry sets.
    let deferred = unsafe { &entry::deferred };
    if deferred.load(Ordering::Relaxed) != 0 {
        deferred.store(0, Ordering::Relaxed);
        host::control().interrupt_busy.store(0, Ordering::SeqCst);
    }
    if host::control().pending.load(Ordering::Relaxed) == 0 {
        return;
    }
    host::poll();
    let stamp = tsc::read();
    if time::CLOCK.with(|c| c.renewal_due(stamp)) {
        time::renew();
    }
    let now = time::now();
    let tick_is_due = ANNOUNCED.with(|a| now >= a.tick_at.get() && a.tick_at.replace(Instant::FAR) != Instant::FAR);
    if tick_is_due {
        sched::tick();
    }
    sched::run_expired(now);
    // The host's timer may have been the reason; it has to be set anew.
    ANNOUNCED.with(|a| a.deadline_ns.set(u64::MAX));
    host::forget_deadline();
}

/// The VM process is another one: it knows of no deadline, and of no interrupt that is being handled.
pub(crate) fn forget_events() {
    // SAFETY: an atomic that the interrupt entry sets.
    unsafe { &entry::deferred }.store(0, Ordering::Relaxed);
    // One that came since is through, too: what it was for is looked at before any program goes on.
    host::control().interrupt_busy.store(0, Ordering::SeqCst);
    ANNOUNCED.with(|a| {
        a.deadline_ns.set(u64::MAX);
        a.tick_at.set(Instant::FAR);
    });
}

/// Tells the host when the kernel wants to run again. `idle` leaves the tick out.
fn announce_deadline(idle: bool) {
    ANNOUNCED.with(|a| {
        if idle || !sched::wants_tick() {
            a.tick_at.set(Instant::FAR);
        } else if a.tick_at.get() == Instant::FAR {
            a.tick_at.set(time::now().after_ns(sched::TICK_NS));
        }
        let wanted = sched::next_deadline().min(a.tick_at.get());
        let wanted_ns = time::CLOCK.with(|c| c.host_deadline_ns(wanted));
        if wanted_ns != a.deadline_ns.replace(wanted_ns) {
            host::want_event_at(wanted_ns, idle);
        }
    });
}

/// Sleeps until the host has something or a deadline has come, unless a thread is runnable by then.
pub fn idle() {
    handle_host_events();
    // A stop counts as an event: what waits may be due by now.
    if sched::wants_tick() || crate::snapshot::stop_if_wanted(true) {
        return;
    }
    announce_deadline(true);
    host::idle();
    handle_host_events();
}

/// Everything that has to happen before the program goes on: host events, other threads, signals.
fn before_return() {
    loop {
        handle_host_events();
        if crate::snapshot::stop_if_wanted(false) {
            continue;
        }
        if sched::need_resched() {
            sched::schedule();
            continue;
        }
        if signal::work_pending() {
            signal::deliver();
            continue;
        }
        let at = task::current().state.instruction_pointer();
        if at >= USER_END {
            // A tracer, or a signal handler's frame, says so. `iretq` would fault within the kernel.
            force(&fault_at(at));
            continue;
        }
        break;
    }
    announce_deadline(false);
    sched::leave_kernel();
}

/// An exception that the program caused.
#[unsafe(no_mangle)]
extern "C" fn handle_exception(regs: *mut UserRegs, vector: u64, error: u64) {
    sched::enter_kernel();
    leave_island(regs);
    // SAFETY: the entry built the frame at the top of this thread's kernel stack; it is read before anything changes it.
    let regs = &unsafe { regs.read() };
    match vector {
        14 => page_fault(regs, error),
        _ => {
            let fault = classify(regs, vector, error);
            force(&fault);
        }
    }
    before_return();
}

fn page_fault(regs: &UserRegs, error: u64) {
    // SAFETY: a static that only the page fault stub writes; no other page fault can come before this one is handled.
    let address = unsafe { core::ptr::read_volatile(&raw const entry::page_fault_address) };
    let access = if error & 16 != 0 {
        FaultAccess::Execute
    } else if error & 2 != 0 {
        FaultAccess::Write
    } else {
        FaultAccess::Read
    };
    let outcome = if address < USER_END {
        crate::task::current().process.space().fault(UserAddr(address), access)
    } else {
        FaultOutcome::Unmapped
    };
    let (signal, code) = match outcome {
        FaultOutcome::Resolved => return,
        FaultOutcome::Unmapped => (signal::SIGSEGV, signal::SEGV_MAPERR),
        FaultOutcome::Denied => (signal::SIGSEGV, signal::SEGV_ACCERR),
        FaultOutcome::BeyondEnd => (signal::SIGBUS, signal::BUS_ADRERR),
        FaultOutcome::OutOfMemory => {
            crate::task::oom::make_room();
            return;
        }
    };
    force(&Fault { signal, code, address, vector: 14, error: page_error(address, error), cr2: address, rip: regs.rip });
}

/// A page fault's error code as programs see it. What is mapped beyond their own part is not told: it counts as present.
fn page_error(address: u64, error: u64) -> u64 {
    error & 0x17 | 4 | u64::from(address >= TASK_SIZE_MAX)
}

/// The fault of a program that is sent to where it can't be: at the fetch, or at the `iretq` if the address is not canonical.
fn fault_at(rip: u64) -> Fault {
    let canonical = rip.cast_signed() << 16 >> 16 == rip.cast_signed();
    let (code, address, vector, error) =
        if canonical { (signal::SEGV_MAPERR, rip, 14, page_error(rip, 16)) } else { (signal::SI_KERNEL, 0, 13, 0) };
    Fault { signal: signal::SIGSEGV, code, address, vector, error, cr2: address, rip }
}

fn force(fault: &Fault) {
    if crate::syscall::dispatch::tracing() {
        let name = fault.signal.name().unwrap_or("signal");
        let text = alloc::format!(
            "--- {name} {{si_code={}, si_addr={:#x}}} at {:#x} (vector {}, error {:#x}) ---",
            fault.code,
            fault.address,
            fault.rip,
            fault.vector,
            fault.error
        );
        crate::syscall::trace::note(crate::task::current().tid(), &text);
    }
    signal::force(fault);
}

/// Signal, code and address of an exception, as Linux's arch/x86/kernel/traps.c documents them in sigaction(2).
fn classify(regs: &UserRegs, vector: u64, error: u64) -> Fault {
    let (signal, code, address) = match vector {
        0 => (signal::SIGFPE, signal::FPE_INTDIV, regs.rip),
        1 => (signal::SIGTRAP, signal::TRAP_TRACE, regs.rip),
        3 => (signal::SIGTRAP, signal::SI_KERNEL, 0),
        6 => (signal::SIGILL, signal::ILL_ILLOPN, regs.rip),
        16 => (signal::SIGFPE, x87_code(), regs.rip),
        17 => (signal::SIGBUS, signal::BUS_ADRALN, 0),
        19 => (signal::SIGFPE, sse_code(regs.mxcsr as u32), regs.rip),
        12 => (signal::SIGBUS, signal::SI_KERNEL, 0),
        4 | 5 | 13 => (signal::SIGSEGV, signal::SI_KERNEL, 0),
        _ => (signal::SIGSEGV, signal::SI_KERNEL, 0),
    };
    Fault { signal, code, address, vector, error, cr2: 0, rip: regs.rip }
}

/// The first unmasked exception among status bits (invalid, denormal, zero divide, overflow, underflow, precision).
fn fpe_code(unmasked: u32) -> i32 {
    if unmasked & 1 != 0 {
        signal::FPE_FLTINV
    } else if unmasked & 4 != 0 {
        signal::FPE_FLTDIV
    } else if unmasked & 8 != 0 {
        signal::FPE_FLTOVF
    } else if unmasked & 0x12 != 0 {
        signal::FPE_FLTUND
    } else if unmasked & 0x20 != 0 {
        signal::FPE_FLTRES
    } else {
        0
    }
}

fn sse_code(mxcsr: u32) -> i32 {
    fpe_code(mxcsr & 0x3f & !(mxcsr >> 7 & 0x3f))
}

fn x87_code() -> i32 {
    let state = {
        let mut state = fpu::ExtendedState::initial();
        state.save_processor();
        state
    };
    let word = |at: usize| u32::from(u16::from_le_bytes([state.bytes()[at], state.bytes()[at + 1]]));
    let (control, status) = (word(0), word(2));
    fpe_code(status & 0x3f & !(control & 0x3f))
}

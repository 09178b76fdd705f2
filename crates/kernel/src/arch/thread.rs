//! What a thread is to the processor: its kernel stack, and its registers while it does not run.

use super::entry;
use super::fpu::ExtendedState;
use super::regs::{USER_REGS_BYTES, UserRegs};
use crate::errno::Result;
use crate::mm::stack::KernelStack;
use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicPtr, Ordering};

/// See the module's text.
pub struct ThreadState {
    stack: KernelStack,
    /// Kernel stack pointer while the thread does not run.
    kernel_rsp: Cell<u64>,
    fs_base: Cell<u64>,
    gs_base: Cell<u64>,
    /// Everything but xmm0-15 and MXCSR, while the thread does not run.
    extended: RefCell<ExtendedState>,
    replaced: Cell<bool>,
}

/// The thread whose registers the processor holds.
static RUNNING: AtomicPtr<ThreadState> = AtomicPtr::new(core::ptr::null_mut());

impl ThreadState {
    /// A thread that begins in its program with `regs` when it is first switched to.
    ///
    /// # Errors
    /// ENOMEM: no memory for the kernel stack.
    pub fn new_user(regs: &UserRegs, fs_base: u64, gs_base: u64) -> Result<Self> {
        let stack = KernelStack::new()?;
        let frame = stack.top() - USER_REGS_BYTES as u64;
        // Below the frame: what `switch_stacks` pops, six registers and where to go.
        let start = frame - 56;
        // SAFETY: the new stack is mapped, owned by us and in use by nobody.
        unsafe {
            (frame as *mut UserRegs).write(*regs);
            (start as *mut [u64; 7]).write([0, 0, 0, 0, 0, 0, entry::thread_entry as *const () as u64]);
        }
        Ok(Self {
            stack,
            kernel_rsp: Cell::new(start),
            fs_base: Cell::new(fs_base),
            gs_base: Cell::new(gs_base),
            extended: RefCell::new(ExtendedState::initial()),
            replaced: Cell::new(false),
        })
    }

    fn running(&self) -> bool {
        core::ptr::eq(RUNNING.load(Ordering::Relaxed), self)
    }

    /// FS base (thread pointer).
    #[must_use]
    pub fn fs_base(&self) -> u64 {
        if self.running() { read_fs_base() } else { self.fs_base.get() }
    }

    /// Changes the FS base; `base` is below USER_END.
    pub fn set_fs_base(&self, base: u64) {
        self.fs_base.set(base);
        if self.running() {
            write_fs_base(base);
        }
    }

    /// GS base.
    #[must_use]
    pub fn gs_base(&self) -> u64 {
        if self.running() { read_gs_base() } else { self.gs_base.get() }
    }

    /// Changes the GS base; `base` is below USER_END.
    pub fn set_gs_base(&self, base: u64) {
        self.gs_base.set(base);
        if self.running() {
            write_gs_base(base);
        }
    }

    /// Gives this (not yet running) thread the extended state of `other`, the running one: fork and clone.
    pub fn copy_extended(&self, other: &ThreadState) {
        let mut extended = self.extended.borrow_mut();
        extended.save_processor();
        extended.put_vectors(&other.regs());
    }

    /// Puts the running thread's extended state into its initial configuration: execve, and entry of a signal handler.
    pub fn reset_extended(&self) {
        self.load_extended(&ExtendedState::initial());
    }

    /// A copy of the extended state.
    #[must_use]
    pub fn extended(&self) -> ExtendedState {
        let mut state = if self.running() {
            let mut state = ExtendedState::initial();
            state.save_processor();
            state
        } else {
            self.extended.borrow().clone()
        };
        state.put_vectors(&self.regs());
        state
    }

    /// Replaces the extended state.
    pub fn load_extended(&self, state: &ExtendedState) {
        let mut regs = self.regs();
        state.take_vectors(&mut regs);
        self.set_regs(&regs);
        if self.running() {
            state.restore_processor();
        } else {
            *self.extended.borrow_mut() = state.clone();
        }
    }

    /// The program's registers, as its last entry left them and its next return takes them.
    #[must_use]
    pub fn regs(&self) -> UserRegs {
        // SAFETY: the top of the kernel stack always holds the frame; nobody keeps a reference to it across this call
        // but `handle_*` in trap.rs, which hand theirs on and do not use it meanwhile.
        unsafe { self.regs_ptr().read() }
    }

    /// Replaces the program's registers, also the system call's result: for execve(2) and rt_sigreturn(2).
    pub fn replace_regs(&self, regs: &UserRegs) {
        self.set_regs(regs);
        self.replaced.set(true);
    }

    /// Whether the registers were replaced since the last call.
    pub fn take_replaced(&self) -> bool {
        self.replaced.replace(false)
    }

    /// Where the program goes on.
    #[must_use]
    pub fn instruction_pointer(&self) -> u64 {
        // SAFETY: as for `regs`.
        unsafe { (*self.regs_ptr()).rip }
    }

    /// Sets the result of the system call.
    pub fn set_result(&self, rax: u64) {
        // SAFETY: as for `regs`.
        unsafe { (*self.regs_ptr()).rax = rax };
    }

    /// Sets the program's registers.
    pub fn set_regs(&self, regs: &UserRegs) {
        // SAFETY: as for `regs`.
        unsafe { self.regs_ptr().write(*regs) };
    }

    fn regs_ptr(&self) -> *mut UserRegs {
        (self.stack.top() - USER_REGS_BYTES as u64) as *mut UserRegs
    }
}

fn read_fs_base() -> u64 {
    let base: u64;
    // SAFETY: the VM process refuses hosts without FSGSBASE.
    unsafe { core::arch::asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

fn write_fs_base(base: u64) {
    // SAFETY: as for reading; bases are below USER_END, so canonical. The kernel itself does not use FS.
    unsafe { core::arch::asm!("wrfsbase {}", in(reg) base, options(nomem, nostack, preserves_flags)) };
}

fn read_gs_base() -> u64 {
    let base: u64;
    // SAFETY: as for FS.
    unsafe { core::arch::asm!("rdgsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

fn write_gs_base(base: u64) {
    // SAFETY: as for FS.
    unsafe { core::arch::asm!("wrgsbase {}", in(reg) base, options(nomem, nostack, preserves_flags)) };
}

fn enter(next: &ThreadState) {
    // SAFETY: a static that only this function writes and only the system call stub and `return_to_user` read.
    unsafe { (&raw mut entry::syscall_frame).cast::<u64>().add(3).write(next.stack.top()) };
    next.extended.borrow().restore_processor();
    write_fs_base(next.fs_base.get());
    write_gs_base(next.gs_base.get());
    RUNNING.store(core::ptr::from_ref(next).cast_mut(), Ordering::Relaxed);
}

/// Leaves `prev` (the running thread) and goes on with `next`; returns when somebody switches back. The caller has
/// activated next's address space, keeps both alive, and holds no borrow.
pub fn switch(prev: &ThreadState, next: &ThreadState) {
    prev.extended.borrow_mut().save_processor();
    prev.fs_base.set(read_fs_base());
    prev.gs_base.set(read_gs_base());
    enter(next);
    // SAFETY: next's stack pointer was left by an earlier `switch` or prepared by `new`, and its stack is alive.
    unsafe { entry::switch_stacks(prev.kernel_rsp.as_ptr(), next.kernel_rsp.get()) };
}

/// Stores what the processor holds of the running thread, so that all of it is in memory.
pub fn save_running() {
    let running = RUNNING.load(Ordering::Relaxed);
    // SAFETY: the running thread is kept by the scheduler, also one that has ended until the next one runs.
    let running = unsafe { &*running };
    running.extended.borrow_mut().save_processor();
    running.fs_base.set(read_fs_base());
    running.gs_base.set(read_gs_base());
}

/// Loads what [`save_running`] stored.
pub fn load_running() {
    // SAFETY: as for `save_running`; the state in memory is the one that it left.
    enter(unsafe { &*RUNNING.load(Ordering::Relaxed) });
}

/// Leaves the boot stack for the first thread.
pub fn start(first: &ThreadState) -> ! {
    enter(first);
    let mut boot_rsp = 0;
    // SAFETY: as for `switch`; the boot stack is never used again.
    unsafe { entry::switch_stacks(&raw mut boot_rsp, first.kernel_rsp.get()) };
    unreachable!("the boot stack was switched to");
}

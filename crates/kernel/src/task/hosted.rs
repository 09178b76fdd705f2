//! What the architecture provides in the guest, for an ordinary process: registers without a processor, and an idle
//! processor whose clock jumps to the next deadline.

use crate::arch::regs::UserRegs;
use crate::errno::Result;
use crate::mm::space::AddressSpace;
use crate::time;
use core::cell::Cell;

/// A thread's processor state.
pub struct ThreadState {
    regs: Cell<UserRegs>,
    fs_base: Cell<u64>,
    gs_base: Cell<u64>,
}

impl ThreadState {
    /// A thread that starts in its program with `regs`.
    ///
    /// # Errors
    /// ENOMEM, in the guest: no memory for the kernel stack.
    pub fn new_user(regs: &UserRegs, fs_base: u64, gs_base: u64) -> Result<Self> {
        Ok(Self { regs: Cell::new(*regs), fs_base: Cell::new(fs_base), gs_base: Cell::new(gs_base) })
    }

    /// The program's registers. Valid for the current thread and for every thread that is not running.
    #[must_use]
    pub fn regs(&self) -> UserRegs {
        self.regs.get()
    }

    /// Changes the program's registers.
    pub fn set_regs(&self, regs: &UserRegs) {
        self.regs.set(*regs);
    }

    /// FS base (thread pointer).
    #[must_use]
    pub fn fs_base(&self) -> u64 {
        self.fs_base.get()
    }

    /// Changes the FS base.
    pub fn set_fs_base(&self, base: u64) {
        self.fs_base.set(base);
    }

    /// GS base.
    #[must_use]
    pub fn gs_base(&self) -> u64 {
        self.gs_base.get()
    }

    /// Changes the GS base.
    pub fn set_gs_base(&self, base: u64) {
        self.gs_base.set(base);
    }

    /// Replaces the program's registers, also the system call's result.
    pub fn replace_regs(&self, regs: &UserRegs) {
        self.set_regs(regs);
    }

    /// Sets the result of the system call.
    pub fn set_result(&self, rax: u64) {
        self.regs.set(UserRegs { rax, ..self.regs.get() });
    }

    /// Gives this (not yet running) thread the extended state of `other`, the current one: fork and clone.
    pub fn copy_extended(&self, other: &ThreadState) {
        let _ = other;
    }

    /// Puts the current thread's extended state into its initial configuration: execve.
    pub fn reset_extended(&self) {}
}

/// Switching stacks needs the guest: hosted tests have one thread of execution.
pub(super) fn switch(_prev: &ThreadState, _next: &ThreadState) {
    panic!("would block: another thread would run");
}

/// Loads the address space.
pub(super) fn activate(_space: &AddressSpace) {}

/// Jumps to the next deadline.
///
/// # Panics
/// If there is none: the caller would sleep for ever.
pub(super) fn idle() {
    let next = time::timer::next_deadline();
    assert!(next != time::Instant::FAR, "would block");
    time::set_now(time::now().max(next));
}

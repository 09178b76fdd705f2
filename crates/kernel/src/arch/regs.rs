//! A program's registers as an entry into the kernel leaves them on the kernel stack.

use torpor_abi::trap::selector;

/// Everything that kernel code may clobber, and the frame that `iretq` takes. The layout is known to `entry.rs`.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "register names")]
pub struct UserRegs {
    pub xmm: [u128; 16],
    pub mxcsr: u64,
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// Number of the system call, or [`UserRegs::NO_SYSCALL`] where an interrupt or exception was the entry.
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// Bytes of [`UserRegs`] on the kernel stack.
pub const USER_REGS_BYTES: usize = 432;
const _: () = assert!(size_of::<UserRegs>() == USER_REGS_BYTES);

impl UserRegs {
    /// `orig_rax` outside system calls.
    pub const NO_SYSCALL: u64 = u64::MAX;
    /// Interrupt flag; must stay set at CPL 3, where nothing could set it again.
    pub const RFLAGS_IF: u64 = 1 << 9;
    /// Flags that a program may choose for itself: CF, PF, AF, ZF, SF, TF, DF, OF, RF, AC, ID.
    pub const RFLAGS_USER: u64 = 0x25_0dd5;

    /// A program that starts at `rip` with stack `rsp`, all else zero (the psABI's initial state).
    #[must_use]
    pub const fn start(rip: u64, rsp: u64) -> Self {
        Self {
            xmm: [0; 16],
            mxcsr: 0x1f80,
            r15: 0,
            r14: 0,
            r13: 0,
            r12: 0,
            rbp: 0,
            rbx: 0,
            r11: 0,
            r10: 0,
            r9: 0,
            r8: 0,
            rax: 0,
            rcx: 0,
            rdx: 0,
            rsi: 0,
            rdi: 0,
            orig_rax: Self::NO_SYSCALL,
            rip,
            cs: selector::USER_CODE as u64,
            rflags: 0x202,
            rsp,
            ss: selector::USER_DATA as u64,
        }
    }

    /// `rflags` made safe to return to a program with, after the program supplied them.
    #[must_use]
    pub const fn sanitized_rflags(rflags: u64) -> u64 {
        rflags & Self::RFLAGS_USER | Self::RFLAGS_IF | 2
    }
}

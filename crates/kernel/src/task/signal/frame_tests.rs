use super::super::action::SIG_DFL;
use super::super::{SIGUSR1, procmask};
use super::*;
use crate::task::{signal, testing};
use core::mem::offset_of;

/// Room for a program's stack; returns its middle.
fn stack(room: &mut [u128]) -> u64 {
    let range = room.as_mut_ptr_range();
    range.start as u64 + (range.end as u64 - range.start as u64) / 2
}

fn action(flags: ActionFlags) -> Action {
    Action {
        handler: 0x1234_5678,
        flags: flags | ActionFlags::RESTORER | ActionFlags::SIGINFO,
        restorer: 0x8765,
        mask: SignalSet::EMPTY,
    }
}

#[test]
fn offsets_are_those_of_the_c_headers() {
    assert_eq!(UC_STACK - UC_FLAGS, offset_of!(libc::ucontext_t, uc_stack));
    assert_eq!(MCONTEXT - UC_FLAGS, offset_of!(libc::ucontext_t, uc_mcontext));
    assert_eq!(UC_SIGMASK - UC_FLAGS, offset_of!(libc::ucontext_t, uc_sigmask));
    assert_eq!(184, offset_of!(libc::mcontext_t, fpregs));
    assert_eq!(INFO + size_of::<libc::siginfo_t>(), FRAME_BYTES);
    let order = [
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
        libc::REG_RDI,
        libc::REG_RSI,
        libc::REG_RBP,
        libc::REG_RBX,
        libc::REG_RDX,
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RSP,
        libc::REG_RIP,
        libc::REG_EFL,
        libc::REG_CSGSFS,
        libc::REG_ERR,
        libc::REG_TRAPNO,
        libc::REG_OLDMASK,
        libc::REG_CR2,
    ];
    assert_eq!(order, core::array::from_fn(|n| n as i32));
}

#[test]
fn a_frame_goes_and_comes_back_with_what_the_handler_edited() {
    let me = testing::enter();
    let mut room = vec![0u128; 4096];
    let mut regs = UserRegs::start(0x40_1000, stack(&mut room));
    for (n, register) in general(&mut regs).into_iter().enumerate().filter(|(n, _)| *n < 15) {
        *register = 1000 + n as u64;
    }
    regs.xmm[3] = 0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00;
    regs.rflags = 0x246 | 1 << 10;
    me.state.set_regs(&regs);
    let mask = SignalSet::of(SIGUSR1);
    let info = SignalInfo::fault(signal::SIGSEGV, signal::SEGV_ACCERR, 0xdead_b000);
    build(&me, &info, &action(ActionFlags::empty()), mask).expect("there is a stack");

    let inside = me.state.regs();
    assert_eq!((inside.rip, inside.rdi, inside.rax, inside.xmm[3]), (0x1234_5678, 11, 0, 0));
    assert_eq!(inside.rsp % 16, 8, "aligned as after a call");
    assert!(inside.rsp + FRAME_BYTES as u64 <= regs.rsp - 128, "the red zone is left alone");
    assert_eq!(inside.rflags & 1 << 10, 0);
    assert_eq!(user::read::<u64>(UserAddr(inside.rsp)), Ok(0x8765));
    // SAFETY: the frame is in `room`, aligned to 8, and siginfo_t and ucontext_t's beginning are plain data.
    let (si, uc) = unsafe { (&*(inside.rsi as *const libc::siginfo_t), inside.rdx as *mut libc::ucontext_t) };
    // SAFETY: a fault's siginfo has an address.
    assert_eq!((si.si_signo, si.si_code, unsafe { si.si_addr() } as u64), (11, 2, 0xdead_b000));
    // SAFETY: as above; only one reference is made at a time.
    unsafe {
        assert_eq!((*uc).uc_flags, 7);
        assert_eq!((*uc).uc_mcontext.gregs[libc::REG_RIP as usize], 0x40_1000);
        let fp = (*uc).uc_mcontext.fpregs as u64;
        assert_eq!(fp % 64, 0);
        assert_eq!(user::read::<u32>(UserAddr(fp + 464)), Ok(FP_XSTATE_MAGIC1));
        let size = user::read::<u32>(UserAddr(fp + 480)).expect("mapped");
        assert_eq!(user::read::<u32>(UserAddr(fp + u64::from(size))), Ok(FP_XSTATE_MAGIC2));
        // The handler moves on behind the instruction, changes a register, a vector register and the flags.
        (*uc).uc_mcontext.gregs[libc::REG_RIP as usize] += 2;
        (*uc).uc_mcontext.gregs[libc::REG_R12 as usize] = 77;
        (*uc).uc_mcontext.gregs[libc::REG_EFL as usize] = i64::MAX;
        (*uc).uc_mcontext.gregs[libc::REG_CSGSFS as usize] = 0;
        user::write(UserAddr(fp + 160), &99u64).expect("mapped");
    }

    let mut at_restorer = inside;
    at_restorer.rsp += 8;
    me.state.set_regs(&at_restorer);
    let restored = restore(&me).expect("the frame is there");
    assert_eq!(restored.mask, mask);
    let after = me.state.regs();
    assert_eq!((after.rip, after.r12, after.rbx, after.rsp), (0x40_1002, 77, 1011, regs.rsp));
    assert_eq!((after.xmm[0], after.xmm[3]), (99, regs.xmm[3]));
    assert_eq!((after.cs, after.ss), (0x33, 0x2b));
    assert_eq!(after.rflags & !UserRegs::RFLAGS_USER, 0x202);
}

#[test]
fn frames_go_to_the_alternate_stack_once_and_never_beyond_it() {
    let me = testing::enter();
    let (mut room, mut other) = (vec![0u128; 4096], vec![0u128; 4096]);
    let sp = stack(&mut room);
    me.state.set_regs(&UserRegs::start(0x1000, sp));
    let base = other.as_mut_ptr() as u64;
    let alt = AltStack::default().changed(base, 0, 65536, sp, 2048).expect("valid");
    me.signals.set_alt_stack(alt);
    let info = SignalInfo::kernel(SIGUSR1);
    let on_stack = action(ActionFlags::ONSTACK);
    build(&me, &info, &on_stack, SignalSet::EMPTY).expect("there is a stack");
    let first = me.state.regs().rsp;
    assert!(alt.spans(first));
    build(&me, &info, &on_stack, SignalSet::EMPTY).expect("there is a stack");
    let second = me.state.regs().rsp;
    assert!(second < first && alt.spans(second));

    let small = AltStack::default().changed(base, 0, 2048, sp, 2048).expect("valid");
    me.signals.set_alt_stack(small);
    me.state.set_regs(&UserRegs::start(0x1000, base + 600));
    assert_eq!(build(&me, &info, &on_stack, SignalSet::EMPTY), Err(Errno::EFAULT), "does not fit");
    me.state.set_regs(&UserRegs::start(0x1000, sp));
    let auto = AltStack::default().changed(base, SS_AUTODISARM, 65536, sp, 2048).expect("valid");
    me.signals.set_alt_stack(auto);
    build(&me, &info, &on_stack, SignalSet::EMPTY).expect("there is a stack");
    assert_eq!(me.signals.alt_stack(), AltStack::default());
}

#[test]
fn what_can_not_be_a_handler_or_a_frame_is_refused() {
    let me = testing::enter();
    let mut room = vec![0u128; 4096];
    let sp = stack(&mut room);
    me.state.set_regs(&UserRegs::start(0x1000, sp));
    let info = SignalInfo::kernel(SIGUSR1);
    let no_restorer = Action { flags: ActionFlags::SIGINFO, ..action(ActionFlags::empty()) };
    assert_eq!(build(&me, &info, &no_restorer, SignalSet::EMPTY), Err(Errno::EFAULT));
    let beyond = Action { handler: 1 << 63, ..action(ActionFlags::empty()) };
    assert_eq!(build(&me, &info, &beyond, SignalSet::EMPTY), Err(Errno::EFAULT));
    assert_eq!(SIG_DFL, 0);
    me.state.set_regs(&UserRegs::start(0x1000, 3000));
    assert_eq!(build(&me, &info, &action(ActionFlags::empty()), SignalSet::EMPTY), Err(Errno::EFAULT));
    assert!(restore(&me).is_err());
    assert_eq!(procmask(SignalSet::ALL), SignalSet::EMPTY);
    assert_eq!(me.signals.blocked(), SignalSet::ALL.blockable());
}

//! seccomp(2): what a VM process may ask its kernel for, thread by thread. What is not listed kills the process.
//!
//! No open, socket, connect, exec, fork or ptrace; no new threads, no executable memory, no signals to others, and of
//! ioctl(2) what this program uses of KVM and of its own page map. The filter of all threads is in place before the first
//! byte of a guest or of a snapshot is looked at; each thread then gives up what only others need.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Of every thread, with any arguments.
const COMMON: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_close,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Of the thread that makes and runs the VM.
const VCPU: &[i64] = &[
    libc::SYS_pwrite64,
    libc::SYS_socketpair,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_alarm,
];

/// Of the thread that moves frames.
const IO: &[i64] = &[libc::SYS_timerfd_settime, libc::SYS_fstat, libc::SYS_statx];

/// Of the thread that hears commands, which is the only one that is handed descriptors.
const CONTROL: &[i64] =
    &[libc::SYS_accept4, libc::SYS_recvmsg, libc::SYS_getsockopt, libc::SYS_geteuid, libc::SYS_fstat, libc::SYS_statx];

/// ioctl(2) of the vCPU's thread: KVM's of the system, of a VM and of a vCPU, and PAGEMAP_SCAN.
const IOCTLS: &[u64] = &[
    0xae00,      // KVM_GET_API_VERSION
    0xae01,      // KVM_CREATE_VM
    0xae03,      // KVM_CHECK_EXTENSION
    0xae04,      // KVM_GET_VCPU_MMAP_SIZE
    0xc008_ae05, // KVM_GET_SUPPORTED_CPUID
    0xae41,      // KVM_CREATE_VCPU
    0xae44,      // KVM_SET_NR_MMU_PAGES
    0x4020_ae46, // KVM_SET_USER_MEMORY_REGION
    0x4040_ae79, // KVM_IOEVENTFD
    0xae80,      // KVM_RUN
    0x8138_ae83, // KVM_GET_SREGS
    0x4138_ae84, // KVM_SET_SREGS
    0x4004_ae86, // KVM_INTERRUPT
    0x4008_ae89, // KVM_SET_MSRS
    0x4008_ae90, // KVM_SET_CPUID2
    0x4040_aea0, // KVM_SET_VCPU_EVENTS
    0x4080_aea2, // KVM_SET_DEBUGREGS
    0xaea3,      // KVM_GET_TSC_KHZ
    0x5000_aea5, // KVM_SET_XSAVE
    0x4188_aea7, // KVM_SET_XCRS
    0xc060_6610, // PAGEMAP_SCAN
];

/// Of the vCPU's thread and the one that hears commands: userfaultfd(2), of a descriptor that was made before.
const PAGER_IOCTLS: &[u64] = &[
    0xc020_aa00, // UFFDIO_REGISTER
    0x8010_aa01, // UFFDIO_UNREGISTER
    0x8010_aa02, // UFFDIO_WAKE
    0xc028_aa03, // UFFDIO_COPY
];

/// Who is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// All of the process, and each that has not said more.
    All,
    /// The one that makes and runs the VM.
    Vcpu,
    /// The one that moves frames.
    Io,
    /// The one that hears commands.
    Control,
}

/// Confines the calling thread, or with [`Thread::All`] all of the process. For good.
///
/// # Errors
/// A text.
pub fn install(thread: Thread) -> Result<(), String> {
    // Finds the vDSO, once, by a call that the filter does not let through.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let lists: &[&[i64]] = match thread {
        Thread::All => &[VCPU, IO, CONTROL, &[libc::SYS_seccomp]],
        Thread::Vcpu => &[VCPU],
        Thread::Io => &[IO],
        Thread::Control => &[CONTROL],
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        COMMON.iter().chain(lists.iter().copied().flatten()).map(|number| (*number, Vec::new())).collect();
    let no_exec = (2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0);
    let myself = (0, SeccompCmpOp::Eq, u64::from(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs()));
    for (number, (argument, comparison, value)) in
        [(libc::SYS_mprotect, no_exec.clone()), (libc::SYS_mmap, no_exec), (libc::SYS_tgkill, myself)]
    {
        rules.insert(number, vec![rule(argument, comparison, value)?]);
    }
    let ioctls: &[&[u64]] = match thread {
        Thread::All | Thread::Vcpu => &[IOCTLS, PAGER_IOCTLS],
        Thread::Control => &[PAGER_IOCTLS],
        Thread::Io => &[],
    };
    if !ioctls.is_empty() {
        let requests = ioctls.iter().copied().flatten();
        let allowed: Result<_, String> = requests.map(|request| rule(1, SeccompCmpOp::Eq, *request)).collect();
        rules.insert(libc::SYS_ioctl, allowed?);
    }
    if thread == Thread::All {
        // For the filters of single threads.
        rules.insert(libc::SYS_prctl, vec![rule(0, SeccompCmpOp::Eq, libc::PR_SET_NO_NEW_PRIVS as u64)?]);
    }
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)
        .map_err(|error| error.to_string())?;
    let program: BpfProgram = filter.try_into().map_err(|error: seccompiler::BackendError| error.to_string())?;
    match thread {
        Thread::All => seccompiler::apply_filter_all_threads(&program),
        _ => seccompiler::apply_filter(&program),
    }
    .map_err(|error| error.to_string())
}

fn rule(argument: u8, comparison: SeccompCmpOp, value: u64) -> Result<SeccompRule, String> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, comparison, value)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|error| error.to_string())
}

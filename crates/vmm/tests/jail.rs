//! From inside: a process that has entered the jail tries what it may not, and is killed for it.

use std::fs;
use std::os::fd::AsRawFd;
use torpor_vmm::jail::{self, filter, filter::Thread};

/// Runs `attempt` in a process of its own that is jailed as `thread`; its wait status.
fn jailed(thread: Thread, attempt: impl FnOnce()) -> i32 {
    // SAFETY: the child makes system calls and ends; this test binary runs its tests in threads, but the child uses nothing
    // that they might have locked but the allocator, which glibc keeps usable after a fork.
    match unsafe { libc::fork() } {
        0 => {
            let entered = jail::enter();
            let confined = filter::install(Thread::All);
            let last = if thread == Thread::All { Ok(()) } else { filter::install(thread) };
            let status = if entered.is_ok() && confined.is_ok() && last.is_ok() {
                attempt();
                0
            } else {
                100
            };
            // SAFETY: does not return.
            unsafe { libc::_exit(status) }
        }
        child => {
            let mut status = 0;
            // SAFETY: waits for our child.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            status
        }
    }
}

fn is_killed(status: i32) -> bool {
    libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS
}

/// A system call with up to three arguments.
fn call(number: i64, arguments: [i64; 3]) {
    // SAFETY: none of the calls below has an effect on this process's memory.
    unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) };
}

#[test]
fn what_is_not_needed_kills() {
    let path = c"/dev/null".as_ptr() as i64;
    let forbidden: &[(&str, i64, [i64; 3])] = &[
        ("open", libc::SYS_open, [path, 0, 0]),
        ("openat", libc::SYS_openat, [-100, path, 0]),
        ("openat2", libc::SYS_openat2, [-100, path, 0]),
        ("socket", libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0]),
        ("connect", libc::SYS_connect, [0, 0, 0]),
        ("bind", libc::SYS_bind, [0, 0, 0]),
        ("execve", libc::SYS_execve, [path, 0, 0]),
        ("execveat", libc::SYS_execveat, [-100, path, 0]),
        ("fork", libc::SYS_fork, [0, 0, 0]),
        ("vfork", libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0]),
        ("clone3", libc::SYS_clone3, [0, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), 1, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0]),
        ("pidfd_open", libc::SYS_pidfd_open, [1, 0, 0]),
        ("kill", libc::SYS_kill, [1, 0, 0]),
        ("tgkill", libc::SYS_tgkill, [1, 1, 0]),
        ("setuid", libc::SYS_setuid, [0, 0, 0]),
        ("unshare", libc::SYS_unshare, [0, 0, 0]),
        ("setns", libc::SYS_setns, [0, 0, 0]),
        ("mount", libc::SYS_mount, [path, path, 0]),
        ("chroot", libc::SYS_chroot, [path, 0, 0]),
        ("prctl", libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0]),
        ("bpf", libc::SYS_bpf, [0, 0, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, [0, 0, 0]),
        ("perf_event_open", libc::SYS_perf_event_open, [0, 0, 0]),
        ("unlink", libc::SYS_unlink, [path, 0, 0]),
        ("ioctl TIOCSTI", libc::SYS_ioctl, [0, 0x5412, 0]),
        ("ioctl KVM_CREATE_DEVICE", libc::SYS_ioctl, [0, 0xc00c_aee0, 0]),
        ("ioctl KVM_SET_GSI_ROUTING", libc::SYS_ioctl, [0, 0x4008_ae6a, 0]),
        ("ioctl FIONREAD", libc::SYS_ioctl, [0, 0x541b, 0]),
        ("mmap of code", libc::SYS_mmap, [0, 4096, libc::PROT_EXEC.into()]),
        ("mprotect to code", libc::SYS_mprotect, [0, 4096, libc::PROT_EXEC.into()]),
        ("32-bit number", 0x4000_0000 + libc::SYS_open, [path, 0, 0]),
    ];
    for (name, number, arguments) in forbidden {
        let status = jailed(Thread::All, || call(*number, *arguments));
        assert!(is_killed(status), "{name}: wait status {status:#x}");
    }
}

#[test]
fn what_is_needed_goes_through() {
    // SAFETY: writes to no memory of ours that anything else uses.
    let status = jailed(Thread::All, || unsafe {
        let mut pipe = [0; 2];
        assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, pipe.as_mut_ptr()), 0);
        assert_eq!(libc::send(pipe[0], c"x".as_ptr().cast(), 1, 0), 1);
        libc::tgkill(libc::getpid(), libc::gettid(), 0);
        // Not a KVM descriptor: the call is let through and fails.
        libc::ioctl(pipe[0], 0xae00, 0);
    });
    assert_eq!(status, 0);
}

#[test]
fn each_thread_has_only_its_own() {
    for (thread, number, arguments) in [
        (Thread::Io, libc::SYS_ioctl, [0, 0xae80, 0]),
        (Thread::Io, libc::SYS_recvmsg, [0, 0, 0]),
        (Thread::Io, libc::SYS_accept4, [0, 0, 0]),
        (Thread::Io, libc::SYS_memfd_create, [0, 0, 0]),
        (Thread::Control, libc::SYS_ioctl, [0, 0xae80, 0]),
        (Thread::Control, libc::SYS_memfd_create, [0, 0, 0]),
        (Thread::Vcpu, libc::SYS_recvmsg, [0, 0, 0]),
        (Thread::Vcpu, libc::SYS_accept4, [0, 0, 0]),
        (Thread::Vcpu, libc::SYS_seccomp, [0, 0, 0]),
    ] {
        let status = jailed(thread, || call(number, arguments));
        assert!(is_killed(status), "{thread:?}: system call {number}: wait status {status:#x}");
    }
}

#[test]
fn privileges_and_names_are_gone() {
    let (reader, writer) = std::io::pipe().expect("pipe");
    // SAFETY: as in `jailed`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let missing = jail::enter();
        let ready = [u8::from(matches!(missing, Ok(None)))];
        // SAFETY: one byte of ours; does not return.
        unsafe {
            libc::write(writer.as_raw_fd(), ready.as_ptr().cast(), 1);
            libc::pause();
            libc::_exit(0)
        }
    }
    drop(writer);
    let mut whole = [0];
    std::io::Read::read_exact(&mut &reader, &mut whole).expect("it says so");
    let of = |name: &str| format!("/proc/{child}/{name}");
    let status = fs::read_to_string(of("status")).expect("it lives");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("a field");
        line.split_whitespace().nth(1).expect("a value").to_owned()
    };
    let zeros = "0000000000000000";
    let namespaces = ["user", "mnt", "ipc", "uts"].map(|name| {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
        (name, link(&child.to_string()), link("self"))
    });
    let adjusted = fs::read_to_string(of("oom_score_adj")).expect("readable");
    let root = fs::read_dir(of("root")).map(|entries| entries.count());
    let limits = fs::read_to_string(of("limits")).expect("readable");
    // SAFETY: our child.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), zeros, "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(adjusted.trim(), "1000");
    assert!(limits.lines().any(|line| line.starts_with("Max core file size") && line.contains(" 0 ")), "{limits}");
    if whole == [1] {
        assert_eq!(root.expect("readable by who made it"), 0);
        for (name, theirs, ours) in namespaces {
            assert_ne!(theirs, ours, "{name}");
        }
    }
}

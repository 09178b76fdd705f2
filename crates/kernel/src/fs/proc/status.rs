//! /proc/PID/status, stat and limits.

use super::process::shown_name;
use crate::mm::addr::PAGE_BYTES;
use crate::task::limits::{INFINITY, Resource};
use crate::task::process::Process;
use crate::task::thread::Thread;
use crate::task::usage::Usage;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// sysconf(_SC_CLK_TCK) is 100.
const TICK_NS: u64 = 10_000_000;

fn letter(process: &Process, thread: Option<&Rc<Thread>>) -> char {
    match thread {
        _ if !process.is_alive() => 'Z',
        Some(thread) if thread.ptrace.in_stop() => 't',
        Some(thread) if thread.signals.stopped() => 'T',
        Some(thread) => char::from(thread.sched.letter()),
        None => 'Z',
    }
}

fn state_word(letter: char) -> &'static str {
    match letter {
        'R' => "R (running)",
        'S' => "S (sleeping)",
        'D' => "D (disk sleep)",
        'T' => "T (stopped)",
        't' => "t (tracing stop)",
        'X' => "X (dead)",
        _ => "Z (zombie)",
    }
}

/// Sets of signals as numbers.
struct Signals {
    own: u64,
    shared: u64,
    blocked: u64,
    ignored: u64,
    caught: u64,
}

impl Signals {
    fn of(process: &Process, thread: Option<&Rc<Thread>>) -> Self {
        let (ignored, caught) = {
            let (caught, ignored) = process.signals.actions().caught_and_ignored();
            (ignored.0, caught.0)
        };
        Self {
            own: thread.map_or(0, |t| t.signals.own_pending().0),
            shared: process.signals.shared_pending().0,
            blocked: thread.map_or(0, |t| t.signals.blocked().0),
            ignored,
            caught,
        }
    }
}

/// The line of stat, proc_pid_stat(5).
pub(super) fn stat(process: &Process, tid: Option<u32>) -> String {
    let threads = process.threads();
    let thread = tid.map_or_else(|| threads.first(), |tid| threads.iter().find(|t| t.tid() == tid));
    let usage = match (tid, thread) {
        (Some(_), Some(thread)) => Usage::of_thread(thread),
        _ => Usage::of_process(process),
    };
    let children = process.children_usage();
    let group = process.group();
    let terminal = group.session().terminal();
    let space = process.try_space();
    let (size, resident) = space.as_ref().map_or((0, 0), |s| (s.footprint().total, s.resident_pages().pages()));
    let memory = process.arguments.get();
    let params = thread.map(|t| t.sched.params()).unwrap_or_default();
    let effective = thread.map(|t| t.sched.effective()).unwrap_or_default();
    let signals = Signals::of(process, thread);
    let name = thread.map_or_else(|| process.name(), |t| t.name());
    let ticks = |ns: u64| ns / TICK_NS;
    format!(
        "{pid} ({name}) {state} {ppid} {pgrp} {session} {tty} {foreground} 4194304 {minflt} {cminflt} 0 0 {utime} {stime} \
         {cutime} {cstime} {priority} {nice} {threads} 0 {start} {size} {resident} {rsslim} 0 0 {stack} 0 0 \
         {pending} {blocked} {ignored} {caught} 0 0 0 {exit_signal} 0 {rtprio} {policy} 0 0 0 0 0 {heap} \
         {arg_start} {arg_end} {env_start} {env_end} {exit_code}\n",
        pid = tid.unwrap_or_else(|| process.pid()),
        name = shown_name(&name),
        state = letter(process, thread),
        ppid = process.parent().map_or(0, |p| p.pid()),
        pgrp = group.pgid(),
        session = group.session().sid(),
        tty = terminal.as_ref().map_or(0, |t| t.device()),
        foreground = terminal.as_ref().and_then(|t| t.foreground()).map_or(-1, i64::from),
        minflt = usage.faults,
        cminflt = children.faults,
        utime = ticks(usage.user_ns),
        stime = ticks(usage.system_ns),
        cutime = ticks(children.user_ns),
        cstime = ticks(children.system_ns),
        priority = if effective.realtime() { -1 - i32::from(effective.priority) } else { 20 + i32::from(params.nice) },
        nice = params.nice,
        threads = threads.len(),
        start = ticks(process.started_boottime_ns),
        rsslim = u64::MAX,
        stack = memory.stack_start,
        pending = (signals.own | signals.shared) & 0x7fff_ffff,
        blocked = signals.blocked & 0x7fff_ffff,
        ignored = signals.ignored & 0x7fff_ffff,
        caught = signals.caught & 0x7fff_ffff,
        exit_signal = process.exit_signal().map_or(0, |signal| signal.number()),
        rtprio = params.priority,
        policy = params.policy as u32,
        heap = space.as_ref().map_or(0, |s| s.heap().0),
        arg_start = memory.args_start,
        arg_end = memory.args_end,
        env_start = memory.env_start,
        env_end = memory.env_end,
        exit_code = process.ended().map_or(0, |status| status.0),
    )
}

/// proc_pid_status(5).
pub(super) fn status(process: &Process, thread: Option<&Rc<Thread>>) -> Vec<u8> {
    let mut out = String::new();
    let name = thread.map_or_else(|| process.name(), |t| t.name());
    let creds = thread.map(|t| t.creds());
    let _ = write!(
        out,
        "Name:\t{}\nUmask:\t{:04o}\nState:\t{}\nTgid:\t{}\nNgid:\t0\nPid:\t{}\nPPid:\t{}\nTracerPid:\t{}\n",
        shown_name(&name),
        thread.and_then(|t| t.try_fs()).map_or(0o022, |fs| fs.umask.get()),
        state_word(letter(process, thread)),
        process.pid(),
        thread.map_or_else(|| process.pid(), |t| t.tid()),
        process.parent().map_or(0, |p| p.pid()),
        thread.and_then(|t| t.ptrace.tracer()).map_or(0, |tracer| tracer.tid()),
    );
    if let Some(c) = &creds {
        let groups: Vec<String> = c.groups.iter().map(|g| format!("{g}")).collect();
        let _ = write!(
            out,
            "Uid:\t{}\t{}\t{}\t{}\nGid:\t{}\t{}\t{}\t{}\nFDSize:\t{}\nGroups:\t{} \n",
            c.uid,
            c.euid,
            c.suid,
            c.fsuid,
            c.gid,
            c.egid,
            c.sgid,
            c.fsgid,
            thread.and_then(|t| t.try_files()).map_or(0, |f| f.open().len().next_multiple_of(64)),
            groups.join(" ")
        );
    }
    let pid = process.pid();
    let group = process.group();
    let _ =
        write!(out, "NStgid:\t{pid}\nNSpid:\t{pid}\nNSpgid:\t{}\nNSsid:\t{}\n", group.pgid(), group.session().sid());
    if let Some(space) = process.try_space() {
        let (foot, resident) = (space.footprint(), space.resident_pages());
        let kib = |pages: u64| (pages * PAGE_BYTES) >> 10;
        for (name, value) in [
            ("VmPeak", foot.total >> 10),
            ("VmSize", foot.total >> 10),
            ("VmLck", foot.locked >> 10),
            ("VmPin", 0),
            ("VmHWM", kib(resident.peak_pages)),
            ("VmRSS", kib(resident.pages())),
            ("RssAnon", kib(resident.anonymous_pages)),
            ("RssFile", kib(resident.file_pages)),
            ("RssShmem", kib(resident.shared_pages)),
            ("VmData", foot.data >> 10),
            ("VmStk", foot.stack >> 10),
            ("VmExe", foot.code >> 10),
            ("VmLib", 0),
            ("VmPTE", 0),
            ("VmSwap", 0),
        ] {
            let _ = writeln!(out, "{name}:\t{value:>8} kB");
        }
    }
    let signals = Signals::of(process, thread);
    let _ = write!(
        out,
        "Threads:\t{}\nSigQ:\t0/{}\nSigPnd:\t{:016x}\nShdPnd:\t{:016x}\nSigBlk:\t{:016x}\nSigIgn:\t{:016x}\nSigCgt:\t{:016x}\n",
        process.threads().len().max(1),
        process.limit(Resource::PendingSignals),
        signals.own,
        signals.shared,
        signals.blocked,
        signals.ignored,
        signals.caught
    );
    if let Some(c) = &creds {
        let _ = write!(
            out,
            "CapInh:\t{:016x}\nCapPrm:\t{:016x}\nCapEff:\t{:016x}\nCapBnd:\t{:016x}\nCapAmb:\t{:016x}\n",
            c.inheritable, c.permitted, c.effective, c.bounding, c.ambient
        );
    }
    let switches = thread.map_or((0, 0), |t| t.sched.switches());
    let _ = write!(
        out,
        "NoNewPrivs:\t0\nSeccomp:\t0\nSeccomp_filters:\t0\nCpus_allowed:\t1\nCpus_allowed_list:\t0\nMems_allowed:\t1\n\
         Mems_allowed_list:\t0\nvoluntary_ctxt_switches:\t{}\nnonvoluntary_ctxt_switches:\t{}\n",
        switches.0, switches.1
    );
    out.into_bytes()
}

/// Name, resource, unit of /proc/PID/limits.
const LIMITS: [(&str, Resource, &str); 16] = [
    ("Max cpu time", Resource::Cpu, "seconds"),
    ("Max file size", Resource::FileSize, "bytes"),
    ("Max data size", Resource::Data, "bytes"),
    ("Max stack size", Resource::Stack, "bytes"),
    ("Max core file size", Resource::Core, "bytes"),
    ("Max resident set", Resource::ResidentSet, "bytes"),
    ("Max processes", Resource::Processes, "processes"),
    ("Max open files", Resource::OpenFiles, "files"),
    ("Max locked memory", Resource::LockedMemory, "bytes"),
    ("Max address space", Resource::AddressSpace, "bytes"),
    ("Max file locks", Resource::Locks, "locks"),
    ("Max pending signals", Resource::PendingSignals, "signals"),
    ("Max msgqueue size", Resource::MessageQueues, "bytes"),
    ("Max nice priority", Resource::Nice, ""),
    ("Max realtime priority", Resource::RealtimePriority, ""),
    ("Max realtime timeout", Resource::RealtimeTime, "us"),
];

pub(super) fn limits(process: &Process) -> String {
    let mut out = String::from("Limit                     Soft Limit           Hard Limit           Units     \n");
    let value = |v: u64| if v == INFINITY { String::from("unlimited") } else { format!("{v}") };
    for (name, resource, unit) in LIMITS {
        let limit = process.limits(resource);
        let _ = writeln!(out, "{name:<25} {:<20} {:<20} {unit:<10}", value(limit.soft), value(limit.hard));
    }
    out
}

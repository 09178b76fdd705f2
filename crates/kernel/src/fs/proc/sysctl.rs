//! /proc/sys: settings that programs look up. Those that can be written are written through.

use crate::errno::Result;
use crate::fs::generated::Tree;
use crate::ipc::limits;
use crate::random;
use crate::task::runqueue::{REALTIME_PERIOD_NS, REALTIME_SHARE_NS};
use crate::task::uts::{self, RELEASE, VERSION};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::cell::Cell;

crate::global! {
    static BOOT_ID: Cell<Option<[u8; 16]>> = Cell::new(None);
}

fn uuid(mut bytes: [u8; 16]) -> String {
    // Version 4, variant 1 (RFC 9562).
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}\n", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn random_uuid() -> String {
    let mut bytes = [0; 16];
    random::fill(&mut bytes);
    uuid(bytes)
}

fn boot_id() -> String {
    BOOT_ID.with(|id| {
        let bytes = id.get().unwrap_or_else(|| {
            let mut bytes = [0; 16];
            random::fill(&mut bytes);
            id.set(Some(bytes));
            bytes
        });
        uuid(bytes)
    })
}

/// The next look at boot_id finds a new one.
#[cfg(not(feature = "hosted"))]
pub(crate) fn forget_boot_id() {
    BOOT_ID.with(|id| id.set(None));
}

fn line(text: impl Into<String>) -> impl Fn() -> String {
    let text = text.into();
    move || format!("{text}\n")
}

fn write_hostname(bytes: &[u8]) -> Result<()> {
    let name = bytes.split(|b| *b == b'\n').next().unwrap_or(&[]);
    uts::set_host_name(name)
}

pub(super) fn fill(tree: &mut Tree) {
    tree.directory("kernel", |t| {
        t.setting("hostname", || format!("{}\n", String::from_utf8_lossy(&uts::host_name())), Rc::new(write_hostname));
        t.text("domainname", line("(none)"));
        t.text("osrelease", line(RELEASE));
        t.text("ostype", line("Linux"));
        t.text("version", line(VERSION));
        t.text("pid_max", line(format!("{}", crate::task::pid::PID_MAX)));
        t.text("threads-max", line("32768"));
        t.text("cap_last_cap", line("40"));
        t.text("ngroups_max", line("65536"));
        t.text("overflowuid", line("65534"));
        t.text("overflowgid", line("65534"));
        t.text("randomize_va_space", line("2"));
        t.text("sched_rt_period_us", line(format!("{}", REALTIME_PERIOD_NS / 1000)));
        t.text("sched_rt_runtime_us", line(format!("{}", REALTIME_SHARE_NS / 1000)));
        t.text("core_pattern", line("core"));
        t.text("core_uses_pid", line("0"));
        t.text("io_uring_disabled", line("2"));
        t.text("perf_event_paranoid", line("4"));
        t.text("unprivileged_userns_clone", line("0"));
        for setting in limits::SETTINGS {
            t.setting(setting.name, || setting.text(), Rc::new(|bytes| setting.write(bytes)));
        }
        t.text("shm_rmid_forced", line("0"));
        t.text("auto_msgmni", line("0"));
        t.directory("random", |t| {
            t.text("boot_id", boot_id);
            t.text("uuid", random_uuid);
            t.text("entropy_avail", line("256"));
            t.text("poolsize", line("256"));
        });
        t.directory("pty", |t| {
            t.text("max", line("4096"));
            t.text("nr", || format!("{}\n", crate::dev::tty::pty::list().len()));
        });
    });
    tree.directory("vm", |t| {
        t.text("overcommit_memory", line("0"));
        t.text("overcommit_ratio", line("50"));
        t.text("max_map_count", line(format!("{}", crate::mm::space::MAX_AREAS)));
        t.text("mmap_min_addr", line("65536"));
        t.text("swappiness", line("60"));
        t.text("nr_hugepages", line("0"));
    });
    tree.directory("fs", |t| {
        t.text("file-max", line("9223372036854775807"));
        t.text("nr_open", line("1048576"));
        t.text("protected_hardlinks", line("1"));
        t.text("pipe-max-size", line("1048576"));
        t.text("file-nr", line("0\t0\t9223372036854775807"));
        t.directory("inotify", |t| {
            t.text("max_user_watches", line("65536"));
            t.text("max_user_instances", line("128"));
            t.text("max_queued_events", line("16384"));
        });
        t.directory("epoll", |t| t.text("max_user_watches", line("1048576")));
    });
    tree.directory("net", |t| {
        t.directory("core", |t| {
            t.text("somaxconn", line("4096"));
            t.text("rmem_max", line("212992"));
            t.text("wmem_max", line("212992"));
            t.text("rmem_default", line("212992"));
            t.text("wmem_default", line("212992"));
        });
        t.directory("ipv4", |t| {
            t.text("ip_local_port_range", line("32768\t60999"));
            t.text("tcp_max_syn_backlog", line("512"));
            t.text("tcp_fin_timeout", line("60"));
            t.text("tcp_keepalive_time", line("7200"));
            t.text("tcp_rmem", line("4096\t131072\t6291456"));
            t.text("tcp_wmem", line("4096\t16384\t4194304"));
            t.text("ip_unprivileged_port_start", line("1024"));
        });
        t.directory("ipv6", |t| t.directory("conf", |t| t.directory("all", |t| t.text("disable_ipv6", line("0")))));
        t.directory("unix", |t| t.text("max_dgram_qlen", line("512")));
    });
}

//! /sys (sysfs(5)), as far as runtimes read it to size themselves.

use super::generated::Tree;
use super::inode::Inode;
use crate::mm::frame;
use alloc::format;
use alloc::rc::Rc;

/// SYSFS_MAGIC.
const MAGIC: u64 = 0x6265_6572;

fn line(text: &'static str) -> impl Fn() -> alloc::string::String {
    move || format!("{text}\n")
}

/// The root of /sys.
#[must_use]
pub fn root() -> Rc<dyn Inode> {
    let mut tree = Tree::new(super::init::home(MAGIC), 1);
    tree.directory("devices", |t| {
        t.directory("system", |t| {
            t.directory("cpu", |t| {
                for name in ["online", "possible", "present"] {
                    t.text(name, line("0"));
                }
                t.text("offline", line(""));
                t.directory("cpu0", |t| {
                    t.directory("topology", |t| {
                        t.text("core_id", line("0"));
                        t.text("physical_package_id", line("0"));
                        t.text("thread_siblings_list", line("0"));
                        t.text("core_cpus_list", line("0"));
                    });
                });
            });
            t.directory("node", |t| {
                t.text("online", line("0"));
                t.directory("node0", |t| t.text("cpulist", line("0")));
            });
        });
    });
    tree.directory("fs", |t| {
        t.directory("cgroup", |t| {
            t.text("cgroup.controllers", line("cpu memory pids"));
            t.text("cgroup.procs", || crate::task::pid::processes().iter().map(|p| format!("{}\n", p.pid())).collect());
            t.text("cpu.max", line("100000 100000"));
            t.text("memory.max", || format!("{}\n", frame::usage().limit_bytes));
            t.text("memory.high", line("max"));
            t.text("memory.swap.max", line("0"));
            t.text("memory.current", || format!("{}\n", frame::usage().used_bytes));
            t.text("memory.peak", || format!("{}\n", frame::usage().peak_bytes));
            t.text("pids.max", line("max"));
        });
    });
    tree.directory("kernel", |t| {
        t.directory("mm", |t| {
            t.directory("transparent_hugepage", |t| {
                t.text("enabled", line("[always] madvise never"));
                t.text("hpage_pmd_size", line("2097152"));
            });
        });
    });
    tree.root()
}

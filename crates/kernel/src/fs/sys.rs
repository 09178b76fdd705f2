//! /sys (sysfs(5)), as far as runtimes read it to size themselves.

use super::generated::Tree;
use super::inode::Inode;
use crate::mm::frame;
use alloc::format;
use alloc::rc::Rc;

/// SYSFS_MAGIC.
const MAGIC: u64 = 0x6265_6572;
/// CGROUP2_SUPER_MAGIC.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

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
                t.directory("node0", |t| {
                    t.text("cpulist", line("0"));
                    t.text("cpumap", line("1"));
                });
            });
        });
    });
    tree.directory("fs", |t| t.directory("cgroup", |_| ()));
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

/// The root of /sys/fs/cgroup: the one control group of all processes, with the limits by which runtimes size their heaps
/// (cgroups(7), version 2).
#[must_use]
pub fn control_group() -> Rc<dyn Inode> {
    let mut tree = Tree::new(super::init::home(CGROUP2_MAGIC), 1);
    tree.text("cgroup.controllers", line("cpu memory pids"));
    tree.text("cgroup.procs", || crate::task::pid::processes().iter().map(|p| format!("{}\n", p.pid())).collect());
    tree.text("cpu.max", line("100000 100000"));
    tree.text("memory.max", || format!("{}\n", frame::usage().limit_bytes));
    tree.text("memory.high", line("max"));
    tree.text("memory.swap.max", line("0"));
    tree.text("memory.current", || format!("{}\n", frame::usage().used_bytes));
    tree.text("memory.peak", || format!("{}\n", frame::usage().peak_bytes));
    tree.text("pids.max", line("max"));
    tree.root()
}

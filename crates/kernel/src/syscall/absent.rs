//! System calls that Linux has and this kernel has not: why, and which. They give ENOSYS and are counted by name.

/// A reason and the calls that it holds for.
pub const ABSENT: &[(&str, &[&str])] = &[
    (
        "Linux gives ENOSYS, too: the call is gone, or never was one on x86-64",
        &[
            "_sysctl",
            "afs_syscall",
            "create_module",
            "epoll_ctl_old",
            "epoll_wait_old",
            "get_kernel_syms",
            "get_thread_area",
            "getpmsg",
            "lookup_dcookie",
            "nfsservctl",
            "putpmsg",
            "query_module",
            "security",
            "set_thread_area",
            "tuxcall",
            "uselib",
            "vserver",
        ],
    ),
    (
        "no POSIX message queues",
        &["mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink"],
    ),
    (
        "no asynchronous I/O of this kind",
        &[
            "io_cancel",
            "io_destroy",
            "io_getevents",
            "io_pgetevents",
            "io_setup",
            "io_submit",
            "io_uring_enter",
            "io_uring_register",
        ],
    ),
    (
        "no file descriptors for mounts",
        &[
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "listmount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "statmount",
        ],
    ),
    ("the root of the name space stays", &["pivot_root"]),
    (
        "no file handles, no quotas, no accounting",
        &["acct", "name_to_handle_at", "open_by_handle_at", "quotactl", "quotactl_fd"],
    ),
    ("no probes that a debugger could place", &["uprobe", "uretprobe"]),
    (
        "no system call filters, no security modules",
        &[
            "landlock_add_rule",
            "landlock_create_ruleset",
            "landlock_restrict_self",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "seccomp",
        ],
    ),
    ("no key rings", &["add_key", "keyctl", "request_key"]),
    (
        "one node of memory",
        &["get_mempolicy", "mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node"],
    ),
    (
        "no modules, no swap, no other kernel, no ports, no segments",
        &[
            "delete_module",
            "finit_module",
            "init_module",
            "ioperm",
            "iopl",
            "kexec_file_load",
            "kexec_load",
            "modify_ldt",
            "swapoff",
            "swapon",
            "vhangup",
        ],
    ),
    ("nothing to notify of whole mounts", &["fanotify_mark"]),
    (
        "not yet",
        &[
            "cachestat",
            "file_getattr",
            "file_setattr",
            "futex_requeue",
            "futex_wait",
            "futex_wake",
            "getxattrat",
            "listxattrat",
            "map_shadow_stack",
            "memfd_secret",
            "mseal",
            "process_madvise",
            "process_mrelease",
            "remap_file_pages",
            "removexattrat",
            "rseq",
            "setxattrat",
            "sysfs",
            "ustat",
        ],
    ),
];

/// Why there is no such call.
#[must_use]
pub fn reason(name: &str) -> Option<&'static str> {
    ABSENT.iter().find(|(_, names)| names.contains(&name)).map(|(reason, _)| *reason)
}

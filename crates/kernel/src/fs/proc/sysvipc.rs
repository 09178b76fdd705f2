//! /proc/sysvipc: lists of System V IPC objects (proc(5)).

use crate::fs::generated::Tree;
use crate::ipc::{Object, Permissions, msg, sem, shm};
use alloc::format;
use alloc::string::String;
use core::fmt::Write;

pub(super) fn fill(tree: &mut Tree) {
    tree.text("msg", queues);
    tree.text("sem", sets);
    tree.text("shm", segments);
}

/// Key, identifier, mode.
fn name(permissions: &Permissions) -> String {
    format!("{:>10} {:>10}  {:>4o}", permissions.key.get(), permissions.id, permissions.mode.get())
}

/// Owner and creator.
fn owners(permissions: &Permissions) -> String {
    format!("{:>5} {:>5} {:>5} {:>5}", permissions.uid.get(), permissions.gid.get(), permissions.cuid, permissions.cgid)
}

fn segments() -> String {
    let mut out = String::from(
        "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n",
    );
    for segment in shm::all() {
        let permissions = segment.permissions();
        let _ = writeln!(
            out,
            "{} {:>21} {:>5} {:>5}  {:>5} {} {:>10} {:>10} {:>10} {:>21} {:>21}",
            name(permissions),
            segment.bytes,
            segment.creator_pid,
            segment.last_pid.get(),
            segment.attachments.get(),
            owners(permissions),
            segment.attached_s.get(),
            segment.detached_s.get(),
            segment.changed_s.get(),
            segment.memory.resident_pages() * crate::mm::addr::PAGE_BYTES,
            0,
        );
    }
    out
}

fn sets() -> String {
    let mut out =
        String::from("       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n");
    for set in sem::all() {
        let permissions = set.permissions();
        let _ = writeln!(
            out,
            "{} {:>10} {} {:>10} {:>10}",
            name(permissions),
            set.count,
            owners(permissions),
            set.operated_s.get(),
            set.changed_s.get(),
        );
    }
    out
}

fn queues() -> String {
    let mut out = String::from(
        "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime\n",
    );
    for queue in msg::all() {
        let permissions = queue.permissions();
        let _ = writeln!(
            out,
            "{}  {:>10} {:>10} {:>5} {:>5} {} {:>10} {:>10} {:>10}",
            name(permissions),
            queue.bytes.get(),
            queue.count(),
            queue.sender_pid.get(),
            queue.receiver_pid.get(),
            owners(permissions),
            queue.sent_s.get(),
            queue.received_s.get(),
            queue.changed_s.get(),
        );
    }
    out
}

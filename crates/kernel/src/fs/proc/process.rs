//! /proc/PID and /proc/PID/task/TID.

use super::mem::MemoryFile;
use super::namespace::Namespaces;
use super::{memory, number, status};
use crate::errno::{Errno, Result};
use crate::fs::anonymous;
use crate::fs::context::{FsContext, Location};
use crate::fs::file::OpenFile;
use crate::fs::generated::{Attributes, Directory, Home, Link, Listing, TextFile, Write, ino_of};
use crate::fs::inode::{FileType, Inode};
use crate::fs::{mount, path};
use crate::mm::addr::PAGE_BYTES;
use crate::mm::frame;
use crate::mm::space::Respect;
use crate::task::process::{ArgumentArea, Login, Process, TransferCounts};
use crate::task::thread::Thread;
use crate::task::{current, pid};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use linux_raw_sys::general::CAP_AUDIT_CONTROL;

/// The most that is copied of arguments or environment.
const MAX_STRINGS_BYTES: u64 = 2 << 20;

/// What a directory of /proc is about. The process may end while somebody holds the directory: its files then give ESRCH.
#[derive(Clone)]
struct Subject {
    process: Weak<Process>,
    /// For task/TID.
    tid: Option<u32>,
}

impl Subject {
    fn process(&self) -> Result<Rc<Process>> {
        self.process.upgrade().ok_or(Errno::ESRCH)
    }

    /// The thread that the directory is about: the first living one for the process as a whole.
    fn thread(&self) -> Result<Rc<Thread>> {
        let process = self.process()?;
        let threads = process.threads();
        let found = match self.tid {
            Some(tid) => threads.iter().find(|t| t.tid() == tid),
            None => threads.first(),
        };
        found.cloned().ok_or(Errno::ESRCH)
    }

    fn fs(&self) -> Result<Rc<FsContext>> {
        self.thread()?.try_fs().ok_or(Errno::ENOENT)
    }
}

/// The owner of a process's files: its effective user, root while it may not be dumped (proc(5)).
fn owner(process: &Process) -> (u32, u32) {
    match process.threads().first() {
        Some(thread) if process.dumpable.get() => (thread.creds().euid, thread.creds().egid),
        _ => (0, 0),
    }
}

/// /proc/PID.
pub(super) fn directory(home: Home, ino: u64, process: &Rc<Process>) -> Rc<dyn Inode> {
    subject_directory(home, ino, process, None)
}

fn subject_directory(home: Home, ino: u64, process: &Rc<Process>, tid: Option<u32>) -> Rc<dyn Inode> {
    let subject = Subject { process: Rc::downgrade(process), tid };
    let attributes = Attributes { home, ino, mode: 0o555, owner: owner(process) };
    Rc::new(Directory { attributes, listing: Box::new(ProcessListing { attributes, subject }) })
}

struct ProcessListing {
    attributes: Attributes,
    subject: Subject,
}

type Make = fn(&Subject) -> Result<Vec<u8>>;

/// Name, mode, content.
const FILES: &[(&str, u32, Make)] = &[
    ("auxv", 0o400, auxiliary_vector),
    ("cgroup", 0o444, |_| Ok(b"0::/\n".to_vec())),
    ("cmdline", 0o444, |s| strings(s, |m| (m.args_start, m.args_end))),
    ("comm", 0o644, |s| Ok([&s.thread()?.name()[..], b"\n"].concat())),
    ("environ", 0o400, |s| strings(s, |m| (m.env_start, m.env_end))),
    ("io", 0o400, |s| {
        // No file system here has a disk.
        let TransferCounts { read_bytes, written_bytes, reads, writes } = s.process()?.transfers.get();
        Ok(format!(
            "rchar: {read_bytes}\nwchar: {written_bytes}\nsyscr: {reads}\nsyscw: {writes}\nread_bytes: 0\n\
             write_bytes: 0\ncancelled_write_bytes: 0\n"
        )
        .into_bytes())
    }),
    ("limits", 0o444, |s| Ok(status::limits(&*s.process()?).into_bytes())),
    ("loginuid", 0o644, |s| Ok(format!("{}", s.process()?.login.get().uid).into_bytes())),
    ("maps", 0o444, |s| Ok(memory::maps(&*s.process()?))),
    ("mountinfo", 0o444, |s| Ok(mount::mountinfo_text(&*s.fs()?))),
    ("mounts", 0o444, |s| Ok(mount::mounts_text(&*s.fs()?))),
    ("oom_score", 0o444, |s| Ok(format!("{}\n", oom_score(&*s.process()?)).into_bytes())),
    ("oom_score_adj", 0o644, |s| Ok(format!("{}\n", s.process()?.oom_score_adj.get()).into_bytes())),
    ("personality", 0o400, |s| Ok(format!("{:08x}\n", s.process()?.personality.get()).into_bytes())),
    ("sessionid", 0o444, |s| Ok(format!("{}", s.process()?.login.get().session).into_bytes())),
    ("setgroups", 0o644, |_| Ok(b"allow\n".to_vec())),
    ("gid_map", 0o644, |_| Ok(b"         0          0 4294967295\n".to_vec())),
    ("uid_map", 0o644, |_| Ok(b"         0          0 4294967295\n".to_vec())),
    ("smaps", 0o444, |s| Ok(memory::smaps(&*s.process()?))),
    ("smaps_rollup", 0o444, |s| Ok(memory::smaps_rollup(&*s.process()?))),
    ("stat", 0o444, |s| Ok(status::stat(&*s.process()?, s.tid).into_bytes())),
    ("statm", 0o444, |s| Ok(memory::statm(&*s.process()?))),
    ("status", 0o444, |s| Ok(status::status(&*s.process()?, s.thread().ok().as_ref()))),
    ("wchan", 0o444, |_| Ok(b"0".to_vec())),
];

type Find = fn(&Subject) -> Option<Location>;

/// Links with more to them than their text.
const LINKS: &[(&str, Find)] = &[
    ("cwd", |s| Some(s.fs().ok()?.cwd.borrow().clone())),
    ("exe", |s| s.process().ok()?.executable()),
    ("root", |s| Some(s.fs().ok()?.root.borrow().clone())),
];

/// The memory itself.
const MEMORY: &str = "mem";

const DIRECTORIES: &[&str] = &["fd", "fdinfo", "net", "ns", "task"];

/// The score by which the OOM killer of Linux chooses, `proc_oom_score`: 0 to 2000, a process without memory or adjustment
/// has 666.
fn oom_score(process: &Process) -> i64 {
    let adjustment = i64::from(process.oom_score_adj.get());
    let total = (frame::usage().limit_bytes / PAGE_BYTES).cast_signed();
    if adjustment == -1000 || total == 0 {
        return 0;
    }
    let resident = process.try_space().map_or(0, |space| space.resident_pages().pages().cast_signed());
    let badness = resident + adjustment * total / 1000;
    ((1000 + badness * 1000 / total) * 2 / 3).max(0)
}

/// What execve(2) put behind the environment's pointers on the stack (getauxval(3)), as the process's memory has it now.
fn auxiliary_vector(subject: &Subject) -> Result<Vec<u8>> {
    const MAX_BYTES: usize = 1024;
    let process = subject.process()?;
    let Some(space) = process.try_space() else { return Ok(Vec::new()) };
    let area = process.arguments.get();
    // All of it lies between the stack pointer and the strings: argc, argv, NULL, envp, NULL, pairs up to AT_NULL.
    let len = area.args_start.saturating_sub(area.stack_start).min(MAX_STRINGS_BYTES);
    let mut bytes = vec![0; len as usize];
    let read = match space.read_memory(area.stack_start, &mut bytes, Respect::Nothing) {
        Ok(()) => bytes.len(),
        Err(read) => read,
    };
    let words = bytes[..read].as_chunks::<8>().0;
    let argc = words.first().map_or(0, |word| u64::from_le_bytes(*word));
    let env = usize::try_from(argc).ok().and_then(|argc| argc.checked_add(2)).unwrap_or(usize::MAX);
    let rest = words.get(env..).unwrap_or_default();
    let end = rest.iter().position(|word| *word == [0; 8]).map_or(rest.len(), |null| null + 1);
    let pairs = rest[end..].chunks_exact(2);
    let count = pairs.clone().position(|pair| pair[0] == [0; 8]).map_or(0, |null| null + 1);
    Ok(pairs.take(count).flatten().flatten().copied().take(MAX_BYTES).collect())
}

fn strings(subject: &Subject, range: fn(&ArgumentArea) -> (u64, u64)) -> Result<Vec<u8>> {
    let process = subject.process()?;
    let Some(space) = process.try_space() else { return Ok(Vec::new()) };
    let (start, end) = range(&process.arguments.get());
    let mut bytes = vec![0; end.saturating_sub(start).min(MAX_STRINGS_BYTES) as usize];
    match space.read_memory(start, &mut bytes, Respect::Nothing) {
        Ok(()) => Ok(bytes),
        Err(read) => Ok(bytes[..read].to_vec()),
    }
}

/// The number that a program wrote.
fn parsed<T: core::str::FromStr>(bytes: &[u8]) -> Result<T> {
    let text = core::str::from_utf8(bytes).map_err(|_| Errno::EINVAL)?;
    text.trim().parse().map_err(|_| Errno::EINVAL)
}

impl ProcessListing {
    fn attributes(&self, name: &[u8], mode: u32) -> Attributes {
        Attributes { ino: ino_of(self.attributes.ino, name), mode, ..self.attributes }
    }

    fn write(&self, name: &str) -> Option<Write> {
        let subject = self.subject.clone();
        match name {
            "comm" => Some(Rc::new(move |bytes| {
                subject.thread()?.set_name(bytes.strip_suffix(b"\n").unwrap_or(bytes));
                Ok(())
            })),
            // Only its own; and once it is set, only with the right to control auditing.
            "loginuid" => Some(Rc::new(move |bytes| {
                let (me, process) = (current(), subject.process()?);
                let login = process.login.get();
                if me.process.pid() != process.pid() || login.uid != u32::MAX && !me.creds().has(CAP_AUDIT_CONTROL) {
                    return Err(Errno::EPERM);
                }
                process.login.set(Login::of(parsed(bytes)?));
                Ok(())
            })),
            "oom_score_adj" => Some(Rc::new(move |bytes| {
                let score: i16 = parsed(bytes)?;
                if !(-1000..=1000).contains(&score) {
                    return Err(Errno::EINVAL);
                }
                subject.process()?.oom_score_adj.set(score);
                Ok(())
            })),
            _ => None,
        }
    }

    fn sub_directory(&self, name: &str) -> Rc<dyn Inode> {
        let mode = if name == "fd" { 0o500 } else { 0o555 };
        let attributes = self.attributes(name.as_bytes(), mode);
        let subject = self.subject.clone();
        let listing: Box<dyn Listing> = match name {
            "fd" => Box::new(Descriptors { attributes, subject, info: false }),
            "fdinfo" => Box::new(Descriptors { attributes, subject, info: true }),
            "ns" => Box::new(Namespaces { attributes }),
            "task" => Box::new(Tasks { attributes, subject }),
            _ => Box::new(super::net::Net { attributes }),
        };
        Rc::new(Directory { attributes, listing })
    }
}

/// The process whose directory was opened.
///
/// # Errors
/// EBADF if something else was; ESRCH.
pub fn process_of(file: &OpenFile) -> Result<Rc<Process>> {
    let inode = file.location.as_ref().map(|location| &location.inode).ok_or(Errno::EBADF)?;
    inode.as_any().downcast_ref::<Directory>().and_then(|directory| directory.listing.process()).ok_or(Errno::EBADF)?
}

impl Listing for ProcessListing {
    fn process(&self) -> Option<Result<Rc<Process>>> {
        self.subject.tid.is_none().then(|| self.subject.process())
    }

    fn names(&self) -> Vec<(Vec<u8>, FileType)> {
        let name = |name: &&str| name.as_bytes().to_vec();
        let directories = DIRECTORIES.iter().filter(|n| self.subject.tid.is_none() || **n != "task");
        let directories = directories.map(|n| (name(n), FileType::Directory));
        let files = FILES.iter().map(|(n, ..)| (name(n), FileType::Regular));
        let files = files.chain([(name(&MEMORY), FileType::Regular)]);
        directories.chain(files).chain(LINKS.iter().map(|(n, _)| (name(n), FileType::Symlink))).collect()
    }

    fn find(&self, name: &[u8]) -> Option<Rc<dyn Inode>> {
        let name = core::str::from_utf8(name).ok()?;
        if let Some((name, mode, make)) = FILES.iter().find(|(n, ..)| *n == name) {
            let subject = self.subject.clone();
            let attributes = self.attributes(name.as_bytes(), *mode);
            return Some(Rc::new(TextFile {
                attributes,
                read: Rc::new(move || make(&subject)),
                write: self.write(name),
            }));
        }
        if let Some((name, location)) = LINKS.iter().find(|(n, _)| *n == name) {
            let attributes = self.attributes(name.as_bytes(), 0o777);
            let (for_text, for_magic) = (self.subject.clone(), self.subject.clone());
            let target = Rc::new(move || Ok(link_text(&location(&for_text).ok_or(Errno::ENOENT)?)));
            return Some(Rc::new(Link { attributes, target, magic: Some(Rc::new(move || location(&for_magic))) }));
        }
        if name == MEMORY {
            let subject = self.subject.clone();
            let attributes = self.attributes(name.as_bytes(), 0o600);
            return Some(Rc::new(MemoryFile { attributes, thread: Box::new(move || subject.thread()) }));
        }
        let listed = DIRECTORIES.contains(&name) && (self.subject.tid.is_none() || name != "task");
        listed.then(|| self.sub_directory(name))
    }
}

fn link_text(location: &Location) -> Vec<u8> {
    let root = current().fs().root.borrow().clone();
    path::link_text(location, &root)
}

/// /proc/PID/fd and fdinfo.
struct Descriptors {
    attributes: Attributes,
    subject: Subject,
    info: bool,
}

impl Listing for Descriptors {
    fn names(&self) -> Vec<(Vec<u8>, FileType)> {
        let file_type = if self.info { FileType::Regular } else { FileType::Symlink };
        let files = self.subject.thread().ok().and_then(|t| t.try_files());
        files.map_or_else(Vec::new, |f| f.open().iter().map(|fd| (format!("{fd}").into_bytes(), file_type)).collect())
    }

    fn find(&self, name: &[u8]) -> Option<Rc<dyn Inode>> {
        let fd = if name == b"0" { 0 } else { i32::try_from(number(name)?).ok()? };
        let subject = self.subject.clone();
        let open = move || subject.thread().ok()?.try_files()?.get(fd).ok();
        let file = open()?;
        let mut attributes = Attributes { ino: ino_of(self.attributes.ino, name), ..self.attributes };
        if self.info {
            attributes.mode = 0o400;
            let subject = self.subject.clone();
            let read = Rc::new(move || {
                let files = subject.thread()?.try_files().ok_or(Errno::ENOENT)?;
                let file = files.get(fd).map_err(|_| Errno::ENOENT)?;
                let cloexec = if files.close_on_exec(fd)? { 0o2_000_000 } else { 0 };
                let mut text = format!(
                    "pos:\t{}\nflags:\t0{:o}\nmnt_id:\t{}\nino:\t{}\n",
                    file.position.get(),
                    file.shown_flags().bits() | cloexec,
                    file.location.as_ref().map_or(0, |location| location.mount.id),
                    file.metadata().ino
                );
                text.push_str(&file.ops.fdinfo());
                Ok(text.into_bytes())
            });
            return Some(Rc::new(TextFile { attributes, read, write: None }));
        }
        let flags = file.flags.get();
        attributes.mode = 0o100 | if flags.readable() { 0o400 } else { 0 } | if flags.writable() { 0o200 } else { 0 };
        drop(file);
        let reopen = open.clone();
        let target = Rc::new(move || Ok(link_text(&anonymous::location(&open().ok_or(Errno::ENOENT)?))));
        Some(Rc::new(Link { attributes, target, magic: Some(Rc::new(move || Some(anonymous::location(&reopen()?)))) }))
    }
}

/// /proc/PID/task.
struct Tasks {
    attributes: Attributes,
    subject: Subject,
}

impl Listing for Tasks {
    fn names(&self) -> Vec<(Vec<u8>, FileType)> {
        let threads = self.subject.process().map(|p| p.threads()).unwrap_or_default();
        threads.iter().map(|t| (format!("{}", t.tid()).into_bytes(), FileType::Directory)).collect()
    }

    fn find(&self, name: &[u8]) -> Option<Rc<dyn Inode>> {
        let thread = pid::thread(number(name)?)?;
        let process = self.subject.process().ok().filter(|p| Rc::ptr_eq(p, &thread.process))?;
        Some(subject_directory(self.attributes.home, ino_of(self.attributes.ino, name), &process, Some(thread.tid())))
    }
}

/// Name in the form that /proc/PID/status shows: no control characters.
pub(super) fn shown_name(name: &[u8]) -> String {
    String::from_utf8_lossy(name).replace('\n', "\\n")
}

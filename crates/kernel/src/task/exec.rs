//! execve(2): one program takes another's place.
//!
//! The new program is loaded whole before anything of the old one is given up, so failures are errors that the old program
//! sees. Exceptions are the death of the calling thread, and a file whose data is cut off, which Linux finds out too late.

use super::creds::{Credentials, FileCapabilities, FilePrivileges};
use super::elf::Elf;
use super::load::{self, Identity, Loaded, Strings};
use super::process::Process;
use super::sched::{self, Sleep};
use super::signal::SIGSEGV;
use super::status::WaitStatus;
use super::thread::Thread;
use super::{current, exit, pid, ptrace};
use crate::arch::regs::UserRegs;
use crate::errno::{Errno, Result};
use crate::fs::context::Location;
use crate::fs::file::{OpenFile, OpenFlags};
use crate::fs::inode::{FileType, may_access};
use crate::fs::mount::MountFlags;
use crate::wait::Events;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// How much of a file tells what it is (BINPRM_BUF_SIZE).
const HEAD_BYTES: usize = 256;
/// How many interpreters of scripts may be scripts themselves.
const MAX_INTERPRETERS: usize = 5;
/// The longest argument or variable, its NUL included (MAX_ARG_STRLEN).
pub const MAX_STRING_BYTES: usize = torpor_abi::layout::STRING_MAX_BYTES as usize;
/// Arguments and environment together, whatever RLIMIT_STACK is: three quarters of 8 MiB.
const MAX_STRINGS_BYTES: u64 = 6 << 20;
/// What they may always have (ARG_MAX).
const MIN_STRINGS_BYTES: u64 = 128 << 10;

/// How many bytes arguments, environment and the pointers to them may have, with a stack of `stack_limit` bytes.
#[must_use]
pub fn strings_limit(stack_limit: u64) -> usize {
    (stack_limit / 4).clamp(MIN_STRINGS_BYTES, MAX_STRINGS_BYTES) as usize
}

/// What shall be run.
pub struct Program<'a> {
    /// The file.
    pub location: Location,
    /// What it was called: for AT_EXECFN, and how a script's interpreter finds it.
    pub name: Vec<u8>,
    /// The name will not mean the file any more once close-on-exec descriptors are gone.
    pub name_vanishes: bool,
    /// Arguments.
    pub argv: Strings,
    /// Environment.
    pub envp: Strings,
    /// Finds an interpreter.
    pub find: &'a dyn Fn(&[u8]) -> Result<Location>,
}

/// Opens a file for execution: it has to be regular and executable, but not readable.
fn open(location: &Location, creds: &Credentials) -> Result<Rc<OpenFile>> {
    let meta = location.inode.metadata();
    let forbidden = location.mount.flags.get().contains(MountFlags::NOEXEC);
    if meta.file_type != FileType::Regular || forbidden || !may_access(&meta, creds, 1) {
        return Err(Errno::EACCES);
    }
    let flags = OpenFlags::empty();
    let ops = Rc::clone(&location.inode).open(flags)?;
    Ok(OpenFile::new(ops, flags, Some(location.clone())))
}

/// What the file's set-ID bits and capabilities give.
fn privileges(location: &Location) -> FilePrivileges {
    let meta = location.inode.metadata();
    if location.mount.flags.get().contains(MountFlags::NOSUID) {
        return FilePrivileges::default();
    }
    FilePrivileges {
        uid: (meta.mode & 0o4000 != 0).then_some(meta.uid),
        // Without the group's execute bit it once meant mandatory locking.
        gid: (meta.mode & 0o2010 == 0o2010).then_some(meta.gid),
        capabilities: location
            .inode
            .xattr(b"security.capability")
            .ok()
            .and_then(|value| FileCapabilities::parse(&value)),
    }
}

/// Makes the current process run another program. On success its registers are those of the new program's start, and
/// marked as replaced, so that a system call's result does not go into them; who starts the first program takes the mark
/// away.
///
/// # Errors
/// As execve(2). After EFAULT the process is ending, by SIGSEGV.
pub fn execute(mut program: Program<'_>) -> Result<()> {
    let me = current();
    let creds = me.creds();
    let name = program.name.clone();
    let mut location = program.location.clone();
    let mut file = open(&location, &creds)?;
    let mut depth = 0;
    loop {
        let mut head = [0; HEAD_BYTES];
        let len = load::read_at(&file, 0, &mut head)?;
        let Some(script) = Script::parse(&head[..len])? else { break };
        if depth == MAX_INTERPRETERS {
            return Err(Errno::ELOOP);
        }
        depth += 1;
        if program.name_vanishes {
            return Err(Errno::ENOENT);
        }
        let called = core::mem::replace(&mut program.name, script.interpreter.to_vec());
        match script.argument {
            Some(argument) => program.argv.replace_first(&[script.interpreter, argument, &called]),
            None => program.argv.replace_first(&[script.interpreter, &called]),
        }
        location = (program.find)(script.interpreter)?;
        file = open(&location, &creds)?;
    }
    let elf = Elf::parse(|at, buffer| load::read_at(&file, at, buffer))?;
    let executing = Executing::begin(&me.process);
    let no_new_privs = me.no_new_privs.get() || !ptrace::may_gain_privileges(&me);
    let (new_creds, secure) = creds.after_exec(&privileges(&location), no_new_privs)?;
    let identity =
        Identity { uid: new_creds.uid, euid: new_creds.euid, gid: new_creds.gid, egid: new_creds.egid, secure };
    let open_interpreter = |path: &[u8]| open(&(program.find)(path)?, &creds);
    let loaded = load::load(&file, &elf, &name, (&program.argv, &program.envp), &identity, &open_interpreter)
        .inspect_err(|error| {
            // Short of memory it is tried again, as any system call.
            if *error == Errno::EFAULT && !me.short_of_memory.get() {
                exit::exit_group(&me.process, WaitStatus::signaled(SIGSEGV.number(), false));
            }
        })?;
    drop(file);
    let former_tid = me.tid();
    become_only_thread(&me)?;
    commit(&me, loaded, &name, location, new_creds, secure);
    drop(executing);
    ptrace::executed(&me, former_tid);
    Ok(())
}

/// While it lives nobody attaches to the process (ptrace(2)): what execve(2) gives depends on who traces it.
struct Executing(Rc<Process>);

impl Executing {
    fn begin(process: &Rc<Process>) -> Self {
        process.executing.update(|threads| threads + 1);
        Self(Rc::clone(process))
    }
}

impl Drop for Executing {
    fn drop(&mut self) {
        self.0.executing.update(|threads| threads - 1);
        self.0.own_events.wake_all(Events::empty());
    }
}

/// Ends the process's other threads and takes the first one's id.
fn become_only_thread(me: &Rc<Thread>) -> Result<()> {
    let process = &me.process;
    if me.dying() {
        return Err(Errno::EINTR);
    }
    for thread in process.threads() {
        if !Rc::ptr_eq(&thread, me) {
            thread.doom();
        }
    }
    // Interrupted only by this thread's own end: another one was quicker, or the process ends.
    sched::wait_until(&[&process.own_events], None, Sleep::Killable, || (process.thread_count() == 1).then_some(()))?;
    if me.tid() != process.pid() {
        ptrace::forget_leader(process);
        pid::remove_thread(me.tid());
        me.set_tid(process.pid());
        pid::add_thread(me);
    }
    Ok(())
}

fn commit(me: &Rc<Thread>, loaded: Loaded, name: &[u8], location: Location, creds: Credentials, secure: bool) {
    let process = &me.process;
    let changed = creds.differs_for_dump(&me.creds());
    exit::release_memory(me);
    me.robust_list.set(crate::mm::addr::UserAddr::NULL);
    exit::release_space(process);
    process.release_vfork();
    drop(process.set_space(Some(loaded.space)));
    sched::reload_space(me);

    process.set_executable(Some(location));
    process.arguments.set(loaded.arguments);
    process.executed.set(true);
    process.dumpable.set(!changed);
    me.set_creds(creds);
    if secure {
        me.parent_death_signal.set(None);
    }
    me.set_name(name.rsplit(|b| *b == b'/').next().unwrap_or(name));

    let actions = process.signals.actions().after_exec();
    process.signals.set_actions(actions);
    me.signals.set_alt_stack(Default::default());
    process.timers.after_exec();
    close_on_exec(me);

    me.state.set_fs_base(0);
    me.state.set_gs_base(0);
    me.state.reset_extended();
    // A tracer sees that it is in execve(2).
    let orig_rax = me.state.regs().orig_rax;
    me.state.replace_regs(&UserRegs { orig_rax, ..UserRegs::start(loaded.entry, loaded.stack) });
}

/// Closes what is marked; a table that other processes share (CLONE_FILES) is copied first.
fn close_on_exec(me: &Thread) {
    me.unshare_files();
    let files = me.files();
    for file in files.drain(0, usize::MAX, |close_on_exec| close_on_exec) {
        files.closed(file);
    }
}

/// The first line of a script: `#!`, an interpreter, at most one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Script<'a> {
    interpreter: &'a [u8],
    argument: Option<&'a [u8]>,
}

impl<'a> Script<'a> {
    /// `None` if it is no script.
    ///
    /// # Errors
    /// ENOEXEC if no interpreter is named, or its name may go on beyond what was read.
    fn parse(head: &'a [u8]) -> Result<Option<Self>> {
        let Some(rest) = head.strip_prefix(b"#!") else { return Ok(None) };
        let blank = |b: &u8| matches!(b, b' ' | b'\t');
        let ends_line = |b: &u8| matches!(b, b'\n' | 0);
        let (line, cut) = match rest.iter().position(ends_line) {
            Some(end) => (&rest[..end], false),
            // The end of the file ends the line, too; the end of the buffer cuts it.
            None => (rest, head.len() == HEAD_BYTES),
        };
        let start = line.iter().position(|b| !blank(b)).ok_or(Errno::ENOEXEC)?;
        let line = &line[start..];
        let end = line.iter().position(blank);
        if cut && end.is_none() {
            return Err(Errno::ENOEXEC);
        }
        let (interpreter, rest) = line.split_at(end.unwrap_or(line.len()));
        Ok(Some(Self { interpreter, argument: Some(rest.trim_ascii()).filter(|argument| !argument.is_empty()) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn script(line: &'static [u8], interpreter: &'static [u8], argument: Option<&'static [u8]>) {
        assert_eq!(Script::parse(line), Ok(Some(Script { interpreter, argument })));
    }

    #[test]
    fn first_lines_of_scripts() {
        assert_eq!(Script::parse(b"echo"), Ok(None));
        script(b"#!/bin/sh\nx", b"/bin/sh", None);
        script(b"#! /bin/sh -e  -x \t\nx", b"/bin/sh", Some(b"-e  -x"));
        script(b"#!/bin/sh", b"/bin/sh", None);
        assert_eq!(Script::parse(b"#!\n"), Err(Errno::ENOEXEC));
        assert_eq!(Script::parse(b"#!   "), Err(Errno::ENOEXEC));
        let mut long = b"#!/".to_vec();
        long.resize(HEAD_BYTES, b'a');
        assert_eq!(Script::parse(&long), Err(Errno::ENOEXEC));
        long[100] = b' ';
        assert!(matches!(Script::parse(&long), Ok(Some(Script { argument: Some(_), .. }))));
    }

    #[test]
    fn string_limits() {
        assert_eq!(strings_limit(8 << 20), 2 << 20);
        assert_eq!(strings_limit(0), 128 << 10);
        assert_eq!(strings_limit(u64::MAX), 6 << 20);
    }

    #[test]
    fn replacing_the_name_of_a_script() {
        let mut argv = Strings::default();
        argv.replace_first(&[b"/bin/sh", b"x"]);
        assert_eq!((argv.len(), argv.bytes()), (2, 10));
        argv.replace_first(&[b"a"]);
        assert_eq!((argv.len(), argv.bytes()), (2, 4));
    }

    proptest! {
        #[test]
        fn any_head_is_parsed_or_refused(mut head in proptest::collection::vec(any::<u8>(), 0..HEAD_BYTES)) {
            let _ = Script::parse(&head);
            head.splice(..head.len().min(2), vec![b'#', b'!']);
            if let Ok(Some(found)) = Script::parse(&head) {
                prop_assert!(!found.interpreter.is_empty() && !found.interpreter.contains(&b'\n'));
            }
        }
    }
}

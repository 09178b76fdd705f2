//! execve(2) and execveat(2).

use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::fs::caller::Caller;
use crate::mm::addr::UserAddr;
use crate::mm::user;
use crate::task::current;
use crate::task::exec::{self, MAX_STRING_BYTES, Program};
use crate::task::limits::Resource;
use crate::task::load::Strings;
use alloc::format;
use linux_raw_sys::general as linux;

pub(super) const CALLS: &[Syscall] = &[
    Syscall::partial(
        linux::__NR_execve as u16,
        "execve",
        "a file that is open for writing can be executed (no ETXTBSY)",
        |args| execute(linux::AT_FDCWD, args.addr(0), args.addr(1), args.addr(2), 0),
        &[Arg::Path, Arg::Strings, Arg::Ptr],
    ),
    Syscall::partial(
        linux::__NR_execveat as u16,
        "execveat",
        "a file that is open for writing can be executed (no ETXTBSY)",
        sys_execveat,
        &[Arg::DirFd, Arg::Path, Arg::Strings, Arg::Ptr, Arg::AtFlags],
    ),
];

/// The longest path, without its NUL.
const MAX_PATH_BYTES: usize = linux::PATH_MAX as usize - 1;

fn sys_execveat(args: Args) -> Result<u64> {
    let flags = args.u32(4);
    if flags & !(linux::AT_EMPTY_PATH | linux::AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    execute(args.i32(0), args.addr(1), args.addr(2), args.addr(3), flags)
}

/// Reads an array of strings that a null pointer ends; what they take, pointers included, comes off `room`.
fn read_strings(at: UserAddr, room: &mut usize) -> Result<Strings> {
    const POINTER_BYTES: usize = 8;
    let mut strings = Strings::default();
    if at.is_null() {
        return Ok(strings);
    }
    loop {
        let string = user::read::<u64>(at.offset((POINTER_BYTES * strings.len()) as u64))?;
        if string == 0 {
            return Ok(strings);
        }
        let string = user::read_cstr(UserAddr(string), MAX_STRING_BYTES - 1, Errno::E2BIG)?;
        *room = room.checked_sub(string.len() + 1 + POINTER_BYTES).ok_or(Errno::E2BIG)?;
        strings.push(&string);
    }
}

fn execute(dirfd: i32, path: UserAddr, argv: UserAddr, envp: UserAddr, flags: u32) -> Result<u64> {
    let path = user::read_cstr(path, MAX_PATH_BYTES, Errno::ENAMETOOLONG)?;
    let me = current();
    let caller = Caller::current();
    if path.is_empty() && flags & linux::AT_EMPTY_PATH == 0 {
        return Err(Errno::ENOENT);
    }
    let location = caller.target(dirfd, &path, flags)?.location(Errno::EACCES)?;
    if flags & linux::AT_SYMLINK_NOFOLLOW != 0 && location.inode.read_link().is_ok() {
        return Err(Errno::ELOOP);
    }
    // What is only known by a descriptor is called by that, and gone with it.
    let by_descriptor = dirfd != linux::AT_FDCWD && path.first() != Some(&b'/');
    let name_vanishes = by_descriptor && me.files().close_on_exec(dirfd)?;
    let mut name = path;
    if by_descriptor {
        let tail = name;
        name = format!("/dev/fd/{dirfd}").into_bytes();
        if !tail.is_empty() {
            name.push(b'/');
            name.extend(tail);
        }
    }
    let mut room = exec::strings_limit(me.process.limit(Resource::Stack));
    let mut argv = read_strings(argv, &mut room)?;
    let envp = read_strings(envp, &mut room)?;
    if argv.is_empty() {
        // Programs take argv[0] for granted.
        argv.push(b"");
    }
    let find = |path: &[u8]| caller.find(linux::AT_FDCWD, path, true);
    exec::execute(Program { location, name, name_vanishes, argv, envp, find: &find })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::context::FsContext;
    use crate::fs::file::{FileOps, OpenFile, OpenFlags};
    use crate::fs::inode::{FileType, NewInode, SetMetadata};
    use crate::fs::mount::{Description, mount_root};
    use crate::fs::overlay::{Limits, Tree};
    use crate::mm::space::Respect;
    use crate::mm::user::Source;
    use crate::syscall::dispatch;
    use crate::task::elf::tests::image;
    use crate::task::thread::Thread;
    use crate::task::{pidfd, testing};
    use alloc::boxed::Box;
    use alloc::ffi::CString;
    use alloc::rc::Rc;
    use alloc::string::String;
    use alloc::vec::Vec;

    const TEXT: u32 = 5;

    /// A thread with a root directory that has an executable `/prog`, a script `/script` and a file that is no program.
    fn enter() -> Rc<Thread> {
        crate::mm::frame::reset_hosted(64 << 20, 64 << 20);
        let me = testing::enter();
        let new = |file_type, mode| NewInode { file_type, mode, uid: 0, gid: 0, rdev: 0 };
        let limits = Limits { pages: 1024, metadata_bytes: 1 << 20 };
        let root = Tree::tmpfs(limits, &new(FileType::Directory, 0o755)).expect("a directory");
        let description = Description { fs_type: "tmpfs", source: Box::default(), options: String::new() };
        let root = mount_root(root, description).expect("an empty table");
        me.set_fs(Some(FsContext::new(root.clone())));
        let program = image(2, 0x40_0100, &[(1, TEXT, 0, 0x40_0000, 0x900, 0x900)], 0x1000);
        for (name, mode, content) in [
            ("prog", 0o755, program.as_slice()),
            ("script", 0o755, b"#!/prog  -x y \n"),
            ("loop", 0o755, b"#!/loop\n"),
            ("data", 0o755, b"hello"),
            ("plain", 0o644, &program),
        ] {
            let inode = root.inode.create(name.as_bytes(), &new(FileType::Regular, mode)).expect("a new file");
            let ops: Rc<dyn FileOps> = Rc::clone(&inode).open(OpenFlags::RDWR).expect("a regular file");
            let file = OpenFile::new(ops, OpenFlags::RDWR, None);
            assert_eq!(file.write(&mut Source::kernel(content)), Ok(content.len()));
            inode.set_metadata(&SetMetadata { mode: Some(mode), ..SetMetadata::default() }).expect("root may");
        }
        me
    }

    fn run(path: &str, argv: &[&str]) -> Result<u64> {
        let strings: Vec<CString> = argv.iter().map(|s| CString::new(*s).expect("no NUL")).collect();
        let mut pointers: Vec<u64> = strings.iter().map(|s| s.as_ptr().addr() as u64).collect();
        pointers.push(0);
        let path = CString::new(path).expect("no NUL");
        let args = [path.as_ptr().addr() as u64, pointers.as_ptr().addr() as u64, 0, 0, 0, 0];
        dispatch::call(u64::from(linux::__NR_execve), args)
    }

    fn arguments(me: &Thread) -> Vec<u8> {
        let area = me.process.arguments.get();
        let mut bytes = alloc::vec![0; (area.args_end - area.args_start) as usize];
        me.process.space().read_memory(area.args_start, &mut bytes, Respect::Protection).expect("mapped");
        bytes
    }

    #[test]
    fn a_program_takes_over() {
        let me = enter();
        let marked = me.files().insert(pidfd::open(&me.process, OpenFlags::empty()), true, 0, 9).expect("room");
        let kept = me.files().insert(pidfd::open(&me.process, OpenFlags::empty()), false, 0, 9).expect("room");
        assert_eq!(run("/prog", &["name", "one"]), Ok(0));
        let regs = me.state.regs();
        assert_eq!((regs.rip, regs.rsp % 16, regs.rdx), (0x40_0100, 0, 0));
        assert_eq!(arguments(&me), b"name\0one\0");
        assert_eq!(me.name(), b"prog");
        assert!(me.process.has_executed());
        assert!(me.files().get(marked).is_err() && me.files().get(kept).is_ok());
        assert_eq!(run("/prog", &[]), Ok(0));
        assert_eq!(arguments(&me), b"\0", "there is always an argv[0]");
    }

    #[test]
    fn a_script_is_its_interpreters_argument() {
        let me = enter();
        assert_eq!(run("/script", &["ignored", "a", "b"]), Ok(0));
        assert_eq!(arguments(&me), b"/prog\0-x y\0/script\0a\0b\0");
        assert_eq!(me.name(), b"script");
    }

    #[test]
    fn what_can_not_be_run_leaves_the_old_program() {
        let me = enter();
        assert_eq!(run("/prog", &["old"]), Ok(0));
        for (path, error) in [
            ("/none", Errno::ENOENT),
            ("", Errno::ENOENT),
            ("/", Errno::EACCES),
            ("/plain", Errno::EACCES),
            ("/data", Errno::ENOEXEC),
            ("/loop", Errno::ELOOP),
            ("/prog/x", Errno::ENOTDIR),
        ] {
            assert_eq!(run(path, &["new"]), Err(error), "{path}");
        }
        let long = "x".repeat(MAX_STRING_BYTES);
        assert_eq!(run("/prog", &[&long]), Err(Errno::E2BIG));
        let many = alloc::vec![&long[1..]; 20];
        assert_eq!(run("/prog", &many), Err(Errno::E2BIG));
        assert_eq!(arguments(&me), b"old\0");
    }
}

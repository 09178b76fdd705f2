//! From the first instruction to the first program.

use crate::accounts::{self, Account};
use crate::dev::tty;
use crate::errno::Errno;
use crate::fs::caller::Caller;
use crate::fs::context::{FsContext, Location};
use crate::fs::fdtable::FdTable;
use crate::fs::file::{OpenFile, OpenFlags};
use crate::fs::inode::{FileType, may_access};
use crate::fs::open::{self, How};
use crate::fs::overlay::{Lower, image_fault};
use crate::fs::path::Resolve;
use crate::fs::{init, mount, names, special};
use crate::host::stream::Receiver;
use crate::mm::addr::Gpa;
use crate::snapshot::Identity;
use crate::task::creds::Credentials;
use crate::task::exec::{Program, execute};
use crate::task::load::Strings;
use crate::task::process::Process;
use crate::task::signal::{self, Signal, SignalInfo};
use crate::task::status::WaitStatus;
use crate::task::thread::Thread;
use crate::{dev, event, host, hosts, mm, random, rewrite, snapshot, syscall, task, time};
use alloc::format;
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use linux_raw_sys::general::AT_FDCWD;
use torpor_abi::boot::{BootInfo, MAGIC, Span, VERSION, flags};
use torpor_abi::frame::{Header, kind, stream};
use torpor_abi::layout::{BOOT_INFO_GPA, BOOT_STRINGS_GPA, DIRECT_MAP_BASE, IMAGE_GPA, PAGE_BYTES};
use torpor_abi::shared::exit;

/// The boot information, copied out and checked.
pub struct Boot {
    info: BootInfo,
    /// Program and arguments.
    pub argv: Strings,
    /// Environment, `K=V`.
    pub envp: Strings,
    /// Empty for `/`.
    pub workdir: Vec<u8>,
    /// As for docker's `--user`; empty for root.
    pub user: Vec<u8>,
    /// Host and instance name.
    pub hostname: Vec<u8>,
}

impl Boot {
    /// Copies the strings to where the memory is set up by now. If they are in RAM they are gone afterwards: whoever gets
    /// that takes it for zeros.
    fn read(info: BootInfo) -> Self {
        let strings = (DIRECT_MAP_BASE + info.strings_gpa) as *const u8;
        // SAFETY: mapped, and written by the VM process before the first instruction; memory is given out from the bottom up,
        // so that nobody writes to them as long as this borrows them.
        let bytes = unsafe { core::slice::from_raw_parts(strings, info.strings_bytes as usize) };
        let boot = Self::of_strings(info, bytes);
        if info.strings_gpa != BOOT_STRINGS_GPA {
            host::discard(Gpa(info.strings_gpa), info.strings_bytes.next_multiple_of(PAGE_BYTES));
        }
        boot
    }

    fn of_strings(info: BootInfo, bytes: &[u8]) -> Self {
        let span = |span: Span| {
            let end = span.offset.saturating_add(span.len) as usize;
            bytes.get(span.offset as usize..end).unwrap_or_else(|| panic!("boot information: {span:?} is outside"))
        };
        Self {
            argv: Strings::of_bytes(span(info.argv), info.argc as usize),
            envp: Strings::of_bytes(span(info.envp), info.envc as usize),
            workdir: span(info.workdir).to_vec(),
            user: span(info.user).to_vec(),
            hostname: span(info.hostname).to_vec(),
            info,
        }
    }
}

fn read_info() -> BootInfo {
    // SAFETY: mapped, aligned, and written by the VM process before the first instruction.
    let info = unsafe { ((DIRECT_MAP_BASE + BOOT_INFO_GPA) as *const BootInfo).read() };
    assert!(info.magic == MAGIC && info.version == VERSION, "boot information of another version: {}", info.version);
    info
}

/// Called by the entry on the boot stack.
#[unsafe(no_mangle)]
extern "C" fn kernel_main() -> ! {
    let info = read_info();
    crate::arch::tlb::set_boot_root(mm::addr::Gpa(info.pml4_gpa));
    mm::init(info.ram_bytes, info.memory_limit_bytes, mm::addr::Gpa(info.kernel_end_gpa), mm::addr::Gpa(info.pml4_gpa));
    if info.flags & flags::TEMPLATE == 0 {
        mm::frame::prefer_large_pages();
    }
    random::reseed(&info.seed);
    time::start(info.tsc_hz);
    syscall::dispatch::set_tracing(info.flags & flags::TRACE != 0);
    if info.flags & flags::NO_REWRITE == 0 {
        rewrite::enable();
    }
    let boot = Boot::read(info);
    let first = first_thread(&boot);
    blame_image();
    match first {
        Ok(thread) => {
            drop(boot);
            crate::arch::thread::start(&thread.state)
        }
        Err((errno, text)) => host::exit(exit::START_FAILED, errno.0 as u32, &text),
    }
}

/// Ends the VM if its image has been found damaged, or not to be readable: what a program was told instead, and made of it,
/// would hide that.
fn blame_image() {
    if let Some(fault) = image_fault() {
        host::exit(exit::START_FAILED, Errno::EUCLEAN.0 as u32, &format!("{fault}"));
    }
}

/// What went wrong before the first program ran: an errno for the exit status, and a sentence.
type StartError = (Errno, String);

fn first_thread(boot: &Boot) -> Result<Rc<Thread>, StartError> {
    let fail = |what: &'static str| move |errno: Errno| (errno, format!("{what}: {errno}"));
    let image = (DIRECT_MAP_BASE + IMAGE_GPA) as *const u8;
    // SAFETY: the direct map of the image is there for ever, and so is its memory slot.
    let lower = unsafe { Lower::open(image, boot.info.image_bytes as usize, Gpa(IMAGE_GPA)) };
    let lower = lower.map_err(|error| (Errno::EUCLEAN, format!("{error}")))?;
    special::set_device_opener(dev::open);
    special::set_fifo_opener(event::pipe::open_inode);
    let fs = init::init(lower).map_err(fail("cannot set up the file system"))?;
    let identity = Identity { uuid: &boot.info.uuid, name: &boot.hostname, generation: boot.info.generation };
    identity.write(&fs).map_err(fail("/run/torpor/instance"))?;
    hosts::write(&fs, &boot.hostname).map_err(fail("/etc/hosts"))?;
    let is_template = boot.info.flags & flags::TEMPLATE != 0;
    snapshot::start(Rc::clone(&fs), is_template.then_some(boot.info.ready_ports));
    name_server(&fs).map_err(fail("/etc/resolv.conf"))?;
    let account = account(boot, &fs)?;
    let creds = credentials(&account);
    // The host's name is checked by the VM process; one that is too long is cut.
    let _ = task::uts::set_host_name(&boot.hostname[..boot.hostname.len().min(64)]);

    let first = task::First { creds, files: Rc::new(FdTable::default()), fs: Some(Rc::clone(&fs)), space: None };
    let thread = task::make_first(first).map_err(fail("cannot make the first process"))?;
    task::init::on_exit_of(&thread.process, over);
    host::stream::register(stream::CONTROL, Rc::new(Control { program: Rc::downgrade(&thread.process) }));
    open_stdio(boot, &thread, &fs, account.uid)?;
    enter_workdir(boot, &fs)?;
    run(boot, &account)?;
    // The first program does not return from a system call.
    thread.state.take_replaced();
    Ok(thread)
}

/// As containers do: names are asked where this machine's are answered, whatever the image was built with.
fn name_server(fs: &Rc<FsContext>) -> Result<(), Errno> {
    const PATH: &str = "/etc/resolv.conf";
    let text = format!("nameserver {}\n", torpor_abi::endpoint::network::NAMES_V4);
    if init::read_file(fs, PATH).is_ok_and(|known| known == text.as_bytes()) {
        return Ok(());
    }
    init::write_file(fs, PATH, text.as_bytes())
}

fn account(boot: &Boot, fs: &Rc<FsContext>) -> Result<Account, StartError> {
    let text = |path: &str| init::read_file(fs, path).unwrap_or_default();
    accounts::resolve(&boot.user, &text("/etc/passwd"), &text("/etc/group")).map_err(|text| (Errno::EINVAL, text))
}

fn credentials(account: &Account) -> Credentials {
    let root = Credentials::root();
    let (uid, gid) = (account.uid, account.gid);
    let mut creds =
        Credentials { uid, euid: uid, suid: uid, fsuid: uid, gid, egid: gid, sgid: gid, fsgid: gid, ..root };
    creds.groups.clone_from(&account.groups);
    if uid != 0 {
        creds.effective = 0;
        creds.permitted = 0;
    }
    creds
}

fn open_stdio(boot: &Boot, thread: &Thread, fs: &Rc<FsContext>, owner_uid: u32) -> Result<(), StartError> {
    let files = thread.files();
    let opened = if boot.info.flags & flags::TTY != 0 {
        let file = open_terminal(boot, fs, owner_uid).map_err(|e| (e, format!("cannot open the terminal: {e}")))?;
        [Rc::clone(&file), Rc::clone(&file), file]
    } else {
        host::console::open_stdio(boot.info.flags & flags::STDIN != 0, owner_uid)
    };
    for file in opened {
        files.insert(file, false, 0, 3).map_err(|e| (e, String::from("cannot open standard input and output")))?;
    }
    Ok(())
}

/// As container engines do, the terminal is in /dev/pts and appears as /dev/console as well.
fn open_terminal(boot: &Boot, fs: &Rc<FsContext>, owner_uid: u32) -> Result<Rc<OpenFile>, Errno> {
    const CONSOLE_PATH: &str = "/dev/console";
    let terminal = tty::console::open(boot.info.rows, boot.info.cols, owner_uid)?;
    let path = format!("/dev/pts/{}", terminal.number());
    TERMINAL.with(|t| *t.borrow_mut() = Some(terminal));
    init::write_file(fs, CONSOLE_PATH, b"")?;
    let caller = Caller { creds: Rc::new(Credentials::root()), fs: Rc::clone(fs) };
    let find = |path: &str| caller.find(AT_FDCWD, path.as_bytes(), true);
    mount::bind(&find(&path)?, &find(CONSOLE_PATH)?, false)?;
    let start: Location = fs.root.borrow().clone();
    open::open(&caller, start, path.as_bytes(), How { flags: OpenFlags::RDWR, mode: 0, resolve: Resolve::empty() })
}

/// As docker does, makes the working directory if it is not there.
fn enter_workdir(boot: &Boot, fs: &Rc<FsContext>) -> Result<(), StartError> {
    if boot.workdir.is_empty() {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(&boot.workdir).into_owned();
    let fail = |errno: Errno| (errno, format!("working directory {shown}: {errno}"));
    if boot.workdir[0] != b'/' {
        return Err((Errno::EINVAL, format!("working directory {shown}: not an absolute path")));
    }
    let caller = Caller { creds: Rc::new(Credentials::root()), fs: Rc::clone(fs) };
    let ends = (1..boot.workdir.len()).filter(|n| boot.workdir[*n] == b'/').chain([boot.workdir.len()]);
    for end in ends {
        let walk = caller.walk_at(AT_FDCWD, &boot.workdir[..end]).map_err(fail)?;
        match names::make(&caller, walk, caller.new_inode(FileType::Directory, 0o755, 0)) {
            Ok(_) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(fail(errno)),
        }
    }
    let place = caller.find(AT_FDCWD, &boot.workdir, true).map_err(fail)?;
    if place.inode.metadata().file_type != FileType::Directory {
        return Err(fail(Errno::ENOTDIR));
    }
    *fs.cwd.borrow_mut() = place;
    Ok(())
}

/// Finds the program as execvp(3) does, with the guest's PATH.
fn find_program(name: &[u8], path: &[u8]) -> Result<(Location, Vec<u8>), Errno> {
    let caller = Caller::current();
    if name.contains(&b'/') {
        return Ok((caller.find(AT_FDCWD, name, true)?, name.to_vec()));
    }
    let mut refused = Errno::ENOENT;
    for directory in path.split(|b| *b == b':') {
        let directory = if directory.is_empty() { &b"."[..] } else { directory };
        let candidate = [directory, b"/", name].concat();
        let Ok(place) = caller.find(AT_FDCWD, &candidate, true) else { continue };
        let meta = place.inode.metadata();
        if meta.file_type == FileType::Regular && may_access(&meta, &caller.creds, 1) {
            return Ok((place, candidate));
        }
        refused = Errno::EACCES;
    }
    Err(refused)
}

fn run(boot: &Boot, account: &Account) -> Result<(), StartError> {
    let argv = boot.argv.clone();
    let mut envp = boot.envp.clone();
    if !boot.envp.iter().any(|e| e.starts_with(b"HOME=")) {
        envp.push(&[b"HOME=", &account.home[..]].concat());
    }
    let name = boot.argv.iter().next().unwrap_or_default().to_vec();
    let shown = String::from_utf8_lossy(&name).into_owned();
    let path = boot.envp.iter().find_map(|e| e.strip_prefix(b"PATH=")).unwrap_or(b"/usr/bin:/bin");
    let fail = |errno: Errno| {
        let text = if errno == Errno::ENOENT { "no such file or directory" } else { errno.text() };
        (errno, format!("exec: \"{shown}\": {text}"))
    };
    let (location, found) = find_program(&name, path).map_err(fail)?;
    let find = |path: &[u8]| Caller::current().find(AT_FDCWD, path, true);
    match execute(Program { location, name: found, name_vanishes: false, argv, envp, find: &find }) {
        Ok(()) => Ok(()),
        // It ends as soon as it runs.
        Err(_) if task::current().process.is_exiting() => Ok(()),
        Err(errno) => Err(fail(errno)),
    }
}

/// The program has ended, and with it the VM.
fn over(status: WaitStatus, out_of_memory: bool) -> ! {
    if syscall::dispatch::tracing() {
        syscall::trace::flush_others(u32::MAX);
        if let Some(text) = syscall::trace::missing_summary() {
            host::stream::send_text(stream::TRACE, text.as_bytes());
        }
        host::stream::send_text(stream::TRACE, rewrite::summary().as_bytes());
    }
    blame_image();
    if out_of_memory {
        let limit_mib = mm::frame::usage().limit_bytes >> 20;
        let text = format!("the program was killed: the VM's memory, {limit_mib} MiB, is used up");
        host::exit(exit::OUT_OF_MEMORY, status.0, &text);
    }
    host::exit(exit::PROGRAM, status.0, "")
}

crate::global! {
    /// The host's terminal, if the program has one.
    static TERMINAL: RefCell<Option<Rc<tty::pty::Pty>>> = RefCell::new(None);
}

/// Messages of the host about the VM as a whole.
struct Control {
    /// Who gets the host's signals, as those of docker-init's go to its child.
    program: Weak<Process>,
}

impl Receiver for Control {
    fn receive(&self, header: Header, _first: &[u8], _second: &[u8]) {
        match header.kind {
            kind::WINSIZE => {
                let size = [(header.argument >> 16) as u16, header.argument as u16, 0, 0];
                if let Some(terminal) = TERMINAL.with(|t| t.borrow().clone()) {
                    terminal.tty().set_size(size);
                }
            }
            kind::SIGNAL => {
                let process = self.program.upgrade();
                if let (Some(process), Some(number)) = (process, Signal::new(header.argument)) {
                    let info = SignalInfo::process(number, signal::SI_USER, 0, 0);
                    // What finds no room in the queue is lost, as for kill(2).
                    let _ = signal::send_to_process(&process, info);
                }
            }
            kind::RESUMED => host::connection::resumed(header.argument),
            _ => {}
        }
    }
}

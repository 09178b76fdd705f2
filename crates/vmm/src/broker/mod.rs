//! The broker: the process that the user started. It owns every file, the terminal and the signals; the VM process is
//! its child and holds nothing of the host's.

mod image;
mod session;
mod signals;
mod sink;
mod terminal;

use crate::cli::{self, Command, RunOptions, TraceTarget, USAGE};
use crate::error::Failure;
use crate::serve::Managed;
use crate::vm::{self, Given, boot};
use rustix::process::Pid;
use rustix::rand::{GetRandomFlags, getrandom};
use session::Session;
use signals::Signals;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use terminal::Terminal;
use torpor_abi::boot::flags;
use torpor_streams::link;
use torpor_streams::sockets::{Sockets, Vsock};

/// The whole command: parses the arguments, runs, reports.
#[must_use]
pub fn main() -> ExitCode {
    let result =
        cli::parse(std::env::args_os().skip(1), |name| std::env::var_os(name)).and_then(|command| match command {
            Command::Run(options) => run(&options),
            Command::Inspect(file, warm_base) => {
                let found = crate::snapshot::inspect::inspect(&file, warm_base.as_deref())?;
                Ok(print(&format!("{found:#}\n")))
            }
            Command::Serve { control, kvm } => serve(control, kvm),
            Command::Help => Ok(print(USAGE)),
            Command::Version => Ok(print(if cfg!(debug_assertions) {
                // Benchmarks read this, to refuse a debug build.
                concat!("torpor-vmm ", env!("CARGO_PKG_VERSION"), " (debug)\n")
            } else {
                concat!("torpor-vmm ", env!("CARGO_PKG_VERSION"), " (release)\n")
            })),
        });
    match result {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            // Where standard error is gone, the exit status still says it.
            let _ = writeln!(std::io::stderr(), "torpor-vmm: {failure}");
            ExitCode::from(failure.status)
        }
    }
}

fn print(text: &str) -> u8 {
    u8::from(std::io::stdout().write_all(text.as_bytes()).is_err())
}

/// Becomes a VM process that is told what to do.
fn serve(control: i32, kvm: i32) -> Result<u8, Failure> {
    let mut taken = Vec::new();
    let control = take(control, &mut taken)?;
    crate::serve::run(control, take(kvm, &mut taken)?)
}

/// Takes a descriptor that this process was started with; `taken` are those that have an owner.
fn take(number: i32, taken: &mut Vec<i32>) -> Result<OwnedFd, Failure> {
    // SAFETY: fcntl(2) on a number looks whether it is open.
    if number <= 2 || taken.contains(&number) || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(Failure::new(format!("descriptor {number} is not open, or was named twice")));
    }
    taken.push(number);
    // SAFETY: it is open, nothing in this process owns what it was started with, and each is taken once, before anything
    // is opened.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Runs one VM to its end; the result is the exit status.
fn run(options: &RunOptions) -> Result<u8, Failure> {
    check_architecture()?;
    let mut taken = Vec::new();
    let managed = options.managed.as_ref().map(|options| Managed::new(options, |number| take(number, &mut taken)));
    let managed = managed.transpose()?;
    if managed.is_some() && (options.kernel.is_some() || options.debug_exits) {
        return Err(Failure::new("--managed does not go with --kernel and --debug-exits"));
    }
    let kvm = open_kvm()?;
    let (image, image_bytes) = image::open(&options.image)?;
    let trace = open_trace(options.trace.as_ref())?;
    let program = describe_program(options, managed.as_ref())?;
    boot::check_size(&program)?;
    let sockets = open_sockets(options)?;
    let (ours, theirs) = link::pair().map_err(|error| Failure::new(format!("socketpair: {error}")))?;

    let signals = Signals::block().map_err(|error| Failure::new(format!("signalfd: {error}")))?;
    let given = Given {
        kvm,
        kernel: read_kernel(options.kernel.as_deref())?,
        image,
        image_bytes,
        link: theirs,
        memory_limit_bytes: options.memory_bytes,
        program,
        debug_exits: options.debug_exits,
        managed,
    };
    let terminal = if options.tty && options.interactive { Some(Terminal::raw()?) } else { None };
    let child = fork(given)?;
    Session::new(ours, child, signals, options, terminal, trace, sockets).run()
}

/// Starts the VM process. No thread exists yet, so the child may do anything.
fn fork(given: Given) -> Result<Pid, Failure> {
    let parent = rustix::process::getpid();
    // SAFETY: this process has one thread, so the child's copy of memory is consistent, locks included.
    match unsafe { libc::fork() } {
        0 => vm::run(given, parent),
        pid if pid > 0 => Ok(Pid::from_raw(pid).expect("fork gives a positive number")),
        _ => Err(Failure::new(format!("fork: {}", std::io::Error::last_os_error()))),
    }
}

/// The build is for x86-64; what can differ is what the caller's personality(2) makes of the machine.
fn check_architecture() -> Result<(), Failure> {
    let uname = rustix::system::uname();
    let machine = uname.machine().to_string_lossy();
    if machine == "x86_64" {
        Ok(())
    } else {
        Err(Failure::new(format!("this is a {machine} machine; x86_64 is needed")))
    }
}

fn open_kvm() -> Result<OwnedFd, Failure> {
    use std::io::ErrorKind;
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(Failure::new(match error.kind() {
            ErrorKind::NotFound => "/dev/kvm: there is none: enable virtualisation (the kvm module, nested \
                                    virtualisation in a VM)"
                .into(),
            ErrorKind::PermissionDenied => {
                "/dev/kvm: permission denied: run as root or as a member of the group kvm".into()
            }
            _ => format!("/dev/kvm: {error}"),
        })),
    }
}

/// Binds what is published. A port that was left to choice is said on standard error.
fn open_sockets(options: &RunOptions) -> Result<Sockets, Failure> {
    let mut bound = Vec::new();
    for publish in &options.publish {
        let ports = publish.bind().map_err(|text| Failure::new(format!("--publish {text}")))?;
        if publish.host_port == 0 {
            let _ = writeln!(std::io::stderr(), "torpor-vmm: port {} is {}", publish.guest_port, ports[0].local);
        }
        bound.extend(ports);
    }
    let vsock = options.vsock.as_deref().map(Vsock::bind).transpose().map_err(Failure::new)?;
    Sockets::new(options.egress.clone(), bound, vsock).map_err(|error| Failure::new(format!("epoll: {error}")))
}

fn read_kernel(path: Option<&Path>) -> Result<Cow<'static, [u8]>, Failure> {
    let Some(path) = path else { return Ok(Cow::Borrowed(vm::embedded_kernel())) };
    match std::fs::read(path) {
        Ok(bytes) => Ok(Cow::Owned(bytes)),
        Err(error) => Err(Failure::new(format!("--kernel {}: {error}", path.display()))),
    }
}

fn open_trace(target: Option<&TraceTarget>) -> Result<Option<File>, Failure> {
    let Some(TraceTarget::File(path)) = target else { return Ok(None) };
    match File::create(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) => Err(Failure::new(format!("--trace={}: {error}", path.display()))),
    }
}

fn describe_program(options: &RunOptions, managed: Option<&Managed>) -> Result<boot::Program, Failure> {
    let mut uuid = [0; 16];
    if let Some(managed) = managed {
        uuid = managed.uuid().0;
    } else {
        getrandom(&mut uuid, GetRandomFlags::empty()).map_err(|error| Failure::new(format!("getrandom: {error}")))?;
        // RFC 9562, version 4.
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
    }
    // A container's host name is the first twelve digits of its id.
    let hostname = options.name.clone().unwrap_or_else(|| {
        uuid[..6].iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    });
    let mut bits = 0;
    for (wanted, bit) in [
        (options.tty, flags::TTY),
        (options.interactive, flags::STDIN),
        (options.trace.is_some(), flags::TRACE),
        (options.no_rewrite, flags::NO_REWRITE),
    ] {
        if wanted {
            bits |= bit;
        }
    }
    Ok(boot::Program {
        flags: bits,
        terminal_size: if options.tty { terminal::size() } else { (0, 0) },
        argv: options.argv.clone(),
        envp: cli::environment(options, &hostname),
        workdir: options.workdir.clone(),
        user: options.user.clone(),
        hostname,
        uuid,
        seed: None,
    })
}

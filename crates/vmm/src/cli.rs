//! Options of the command line. They follow `docker run` where it has the same ones.

use crate::error::Failure;
use crate::serve::ManagedOptions;
use lexopt::{Arg, Parser, ValueExt};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use torpor_abi::layout::{MAX_MEMORY_BYTES, MIN_MEMORY_BYTES};
use torpor_streams::policy::{IpNet, Policy, Scope};
use torpor_streams::sockets::Publish;

/// Memory of a VM where `--memory` is not given.
pub const DEFAULT_MEMORY_BYTES: u64 = 256 << 20;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Text of `--help`.
pub const USAGE: &str = "\
Usage: torpor-vmm run [OPTIONS] --image FILE -- PROGRAM [ARGUMENT...]

Runs PROGRAM from an EROFS image in a microVM in the foreground.

       torpor-vmm inspect FILE [WARM-BASE]

What a snapshot holds, as JSON. Deltas that name a warm base need its file.

       torpor-vmm serve --control-fd N --kvm-fd N

A VM process that is told what to do: N are descriptors of a bound Unix socket and of /dev/kvm (docs/control-socket.md).


  --image FILE          EROFS image: the root file system
  -i, --interactive     connect standard input
  -t, --tty             give the program a terminal
  -m, --memory SIZE     memory of the VM: bytes, or with a suffix k, m or g (default 256M)
  -e, --env K[=V]       set an environment variable; K alone takes over the caller's
  -w, --workdir DIR     working directory
  -u, --user USER[:GRP] user and group, by name or number (default root)
      --name NAME       name of the instance and of its host
  -p, --publish [ADDR:]HOST:GUEST[/udp]
                        hand connections to a port of the host on to one of the program (again for more)
      --egress SCOPE    where its own connections may go: none, public (default) or private (public and private
                        addresses)
      --egress-allow CIDR, --egress-deny CIDR
                        networks that may or may not be reached besides (again for more)
      --vsock PATH      Unix socket that stands for the program's vsock; PATH_PORT is where it connects to
      --trace[=FILE]    print system calls to standard error, or to FILE
      --no-rewrite      leave system call instructions as they are
      --managed JSON    take commands at a control socket, begin with a stored state (docs/control-socket.md)
      --debug-exits     print every exit of the virtual CPU to standard error
  -h, --help            this text
  -V, --version         version

The exit status is the program's (128 + signal where a signal ended it), 125 if the VM failed, 126 if the program can't
be executed, 127 if it is not in the image. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are handed on to the
program. A hung VM ends on the third SIGINT or SIGTERM within a second, or with -it on Ctrl-] three times in a second.
";

/// Where the system call trace goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceTarget {
    /// Standard error.
    Stderr,
    /// A file, made or emptied.
    File(PathBuf),
}

/// What to run and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    /// `-i`
    pub interactive: bool,
    /// `-t`
    pub tty: bool,
    /// `--trace`
    pub trace: Option<TraceTarget>,
    /// `--memory`
    pub memory_bytes: u64,
    /// `--env`, in order: a name and a value, or none where the variable is to be removed.
    pub env: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// `--workdir`
    pub workdir: Vec<u8>,
    /// `--user`
    pub user: Vec<u8>,
    /// `--name`
    pub name: Option<String>,
    /// `--publish`
    pub publish: Vec<Publish>,
    /// `--egress`, `--egress-allow`, `--egress-deny`
    pub egress: Policy,
    /// `--vsock`
    pub vsock: Option<PathBuf>,
    /// `--no-rewrite`
    pub no_rewrite: bool,
    /// `--debug-exits`
    pub debug_exits: bool,
    /// `--kernel`
    pub kernel: Option<PathBuf>,
    /// `--managed`
    pub managed: Option<ManagedOptions>,
    /// `--image`
    pub image: PathBuf,
    /// Program and arguments; never empty.
    pub argv: Vec<Vec<u8>>,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `run`
    Run(Box<RunOptions>),
    /// `serve`, with the numbers of the control socket's and /dev/kvm's descriptors.
    Serve {
        /// `--control-fd`
        control: i32,
        /// `--kvm-fd`
        kvm: i32,
    },
    /// `inspect`, with a file, and that of the warm base which it names.
    Inspect(PathBuf, Option<PathBuf>),
    /// `--help`
    Help,
    /// `--version`
    Version,
}

/// Parses the arguments after the command's own name. `caller_env` is the caller's environment, for `--env K`.
///
/// # Errors
/// A [`Failure`] that names the option.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    caller_env: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<Command, Failure> {
    let mut parser = Parser::from_args(args);
    match parser.next().map_err(usage)? {
        Some(Arg::Value(command)) if command == "run" => {}
        Some(Arg::Value(command)) if command == "inspect" => {
            let file = parser.value().map_err(usage)?.into();
            let warm_base = match parser.next().map_err(usage)? {
                None => return Ok(Command::Inspect(file, None)),
                Some(Arg::Value(warm_base)) => warm_base.into(),
                Some(other) => return Err(usage(other.unexpected())),
            };
            return match parser.next().map_err(usage)? {
                None => Ok(Command::Inspect(file, Some(warm_base))),
                Some(other) => Err(usage(other.unexpected())),
            };
        }
        Some(Arg::Value(command)) if command == "serve" => return parse_serve(&mut parser),
        Some(Arg::Short('h') | Arg::Long("help")) => return Ok(Command::Help),
        Some(Arg::Short('V') | Arg::Long("version")) => return Ok(Command::Version),
        Some(other) => return Err(usage(other.unexpected())),
        None => return Err(Failure::new("nothing to do: say `torpor-vmm run ...` (see torpor-vmm --help)")),
    }
    let mut options = RunOptions {
        interactive: false,
        tty: false,
        trace: None,
        memory_bytes: DEFAULT_MEMORY_BYTES,
        env: Vec::new(),
        workdir: Vec::new(),
        user: Vec::new(),
        name: None,
        publish: Vec::new(),
        egress: Policy::default(),
        vsock: None,
        no_rewrite: false,
        debug_exits: false,
        kernel: None,
        managed: None,
        image: PathBuf::new(),
        argv: Vec::new(),
    };
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('i') | Arg::Long("interactive") => options.interactive = true,
            Arg::Short('t') | Arg::Long("tty") => options.tty = true,
            Arg::Long("trace") => {
                options.trace = Some(match parser.optional_value() {
                    Some(file) if file.is_empty() => return Err(Failure::new("--trace=: a file name must follow `=`")),
                    Some(file) => TraceTarget::File(file.into()),
                    None => TraceTarget::Stderr,
                });
            }
            Arg::Short('m') | Arg::Long("memory") => {
                let text = parser.value().map_err(usage)?.string().map_err(usage)?;
                options.memory_bytes = parse_memory(&text)?;
            }
            Arg::Short('e') | Arg::Long("env") => {
                let text = parser.value().map_err(usage)?;
                options.env.push(parse_env(&text, &caller_env)?);
            }
            Arg::Short('w') | Arg::Long("workdir") => {
                let dir = parser.value().map_err(usage)?;
                if !dir.as_bytes().starts_with(b"/") {
                    return Err(Failure::new(format!("--workdir {}: the path must be absolute", dir.display())));
                }
                options.workdir = dir.into_vec();
            }
            Arg::Short('u') | Arg::Long("user") => {
                let user = parser.value().map_err(usage)?;
                if user.is_empty() || user.as_bytes().starts_with(b":") || user.as_bytes().ends_with(b":") {
                    return Err(Failure::new(format!(
                        "--user {}: expected USER or USER:GROUP, names or numbers",
                        user.display()
                    )));
                }
                options.user = user.into_vec();
            }
            Arg::Long("name") => {
                let name = parser.value().map_err(usage)?.string().map_err(usage)?;
                options.name = Some(check_name(name)?);
            }
            Arg::Short('p') | Arg::Long("publish") => {
                let text = parser.value().map_err(usage)?.string().map_err(usage)?;
                let publish = text.parse().map_err(|error| Failure::new(format!("--publish {error}")))?;
                options.publish.push(publish);
            }
            Arg::Long("egress") => {
                let text = parser.value().map_err(usage)?.string().map_err(usage)?;
                options.egress.scope = parse_scope(&text)?;
            }
            Arg::Long(list @ ("egress-allow" | "egress-deny")) => {
                let allow = list == "egress-allow";
                let text = parser.value().map_err(usage)?.string().map_err(usage)?;
                let net = parse_net(if allow { "allow" } else { "deny" }, &text)?;
                if allow { &mut options.egress.allow } else { &mut options.egress.deny }.push(net);
            }
            Arg::Long("vsock") => options.vsock = Some(parser.value().map_err(usage)?.into()),
            Arg::Long("no-rewrite") => options.no_rewrite = true,
            Arg::Long("debug-exits") => options.debug_exits = true,
            Arg::Long("kernel") => options.kernel = Some(parser.value().map_err(usage)?.into()),
            Arg::Long("managed") => {
                let text = parser.value().map_err(usage)?.string().map_err(usage)?;
                let managed =
                    serde_json::from_str(&text).map_err(|error| Failure::new(format!("--managed: {error}")))?;
                options.managed = Some(managed);
            }
            Arg::Long("image") => options.image = parser.value().map_err(usage)?.into(),
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Value(program) => {
                options.argv.push(program.into_vec());
                let rest = parser.raw_args().map_err(usage)?;
                options.argv.extend(rest.map(OsString::into_vec));
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    if options.image.as_os_str().is_empty() {
        return Err(Failure::new("no image: give --image FILE (see torpor-vmm --help)"));
    }
    if options.managed.as_ref().is_some_and(|managed| managed.saved.is_some()) {
        return Ok(Command::Run(Box::new(options)));
    }
    if options.argv.is_empty() {
        return Err(Failure::new("nothing to run: name a program after `--` (see torpor-vmm --help)"));
    }
    if options.argv[0].is_empty() {
        return Err(Failure::new("nothing to run: the program's name is empty"));
    }
    Ok(Command::Run(Box::new(options)))
}

fn parse_serve(parser: &mut Parser) -> Result<Command, Failure> {
    let (mut control, mut kvm) = (None, None);
    while let Some(arg) = parser.next().map_err(usage)? {
        let of = match arg {
            Arg::Long("control-fd") => &mut control,
            Arg::Long("kvm-fd") => &mut kvm,
            other => return Err(usage(other.unexpected())),
        };
        let number: i32 = parser.value().and_then(|value| value.parse()).map_err(usage)?;
        if number < 3 {
            return Err(Failure::new(format!("serve: descriptor {number} is a standard stream")));
        }
        *of = Some(number);
    }
    match (control, kvm) {
        (Some(control), Some(kvm)) if control != kvm => Ok(Command::Serve { control, kvm }),
        _ => Err(Failure::new("serve: --control-fd and --kvm-fd are needed, and differ")),
    }
}

fn usage(error: lexopt::Error) -> Failure {
    Failure::new(format!("{error} (see torpor-vmm --help)"))
}

fn parse_scope(text: &str) -> Result<Scope, Failure> {
    match text {
        "none" => Ok(Scope::Nothing),
        "public" => Ok(Scope::Public),
        "private" => Ok(Scope::Private),
        _ => Err(Failure::new(format!("--egress {text}: expected none, public or private"))),
    }
}

/// A network, or an address, which is one of its own.
fn parse_net(list: &str, text: &str) -> Result<IpNet, Failure> {
    let net = text.parse().ok().or_else(|| text.parse().ok().map(|ip: std::net::IpAddr| IpNet::from(ip)));
    net.ok_or_else(|| Failure::new(format!("--egress-{list} {text}: expected a network such as 10.1.0.0/16")))
}

fn check_name(name: String) -> Result<String, Failure> {
    let first = |c: char| c.is_ascii_alphanumeric();
    let other = |c: char| first(c) || matches!(c, '_' | '.' | '-');
    if name.len() > 63 || !name.starts_with(first) || !name.chars().all(other) {
        return Err(Failure::new(format!(
            "--name {name:?}: at most 63 letters, digits, `_`, `.` and `-`, the first a letter or digit"
        )));
    }
    Ok(name)
}

fn parse_env(
    text: &OsStr,
    caller_env: &impl Fn(&OsStr) -> Option<OsString>,
) -> Result<(Vec<u8>, Option<Vec<u8>>), Failure> {
    let bytes = text.as_bytes();
    let equals = bytes.iter().position(|&b| b == b'=');
    let (name, value) = match equals {
        Some(at) => (&bytes[..at], Some(bytes[at + 1..].to_vec())),
        None => (bytes, caller_env(text).map(OsString::into_vec)),
    };
    if name.is_empty() {
        return Err(Failure::new(format!("--env {:?}: the variable has no name", text.display())));
    }
    Ok((name.to_vec(), value))
}

/// The program's environment, as `K=V`: docker's defaults, then what `--env` says. HOME is the guest's to add.
#[must_use]
pub fn environment(options: &RunOptions, hostname: &str) -> Vec<Vec<u8>> {
    let mut variables: Vec<(Vec<u8>, Vec<u8>)> =
        vec![(b"PATH".into(), DEFAULT_PATH.into()), (b"HOSTNAME".into(), hostname.into())];
    if options.tty {
        variables.push((b"TERM".into(), b"xterm".into()));
    }
    for (name, value) in &options.env {
        variables.retain(|(known, _)| known != name);
        if let Some(value) = value {
            variables.push((name.clone(), value.clone()));
        }
    }
    variables.into_iter().map(|(name, value)| [&name[..], b"=", &value].concat()).collect()
}

/// Parses a size as docker does: a decimal number and one of b, k, m, g (also kb, kib, ...), powers of 1024.
fn parse_memory(text: &str) -> Result<u64, Failure> {
    let invalid = || {
        Failure::new(format!(
            "--memory {text}: expected a number of bytes or one with a suffix k, m or g, such as 256M"
        ))
    };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match &*suffix.to_ascii_lowercase() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(invalid()),
    };
    let number: f64 = number.parse().map_err(|_| invalid())?;
    // Any f64 becomes the nearest u64; what is too large is refused below.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let bytes = (number * f64::from(1_u32 << shift)) as u64;
    let mib = |bytes: u64| bytes >> 20;
    if bytes < MIN_MEMORY_BYTES {
        return Err(Failure::new(format!(
            "--memory {text}: too little memory: give at least {}M",
            mib(MIN_MEMORY_BYTES)
        )));
    }
    if bytes > MAX_MEMORY_BYTES {
        return Err(Failure::new(format!("--memory {text}: too much memory: give at most {}M", mib(MAX_MEMORY_BYTES))));
    }
    Ok(bytes & !(torpor_abi::layout::PAGE_BYTES - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(args: &[&str]) -> Result<RunOptions, String> {
        let caller = |name: &OsStr| (name == "LANG").then(|| OsString::from("C"));
        match parse(args.iter().map(OsString::from), caller) {
            Ok(Command::Run(options)) => Ok(*options),
            Ok(other) => panic!("not a run: {other:?}"),
            Err(failure) => {
                assert_eq!(failure.status, crate::error::STATUS_FAILED);
                Err(failure.message)
            }
        }
    }

    #[test]
    fn options_and_program_are_told_apart() {
        let options = run(&["run", "-it", "--trace", "-m", "1.5g", "--image", "a.erofs", "sh", "-c", "--image", "--"])
            .expect("valid");
        assert!(options.interactive && options.tty);
        assert_eq!(options.trace, Some(TraceTarget::Stderr));
        assert_eq!(options.memory_bytes, 1536 << 20);
        let argv: Vec<Vec<u8>> = [&b"sh"[..], b"-c", b"--image", b"--"].map(<[u8]>::to_vec).into();
        assert_eq!(options.argv, argv);
        let dashes = run(&["run", "--image=a", "--trace=t.log", "--", "-x", "y"]).expect("valid");
        assert_eq!(dashes.argv, [b"-x".to_vec(), b"y".to_vec()]);
        assert_eq!(dashes.trace, Some(TraceTarget::File("t.log".into())));
    }

    #[test]
    fn environment_is_dockers() {
        let options = run(&[
            "run", "-t", "-e", "A=1", "-e", "PATH=/x", "-e", "LANG", "-e", "GONE", "-e", "A=2=3", "--image", "a",
            "true",
        ])
        .expect("valid");
        let env: Vec<String> =
            environment(&options, "h").into_iter().map(|v| String::from_utf8(v).expect("ASCII")).collect();
        assert_eq!(env, ["HOSTNAME=h", "TERM=xterm", "PATH=/x", "LANG=C", "A=2=3"]);
    }

    #[test]
    fn errors_name_option_and_remedy() {
        for (args, part) in [
            (&["run", "--image", "a"][..], "nothing to run"),
            (&["run", "true"], "no image"),
            (&["run", "--image", "a", "--bogus", "true"], "--bogus"),
            (&["run", "--image", "a", "--memory", "1M", "true"], "too little memory"),
            (&["run", "--image", "a", "--memory", "1P", "true"], "suffix"),
            (&["run", "--image", "a", "--memory", "90g", "true"], "too much memory"),
            (&["run", "--image", "a", "--workdir", "x", "true"], "absolute"),
            (&["run", "--image", "a", "--env", "=x", "true"], "no name"),
            (&["run", "--image", "a", "--name", "a/b", "true"], "--name"),
            (&["run", "--image", "a", "--user", ":1", "true"], "--user"),
            (&["run", "--image", "a", "-p", "80:x", "true"], "--publish 80:x"),
            (&["run", "--image", "a", "--egress", "all", "true"], "--egress all"),
            (&["run", "--image", "a", "--egress-deny", "1.2.3.4/33", "true"], "--egress-deny"),
            (&["stop"], "stop"),
            (&[], "nothing to do"),
        ] {
            let message = run(args).expect_err("invalid");
            assert!(message.contains(part), "{args:?}: {message}");
        }
    }

    proptest! {
        #[test]
        fn no_arguments_panic(args in proptest::collection::vec("-{0,2}[a-z=0-9.]{0,12}", 0..6)) {
            let mut all = vec![OsString::from("run")];
            all.extend(args.into_iter().map(OsString::from));
            let _ = parse(all, |_| None);
        }
    }
}

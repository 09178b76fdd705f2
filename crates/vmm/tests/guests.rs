//! Runs the test guest (tests/guest): what a well-behaved guest gets, and that a hostile one ends its own run and nothing
//! else, with a reason and exit status 125.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// A run that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// Builds the test guest once.
fn guest() -> &'static Path {
    static GUEST: OnceLock<PathBuf> = OnceLock::new();
    GUEST.get_or_init(|| {
        let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
        let flags = ["-Cpanic=abort", "-Crelocation-model=pic", "-Cforce-frame-pointers=yes"];
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "--locked", "--offline", "--target", TARGET, "--manifest-path"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/Cargo.toml"))
            .arg("--target-dir")
            .arg(&target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .status()
            .expect("cargo");
        assert!(status.success(), "the test guest does not build");
        target_dir.join(TARGET).join("release/torpor-test-guest")
    })
}

/// A file with nothing of EROFS but a superblock; the guest here mounts nothing.
fn image(name: &str, bytes: usize) -> PathBuf {
    let mut content = vec![1; bytes];
    content[1024..1152].fill(0);
    content[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
    content[1036] = 12;
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = directory.join(name);
    // Tests run side by side: none may see an image that another has half written.
    let unfinished = directory.join(format!("{name}.{:?}", std::thread::current().id()));
    std::fs::write(&unfinished, content).expect("write");
    std::fs::rename(&unfinished, &path).expect("rename");
    path
}

/// Whether this machine has KVM; the run on emulated KVM covers machines without.
fn has_kvm() -> bool {
    let usable = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !usable {
        eprintln!("SKIPPED: no usable /dev/kvm");
    }
    usable
}

fn command(image: &Path, options: &[&str], guest_arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torpor-vmm"));
    command
        .arg("run")
        .arg("--kernel")
        .arg(guest())
        .arg("--image")
        .arg(image)
        .args(options)
        .arg("--")
        .args(guest_arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits with a limit: a hang is a failure of its own.
fn wait(mut child: Child, what: &[&str]) -> Output {
    let pid = rustix::process::Pid::from_child(&child);
    let (sender, receiver) = std::sync::mpsc::channel();
    let watchdog = std::thread::spawn(move || {
        if receiver.recv_timeout(LIMIT).is_err() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    drop(child.stdin.take());
    let output = child.wait_with_output().expect("wait");
    let _ = sender.send(());
    watchdog.join().expect("watchdog");
    assert!(output.status.code().is_some(), "{what:?} hung: {output:?}");
    output
}

fn run(options: &[&str], guest_arguments: &[&str]) -> Output {
    let image = image("small.erofs", 4096);
    wait(command(&image, options, guest_arguments).spawn().expect("spawn"), guest_arguments)
}

fn status(output: &Output) -> i32 {
    output.status.code().expect("checked by wait")
}

fn wait_until_ready(stdout: &mut ChildStdout) {
    let mut line = [0; 6];
    stdout.read_exact(&mut line).expect("the guest prints when it is ready");
    assert_eq!(&line, b"ready\n");
}

#[test]
fn statuses_and_streams_are_the_programs() {
    if !has_kvm() {
        return;
    }
    for (wait_status, code) in [("0", 0), ("768", 3), ("9", 137), ("139", 139)] {
        let output = run(&[], &["status", wait_status]);
        assert_eq!((status(&output), output.stdout, output.stderr), (code, vec![], vec![]));
    }
    let output = run(&[], &["hello"]);
    assert_eq!((status(&output), &output.stdout[..], &output.stderr[..]), (0, &b"hello\n"[..], &b"!"[..]));
    for (errno, code) in [("2", 127), ("13", 126), ("8", 126), ("117", 125)] {
        let output = run(&[], &["start-failed", errno]);
        assert_eq!(status(&output), code);
        let text = String::from_utf8_lossy(&output.stderr);
        let start = if errno == "117" { "torpor-vmm: image /" } else { "torpor-vmm: nothing" };
        assert!(text.starts_with(start) && text.ends_with(": cannot start\n"), "{text}");
    }
}

#[test]
fn bytes_pass_both_ways_whole_and_in_order() {
    if !has_kvm() {
        return;
    }
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let image = image("echo.erofs", 4096);
    let mut child = command(&image, &["-i"], &["echo"]).stdin(Stdio::piped()).spawn().expect("spawn");
    let mut stdin = child.stdin.take().expect("piped");
    let copy = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy).expect("write"));
    let output = wait(child, &["echo"]);
    writer.join().expect("writer");
    assert_eq!(status(&output), 0);
    assert!(output.stdout == data, "{} of {} bytes, or others", output.stdout.len(), data.len());
}

#[test]
fn a_slow_reader_stalls_the_guest_and_a_closed_one_is_reported() {
    if !has_kvm() {
        return;
    }
    let image = image("flood.erofs", 4096);
    let mut child = command(&image, &[], &["flood", "20000"]).spawn().expect("spawn");
    std::thread::sleep(Duration::from_millis(300));
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", child.id())).expect("it waits for its reader");
    let resident_pages: u64 = statm.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("proc(5)");
    assert!(resident_pages < 16 << 20 >> 12, "the broker holds {resident_pages} pages");
    let mut stdout = child.stdout.take().expect("piped");
    let mut all = Vec::new();
    stdout.read_to_end(&mut all).expect("read");
    assert_eq!(all.len(), 20_000 << 10);
    assert!(all.iter().enumerate().all(|(at, byte)| *byte == (at >> 10) as u8));
    assert_eq!(status(&wait(child, &["flood"])), 0);

    let mut child = command(&image, &[], &["flood", "20000"]).spawn().expect("spawn");
    drop(child.stdout.take());
    assert_eq!(status(&wait(child, &["flood"])), 128 + 13);
}

#[test]
fn signals_are_handed_on_and_a_hung_guest_can_be_ended() {
    if !has_kvm() {
        return;
    }
    use rustix::process::{Pid, Signal, kill_process};
    let image = image("signals.erofs", 4096);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
        let mut child = command(&image, &[], &["signal"]).spawn().expect("spawn");
        wait_until_ready(child.stdout.as_mut().expect("piped"));
        kill_process(Pid::from_child(&child), signal).expect("kill");
        assert_eq!(status(&wait(child, &["signal"])), 128 + signal.as_raw());
    }
    let mut child = command(&image, &[], &["hang"]).spawn().expect("spawn");
    wait_until_ready(child.stdout.as_mut().expect("piped"));
    let started = Instant::now();
    for _ in 0..3 {
        kill_process(Pid::from_child(&child), Signal::TERM).expect("kill");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(status(&wait(child, &["hang"])), 128 + 15);
    assert!(started.elapsed() < LIMIT);
}

#[test]
fn the_vm_process_ends_with_its_broker_and_holds_no_files_of_its() {
    if !has_kvm() {
        return;
    }
    let image = image("broker.erofs", 4096);
    let mut child = command(&image, &[], &["hang"]).spawn().expect("spawn");
    wait_until_ready(child.stdout.as_mut().expect("piped"));
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let vm: u32 = std::fs::read_to_string(children).expect("proc").trim().parse().expect("one child");
    let mut held: Vec<String> = std::fs::read_dir(format!("/proc/{vm}/fd"))
        .expect("proc")
        .map(|entry| std::fs::read_link(entry.expect("entry").path()).expect("link").display().to_string())
        .map(|target| target.split(":[").next().expect("a first part").to_owned())
        .collect();
    held.sort();
    let (image, statm) = (image.display().to_string(), format!("/proc/{vm}/statm"));
    let mut expected =
        ["anon_inode:kvm-vcpu:0", "anon_inode:kvm-vm", "anon_inode", "anon_inode", "socket", &image, &statm]
            .into_iter()
            .chain(["/dev/null"; 3])
            .collect::<Vec<_>>();
    expected.sort_unstable();
    assert_eq!(held, expected);
    child.kill().expect("kill");
    child.wait().expect("wait");
    let started = Instant::now();
    while Path::new(&format!("/proc/{vm}/stat")).exists() {
        let stat = std::fs::read_to_string(format!("/proc/{vm}/stat")).unwrap_or_default();
        if stat.contains(") Z ") {
            break;
        }
        assert!(started.elapsed() < LIMIT, "the VM process outlives its broker: {stat}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_broker_whose_readers_are_gone_sleeps() {
    if !has_kvm() {
        return;
    }
    let image = image("gone.erofs", 4096);
    let mut child = command(&image, &[], &["hang"]).spawn().expect("spawn");
    wait_until_ready(child.stdout.as_mut().expect("piped"));
    drop((child.stdout.take(), child.stderr.take()));
    std::thread::sleep(Duration::from_millis(500));
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("proc");
    child.kill().expect("kill");
    child.wait().expect("wait");
    // proc(5): utime and stime are fields 14 and 15, in ticks of 10 ms; the command's name has no space.
    let ticks: u64 = stat.split(' ').skip(13).take(2).map(|field| field.parse::<u64>().expect("a number")).sum();
    assert!(ticks < 25, "the broker used {ticks} ticks of 50: it spins");
}

#[test]
fn a_terminal_is_raw_while_the_guest_runs_and_restored_after() {
    if !has_kvm() {
        return;
    }
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{LocalModes, tcgetattr};
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("pty");
    grantpt(&main).expect("pty");
    unlockpt(&main).expect("pty");
    let name = ptsname(&main, Vec::new()).expect("pty").into_string().expect("ASCII");
    let open = || std::fs::File::options().read(true).write(true).open(&name).expect("pty");
    let (terminal, image) = (open(), image("terminal.erofs", 4096));
    let cooked = tcgetattr(&terminal).expect("pty");
    assert!(cooked.local_modes.contains(LocalModes::ECHO));
    // Ended by its program (Ctrl-C is a byte like any other here), by force, and by signals that say so.
    for (typed, code) in [(&b"\x03"[..], 3), (b"\x1d\x1d\x1d", 137)] {
        let mut command = command(&image, &["-it"], &["terminal"]);
        let child = command.stdin(open()).stdout(open()).spawn().expect("spawn");
        drop(command);
        let mut line = [0; 6];
        (&std::fs::File::from(main.try_clone().expect("dup"))).read_exact(&mut line).expect("ready");
        assert_eq!(&line, b"ready\n", "in raw mode newlines stay as they are");
        assert!(!tcgetattr(&terminal).expect("pty").local_modes.contains(LocalModes::ECHO | LocalModes::ISIG));
        rustix::io::write(&main, typed).expect("type");
        assert_eq!(status(&wait(child, &["terminal"])), code);
        assert_eq!(tcgetattr(&terminal).expect("pty").local_modes, cooked.local_modes);
    }
    let output = run(&["-it"], &["terminal"]);
    assert_eq!(status(&output), 125);
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a terminal"));
}

#[test]
fn timers_events_and_memory_work() {
    if !has_kvm() {
        return;
    }
    for arguments in [&["timer", "20"][..], &["spin", "200"], &["populate", "8"]] {
        let output = run(&[], arguments);
        assert_eq!(status(&output), 0, "{arguments:?}: {output:?}");
    }
    assert_eq!(status(&run(&[], &["write-image"])), 98, "a write to the image faults");
}

#[test]
fn a_panic_and_a_triple_fault_are_described() {
    if !has_kvm() {
        return;
    }
    let output = run(&[], &["panic"]);
    let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(status(&output), 125);
    assert!(text.contains("it broke") && text.contains(" main+0x") && !text.contains('\x1b'), "{text}");
    let output = run(&[], &["triple-fault"]);
    let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(status(&output), 125);
    for part in ["triple-faulted", "rip", "cr2", "#0 0x7ff0", "torpor_test_guest::run+0x", "main+0x"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn hostile_guests_end_their_own_run() {
    if !has_kvm() {
        return;
    }
    for (arguments, reason) in [
        (&["bad-head"][..], "ring protocol"),
        (&["bad-frame"], "stream protocol"),
        (&["overrun"], "bytes where"),
        (&["bad-stream", "0"], "stream 0"),
        (&["bad-stream", "77"], "not open"),
        (&["bad-open", "18"], "can't have the number 18"),
        (&["bad-open", "17"], "payload that can't be read"),
        (&["report"], "unexpected kind 256"),
        (&["bad-populate"], "memory that it has not got"),
        (&["bad-discard"], "triple-faulted"),
        (&["nowhere"], "neither memory nor a doorbell"),
        (&["bad-doorbell"], "neither memory nor a doorbell"),
        (&["touch"], "MiB of host memory"),
        (&["touch-unasked"], "neither memory nor a doorbell"),
    ] {
        let image = image("small.erofs", 4096);
        let mut child = command(&image, &["--memory", "64M"], arguments).spawn().expect("spawn");
        // A reader that is as quick as the guest is not overrun.
        let mut stdout = child.stdout.take().expect("piped");
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while stdout.read(&mut piece).is_ok_and(|len| len > 0) {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let output = wait(child, arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(status(&output), 125, "{arguments:?}: {text}");
        assert!(text.starts_with("torpor-vmm: ") && text.contains(reason), "{arguments:?}: {text}");
    }
    let image = image("tail.erofs", 4096);
    let mut child = command(&image, &["-i"], &["bad-tail"]).stdin(Stdio::piped()).spawn().expect("spawn");
    wait_until_ready(child.stdout.as_mut().expect("piped"));
    child.stdin.as_mut().expect("piped").write_all(b"x").expect("write");
    let output = wait(child, &["bad-tail"]);
    assert_eq!(status(&output), 125);
    assert!(String::from_utf8_lossy(&output.stderr).contains("ring protocol"));
}

/// What a random guest does is taken, or refused by the VM process itself: it does not fall, nor pass on what the broker
/// would have to refuse.
#[test]
fn random_guests_end_their_own_run() {
    if !has_kvm() {
        return;
    }
    let mut refused = 0;
    for seed in 0..40 {
        let seed = seed.to_string();
        let output = run(&["--memory", "64M", "--trace=/dev/null"], &["random", &seed]);
        let text = String::from_utf8_lossy(&output.stderr);
        // Before it may stand what the guest has written to its standard error.
        let reason = text.rsplit_once("torpor-vmm: ").map(|(_, reason)| reason);
        match (status(&output), reason) {
            (0, None) => {}
            (125, Some(reason)) => assert!(!reason.contains("the VM process"), "seed {seed}: {reason}"),
            other => panic!("seed {seed}: {other:?}, {text}"),
        }
        refused += u32::from(status(&output) == 125);
    }
    assert!(refused > 10, "{refused} of 40 did anything");
}

#[test]
fn an_image_that_shrinks_is_reported() {
    if !has_kvm() {
        return;
    }
    let image = image("shrinks.erofs", 4 << 20);
    let mut child = command(&image, &["-i"], &["read-image"]).stdin(Stdio::piped()).spawn().expect("spawn");
    wait_until_ready(child.stdout.as_mut().expect("piped"));
    std::fs::File::options().write(true).open(&image).expect("open").set_len(1 << 20).expect("truncate");
    child.stdin.as_mut().expect("piped").write_all(b"x").expect("write");
    let output = wait(child, &["read-image"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(status(&output), 125, "{text}");
    assert!(text.contains("shrank"), "{text}");
}

//! `torpor-vmm serve`: a VM process that waits for commands on a control socket (docs/control-socket.md).
//!
//! Three threads, all started before the final seccomp filter: the first runs the vCPU and does what concerns the VM, one
//! moves frames, one hears the control socket. The last answers what needs no VM itself, hands on the rest one at a time,
//! and asks a running guest to stop where a command needs that.

mod managed;
pub mod protocol;
mod worker;

use crate::error::Failure;
use crate::jail::filter::{self, Thread};
use crate::snapshot::metadata::{Digest, Uuid};
use crate::vm::served::{End, Handle, Lost, Pager, Refusal, Resources, Watcher};
pub(crate) use managed::run_for_broker;
pub use managed::{Managed, ManagedOptions, SavedOptions};
use protocol::{Command, Event, Reply, ReplyError, Request};
use rustix::net::AddressFamily;
use serde::Serialize;
use serde_json::json;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use worker::Worker;

/// How long an ended VM's process waits for somebody who wants to know.
const TOLD_WITHIN: Duration = Duration::from_secs(60);
/// Within this a guest takes a new link: it has to enter its kernel.
const LINKED_WITHIN: Duration = Duration::from_secs(10);

/// Where the VM is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// There is none yet.
    #[default]
    Empty,
    /// Booted or quiesced: [`Command::Run`] lets it go on.
    Stopped,
    /// At rest on its template.
    Resting,
    Running,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Stopped => "stopped",
            Self::Resting => "resting",
            Self::Running => "running",
        }
    }
}

/// Who waits for the answer to a command: nobody else gets it, as the next controller's commands have the same numbers.
#[derive(Debug)]
struct Asker {
    id: u64,
    connection: Arc<OwnedFd>,
}

impl Asker {
    fn ok(&self, result: serde_json::Value, descriptors: &[BorrowedFd<'_>]) {
        // A controller that is gone gets no answer; the next one asks how the VM is.
        let _ = protocol::send(&*self.connection, &Reply { id: self.id, ok: Some(result), error: None }, descriptors);
    }

    fn refuse(&self, code: &str, message: &str) {
        let error = Some(ReplyError { code, message });
        let _ = protocol::send(&*self.connection, &Reply { id: self.id, ok: None::<()>, error }, &[]);
    }
}

/// A command on its way to the worker.
#[derive(Debug)]
struct Job {
    asker: Asker,
    received_at: Instant,
    command: Command,
    descriptors: Vec<OwnedFd>,
}

/// Who a VM is.
#[derive(Clone, Copy, Debug, Serialize)]
struct Identity {
    uuid: Uuid,
    /// Of the state that it was restored from.
    generation: u64,
}

/// What both threads know.
#[derive(Debug, Default)]
struct Inner {
    state: State,
    job: Option<Job>,
    /// The worker has taken a job, and has not come to its end.
    at_work: bool,
    /// Until when a running guest has to have stopped for `job`.
    deadline: Option<Instant>,
    handle: Option<Handle>,
    connection: Option<Arc<OwnedFd>>,
    /// Who the VM is, or was when it was stopped last; none before it has run.
    instance: Option<Identity>,
    /// Of the last standby or checkpoint of this instance here.
    stored_generation: Option<u64>,
    /// How often the guest had been told of something new when that was stored at its idle point; none where it was busy.
    still_at: Option<u64>,
    /// The VM was booted with random numbers that others were booted with too.
    seeded: bool,
    /// Template and warm base that a VM rests at.
    bases: [Option<Digest>; 2],
    /// The VM has ended, and this has to be said to a controller before the process ends.
    ended: Option<Vec<u8>>,
}

impl Inner {
    /// Takes back a command that the worker has not begun; the guest, if it was to stop for it, goes on.
    fn withdraw(&mut self) -> Option<Job> {
        self.deadline = None;
        let job = self.job.take()?;
        if let Some(handle) = self.handle {
            handle.cancel_stop();
        }
        Some(job)
    }

    /// Takes the command that is next, for the worker.
    fn begin(&mut self) -> Option<Job> {
        let job = self.job.take();
        self.at_work = job.is_some();
        job
    }

    /// The answer to a query.
    fn status(&self) -> Result<serde_json::Value, Refusal> {
        let [template, warm_base] = self.bases;
        let memory_bytes = self.handle.map(Handle::used_bytes).transpose()?;
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Ok(json!({
            "state": self.state.name(),
            "busy": self.job.is_some() || self.at_work,
            "instance": self.instance,
            "stored_generation": self.stored_generation,
            "still": self.handle.is_some_and(|handle| self.still_at == Some(handle.raised())),
            "template": template,
            "warm_base": warm_base,
            "seeded": self.seeded,
            "unlinked": self.handle.is_some_and(Handle::is_unlinked),
            "memory_bytes": memory_bytes.unwrap_or(0),
            "cpu_ns": cpu.tv_sec * 1_000_000_000 + cpu.tv_nsec,
        }))
    }
}

/// Shared by the thread that hears commands and the worker.
#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    fn event(&self, event: &Event<'_>) {
        let connection = self.lock().connection.clone();
        if let Some(connection) = connection {
            let _ = protocol::send(&*connection, event, &[]);
        }
    }

    /// Says how the VM has ended: to the controller that is there, or to the next one if one comes in time.
    fn end(&self, event: &Event<'_>) {
        let body = protocol::body(event).expect("an event is no longer than a message");
        let mut inner = self.lock();
        if let Some(connection) = &inner.connection
            && protocol::send_body(&**connection, &body, &[]).is_ok()
        {
            return;
        }
        inner.ended = Some(body);
        let told = |inner: &mut Inner| inner.ended.is_some();
        drop(self.changed.wait_timeout_while(inner, TOLD_WITHIN, told));
    }
}

/// Tells the controller what happens to the VM.
struct Watching(Arc<Shared>);

impl Watcher for Watching {
    fn ended(&self, end: &End) {
        self.0.end(&ended(end));
    }

    fn unlinked(&self, why: &str) {
        self.0.event(&Event::Unlinked { message: why });
    }
}

fn ended(end: &End) -> Event<'_> {
    let (reason, status, message) = match end {
        End::Exited(status) => ("exited", *status, ""),
        End::OutOfMemory { status, text } => ("out_of_memory", *status, &text[..]),
        End::StartFailed { errno, text } => ("start_failed", *errno, &text[..]),
        End::Failed(text) => ("failed", 0, &text[..]),
        End::Damaged(text) => ("damaged", 0, &text[..]),
    };
    Event::Ended { reason, status, message }
}

/// Runs until the process ends.
///
/// # Errors
/// A [`Failure`] where it can't even begin.
pub fn run(control: OwnedFd, kvm: OwnedFd) -> Result<u8, Failure> {
    let resources = Resources::open(kvm).map_err(|refusal| Failure::new(refusal.to_string()))?;
    if let Some(missing) = &resources.missing {
        eprintln!("torpor-vmm: {missing}");
    }
    Worker::serving(confine(control, resources.pager())?, resources).run()
}

/// Starts the thread that hears commands and puts the filter of all threads in place.
fn confine(control: OwnedFd, pager: Option<Arc<Pager>>) -> Result<Arc<Shared>, Failure> {
    let fail = |what: &'static str| move |error: io::Error| Failure::new(format!("{what}: {error}"));
    // SAFETY: mallopt(3) changes settings of this process only. What is freed is overwritten: nothing of an instance may
    // stay in the process behind it. Buffers for a usual delta come from memory that was in use before: new pages from the
    // kernel cost more than what they are for.
    unsafe {
        libc::mallopt(libc::M_PERTURB, 0x5a);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 2 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 8 << 20);
    }
    let name = rustix::net::getsockname(&control).map_err(|error| fail("--control-fd")(error.into()))?;
    if name.address_family() != AddressFamily::UNIX {
        return Err(Failure::new("--control-fd: a bound Unix socket of type SOCK_SEQPACKET is wanted"));
    }
    rustix::net::listen(&control, 4).map_err(|error| fail("--control-fd: listen")(error.into()))?;
    let shared = Arc::new(Shared { inner: Mutex::default(), changed: Condvar::new() });
    let (go, ready) = std::sync::mpsc::channel::<()>();
    let (started, has_started) = std::sync::mpsc::channel();
    let listener = Arc::clone(&shared);
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            let _ = started.send(());
            if ready.recv().is_ok() && filter::install(Thread::Control).is_ok() {
                hear(&listener, &control, pager.as_deref());
            }
            exit()
        })
        .map_err(fail("starting a thread"))?;
    has_started.recv().map_err(|_| Failure::new("a thread did not start"))?;
    filter::install(Thread::All).map_err(|text| Failure::new(format!("seccomp: {text}")))?;
    // The other end lives as long as the thread.
    let _ = go.send(());
    Ok(shared)
}

fn exit() -> ! {
    // SAFETY: runs no destructors and no handlers, and does not return.
    unsafe { libc::_exit(0) }
}

/// Serves one controller after the other. One that leaves before there was a VM takes the process with it.
fn hear(shared: &Shared, control: &OwnedFd, pager: Option<&Pager>) {
    let mut buffer = protocol::buffer();
    loop {
        if let Err(lost) = wait(control, pager, None) {
            fail_alone(shared, control, lost)
        }
        let Some(connection) = accept(control) else { continue };
        if !take_over(shared, &connection) {
            continue;
        }
        if let Err(lost) = serve(shared, &connection, pager, &mut buffer) {
            if has_hung_up(&connection) {
                shared.lock().connection = None;
            }
            fail_alone(shared, control, lost)
        }
        let mut inner = shared.lock();
        inner.connection = None;
        // What was asked for and has not begun is wanted by nobody any more.
        drop(inner.withdraw());
        if inner.instance.is_none() {
            return;
        }
    }
}

/// A controller of our own user, if one is there.
fn accept(control: &OwnedFd) -> Option<Arc<OwnedFd>> {
    let connection = rustix::net::accept_with(control, rustix::net::SocketFlags::CLOEXEC).ok()?;
    is_own_user(&connection).then(|| Arc::new(connection))
}

/// Waits until there is something to read; false where the time is over. Meanwhile provides pages that the guest waits for,
/// and those of its template that it may touch next.
fn wait(socket: &OwnedFd, pager: Option<&Pager>, deadline: Option<Instant>) -> Result<bool, Lost> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    loop {
        let is_ahead = pager.is_some_and(Pager::has_ahead);
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = if is_ahead { Some(Duration::ZERO) } else { left };
        let timeout = timeout.map(|left| Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: i64::from(left.subsec_nanos()) as _,
        });
        let socket = PollFd::new(socket, PollFlags::IN);
        let mut descriptors = vec![socket];
        descriptors.extend(pager.map(|pager| PollFd::from_borrowed_fd(pager.descriptor(), PollFlags::IN)));
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(0) if left == Some(Duration::ZERO) || !is_ahead => return Ok(false),
            Ok(0) => {
                pager.map_or(Ok(()), Pager::bring_ahead)?;
                continue;
            }
            Err(rustix::io::Errno::INTR) => continue,
            // What is wrong shows at the next call.
            Err(_) => return Ok(true),
            Ok(_) => {}
        }
        if let (Some(pager), Some(faults)) = (pager, descriptors.get(1))
            && !faults.revents().is_empty()
        {
            pager.serve()?;
        }
        if !descriptors[0].revents().is_empty() {
            return Ok(true);
        }
    }
}

/// Whether nobody has the other end.
fn has_hung_up(connection: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut descriptors = [PollFd::new(connection, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut descriptors, Some(&at_once)).is_ok() && descriptors[0].revents().contains(PollFlags::HUP)
}

/// The VM can't go on. Where there is no controller to be told, the next one is, if it comes in time.
fn fail_alone(shared: &Shared, control: &OwnedFd, lost: Lost) -> ! {
    let is_told = {
        let inner = shared.lock();
        inner.connection.is_some() || inner.handle.is_some_and(Handle::has_broker)
    };
    if is_told {
        fail(shared, lost)
    }
    let until = Instant::now() + TOLD_WITHIN;
    while matches!(wait(control, None, Some(until)), Ok(true)) {
        if let Some(connection) = accept(control) {
            shared.lock().connection = Some(connection);
            fail(shared, lost)
        }
    }
    exit()
}

/// Ends the VM, whose state can't be had whole.
fn fail(shared: &Shared, lost: Lost) -> ! {
    let handle = shared.lock().handle;
    if let Some(handle) = handle {
        handle.fail(lost)
    }
    // It was being made.
    shared.event(&ended(&lost.into()));
    exit()
}

/// Makes `connection` that of the controller; false if all that it wants to know is how the VM has ended.
fn take_over(shared: &Shared, connection: &Arc<OwnedFd>) -> bool {
    let mut inner = shared.lock();
    if let Some(body) = &inner.ended {
        if protocol::send_body(&**connection, body, &[]).is_ok() {
            inner.ended = None;
            shared.changed.notify_all();
        }
        return false;
    }
    inner.connection = Some(Arc::clone(connection));
    true
}

/// Whether the controller runs as the user that this process runs as.
fn is_own_user(connection: &OwnedFd) -> bool {
    let peer = rustix::net::sockopt::socket_peercred(connection);
    peer.is_ok_and(|peer| peer.uid == rustix::process::geteuid())
}

/// Serves a controller until it leaves.
///
/// # Errors
/// [`Lost`]: the VM can't go on.
fn serve(shared: &Shared, connection: &Arc<OwnedFd>, pager: Option<&Pager>, buffer: &mut [u8]) -> Result<(), Lost> {
    loop {
        let deadline = shared.lock().deadline;
        if !wait(connection, pager, deadline)? {
            expire(shared);
            continue;
        }
        match protocol::receive(connection, buffer) {
            Ok(Some(received)) => take(shared, connection, received),
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Asker { id: 0, connection: Arc::clone(connection) }.refuse("bad_request", &error.to_string());
                return Ok(());
            }
            Err(_) => return Ok(()),
        }
    }
}

/// A guest has not stopped in time.
fn expire(shared: &Shared) {
    let mut inner = shared.lock();
    if inner.deadline.is_none_or(|deadline| deadline > Instant::now()) {
        return;
    }
    let Some(job) = inner.withdraw() else { return };
    drop(inner);
    job.asker.refuse("busy", "the guest did not get to a point where it can be stopped; it goes on");
}

fn take(shared: &Shared, connection: &Arc<OwnedFd>, received: protocol::Received) {
    let received_at = Instant::now();
    let asker = |id| Asker { id, connection: Arc::clone(connection) };
    let request: Request = match serde_json::from_slice(&received.object) {
        Ok(request) => request,
        Err(error) => {
            // So that the caller learns of it, if its number can be told.
            #[derive(serde::Deserialize)]
            struct Id {
                id: u64,
            }
            let id = serde_json::from_slice::<Id>(&received.object).map_or(0, |id| id.id);
            return asker(id).refuse("bad_request", &error.to_string());
        }
    };
    let asker = asker(request.id);
    let mut inner = shared.lock();
    match (&request.command, inner.state) {
        (Command::Query {}, _) => {
            let status = inner.status();
            drop(inner);
            return match status {
                Ok(status) => asker.ok(status, &[]),
                Err(refusal) => asker.refuse("host", &refusal.to_string()),
            };
        }
        (Command::Stop {}, _) => {
            let handle = inner.handle;
            drop(inner);
            if let Some(handle) = handle {
                handle.report_stopped();
            }
            asker.ok(json!({}), &[]);
            exit()
        }
        _ if inner.job.is_some() => {
            drop(inner);
            return asker.refuse("wrong_state", "another command is being carried out");
        }
        (Command::Standby(stop) | Command::Checkpoint(stop), State::Running) => {
            inner.deadline = Some(Instant::now() + Duration::from_millis(stop.within_ms.into()));
            let (busy, handle) = (stop.busy, inner.handle);
            inner.job = Some(Job { asker, received_at, command: request.command, descriptors: received.descriptors });
            drop(inner);
            if let Some(handle) = handle {
                handle.request_stop(busy);
            }
            return;
        }
        (&Command::Signal { number: number @ 1..=64 }, State::Running) => {
            let handle = inner.handle;
            drop(inner);
            if let Some(handle) = handle {
                handle.signal(number);
            }
            return asker.ok(json!({}), &[]);
        }
        (Command::Signal { .. }, State::Running) => {
            drop(inner);
            return asker.refuse("bad_request", "signals are numbered 1 to 64");
        }
        (Command::Link {}, State::Running) => {
            inner.deadline = Some(Instant::now() + LINKED_WITHIN);
            let handle = inner.handle;
            inner.job = Some(Job { asker, received_at, command: request.command, descriptors: received.descriptors });
            drop(inner);
            if let Some(handle) = handle {
                handle.request_stop(true);
            }
            return;
        }
        (_, State::Running) => {
            drop(inner);
            return asker.refuse("wrong_state", "the VM runs");
        }
        _ => {}
    }
    inner.job = Some(Job { asker, received_at, command: request.command, descriptors: received.descriptors });
    drop(inner);
    shared.changed.notify_all();
}

/// The bytes of a descriptor, copied: what is checked can't change any more.
fn read_all(file: impl AsFd, limit: u64) -> io::Result<Vec<u8>> {
    let file = file.as_fd();
    let size = rustix::fs::fstat(file)?.st_size;
    let size = u64::try_from(size).ok().filter(|size| *size <= limit).ok_or(io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; size as usize];
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(file, &mut bytes[done..], done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => done += len,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

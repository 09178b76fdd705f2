//! One run, from the VM process's start to its end: a loop over descriptors that never blocks anywhere else.
//!
//! Memory is bounded: the VM process may have a window of bytes outstanding on each output stream, and gets more only
//! for what was written; while trace text waits, nothing is received; what is to be sent is state, not a queue.

use super::signals::Signals;
use super::sink::Sink;
use super::terminal::{self, Terminal};
use crate::cli::RunOptions;
use crate::error::{Failure, printable};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};
use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use torpor_abi::frame::{Header, INITIAL_WINDOW_BYTES, MAX_PAYLOAD_BYTES, kind, stream};
use torpor_streams::ledger::Violation;
use torpor_streams::link::{MESSAGE_MAX_BYTES, Message, receive, report, split_frame};
use torpor_streams::outbox::Outbox;
use torpor_streams::sockets::Sockets;

/// Bytes written are handed back in portions, since each wakes the guest.
const CREDIT_PORTION_BYTES: u32 = INITIAL_WINDOW_BYTES / 2;
/// No more is received while so much trace text waits for its reader.
const TRACE_QUEUE_MAX_BYTES: usize = 256 << 10;
/// So many requests to end within [`FORCE_WITHIN`] end the VM, whatever the guest does.
const FORCE_COUNT: usize = 3;
const FORCE_WITHIN: Duration = Duration::from_secs(1);
/// Ctrl-], as systemd-nspawn(1) has it.
const FORCE_KEY: u8 = 0x1d;
/// Messages to the VM process before others get their turn.
const SEND_ROUNDS: usize = 16;
/// What programs left behind in connections is written within this time after their end.
const LINGER: Duration = Duration::from_secs(10);

/// An output stream of the guest and where it goes.
struct Output {
    number: u32,
    /// None once there is no one to write to, or nothing more to write.
    sink: Option<Sink>,
    /// Written, and not handed back yet.
    credit_bytes: u32,
    /// The guest has said that nothing more comes.
    finished: bool,
    /// The guest is to be told that the reader is gone.
    report_gone: bool,
    /// Why bytes of the program could not be written, though somebody wanted them.
    lost: Option<Failure>,
}

/// How the VM process said that it ended.
type Outcome = Result<u8, Failure>;

/// See the module's text.
pub(super) struct Session {
    link: OwnedFd,
    /// None once it has been waited for.
    child: Option<Pid>,
    signals: Signals,
    tty: bool,
    /// The image's file, for messages.
    image: PathBuf,
    /// Standard input in raw mode, with `-it`.
    terminal: Option<Terminal>,
    outbox: Outbox,
    sockets: Sockets,
    /// The program's connections have more to say than was sent.
    sockets_have_more: bool,
    outputs: Vec<Output>,
    trace: Option<Sink>,
    /// Why the trace could not be written.
    trace_lost: Option<Failure>,
    /// The trace goes to a terminal in raw mode, where a line needs a carriage return.
    raw_trace: bool,
    /// Standard input is connected and has not ended.
    stdin_open: bool,
    stdin_ended: bool,
    /// The generation that a stored state goes on with; None once the guest was told that no connection has stayed.
    continues: Option<u64>,
    pending_signals: Vec<Signal>,
    window_changed: bool,
    force_requests: Vec<Instant>,
    outcome: Option<Outcome>,
    /// After the end: until when connections are waited for.
    linger_until: Option<Instant>,
}

impl Session {
    /// For a VM process `child` at the other end of `link`.
    pub(super) fn new(
        link: OwnedFd,
        child: Pid,
        signals: Signals,
        options: &RunOptions,
        terminal: Option<Terminal>,
        trace: Option<std::fs::File>,
        sockets: Sockets,
    ) -> Self {
        let tty = options.tty;
        let continues = options.managed.as_ref().filter(|managed| managed.saved.is_some());
        let continues = continues.map(|managed| managed.generation);
        let output = |number, sink: Option<Sink>| Output {
            number,
            report_gone: sink.is_none(),
            sink,
            credit_bytes: 0,
            finished: false,
            lost: None,
        };
        let stdout = Sink::of(rustix::stdio::stdout());
        let outputs = if tty {
            vec![output(stream::STDIN, stdout)]
        } else {
            vec![output(stream::STDOUT, stdout), output(stream::STDERR, Sink::of(rustix::stdio::stderr()))]
        };
        Self {
            link,
            child: Some(child),
            signals,
            tty,
            image: options.image.clone(),
            terminal,
            outbox: Outbox::new(tty),
            sockets,
            sockets_have_more: false,
            outputs,
            raw_trace: terminal_output(trace.is_none(), options),
            trace: trace.map_or_else(|| Sink::of(rustix::stdio::stderr()), |file| Some(Sink::new(file.into()))),
            trace_lost: None,
            stdin_open: options.interactive,
            // The program may have had a standard input where the state comes from.
            stdin_ended: continues.is_some() && !options.interactive,
            continues,
            pending_signals: Vec::new(),
            window_changed: false,
            force_requests: Vec::new(),
            outcome: None,
            linger_until: None,
        }
    }

    /// Runs to the end: all output is written, the VM process is gone.
    pub(super) fn run(mut self) -> Outcome {
        let mut buffer = vec![0; MESSAGE_MAX_BYTES];
        let outcome = loop {
            self.send();
            if self.is_drained()
                && let Some(outcome) = self.outcome.take()
            {
                break outcome;
            }
            self.wait(&mut buffer);
        };
        if let Some(child) = self.child {
            // It has ended, or is no longer wanted.
            let _ = kill_process(child, Signal::KILL);
            self.reap();
        }
        drop(self.terminal.take());
        // Whatever the program's status says, its caller has not got what it wrote.
        let lost = self.outputs.into_iter().find_map(|output| output.lost).or(self.trace_lost);
        outcome.and_then(|status| lost.map_or(Ok(status), Err))
    }

    /// Until when connections are waited for after the end; None where that is over or there is nothing to wait for.
    fn lingers_until(&self) -> Option<Instant> {
        self.linger_until.filter(|&until| until > Instant::now() && !self.sockets.is_drained())
    }

    fn is_drained(&self) -> bool {
        if self.lingers_until().is_some() {
            return false;
        }
        self.outputs.iter().filter_map(|output| output.sink.as_ref()).chain(&self.trace).all(|sink| sink.len() == 0)
    }

    /// Waits for anything to happen and deals with it.
    fn wait(&mut self, buffer: &mut [u8]) {
        let trace_waits = self.trace.as_ref().is_some_and(|sink| sink.len() > TRACE_QUEUE_MAX_BYTES);
        let reads_stdin =
            self.stdin_open && self.outbox.message.is_empty() && self.outbox.ledger.stdin_free_bytes() > 0;
        let mut link_events = PollFlags::empty();
        link_events.set(PollFlags::IN, !trace_waits);
        link_events.set(PollFlags::OUT, !self.outbox.message.is_empty());
        let mut descriptors = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(self.sockets.as_fd(), PollFlags::IN),
        ];
        let running = self.outcome.is_none();
        if running {
            descriptors.push(PollFd::from_borrowed_fd(self.link.as_fd(), link_events));
        }
        let sinks_from = descriptors.len();
        for sink in self.outputs.iter().filter_map(|output| output.sink.as_ref()).chain(&self.trace) {
            let events = if sink.len() > 0 { PollFlags::OUT } else { PollFlags::empty() };
            descriptors.push(PollFd::from_borrowed_fd(sink.as_fd(), events));
        }
        if reads_stdin {
            descriptors.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
        }
        // What more there is to say waits for the link, if that is behind.
        let at_once = (self.sockets_have_more && self.outbox.message.is_empty()).then(Timespec::default);
        let timeout = at_once.or_else(|| self.lingers_until().map(time_until));
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                self.end(Err(Failure::new(format!("poll: {}", std::io::Error::from(error)))));
                return;
            }
        }
        let ready: Vec<PollFlags> = descriptors.iter().map(PollFd::revents).collect();
        drop(descriptors);
        if ready[0].contains(PollFlags::IN) {
            self.take_signals();
        }
        if ready[1].contains(PollFlags::IN) {
            self.sockets.look();
        }
        let mut sink_events = ready[sinks_from..].iter().copied();
        for at in 0..self.outputs.len() {
            if self.outputs[at].sink.is_some() {
                let events = sink_events.next().unwrap_or(PollFlags::empty());
                self.outputs[at].serve(events);
            }
        }
        if self.trace.is_some() {
            let events = sink_events.next().unwrap_or(PollFlags::empty());
            if events.intersects(PollFlags::ERR | PollFlags::HUP) {
                self.trace = None;
            } else if !events.is_empty() {
                self.flush_trace();
            }
        }
        if reads_stdin && sink_events.next().is_some_and(|events| !events.is_empty()) {
            self.read_stdin(buffer);
        }
        if running && ready[2].intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && !trace_waits {
            self.receive(buffer);
        }
    }

    fn end(&mut self, outcome: Outcome) {
        if self.outcome.is_none() {
            self.outcome = Some(outcome);
            self.sockets.finish();
            self.linger_until = Some(Instant::now() + LINGER);
        }
    }

    /// Ends the run now: what was not written yet is dropped.
    fn abort(&mut self, outcome: Outcome) {
        for output in &mut self.outputs {
            output.sink = None;
        }
        self.trace = None;
        self.linger_until = Some(Instant::now());
        self.outcome = Some(outcome);
    }

    fn take_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            if signal == Signal::WINCH {
                self.window_changed = self.tty;
                continue;
            }
            if signal == Signal::TSTP {
                // SAFETY: stops this process until it is continued.
                let stop = || unsafe {
                    libc::raise(libc::SIGSTOP);
                };
                match &self.terminal {
                    Some(terminal) => terminal.lend(stop),
                    None => stop(),
                }
                self.window_changed = self.tty;
                continue;
            }
            if matches!(signal, Signal::INT | Signal::TERM) && (self.outcome.is_some() || self.forced(FORCE_COUNT)) {
                let status = 128 + u8::try_from(signal.as_raw()).unwrap_or(0);
                self.abort(Ok(status));
                return;
            }
            if !self.pending_signals.contains(&signal) {
                self.pending_signals.push(signal);
            }
        }
    }

    /// Notes a request to end; true where it is the last of `count` in a short time.
    fn forced(&mut self, count: usize) -> bool {
        let now = Instant::now();
        self.force_requests.retain(|&then| now.duration_since(then) <= FORCE_WITHIN);
        self.force_requests.push(now);
        self.force_requests.len() >= count
    }

    fn read_stdin(&mut self, buffer: &mut [u8]) {
        let room = self.outbox.ledger.stdin_free_bytes().min(MAX_PAYLOAD_BYTES) as usize;
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer[..room]) {
            Ok(len) if len > 0 => {
                let bytes = &buffer[..len];
                let len = u32::try_from(len).expect("at most MAX_PAYLOAD_BYTES");
                self.outbox.push(Header { stream: stream::STDIN, kind: kind::DATA, len, argument: 0 }, bytes);
                if self.tty {
                    for _ in bytes.iter().filter(|&&byte| byte == FORCE_KEY) {
                        if self.forced(FORCE_COUNT) {
                            let status = 128 + u8::try_from(Signal::KILL.as_raw()).unwrap_or(0);
                            self.abort(Ok(status));
                        }
                    }
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The end; or an error (a terminal that has hung up), after which nothing comes either.
            Ok(_) | Err(_) => {
                self.stdin_open = false;
                self.stdin_ended = true;
            }
        }
    }

    /// Sends what there is to say, as far as the VM process takes it.
    fn send(&mut self) {
        if self.outcome.is_some() {
            // Nobody listens any more; what the program has left behind is written all the same.
            self.sockets.fill(&mut self.outbox);
            self.outbox.message = Message::default();
            return;
        }
        if self.outbox.message.fits(0) {
            self.say();
        }
        for _ in 0..SEND_ROUNDS {
            self.sockets.fill(&mut self.outbox);
            self.sockets_have_more = self.sockets.has_more();
            if self.outbox.message.is_empty() {
                return;
            }
            match self.outbox.message.send(&self.link) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The VM process has ended; its last words are still to be received.
                Err(_) => return self.outbox.message = Message::default(),
            }
        }
    }

    /// Puts together what there is to say besides connections.
    fn say(&mut self) {
        let control = |kind, argument| Header { stream: stream::CONTROL, kind, len: 0, argument };
        if let Some(generation) = self.continues.take() {
            // Modulo 2^32, as the frame has it.
            self.outbox.push(control(kind::RESUMED, generation as u32), &[]);
        }
        for signal in std::mem::take(&mut self.pending_signals) {
            self.outbox.push(control(kind::SIGNAL, signal.as_raw().cast_unsigned()), &[]);
        }
        if std::mem::take(&mut self.window_changed) {
            let (rows, columns) = terminal::size();
            self.outbox.push(control(kind::WINSIZE, u32::from(rows) << 16 | u32::from(columns)), &[]);
        }
        if std::mem::take(&mut self.stdin_ended) {
            self.outbox.push(Header { stream: stream::STDIN, kind: kind::SHUTDOWN, len: 0, argument: 0 }, &[]);
        }
        for output in &mut self.outputs {
            let number = output.number;
            if output.credit_bytes >= CREDIT_PORTION_BYTES {
                let argument = std::mem::take(&mut output.credit_bytes);
                self.outbox.push(Header { stream: number, kind: kind::CREDIT, len: 0, argument }, &[]);
            } else if std::mem::take(&mut output.report_gone) {
                if self.tty {
                    // A terminal that is gone is a hangup.
                    self.outbox.push(control(kind::SIGNAL, Signal::HUP.as_raw().cast_unsigned()), &[]);
                }
                self.outbox.push(Header { stream: number, kind: kind::SHUTDOWN, len: 0, argument: 0 }, &[]);
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) {
        // Not for ever: signals and sinks get their turn.
        for _ in 0..16 {
            match receive(&self.link, buffer) {
                Ok(0) => {
                    let failure = self.died();
                    return self.end(Err(failure));
                }
                Ok(len) => {
                    if let Err(violation) = self.take_frames(&buffer[..len]) {
                        let text = format!("the VM process broke the protocol: {violation}");
                        return self.end(Err(Failure::new(text)));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.end(Err(Failure::new(format!("receiving from the VM process: {error}")))),
            }
            let trace_waits = self.trace.as_ref().is_some_and(|sink| sink.len() > TRACE_QUEUE_MAX_BYTES);
            if trace_waits || self.outcome.is_some() {
                return;
            }
        }
    }

    fn take_frames(&mut self, mut message: &[u8]) -> Result<(), Violation> {
        while !message.is_empty() && self.outcome.is_none() {
            let (header, payload, rest) = split_frame(message)?;
            message = rest;
            if header.stream == stream::CONTROL && header.kind >= report::EXITED {
                self.take_report(&header, payload)?;
                continue;
            }
            self.outbox.ledger.from_guest(&header)?;
            if header.stream >= stream::FIRST_DYNAMIC {
                self.sockets.take(&header, payload)?;
                continue;
            }
            match (header.stream, header.kind) {
                (stream::TRACE, kind::DATA) => {
                    if let Some(trace) = &mut self.trace {
                        for line in payload.split_inclusive(|&byte| byte == b'\n') {
                            match line.strip_suffix(b"\n") {
                                Some(text) if self.raw_trace => {
                                    trace.push(text);
                                    trace.push(b"\r\n");
                                }
                                _ => trace.push(line),
                            }
                        }
                    }
                    self.flush_trace();
                }
                (number, kind::DATA | kind::SHUTDOWN) => {
                    let output = self.outputs.iter_mut().find(|output| output.number == number);
                    let output = output.expect("the ledger knows the output streams");
                    output.take(&header, payload);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A trace that can't be written is dropped; it is no reason to end the program.
    fn flush_trace(&mut self) {
        let Some(trace) = &mut self.trace else { return };
        if let Err(error) = trace.flush() {
            if !trace.is_readerless(&error) {
                self.trace_lost = Some(Failure::new(format!("--trace: {error}")));
            }
            self.trace = None;
        }
    }

    fn take_report(&mut self, header: &Header, payload: &[u8]) -> Result<(), Violation> {
        let text = printable(payload);
        match header.kind {
            report::EXITED => self.end(Ok(exit_status(header.argument))),
            report::START_FAILED => self.end(Err(Failure::start(header.argument.cast_signed(), text, &self.image))),
            report::FAILED => self.end(Err(Failure::new(text))),
            report::STOPPED => self.end(Err(Failure::stopped())),
            report::DEBUG => {
                let _ = writeln!(std::io::stderr(), "torpor-vmm: {text}");
            }
            kind => return Err(Violation::Kind { stream: header.stream, kind }),
        }
        Ok(())
    }

    /// Why the VM process ended without a word.
    fn died(&mut self) -> Failure {
        Failure::new(match self.reap() {
            Some(status) => match (status.terminating_signal(), status.exit_status()) {
                (Some(9), _) => {
                    "the VM process was killed (signal 9), perhaps because the host is out of memory".to_owned()
                }
                (Some(signal), _) => format!("the VM process was ended by signal {signal}"),
                (None, status) => format!("the VM process ended by itself, with status {}", status.unwrap_or(-1)),
            },
            None => "the VM process is gone".to_owned(),
        })
    }

    /// Waits for the VM process to end.
    fn reap(&mut self) -> Option<WaitStatus> {
        let child = self.child.take()?;
        loop {
            match waitpid(Some(child), WaitOptions::empty()) {
                Err(Errno::INTR) => {}
                result => return result.ok().flatten().map(|(_, status)| status),
            }
        }
    }
}

impl Output {
    /// A frame of the guest for this stream.
    fn take(&mut self, header: &Header, payload: &[u8]) {
        if let Some(sink) = &mut self.sink {
            sink.push(payload);
        }
        self.finished |= header.kind == kind::SHUTDOWN;
        self.flush();
    }

    /// What poll(2) says about the sink.
    fn serve(&mut self, events: PollFlags) {
        let waiting = self.sink.as_ref().is_some_and(|sink| sink.len() > 0);
        if waiting && !events.is_empty() {
            self.flush();
        } else if events.intersects(PollFlags::ERR | PollFlags::HUP) {
            self.lose();
        }
    }

    fn flush(&mut self) {
        let Some(sink) = &mut self.sink else { return };
        match sink.flush() {
            Ok(written) => {
                self.credit_bytes += u32::try_from(written).expect("bounded by the window");
                if self.finished && sink.len() == 0 {
                    self.close();
                }
            }
            Err(error) => {
                if !sink.is_readerless(&error) {
                    let name = if self.number == stream::STDERR { "standard error" } else { "standard output" };
                    self.lost = Some(Failure::new(format!("{name}: {error}")));
                }
                self.lose();
            }
        }
    }

    /// The reader is gone.
    fn lose(&mut self) {
        self.report_gone = !self.finished;
        self.close();
    }

    /// Closes the descriptor for good: whoever reads from a pipe sees its end.
    fn close(&mut self) {
        self.sink = None;
        let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") else { return };
        // The standard descriptor itself; its number must not be given out again.
        let _ = match self.number {
            stream::STDERR => rustix::stdio::dup2_stderr(&null),
            _ => rustix::stdio::dup2_stdout(&null),
        };
    }
}

fn time_until(moment: Instant) -> Timespec {
    // At most LINGER, which fits.
    moment.saturating_duration_since(Instant::now()).try_into().unwrap_or_default()
}

/// Whether text for standard error reaches a terminal that is in raw mode.
fn terminal_output(to_stderr: bool, options: &RunOptions) -> bool {
    to_stderr && options.tty && options.interactive && rustix::termios::isatty(rustix::stdio::stderr())
}

/// A shell's exit status for a wait status (wait(2)).
fn exit_status(wait_status: u32) -> u8 {
    let status = wait_status.cast_signed();
    let code = if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests;

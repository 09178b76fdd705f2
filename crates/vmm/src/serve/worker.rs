//! The thread that runs the vCPU, and does what concerns the VM while it does not run.

use super::protocol::{Boot, Command, Event, Prepare, Restore, Sibling, Stop};
use super::{Asker, Identity, Job, Shared, State, Watching, read_all};
use crate::jail::filter::{self, Thread};
use crate::snapshot::metadata::{Digest, Uuid};
use crate::snapshot::pages::Coding;
use crate::snapshot::{Kind, Reader, read_head};
use crate::vm::boot;
use crate::vm::served::{
    Captured, Instance, Link, Origin, Readiness, Refusal, ResetOutcome, Resources, TemplateMemory, Vm, Watcher, Whole,
    learn_warm_base, unpack_template,
};
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;
use torpor_abi::boot::{READY_PORTS_MAX, flags};
use torpor_abi::handover::reason;

/// Largest template file.
pub(super) const TEMPLATE_MAX_BYTES: u64 = 16 << 30;
/// Largest delta.
pub(super) const DELTA_MAX_BYTES: u64 = 16 << 30;

/// Why a command was not carried out.
struct Refused {
    code: &'static str,
    message: String,
    /// The process is of no use any more.
    fatal: bool,
}

impl Refused {
    fn request(message: impl Into<String>) -> Self {
        Self { code: "bad_request", message: message.into(), fatal: false }
    }

    fn state(state: State) -> Self {
        let message = format!("the VM is {}, which is no state for this command", state.name());
        Self { code: "wrong_state", message, fatal: false }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::Snapshot(_) => "bad_snapshot",
            Refusal::Busy(_) => "busy",
            Refusal::Host(_) => "host",
        };
        Self { code, message: refusal.to_string(), fatal: false }
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Self { code: "host", message: error.to_string(), fatal: false }
    }
}

/// A result, and the descriptor that comes with it.
type Done = Result<(Value, Option<OwnedFd>), Refused>;

pub(super) struct Worker {
    shared: Arc<Shared>,
    resources: Option<Resources>,
    vm: Option<Vm>,
    whole: Whole,
    uuid: Uuid,
}

impl Worker {
    /// One whose VM is still to be given to it.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, resources: None, vm: None, whole: Whole::default(), uuid: Uuid::default() }
    }

    /// One that is told what VM to make.
    pub(super) fn serving(shared: Arc<Shared>, resources: Resources) -> Self {
        Self { resources: Some(resources), ..Self::new(shared) }
    }

    pub(super) fn run(mut self) -> ! {
        filter::install(Thread::Vcpu).expect("the filter of all threads lets this one through");
        loop {
            while self.shared.lock().state == State::Running {
                self.run_guest();
            }
            let job = {
                let inner = self.shared.lock();
                let mut inner = self.shared.changed.wait_while(inner, |i| i.job.is_none()).expect("no holder panics");
                inner.begin().expect("waited for")
            };
            let is_reset = matches!(job.command, Command::Reset {});
            let (asker, done) = self.carry_out(job);
            if is_reset {
                scrub_stack();
            }
            self.answer(&asker, done);
        }
    }

    fn answer(&self, asker: &Asker, done: Done) {
        self.shared.lock().at_work = false;
        match done {
            Ok((result, descriptor)) => {
                let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
                asker.ok(result, &descriptors);
            }
            Err(refused) => {
                asker.refuse(refused.code, &refused.message);
                if refused.fatal {
                    super::exit();
                }
            }
        }
    }

    /// Runs the guest until it stops, and does what it was stopped for.
    fn run_guest(&mut self) {
        let vm = self.vm.as_mut().expect("it runs");
        let why = match vm.run() {
            Ok(why) => why,
            Err(refusal) => vm.fail(&refusal),
        };
        let (job, deadline) = {
            let mut inner = self.shared.lock();
            (inner.begin(), inner.deadline.take())
        };
        if let Some(Job { command: Command::Standby(stop), .. }) = &job
            && let Err(Refusal::Busy(_)) = vm.settle()
            && deadline.is_some_and(|deadline| deadline > Instant::now())
        {
            // Something came in between: the guest takes it and stops again.
            let busy = stop.busy;
            let mut inner = self.shared.lock();
            (inner.job, inner.deadline, inner.at_work) = (job, deadline, false);
            drop(inner);
            vm.go_on();
            vm.handle().request_stop(busy);
            return;
        }
        match job {
            Some(Job { asker, command: Command::Standby(stop), .. }) => {
                let done = self.standby(&stop);
                self.answer(&asker, done);
            }
            Some(Job { asker, command: Command::Checkpoint(stop), .. }) => {
                vm.pause();
                let still_at = still_at(vm, &stop);
                let captured = vm.capture_delta(self.uuid, stop.generation, false);
                vm.go_on();
                let done = self.stored(&stop, still_at, captured);
                self.answer(&asker, done);
            }
            Some(Job { asker, command: Command::Link {}, descriptors, .. }) => {
                let done = self.link(&mut Descriptors(descriptors.into_iter()));
                self.vm.as_mut().expect("it ran").go_on();
                self.answer(&asker, done);
            }
            Some(_) => unreachable!("only these are taken while the VM runs"),
            None if why == reason::READY => {
                self.shared.lock().state = State::Stopped;
                self.shared.event(&Event::Ready {});
            }
            // The request was taken back meanwhile.
            None => vm.go_on(),
        }
    }

    /// Stores the state of a guest that has just been stopped, and leaves it so.
    fn standby(&mut self, stop: &Stop) -> Done {
        let vm = self.vm.as_mut().expect("it ran");
        let settled = vm.settle();
        let still_at = still_at(vm, stop);
        let captured = settled.and_then(|()| vm.capture_delta(self.uuid, stop.generation, true));
        match &captured {
            Ok(_) => self.shared.lock().state = State::Stopped,
            Err(_) => vm.go_on(),
        }
        self.stored(stop, still_at, captured)
    }

    /// `still_at` is what that function said when it was stopped.
    fn stored(&self, stop: &Stop, still_at: Option<u64>, captured: Result<Captured, Refusal>) -> Done {
        let captured = captured?;
        let mut inner = self.shared.lock();
        (inner.stored_generation, inner.still_at) = (Some(stop.generation), still_at);
        drop(inner);
        reply_with(captured)
    }

    fn carry_out(&mut self, job: Job) -> (Asker, Done) {
        let state = self.shared.lock().state;
        let mut descriptors = Descriptors(job.descriptors.into_iter());
        let done = match (job.command, state) {
            (Command::Unpack { template }, _) => unpack(template, &mut descriptors),
            (Command::Learn { template }, _) => learn(template, &mut descriptors),
            (Command::Boot(boot), State::Empty) => self.boot(&boot, &mut descriptors),
            (Command::Prepare(prepare), State::Empty) => self.prepare(&prepare, &mut descriptors),
            (Command::Run {}, State::Stopped) => {
                self.vm.as_mut().expect("it is stopped").go_on();
                self.set_running(None);
                Ok((json!({}), None))
            }
            (Command::Touch {}, State::Resting) => self.touch(),
            (Command::Restore(restore), State::Resting) => self.restore(&restore, job.received_at, &mut descriptors),
            // One that was stopped before, for a controller that has lost the answer.
            (Command::Standby(stop), State::Stopped) => {
                let vm = self.vm.as_mut().expect("it is stopped");
                let captured = vm.capture_delta(self.uuid, stop.generation, true);
                self.stored(&stop, None, captured)
            }
            (Command::Link {}, State::Stopped) => self.link(&mut descriptors),
            (Command::Template { uuid, generation }, State::Stopped) => self.template(uuid, generation),
            (Command::Sibling(sibling), State::Stopped) => self.sibling(&sibling, &mut descriptors),
            (Command::Reset {}, State::Stopped) => self.reset(),
            (_, state) => Err(Refused::state(state)),
        };
        if done.is_ok() && descriptors.0.len() > 0 {
            return (job.asker, Err(Refused::request("more descriptors than the command takes")));
        }
        (job.asker, done)
    }

    fn watching(&self) -> Box<dyn Watcher> {
        Box::new(Watching(Arc::clone(&self.shared)))
    }

    fn link(&mut self, descriptors: &mut Descriptors) -> Done {
        let link = descriptors.next("link")?;
        self.vm.as_mut().expect("it runs or is stopped").relink(&link)?;
        Ok((json!({}), None))
    }

    fn origin(&mut self, image: OwnedFd, link: Option<OwnedFd>) -> Result<Origin, Refused> {
        let image = File::from(image);
        let image_bytes = image.metadata()?.len();
        let resources = self.resources.take().ok_or_else(|| Refused::request("a VM was made before and failed"))?;
        let link = link.map_or(Link::None, Link::Console);
        Ok(Origin { resources, image, image_bytes, link })
    }

    fn boot(&mut self, boot: &Boot, descriptors: &mut Descriptors) -> Done {
        use torpor_abi::layout::{MAX_MEMORY_BYTES, MIN_MEMORY_BYTES};
        if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&boot.memory_limit_bytes) {
            return Err(Refused::request("memory_limit_bytes is out of range"));
        }
        let image = descriptors.next("image")?;
        let link = if boot.console { Some(descriptors.next("console")?) } else { None };
        let strings = |list: &[String]| list.iter().map(|s| s.clone().into_bytes()).collect::<Vec<_>>();
        let (argv, envp) = (strings(&boot.argv), strings(&boot.envp));
        if argv.is_empty() || argv.iter().chain(&envp).any(|text| text.contains(&0)) {
            return Err(Refused::request("argv is empty, or a string has a NUL"));
        }
        let mut ready_ports = [0; READY_PORTS_MAX];
        let Some(ports) = ready_ports.get_mut(..boot.ready_ports.len()) else {
            return Err(Refused::request("ready_ports has too many"));
        };
        ports.copy_from_slice(&boot.ready_ports);
        let program = boot::Program {
            ready_ports,
            flags: if boot.template { flags::TEMPLATE } else { 0 } | if boot.console { flags::STDIN } else { 0 },
            argv,
            envp,
            workdir: boot.workdir.clone().into_bytes(),
            user: boot.user.clone().into_bytes(),
            hostname: boot.host_name.clone(),
            uuid: boot.uuid.0,
            seed: boot.seed.map(|digest| digest.0),
            ..boot::Program::default()
        };
        boot::check_size(&program).map_err(|failure| Refused::request(failure.message))?;
        let origin = self.origin(image, link)?;
        let vm = Vm::boot(origin, boot.owner, boot.image, boot.memory_limit_bytes, &program, self.watching())?;
        self.set_vm(vm, State::Stopped, boot.uuid, None);
        self.shared.lock().seeded = boot.seed.is_some();
        Ok((json!({}), None))
    }

    fn prepare(&mut self, prepare: &Prepare, descriptors: &mut Descriptors) -> Done {
        let file = File::from(descriptors.next("template")?);
        let shared = if prepare.late { None } else { Some(File::from(descriptors.next("template memory")?)) };
        let image = descriptors.next("image")?;
        let warm = match prepare.warm_base {
            Some(digest) => Some((digest, read_all(descriptors.next("warm base")?, DELTA_MAX_BYTES)?)),
            None => None,
        };
        let (head, bytes) = read_head(&file, TEMPLATE_MAX_BYTES)?;
        let reader =
            Reader::of_head(&head, bytes).and_then(|reader| reader.expect(Kind::Template)?.named(prepare.template));
        let reader = reader.map_err(Refusal::from)?;
        let whole = Whole::of(reader.metadata()).map_err(Refusal::from)?;
        let memory = shared.as_ref().map_or(TemplateMemory::Own(file), TemplateMemory::Shared);
        let origin = self.origin(image, None)?;
        let warm = warm.as_ref().map(|(digest, file)| (*digest, &file[..]));
        let template = (prepare.template, &reader, memory);
        let ready = if prepare.never_run { Readiness::NeverRun } else { Readiness::Rests };
        let vm = Vm::prepare(origin, template, warm, ready, self.watching())?;
        self.whole = whole;
        self.set_vm(vm, State::Resting, Uuid::default(), None);
        Ok((json!({}), None))
    }

    fn touch(&mut self) -> Done {
        match self.vm.as_mut().expect("it rests").touch() {
            Ok(()) => Ok((json!({}), None)),
            // Nobody knows where the guest is.
            Err(refusal) => Err(Refused { fatal: true, ..refusal.into() }),
        }
    }

    pub(super) fn set_vm(&mut self, vm: Vm, state: State, uuid: Uuid, instance: Option<Identity>) {
        let mut inner = self.shared.lock();
        inner.handle = Some(vm.handle());
        inner.bases = vm.bases();
        inner.state = state;
        inner.instance = instance;
        drop(inner);
        self.uuid = uuid;
        self.vm = Some(vm);
    }

    /// With `restored` where the VM has just become an instance; without, it goes on as what it is.
    fn set_running(&self, restored: Option<Identity>) {
        let mut inner = self.shared.lock();
        inner.state = State::Running;
        if restored.is_some() {
            (inner.stored_generation, inner.still_at) = (None, None);
        }
        // A VM that boots is of no generation yet.
        let instance = restored.or(inner.instance.take());
        inner.instance = Some(instance.unwrap_or(Identity { uuid: self.uuid, generation: 0 }));
    }

    fn restore(&mut self, restore: &Restore, received_at: Instant, descriptors: &mut Descriptors) -> Done {
        let file = restore.delta.map(|_| descriptors.next("delta").map(File::from)).transpose()?;
        let link = if restore.console { Some(descriptors.next("console")?) } else { None };
        let head = file.as_ref().map(|file| read_head(file, DELTA_MAX_BYTES)).transpose()?;
        let named = head.as_ref().zip(restore.delta);
        let reader =
            named.map(|((head, bytes), digest)| Reader::of_head(head, *bytes)?.expect(Kind::Delta)?.named(digest));
        let reader = reader.transpose().map_err(Refusal::from)?;
        if let Some(reader) = &reader {
            let metadata = reader.metadata();
            let (uuid, generation) =
                restore.origin.map_or((restore.uuid, restore.generation), |origin| (origin.uuid, origin.generation));
            if metadata.uuid != uuid || metadata.generation != generation {
                let message = format!(
                    "it is generation {} of instance {}, and generation {generation} of {uuid} is wanted",
                    metadata.generation, metadata.uuid
                );
                return Err(Refusal::Snapshot(crate::snapshot::BadSnapshot::Mismatch(message)).into());
            }
        }
        let instance =
            Instance { uuid: restore.uuid, generation: restore.generation, host_name: restore.host_name.clone() };
        let vm = self.vm.as_mut().expect("it rests");
        vm.restore(reader.as_ref().zip(file), &instance, link.as_ref(), &self.whole)?;
        self.uuid = restore.uuid;
        self.set_running(Some(Identity { uuid: restore.uuid, generation: restore.generation }));
        let took_ns = u64::try_from(received_at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok((json!({ "took_ns": took_ns }), None))
    }

    fn template(&mut self, uuid: Uuid, generation: u64) -> Done {
        reply_with(self.booted()?.capture_template(uuid, generation)?)
    }

    fn sibling(&mut self, sibling: &Sibling, descriptors: &mut Descriptors) -> Done {
        let file = read_all(descriptors.next("template")?, TEMPLATE_MAX_BYTES)?;
        let memory = File::from(descriptors.next("template memory")?);
        let template = (sibling.template, &file[..], &memory);
        reply_with(self.booted()?.capture_sibling(template, sibling.uuid, sibling.generation)?)
    }

    /// The VM, which is stopped, settled and of no template.
    fn booted(&mut self) -> Result<&mut Vm, Refused> {
        let vm = self.vm.as_mut().expect("it is stopped");
        if vm.template().is_some() {
            return Err(Refused::request("this VM is of a template already"));
        }
        vm.settle()?;
        Ok(vm)
    }

    fn reset(&mut self) -> Done {
        let vm = self.vm.as_mut().expect("it is stopped");
        match vm.reset() {
            Ok(ResetOutcome::Resting) => {
                self.shared.lock().state = State::Resting;
                Ok((json!({ "retired": false }), None))
            }
            Ok(ResetOutcome::Retired) => Ok((json!({ "retired": true }), None)),
            Err(refusal) => Err(Refused { fatal: true, ..refusal.into() }),
        }
    }
}

/// How often a guest that is stopped at its idle point was told of something new, unless it has yet to look.
fn still_at(vm: &Vm, stop: &Stop) -> Option<u64> {
    let handle = vm.handle();
    let raised = handle.raised();
    (!stop.busy && !handle.has_news()).then_some(raised)
}

/// Overwrites what is below the caller's frame: copies of an instance's pages were there. Not a part of that frame, hence
/// never inlined.
#[inline(never)]
fn scrub_stack() {
    const BYTES: usize = 256 << 10;
    std::hint::black_box(&mut [0_u8; BYTES]);
}

/// The descriptors of a request, taken in order.
struct Descriptors(std::vec::IntoIter<OwnedFd>);

impl Descriptors {
    fn next(&mut self, what: &str) -> Result<OwnedFd, Refused> {
        self.0.next().ok_or_else(|| Refused::request(format!("the descriptor of the {what} is missing")))
    }
}

fn unpack(template: Digest, descriptors: &mut Descriptors) -> Done {
    let file = read_all(descriptors.next("template")?, TEMPLATE_MAX_BYTES)?;
    let memory = File::from(descriptors.next("template memory")?);
    let bytes = unpack_template(template, &file, &memory).map_err(Refusal::from)?;
    Ok((json!({ "bytes": bytes }), None))
}

fn learn(template: Digest, descriptors: &mut Descriptors) -> Done {
    let file = read_all(descriptors.next("template")?, TEMPLATE_MAX_BYTES)?;
    let memory = File::from(descriptors.next("template memory")?);
    let mut deltas = Vec::new();
    for delta in descriptors.0.by_ref() {
        deltas.push(read_all(delta, DELTA_MAX_BYTES)?);
    }
    let (learnt, pages) = learn_warm_base((template, &file, &memory), &deltas)?;
    Ok((json!({ "bytes": learnt.bytes, "pages": pages }), Some(learnt.file.into())))
}

fn reply_with(captured: Captured) -> Done {
    let count = |coding: Coding| captured.pages[coding as usize];
    let result = json!({
        "bytes": captured.stored.bytes,
        "pages": {
            "zero": count(Coding::Zero),
            "raw": count(Coding::Raw),
            "template": count(Coding::Template),
            "warm_base": count(Coding::WarmBase),
        },
        "next_deadline_ns": captured.next_deadline_ns,
        "drew_random": captured.drew_random,
    });
    Ok((result, Some(captured.stored.file.into())))
}

//! A VM that is stopped, stored, put back and gone on with by command.
//!
//! ```text
//!            boot                                 go_on
//!   (image) ------> Stopped at its first instruction --> runs --> Stopped: quiesced, or ready
//!            prepare                  restore                        |  go_on: as if nothing had happened
//!   (template) ---> Resting ----------------------------> runs <-----+
//!                      ^                                             |
//!                      +------------------ reset --------------------+
//! ```
//! While a VM rests its memory is the base's ([`base`]), and its vCPU waits in the kernel's resume entry.
//! The order of everything that writes to its memory is in [`restore`] and [`reset`].

mod arriving;
mod base;
mod capture;
mod handover;
mod learn;
mod link;
mod pager;
mod pending;
mod private;
mod reset;
mod restore;
#[cfg(test)]
mod testing;
mod userfault;
mod working_set;

use super::memory::{Gpa, GuestMemory};
use super::start::{Built, Parts, assemble, build};
use super::vcpu::{Progress, Stop, run_until_stop};
use super::{Fatal, Machine, Serving, boot, cpu, io};
use crate::jail;
use crate::jail::filter::{self, Thread};
use crate::snapshot::metadata::{CpuFeatures, Digest, Machine as Family, Uuid, WorkingSet};
use crate::snapshot::pages::Run;
use crate::snapshot::{BadSnapshot, Kind, Reader};
use base::Base;
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use private::PageMap;
use rustix::process::Pid;
use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use thiserror::Error;
use torpor_abi::boot::{VERSION, flags};
use torpor_abi::handover::{command, quiesce};
use torpor_abi::layout::{PAGE_BYTES, RESUME_STACK_TOP_GPA, ram_bytes};
use torpor_streams::link::{Message, report};
use userfault::Userfault;

pub use super::{End, Watcher};
pub use base::{Unpack, unpack_template};
pub use capture::{Captured, Stored};
pub use learn::learn_warm_base;
pub use pager::{Lost, Pager};
pub use reset::Outcome as ResetOutcome;
pub use restore::Whole;

/// What can't be done with a VM, or not now. The VM is as it was before.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The snapshot is bad or does not fit.
    #[error(transparent)]
    Snapshot(#[from] BadSnapshot),
    /// The guest can't be stopped now.
    #[error("{0}")]
    Busy(String),
    /// The host failed.
    #[error("{0}")]
    Host(String),
}

impl From<Fatal> for Refusal {
    fn from(fatal: Fatal) -> Self {
        Self::Host(fatal.to_string())
    }
}

/// What has to be opened before the final seccomp filter.
#[derive(Debug)]
pub struct Resources {
    pub(super) kvm: OwnedFd,
    pub(super) statm: File,
    pagemap: PageMap,
    pub(super) io: Sender<&'static Machine>,
    pager: Option<Arc<Pager>>,
    recorder: Option<Userfault>,
    /// What the host does not permit of the jail, for people.
    pub missing: Option<String>,
}

impl Resources {
    /// Opens this process's own files, enters the jail, and starts the thread that will move frames. No thread may have
    /// been started yet.
    ///
    /// # Errors
    /// A text.
    pub fn open(kvm: OwnedFd) -> Result<Self, Refusal> {
        let statm = super::process::ResidentMemory::open()?;
        let pagemap = PageMap::open()?;
        // Without it all of a state is put in place before its VM goes on.
        let pager = Pager::open().ok().map(Arc::new);
        let recorder = Userfault::for_single_pages().ok();
        let missing = jail::enter().map_err(Refusal::Host)?;
        let (io, machine) = std::sync::mpsc::channel::<&'static Machine>();
        // What a new thread does before our code may not be in the filter.
        let (started, has_started) = std::sync::mpsc::channel();
        let waits = move || {
            let _ = started.send(());
            if let Ok(machine) = machine.recv() {
                if let Err(text) = filter::install(Thread::Io) {
                    machine.finish(End::Failed(format!("seccomp: {text}")));
                }
                io::run(machine);
            }
        };
        let spawned = std::thread::Builder::new().name("io".into()).spawn(waits);
        spawned.map_err(|error| Refusal::Host(format!("starting a thread: {error}")))?;
        has_started.recv().map_err(|_| Refusal::Host("a thread did not start".into()))?;
        Ok(Self { kvm, statm, pagemap, io, pager, recorder, missing })
    }

    /// What a VM's late pages will be asked of.
    #[must_use]
    pub fn pager(&self) -> Option<Arc<Pager>> {
        self.pager.clone()
    }

    /// The process ends with `broker`, which is told what is missing.
    ///
    /// # Errors
    /// [`Refusal::Host`].
    pub fn tie_to_broker(&self, broker: Pid, link: BorrowedFd<'_>) -> Result<(), Refusal> {
        super::process::die_with(broker)?;
        if let Some(missing) = &self.missing {
            let mut message = Message::default();
            message.push_report(report::DEBUG, 0, missing);
            // The first message finds room; and if not, it is not what the process is for.
            let _ = message.send(link);
        }
        Ok(())
    }
}

/// What a VM of either origin is made from.
#[derive(Debug)]
pub struct Origin {
    /// See [`Resources`].
    pub resources: Resources,
    /// The EROFS image.
    pub image: File,
    /// Its size.
    pub image_bytes: u64,
    /// Where console frames go.
    pub link: Link,
}

/// The other end of a VM's frames.
#[derive(Debug)]
pub enum Link {
    /// A broker, with which the VM ends.
    Broker(OwnedFd),
    /// Whoever holds it; the VM goes on without.
    Console(OwnedFd),
    /// Nobody.
    None,
}

/// Where a template's pages come from.
#[derive(Debug)]
pub enum TemplateMemory<'a> {
    /// What [`unpack_template`] has made, for any number of processes.
    Shared(&'a File),
    /// The template's file, from which they arrive by and by, for this process alone; it has to stay as it is. Where the host
    /// does not let them they are all unpacked at once.
    Own(File),
}

/// How far a VM of a template is made ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Its vCPU has not run yet, so that any number of page tables may differ in what is restored first.
    NeverRun,
    /// Its vCPU waits.
    Rests,
}

/// With so many pages of its own a process has a large state: one whose pages are late, and after which it is not used again.
const LARGE_PAGES: usize = (16 << 20) / PAGE_BYTES as usize;

/// See the module's text.
#[derive(Debug)]
pub struct Vm {
    machine: &'static Machine,
    vm: VmFd,
    vcpu: VcpuFd,
    cpuid: CpuId,
    progress: Progress,
    base: Arc<Base>,
    family: Family,
    tsc_hz: u64,
    pagemap: PageMap,
    tty: bool,
    /// The vCPU has run, so page tables are the guest's alone to write.
    entered: bool,
    /// Of the last capture, as long as the VM is stopped since.
    survey: Option<Survey>,
    /// For what new instances touch: see [`working_set`]. None in a process that is of no use for that.
    recorder: Option<Userfault>,
    /// What [`Vm::touch`] has to do, as long as the VM is no instance.
    untouched: Option<WorkingSet>,
    /// What the guest has to be told when it goes on: see [`torpor_abi::handover::Handover::unsent_bytes`].
    relinked: Option<[u32; 3]>,
}

/// What a capture has learnt of memory.
#[derive(Debug)]
struct Survey {
    /// How many pages the process has of its own.
    private: usize,
    /// Those that may differ from the base; all others do not.
    changed: Vec<Changed>,
    /// All of [`Changed::runs`].
    runs: Vec<Run>,
}

/// A page that may differ from the base.
#[derive(Debug)]
struct Changed {
    number: u32,
    /// Where it differs, in the survey's runs; none where that is not known.
    runs: Option<Range<usize>>,
}

impl Survey {
    fn all_changed(private: &[u32]) -> Self {
        let changed = private.iter().map(|&number| Changed { number, runs: None }).collect();
        Self { private: private.len(), changed, runs: Vec::new() }
    }
}

/// Lets another thread ask a running VM to stop.
#[derive(Clone, Copy, Debug)]
pub struct Handle(&'static Machine);

impl Handle {
    /// Asks for a stop when nothing is runnable, or with `busy` at the next entry into the kernel.
    pub fn request_stop(self, busy: bool) {
        self.0.control().quiesce().store(if busy { quiesce::AT_ENTRY } else { quiesce::AT_IDLE }, Ordering::SeqCst);
        self.0.raise();
    }

    /// Has a signal, 1 to 64, sent to the guest's first program.
    pub fn signal(self, number: u32) {
        self.0.signal(number);
    }

    /// Takes the request back.
    pub fn cancel_stop(self) {
        self.0.control().quiesce().store(quiesce::NONE, Ordering::SeqCst);
    }

    /// Tells a broker that its VM is about to be ended by a command.
    pub fn report_stopped(self) {
        if self.has_broker() {
            // Where it is gone nobody wants to know.
            let _ = self.0.report(torpor_streams::link::report::STOPPED, 0, "");
        }
    }

    /// How often the guest was told that there is something new: one at its idle point does nothing until the next time.
    #[must_use]
    pub fn raised(self) -> u64 {
        self.0.raised.load(Ordering::SeqCst)
    }

    /// Whether it was told, and has not looked yet.
    #[must_use]
    pub fn has_news(self) -> bool {
        self.0.control().pending().load(Ordering::SeqCst) != 0
    }

    /// Whether the link's other end is gone and there is no new one.
    #[must_use]
    pub fn is_unlinked(self) -> bool {
        self.0.is_unlinked()
    }

    /// Ends the VM, whose state can't be had whole.
    pub fn fail(self, lost: Lost) -> ! {
        self.0.finish(lost.into())
    }

    /// Bytes of host memory that this process has of its own.
    ///
    /// # Errors
    /// [`Refusal::Host`].
    pub fn used_bytes(self) -> Result<u64, Refusal> {
        let pager = self.0.served.as_ref().and_then(|served| served.pager.as_ref());
        Ok(self.0.resident.used_bytes()? + pager.map_or(0, |pager| pager.own_template_bytes()))
    }

    /// Whether the VM ends with a broker.
    #[must_use]
    pub fn has_broker(self) -> bool {
        self.0.served.as_ref().is_some_and(|served| served.nobody.is_none())
    }
}

/// Who a VM is to be when it goes on.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The instance's uuid.
    pub uuid: Uuid,
    /// Generation of the state that it goes on with.
    pub generation: u64,
    /// Host name; empty for the one that is in the state.
    pub host_name: String,
}

impl Vm {
    /// A VM that will boot `program`; with [`flags::TEMPLATE`] it stops when that is ready.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn boot(
        origin: Origin,
        owner: Digest,
        image: Digest,
        memory_limit_bytes: u64,
        program: &boot::Program,
        watcher: Box<dyn Watcher>,
    ) -> Result<Self, Refusal> {
        let tty = program.flags & flags::TTY != 0;
        let (parts, pagemap, io) = parts(origin, memory_limit_bytes, tty, watcher)?;
        let image_bytes = parts.image_bytes;
        let built = build(parts, program)?;
        let family = Family {
            owner,
            image,
            image_bytes,
            memory_limit_bytes,
            ram_bytes: ram_bytes(memory_limit_bytes),
            kernel_abi: VERSION,
            resume_entry: built.resume_entry,
            syscall_stub: built.syscall_stub,
            tables: built.boot_tables.clone(),
            cpu: CpuFeatures::here(built.features.xcr0),
        };
        Self::new(built, family, Base::zeros(), pagemap, tty, &io)
    }

    /// A VM of a template, whose file was read as one. It rests when this returns.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn prepare(
        mut origin: Origin,
        template: (Digest, &Reader<'_>, TemplateMemory<'_>),
        warm_base: Option<(Digest, &[u8])>,
        ready: Readiness,
        watcher: Box<dyn Watcher>,
    ) -> Result<Self, Refusal> {
        let (digest, reader, memory) = template;
        let family = reader.metadata().machine.clone();
        check_family(&family)?;
        if origin.image_bytes != family.image_bytes {
            return Err(BadSnapshot::Mismatch("the image has another size than the template's".into()).into());
        }
        let mut working_set = None;
        let is_shared = matches!(memory, TemplateMemory::Shared(_));
        let recorder = origin.resources.recorder.take().filter(|_| is_shared && warm_base.is_none());
        let (mut base, memory) = match memory {
            TemplateMemory::Shared(file) => {
                let bytes = file.metadata().map_err(Fatal::system("fstat of the template's memory"))?.len();
                let memory = GuestMemory::over_template(family.ram_bytes, file, bytes);
                let memory = memory.map_err(Fatal::system("mapping the template"))?;
                (Base::of_template(digest, file, bytes)?, memory)
            }
            TemplateMemory::Own(file) => {
                arriving::begin(digest, reader, file, &family, origin.resources.pager.as_deref())?
            }
        };
        if let Some((warm_digest, file)) = warm_base {
            let warm = Reader::new(file)?.expect(Kind::WarmBase)?.named(warm_digest)?;
            warm.metadata().check_family(&family, digest)?;
            base.add_warm(warm_digest, &warm)?;
            working_set.clone_from(&warm.metadata().working_set);
        }
        for (number, page) in base.warm_pages() {
            memory.write(Gpa(u64::from(number) * PAGE_BYTES), page).map_err(Fatal::from)?;
        }
        let (parts, pagemap, io) = parts(origin, family.memory_limit_bytes, false, watcher)?;
        let built = assemble(parts, memory, family.resume_entry, family.syscall_stub)?;
        reader.metadata().check_cpu(&CpuFeatures::here(built.features.xcr0))?;
        // Before the I/O thread has it: what is on its way already waits until there is somebody to take it.
        built.machine.gate.close();
        built.machine.gate.lend();
        let mut vm = Self::new(built, family, base, pagemap, false, &io)?;
        vm.recorder = recorder;
        if ready == Readiness::NeverRun {
            vm.enter_at_resume();
        } else {
            vm.rest(0)?;
        }
        vm.untouched = working_set.filter(|_| ready == Readiness::Rests);
        Ok(vm)
    }

    fn new(
        built: Built,
        family: Family,
        base: Base,
        pagemap: PageMap,
        tty: bool,
        io: &Sender<&'static Machine>,
    ) -> Result<Self, Refusal> {
        // Both threads use it until the process ends.
        let machine: &'static Machine = Box::leak(Box::new(built.machine));
        // The I/O thread waits for nothing else.
        let _ = io.send(machine);
        let progress = Progress::new(machine)?;
        Ok(Self {
            machine,
            vm: built.vm,
            vcpu: built.vcpu,
            cpuid: built.cpuid,
            progress,
            base: Arc::new(base),
            family,
            tsc_hz: built.features.tsc_hz,
            pagemap,
            tty,
            entered: false,
            survey: None,
            recorder: None,
            untouched: None,
            relinked: None,
        })
    }

    /// For the thread that hears commands.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(self.machine)
    }

    /// Pages of memory that this process has of its own.
    ///
    /// # Errors
    /// [`Refusal::Host`].
    pub fn private_pages(&self) -> Result<u64, Refusal> {
        Ok(self.pagemap.private_pages(&self.machine.memory)?.len() as u64)
    }

    /// Runs until the guest is quiesced; returns the reason that it gives. If the VM ends, the process does.
    ///
    /// # Errors
    /// [`Refusal::Host`] where a guest that should run parks.
    pub fn run(&mut self) -> Result<u32, Refusal> {
        self.entered = true;
        self.survey = None;
        match run_until_stop(self.machine, &self.vm, &mut self.vcpu, &mut self.progress) {
            Stop::Quiesced(reason) => {
                self.machine.control().quiesce().store(quiesce::NONE, Ordering::SeqCst);
                Ok(reason)
            }
            Stop::Parked => Err(Refusal::Host("the guest kernel parked while it should run".into())),
        }
    }

    /// Ends the VM, and the process with it.
    pub fn fail(&self, why: &Refusal) -> ! {
        self.machine.finish(End::Failed(why.to_string()))
    }

    /// Lets a quiesced VM go on as if nothing had happened, with the next [`Vm::run`].
    pub fn go_on(&mut self) {
        match self.relinked.take() {
            Some(unsent_bytes) => handover::write_relink(&self.machine.memory, unsent_bytes),
            None => handover::set_command(&self.machine.memory, command::CONTINUE, 0),
        }
        self.machine.open_gate();
    }

    fn enter_at_resume(&mut self) {
        let stack = torpor_abi::layout::DIRECT_MAP_BASE + RESUME_STACK_TOP_GPA;
        cpu::set_entry(&mut self.vcpu, self.family.resume_entry, stack);
        self.progress.forget_events();
    }

    /// Runs the resume entry until it parks, so that it stores the page-table entries in the list.
    fn rest(&mut self, entries: u32) -> Result<(), Refusal> {
        self.park(command::REST, entries)
    }

    /// Runs the resume entry with a command until it parks.
    fn park(&mut self, command: u32, entries: u32) -> Result<(), Refusal> {
        handover::set_command(&self.machine.memory, command, entries);
        self.enter_at_resume();
        self.entered = true;
        match run_until_stop(self.machine, &self.vm, &mut self.vcpu, &mut self.progress) {
            Stop::Parked => Ok(()),
            Stop::Quiesced(_) => Err(Refusal::Host("the guest kernel stopped where it should have parked".into())),
        }
    }

    fn pager(&self) -> Option<&Pager> {
        self.machine.served.as_ref().and_then(|served| served.pager.as_deref())
    }

    fn is_table(&self, number: u32) -> bool {
        let gpa = u64::from(number) * PAGE_BYTES;
        self.family.tables.iter().any(|(start, len)| (*start..start + len).contains(&gpa))
    }
}

/// What a template says of its layout has to make sense, whoever wrote it.
fn check_family(family: &Family) -> Result<(), BadSnapshot> {
    use torpor_abi::layout::{
        BOOT_TABLES_BYTES, BOOT_TABLES_GPA, KERNEL_BASE, KERNEL_MAX_BYTES, MAX_MEMORY_BYTES, MIN_MEMORY_BYTES,
    };
    let wrong = |what: &str| Err(BadSnapshot::Format(format!("the template's {what}")));
    if family.kernel_abi != VERSION {
        return Err(BadSnapshot::Mismatch(format!(
            "its kernel speaks version {} of the interface, this program {VERSION}",
            family.kernel_abi
        )));
    }
    if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&family.memory_limit_bytes) {
        return wrong("memory size");
    }
    if family.ram_bytes != ram_bytes(family.memory_limit_bytes) {
        return wrong("guest-physical size");
    }
    let in_kernel = |address: u64| (KERNEL_BASE..KERNEL_BASE + KERNEL_MAX_BYTES).contains(&address);
    if !in_kernel(family.resume_entry) || !in_kernel(family.syscall_stub) {
        return wrong("entry points");
    }
    let fits = |(start, len): &(u64, u64)| {
        start.is_multiple_of(PAGE_BYTES) && start.checked_add(*len).is_some_and(|end| end <= family.ram_bytes)
    };
    if family.tables.len() > 4
        || family.tables.first() != Some(&(BOOT_TABLES_GPA, BOOT_TABLES_BYTES))
        || !family.tables.iter().all(fits)
    {
        return wrong("page tables");
    }
    Ok(())
}

fn parts(
    origin: Origin,
    memory_limit_bytes: u64,
    tty: bool,
    watcher: Box<dyn Watcher>,
) -> Result<(Parts, PageMap, Sender<&'static Machine>), Refusal> {
    let Resources { kvm, statm, pagemap, io, pager, .. } = origin.resources;
    let pair = || torpor_streams::link::pair().map_err(Fatal::system("socketpair"));
    let (link, nobody) = match origin.link {
        Link::Broker(link) => (link, None),
        Link::Console(link) => (link, Some(pair()?)),
        Link::None => {
            let nobody = pair()?;
            (rustix::io::fcntl_dupfd_cloexec(&nobody.0, 3).map_err(Fatal::system("fcntl"))?, Some(nobody))
        }
    };
    let served = Serving { nobody, is_unlinked: AtomicBool::new(false), watcher, pager };
    let parts = Parts {
        kvm,
        image: origin.image,
        image_bytes: origin.image_bytes,
        link,
        memory_limit_bytes,
        kernel: Cow::Borrowed(super::embedded_kernel()),
        debug_exits: false,
        statm,
        served: Some(served),
        tty,
    };
    Ok((parts, pagemap, io))
}

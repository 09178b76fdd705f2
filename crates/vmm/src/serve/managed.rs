//! The VM process of a broker that takes commands at a control socket as well: a VM that can be stored, or was.

use super::worker::Worker;
use super::{Identity, Shared, State, ended};
use crate::error::Failure;
use crate::snapshot::metadata::{Digest, Uuid};
use crate::snapshot::{Kind, Reader, read_head};
use crate::vm::served::{
    End, Instance, Link, Origin, Readiness, Refusal, Resources, TemplateMemory, Vm, Watcher, Whole,
};
use crate::vm::{Given, fail};
use rustix::process::Pid;
use serde::Deserialize;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The JSON object behind `--managed`; descriptors are numbers that this process was started with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManagedOptions {
    /// A bound control socket.
    pub control_fd: i32,
    /// Whose the VM is.
    pub owner: Digest,
    /// Digest of the image.
    pub image: Digest,
    /// The instance's.
    pub uuid: Uuid,
    /// Of the state that the VM begins with; 0 for one that boots.
    pub generation: u64,
    /// The state; without one the VM boots a program.
    #[serde(default)]
    pub saved: Option<SavedOptions>,
}

/// See [`ManagedOptions::saved`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedOptions {
    /// The template's file.
    pub template_fd: i32,
    /// Its digest, which whoever starts this process has checked.
    pub template: Digest,
    /// What the instance differs by; without one it is as its template.
    #[serde(default)]
    pub delta_fd: Option<i32>,
}

/// The same, with the descriptors taken.
#[derive(Debug)]
pub struct Managed {
    control: OwnedFd,
    owner: Digest,
    image: Digest,
    uuid: Uuid,
    generation: u64,
    saved: Option<Saved>,
}

#[derive(Debug)]
struct Saved {
    template: File,
    digest: Digest,
    delta: Option<File>,
}

impl Managed {
    /// Takes the descriptors with `take`.
    ///
    /// # Errors
    /// As `take`.
    pub fn new(
        options: &ManagedOptions,
        mut take: impl FnMut(i32) -> Result<OwnedFd, Failure>,
    ) -> Result<Self, Failure> {
        let control = take(options.control_fd)?;
        let saved = match &options.saved {
            Some(saved) => Some(Saved {
                template: take(saved.template_fd)?.into(),
                digest: saved.template,
                delta: saved.delta_fd.map(&mut take).transpose()?.map(File::from),
            }),
            None => None,
        };
        let ManagedOptions { owner, image, uuid, generation, .. } = *options;
        Ok(Self { control, owner, image, uuid, generation, saved })
    }

    /// Uuid of the instance.
    pub(crate) fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// What the VM process has to keep.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let saved = self.saved.iter();
        let files = saved.flat_map(|saved| std::iter::once(&saved.template).chain(&saved.delta)).map(AsFd::as_fd);
        std::iter::once(self.control.as_fd()).chain(files)
    }
}

/// Tells a controller of the VM's end, if one is there; the broker is told in any case.
struct Watching(Arc<Shared>);

impl Watcher for Watching {
    fn ended(&self, end: &End) {
        self.0.event(&ended(end));
    }

    fn unlinked(&self, _: &str) {
        // Its VM ends with a broker.
    }
}

/// From descriptors to the end of the process.
pub(crate) fn run_for_broker(mut given: Given, parent: Pid) -> ! {
    let managed = given.managed.take().expect("the caller has looked");
    let link = given.link.as_fd().try_clone_to_owned();
    let link = link.unwrap_or_else(|error| fail(given.link.as_fd(), &error.to_string()));
    let worker = prepare(given, managed, parent).unwrap_or_else(|failure| fail(link.as_fd(), &failure.to_string()));
    drop(link);
    worker.run()
}

fn prepare(given: Given, managed: Managed, parent: Pid) -> Result<Worker, Failure> {
    let Managed { control, owner, image, uuid, generation, saved } = managed;
    let resources = Resources::open(given.kvm).map_err(refused)?;
    resources.tie_to_broker(parent, given.link.as_fd()).map_err(refused)?;
    let shared = super::confine(control, resources.pager())?;
    let mut worker = Worker::new(Arc::clone(&shared));
    let origin =
        Origin { resources, image: given.image, image_bytes: given.image_bytes, link: Link::Broker(given.link) };
    let instance = Instance { uuid, generation, host_name: given.program.hostname.clone() };
    let vm = match saved {
        None => {
            let watcher = Box::new(Watching(shared));
            Vm::boot(origin, owner, image, given.memory_limit_bytes, &given.program, watcher)
        }
        Some(saved) => restore(origin, saved, &instance, owner, &shared),
    };
    worker.set_vm(vm.map_err(refused)?, State::Running, uuid, Some(Identity { uuid, generation }));
    Ok(worker)
}

fn refused(refusal: Refusal) -> Failure {
    Failure::new(refusal.to_string())
}

fn restore(
    origin: Origin,
    saved: Saved,
    instance: &Instance,
    owner: Digest,
    shared: &Arc<Shared>,
) -> Result<Vm, Refusal> {
    let host = |error: std::io::Error| Refusal::Host(error.to_string());
    let watcher = Box::new(Watching(Arc::clone(shared)));
    let (head, bytes) = read_head(&saved.template, super::worker::TEMPLATE_MAX_BYTES).map_err(host)?;
    let delta_head = saved.delta.as_ref().map(|delta| read_head(delta, super::worker::DELTA_MAX_BYTES));
    let delta_head = delta_head.transpose().map_err(host)?;
    let reader = Reader::of_head(&head, bytes)?.expect(Kind::Template)?.named(saved.digest)?;
    let metadata = reader.metadata();
    if metadata.machine.owner != owner {
        let text = format!("the template belongs to owner {}, not {owner}", metadata.machine.owner);
        return Err(crate::snapshot::BadSnapshot::Mismatch(text).into());
    }
    let template = (saved.digest, &reader, TemplateMemory::Own(saved.template));
    // The host writes all page tables: the vCPU of a new process has not run.
    let mut vm = Vm::prepare(origin, template, None, Readiness::NeverRun, watcher)?;
    // From here on a page that can't be had ends the VM.
    shared.lock().handle = Some(vm.handle());
    let delta =
        delta_head.as_ref().map(|(head, bytes)| Reader::of_head(head, *bytes)?.expect(Kind::Delta)).transpose()?;
    vm.restore(delta.as_ref().zip(saved.delta), instance, None, &Whole::of(metadata)?)?;
    Ok(vm)
}

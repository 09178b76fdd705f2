//! /dev/vmgenid: 16 bytes that are others after each restore, before the first instruction of any program, as those that a
//! hypervisor's VM generation counter shows to a Linux kernel. They can be read and mapped; poll(2) says that they have
//! changed since they were read last, or since the device was opened.

use super::device_metadata;
use crate::errno::{Errno, Result};
use crate::fs::device::make;
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::inode::Metadata;
use crate::mm::addr::PAGE_BYTES;
use crate::mm::frame::Frame;
use crate::mm::pages::{Access, Page, PageSource};
use crate::mm::space::SharedMemory;
use crate::mm::user::Dest;
use crate::random;
use crate::wait::{Events, WaitQueue};
use alloc::rc::Rc;
use alloc::string::String;
use core::any::Any;
use core::cell::{Cell, RefCell};

/// Minor number under the major one of miscellaneous devices; see [`super::vsock::MINOR`].
pub(super) const MINOR: u32 = 259;
const ID_BYTES: usize = 16;

/// The page that programs map. There is none until the device is opened.
struct Generation {
    memory: Rc<SharedMemory>,
    frame: Frame,
    /// How often it was renewed.
    changes: Cell<u64>,
    queue: Rc<WaitQueue>,
}

crate::global! {
    static GENERATION: RefCell<Option<Rc<Generation>>> = RefCell::new(None);
}

impl Generation {
    fn get() -> Result<Rc<Self>> {
        if let Some(there) = GENERATION.with(|generation| generation.borrow().clone()) {
            return Ok(there);
        }
        let memory = SharedMemory::new(PAGE_BYTES);
        let Ok(Page::Frame(frame)) = memory.page(0, Access::Write) else { return Err(Errno::ENOMEM) };
        let new = Rc::new(Self { memory, frame, changes: Cell::new(0), queue: WaitQueue::new() });
        new.draw();
        GENERATION.with(|generation| generation.replace(Some(Rc::clone(&new))));
        Ok(new)
    }

    fn draw(&self) {
        let mut id = [0; ID_BYTES];
        random::fill(&mut id);
        self.frame.write(0, &id);
    }
}

/// The VM goes on in another place, or a second time.
pub fn renew() {
    if let Some(generation) = GENERATION.with(|generation| generation.borrow().clone()) {
        generation.draw();
        generation.changes.set(generation.changes.get().wrapping_add(1));
        generation.queue.wake(Events::READABLE);
    }
}

/// Opens the device.
///
/// # Errors
/// EACCES for writing, ENOMEM.
pub(super) fn open(flags: OpenFlags) -> Result<Rc<dyn FileOps>> {
    if flags.writable() {
        return Err(Errno::EACCES);
    }
    let generation = Generation::get()?;
    let seen = Cell::new(generation.changes.get());
    Ok(Rc::new(Opened { generation, seen }))
}

struct Opened {
    generation: Rc<Generation>,
    /// How often it had been renewed when it was read here.
    seen: Cell<u64>,
}

impl FileOps for Opened {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, _file: &OpenFile, dst: &mut Dest<'_>, _offset: u64) -> Result<usize> {
        let mut id = [0; ID_BYTES];
        self.generation.frame.read(0, &mut id);
        let len = dst.put(&id[..dst.remaining().min(ID_BYTES)])?;
        self.seen.set(self.generation.changes.get());
        Ok(len)
    }

    fn poll(&self, _file: &OpenFile) -> Events {
        if self.seen.get() == self.generation.changes.get() { Events::empty() } else { Events::READABLE }
    }

    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        Some(Rc::clone(&self.generation.queue))
    }

    fn pages(&self) -> Option<Rc<dyn PageSource>> {
        Some(Rc::clone(&self.generation.memory) as Rc<dyn PageSource>)
    }

    fn metadata(&self) -> Metadata {
        // Only ever opened through an inode, whose metadata counts.
        device_metadata(make(10, MINOR), 0o444)
    }

    fn describe(&self) -> String {
        String::from("device")
    }
}

//! epoll(7).
//!
//! An [`Epoll`] owns its [`Item`]s, one per descriptor and open file description; each is registered in its file's wait
//! queue and puts itself on the ready list when that is woken. Waiting looks at the ready list only, so its cost does not
//! depend on how many descriptors are registered. A file knows the items that watch it by [`Link`]s among its attachments:
//! they are dropped with the file, and so end the registrations.

mod graph;

use super::anon;
use crate::errno::{Errno, Result};
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::inode::Metadata;
use crate::task::sched::{Sleep, WaitError, wait_until_exclusive};
use crate::time::Instant;
use crate::wait::{Events, Registration, WaitQueue, Wake};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use bitflags::bitflags;
use core::any::Any;
use core::cell::{Cell, RefCell};
use core::fmt::Write as _;

bitflags! {
    /// How a descriptor is watched: the upper bits of `epoll_event.events`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Mode: u32 {
        /// Wake only one of the epoll descriptors that watch the file.
        const EXCLUSIVE = 1 << 28;
        /// Has no effect: it needs CAP_BLOCK_SUSPEND and a machine that suspends.
        const WAKEUP = 1 << 29;
        /// Report once, then stay silent until modified.
        const ONESHOT = 1 << 30;
        /// Report changes rather than states.
        const EDGE = 1 << 31;
    }
}

/// Interest in a descriptor: `struct epoll_event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// What to report.
    pub events: Events,
    /// How.
    pub mode: Mode,
    /// Given back with the event.
    pub data: u64,
}

impl Interest {
    /// The interest that `struct epoll_event` states. Unknown bits have no effect.
    #[must_use]
    pub fn new(events: u32, data: u64) -> Self {
        Self { events: Events::from_bits_truncate(events), mode: Mode::from_bits_truncate(events), data }
    }

    /// Errors and hang-ups are always reported.
    fn with_errors(self) -> Self {
        Self { events: self.events | Events::ERR | Events::HUP, ..self }
    }
}

/// Something to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// What is ready.
    pub events: Events,
    /// From the [`Interest`].
    pub data: u64,
}

/// A registered file is found by descriptor number and open file description.
type Key = (i32, *const OpenFile);

/// Most registrations in the system (fs.epoll.max_user_watches).
const MAX_ITEMS: usize = 1 << 17;

crate::global! {
    static ITEMS: Cell<usize> = Cell::new(0);
}

struct Item {
    key: Key,
    me: Weak<Item>,
    epoll: Weak<Epoll>,
    file: Weak<OpenFile>,
    interest: Cell<Interest>,
    /// After a oneshot report: silent until modified.
    disabled: Cell<bool>,
    /// Whether it is on the ready list.
    listed: Cell<bool>,
    registration: RefCell<Option<Registration>>,
}

/// An epoll instance.
pub struct Epoll {
    me: Weak<Epoll>,
    items: RefCell<BTreeMap<Key, Rc<Item>>>,
    ready: RefCell<VecDeque<Rc<Item>>>,
    /// Waiting threads (exclusive: one event wakes one of them).
    waiters: Rc<WaitQueue>,
    /// Those that poll the epoll descriptor itself.
    pollers: Rc<WaitQueue>,
    /// Its open file description: there is only one.
    file: RefCell<Weak<OpenFile>>,
}

/// What a watched file carries for every item. Dropped with the file, it removes the item.
struct Link {
    epoll: Weak<Epoll>,
    key: Key,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(epoll) = self.epoll.upgrade() {
            epoll.remove(self.key);
        }
    }
}

/// Opens a new epoll instance.
#[must_use]
pub fn epoll() -> Rc<OpenFile> {
    let epoll = Rc::new_cyclic(|me| Epoll {
        me: Weak::clone(me),
        items: RefCell::default(),
        ready: RefCell::default(),
        waiters: WaitQueue::new(),
        pollers: WaitQueue::new(),
        file: RefCell::default(),
    });
    let file = OpenFile::anonymous(epoll.clone(), OpenFlags::RDWR);
    *epoll.file.borrow_mut() = Rc::downgrade(&file);
    file
}

impl Item {
    /// What the file is ready for that is of interest.
    fn ready(&self) -> Events {
        match self.file.upgrade() {
            Some(file) if !self.disabled.get() => file.poll() & self.interest.get().events,
            _ => Events::empty(),
        }
    }

    /// Takes the item off its file's list of attachments.
    fn unlink(&self) {
        let Some(file) = self.file.upgrade() else { return };
        let mut attachments = file.attachments.borrow_mut();
        let mine = attachments.iter().position(|attachment| {
            let link = attachment.downcast_ref::<Link>();
            link.is_some_and(|link| link.key == self.key && link.epoll.ptr_eq(&self.epoll))
        });
        let link = mine.map(|index| attachments.swap_remove(index));
        drop(attachments);
        drop(link);
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        ITEMS.with(|items| items.set(items.get() - 1));
    }
}

impl Wake for Item {
    fn wake(&self, events: Events) -> bool {
        let interest = self.interest.get();
        if self.disabled.get() || (!events.is_empty() && !events.intersects(interest.events)) {
            return false;
        }
        let (Some(item), Some(epoll)) = (self.me.upgrade(), self.epoll.upgrade()) else { return false };
        let somebody_waits = epoll.list(&item);
        somebody_waits || !interest.mode.contains(Mode::EXCLUSIVE)
    }
}

impl Epoll {
    /// The epoll instance behind an open file.
    ///
    /// # Errors
    /// EINVAL if it is none.
    pub fn of(file: &OpenFile) -> Result<&Self> {
        file.ops.as_any().downcast_ref().ok_or(Errno::EINVAL)
    }

    /// Puts the item on the ready list and wakes a waiter. Returns whether anybody was waiting.
    fn list(&self, item: &Rc<Item>) -> bool {
        if !item.listed.replace(true) {
            self.ready.borrow_mut().push_back(Rc::clone(item));
        }
        let somebody_waits = !self.waiters.is_empty();
        self.waiters.wake(Events::IN);
        self.pollers.wake(Events::READABLE);
        somebody_waits
    }

    fn find(&self, key: Key) -> Option<Rc<Item>> {
        self.items.borrow().get(&key).cloned()
    }

    /// Removes an item and all that leads to it. Returns whether there was one.
    fn remove(&self, key: Key) -> bool {
        let Some(item) = self.items.borrow_mut().remove(&key) else { return false };
        item.registration.take();
        if item.listed.replace(false) {
            self.ready.borrow_mut().retain(|listed| !Rc::ptr_eq(listed, &item));
        }
        item.unlink();
        true
    }

    /// EPOLL_CTL_ADD of what `fd` refers to.
    ///
    /// # Errors
    /// EPERM, EINVAL, EEXIST, ENOSPC, ELOOP, as epoll_ctl(2) says.
    pub fn add(&self, fd: i32, file: &Rc<OpenFile>, interest: Interest) -> Result<()> {
        let queue = self.check_target(file)?;
        let exclusive = interest.mode.contains(Mode::EXCLUSIVE);
        if exclusive {
            let allowed = Events::IN | Events::OUT | Events::ERR | Events::HUP;
            if !allowed.contains(interest.events) || interest.mode.contains(Mode::ONESHOT) || Self::of(file).is_ok() {
                return Err(Errno::EINVAL);
            }
        }
        let key: Key = (fd, Rc::as_ptr(file));
        if self.find(key).is_some() {
            return Err(Errno::EEXIST);
        }
        graph::check_depth(self, file)?;
        if ITEMS.with(Cell::get) >= MAX_ITEMS {
            return Err(Errno::ENOSPC);
        }
        ITEMS.with(|items| items.set(items.get() + 1));
        let item = Rc::new_cyclic(|me| Item {
            key,
            me: Weak::clone(me),
            epoll: Weak::clone(&self.me),
            file: Rc::downgrade(file),
            interest: Cell::new(interest.with_errors()),
            disabled: Cell::new(false),
            listed: Cell::new(false),
            registration: RefCell::new(None),
        });
        let registration = queue.register(item.clone(), exclusive);
        item.registration.replace(Some(registration));
        self.items.borrow_mut().insert(key, Rc::clone(&item));
        file.attachments.borrow_mut().push(Rc::new(Link { epoll: Weak::clone(&self.me), key }));
        graph::check_paths(self, file).inspect_err(|_| {
            self.remove(key);
        })?;
        if !item.ready().is_empty() {
            self.list(&item);
        }
        Ok(())
    }

    /// EPOLL_CTL_MOD.
    ///
    /// # Errors
    /// EPERM, EINVAL, ENOENT, as epoll_ctl(2) says.
    pub fn modify(&self, fd: i32, file: &Rc<OpenFile>, interest: Interest) -> Result<()> {
        self.check_target(file)?;
        if interest.mode.contains(Mode::EXCLUSIVE) {
            return Err(Errno::EINVAL);
        }
        let item = self.find((fd, Rc::as_ptr(file))).ok_or(Errno::ENOENT)?;
        if item.interest.get().mode.contains(Mode::EXCLUSIVE) {
            return Err(Errno::EINVAL);
        }
        item.interest.set(interest.with_errors());
        item.disabled.set(false);
        if !item.ready().is_empty() {
            self.list(&item);
        }
        Ok(())
    }

    /// EPOLL_CTL_DEL.
    ///
    /// # Errors
    /// EPERM, EINVAL, ENOENT, as epoll_ctl(2) says.
    pub fn delete(&self, fd: i32, file: &Rc<OpenFile>) -> Result<()> {
        self.check_target(file)?;
        if self.remove((fd, Rc::as_ptr(file))) { Ok(()) } else { Err(Errno::ENOENT) }
    }

    /// EPERM for what can't be watched, EINVAL for the epoll descriptor itself.
    fn check_target(&self, file: &OpenFile) -> Result<Rc<WaitQueue>> {
        let queue = file.ops.wait_queue().ok_or(Errno::EPERM)?;
        if core::ptr::addr_eq(core::ptr::from_ref(self), Rc::as_ptr(&file.ops)) {
            return Err(Errno::EINVAL);
        }
        Ok(queue)
    }

    /// Hands up to `max` events to `report`: what is ready now, in the order in which it became ready. What is still
    /// ready (level) stands behind all others afterwards, so nobody is starved. Returns how many there were.
    ///
    /// # Errors
    /// That of `report`, if it took none; what it did not take stays ready.
    fn collect(&self, max: usize, mut report: impl FnMut(usize, Report) -> Result<()>) -> Result<usize> {
        let mut reported = 0;
        let listed = self.ready.borrow().len();
        for _ in 0..listed {
            if reported == max {
                break;
            }
            let Some(item) = self.ready.borrow_mut().pop_front() else { break };
            item.listed.set(false);
            let events = item.ready();
            if events.is_empty() {
                continue;
            }
            let interest = item.interest.get();
            if let Err(error) = report(reported, Report { events, data: interest.data }) {
                item.listed.set(true);
                self.ready.borrow_mut().push_front(item);
                return if reported > 0 { Ok(reported) } else { Err(error) };
            }
            reported += 1;
            if interest.mode.contains(Mode::ONESHOT) {
                item.disabled.set(true);
            } else if !interest.mode.contains(Mode::EDGE) && !item.listed.replace(true) {
                self.ready.borrow_mut().push_back(item);
            }
        }
        Ok(reported)
    }

    /// epoll_wait(2): hands 1 to `max` events to `report` with their index, or none once `deadline` has passed.
    ///
    /// # Errors
    /// EINTR, or the error of `report`.
    pub fn wait(
        &self,
        max: usize,
        deadline: Option<Instant>,
        mut report: impl FnMut(usize, Report) -> Result<()>,
    ) -> Result<usize> {
        let found = wait_until_exclusive(&[&self.waiters], deadline, Sleep::Interruptible, || {
            let found = self.collect(max, &mut report);
            (found != Ok(0)).then_some(found)
        });
        // Others may be able to use what is left (or still) ready.
        if !self.ready.borrow().is_empty() {
            self.waiters.wake(Events::IN);
        }
        match found {
            Ok(found) => found,
            Err(WaitError::TimedOut) => Ok(0),
            Err(WaitError::Interrupted) => Err(Errno::EINTR),
        }
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        for item in self.items.take().into_values() {
            item.registration.take();
            item.unlink();
        }
    }
}

impl FileOps for Epoll {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn can_read(&self) -> bool {
        false
    }

    fn can_write(&self) -> bool {
        false
    }

    fn poll(&self, _file: &OpenFile) -> Events {
        loop {
            let Some(item) = self.ready.borrow().front().cloned() else { return Events::empty() };
            if !item.ready().is_empty() {
                return Events::READABLE;
            }
            if item.listed.replace(false) {
                self.ready.borrow_mut().retain(|listed| !Rc::ptr_eq(listed, &item));
            }
        }
    }

    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        Some(Rc::clone(&self.pollers))
    }

    fn ioctl(&self, _: &OpenFile, _: u32, _: u64) -> Result<u64> {
        Err(Errno::EINVAL)
    }

    fn metadata(&self) -> Metadata {
        anon::metadata()
    }

    fn describe(&self) -> String {
        String::from("anon_inode:[eventpoll]")
    }

    fn fdinfo(&self) -> String {
        let mut text = String::new();
        for item in self.items.borrow().values() {
            let Some(file) = item.file.upgrade() else { continue };
            let interest = item.interest.get();
            let meta = file.metadata();
            let events = if item.disabled.get() { 0 } else { interest.events.bits() } | interest.mode.bits();
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "tfd: {:8} events: {events:8x} data: {:16x}  pos:{} ino:{:x} sdev:{:x}",
                item.key.0,
                interest.data,
                file.position.get(),
                meta.ino,
                meta.dev
            );
        }
        text
    }
}

#[cfg(test)]
mod tests;

//! inotify(7).
//!
//! Watches stand in one table by inode; [`crate::fs::notify`] tells of what happens while there are any. A watch keeps its
//! inode, so that its number is not given to another.

use super::anon;
use crate::errno::{Errno, Result};
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::inode::{FileType, Inode, Metadata};
use crate::fs::notify::{self, Happening};
use crate::mm::addr::UserAddr;
use crate::mm::user::{self, Dest};
use crate::task::sched::{Sleep, wait_until};
use crate::wait::{Events, WaitQueue};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, RefCell};
use core::fmt::Write as _;
use linux_raw_sys::general::{
    IN_ALL_EVENTS, IN_DELETE_SELF, IN_EXCL_UNLINK, IN_IGNORED, IN_ISDIR, IN_MASK_ADD, IN_MASK_CREATE, IN_MOVE_SELF,
    IN_ONESHOT, IN_Q_OVERFLOW, IN_UNMOUNT,
};

/// Bytes of `struct inotify_event` without its name.
const HEADER_BYTES: usize = 16;
/// fs.inotify.max_queued_events.
const MAX_QUEUED: usize = 16384;
/// fs.inotify.max_user_watches.
const MAX_WATCHES: usize = 65536;
/// fs.inotify.max_user_instances.
const MAX_INSTANCES: usize = 128;
/// Bits of a watch that are kept.
const KEPT: u32 = IN_ALL_EVENTS | IN_ONESHOT | IN_EXCL_UNLINK;

/// An inode by device and number.
type InodeKey = (u64, u64);

struct Watch {
    wd: i32,
    key: InodeKey,
    mask: Cell<u32>,
    owner: Weak<Inotify>,
    inode: Rc<dyn Inode>,
}

struct Event {
    wd: i32,
    mask: u32,
    cookie: u32,
    name: Box<[u8]>,
}

impl Event {
    fn new(wd: i32, mask: u32, cookie: u32, name: &[u8]) -> Self {
        Self { wd, mask, cookie, name: name.into() }
    }

    /// Bytes of the name with its NULs: to the next multiple of the header's size.
    fn name_bytes(&self) -> usize {
        if self.name.is_empty() { 0 } else { (self.name.len() + 1).next_multiple_of(HEADER_BYTES) }
    }

    fn bytes(&self) -> usize {
        HEADER_BYTES + self.name_bytes()
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes());
        bytes.extend_from_slice(&self.wd.to_ne_bytes());
        for word in [self.mask, self.cookie, self.name_bytes() as u32] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&self.name);
        bytes.resize(self.bytes(), 0);
        bytes
    }
}

/// An inotify instance.
pub struct Inotify {
    me: Weak<Inotify>,
    watches: RefCell<BTreeMap<i32, Rc<Watch>>>,
    last_wd: Cell<i32>,
    events: RefCell<VecDeque<Event>>,
    queue: Rc<WaitQueue>,
}

struct Table {
    watches: RefCell<BTreeMap<InodeKey, Vec<Rc<Watch>>>>,
    count: Cell<usize>,
    instances: Cell<usize>,
}

crate::global! {
    static TABLE: Table =
        Table { watches: RefCell::new(BTreeMap::new()), count: Cell::new(0), instances: Cell::new(0) };
}

/// Opens a new instance; `flags` may have O_NONBLOCK.
///
/// # Errors
/// EMFILE if there are too many.
pub fn inotify(flags: OpenFlags) -> Result<Rc<OpenFile>> {
    TABLE.with(|table| {
        if table.instances.get() >= MAX_INSTANCES {
            return Err(Errno::EMFILE);
        }
        table.instances.set(table.instances.get() + 1);
        Ok(())
    })?;
    let ops = Rc::new_cyclic(|me| Inotify {
        me: Weak::clone(me),
        watches: RefCell::default(),
        last_wd: Cell::new(0),
        events: RefCell::default(),
        queue: WaitQueue::new(),
    });
    Ok(OpenFile::anonymous(ops, flags))
}

fn key_of(inode: &Rc<dyn Inode>) -> InodeKey {
    let meta = inode.metadata();
    (meta.dev, meta.ino)
}

/// What the file systems tell.
fn happened(inode: &Rc<dyn Inode>, what: &Happening<'_>) {
    let key = key_of(inode);
    if what.event == IN_UNMOUNT {
        return unmounted(key.0);
    }
    let watches = TABLE.with(|table| table.watches.borrow().get(&key).cloned());
    for watch in watches.into_iter().flatten() {
        let mask = watch.mask.get();
        let silent = what.unlinked && mask & IN_EXCL_UNLINK != 0;
        let Some(owner) = watch.owner.upgrade() else { continue };
        if mask & what.event != 0 && !silent {
            // What happens to the watched object itself is never marked as a directory's affair.
            let own = what.event & (IN_DELETE_SELF | IN_MOVE_SELF) != 0;
            let directory = if what.directory && !own { IN_ISDIR } else { 0 };
            owner.push(Event::new(watch.wd, what.event | directory, what.cookie, what.name.unwrap_or_default()));
            if mask & IN_ONESHOT != 0 {
                owner.remove(watch.wd);
            }
        }
        if what.event & IN_DELETE_SELF != 0 {
            owner.remove(watch.wd);
        }
    }
}

/// All watches on a file system end, whatever they are for: those of its newest objects first, as on Linux.
fn unmounted(device: u64) {
    let watches: Vec<Rc<Watch>> = TABLE.with(|table| {
        let watches = table.watches.borrow();
        watches.range((device, 0)..=(device, u64::MAX)).rev().flat_map(|(_, watches)| watches).cloned().collect()
    });
    for watch in watches {
        let Some(owner) = watch.owner.upgrade() else { continue };
        let directory = if watch.inode.metadata().file_type == FileType::Directory { IN_ISDIR } else { 0 };
        owner.push(Event::new(watch.wd, IN_UNMOUNT | directory, 0, b""));
        owner.remove(watch.wd);
    }
}

impl Inotify {
    /// The instance behind an open file.
    ///
    /// # Errors
    /// EINVAL if it is none.
    pub fn of(file: &OpenFile) -> Result<&Self> {
        file.ops.as_any().downcast_ref().ok_or(Errno::EINVAL)
    }

    /// inotify_add_watch(2): gives the watch's number. Paths and permissions are the caller's affair.
    ///
    /// # Errors
    /// EINVAL, EEXIST, ENOSPC.
    pub fn add(&self, inode: &Rc<dyn Inode>, mask: u32) -> Result<i32> {
        let key = key_of(inode);
        let known = self.watches.borrow().values().find(|watch| watch.key == key).cloned();
        if let Some(watch) = known {
            if mask & IN_MASK_CREATE != 0 {
                return Err(Errno::EEXIST);
            }
            let old = if mask & IN_MASK_ADD != 0 { watch.mask.get() } else { 0 };
            watch.mask.set(old | mask & KEPT);
            return Ok(watch.wd);
        }
        if TABLE.with(|table| table.count.get()) >= MAX_WATCHES {
            return Err(Errno::ENOSPC);
        }
        // Numbers are not given again before they have all been used.
        let mut wd = self.last_wd.get();
        loop {
            wd = wd.checked_add(1).unwrap_or(1);
            if !self.watches.borrow().contains_key(&wd) {
                break;
            }
        }
        self.last_wd.set(wd);
        let mask = Cell::new(mask & KEPT);
        let watch = Rc::new(Watch { wd, key, mask, owner: Weak::clone(&self.me), inode: Rc::clone(inode) });
        self.watches.borrow_mut().insert(wd, Rc::clone(&watch));
        TABLE.with(|table| {
            table.count.set(table.count.get() + 1);
            table.watches.borrow_mut().entry(key).or_default().push(watch);
        });
        notify::listen(Some(happened));
        Ok(wd)
    }

    /// inotify_rm_watch(2), and the end of a watch for other reasons: IN_IGNORED is the last that is heard of it.
    /// Returns whether there was one.
    pub fn remove(&self, wd: i32) -> bool {
        let Some(watch) = self.watches.borrow_mut().remove(&wd) else { return false };
        unlist(&watch);
        self.push(Event::new(wd, IN_IGNORED, 0, b""));
        true
    }

    fn push(&self, event: Event) {
        let mut events = self.events.borrow_mut();
        if let Some(last) = events.back()
            && last.mask & (IN_IGNORED | IN_Q_OVERFLOW) == 0
            && (last.mask, last.wd, &last.name) == (event.mask, event.wd, &event.name)
        {
            return;
        }
        match events.len() {
            ..MAX_QUEUED => events.push_back(event),
            MAX_QUEUED => events.push_back(Event::new(-1, IN_Q_OVERFLOW, 0, b"")),
            _ => return,
        }
        drop(events);
        self.queue.wake(Events::READABLE);
    }

    /// Puts as many events as fit.
    fn take(&self, dst: &mut Dest<'_>) -> Option<Result<usize>> {
        let mut done = 0;
        loop {
            let next = self.events.borrow().front().map(Event::encode);
            let Some(bytes) = next else { break };
            if bytes.len() > dst.remaining() {
                if done == 0 {
                    return Some(Err(Errno::EINVAL));
                }
                break;
            }
            self.events.borrow_mut().pop_front();
            // As in Linux, an event that can't be stored is lost.
            if dst.put(&bytes) != Ok(bytes.len()) {
                return Some(if done == 0 { Err(Errno::EFAULT) } else { Ok(done) });
            }
            done += bytes.len();
        }
        if self.events.borrow().is_empty() {
            self.events.take();
        }
        (done > 0).then_some(Ok(done))
    }
}

/// Takes a watch out of the table.
fn unlist(watch: &Rc<Watch>) {
    let last = TABLE.with(|table| {
        let mut watches = table.watches.borrow_mut();
        if let Some(list) = watches.get_mut(&watch.key) {
            list.retain(|other| !Rc::ptr_eq(other, watch));
            if list.is_empty() {
                watches.remove(&watch.key);
            }
        }
        table.count.set(table.count.get() - 1);
        watches.is_empty()
    });
    if last {
        notify::listen(None);
    }
}

impl Drop for Inotify {
    fn drop(&mut self) {
        for watch in self.watches.take().into_values() {
            unlist(&watch);
        }
        TABLE.with(|table| table.instances.set(table.instances.get() - 1));
    }
}

impl FileOps for Inotify {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn can_write(&self) -> bool {
        false
    }

    fn read(&self, file: &OpenFile, dst: &mut Dest<'_>, _offset: u64) -> Result<usize> {
        match self.take(dst) {
            Some(result) => result,
            None if file.nonblocking() => Err(Errno::EAGAIN),
            None => wait_until(&[&self.queue], None, Sleep::Interruptible, || self.take(dst))?,
        }
    }

    fn poll(&self, _file: &OpenFile) -> Events {
        if self.events.borrow().is_empty() { Events::empty() } else { Events::READABLE }
    }

    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        Some(Rc::clone(&self.queue))
    }

    fn ioctl(&self, _file: &OpenFile, request: u32, argument: u64) -> Result<u64> {
        if request != linux_raw_sys::ioctl::FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let bytes: usize = self.events.borrow().iter().map(Event::bytes).sum();
        user::write(UserAddr(argument), &(bytes as i32))?;
        Ok(0)
    }

    fn metadata(&self) -> Metadata {
        anon::metadata()
    }

    fn describe(&self) -> String {
        String::from("anon_inode:inotify")
    }

    fn fdinfo(&self) -> String {
        let mut text = String::new();
        for watch in self.watches.borrow().values() {
            let (dev, ino) = watch.key;
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "inotify wd:{:x} ino:{ino:x} sdev:{dev:x} mask:{:x} ignored_mask:0 ",
                watch.wd,
                watch.mask.get() & !(IN_ONESHOT | IN_EXCL_UNLINK)
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::inode::{FileType, NewInode};
    use crate::fs::overlay::{Limits, Tree};
    use linux_raw_sys::general::{IN_CREATE, IN_MODIFY, IN_MOVED_FROM, IN_MOVED_TO};

    fn directory() -> Rc<dyn Inode> {
        let root = NewInode { file_type: FileType::Directory, mode: 0o755, uid: 0, gid: 0, rdev: 0 };
        Tree::tmpfs(Limits { pages: 100, metadata_bytes: 1 << 20 }, &root).expect("makes a tree")
    }

    fn file_in(directory: &Rc<dyn Inode>, name: &[u8]) -> Rc<dyn Inode> {
        let new = NewInode { file_type: FileType::Regular, mode: 0o644, uid: 0, gid: 0, rdev: 0 };
        directory.create(name, &new).expect("creates")
    }

    type Read = (i32, u32, u32, std::string::String);

    fn read(file: &OpenFile) -> Vec<Read> {
        let mut buffer = std::vec![0; 1 << 20];
        let n = match file.read(&mut Dest::kernel(&mut buffer)) {
            Ok(n) => n,
            Err(error) => {
                assert_eq!(error, Errno::EAGAIN);
                0
            }
        };
        let mut rest = &buffer[..n];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let word = |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
            let end = 16 + word(12) as usize;
            let name = rest[16..end].split(|b| *b == 0).next().unwrap_or_default();
            events.push((word(0) as i32, word(4), word(8), std::string::String::from_utf8_lossy(name).into_owned()));
            rest = &rest[end..];
        }
        events
    }

    #[test]
    fn events_of_a_directory() {
        let _thread = crate::task::testing::enter();
        let file = inotify(OpenFlags::NONBLOCK).expect("opens");
        let instance = Inotify::of(&file).expect("inotify");
        let root = directory();
        let child = file_in(&root, b"child");
        assert_eq!(instance.add(&root, IN_ALL_EVENTS), Ok(1));
        assert_eq!(instance.add(&root, IN_ALL_EVENTS | IN_MASK_CREATE), Err(Errno::EEXIST));
        assert_eq!(instance.add(&child, IN_MODIFY | IN_ONESHOT), Ok(2));
        notify::name_event(&root, b"child", &child, IN_CREATE);
        notify::name_event(&root, b"child", &child, IN_CREATE);
        notify::rename_event((&root, b"child"), (&root, b"a name of more than 16 bytes"), &child);
        let events = read(&file);
        assert_eq!(events.len(), 3, "the same again is not repeated: {events:?}");
        assert_eq!(events[0], (1, IN_CREATE, 0, "child".into()));
        assert_eq!((events[1].1, events[2].1), (IN_MOVED_FROM, IN_MOVED_TO));
        assert!(events[1].2 != 0 && events[1].2 == events[2].2, "joined by a cookie");
        assert_eq!(events[2].3, "a name of more than 16 bytes");
        notify::self_event(&child, IN_MODIFY);
        notify::self_event(&child, IN_MODIFY);
        assert_eq!(read(&file), [(2, IN_MODIFY, 0, "".into()), (2, IN_IGNORED, 0, "".into())]);
        assert!(!instance.remove(2));
        notify::self_event(&root, IN_DELETE_SELF);
        assert_eq!(read(&file), [(1, IN_DELETE_SELF, 0, "".into()), (1, IN_IGNORED, 0, "".into())]);
        assert_eq!(TABLE.with(|table| table.count.get()), 0);
    }

    #[test]
    fn masks_are_replaced_or_added_to() {
        let _thread = crate::task::testing::enter();
        let file = inotify(OpenFlags::NONBLOCK).expect("opens");
        let instance = Inotify::of(&file).expect("inotify");
        let root = directory();
        instance.add(&root, IN_CREATE).expect("adds");
        instance.add(&root, IN_MODIFY | IN_MASK_ADD).expect("adds");
        notify::self_event(&root, IN_CREATE);
        assert_eq!(read(&file).len(), 1);
        instance.add(&root, IN_MODIFY).expect("adds");
        notify::self_event(&root, IN_CREATE);
        assert_eq!(read(&file).len(), 0);
        drop(file);
        assert_eq!(TABLE.with(|table| (table.count.get(), table.instances.get())), (0, 0));
    }

    #[test]
    fn a_full_queue_says_so_once() {
        let _thread = crate::task::testing::enter();
        let file = inotify(OpenFlags::NONBLOCK).expect("opens");
        let instance = Inotify::of(&file).expect("inotify");
        let root = directory();
        let child = file_in(&root, b"child");
        instance.add(&root, IN_ALL_EVENTS).expect("adds");
        for n in 0..MAX_QUEUED + 10 {
            let name = if n % 2 == 0 { b"a" } else { b"b" };
            notify::name_event(&root, name, &child, IN_CREATE);
        }
        let mut small = [0; 31];
        assert_eq!(file.read(&mut Dest::kernel(&mut small)), Err(Errno::EINVAL));
        let events = read(&file);
        assert_eq!(events.len(), MAX_QUEUED + 1);
        assert_eq!(events[MAX_QUEUED], (-1, IN_Q_OVERFLOW, 0, "".into()));
    }
}

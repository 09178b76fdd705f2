//! Directory entries: names by which inodes were reached, with their parents.
//!
//! An entry lives as long as somebody refers to it (an open file, a working directory, a mount, an entry below it) or a
//! small cache does. All living entries are in one table, so a directory is reached as the same entry always, and a
//! rename of it is seen by everybody below. There are no negative entries: lookups in an image are cheap.

use super::inode::Inode;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::{Rc, Weak};
use core::cell::{Cell, Ref, RefCell};
use hashbrown::HashTable;

/// How many entries the cache keeps alive. Each costs some hundred bytes with its inode.
const CACHED_ENTRIES: usize = 64;

/// A directory entry. See the module's text.
pub struct Entry {
    inode: Rc<dyn Inode>,
    parent: RefCell<Option<Rc<Entry>>>,
    name: RefCell<Box<[u8]>>,
    /// Hash under which it stands in the table; `None` for roots and removed entries.
    hash: Cell<Option<u64>>,
    removed: Cell<bool>,
    recently_used: Cell<bool>,
    /// Number of mounts whose mount point this is.
    mounts: Cell<u32>,
}

struct Slot {
    hash: u64,
    entry: Weak<Entry>,
}

crate::global! {
    /// All living entries but roots, by parent and name.
    static TABLE: RefCell<HashTable<Slot>> = RefCell::new(HashTable::new());
}

crate::global! {
    /// Entries kept alive though nobody may refer to them; second chance for the recently used.
    static CACHE: RefCell<VecDeque<Rc<Entry>>> = RefCell::new(VecDeque::new());
}

fn hash_of(parent: *const Entry, name: &[u8]) -> u64 {
    // FNV-1a, seeded with the parent's address, and mixed: the table takes its top bits.
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ parent.addr() as u64;
    for byte in name {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    }
    hash ^ hash >> 32 ^ hash << 29
}

impl Entry {
    /// The root of a file system.
    #[must_use]
    pub fn root(inode: Rc<dyn Inode>) -> Rc<Self> {
        Rc::new(Self::unlisted(inode, None, b""))
    }

    fn unlisted(inode: Rc<dyn Inode>, parent: Option<Rc<Entry>>, name: &[u8]) -> Self {
        Self {
            inode,
            parent: RefCell::new(parent),
            name: RefCell::new(name.into()),
            hash: Cell::new(None),
            removed: Cell::new(false),
            recently_used: Cell::new(false),
            mounts: Cell::new(0),
        }
    }

    /// An entry that was never in its directory (O_TMPFILE): shown as `name (deleted)`.
    #[must_use]
    pub fn nameless(parent: &Rc<Entry>, name: &[u8], inode: Rc<dyn Inode>) -> Rc<Self> {
        let entry = Self::unlisted(inode, Some(Rc::clone(parent)), name);
        entry.removed.set(true);
        Rc::new(entry)
    }

    /// What it names.
    #[must_use]
    pub fn inode(&self) -> &Rc<dyn Inode> {
        &self.inode
    }

    /// The directory's entry; `None` for the root of a file system.
    #[must_use]
    pub fn parent(&self) -> Option<Rc<Entry>> {
        self.parent.borrow().clone()
    }

    /// Its name in its parent; empty for a root.
    #[must_use]
    pub fn name(&self) -> Ref<'_, [u8]> {
        Ref::map(self.name.borrow(), |name| &**name)
    }

    /// Whether the name is gone (unlinked, or replaced by a rename).
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed.get()
    }

    /// Whether something is mounted here, through whichever mount.
    #[must_use]
    pub fn is_mount_point(&self) -> bool {
        self.mounts.get() > 0
    }

    /// Counts a mount on this entry (`1`) or its end (`-1`).
    pub(super) fn count_mount(&self, change: i32) {
        self.mounts.set(self.mounts.get().saturating_add_signed(change));
    }

    /// Whether this is `other` or one of the directories above it, within one file system.
    #[must_use]
    pub fn is_ancestor_of(&self, other: &Rc<Entry>) -> bool {
        let mut at = Some(Rc::clone(other));
        while let Some(entry) = at {
            if core::ptr::eq(self, &raw const *entry) {
                return true;
            }
            at = entry.parent();
        }
        false
    }

    /// The living entry of `name` in `parent`.
    fn find(parent: &Rc<Entry>, name: &[u8]) -> Option<Rc<Entry>> {
        let hash = hash_of(Rc::as_ptr(parent), name);
        TABLE.with(|table| {
            let table = table.borrow();
            let matches = |entry: &Rc<Entry>| {
                **entry.name.borrow() == *name && entry.parent.borrow().as_ref().is_some_and(|p| Rc::ptr_eq(p, parent))
            };
            // Entries compared here are kept alive by others or by CACHE, so that none ends within the borrow.
            table
                .find(hash, |slot| slot.hash == hash && slot.entry.upgrade().as_ref().is_some_and(matches))
                .and_then(|slot| slot.entry.upgrade())
        })
    }

    /// The entry of `name` in the directory `parent`, whose inode is asked unless a living entry is known to be right.
    ///
    /// # Errors
    /// As [`Inode::lookup`].
    pub fn lookup(parent: &Rc<Entry>, name: &[u8]) -> crate::errno::Result<Rc<Entry>> {
        let known = Self::find(parent, name);
        if let Some(known) = &known
            && parent.inode.keeps_names()
        {
            known.recently_used.set(true);
            return Ok(Rc::clone(known));
        }
        let inode = match parent.inode.lookup(name) {
            Ok(inode) => inode,
            Err(error) => {
                if let Some(known) = known {
                    known.unlist();
                }
                return Err(error);
            }
        };
        if let Some(known) = known {
            if Rc::ptr_eq(&known.inode, &inode) {
                return Ok(known);
            }
            known.unlist();
        }
        Ok(Self::insert(parent, name, inode))
    }

    /// Notes that `name` in `parent` is `inode` now (it has just been found or made).
    pub fn insert(parent: &Rc<Entry>, name: &[u8], inode: Rc<dyn Inode>) -> Rc<Entry> {
        let entry = Rc::new(Self::unlisted(inode, Some(Rc::clone(parent)), name));
        entry.list();
        if parent.inode.keeps_names() {
            Self::keep(&entry);
        }
        entry
    }

    fn list(self: &Rc<Self>) {
        let hash = self.parent.borrow().as_ref().map(|parent| hash_of(Rc::as_ptr(parent), &self.name.borrow()));
        if let Some(hash) = hash {
            self.hash.set(Some(hash));
            let slot = Slot { hash, entry: Rc::downgrade(self) };
            TABLE.with(|table| {
                table.borrow_mut().insert_unique(hash, slot, |slot| slot.hash);
            });
        }
    }

    fn unlist(&self) {
        let Some(hash) = self.hash.take() else { return };
        let slot = TABLE.with(|table| {
            let mut table = table.borrow_mut();
            let found = table.find_entry(hash, |slot| core::ptr::eq(slot.entry.as_ptr(), self));
            found.ok().map(|found| found.remove().0)
        });
        drop(slot);
    }

    /// Puts an entry into the cache, and lets the longest unused one go.
    fn keep(entry: &Rc<Entry>) {
        let evicted = CACHE.with(|cache| {
            let mut cache = cache.borrow_mut();
            cache.push_back(Rc::clone(entry));
            // Ends: each turn clears a mark or evicts.
            while cache.len() > CACHED_ENTRIES {
                let oldest = cache.pop_front()?;
                if !oldest.recently_used.replace(false) {
                    return Some(oldest);
                }
                cache.push_back(oldest);
            }
            None
        });
        drop(evicted);
    }

    /// Takes entries out of the cache that `which` picks.
    pub(super) fn forget(which: impl Fn(&Rc<Entry>) -> bool) {
        let mut forgotten = alloc::vec::Vec::new();
        CACHE.with(|cache| {
            cache.borrow_mut().retain(|entry| {
                let forget = which(entry);
                if forget {
                    forgotten.push(Rc::clone(entry));
                }
                !forget
            });
        });
        // Dropped here, where nothing is borrowed.
        drop(forgotten);
    }

    /// The name has been removed from its directory: the entry lives on for those who have it open.
    pub fn remove(self: &Rc<Self>) {
        self.unlist();
        self.removed.set(true);
        Self::forget(|entry| Rc::ptr_eq(entry, self));
    }

    /// The entry has been renamed.
    pub fn moved(self: &Rc<Self>, parent: &Rc<Entry>, name: &[u8]) {
        self.unlist();
        *self.name.borrow_mut() = name.into();
        let old = self.parent.replace(Some(Rc::clone(parent)));
        self.list();
        drop(old);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.unlist();
        // Parents that end with this entry are ended one by one here: a deep tree must not recurse on a kernel stack.
        let mut parent = self.parent.take();
        while let Some(entry) = parent {
            parent = if Rc::strong_count(&entry) == 1 { entry.parent.take() } else { None };
        }
    }
}

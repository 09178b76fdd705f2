//! What is undone at exit (SEM_UNDO): a list that threads share which were made with CLONE_SYSVSEM.

use super::{SETS, caller, now_s};
use crate::task::thread::Thread;
use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};

/// Names the sets that have something to undo; they hold what.
pub struct UndoList {
    id: u64,
    sets: RefCell<BTreeSet<i32>>,
}

crate::global! {
    static NEXT_ID: Cell<u64> = Cell::new(0);
}

impl UndoList {
    /// A thread's list; it gets one if it has none.
    #[must_use]
    pub fn of(thread: &Thread) -> Rc<Self> {
        if let Some(list) = thread.undo_list.borrow().clone() {
            return list;
        }
        let id = NEXT_ID.with(|next| next.replace(next.get() + 1));
        let list = Rc::new(Self { id, sets: RefCell::default() });
        *thread.undo_list.borrow_mut() = Some(Rc::clone(&list));
        list
    }

    /// A number that no other list ever has.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn add(&self, set: i32) {
        self.sets.borrow_mut().insert(set);
    }

    /// A thread lets go of its list; the last one undoes what is in it.
    pub fn leave(thread: &Thread) {
        let list = thread.undo_list.take();
        let Some(list) = list.and_then(Rc::into_inner) else { return };
        for id in list.sets.take() {
            let Ok(set) = SETS.with(|table| table.borrow().find(id)) else { continue };
            let undone = set.state.borrow_mut().undo(list.id, caller());
            if undone {
                set.complete_pending();
                set.operated_s.set(now_s());
            }
        }
    }
}

//! Epoll instances that watch epoll instances: no cycles, no long chains, no explosion of paths.

use super::{Epoll, Link};
use crate::errno::{Errno, Result};
use crate::fs::file::OpenFile;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// How deep epoll instances may watch each other.
const MAX_DEPTH: u32 = 4;
/// How many chains of 2, 3, ... epoll instances may lead to one file; chains of one are free.
const MAX_PATHS: [u32; 4] = [500, 100, 50, 10];

/// Depth by epoll instance, for those already looked at.
type Depths = BTreeMap<*const Epoll, u32>;

/// Checks that `epoll` may watch `file` without a cycle or too long a chain.
///
/// # Errors
/// ELOOP.
pub(super) fn check_depth(epoll: &Epoll, file: &OpenFile) -> Result<()> {
    let Ok(child) = Epoll::of(file) else { return Ok(()) };
    let below = depth_below(child, epoll, 0, &mut Depths::new()).ok_or(Errno::ELOOP)?;
    let above = depth_above(epoll, 0, &mut Depths::new());
    if below + 1 + above > MAX_DEPTH { Err(Errno::ELOOP) } else { Ok(()) }
}

/// Checks, after `epoll` has begun to watch `file`, that an event of no file takes too many ways up.
///
/// # Errors
/// EINVAL.
pub(super) fn check_paths(epoll: &Epoll, file: &Rc<OpenFile>) -> Result<()> {
    if Epoll::of(file).is_err() && parents(epoll.file.borrow().upgrade().as_deref()).is_empty() {
        return Ok(());
    }
    let mut files = BTreeMap::new();
    gather(file, &mut files, 0);
    files.values().try_for_each(|file| {
        let mut counts = [0; MAX_PATHS.len()];
        parents(Some(file)).iter().try_for_each(|parent| count_paths(parent, 0, &mut counts))
    })
}

/// The epoll instances that watch `file`.
fn parents(file: Option<&OpenFile>) -> Vec<Rc<Epoll>> {
    let Some(file) = file else { return Vec::new() };
    let attachments = file.attachments.borrow();
    attachments.iter().filter_map(|a| a.downcast_ref::<Link>()?.epoll.upgrade()).collect()
}

fn children(epoll: &Epoll) -> Vec<Rc<OpenFile>> {
    epoll.items.borrow().values().filter_map(|item| item.file.upgrade()).collect()
}

/// How many levels of epoll instances are below `epoll`; `None` if `sought` is among them or there are too many.
fn depth_below(epoll: &Epoll, sought: &Epoll, level: u32, known: &mut Depths) -> Option<u32> {
    if core::ptr::eq(epoll, sought) || level > MAX_DEPTH {
        return None;
    }
    if let Some(depth) = known.get(&core::ptr::from_ref(epoll)) {
        return Some(*depth);
    }
    let mut depth = 0;
    for child in children(epoll) {
        if let Ok(child) = Epoll::of(&child) {
            depth = depth.max(1 + depth_below(child, sought, level + 1, known)?);
        }
    }
    known.insert(epoll, depth);
    Some(depth)
}

/// How many levels of epoll instances are above `epoll`.
fn depth_above(epoll: &Epoll, level: u32, known: &mut Depths) -> u32 {
    if let Some(depth) = known.get(&core::ptr::from_ref(epoll)) {
        return *depth;
    }
    if level > MAX_DEPTH {
        return 0;
    }
    let parents = parents(epoll.file.borrow().upgrade().as_deref());
    let depth = parents.iter().map(|parent| 1 + depth_above(parent, level + 1, known)).max().unwrap_or(0);
    known.insert(epoll, depth);
    depth
}

/// `file` and, if it is an epoll instance, everything that it watches directly or through others.
fn gather(file: &Rc<OpenFile>, files: &mut BTreeMap<*const OpenFile, Rc<OpenFile>>, level: u32) {
    if level > MAX_DEPTH + 1 || files.insert(Rc::as_ptr(file), Rc::clone(file)).is_some() {
        return;
    }
    if let Ok(epoll) = Epoll::of(file) {
        for child in children(epoll) {
            gather(&child, files, level + 1);
        }
    }
}

/// Counts the chains that lead upwards from `epoll`, by length.
fn count_paths(epoll: &Epoll, level: usize, counts: &mut [u32; MAX_PATHS.len()]) -> Result<()> {
    let parents = parents(epoll.file.borrow().upgrade().as_deref());
    if !parents.is_empty() {
        return parents.iter().try_for_each(|parent| count_paths(parent, level + 1, counts));
    }
    if level == 0 {
        return Ok(());
    }
    let count = counts.get_mut(level - 1).ok_or(Errno::EINVAL)?;
    *count += 1;
    if *count > MAX_PATHS[level - 1] { Err(Errno::EINVAL) } else { Ok(()) }
}

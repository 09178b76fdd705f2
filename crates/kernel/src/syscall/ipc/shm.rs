//! shmget(2), shmat(2), shmdt(2), shmctl(2).

use super::super::table::{Arg, Args, Syscall};
use super::{
    IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT, Lookup, not_negative, pair, read_change, request, write_object, write_words,
};
use crate::errno::{Errno, Result};
use crate::ipc::shm::{self, Attachment, Segment};
use crate::ipc::{Object, Want, limits};
use crate::mm::addr::{PAGE_BYTES, UserAddr};
use crate::mm::pte::Prot;
use crate::mm::space::{Area, AreaFlags, Backing, Label, MapRequest, MemoryLimits, ObjectMapping, Placement};
use crate::task::current;
use alloc::rc::Rc;
use linux_raw_sys::general::{__NR_shmat, __NR_shmctl, __NR_shmdt, __NR_shmget};

pub(crate) const CALLS: &[Syscall] = &[
    Syscall::partial(
        __NR_shmget as u16,
        "shmget",
        "SHM_HUGETLB gives ENOMEM, as where no huge pages are set aside",
        sys_shmget,
        &[Arg::Hex, Arg::Size, Arg::Mode],
    ),
    Syscall::full(__NR_shmat as u16, "shmat", sys_shmat, &[Arg::Int, Arg::Ptr, Arg::Hex]),
    Syscall::full(__NR_shmdt as u16, "shmdt", sys_shmdt, &[Arg::Ptr]),
    Syscall::full(__NR_shmctl as u16, "shmctl", sys_shmctl, &[Arg::Int, Arg::Int, Arg::Ptr]),
];

const SHM_HUGETLB: u32 = 0o4000;
const SHM_RDONLY: u32 = 0o10000;
const SHM_RND: u32 = 0o20000;
const SHM_REMAP: u32 = 0o40000;
const SHM_EXEC: u32 = 0o100_000;

const SHM_LOCK: i32 = 11;
const SHM_UNLOCK: i32 = 12;
const SHM_STAT: i32 = 13;
const SHM_INFO: i32 = 14;
const SHM_STAT_ANY: i32 = 15;

fn sys_shmget(args: Args) -> Result<u64> {
    let request = request(args, 2);
    if request.flags & SHM_HUGETLB != 0 {
        return Err(Errno::ENOMEM);
    }
    shm::get(request, args.u64(1)).map(|id| id as u64)
}

fn sys_shmat(args: Args) -> Result<u64> {
    let (id, mut addr, flags) = (not_negative(args.i32(0))?, args.u64(1), args.u32(2));
    let (fixed, replace) = (addr != 0, flags & SHM_REMAP != 0);
    if addr % PAGE_BYTES != 0 {
        if flags & SHM_RND == 0 {
            return Err(Errno::EINVAL);
        }
        addr &= !(PAGE_BYTES - 1);
        if addr == 0 && replace {
            return Err(Errno::EINVAL);
        }
    }
    if replace && !fixed {
        return Err(Errno::EINVAL);
    }
    let (writable, executable) = (flags & SHM_RDONLY == 0, flags & SHM_EXEC != 0);
    let attachment = shm::attach(id, writable, executable)?;
    let mut prot = Prot::READ;
    prot.set(Prot::WRITE, writable);
    prot.set(Prot::EXEC, executable);
    let (bytes, source) = (attachment.segment.bytes, Rc::clone(&attachment.segment.memory));
    let space = current().process.space();
    if fixed && !replace && (addr.checked_add(bytes).is_none() || space.is_mapped(addr, bytes)) {
        return Err(Errno::EINVAL);
    }
    let request = MapRequest {
        placement: if fixed { Placement::Fixed(addr) } else { Placement::Hint(0) },
        bytes,
        prot,
        flags: AreaFlags::SHARED,
        backing: Backing::Object(ObjectMapping { source, first_page: 0, label: Label::Segment(attachment) }),
        populate: false,
    };
    space.map(request, &MemoryLimits::current())
}

/// The attachment that an area is of, if the attachment's first page would lie at `start`.
fn attached_at(area: &Area, start: u64) -> Option<&Rc<Attachment>> {
    match &area.backing {
        Backing::Object(ObjectMapping { first_page, label: Label::Segment(attachment), .. })
            if area.start.checked_sub(start) == Some(first_page * PAGE_BYTES) =>
        {
            Some(attachment)
        }
        _ => None,
    }
}

/// Takes out all pieces that are left of one shmat(2) and lie where it put them.
fn sys_shmdt(args: Args) -> Result<u64> {
    let start = args.u64(0);
    let space = current().process.space();
    let areas = space.areas();
    let attachment = areas.iter().find_map(|area| attached_at(area, start)).ok_or(Errno::EINVAL)?;
    for area in &areas {
        if attached_at(area, start).is_some_and(|other| Rc::ptr_eq(other, attachment)) {
            space.unmap(area.start, area.len())?;
        }
    }
    Ok(0)
}

fn sys_shmctl(args: Args) -> Result<u64> {
    let (id, command, addr) = (not_negative(args.i32(0))?, args.i32(1), args.addr(2));
    match command {
        IPC_INFO => {
            let pages = limits::shmall_pages();
            let words = [limits::shmmax_bytes(), 1, limits::shmmni(), limits::shmmni(), pages, 0, 0, 0, 0];
            write_words(addr, words.into_iter())?;
            Ok(u64::from(shm::highest_index()))
        }
        SHM_INFO => {
            let all = shm::all();
            let total: u64 = all.iter().map(|segment| segment.bytes.div_ceil(PAGE_BYTES)).sum();
            let resident: u64 = all.iter().map(|segment| segment.memory.resident_pages()).sum();
            write_words(addr, [all.len() as u64, total, resident, 0, 0, 0].into_iter())?;
            Ok(u64::from(shm::highest_index()))
        }
        IPC_STAT => stat(id, addr, Lookup::Id),
        SHM_STAT => stat(id, addr, Lookup::Index),
        SHM_STAT_ANY => stat(id, addr, Lookup::IndexUnchecked),
        IPC_SET => {
            let change = read_change(addr)?;
            let segment = shm::find(id)?;
            segment.permissions().check_control()?;
            segment.permissions().change(change)?;
            segment.changed_s.set(crate::ipc::now_s());
            Ok(0)
        }
        IPC_RMID => {
            let segment = shm::find(id)?;
            segment.permissions().check_control()?;
            segment.remove();
            Ok(0)
        }
        SHM_LOCK => shm::find(id)?.lock().map(|()| 0),
        SHM_UNLOCK => shm::find(id)?.unlock().map(|()| 0),
        _ => Err(Errno::EINVAL),
    }
}

fn stat(id: i32, addr: UserAddr, lookup: Lookup) -> Result<u64> {
    let segment = if lookup == Lookup::Id { shm::find(id) } else { shm::at_index(id) }?;
    if lookup != Lookup::IndexUnchecked {
        segment.permissions().check(Want::READ)?;
    }
    write_object(addr, segment.permissions(), &words(&segment))?;
    Ok(if lookup == Lookup::Id { 0 } else { segment.permissions().id as u64 })
}

/// `struct shmid64_ds` behind its permissions.
fn words(segment: &Segment) -> [u64; 8] {
    [
        segment.bytes,
        segment.attached_s.get().cast_unsigned(),
        segment.detached_s.get().cast_unsigned(),
        segment.changed_s.get().cast_unsigned(),
        pair(segment.creator_pid, segment.last_pid.get()),
        segment.attachments.get(),
        0,
        0,
    ]
}

//! Memory: mmap(2) and what belongs to it.

use super::table::{Arg, Args, Syscall};
use crate::errno::{Errno, Result};
use crate::fs::file::OpenFile;
use crate::mm::addr::{PAGE_BYTES, USER_END, UserAddr};
use crate::mm::pte::Prot;
use crate::mm::space::{
    AddressSpace, AreaFlags, Backing, Label, MapRequest, MemoryLimits, Move, ObjectMapping, Placement, SharedMemory,
};
use crate::mm::user;
use crate::task;
use alloc::rc::Rc;
use linux_raw_sys::general as linux;

const NO_KSM_OR_GUARDS: &str = "MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_COLLAPSE, MADV_GUARD_INSTALL and MADV_GUARD_REMOVE give EINVAL; up to four pages \
     that MADV_DONTNEED or MADV_FREE names are zeroed and stay resident while memory is plenty";

pub(super) const CALLS: &[Syscall] = &[
    Syscall::partial(
        linux::__NR_mmap as u16,
        "mmap",
        "MAP_HUGETLB gives ENOMEM, as where no huge pages are set aside",
        sys_mmap,
        &[Arg::Ptr, Arg::Size, Arg::MmapProt, Arg::MmapFlags, Arg::Fd, Arg::Hex],
    ),
    Syscall::full(linux::__NR_munmap as u16, "munmap", sys_munmap, &[Arg::Ptr, Arg::Size]),
    Syscall::full(linux::__NR_mprotect as u16, "mprotect", sys_mprotect, &[Arg::Ptr, Arg::Size, Arg::MmapProt]),
    Syscall::full(
        linux::__NR_mremap as u16,
        "mremap",
        sys_mremap,
        &[Arg::Ptr, Arg::Size, Arg::Size, Arg::MremapFlags, Arg::Ptr],
    ),
    Syscall::full(linux::__NR_brk as u16, "brk", sys_brk, &[Arg::Ptr]),
    Syscall::partial(
        linux::__NR_madvise as u16,
        "madvise",
        NO_KSM_OR_GUARDS,
        sys_madvise,
        &[Arg::Ptr, Arg::Size, Arg::Madvise],
    ),
    Syscall::full(linux::__NR_mincore as u16, "mincore", sys_mincore, &[Arg::Ptr, Arg::Size, Arg::Ptr]),
    Syscall::full(linux::__NR_msync as u16, "msync", sys_msync, &[Arg::Ptr, Arg::Size, Arg::Hex]),
    Syscall::full(linux::__NR_mlock as u16, "mlock", sys_mlock, &[Arg::Ptr, Arg::Size]),
    Syscall::full(linux::__NR_mlock2 as u16, "mlock2", sys_mlock2, &[Arg::Ptr, Arg::Size, Arg::Hex]),
    Syscall::full(linux::__NR_munlock as u16, "munlock", sys_munlock, &[Arg::Ptr, Arg::Size]),
    Syscall::full(linux::__NR_mlockall as u16, "mlockall", sys_mlockall, &[Arg::Hex]),
    Syscall::full(linux::__NR_munlockall as u16, "munlockall", sys_munlockall, &[]),
    Syscall::partial(
        linux::__NR_pkey_mprotect as u16,
        "pkey_mprotect",
        NO_KEYS,
        sys_pkey_mprotect,
        &[Arg::Ptr, Arg::Size, Arg::MmapProt, Arg::Int],
    ),
    Syscall::partial(linux::__NR_pkey_alloc as u16, "pkey_alloc", NO_KEYS, sys_pkey_none, &[Arg::Hex, Arg::Hex]),
    Syscall::partial(linux::__NR_pkey_free as u16, "pkey_free", NO_KEYS, sys_pkey_none, &[Arg::Int]),
];

const NO_KEYS: &str = "as on a processor without protection keys: only pkey_mprotect without a key works";

fn space() -> Rc<AddressSpace> {
    task::current().process.space()
}

/// mmap(2) ignores protection bits that it does not know.
fn prot_of_mmap(bits: u64) -> Prot {
    Prot::from_bits_truncate(bits as u32)
}

fn placement(addr: u64, flags: u32) -> Placement {
    if flags & linux::MAP_FIXED_NOREPLACE != 0 {
        Placement::Exactly(addr)
    } else if flags & linux::MAP_FIXED != 0 {
        Placement::Fixed(addr)
    } else if flags & linux::MAP_32BIT != 0 {
        Placement::Low(addr)
    } else {
        Placement::Hint(addr)
    }
}

fn sys_mmap(args: Args) -> Result<u64> {
    let (addr, bytes, flags) = (args.u64(0), args.u64(1), args.u32(3));
    let prot = prot_of_mmap(args.u64(2));
    let offset = args.u64(5);
    if !offset.is_multiple_of(PAGE_BYTES) {
        return Err(Errno::EINVAL);
    }
    let anonymous = flags & linux::MAP_ANONYMOUS != 0;
    let file = if anonymous { None } else { Some(task::current().files().opened(args.i32(4))?) };
    let fixed = flags & (linux::MAP_FIXED | linux::MAP_FIXED_NOREPLACE) != 0;
    if bytes > u64::MAX - PAGE_BYTES {
        return Err(Errno::ENOMEM);
    }
    if bytes == 0 || fixed && !addr.is_multiple_of(PAGE_BYTES) {
        return Err(Errno::EINVAL);
    }
    if flags & linux::MAP_FIXED_NOREPLACE != 0 && space().is_mapped(addr, bytes) {
        return Err(Errno::EEXIST); // before any look at what shall be mapped
    }
    if flags & linux::MAP_HUGETLB != 0 && (anonymous || file.is_some()) {
        return Err(if anonymous { Errno::ENOMEM } else { Errno::EINVAL });
    }
    let shared = match flags & linux::MAP_TYPE {
        linux::MAP_SHARED => true,
        linux::MAP_SHARED_VALIDATE if file.is_some() => {
            if flags & !(SHARED_VALIDATE_KNOWN) != 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            true
        }
        linux::MAP_PRIVATE => false,
        _ => return Err(Errno::EINVAL),
    };
    let mut area_flags = AreaFlags::empty();
    area_flags.set(AreaFlags::SHARED, shared);
    area_flags.set(AreaFlags::NORESERVE, flags & linux::MAP_NORESERVE != 0);
    area_flags.set(AreaFlags::LOCKED, flags & linux::MAP_LOCKED != 0);
    let limits = MemoryLimits::current();
    if area_flags.contains(AreaFlags::LOCKED) && limits.locked == 0 {
        return Err(Errno::EPERM);
    }
    if flags & linux::MAP_GROWSDOWN != 0 {
        if shared || file.is_some() {
            return Err(Errno::EINVAL);
        }
        area_flags |= AreaFlags::GROWSDOWN;
    }
    let backing = match &file {
        Some(file) => backing_of(file, prot, shared, bytes, offset)?,
        None if shared => zeros(bytes),
        None => Backing::Anonymous,
    };
    let request = MapRequest {
        placement: placement(addr, flags),
        bytes,
        prot,
        flags: area_flags,
        backing,
        populate: flags & linux::MAP_POPULATE != 0 && flags & linux::MAP_NONBLOCK == 0,
    };
    space().map(request, &limits)
}

/// What MAP_SHARED_VALIDATE knows; with others it gives EOPNOTSUPP (MAP_SYNC among them: no file is on such memory).
const SHARED_VALIDATE_KNOWN: u32 = linux::MAP_TYPE
    | linux::MAP_FIXED
    | linux::MAP_ANONYMOUS
    | linux::MAP_DENYWRITE
    | linux::MAP_EXECUTABLE
    | linux::MAP_UNINITIALIZED
    | linux::MAP_GROWSDOWN
    | linux::MAP_LOCKED
    | linux::MAP_NORESERVE
    | linux::MAP_POPULATE
    | linux::MAP_NONBLOCK
    | linux::MAP_STACK
    | linux::MAP_HUGETLB
    | linux::MAP_32BIT;

fn zeros(bytes: u64) -> Backing {
    let source = SharedMemory::new(bytes);
    Backing::Object(ObjectMapping { source, first_page: 0, label: Label::Name("/dev/zero (deleted)") })
}

fn backing_of(file: &Rc<OpenFile>, prot: Prot, shared: bool, bytes: u64, offset: u64) -> Result<Backing> {
    let flags = file.flags.get();
    if offset.checked_add(bytes).is_none_or(|end| end > i64::MAX as u64) {
        return Err(Errno::EOVERFLOW);
    }
    if !flags.readable() || shared && prot.contains(Prot::WRITE) && !flags.writable() {
        return Err(Errno::EACCES);
    }
    if file.location.is_none() && prot.contains(Prot::EXEC) {
        return Err(Errno::EPERM); // pipes, sockets and their like are on file systems without execution
    }
    let source = file.ops.pages().ok_or(Errno::ENODEV)?;
    if source.is_zeros() {
        return Ok(if shared { zeros(bytes) } else { Backing::Anonymous });
    }
    if shared && prot.contains(Prot::WRITE) {
        source.check_writable_mapping()?;
    }
    Ok(Backing::Object(ObjectMapping { source, first_page: offset / PAGE_BYTES, label: Label::File(Rc::clone(file)) }))
}

fn sys_munmap(args: Args) -> Result<u64> {
    space().unmap(args.u64(0), args.u64(1)).map(|()| 0)
}

fn sys_mprotect(args: Args) -> Result<u64> {
    protect(args.u64(0), args.u64(1), args.u64(2))
}

fn protect(mut start: u64, mut bytes: u64, bits: u64) -> Result<u64> {
    const GROWS: u64 = (linux::PROT_GROWSDOWN | linux::PROT_GROWSUP) as u64;
    const KNOWN: u64 = (linux::PROT_READ | linux::PROT_WRITE | linux::PROT_EXEC | linux::PROT_SEM) as u64 | GROWS;
    if bits & !KNOWN != 0 || bits & GROWS == GROWS || !start.is_multiple_of(PAGE_BYTES) {
        return Err(Errno::EINVAL);
    }
    if bytes == 0 {
        return Ok(0);
    }
    let space = space();
    if bits & GROWS != 0 {
        // mprotect(2): the change goes on to the start of an area that grows down. None grows up on x86.
        let area = space.area_at(start).ok_or(Errno::ENOMEM)?;
        if bits & u64::from(linux::PROT_GROWSUP) != 0 || !area.flags.contains(AreaFlags::GROWSDOWN) {
            return Err(Errno::EINVAL);
        }
        bytes = bytes.checked_add(start - area.start).ok_or(Errno::ENOMEM)?;
        start = area.start;
    }
    space.protect(start, bytes, Prot::from_bits_truncate(bits as u32), &MemoryLimits::current())?;
    Ok(0)
}

fn sys_pkey_mprotect(args: Args) -> Result<u64> {
    if args.i32(3) != -1 {
        return Err(Errno::EINVAL);
    }
    protect(args.u64(0), args.u64(1), args.u64(2))
}

fn sys_pkey_none(_: Args) -> Result<u64> {
    Err(Errno::EINVAL)
}

fn sys_mremap(args: Args) -> Result<u64> {
    let (old, old_bytes, new_bytes) = (args.u64(0), args.u64(1), args.u64(2));
    let flags = args.u64(3);
    const MAY_MOVE: u64 = linux::MREMAP_MAYMOVE as u64;
    const FIXED: u64 = linux::MREMAP_FIXED as u64;
    const KEEP: u64 = linux::MREMAP_DONTUNMAP as u64;
    if flags & !(MAY_MOVE | FIXED | KEEP) != 0 || flags & (FIXED | KEEP) != 0 && flags & MAY_MOVE == 0 {
        return Err(Errno::EINVAL);
    }
    let moving = match flags & (MAY_MOVE | FIXED | KEEP) {
        0 => Move::Never,
        MAY_MOVE => Move::May,
        kept if kept & FIXED == 0 => Move::Near(args.u64(4)),
        _ => Move::To(args.u64(4)),
    };
    space().remap(old, old_bytes, new_bytes, moving, flags & KEEP != 0, &MemoryLimits::current())
}

fn sys_brk(args: Args) -> Result<u64> {
    Ok(space().set_break(args.u64(0), &MemoryLimits::current()))
}

fn sys_madvise(args: Args) -> Result<u64> {
    space().advise(args.u64(0), args.u64(1), args.u32(2)).map(|()| 0)
}

fn sys_mincore(args: Args) -> Result<u64> {
    let (start, bytes, out) = (args.u64(0), args.u64(1), args.addr(2));
    if !start.is_multiple_of(PAGE_BYTES) {
        return Err(Errno::EINVAL);
    }
    let end = start.checked_add(bytes).filter(|end| *end <= USER_END).ok_or(Errno::ENOMEM)?;
    let end = end.next_multiple_of(PAGE_BYTES);
    let mut at: UserAddr = out;
    // A page's worth of answers at a time.
    let mut chunk = [0; 256];
    let mut filled = 0;
    let space = space();
    let result = space.resident(start, end, |there| {
        chunk[filled] = there;
        filled += 1;
        if filled == chunk.len() {
            user::write_bytes(at, &chunk)?;
            at = at.offset(filled as u64);
            filled = 0;
        }
        Ok(())
    });
    // What was found before the end of the mapping is told, as on Linux.
    if filled > 0 {
        user::write_bytes(at, &chunk[..filled])?;
    }
    result.map(|()| 0)
}

fn sys_msync(args: Args) -> Result<u64> {
    let (start, bytes, flags) = (args.u64(0), args.u64(1), args.u32(2));
    const KNOWN: u32 = linux::MS_ASYNC | linux::MS_INVALIDATE | linux::MS_SYNC;
    if flags & !KNOWN != 0
        || !start.is_multiple_of(PAGE_BYTES)
        || flags & (linux::MS_ASYNC | linux::MS_SYNC) == linux::MS_ASYNC | linux::MS_SYNC
    {
        return Err(Errno::EINVAL);
    }
    // As on Linux, a length that rounds up to more than there is comes out as none.
    let bytes = bytes.wrapping_add(PAGE_BYTES - 1) & !(PAGE_BYTES - 1);
    let end = start.checked_add(bytes).ok_or(Errno::ENOMEM)?;
    if start == end {
        return Ok(0);
    }
    let space = space();
    let checked = space.check_sync(start, end, flags & linux::MS_INVALIDATE != 0);
    if flags & linux::MS_SYNC != 0 {
        for file in space.shared_files(start, end) {
            file.ops.sync()?;
        }
    }
    checked.map(|()| 0)
}

fn sys_mlock(args: Args) -> Result<u64> {
    lock(args, AreaFlags::LOCKED)
}

fn sys_mlock2(args: Args) -> Result<u64> {
    match args.u32(2) {
        0 => lock(args, AreaFlags::LOCKED),
        linux::MLOCK_ONFAULT => lock(args, AreaFlags::LOCKED | AreaFlags::LOCK_ON_FAULT),
        _ => Err(Errno::EINVAL),
    }
}

fn lock(args: Args, flags: AreaFlags) -> Result<u64> {
    let limits = MemoryLimits::current();
    if limits.locked == 0 {
        return Err(Errno::EPERM);
    }
    space().lock(args.u64(0), args.u64(1), flags, &limits).map(|()| 0)
}

fn sys_munlock(args: Args) -> Result<u64> {
    space().lock(args.u64(0), args.u64(1), AreaFlags::empty(), &MemoryLimits::current()).map(|()| 0)
}

fn sys_mlockall(args: Args) -> Result<u64> {
    const KNOWN: u32 = linux::MCL_CURRENT | linux::MCL_FUTURE | linux::MCL_ONFAULT;
    let flags = args.u32(0);
    if flags & !KNOWN != 0 || flags & (linux::MCL_CURRENT | linux::MCL_FUTURE) == 0 {
        return Err(Errno::EINVAL);
    }
    let limits = MemoryLimits::current();
    if limits.locked == 0 {
        return Err(Errno::EPERM);
    }
    let mut kind = AreaFlags::LOCKED;
    kind.set(AreaFlags::LOCK_ON_FAULT, flags & linux::MCL_ONFAULT != 0);
    let current = (flags & linux::MCL_CURRENT != 0).then_some(kind);
    let future = if flags & linux::MCL_FUTURE != 0 { kind } else { AreaFlags::empty() };
    space().lock_all(current, future, &limits).map(|()| 0)
}

fn sys_munlockall(_: Args) -> Result<u64> {
    space().lock_all(Some(AreaFlags::empty()), AreaFlags::empty(), &MemoryLimits::current()).map(|()| 0)
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::call;
    use super::*;
    use crate::mm::frame;
    use crate::mm::space::Layout;

    const PRIVATE: u64 = (linux::MAP_PRIVATE | linux::MAP_ANONYMOUS) as u64;
    const RW: u64 = 3;
    const NO_FD: u64 = u64::MAX;

    fn enter() -> Rc<AddressSpace> {
        frame::reset_hosted(256 << 20, 64 << 20);
        let space = AddressSpace::new(Layout::randomised([0x0123_4567_89ab_cdef, 7], 8 << 20)).expect("enough memory");
        let thread = task::testing::enter();
        thread.process.set_space(Some(Rc::clone(&space)));
        space
    }

    fn mmap(addr: u64, bytes: u64, prot: u64, flags: u64) -> Result<u64> {
        call(u64::from(linux::__NR_mmap), [addr, bytes, prot, flags, NO_FD, 0])
    }

    #[test]
    fn mmap_places_and_refuses_as_linux_does() {
        let space = enter();
        let a = mmap(0, 4096, RW, PRIVATE).expect("mapped");
        assert!(a < space.layout().mmap_top);
        let b = mmap(0, 4096, RW, PRIVATE).expect("mapped");
        assert_eq!(b, a - 4096, "top down");
        assert_eq!(space.areas().len(), 1, "neighbours merge");
        assert_eq!(mmap(0x1234_5000, 4096, RW, PRIVATE), Ok(0x1234_5000), "a free hint is taken");
        assert_ne!(mmap(0x1234_5000, 4096, RW, PRIVATE), Ok(0x1234_5000), "one in use is not");
        let exactly = u64::from(linux::MAP_FIXED_NOREPLACE);
        assert_eq!(mmap(0x1234_5000, 4096, RW, PRIVATE | exactly), Err(Errno::EEXIST));
        assert!(mmap(0, 4096, RW, PRIVATE | u64::from(linux::MAP_32BIT)).expect("mapped") < 1 << 31);
        let fixed = u64::from(linux::MAP_FIXED);
        assert_eq!(mmap(0, 4096, RW, PRIVATE | fixed), Err(Errno::EPERM));
        assert_eq!(mmap(1, 4096, RW, PRIVATE | fixed), Err(Errno::EINVAL));
        assert_eq!(mmap(USER_END - 4096, 8192, RW, PRIVATE | fixed), Err(Errno::ENOMEM));
        assert_eq!(mmap(0, 0, RW, PRIVATE), Err(Errno::EINVAL));
        assert_eq!(mmap(0, u64::MAX, RW, PRIVATE), Err(Errno::ENOMEM));
        assert_eq!(mmap(0, 4096, RW, u64::from(linux::MAP_ANONYMOUS)), Err(Errno::EINVAL));
        assert_eq!(mmap(0, 4096, RW, u64::from(linux::MAP_PRIVATE)), Err(Errno::EBADF));
        assert_eq!(mmap(0, 128 << 20, RW, PRIVATE), Err(Errno::ENOMEM), "more than there is");
        let noreserve = u64::from(linux::MAP_NORESERVE);
        assert!(mmap(0, 128 << 20, RW, PRIVATE | noreserve).is_ok());
    }

    #[test]
    fn brk_moves_both_ways_and_stops_at_mappings() {
        let space = enter();
        let start = 0x5000_0000_0000;
        space.set_heap(start);
        let brk = |to: u64| call(u64::from(linux::__NR_brk), [to, 0, 0, 0, 0, 0]).expect("never fails");
        assert_eq!(brk(0), start);
        assert_eq!(brk(start + 10_000), start + 10_000);
        space.write(UserAddr(start + 9_999), b"x").expect("writable");
        assert_eq!(space.special_name(&space.areas()[0]), Some("[heap]"));
        assert_eq!(brk(start + 1), start + 1);
        assert_eq!(space.write(UserAddr(start + 9_999), b"x"), Err(Errno::EFAULT));
        mmap(start + (1 << 20), 4096, RW, PRIVATE | u64::from(linux::MAP_FIXED)).expect("mapped");
        assert_eq!(brk(start + (2 << 20)), start + 1);
        assert_eq!(brk(start - 1), start + 1);
    }

    #[test]
    fn shared_memory_is_shared_and_private_memory_is_not_across_fork() {
        let space = enter();
        let shared = mmap(0, 8192, RW, u64::from(linux::MAP_SHARED | linux::MAP_ANONYMOUS)).expect("mapped");
        let private = mmap(0, 8192, RW, PRIVATE).expect("mapped");
        let child = space.fork().expect("enough memory");
        for address in [shared, private] {
            child.write(UserAddr(address), b"c").expect("writable");
        }
        let read = |address: u64| {
            let mut byte = [0];
            space.read(UserAddr(address), &mut byte).map(|()| byte[0])
        };
        assert_eq!((read(shared), read(private)), (Ok(b'c'), Ok(0)));
        assert_eq!(space.identity(shared), child.identity(shared), "a futex there is one futex");
        assert_ne!(space.identity(private), child.identity(private));
    }

    #[test]
    fn mincore_and_mlock_tell_and_bring_in() {
        let space = enter();
        let start = mmap(0, 64 << 12, RW, PRIVATE).expect("mapped");
        let mut out = [9u8; 64];
        let out_address = out.as_mut_ptr() as u64;
        let mincore =
            |start: u64, bytes: u64| call(u64::from(linux::__NR_mincore), [start, bytes, out_address, 0, 0, 0]);
        assert_eq!(mincore(start, 64 << 12), Ok(0));
        // SAFETY: `out` was written through its address.
        let seen = unsafe { core::ptr::read_volatile(&raw const out) };
        assert_eq!(seen, [0; 64]);
        assert_eq!(call(u64::from(linux::__NR_mlock), [start + 100, 4096, 0, 0, 0, 0]), Ok(0));
        assert_eq!(space.locked_bytes(), 8192);
        assert_eq!(mincore(start, 2 << 12), Ok(0));
        // SAFETY: as above.
        assert_eq!(unsafe { core::ptr::read_volatile(&raw const out) }[..2], [1, 1]);
        let dontneed = u64::from(linux::MADV_DONTNEED);
        assert_eq!(call(u64::from(linux::__NR_madvise), [start, 4096, dontneed, 0, 0, 0]), Err(Errno::EINVAL));
        assert_eq!(call(u64::from(linux::__NR_munlock), [start, 8192, 0, 0, 0, 0]), Ok(0));
        assert_eq!(call(u64::from(linux::__NR_madvise), [start, 4096, dontneed, 0, 0, 0]), Ok(0));
        assert_eq!(mincore(start + 1, 4096), Err(Errno::EINVAL));
        assert_eq!(mincore(1 << 46, 4096), Err(Errno::ENOMEM));
    }
}

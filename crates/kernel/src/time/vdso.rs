//! The vDSO's mapping: the clock page (`[vvar]`) and behind it the shared object that build.rs makes (`[vdso]`, see vdso(7)).

#[repr(C, align(4096))]
struct PageAligned<T: ?Sized>(T);

/// The shared object; its last page is filled up with zeros.
static OBJECT: &PageAligned<[u8]> = &PageAligned(*include_bytes!(concat!(env!("OUT_DIR"), "/vdso.so")));

/// Maps clock page and vDSO into a new address space; gives the object's address (AT_SYSINFO_EHDR).
///
/// # Errors
/// ENOMEM where the limits leave no room.
#[cfg(not(feature = "hosted"))]
pub fn map(
    space: &crate::mm::space::AddressSpace,
    limits: &crate::mm::space::MemoryLimits,
) -> crate::errno::Result<u64> {
    use crate::mm::addr::{Gpa, PAGE_BYTES};
    use crate::mm::pte::Prot;
    use crate::mm::space::{AreaFlags, Backing, KernelPages, Label, MapRequest, ObjectMapping, Placement};
    use alloc::vec::Vec;
    use torpor_abi::layout::{CLOCK_GPA, KERNEL_BASE, KERNEL_GPA};

    let map = |placement, bytes, pages: Vec<Gpa>, prot, name| {
        let source = KernelPages::new(pages);
        let backing = Backing::Object(ObjectMapping { source, first_page: 0, label: Label::Name(name) });
        let request = MapRequest { placement, bytes, prot, flags: AreaFlags::empty(), backing, populate: false };
        space.map(request, limits)
    };
    // The object is part of the kernel's image, which lies in memory as it is linked.
    let first = OBJECT.0.as_ptr() as u64 - KERNEL_BASE + KERNEL_GPA;
    let pages: Vec<Gpa> = (first..first + OBJECT.0.len() as u64).step_by(PAGE_BYTES as usize).map(Gpa).collect();
    let bytes = pages.len() as u64 * PAGE_BYTES;
    // Both together find a place, then the object takes its part of it.
    let start = map(Placement::Hint(0), PAGE_BYTES + bytes, alloc::vec![Gpa(CLOCK_GPA)], Prot::READ, "[vvar]")?;
    map(Placement::Fixed(start + PAGE_BYTES), bytes, pages, Prot::READ | Prot::EXEC, "[vdso]")
}

#[cfg(test)]
mod tests {
    use super::OBJECT;
    use std::collections::BTreeMap;
    use torpor_abi::clock::ClockPage;

    fn word<const N: usize>(bytes: &[u8], at: u64) -> u64 {
        bytes[at as usize..at as usize + N].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Program headers: type, flags, offset, address, bytes in file and memory.
    fn headers(image: &[u8]) -> Vec<[u64; 6]> {
        let (at, size, count) = (word::<8>(image, 32), word::<2>(image, 54), word::<2>(image, 56));
        (0..count)
            .map(|n| at + n * size)
            .map(|h| {
                let long = |offset| word::<8>(image, h + offset);
                [word::<4>(image, h), word::<4>(image, h + 4), long(8), long(16), long(32), long(40)]
            })
            .collect()
    }

    fn dynamic(image: &[u8]) -> BTreeMap<u64, u64> {
        let at = headers(image).iter().find(|h| h[0] == 2).expect("PT_DYNAMIC")[2];
        (0..)
            .map(|n| (word::<8>(image, at + 16 * n), word::<8>(image, at + 16 * n + 8)))
            .take_while(|d| d.0 != 0)
            .collect()
    }

    fn name(image: &[u8], at: u64) -> String {
        image[at as usize..].iter().take_while(|b| **b != 0).map(|b| *b as char).collect()
    }

    /// Symbols by name, with their version's name, as a loader finds them through DT_HASH.
    fn symbols(image: &[u8]) -> BTreeMap<String, (u64, String)> {
        let dynamic = dynamic(image);
        let (symbols, strings, versions) = (dynamic[&6], dynamic[&5], dynamic[&0x6fff_fff0]);
        let count = word::<4>(image, dynamic[&4] + 4);
        let version_name = |index: u64| {
            let mut at = dynamic[&0x6fff_fffc];
            loop {
                if word::<2>(image, at + 4) == index {
                    let aux = at + word::<4>(image, at + 12);
                    return name(image, strings + word::<4>(image, aux));
                }
                assert_ne!(word::<4>(image, at + 16), 0, "the version is defined");
                at += word::<4>(image, at + 16);
            }
        };
        (1..count)
            .map(|n| (symbols + 24 * n, word::<2>(image, versions + 2 * n) & 0x7fff))
            .filter(|(symbol, _)| image[*symbol as usize + 4] & 15 == 2)
            .map(|(symbol, version)| {
                let value = word::<8>(image, symbol + 8);
                (name(image, strings + word::<4>(image, symbol)), (value, version_name(version)))
            })
            .collect()
    }

    #[test]
    fn is_one_segment_without_data_or_relocations() {
        let image = &OBJECT.0;
        assert_eq!(&image[..4], b"\x7fELF");
        let headers = headers(image);
        let loads: Vec<_> = headers.iter().filter(|h| h[0] == 1).collect();
        let [[_, flags, offset, address, in_file, in_memory]] = loads[..] else { panic!("one PT_LOAD: {headers:x?}") };
        assert_eq!((*flags, *offset, *address), (5, 0, 0), "PF_R | PF_X");
        assert_eq!(in_file, in_memory);
        assert!(*in_file <= 4096 && image.len() <= 4096, "fits a page: {in_file:#x}");
        let dynamic = dynamic(image);
        // DT_RELA, DT_REL, DT_JMPREL, DT_TEXTREL, DT_NEEDED, DT_INIT, DT_INIT_ARRAY.
        for tag in [7, 17, 23, 22, 1, 12, 25] {
            assert!(!dynamic.contains_key(&tag), "dynamic tag {tag}");
        }
        let names: Vec<_> =
            symbols(image).into_iter().map(|(name, (_, version))| format!("{name}@{version}")).collect();
        assert_eq!(
            names,
            ["clock_getres", "clock_gettime", "getcpu", "gettimeofday", "time"]
                .map(|name| format!("__vdso_{name}@LINUX_2.6"))
        );
    }

    /// The object behind a clock page, as programs see them.
    struct Mapped(*mut u8);

    impl Mapped {
        fn new(page: ClockPage) -> Self {
            use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
            let read_write = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: new memory; it is filled before it becomes executable, and never unmapped.
            unsafe {
                let at = mmap_anonymous(core::ptr::null_mut(), 8192, read_write, MapFlags::PRIVATE).expect("memory");
                at.cast::<ClockPage>().write(page);
                let object = at.cast::<u8>().add(4096);
                core::ptr::copy_nonoverlapping(OBJECT.0.as_ptr(), object, OBJECT.0.len());
                mprotect(object.cast(), 4096, MprotectFlags::READ | MprotectFlags::EXEC).expect("executable");
                Self(object)
            }
        }

        fn symbol(&self, name: &str) -> *const u8 {
            self.0.wrapping_add(symbols(&OBJECT.0)[name].0 as usize)
        }

        fn clock(&self, id: i32) -> (i32, [i64; 2]) {
            let mut time = [-1; 2];
            // SAFETY: the function's type, as vdso.rs has it.
            let call: extern "C" fn(i32, *mut [i64; 2]) -> i32 =
                unsafe { core::mem::transmute(self.symbol("__vdso_clock_gettime")) };
            (call(id, &raw mut time), time)
        }
    }

    #[test]
    fn reads_the_clock_page() {
        // Without a rate every clock stands at its base.
        let page = ClockPage {
            sequence: 2,
            shift: 32,
            mult: 0,
            tsc_base: 0,
            monotonic_base_ns: 5_000_000_007,
            realtime_base_ns: 1_700_000_000_123_456_789,
            boottime_base_ns: 6_000_000_008,
        };
        let mapped = Mapped::new(page);
        let realtime = (0, [1_700_000_000, 123_456_789]);
        for (id, expected) in [(0, realtime), (5, realtime), (11, realtime), (1, (0, [5, 7])), (7, (0, [6, 8]))] {
            assert_eq!(mapped.clock(id), expected, "clock {id}");
        }
        assert_eq!(mapped.clock(10).0, -22, "other clocks are the kernel's");
        assert_eq!(mapped.clock(3).0, 0);
        let mut words = [0i64; 2];
        // SAFETY: the functions' types, as vdso.rs has them.
        unsafe {
            let day: extern "C" fn(*mut [i64; 2], *mut u8) -> i32 =
                core::mem::transmute(mapped.symbol("__vdso_gettimeofday"));
            assert_eq!((day(&raw mut words, core::ptr::null_mut()), words), (0, [1_700_000_000, 123_456]));
            let time: extern "C" fn(*mut i64) -> i64 = core::mem::transmute(mapped.symbol("__vdso_time"));
            assert_eq!(time(core::ptr::null_mut()), 1_700_000_000);
            let cpu: extern "C" fn(*mut u32, *mut u32, *mut u8) -> i64 =
                core::mem::transmute(mapped.symbol("__vdso_getcpu"));
            let (mut number, mut node) = (7, 7);
            assert_eq!((cpu(&raw mut number, &raw mut node, core::ptr::null_mut()), number, node), (0, 0, 0));
            let resolution: extern "C" fn(i32, *mut [i64; 2]) -> i32 =
                core::mem::transmute(mapped.symbol("__vdso_clock_getres"));
            assert_eq!((resolution(1, &raw mut words), words), (0, [0, 1]));
            assert_eq!(resolution(10, core::ptr::null_mut()), -22);
        }
    }

    #[test]
    fn goes_on_with_the_time_stamp_counter() {
        // A tick is a nanosecond, from a base that lies before now.
        // SAFETY: exists on every x86-64 processor.
        let now = unsafe { core::arch::x86_64::_rdtsc() };
        let page =
            ClockPage { shift: 32, mult: 1 << 32, tsc_base: now, monotonic_base_ns: 100, ..ClockPage::default() };
        let mapped = Mapped::new(page);
        let ns = |(error, [seconds, nanos]): (i32, [i64; 2])| {
            assert_eq!(error, 0);
            seconds * 1_000_000_000 + nanos
        };
        let (first, second) = (ns(mapped.clock(1)), ns(mapped.clock(1)));
        // SAFETY: as above.
        let after = unsafe { core::arch::x86_64::_rdtsc() };
        assert!(100 <= first && first < second && second <= 100 + (after - now).cast_signed());
    }
}

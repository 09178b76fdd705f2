//! The vDSO (vdso(7)): clock functions that programs call without a trap. Compiled by build.rs into a shared object of its
//! own; it has no data, no relocations and calls nothing.
//!
//! The page before it is the clock page ([vvar]); its layout and rules are `torpor_abi::clock`, which this includes.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{Ordering, compiler_fence};

#[path = "../../abi/src/clock.rs"]
mod clock;

use clock::ClockPage;

const PAGE_BYTES: usize = 4096;
const SECOND_NS: u64 = 1_000_000_000;

// clockid_t, clock_gettime(2).
const CLOCK_REALTIME: i32 = 0;
const CLOCK_MONOTONIC: i32 = 1;
const CLOCK_MONOTONIC_RAW: i32 = 4;
const CLOCK_REALTIME_COARSE: i32 = 5;
const CLOCK_MONOTONIC_COARSE: i32 = 6;
const CLOCK_BOOTTIME: i32 = 7;
const CLOCK_TAI: i32 = 11;

const SYS_GETTIMEOFDAY: i64 = 96;
const SYS_CLOCK_GETTIME: i64 = 228;
const SYS_CLOCK_GETRES: i64 = 229;

/// `struct timespec`, and `struct timeval`.
#[repr(C)]
pub struct Time {
    seconds: i64,
    fraction: i64,
}

/// The clock page: right before this object.
#[inline(always)]
fn page() -> *const ClockPage {
    let here: *const u8;
    // SAFETY: computes an address; the linker defines the symbol as the object's first byte.
    unsafe { asm!("lea {}, [rip + __ehdr_start]", out(reg) here, options(nomem, nostack, preserves_flags, pure)) };
    here.wrapping_sub(PAGE_BYTES).cast()
}

/// Nanoseconds of a clock, whose base `base` picks.
#[inline(always)]
fn read(base: impl Fn(&ClockPage) -> u64) -> u64 {
    let page = page();
    loop {
        // SAFETY: the kernel maps the page, read-only, before it maps this object, and writes it under the sequence count.
        let sequence = unsafe { (&raw const (*page).sequence).read_volatile() };
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as above. What is torn is thrown away below: all fields are integers.
        let copy = unsafe { page.read_volatile() };
        let (low, high): (u64, u64);
        // SAFETY: exists on every x86-64 processor; not before the loads above.
        unsafe { asm!("lfence", "rdtsc", out("rax") low, out("rdx") high, options(nostack, preserves_flags)) };
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as above.
        let after = unsafe { (&raw const (*page).sequence).read_volatile() };
        if sequence & 1 != 0 || after != sequence {
            continue;
        }
        // A TSC that is read just before the base was set may be a little smaller.
        let ticks = (high << 32 | low).saturating_sub(copy.tsc_base);
        let elapsed = (u128::from(ticks) * u128::from(copy.mult)) >> (copy.shift & 63);
        return base(&copy).wrapping_add(elapsed as u64);
    }
}

#[inline(always)]
fn realtime() -> u64 {
    read(|page| page.realtime_base_ns)
}

#[inline(always)]
fn syscall(number: i64, first: u64, second: u64) -> i32 {
    let result: i64;
    // SAFETY: the system call writes only where the caller of these functions said.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") first, in("rsi") second, lateout("rcx") _,
            lateout("r11") _, options(nostack));
    }
    result as i32
}

#[inline(always)]
fn put(at: *mut Time, ns: u64, unit: u64) {
    let time = Time { seconds: (ns / SECOND_NS) as i64, fraction: (ns % SECOND_NS / unit) as i64 };
    // SAFETY: the caller's pointer, as clock_gettime(2) wants it.
    unsafe { at.write(time) };
}

/// clock_gettime(2).
#[unsafe(no_mangle)]
pub extern "C" fn __vdso_clock_gettime(id: i32, time: *mut Time) -> i32 {
    let ns = match id {
        CLOCK_REALTIME | CLOCK_REALTIME_COARSE | CLOCK_TAI => realtime(),
        CLOCK_MONOTONIC | CLOCK_MONOTONIC_RAW | CLOCK_MONOTONIC_COARSE => read(|page| page.monotonic_base_ns),
        CLOCK_BOOTTIME => read(|page| page.boottime_base_ns),
        _ => return syscall(SYS_CLOCK_GETTIME, id as u64, time as u64),
    };
    put(time, ns, 1);
    0
}

/// clock_getres(2).
#[unsafe(no_mangle)]
pub extern "C" fn __vdso_clock_getres(id: i32, time: *mut Time) -> i32 {
    // As the system call has it.
    let ns = match id {
        CLOCK_REALTIME | CLOCK_MONOTONIC | CLOCK_MONOTONIC_RAW | CLOCK_BOOTTIME | CLOCK_TAI => 1,
        _ => return syscall(SYS_CLOCK_GETRES, id as u64, time as u64),
    };
    if !time.is_null() {
        put(time, ns, 1);
    }
    0
}

/// gettimeofday(2).
#[unsafe(no_mangle)]
pub extern "C" fn __vdso_gettimeofday(time: *mut Time, zone: *mut u8) -> i32 {
    if !zone.is_null() {
        // The zone is the kernel's.
        return syscall(SYS_GETTIMEOFDAY, time as u64, zone as u64);
    }
    if !time.is_null() {
        put(time, realtime(), 1000);
    }
    0
}

/// time(2).
#[unsafe(no_mangle)]
pub extern "C" fn __vdso_time(seconds: *mut i64) -> i64 {
    let now = (realtime() / SECOND_NS) as i64;
    if !seconds.is_null() {
        // SAFETY: the caller's pointer, as time(2) wants it.
        unsafe { seconds.write(now) };
    }
    now
}

/// getcpu(2): there is one processor and one node.
#[unsafe(no_mangle)]
pub extern "C" fn __vdso_getcpu(cpu: *mut u32, node: *mut u32, _unused: *mut u8) -> i64 {
    for at in [cpu, node] {
        if !at.is_null() {
            // SAFETY: the caller's pointers, as getcpu(2) wants them.
            unsafe { at.write(0) };
        }
    }
    0
}

/// Nothing here panics; the compiler wants one all the same.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

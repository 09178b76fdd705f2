//! Extended processor state (x87, SSE, AVX, AVX-512): XSAVE areas of threads.
//!
//! Kernel code uses SSE only, and every entry saves xmm0-15 and MXCSR. So in the kernel the upper parts, x87 and mask
//! registers are still the program's, and the program's xmm registers are in [`UserRegs`].
//! Rules: Intel SDM volume 1, chapter 13.

use super::regs::UserRegs;
use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::arch::x86_64::{__cpuid_count, _xgetbv, _xrstor64, _xsave64};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

static AREA_BYTES: AtomicU32 = AtomicU32::new(0);

/// Offset of the XSAVE header within an area.
const HEADER_OFFSET: usize = 512;
/// Offset of MXCSR in the legacy region.
const MXCSR_OFFSET: usize = 24;
/// Offset of xmm0 in the legacy region.
const XMM_OFFSET: usize = 160;
/// XSTATE_BV bit of SSE.
const STATE_SSE: u64 = 2;

/// The state components that are enabled in XCR0, as the guest sees it.
#[must_use]
pub fn enabled() -> u64 {
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: register 0 exists wherever XSAVE does.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: the VM process refuses hosts without XSAVE.
    unsafe { read() }
}

/// Bytes of a standard-format XSAVE area for the enabled components (at most 4 KiB without AMX).
#[must_use]
pub fn area_bytes() -> usize {
    let known = AREA_BYTES.load(Ordering::Relaxed);
    if known != 0 {
        return known as usize;
    }
    // CPUID's own sum (leaf 0xd, EBX) is of the host's XCR0 on a software KVM, so it is added up here.
    let mut end = 576;
    for component in 2..63u32 {
        if enabled() >> component & 1 == 1 {
            let leaf = __cpuid_count(0xd, component);
            end = end.max(leaf.ebx.saturating_add(leaf.eax));
        }
    }
    let end = end.min(16 << 10);
    AREA_BYTES.store(end, Ordering::Relaxed);
    end as usize
}

/// A thread's area.
pub struct ExtendedState(NonNull<u8>);

impl ExtendedState {
    fn layout() -> Layout {
        Layout::from_size_align(area_bytes(), 64).unwrap_or(Layout::new::<[u64; 512]>())
    }

    /// The initial state: all components in their initial configuration, MXCSR 0x1f80.
    #[must_use]
    pub fn initial() -> Self {
        // SAFETY: the layout has at least 576 bytes.
        let Some(area) = NonNull::new(unsafe { alloc_zeroed(Self::layout()) }) else {
            alloc::alloc::handle_alloc_error(Self::layout())
        };
        let mut state = Self(area);
        state.bytes_mut()[MXCSR_OFFSET..MXCSR_OFFSET + 4].copy_from_slice(&0x1f80u32.to_le_bytes());
        state
    }

    /// The whole area.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the area is owned, initialised (zeroed, then written by XSAVE) and area_bytes() long.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr(), area_bytes()) }
    }

    /// The whole area. Content that XRSTOR would refuse must have gone through [`ExtendedState::sanitize`].
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and the borrow is exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.0.as_ptr(), area_bytes()) }
    }

    /// Takes the program's xmm registers and MXCSR from `regs`: those that the processor holds are the kernel's.
    pub(super) fn put_vectors(&mut self, regs: &UserRegs) {
        let area = self.bytes_mut();
        area[MXCSR_OFFSET..MXCSR_OFFSET + 4].copy_from_slice(&(regs.mxcsr as u32).to_le_bytes());
        for (n, xmm) in regs.xmm.iter().enumerate() {
            area[XMM_OFFSET + 16 * n..XMM_OFFSET + 16 * n + 16].copy_from_slice(&xmm.to_le_bytes());
        }
        area[HEADER_OFFSET] |= STATE_SSE as u8;
    }

    /// Puts the program's xmm registers and MXCSR into `regs`, which the next return takes them from.
    pub(super) fn take_vectors(&self, regs: &mut UserRegs) {
        let area = self.bytes();
        let in_use = area[HEADER_OFFSET] as u64 & STATE_SSE != 0;
        for (n, xmm) in regs.xmm.iter_mut().enumerate() {
            let mut bytes = [0; 16];
            if in_use {
                bytes.copy_from_slice(&area[XMM_OFFSET + 16 * n..XMM_OFFSET + 16 * n + 16]);
            }
            *xmm = u128::from_le_bytes(bytes);
        }
        let mut mxcsr = [0; 4];
        mxcsr.copy_from_slice(&area[MXCSR_OFFSET..MXCSR_OFFSET + 4]);
        regs.mxcsr = u64::from(u32::from_le_bytes(mxcsr) & 0xffff);
    }

    /// Stores the processor's registers as they are (xmm and MXCSR are the kernel's).
    pub(super) fn save_processor(&mut self) {
        #[target_feature(enable = "xsave")]
        fn save(area: *mut u8) {
            // SAFETY: the area is 64-byte aligned and as large as the enabled components need.
            unsafe { _xsave64(area, u64::MAX) };
        }
        // SAFETY: XSAVE is there (see `enabled`).
        unsafe { save(self.0.as_ptr()) };
    }

    /// Loads the processor's registers; the kernel's MXCSR is the area's until the next entry.
    pub(super) fn restore_processor(&self) {
        #[target_feature(enable = "xsave")]
        fn restore(area: *const u8) {
            // SAFETY: aligned, large enough, and its header and MXCSR are XSAVE's own or sanitized.
            unsafe { _xrstor64(area, u64::MAX) };
        }
        // SAFETY: XSAVE is there (see `enabled`).
        unsafe { restore(self.0.as_ptr()) };
        // SAFETY: 0x1f80 (all exceptions masked) is a valid MXCSR.
        unsafe { core::arch::asm!("ldmxcsr [{}]", in(reg) &0x1f80u32, options(nostack)) };
    }

    /// Makes an area that a program wrote (sigreturn(2)) acceptable to XRSTOR: only enabled components, no compaction,
    /// reserved header bytes zero, no reserved MXCSR bits.
    pub fn sanitize(&mut self) {
        let enabled = enabled();
        let area = self.bytes_mut();
        let mut header = [0; 8];
        header.copy_from_slice(&area[HEADER_OFFSET..HEADER_OFFSET + 8]);
        let used = u64::from_le_bytes(header) & enabled;
        area[HEADER_OFFSET..HEADER_OFFSET + 64].fill(0);
        area[HEADER_OFFSET..HEADER_OFFSET + 8].copy_from_slice(&used.to_le_bytes());
        area[MXCSR_OFFSET + 2..MXCSR_OFFSET + 4].fill(0);
    }
}

impl Clone for ExtendedState {
    fn clone(&self) -> Self {
        let mut copy = Self::initial();
        copy.bytes_mut().copy_from_slice(self.bytes());
        copy
    }
}

impl Drop for ExtendedState {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout (area_bytes() never changes after the first call).
        unsafe { dealloc(self.0.as_ptr(), Self::layout()) };
    }
}

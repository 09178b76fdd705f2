//! Extended processor state (x87, vectors, masks) of a thread, as bytes of an XSAVE area in the standard format.

/// Offset of the bytes within the legacy region that are software's (struct _fpx_sw_bytes).
pub(in crate::task) const SOFTWARE_OFFSET: usize = 464;
/// Offset of MXCSR.
pub(in crate::task) const MXCSR_OFFSET: usize = 24;
/// Offset of the XSAVE header.
pub(in crate::task) const HEADER_OFFSET: usize = 512;
/// Bytes of the legacy region and the header.
pub(super) const MINIMUM_BYTES: usize = 576;

#[cfg(not(feature = "hosted"))]
mod backend {
    use crate::arch::fpu::{self, ExtendedState};
    use crate::task::thread::Thread;

    pub(crate) use fpu::{area_bytes, enabled};

    pub(crate) struct Area(ExtendedState);

    impl Area {
        pub(crate) fn initial() -> Self {
            Self(ExtendedState::initial())
        }

        pub(crate) fn of(thread: &Thread) -> Self {
            Self(thread.state.extended())
        }

        pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
            self.0.bytes_mut()
        }

        /// Loads it after a program may have written it.
        pub(crate) fn load(mut self, thread: &Thread) {
            self.0.sanitize();
            thread.state.load_extended(&self.0);
        }
    }
}

/// Hosted: the legacy region with the xmm registers and MXCSR of [`crate::arch::regs::UserRegs`], and the header.
#[cfg(feature = "hosted")]
mod backend {
    use crate::task::thread::Thread;

    pub(crate) fn area_bytes() -> usize {
        super::MINIMUM_BYTES
    }

    pub(crate) fn enabled() -> u64 {
        3
    }

    pub(crate) struct Area([u8; super::MINIMUM_BYTES]);

    impl Area {
        pub(crate) fn initial() -> Self {
            let mut area = [0; super::MINIMUM_BYTES];
            area[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
            Self(area)
        }

        pub(crate) fn of(thread: &Thread) -> Self {
            let mut area = Self::initial();
            let regs = thread.state.regs();
            area.0[24..28].copy_from_slice(&(regs.mxcsr as u32).to_le_bytes());
            for (n, xmm) in regs.xmm.iter().enumerate() {
                area.0[160 + 16 * n..176 + 16 * n].copy_from_slice(&xmm.to_le_bytes());
            }
            area.0[super::HEADER_OFFSET] = 2;
            area
        }

        pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
            &mut self.0
        }

        pub(crate) fn load(self, thread: &Thread) {
            let mut regs = thread.state.regs();
            regs.mxcsr = u64::from(u16::from_le_bytes([self.0[24], self.0[25]]));
            for (n, xmm) in regs.xmm.iter_mut().enumerate() {
                let mut bytes = [0; 16];
                if self.0[super::HEADER_OFFSET] & 2 != 0 {
                    bytes.copy_from_slice(&self.0[160 + 16 * n..176 + 16 * n]);
                }
                *xmm = u128::from_le_bytes(bytes);
            }
            thread.state.set_regs(&regs);
        }
    }
}

pub(super) use backend::area_bytes;
pub(in crate::task) use backend::{Area, enabled};

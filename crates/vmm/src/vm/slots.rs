//! The guest's RAM and image as KVM knows them.
//!
//! A memory slot costs the host 2 KB and a microsecond per MiB, touched or not, when it is made and again when the VM ends,
//! and the guest-physical space is a few times what a VM may use. So a VM that nothing is ever restored into gets a slot
//! for the bottom of its RAM, and more as the guest asks for memory further up: it uses none that it has not asked for
//! ([`torpor_abi::shared::doorbell::POPULATE`]).

use super::Fatal;
use super::memory::{Gpa, GuestMemory, Hva, ImageMapping};
use kvm_bindings::{KVM_MEM_READONLY, KVMIO, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use torpor_abi::layout::{IMAGE_GPA, PAGE_BYTES, RAM_ALIGN_BYTES};
use vmm_sys_util::ioctl::ioctl_with_val;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_SET_NR_MMU_PAGES, KVMIO, 0x44);

const IMAGE_SLOT: u32 = 0;
const FIRST_RAM_SLOT: u32 = 1;

/// What KVM lets a VM have of shadow pages per page of RAM, unless it is told: 2 %.
const SHADOWED_SHARE: u64 = 50;

/// How much of RAM has a slot. Changed by the vCPU's thread alone.
#[derive(Debug)]
pub(super) struct RamSlots {
    covered_bytes: AtomicU64,
    next: AtomicU32,
}

impl RamSlots {
    /// Gives the guest the bottom of `memory`, at least `first_bytes`.
    ///
    /// # Errors
    /// [`Fatal::Kvm`].
    ///
    /// # Safety
    /// `memory` stays where it is as long as the VM lives.
    pub(super) unsafe fn new(vm: &VmFd, memory: &GuestMemory, first_bytes: u64) -> Result<Self, Fatal> {
        let shadow_pages = memory.len_bytes() / PAGE_BYTES / SHADOWED_SHARE;
        // KVM goes by the slots otherwise, and would drop shadow pages that are in use.
        // SAFETY: takes a number.
        if unsafe { ioctl_with_val(vm, KVM_SET_NR_MMU_PAGES(), shadow_pages) } != 0 {
            let error = std::io::Error::last_os_error();
            return Err(Fatal::Kvm { call: "KVM_SET_NR_MMU_PAGES", error });
        }
        let slots = Self { covered_bytes: AtomicU64::new(0), next: AtomicU32::new(FIRST_RAM_SLOT) };
        slots.cover(vm, memory, first_bytes)?;
        Ok(slots)
    }

    /// Sees to it that `[0, end)` of RAM has a slot, as far as there is RAM.
    ///
    /// # Errors
    /// [`Fatal::Kvm`].
    pub(super) fn cover(&self, vm: &VmFd, memory: &GuestMemory, end: u64) -> Result<(), Fatal> {
        let covered = self.covered_bytes.load(Ordering::Relaxed);
        if end <= covered {
            return Ok(());
        }
        // Twice as much each time, so that there are few. The guest may name anything; RAM ends on such a boundary.
        let end = end.max(2 * covered).min(memory.len_bytes()).next_multiple_of(RAM_ALIGN_BYTES);
        if end <= covered {
            return Ok(());
        }
        let slot = self.next.fetch_add(1, Ordering::Relaxed);
        let at = Hva(memory.base().0 + covered);
        // SAFETY: a part of the memory, which stays where it is (promised to `new`).
        unsafe { add(vm, slot, 0, Gpa(covered), at, end - covered) }?;
        self.covered_bytes.store(end, Ordering::Relaxed);
        Ok(())
    }
}

/// Maps the image, for ever, and gives it to the guest.
///
/// # Errors
/// [`Fatal`].
pub(super) fn map_image(vm: &VmFd, image: &File, image_bytes: u64) -> Result<ManuallyDrop<ImageMapping>, Fatal> {
    let mapping = ManuallyDrop::new(ImageMapping::new(image, image_bytes).map_err(Fatal::system("mapping the image"))?);
    // SAFETY: the mapping is never dropped.
    unsafe { add(vm, IMAGE_SLOT, KVM_MEM_READONLY, Gpa(IMAGE_GPA), mapping.base(), mapping.len_bytes()) }?;
    Ok(mapping)
}

/// # Safety
/// `[hva, hva + len)` stays mapped as long as the VM lives.
unsafe fn add(vm: &VmFd, slot: u32, flags: u32, gpa: Gpa, hva: Hva, len: u64) -> Result<(), Fatal> {
    let region =
        kvm_userspace_memory_region { slot, flags, guest_phys_addr: gpa.0, memory_size: len, userspace_addr: hva.0 };
    // SAFETY: the caller's promise.
    unsafe { vm.set_user_memory_region(region) }.map_err(Fatal::kvm("KVM_SET_USER_MEMORY_REGION"))
}

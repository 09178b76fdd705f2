//! The bootable guest kernel: [`torpor_kernel`] with an allocator, a panic handler and memory functions.
#![no_std]
#![no_main]

mod memory;

use core::panic::PanicInfo;
use torpor_kernel::mm::heap::KernelHeap;

#[global_allocator]
static HEAP: KernelHeap = KernelHeap::new();

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    torpor_kernel::arch::panic::panicked(info)
}

/// What the precompiled core library refers to; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// What the precompiled alloc library's landing pads refer to. They can't be reached: panics end the VM.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    panic!("unwinding in the kernel")
}

/// Keeps the kernel header in the link.
#[used]
static ENTRY: fn() -> *const torpor_kernel::abi::trap::KernelHeader = torpor_kernel::arch::header;

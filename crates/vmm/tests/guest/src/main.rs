//! A guest for the VM process's tests. The first argument says what it does; see `run`.
#![no_std]
#![no_main]

mod random;

use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};
use torpor_abi::boot::{BootInfo, VERSION};
use torpor_abi::frame::{HEADER_BYTES, Header, INITIAL_WINDOW_BYTES, MAX_PAYLOAD_BYTES, kind, stream};
use torpor_abi::layout::*;
use torpor_abi::shared::{Control, doorbell, exit};
use torpor_abi::trap::KERNEL_MAGIC;

global_asm!(
    r#"
    .data
    .balign 64
    .globl HEADER
HEADER:
    .quad {magic}, {version}, boot, boot_stack, stub_syscall
    .rept 32
    .quad stub_fault
    .endr
    .quad stub_event, stub_fault, boot
    .balign 16
syscall_frame: .quad entry_syscall, 0x33, 0x202, bounce_stack, 0x2b
event_frame: .quad entry_event, 0x33, 0x202, event_stack, 0x2b
fault_frame: .quad entry_fault, 0x33, 0x202, bounce_stack, 0x2b
saved_rsp: .quad 0
    .globl EVENTS
EVENTS: .quad 0
    .bss
    .balign 16
    .skip 65536
boot_stack:
    .skip 4096
event_stack:
    .skip 4096
bounce_stack:
    .text
boot:
    xor %ebp, %ebp
    call main
    ud2
stub_syscall:
    mov %rsp, saved_rsp(%rip)
    lea syscall_frame(%rip), %rsp
    iretq
entry_syscall:
    mov saved_rsp(%rip), %rsp
    jmp *%rcx
stub_fault:
    lea fault_frame(%rip), %rsp
    iretq
entry_fault:
    call faulted
stub_event:
    lea event_frame(%rip), %rsp
    iretq
entry_event:
    # The frame is at the top of the stack of IST 1; go back to what was interrupted, which clears interrupt_busy.
    incq EVENTS(%rip)
    push %rax
    movabs ${event_top}, %rax
    pushq -8(%rax)
    pushq -16(%rax)
    pushq -24(%rax)
    pushq -32(%rax)
    pushq -40(%rax)
    mov 40(%rsp), %rax
    iretq

    .globl memcpy, memset, memcmp, memmove, bcmp
memcpy: mov %rdi, %rax
    mov %rdx, %rcx
    rep movsb
    ret
memmove: jmp memcpy
memset: mov %rdi, %r8
    mov %esi, %eax
    mov %rdx, %rcx
    rep stosb
    mov %r8, %rax
    ret
bcmp:
memcmp: ud2
"#,
    magic = const KERNEL_MAGIC,
    version = const VERSION as u64,
    event_top = const torpor_abi::trap::stack_top_va(1),
    options(att_syntax)
);

unsafe extern "C" {
    static EVENTS: AtomicU64;
}

fn control() -> &'static Control {
    // SAFETY: the VM process has mapped the control page there; its words are atomics.
    unsafe { &*((DIRECT_MAP_BASE + CONTROL_GPA) as *const Control) }
}

fn boot_info() -> &'static BootInfo {
    // SAFETY: written by the VM process before the first instruction.
    unsafe { &*((DIRECT_MAP_BASE + BOOT_INFO_GPA) as *const BootInfo) }
}

fn ring(offset: u64, value: u32) {
    // SAFETY: a doorbell: no memory.
    unsafe { ((DIRECT_MAP_BASE + DOORBELL_GPA + offset) as *mut u32).write_volatile(value) }
}

fn store(gpa: u64, byte: u8) {
    // SAFETY: guest memory of the direct map; what it destroys is the guest's own.
    unsafe { ((DIRECT_MAP_BASE + gpa) as *mut u8).write_volatile(byte) }
}

fn load(gpa: u64) -> u8 {
    // SAFETY: guest memory of the direct map.
    unsafe { ((DIRECT_MAP_BASE + gpa) as *const u8).read_volatile() }
}

/// Puts a frame into the ring as it is, rules or not, and waits for room.
fn send(header: &Header, byte: u8) {
    let head = control().tx_head.load(Ordering::Relaxed);
    while head.wrapping_add(header.frame_bytes()).wrapping_sub(control().tx_tail.load(Ordering::SeqCst))
        > RING_BYTES as u32
    {
        control().tx_wants_room.store(1, Ordering::SeqCst);
        ring(doorbell::NOTIFY, 0);
        core::hint::spin_loop();
    }
    let at = |index: u32| TX_RING_GPA + u64::from(head.wrapping_add(index) % RING_BYTES as u32);
    for (index, value) in header.encode().iter().enumerate() {
        store(at(index as u32), *value);
    }
    for index in HEADER_BYTES..header.frame_bytes() {
        store(at(index), byte);
    }
    control().tx_head.store(head.wrapping_add(header.frame_bytes()), Ordering::SeqCst);
    if control().tx_polling.load(Ordering::SeqCst) == 0 {
        ring(doorbell::NOTIFY, 0);
    }
}

fn data(stream: u32, len: u32) -> Header {
    Header { stream, kind: kind::DATA, len, argument: 0 }
}

fn print(text: &[u8]) {
    for byte in text {
        send(&data(stream::STDOUT, 1), *byte);
    }
}

/// The next frame of the host, copied byte by byte; idles until there is one.
fn receive(payload: &mut [u8; MAX_PAYLOAD_BYTES as usize]) -> Header {
    let tail = control().rx_tail.load(Ordering::Relaxed);
    loop {
        control().pending.store(0, Ordering::SeqCst);
        if control().rx_head.load(Ordering::SeqCst) != tail {
            break;
        }
        ring(doorbell::IDLE, 0);
    }
    let at = |index: u32| RX_RING_GPA + u64::from(tail.wrapping_add(index) % RING_BYTES as u32);
    let mut bytes = [0; HEADER_BYTES as usize];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = load(at(index as u32));
    }
    let Ok(header) = Header::decode(&bytes) else { finish(99 << 8) };
    for index in 0..header.len {
        payload[index as usize] = load(at(HEADER_BYTES + index));
    }
    control().rx_tail.store(tail.wrapping_add(header.frame_bytes()), Ordering::SeqCst);
    if control().rx_wants_room.load(Ordering::SeqCst) != 0 {
        ring(doorbell::NOTIFY, 0);
    }
    header
}

fn finish(status: u32) -> ! {
    control().exit_status.store(status, Ordering::SeqCst);
    ring(doorbell::EXIT, exit::PROGRAM);
    loop {}
}

fn finish_with(reason: u32, status: u32, text: &[u8]) -> ! {
    for (index, byte) in text.iter().enumerate() {
        store(CONTROL_GPA + offset_of!(Control, panic_text) as u64 + index as u64, *byte);
    }
    control().panic_len.store(text.len() as u32, Ordering::SeqCst);
    control().exit_status.store(status, Ordering::SeqCst);
    ring(doorbell::EXIT, reason);
    loop {}
}

fn now_ns() -> u64 {
    ring(doorbell::CLOCK, 0);
    control().handshake_monotonic_ns.load(Ordering::SeqCst)
}

#[unsafe(no_mangle)]
extern "C" fn faulted() -> ! {
    finish(98 << 8)
}

#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    let info = boot_info();
    // SAFETY: the VM process has put the arguments there.
    let arguments = unsafe {
        core::slice::from_raw_parts(
            (DIRECT_MAP_BASE + info.strings_gpa + u64::from(info.argv.offset)) as *const u8,
            info.argv.len as usize,
        )
    };
    let mut arguments = arguments.split(|&byte| byte == 0);
    let name = arguments.next().unwrap_or(b"");
    let number = arguments.next().unwrap_or(b"").iter().fold(0_u32, |n, d| n * 10 + u32::from(d - b'0'));
    run(name, number)
}

/// Byte strings compared without memcmp.
fn is(a: &[u8], b: &str) -> bool {
    a.iter().eq(b.as_bytes())
}

fn run(name: &[u8], number: u32) -> ! {
    static mut PAYLOAD: [u8; MAX_PAYLOAD_BYTES as usize] = [0; MAX_PAYLOAD_BYTES as usize];
    // SAFETY: there is one thread, and this function is called once.
    let payload = unsafe { &mut *&raw mut PAYLOAD };
    if is(name, "status") {
        // `number` is a wait status.
        finish(number)
    } else if is(name, "hello") {
        print(b"hello\n");
        send(&data(stream::STDERR, 1), b'!');
        finish(0)
    } else if is(name, "echo") {
        // Standard input to standard output, with flow control both ways.
        static mut QUEUE: [u8; INITIAL_WINDOW_BYTES as usize] = [0; INITIAL_WINDOW_BYTES as usize];
        // SAFETY: as above.
        let queue = unsafe { &mut *&raw mut QUEUE };
        let (mut window, mut read, mut written, mut ended) = (INITIAL_WINDOW_BYTES, 0_usize, 0_usize, false);
        loop {
            if read != written && window > 0 {
                let start = written % queue.len();
                let len = (read - written).min(64).min(queue.len() - start).min(window as usize);
                send_bytes(&data(stream::STDOUT, len as u32), &queue[start..start + len]);
                window -= len as u32;
                written += len;
                send(&Header { stream: stream::STDIN, kind: kind::CREDIT, len: 0, argument: len as u32 }, 0);
                continue;
            }
            if ended && read == written {
                finish(0)
            }
            let header = receive(payload);
            match (header.stream, header.kind) {
                (stream::STDIN, kind::DATA) => {
                    for byte in &payload[..header.len as usize] {
                        queue[read % queue.len()] = *byte;
                        read += 1;
                    }
                }
                (stream::STDOUT, kind::CREDIT) => window += header.argument,
                (stream::STDIN, kind::SHUTDOWN) => ended = true,
                (stream::CONTROL, kind::SIGNAL) => finish(header.argument),
                _ => finish(96 << 8),
            }
        }
    } else if is(name, "flood") {
        // `number` KiB to standard output, as fast as credit allows.
        let mut window = INITIAL_WINDOW_BYTES;
        for block in 0..number {
            while window < 1024 {
                let header = receive(payload);
                match (header.stream, header.kind) {
                    (stream::STDOUT, kind::CREDIT) => window += header.argument,
                    (stream::STDOUT, kind::SHUTDOWN) => finish(13),
                    (stream::CONTROL, kind::SIGNAL) => finish(header.argument),
                    _ => finish(96 << 8),
                }
            }
            window -= 1024;
            send(&data(stream::STDOUT, 1024), block as u8);
        }
        finish(0)
    } else if is(name, "signal") {
        // Says that it is ready and ends as the first signal would end it.
        print(b"ready\n");
        loop {
            let header = receive(payload);
            if header.stream == stream::CONTROL && header.kind == kind::SIGNAL {
                finish(header.argument)
            }
        }
    } else if is(name, "terminal") {
        // Ends with the first byte that is typed, unless that is Ctrl-].
        for byte in b"ready\n" {
            send(&data(stream::STDIN, 1), *byte);
        }
        loop {
            let header = receive(payload);
            if header.stream == stream::STDIN && header.kind == kind::DATA && payload[0] != 0x1d {
                finish(u32::from(payload[0]) << 8)
            }
        }
    } else if is(name, "hang") {
        // Looks at nothing.
        print(b"ready\n");
        loop {
            core::hint::spin_loop();
        }
    } else if is(name, "spin") {
        // System calls, then a loop that only events interrupt: a tick every millisecond.
        for _ in 0..100 {
            // SAFETY: the stub comes back to the next instruction; it keeps all but rcx and r11.
            unsafe { asm!("syscall", out("rcx") _, out("r11") _) };
        }
        let mut seen = u64::MAX;
        loop {
            // SAFETY: a word of this guest, counted up by its event entry.
            let events = unsafe { EVENTS.load(Ordering::SeqCst) };
            if events >= u64::from(number) {
                finish(0)
            }
            if events != seen {
                seen = events;
                control().interrupt_busy.store(0, Ordering::SeqCst);
                control().pending.store(0, Ordering::SeqCst);
                control().wanted_deadline_ns.store(now_ns() + 1_000_000, Ordering::SeqCst);
                ring(doorbell::NOTIFY, 0);
            }
            // SAFETY: as above; most events are to land in or near the stub.
            unsafe { asm!("syscall", out("rcx") _, out("r11") _) };
        }
    } else if is(name, "timer") {
        // Sleeps `number` ms by the timer; ends with the ms that it took.
        let start = now_ns();
        let deadline = start + u64::from(number) * 1_000_000;
        control().wanted_deadline_ns.store(deadline, Ordering::SeqCst);
        loop {
            control().pending.store(0, Ordering::SeqCst);
            if now_ns() >= deadline {
                finish(0)
            }
            ring(doorbell::IDLE, 0);
        }
    } else if is(name, "touch") {
        // Asks for the last page alone, then writes to all of RAM.
        control().populate_gpa.store(boot_info().ram_bytes - PAGE_BYTES, Ordering::SeqCst);
        control().populate_bytes.store(PAGE_BYTES, Ordering::SeqCst);
        ring(doorbell::POPULATE, 0);
        let mut gpa = 64 << 20;
        while gpa < boot_info().ram_bytes {
            store(gpa, 1);
            gpa += PAGE_BYTES;
        }
        // Its memory is measured now and again.
        loop {}
    } else if is(name, "touch-unasked") {
        // The last page of RAM, which was never asked for.
        store(boot_info().ram_bytes - PAGE_BYTES, 1);
        finish(0)
    } else if is(name, "populate") {
        // `number` MiB backed, written, given back, read.
        let (gpa, bytes) = (64 << 20, u64::from(number) << 20);
        control().populate_gpa.store(gpa, Ordering::SeqCst);
        control().populate_bytes.store(bytes, Ordering::SeqCst);
        ring(doorbell::POPULATE, 0);
        for page in 0..bytes / PAGE_BYTES {
            store(gpa + page * PAGE_BYTES, 7);
        }
        ring(doorbell::DISCARD, 0);
        for page in 0..bytes / PAGE_BYTES {
            if load(gpa + page * PAGE_BYTES) != 0 {
                finish(1 << 8)
            }
        }
        finish(0)
    } else if is(name, "read-image") {
        // Says that it is ready, waits for standard input, then reads all of the image.
        print(b"ready\n");
        receive(payload);
        let mut sum = 0_u8;
        for page in 0..boot_info().image_bytes / PAGE_BYTES {
            sum = sum.wrapping_add(load(IMAGE_GPA + page * PAGE_BYTES));
        }
        finish(u32::from(sum) << 8)
    } else if is(name, "write-image") {
        store(IMAGE_GPA, 1);
        finish(0)
    } else if is(name, "start-failed") {
        finish_with(exit::START_FAILED, number, b"nothing: cannot start")
    } else if is(name, "panic") {
        let at = (main as *const () as usize + 8) & 0xffff_ffff;
        let mut text = *b"it broke \x1b[31m\n  #0 0x7ff0........\n";
        for (index, digit) in text[26..34].iter_mut().enumerate() {
            let nibble = (at >> (28 - 4 * index) & 15) as u8;
            *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        }
        finish_with(exit::PANIC, 0, &text)
    } else if is(name, "triple-fault") {
        for offset in 0..4096 {
            store(TRAP_GPA + torpor_abi::trap::IDT_OFFSET + offset, 0);
        }
        // SAFETY: ends this guest, which is the point.
        unsafe { asm!("ud2", options(noreturn)) }
    } else if is(name, "nowhere") {
        // A write where there is no memory, and no doorbell.
        store(DOORBELL_GPA + 0x100000, 1);
        finish(0)
    } else if is(name, "bad-doorbell") {
        ring(0x800, 1);
        finish(0)
    } else if is(name, "bad-populate") {
        control().populate_gpa.store(!0xfff, Ordering::SeqCst);
        control().populate_bytes.store(0x2000, Ordering::SeqCst);
        ring(doorbell::POPULATE, 0);
        finish(0)
    } else if is(name, "bad-discard") {
        // All of its memory, code and stack included.
        control().populate_gpa.store(0, Ordering::SeqCst);
        control().populate_bytes.store(boot_info().ram_bytes, Ordering::SeqCst);
        ring(doorbell::DISCARD, 0);
        finish(0)
    } else if is(name, "bad-head") {
        control().tx_head.store(0x8000_0000, Ordering::SeqCst);
        ring(doorbell::NOTIFY, 0);
        loop {}
    } else if is(name, "bad-tail") {
        control().rx_tail.store(0x8000_0000, Ordering::SeqCst);
        print(b"ready\n");
        loop {}
    } else if is(name, "bad-frame") {
        // A header that promises more than a frame may hold.
        send(&Header { stream: 1, kind: kind::DATA, len: 0, argument: 0 }, 0);
        let head = control().tx_head.load(Ordering::SeqCst);
        for index in 0..64 {
            store(TX_RING_GPA + u64::from((head + index) % RING_BYTES as u32), 0xff);
        }
        control().tx_head.store(head + 64, Ordering::SeqCst);
        ring(doorbell::NOTIFY, 0);
        loop {}
    } else if is(name, "overrun") {
        for _ in 0..100 {
            send(&data(stream::STDOUT, MAX_PAYLOAD_BYTES), b'x');
        }
        finish(0)
    } else if is(name, "bad-stream") {
        send(&data(number, 1), 0);
        loop {}
    } else if is(name, "bad-open") {
        // A connection, with endpoints that are none.
        send(&Header { stream: number, kind: kind::OPEN, len: 48, argument: 1 }, 0);
        loop {}
    } else if is(name, "random") {
        random::run(number)
    } else if is(name, "report") {
        // What only the VM process may say.
        send(&Header { stream: stream::CONTROL, kind: 0x100, len: 0, argument: 0 }, 0);
        loop {}
    } else {
        finish(127 << 8)
    }
}

fn send_bytes(header: &Header, bytes: &[u8]) {
    let head = control().tx_head.load(Ordering::Relaxed);
    while head.wrapping_add(header.frame_bytes()).wrapping_sub(control().tx_tail.load(Ordering::SeqCst))
        > RING_BYTES as u32
    {
        ring(doorbell::NOTIFY, 0);
        core::hint::spin_loop();
    }
    let at = |index: u32| TX_RING_GPA + u64::from(head.wrapping_add(index) % RING_BYTES as u32);
    for (index, value) in header.encode().iter().chain(bytes).enumerate() {
        store(at(index as u32), *value);
    }
    control().tx_head.store(head.wrapping_add(header.frame_bytes()), Ordering::SeqCst);
    if control().tx_polling.load(Ordering::SeqCst) == 0 {
        ring(doorbell::NOTIFY, 0);
    }
}

#[panic_handler]
fn panicked(_: &core::panic::PanicInfo<'_>) -> ! {
    finish_with(exit::PANIC, 0, b"the test guest panicked")
}

/// What the precompiled core library refers to; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

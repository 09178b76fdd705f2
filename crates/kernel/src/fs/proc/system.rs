//! Files of /proc about the machine as a whole.

use crate::errno::{Errno, Result};
use crate::fs::generated::Tree;
use crate::mm::addr::PAGE_BYTES;
use crate::mm::frame;
use crate::task::usage::Usage;
use crate::task::uts::{RELEASE, VERSION};
use crate::task::{loadavg, pid, sched};
use crate::time;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// sysconf(_SC_CLK_TCK) is 100.
const TICK_NS: u64 = 10_000_000;

pub(super) fn fill(tree: &mut Tree) {
    tree.text("cpuinfo", cpuinfo);
    tree.text("meminfo", meminfo);
    tree.text("stat", stat);
    tree.text("uptime", uptime);
    tree.text("loadavg", load_averages);
    tree.text("version", version);
    tree.text("cmdline", || "torpor\n".into());
    tree.text("filesystems", || {
        "nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\nnodev\tdevtmpfs\nnodev\tdevpts\n\terofs\nnodev\toverlay\n".into()
    });
    tree.text("locks", crate::fs::lock::text);
    tree.text("swaps", || "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".into());
    tree.text("devices", || {
        "Character devices:\n  1 mem\n  5 /dev/tty\n  5 /dev/ptmx\n 10 misc\n136 pts\n\nBlock devices:\n".into()
    });
    tree.text("partitions", || "major minor  #blocks  name\n\n".into());
    tree.text("diskstats", String::new);
    tree.text("modules", String::new);
    tree.text("vmstat", vmstat);
    tree.setting("sysrq-trigger", String::new, Rc::new(sysrq));
    tree.text("interrupts", || "           CPU0       \n".into());
}

/// Of Linux's magic keys there is the one that crashes the system, so that the end of a kernel can be seen.
fn sysrq(keys: &[u8]) -> Result<()> {
    match keys.first() {
        Some(b'c') => panic!("sysrq triggered crash"),
        _ => Err(Errno::EINVAL),
    }
}

fn version() -> String {
    format!("Linux version {RELEASE} (torpor@localhost) {VERSION}\n")
}

fn cpuinfo() -> String {
    use core::arch::x86_64::__cpuid;
    let leaf0 = __cpuid(0);
    let leaf1 = __cpuid(1);
    let mut vendor = [0; 12];
    for (n, word) in [leaf0.ebx, leaf0.edx, leaf0.ecx].iter().enumerate() {
        vendor[4 * n..4 * n + 4].copy_from_slice(&word.to_le_bytes());
    }
    let mut brand = [0u8; 48];
    if __cpuid(0x8000_0000).eax >= 0x8000_0004 {
        for n in 0..3 {
            let leaf = __cpuid(0x8000_0002 + n);
            for (m, word) in [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx].iter().enumerate() {
                let at = 16 * n as usize + 4 * m;
                brand[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_matches(['\0', ' ']).into();
    let (vendor, brand): (String, String) = (text(&vendor), text(&brand));
    let base_family = leaf1.eax >> 8 & 0xf;
    let family = if base_family == 0xf { base_family + (leaf1.eax >> 20 & 0xff) } else { base_family };
    let model = leaf1.eax >> 4 & 0xf | leaf1.eax >> 12 & 0xf0;
    let mhz = time::tsc_hz() as f64 / 1e6;
    let cache = __cpuid(0x8000_0006).ecx >> 16;
    format!(
        "processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {brand}\n\
         stepping\t: {}\ncpu MHz\t\t: {mhz:.3}\ncache size\t: {cache} KB\nphysical id\t: 0\nsiblings\t: 1\ncore id\t\t: 0\n\
         cpu cores\t: 1\napicid\t\t: 0\ninitial apicid\t: 0\nfpu\t\t: yes\nfpu_exception\t: yes\ncpuid level\t: {}\nwp\t\t: yes\n\
         flags\t\t: {}\nbugs\t\t:\nbogomips\t: {:.2}\nclflush size\t: 64\ncache_alignment\t: 64\naddress sizes\t: 48 bits physical, 48 bits virtual\n\
         power management:\n\n",
        leaf1.eax & 0xf,
        leaf0.eax,
        flags(),
        mhz * 2.0
    )
}

/// Names of CPUID bits as Linux's arch/x86/include/asm/cpufeatures.h has them: (register, bit, name).
fn flags() -> String {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    const EDX1: [&str; 32] = [
        "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "", "sep", "mtrr", "pge", "mca", "cmov",
        "pat", "pse36", "pn", "clflush", "", "dts", "acpi", "mmx", "fxsr", "sse", "sse2", "ss", "ht", "tm", "ia64",
        "pbe",
    ];
    const ECX1: [&str; 32] = [
        "pni",
        "pclmulqdq",
        "dtes64",
        "monitor",
        "ds_cpl",
        "vmx",
        "smx",
        "est",
        "tm2",
        "ssse3",
        "cid",
        "sdbg",
        "fma",
        "cx16",
        "xtpr",
        "pdcm",
        "",
        "pcid",
        "dca",
        "sse4_1",
        "sse4_2",
        "x2apic",
        "movbe",
        "popcnt",
        "tsc_deadline_timer",
        "aes",
        "xsave",
        "",
        "avx",
        "f16c",
        "rdrand",
        "hypervisor",
    ];
    const EBX7: [&str; 32] = [
        "fsgsbase",
        "tsc_adjust",
        "",
        "bmi1",
        "hle",
        "avx2",
        "",
        "smep",
        "bmi2",
        "erms",
        "invpcid",
        "rtm",
        "",
        "",
        "mpx",
        "",
        "avx512f",
        "avx512dq",
        "rdseed",
        "adx",
        "smap",
        "avx512ifma",
        "",
        "clflushopt",
        "clwb",
        "",
        "avx512pf",
        "avx512er",
        "avx512cd",
        "sha_ni",
        "avx512bw",
        "avx512vl",
    ];
    let mut out = String::new();
    let mut add = |word: u32, names: &[&str; 32]| {
        for (bit, name) in names.iter().enumerate() {
            if word >> bit & 1 == 1 && !name.is_empty() {
                out.push_str(name);
                out.push(' ');
            }
        }
    };
    let leaf1 = __cpuid(1);
    add(leaf1.edx, &EDX1);
    add(leaf1.ecx, &ECX1);
    if __cpuid(0).eax >= 7 {
        add(__cpuid_count(7, 0).ebx, &EBX7);
    }
    out.push_str("syscall nx lm constant_tsc nonstop_tsc");
    out
}

fn meminfo() -> String {
    let usage = frame::usage();
    let kib = |bytes: u64| bytes >> 10;
    let (total, free) = (kib(usage.limit_bytes), kib(usage.free_bytes()));
    // The only cached pages are those of files that were written: the image is not in this memory.
    let shared = kib(usage.shared_bytes);
    let anonymous = (total - free).saturating_sub(shared + kib(usage.kernel_bytes));
    let mut out = String::new();
    for (name, value) in [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", free),
        ("Buffers", 0),
        ("Cached", shared),
        ("SwapCached", 0),
        ("Active", total - free),
        ("Inactive", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", anonymous),
        ("Mapped", kib(mapped_bytes()).min(shared)),
        ("Shmem", shared),
        ("Slab", kib(usage.kernel_bytes)),
        ("SReclaimable", 0),
        ("SUnreclaim", kib(usage.kernel_bytes)),
        ("CommitLimit", total),
        ("Committed_AS", total - free),
        ("VmallocTotal", 0),
        ("VmallocUsed", 0),
        ("HugePages_Total", 0),
        ("HugePages_Free", 0),
        ("Hugepagesize", 2048),
    ] {
        let unit = if name.starts_with("HugePages_") { "" } else { " kB" };
        let _ = writeln!(out, "{:<16}{value:>8}{unit}", format!("{name}:"));
    }
    out
}

/// What processes have mapped of files and shared memory, each process by itself.
fn mapped_bytes() -> u64 {
    let mut spaces: Vec<_> = pid::processes().iter().filter_map(|process| process.try_space()).collect();
    spaces.sort_by_key(Rc::as_ptr);
    spaces.dedup_by_key(|space| Rc::as_ptr(space));
    spaces.iter().map(|space| space.resident_pages().shared_pages * PAGE_BYTES).sum()
}

/// User, system and idle time of the one processor, in ticks.
fn processor_ticks() -> (u64, u64, u64) {
    let (user, system) = pid::processes()
        .iter()
        .flat_map(|p| p.threads())
        .fold((0, 0), |(u, s), t| (u + t.sched.user_ns(), s + t.sched.system_ns()));
    (user / TICK_NS, system / TICK_NS, sched::idle_ns() / TICK_NS)
}

fn stat() -> String {
    let (user, system, idle) = processor_ticks();
    let boot = (time::realtime_ns() - time::boottime_ns()) / 1_000_000_000;
    let line = format!("{user} 0 {system} {idle} 0 0 0 0 0 0");
    format!(
        "cpu  {line}\ncpu0 {line}\nintr 0\nctxt {}\nbtime {boot}\nprocesses {}\nprocs_running {}\nprocs_blocked 0\nsoftirq 0\n",
        sched::switches(),
        pid::last(),
        sched::runnable()
    )
}

fn uptime() -> String {
    let hundredths = |ns: u64| format!("{}.{:02}", ns / 1_000_000_000, ns / TICK_NS % 100);
    format!("{} {}\n", hundredths(time::boottime_ns()), hundredths(sched::idle_ns()))
}

fn load_averages() -> String {
    const ONE: u32 = 1 << loadavg::FRACTION_BITS;
    let shown = |load: u32| {
        // Rounded to hundredths.
        let load = load + ONE / 200;
        format!("{}.{:02}", load / ONE, load % ONE * 100 / ONE)
    };
    let [one, five, fifteen] = loadavg::current().map(shown);
    format!("{one} {five} {fifteen} {}/{} {}\n", sched::runnable(), pid::thread_count(), pid::last())
}

fn vmstat() -> String {
    let usage = frame::usage();
    let faults: u64 = pid::processes().iter().map(|process| Usage::of_process(process).faults).sum();
    format!(
        "nr_free_pages {}\nnr_anon_pages {}\npgpgin 0\npgpgout 0\npswpin 0\npswpout 0\npgfault {faults}\npgmajfault 0\n",
        usage.free_bytes() >> 12,
        usage.used_bytes >> 12
    )
}

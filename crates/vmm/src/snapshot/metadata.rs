//! What a snapshot says of itself, and whether it fits here.

use super::BadSnapshot;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::fmt;

/// SHA-256 of a file, or a digest of an owner's name; in text 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Digest(pub [u8; 32]);

/// An instance's uuid; in text 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Uuid(pub [u8; 16]);

/// Bytes as text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Text as bytes.
pub(crate) fn unhex_all(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().as_chunks::<2>();
    if !pairs.1.is_empty() {
        return None;
    }
    pairs.0.iter().map(|pair| unhex::<1>(str::from_utf8(pair).ok()?).map(|[byte]| byte)).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    let digit = |c: u8| char::from(c).to_digit(16).filter(|_| !c.is_ascii_uppercase());
    let mut out = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(out)
}

macro_rules! in_hex {
    ($name:ident, $bytes:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&hex(&self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let wrong = || de::Error::custom(format!("{} hexadecimal digits are wanted", 2 * $bytes));
                unhex::<$bytes>(&text).map(Self).ok_or_else(wrong)
            }
        }
    };
}
in_hex!(Digest, 32);
in_hex!(Uuid, 16);

/// What programs in the VM may have found out about the processor, and use from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuFeatures {
    /// State components that are enabled.
    pub xcr0: u64,
    /// CPUID leaf 1 ECX and EDX, leaf 7 EBX, ECX and EDX, leaf 0x80000001 ECX and EDX.
    pub words: [u32; 7],
}

/// CPUID.1:ECX: OSXSAVE and the hypervisor's bit say nothing of the processor.
const NOT_FEATURES: u32 = 1 << 27 | 1 << 31;

impl CpuFeatures {
    /// Of this machine; programs see these whatever KVM was told, on a software KVM.
    #[must_use]
    pub fn here(xcr0: u64) -> Self {
        let leaf = |leaf, sub| __cpuid_count(leaf, sub);
        let (one, seven, extended) = (leaf(1, 0), leaf(7, 0), leaf(0x8000_0001, 0));
        let words = [one.ecx & !NOT_FEATURES, one.edx, seven.ebx, seven.ecx, seven.edx, extended.ecx, extended.edx];
        Self { xcr0, words }
    }

    /// Whether all of `self` is in `there`.
    #[must_use]
    pub fn fit(&self, there: &Self) -> bool {
        self.xcr0 == there.xcr0 && self.words.iter().zip(&there.words).all(|(need, have)| need & !have == 0)
    }
}

/// XCR0 of this host.
#[must_use]
pub fn host_xcr0() -> u64 {
    // SAFETY: XGETBV needs CR4.OSXSAVE, which every Linux on a processor with XSAVE sets, and KVM is used with no other.
    unsafe { _xgetbv(0) }
}

/// What is the same for a template and all that is based on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Whose it is: nothing of one owner is ever restored as another's.
    pub owner: Digest,
    /// The EROFS image.
    pub image: Digest,
    /// Its size.
    pub image_bytes: u64,
    /// What programs may use.
    pub memory_limit_bytes: u64,
    /// Guest-physical RAM.
    pub ram_bytes: u64,
    /// [`torpor_abi::boot::VERSION`] of the kernel in it.
    pub kernel_abi: u32,
    /// Where the kernel goes on ([`torpor_abi::trap::KernelHeader::resume_entry`]), and its stub for LSTAR.
    pub resume_entry: u64,
    /// See above.
    pub syscall_stub: u64,
    /// The ranges of page tables: start and length each, the boot tables first, the kernel's own last.
    pub tables: Vec<(u64, u64)>,
    /// See [`CpuFeatures`].
    pub cpu: CpuFeatures,
}

/// All that a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Common to the family.
    pub machine: Machine,
    /// The template that a warm base or delta differs from.
    pub template: Option<Digest>,
    /// The warm base that pages are coded against.
    pub warm_base: Option<Digest>,
    /// Whose state it is (of a template: the VM that made it).
    pub uuid: Uuid,
    /// Of the state.
    pub generation: u64,
    /// Host CLOCK_REALTIME at the stop.
    pub stopped_at_ns: u64,
    /// From the stop to the next timer on CLOCK_MONOTONIC.
    pub next_deadline_ns: Option<u64>,
    /// What a first generation has needed; in a warm base what siblings need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_set: Option<WorkingSet>,
    /// Streams to the outside ([`torpor_streams::parked`]), in hexadecimal; empty where there are none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub streams: String,
}

/// Pages that a VM needs, those of the image behind [`torpor_abi::layout::IMAGE_GPA`]: first page and number of pages each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkingSet {
    /// The page tables by whose addresses it needs them.
    pub root: u64,
    /// All of them.
    pub touched: Vec<(u32, u32)>,
    /// Those that it writes.
    pub written: Vec<(u32, u32)>,
}

impl Metadata {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadSnapshot> {
        serde_json::from_slice(bytes).map_err(|error| BadSnapshot::format(format!("metadata: {error}")))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data")
    }

    /// Whether this delta or warm base can be put into a VM of the template with digest `template`.
    ///
    /// # Errors
    /// [`BadSnapshot::Mismatch`] with what differs.
    pub fn check_family(&self, machine: &Machine, template: Digest) -> Result<(), BadSnapshot> {
        let mismatch = |what: String| Err(BadSnapshot::Mismatch(what));
        if self.machine.owner != machine.owner {
            return mismatch("it belongs to another owner".into());
        }
        if self.template != Some(template) {
            let named = self.template.map_or("no template".into(), |digest| format!("template {digest}"));
            return mismatch(format!("it is based on {named}, and this VM is of template {template}"));
        }
        if self.machine.memory_limit_bytes != machine.memory_limit_bytes {
            let mib = |bytes: u64| bytes >> 20;
            return mismatch(format!(
                "it is of a VM with {} MiB of memory, and this one has {}",
                mib(self.machine.memory_limit_bytes),
                mib(machine.memory_limit_bytes)
            ));
        }
        self.check_cpu(&machine.cpu)?;
        if self.machine != *machine {
            return mismatch("image, kernel or memory layout differ from the template's".into());
        }
        Ok(())
    }

    /// Whether this host's processor can go on with it.
    ///
    /// # Errors
    /// [`BadSnapshot::Mismatch`].
    pub fn check_cpu(&self, here: &CpuFeatures) -> Result<(), BadSnapshot> {
        if self.machine.cpu.fit(here) {
            return Ok(());
        }
        Err(BadSnapshot::Mismatch(format!(
            "it needs processor features that this host lacks (needs {:x?}, has {here:x?})",
            self.machine.cpu
        )))
    }
}

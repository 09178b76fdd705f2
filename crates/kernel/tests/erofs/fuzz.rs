//! Mutation fuzzing: whatever is in an image, the reader answers, and reads nothing outside it.
//!
//! Cases are numbered from 0; the number is the case's seed. TORPOR_FUZZ_SECONDS sets how long each test
//! runs (2). A failure prints the case's number, which TORPOR_FUZZ_CASE repeats alone: exactly so for
//! damaged images, but for the timing for images that change.

use std::collections::HashSet;
use std::env;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use torpor_kernel::fs::erofs::{Erofs, Extent, Image};

use crate::image::{Fenced, Patch, scratch_dir};
use crate::tree::{ACL_USER_1234_READS, Data, Kind, Node, Tree};

/// xorshift64*, so that a case is the same everywhere and for ever.
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }
}

/// An image with some of everything, and where in it the metadata is.
struct Seed {
    image: Vec<u8>,
    metadata: Vec<Range<usize>>,
}

impl Seed {
    fn new(patch: Patch) -> Self {
        let image = patch.image();
        let erofs = image.erofs();
        let shared_xattrs = patch.u32(Patch::SUPERBLOCK + 44) as usize * 4096;
        let mut metadata = vec![1024..1152, shared_xattrs..shared_xattrs + 512];
        let mut seen = HashSet::new();
        let mut queue = vec![erofs.root_nid()];
        while let Some(nid) = queue.pop() {
            if !seen.insert(nid) {
                continue;
            }
            // The inode with its attributes or chunks, or some of them.
            let at = patch.u32(Patch::SUPERBLOCK + 40) as usize * 4096 + nid as usize * 32;
            metadata.push(at..at + 128);
            let inode = erofs.inode(nid).unwrap();
            let mut cookie = 0;
            while let Ok(Some(entry)) = erofs.readdir(&inode, cookie) {
                let extent = erofs.extent(&inode, cookie).unwrap();
                if let Some(Extent::Data { offset_bytes, .. }) = extent {
                    metadata.push(offset_bytes as usize..offset_bytes as usize + 12);
                }
                queue.push(entry.nid);
                cookie = entry.next_cookie;
            }
        }
        metadata.retain(|range| range.end <= patch.0.len());
        Self { image: patch.0, metadata }
    }
}

/// One image in each of a few layouts.
fn seeds() -> Vec<Seed> {
    let mut nodes: Vec<_> = (0..120)
        .map(|i| {
            let mut node = Node::new(&format!("file-{i}"), Kind::File(Data::dense(i * 37)));
            node.xattrs = vec![("user.shared".into(), b"v".to_vec()), (format!("user.{i}"), vec![7; i])];
            node
        })
        .collect();
    nodes.push(Node::new("link", Kind::Symlink("target".into())));
    nodes.push(Node::new("long", Kind::Symlink("t".repeat(4000))));
    nodes.push(Node::new("fifo", Kind::Fifo));
    let sparse = Data { size: 200_000, stored_blocks: vec![3, 7] };
    let mut inner = Node::new("sparse", Kind::File(sparse));
    inner.privileged_xattrs = vec![("system.posix_acl_access".into(), ACL_USER_1234_READS.to_vec())];
    nodes.push(Node::new("dir", Kind::Dir(vec![Node::new("sub", Kind::Dir(vec![inner]))])));
    let dir = scratch_dir();
    Tree { nodes }.make(dir.path());
    let layouts: [&[&str]; 3] =
        [&["-x1"], &["--chunksize=4096", "-x1"], &["--chunksize=8192", "-Eforce-chunk-indexes"]];
    layouts.map(|options| Seed::new(Patch::of_directory(dir.path(), options))).into()
}

/// Uses everything that is reachable from the root, within a budget of operations: a damaged image
/// may describe far more than it holds.
fn walk(image: Image, rng: &mut Rng) {
    let Ok(erofs) = Erofs::open(image) else {
        return;
    };
    let mut budget = 3000;
    let mut seen = HashSet::new();
    let mut queue = vec![erofs.root_nid(), rng.next(), rng.next() % 4096];
    while let Some(nid) = queue.pop() {
        if !seen.insert(nid) {
            continue;
        }
        let Ok(inode) = erofs.inode(nid) else {
            continue;
        };
        assert!(inode.size_bytes <= i64::MAX as u64 && inode.mtime_ns < 1_000_000_000);
        let mut cookie = 0;
        while let Ok(Some(entry)) = erofs.readdir(&inode, cookie) {
            assert!(entry.next_cookie > cookie);
            let name = entry.name.as_bytes();
            assert!(!name.is_empty() && !name.contains(&0) && !name.contains(&b'/'));
            let _ = erofs.lookup(&inode, name);
            queue.push(entry.nid);
            cookie = entry.next_cookie;
            budget -= 1;
            if budget <= 0 {
                return;
            }
        }
        let _ = erofs.readdir(&inode, rng.next());
        let _ = erofs.lookup(&inode, b"file-77");
        if let Ok(target) = erofs.readlink(&inode) {
            assert!((1..4096).contains(&target.len()));
        }
        if let Ok(names) = erofs.list_xattrs(&inode) {
            assert!(names.len() <= 65536);
            for name in names.split(|&b| b == 0).take(20) {
                let _ = erofs.get_xattr(&inode, name);
            }
        }
        let mut buf = [0; 6000];
        let size = inode.size_bytes;
        for offset in [0, size / 2, size.wrapping_sub(1), size, rng.next(), u64::MAX] {
            let want = rng.below(buf.len());
            if let Ok(len) = erofs.read_at(&inode, offset, &mut buf[..want]) {
                assert!(len <= want && len as u64 <= size.saturating_sub(offset));
            }
            let _ = erofs.page(&inode, offset / 4096);
            let _ = erofs.extent(&inode, offset);
        }
        budget -= 1;
        if budget <= 0 {
            return;
        }
    }
}

/// A place in the image, mostly in the metadata.
fn place(seed: &Seed, rng: &mut Rng) -> usize {
    let range = match rng.below(10) {
        0 => 0..seed.image.len(),
        1 => seed.metadata[0].clone(),
        _ => seed.metadata[rng.below(seed.metadata.len())].clone(),
    };
    range.start + rng.below(range.len())
}

/// The image with a few bytes changed, mostly to what makes trouble.
fn mutate(seed: &Seed, rng: &mut Rng) -> Vec<u8> {
    const NASTY: [u64; 10] = [0, 1, 0x7f, 0xff, 0xfff, 0x1000, 0xffff, 0x7fff_ffff, u32::MAX as u64, u64::MAX];
    let mut image = seed.image.clone();
    for _ in 0..=rng.below(12) {
        let at = place(seed, rng);
        let width = (1 << rng.below(4)).min(image.len() - at);
        // Fields lie at multiples of their size.
        let at = at / width * width;
        match rng.below(4) {
            0 => image[at] ^= 1 << rng.below(8),
            1 => {
                let value = NASTY[rng.below(NASTY.len())].to_le_bytes();
                image[at..at + width].copy_from_slice(&value[..width]);
            }
            2 => {
                let value = (rng.next() % image.len() as u64 / 4096).to_le_bytes();
                image[at..at + width].copy_from_slice(&value[..width]);
            }
            _ => {
                let from = rng.below(image.len() - 64);
                let len = 64.min(image.len() - at);
                image.copy_within(from..from + len, at);
            }
        }
    }
    image
}

fn seconds() -> Duration {
    let text = env::var("TORPOR_FUZZ_SECONDS").unwrap_or_else(|_| "2".into());
    Duration::from_secs(text.parse().expect("TORPOR_FUZZ_SECONDS is a number of seconds"))
}

/// Runs `case` for the numbers from 0 on until the time is over, or for the one that is asked for.
/// One that does not end within a minute is a hang, which ends the process.
fn run(name: &str, case: impl Fn(u64)) {
    let only: Option<u64> =
        env::var("TORPOR_FUZZ_CASE").ok().map(|text| text.parse().expect("TORPOR_FUZZ_CASE is a case's number"));
    let current = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = (u64::MAX, Instant::now());
            while !done.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(50));
                let number = current.load(Ordering::Relaxed);
                if number != last.0 {
                    last = (number, Instant::now());
                } else if last.1.elapsed() > Duration::from_secs(60) {
                    eprintln!("{name}: TORPOR_FUZZ_CASE={number} hangs");
                    std::process::abort();
                }
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let start = Instant::now();
            for number in only.map_or(0..u64::MAX, |n| n..n + 1) {
                current.store(number, Ordering::Relaxed);
                case(number);
                if start.elapsed() > seconds() {
                    break;
                }
            }
        }));
        done.store(true, Ordering::Relaxed);
        let number = current.load(Ordering::Relaxed);
        if let Err(panic) = outcome {
            eprintln!("{name}: repeat with TORPOR_FUZZ_CASE={number}");
            std::panic::resume_unwind(panic);
        }
        println!("{name}: {} cases", number + 1 - only.unwrap_or(0));
    });
}

#[test]
fn damaged_images_are_survived() {
    let seeds = seeds();
    run("damaged images", |number| {
        let mut rng = Rng::new(number);
        let mut image = mutate(&seeds[rng.below(seeds.len())], &mut rng);
        // Some lose their end as well; the length that is stated then has to be made to agree.
        if rng.below(8) == 0 {
            image.truncate(4096 + rng.below(image.len() - 4096));
            let nr_blocks = (image.len() / 4096) as u32;
            image[1024 + 36..1024 + 40].copy_from_slice(&nr_blocks.to_le_bytes());
        }
        let fenced = Fenced::new(&image);
        // SAFETY: the walk ends before `fenced` does, and keeps nothing.
        walk(unsafe { fenced.image() }, &mut rng);
    });
}

#[test]
fn images_that_change_while_read_are_survived() {
    let seeds = seeds();
    run("changing images", |number| {
        let mut rng = Rng::new(number);
        let seed = &seeds[rng.below(seeds.len())];
        let fenced = Fenced::new(&seed.image);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let mut writer_rng = Rng::new(!number);
            let (fenced, stop) = (&fenced, &stop);
            scope.spawn(move || {
                // Flips bytes to damage and back, so that the walk gets on.
                while !stop.load(Ordering::Relaxed) {
                    let at = place(seed, &mut writer_rng);
                    fenced.write(at, writer_rng.next() as u8);
                    fenced.write(at, seed.image[at]);
                }
            });
            // SAFETY: the walk ends before `fenced` does, and keeps nothing.
            walk(unsafe { fenced.image() }, &mut rng);
            stop.store(true, Ordering::Relaxed);
        });
    });
}

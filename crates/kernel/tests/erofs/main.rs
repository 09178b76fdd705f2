//! The EROFS reader against mkfs.erofs: what a source tree holds is what the reader finds in an image
//! of it; and against damaged images, where it must answer with an error.

mod compare;
mod crafted;
mod damage;
mod fuzz;
mod image;
mod tree;

use std::os::unix::ffi::OsStrExt;

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use torpor_kernel::errno::Errno;
use torpor_kernel::fs::erofs::FilePage;
use torpor_kernel::fs::inode::FileType;

use compare::{Times, compare};
use image::{TestImage, scratch_dir};
use tree::{Data, Kind, Node, Tree};

/// Every way in which mkfs.erofs 1.5 lays out uncompressed files and their metadata.
const LAYOUTS: [&[&str]; 9] = [
    &[],
    &["-Enoinline_data"],
    &["-Eforce-inode-extended"],
    &["--ignore-mtime"],
    &["-x1", "-Enoinline_data"],
    &["-x0"],
    &["--chunksize=4096"],
    &["--chunksize=4096", "-Eforce-chunk-indexes", "-x1"],
    &["--chunksize=65536"],
];

/// Makes the tree, and an image of it in every layout, and compares each with the tree.
fn check_all_layouts(tree: &Tree) {
    let dir = scratch_dir();
    let source = dir.path().join("source");
    tree.make(&source);
    for options in LAYOUTS {
        let image = TestImage::of_directory(&source, options);
        let times = if options.contains(&"--ignore-mtime") { Times::Ignored } else { Times::Kept };
        compare(&image.erofs(), &source, times)
            .unwrap_or_else(|difference| panic!("mkfs.erofs {options:?}: {difference}"));
    }
}

fn file(name: &str, data: Data) -> Node {
    Node::new(name, Kind::File(data))
}

#[test]
fn random_trees_read_back() {
    let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    runner
        .run(&tree::strategy(), |tree| {
            check_all_layouts(&tree);
            Ok(())
        })
        .unwrap();
}

#[test]
fn sizes_around_block_boundaries() {
    // An inline tail fits beside the inode or does not, depending on its length.
    let sizes = (0..4).flat_map(|blocks| {
        [0, 1, 31, 32, 2000, 3900, 3996, 4032, 4063, 4064, 4065, 4095].map(|rest| blocks * 4096 + rest)
    });
    let nodes = sizes.map(|size| file(&format!("f{size:05}"), Data::dense(size))).collect();
    check_all_layouts(&Tree { nodes });
}

#[test]
fn holes() {
    let nodes = vec![
        file("all-hole", Data { size: 1 << 20, stored_blocks: vec![] }),
        file("hole-then-byte", Data { size: 70_001, stored_blocks: vec![17] }),
        file("byte-then-hole", Data { size: 70_001, stored_blocks: vec![0] }),
        file("comb", Data { size: 300_000, stored_blocks: (0..74).step_by(2).collect() }),
    ];
    check_all_layouts(&Tree { nodes });
}

#[test]
fn thousands_of_entries() {
    let mut nodes: Vec<_> = (0..6000).map(|i| file(&format!("{:x}-{i}", i * 7919 % 6007), Data::dense(0))).collect();
    nodes.push(file(&"n".repeat(254), Data::dense(3)));
    nodes.extend(["!", "~", "\u{7f}", "ä", "\u{10ffff}", "..x", ".-"].map(|n| file(n, Data::dense(1))));
    let dir = scratch_dir();
    let source = dir.path().join("source");
    Tree { nodes }.make(&source);
    for options in [&[][..], &["--chunksize=4096"]] {
        let image = TestImage::of_directory(&source, options);
        compare(&image.erofs(), &source, Times::Kept).unwrap();
    }
}

#[test]
fn cookies_resume_where_they_were_taken() {
    let nodes = (0..1000).map(|i| file(&format!("entry-{i}"), Data::dense(0))).collect();
    let dir = scratch_dir();
    Tree { nodes }.make(dir.path());
    let image = TestImage::of_directory(dir.path(), &[]);
    let erofs = image.erofs();
    let root = erofs.inode(erofs.root_nid()).unwrap();
    let mut entries = Vec::new();
    let mut cookies = vec![0];
    while let Some(entry) = erofs.readdir(&root, *cookies.last().unwrap()).unwrap() {
        entries.push(entry.name.as_bytes().to_vec());
        cookies.push(entry.next_cookie);
    }
    assert_eq!(entries.len(), 1002);
    assert!(entries.is_sorted());
    assert!(cookies.is_sorted_by(|a, b| a < b));
    for (cookie, name) in cookies.iter().zip(&entries) {
        let entry = erofs.readdir(&root, *cookie).unwrap().unwrap();
        assert_eq!(entry.name.as_bytes(), name);
    }
    // Any number is a cookie: it finds the first entry that is not before it.
    for cookie in 0..*cookies.last().unwrap() {
        let index = cookies.partition_point(|&known| known < cookie);
        let found = erofs.readdir(&root, cookie).unwrap().map(|entry| entry.name.as_bytes().to_vec());
        assert_eq!(found.as_ref(), entries.get(index), "cookie {cookie}");
    }
    for cookie in [*cookies.last().unwrap(), i64::MAX as u64, u64::MAX] {
        assert!(erofs.readdir(&root, cookie).unwrap().is_none());
    }
}

#[test]
fn deep_directories() {
    let mut node = file("bottom", Data::dense(5000));
    for depth in 0..200 {
        node = Node::new(&format!("d{depth}"), Kind::Dir(vec![node]));
    }
    check_all_layouts(&Tree { nodes: vec![node] });
}

#[test]
fn shared_and_inline_xattrs() {
    let mut nodes: Vec<_> = (0..40)
        .map(|i| {
            let mut node = file(&format!("f{i:02}"), Data::dense(i * 200));
            node.xattrs = vec![
                ("user.shared".into(), b"the same everywhere".to_vec()),
                ("user.own".into(), vec![i as u8; i]),
                (format!("user.name-{i}"), vec![]),
            ];
            if i % 3 == 0 {
                node.xattrs.push(("user.big".into(), vec![b'x'; 2000]));
            }
            node.privileged_xattrs = vec![
                ("trusted.overlay.opaque".into(), b"y".to_vec()),
                ("security.capability".into(), tree::CAP_NET_BIND_SERVICE.to_vec()),
                ("system.posix_acl_access".into(), tree::ACL_USER_1234_READS.to_vec()),
            ];
            node
        })
        .collect();
    let mut with_default_acl = Node::new("dir", Kind::Dir(vec![]));
    with_default_acl.privileged_xattrs = vec![("system.posix_acl_default".into(), tree::ACL_USER_1234_READS.to_vec())];
    nodes.push(with_default_acl);
    check_all_layouts(&Tree { nodes });
}

#[test]
fn absent_attributes_and_names() {
    let mut node = file("f", Data::dense(10));
    node.xattrs = vec![("user.a".into(), b"1".to_vec())];
    let dir = scratch_dir();
    Tree { nodes: vec![node, file("g", Data::dense(1))] }.make(dir.path());
    let image = TestImage::of_directory(dir.path(), &[]);
    let erofs = image.erofs();
    let root = erofs.inode(erofs.root_nid()).unwrap();
    for absent in [&b""[..], b"e", b"ff", b"h", b"F", &[b'f'; 300], b"f\0", b"/"] {
        assert_eq!(erofs.lookup(&root, absent).unwrap(), None, "{absent:?}");
    }
    let (nid, file_type) = erofs.lookup(&root, b"f").unwrap().unwrap();
    assert_eq!(file_type, Some(FileType::Regular));
    let f = erofs.inode(nid).unwrap();
    assert_eq!(erofs.get_xattr(&f, b"user.a").unwrap().unwrap(), b"1");
    for absent in [&b""[..], b"user.", b"user.b", b"user.aa", b"trusted.a", b"a"] {
        assert_eq!(erofs.get_xattr(&f, absent).unwrap(), None, "{absent:?}");
    }
    assert_eq!(erofs.lookup(&f, b"x").unwrap_err().errno(), Errno::ENOTDIR);
    assert_eq!(erofs.readlink(&f).unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn whole_pages_come_from_the_image() {
    let nodes = vec![file("plain", Data::dense(10 * 4096)), file("tail", Data::dense(10 * 4096 + 5))];
    let dir = scratch_dir();
    Tree { nodes }.make(dir.path());
    let page = |options: &[&str], name: &str, index| {
        let image = TestImage::of_directory(dir.path(), options);
        let erofs = image.erofs();
        let root = erofs.inode(erofs.root_nid()).unwrap();
        let (nid, _) = erofs.lookup(&root, name.as_bytes()).unwrap().unwrap();
        erofs.page(&erofs.inode(nid).unwrap(), index).unwrap()
    };
    for options in [&[][..], &["-Enoinline_data"]] {
        let FilePage::Mapped { nr_pages: 10, offset_bytes: first } = page(options, "plain", 0) else {
            panic!("{:?}", page(options, "plain", 0));
        };
        assert_eq!(page(options, "plain", 3), FilePage::Mapped { nr_pages: 7, offset_bytes: first + 3 * 4096 });
        assert_eq!(page(options, "plain", 10), FilePage::BeyondEnd);
        assert_eq!(page(options, "plain", u64::MAX), FilePage::BeyondEnd);
        assert!(matches!(page(options, "tail", 9), FilePage::Mapped { nr_pages: 1 | 2, .. }));
    }
    assert_eq!(page(&[], "tail", 10), FilePage::Copied);
    assert!(matches!(page(&["-Enoinline_data"], "tail", 10), FilePage::Mapped { nr_pages: 1, .. }));
}

#[test]
fn hard_links_share_an_inode() {
    let dir = scratch_dir();
    Tree { nodes: vec![file("a", Data::dense(10)), file("other", Data::dense(10))] }.make(dir.path());
    std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
    let image = TestImage::of_directory(dir.path(), &[]);
    let erofs = image.erofs();
    let root = erofs.inode(erofs.root_nid()).unwrap();
    let nid = |name: &std::ffi::OsStr| erofs.lookup(&root, name.as_bytes()).unwrap().unwrap().0;
    assert_eq!(nid("a".as_ref()), nid("b".as_ref()));
    assert_ne!(nid("a".as_ref()), nid("other".as_ref()));
    assert_eq!(erofs.inode(nid("a".as_ref())).unwrap().nlink, 2);
}

//! The guest's files against Linux's: random system calls run on both, over the same tree, and have to give the same
//! results and the same tree in the end. The guest's tree is an image under the writable layer; Linux's a tmpfs.

mod ops;
mod sides;
mod tree;

use ops::{Op, Runner};
use proptest::prelude::*;
use sides::{Guest, Native, in_own_thread};
use tree::InitialTree;

/// Runs the operations on both sides.
fn compare(initial: &InitialTree, ops: &[Op]) -> Result<(), String> {
    let (initial, ops) = (initial.clone(), ops.to_vec());
    in_own_thread(move || {
        let mut native = Native::new();
        let start = tree::start();
        initial.build(&native.root().join(&start));
        let mut guest = Guest::over(native.root());
        let tops = [tree::enter(&mut native, &start), tree::enter(&mut guest, &start)];
        let mut runner = Runner::new();
        for (index, op) in ops.iter().enumerate() {
            let expected = runner.run(&mut native, op);
            let got = runner.run(&mut guest, op);
            if expected != got {
                return Err(format!("operation {index} {op:?}\n  Linux {expected:?}\n  guest {got:?}"));
            }
        }
        for fd in runner.descriptors::<Guest>() {
            guest.check_mapping(fd)?;
        }
        let (expected, got) = (tree::snapshot(&mut native, tops[0]), tree::snapshot(&mut guest, tops[1]));
        for (expected, got) in expected.iter().zip(&got) {
            if expected != got {
                return Err(format!("at the end\n  Linux {expected:?}\n  guest {got:?}"));
            }
        }
        if expected.len() != got.len() {
            return Err(format!("at the end\n  Linux {expected:#?}\n  guest {got:#?}"));
        }
        Ok(())
    })
}

fn cases() -> u32 {
    std::env::var("FS_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn like_linux(initial in tree::initial_tree(), ops in prop::collection::vec(ops::op(), 1..120)) {
        if let Err(difference) = compare(&initial, &ops) {
            return Err(TestCaseError::fail(difference));
        }
    }
}

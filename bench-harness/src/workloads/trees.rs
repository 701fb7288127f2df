//! Binary trees of small nodes. Shows whether neighbours in the tree are neighbours in memory.

use std::hint::black_box;

use crate::run::Run;

/// A node of two pointers: 16 bytes.
struct Node {
    left: Option<Box<Node>>,
    right: Option<Box<Node>>,
}

impl Node {
    /// Builds a full tree with `depth` levels below its root.
    fn build(depth: u32) -> Box<Self> {
        let child = || depth.checked_sub(1).map(Self::build);
        Box::new(Self { left: child(), right: child() })
    }

    /// Returns the number of nodes in the tree.
    fn count(&self) -> u64 {
        let below = |child: &Option<Box<Self>>| child.as_ref().map_or(0, |node| node.count());
        1 + below(&self.left) + below(&self.right)
    }
}

/// Keeps one tree alive throughout, and builds and drops others.
pub(super) fn run(run: &mut Run) {
    let depth = run.pick(17, 16, 4);
    let trees: u64 = run.pick(12, 3, 2);
    let nodes = 2_u64.pow(depth + 1) - 1;
    let long_lived = Node::build(depth);
    run.time(trees * nodes, || {
        for _ in 0..trees {
            let tree = black_box(Node::build(depth));
            assert_eq!(tree.count(), nodes);
        }
    });
    assert_eq!(long_lived.count(), nodes);
}

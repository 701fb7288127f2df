//! The tree of calls.

use std::io::Write;

use crate::failure::Failure;
use crate::number::{percent, value};
use crate::stacks::Stacks;

/// A function as called by one chain of callers.
pub(crate) struct Node {
    /// Index of its name; `None` at the root, which stands for all.
    pub(crate) name: Option<usize>,
    /// Functions that call each other down to this one.
    pub(crate) depth: usize,
    pub(crate) flat: i64,
    pub(crate) cum: i64,
    children: Vec<usize>,
}

/// All calls.
pub(crate) struct Tree {
    /// The root is the first.
    nodes: Vec<Node>,
}

impl Tree {
    pub(crate) fn new(stacks: &Stacks) -> Tree {
        let node = |name, depth| Node { name, depth, flat: 0, cum: 0, children: Vec::new() };
        let mut nodes = vec![node(None, 0)];
        for (stack, value) in &stacks.stacks {
            let mut at = 0;
            nodes[at].cum = nodes[at].cum.saturating_add(*value);
            for name in stack {
                // Stacks are sorted, so a child that exists is the last one.
                let last = nodes[at].children.last().copied();
                let child = match last.filter(|last| nodes[*last].name == Some(*name)) {
                    Some(child) => child,
                    None => {
                        let child = nodes.len();
                        nodes.push(node(Some(*name), nodes[at].depth + 1));
                        nodes[at].children.push(child);
                        child
                    }
                };
                at = child;
                nodes[at].cum = nodes[at].cum.saturating_add(*value);
            }
            nodes[at].flat = nodes[at].flat.saturating_add(*value);
        }
        Tree { nodes }
    }

    pub(crate) fn root(&self) -> &Node {
        &self.nodes[0]
    }

    /// Returns the functions that `node` calls, the largest first.
    pub(crate) fn children(&self, node: &Node) -> Vec<&Node> {
        let mut children: Vec<_> = node.children.iter().map(|index| &self.nodes[*index]).collect();
        children.sort_by_key(|node| (std::cmp::Reverse(node.cum), node.name));
        children
    }
}

/// Prints the calls that hold at least `least` percent.
pub(crate) fn print(stacks: &Stacks, least: f64, to: &mut impl Write) -> Result<(), Failure> {
    writeln!(to, "{}\n", stacks.headline())?;
    let tree = Tree::new(stacks);
    let unit = &stacks.kind.unit;
    let least = (tree.root().cum as f64).abs() * least / 100.0;
    // Not by recursion: stacks may be deep.
    let mut left = vec![tree.root()];
    writeln!(to, "{:>8} {:>6} {:>8}  CALLS", "CUM", "CUM%", "FLAT")?;
    while let Some(node) = left.pop() {
        if let Some(name) = node.name {
            let (cum, flat) = (value(node.cum, unit), value(node.flat, unit));
            let share = percent(node.cum, stacks.total);
            let indent = "  ".repeat(node.depth - 1);
            let name = stacks.name(name);
            writeln!(to, "{cum:>8} {share:>6} {flat:>8}  {indent}{name}")?;
        }
        let children = tree.children(node).into_iter();
        left.extend(children.rev().filter(|child| (child.cum as f64).abs() >= least));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::View;
    use crate::profile::tests::made;

    #[test]
    fn calls_are_indented_under_their_callers() {
        let profile = made(&[
            (&["f", "main"], 3, ""),
            (&["g", "f", "main"], 4, ""),
            (&["h", "main"], 8, ""),
            (&["tiny"], 1, ""),
        ]);
        let stacks = Stacks::new(&profile, &View::default());
        let stacks = stacks.unwrap_or_else(|error| panic!("{error:?}"));
        let mut text = Vec::new();
        print(&stacks, 10.0, &mut text).unwrap();
        let expected = "space: 16B\n\n     \
             CUM   CUM%     FLAT  CALLS\n     \
             15B  93.8%       0B  main\n      \
              8B  50.0%       8B    h\n      \
              7B  43.8%       3B    f\n      \
              4B  25.0%       4B      g\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}

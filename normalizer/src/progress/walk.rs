//! The walk through a sub-batch that was refused for its rows' sake (R15): halves at the midpoint, until
//! each refused row stands alone. Its nodes are a function of the number of rows, so that a crash repeats
//! the same walk under the same tokens.

use std::collections::BTreeSet;

/// Rows `[from, to)` of a sub-batch, in log order.
pub type Node = (u32, u32);

/// Where a walk stands: the nodes whose rows have no outcome yet. They do not overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Walk {
    open: BTreeSet<Node>,
}

impl Walk {
    /// A walk of `rows` rows, of which `dead` have their outcome.
    #[must_use]
    pub fn begin(rows: u32, dead: &[u32]) -> Self {
        let mut walk = Self::default();
        match rows {
            0 => {}
            1 => walk.open_up((0, 1), dead),
            _ => walk.halve((0, rows), dead),
        }
        walk
    }

    /// The nodes to be settled.
    pub fn nodes(&self) -> impl Iterator<Item = Node> + '_ {
        self.open.iter().copied()
    }

    /// Whether every row has an outcome.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether the node is still to be settled.
    #[must_use]
    pub fn holds(&self, node: Node) -> bool {
        self.open.contains(&node)
    }

    /// Open → settled: all of its rows are there, or its one row is dead.
    pub fn settle(&mut self, node: Node) {
        self.open.remove(&node);
    }

    /// Open → two open halves; halves that hold a dead row are gone down into without being sent.
    pub fn halve(&mut self, (from, to): Node, dead: &[u32]) {
        self.open.remove(&(from, to));
        let middle = from + (to - from) / 2;
        self.open_up((from, middle), dead);
        self.open_up((middle, to), dead);
    }

    fn open_up(&mut self, (from, to): Node, dead: &[u32]) {
        let is_dead = dead.iter().any(|row| (from..to).contains(row));
        match (is_dead, to - from) {
            (false, 1..) => {
                self.open.insert((from, to));
            }
            (true, 2..) => self.halve((from, to), dead),
            (false, 0) | (true, 0 | 1) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Walks to the end with these rows refused; the sent nodes, in order.
    fn sent(rows: u32, bad: &BTreeSet<u32>, dead: &[u32]) -> (Vec<Node>, BTreeSet<u32>) {
        let (mut walk, mut sent, mut found) = (Walk::begin(rows, dead), Vec::new(), BTreeSet::new());
        loop {
            let next = walk.nodes().next();
            let Some(node) = next else { break };
            sent.push(node);
            let refused = bad.range(node.0..node.1).next().is_some();
            match (refused, node.1 - node.0) {
                (false, _) => walk.settle(node),
                (true, 1) => {
                    found.insert(node.0);
                    walk.settle(node);
                }
                (true, _) => walk.halve(node, dead),
            }
        }
        (sent, found)
    }

    proptest! {
        #[test]
        fn every_bad_row_is_found_and_every_other_row_is_in_one_settled_node(
            rows in 1u32..400, bad in prop::collection::btree_set(0u32..400, 0..20)
        ) {
            let bad: BTreeSet<u32> = bad.into_iter().filter(|row| *row < rows).collect();
            let (nodes, found) = sent(rows, &bad, &[]);
            prop_assert_eq!(&found, &bad);
            let settled = nodes.iter().filter(|(from, to)| bad.range(*from..*to).next().is_none());
            let covered: u32 = settled.map(|(from, to)| to - from).sum();
            prop_assert_eq!(covered + u32::try_from(bad.len()).expect("few"), rows);
        }

        #[test]
        fn a_walk_that_knows_dead_rows_sends_only_nodes_of_the_walk_that_did_not(
            rows in 2u32..400, bad in prop::collection::btree_set(0u32..400, 1..20), known in 0usize..20
        ) {
            let bad: BTreeSet<u32> = bad.into_iter().filter(|row| *row < rows).collect();
            let dead: Vec<u32> = bad.iter().copied().take(known).collect();
            let (whole, _) = sent(rows, &bad, &[]);
            let (again, found) = sent(rows, &bad, &dead);
            prop_assert!(again.iter().all(|node| whole.contains(node)), "{:?} {:?}", again, whole);
            prop_assert!(again.iter().all(|(from, to)| !dead.iter().any(|row| (from..to).contains(&row))));
            prop_assert_eq!(found.len() + dead.len(), bad.len());
        }
    }
}

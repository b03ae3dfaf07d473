//! Entries of a map in the making, as nodes of their keys.

use super::json;
use super::strings::Maps;
use hashbrown::HashMap;
use simd_json::Node;

/// Entries up to which duplicates are looked for one by one.
const FEW_ENTRIES: usize = 16;

/// Adds entries to the row of a map, and says how many bytes they took.
pub fn add_entries(entries: &[usize], nodes: &[Node<'_>], maps: &mut Maps) -> usize {
    let add = |name: &usize| {
        maps.add(name_at(nodes, *name), |out| {
            json::write_text(&nodes[*name + 1..], out)
        })
    };
    entries.iter().map(add).sum()
}

/// Of entries with one name, only the last stays, at its own place.
pub fn keep_last(entries: &mut Vec<usize>, nodes: &[Node<'_>]) {
    if entries.len() > FEW_ENTRIES {
        let mut last = HashMap::with_capacity(entries.len());
        for name in entries.iter() {
            last.insert(name_at(nodes, *name), *name);
        }
        return entries.retain(|name| last.get(name_at(nodes, *name)) == Some(name));
    }
    let mut at = 0;
    while at < entries.len() {
        let name = name_at(nodes, entries[at]);
        if entries[at + 1..]
            .iter()
            .any(|later| name_at(nodes, *later) == name)
        {
            entries.remove(at);
        } else {
            at += 1;
        }
    }
}

/// The name at `nodes[at]`.
pub fn name_at<'t>(nodes: &[Node<'t>], at: usize) -> &'t str {
    if let Node::String(name) = nodes[at] {
        name
    } else {
        ""
    }
}

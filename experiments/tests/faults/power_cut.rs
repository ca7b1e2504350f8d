//! What a power cut may leave of a folder.
//!
//! The calls of a process are repeated on a file system in memory that keeps apart what is on the
//! disk for certain and what is not yet. It promises no more than POSIX: the bytes of a file are on
//! the disk once the file was forced there, its name once the folder was. Whatever came later is
//! there, or not, or in part.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::call_log::{Call, Operation};
use crate::tree::{Entry, Tree};

/// How much order a file system keeps among what was not forced to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// As journaling file systems do: changes of folders reach the disk in the order in which they
    /// were made, and forcing anything to the disk forces all changes of folders before it. Bytes
    /// of files have no order; what is missing at the end of a file may read as zeros.
    Journal,
    /// None: any subset of the changes of a folder since it was forced to the disk, zeros anywhere
    /// in what was written since.
    Any,
}

type NodeId = usize;
const ROOT: NodeId = 0;

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Folder(BTreeMap<String, NodeId>),
    File(Vec<u8>),
    Link(String),
}

/// A change of one folder or one file.
#[derive(Debug)]
enum Change {
    /// `name` in `folder` becomes `node`, which loses the name `was`.
    Name {
        folder: NodeId,
        name: String,
        node: NodeId,
        was: Option<(NodeId, String)>,
    },
    /// `name` in `folder` no longer is `node`.
    Unname {
        folder: NodeId,
        name: String,
        node: NodeId,
    },
    Bytes {
        file: NodeId,
        offset: u64,
        bytes: Vec<u8>,
    },
    Length {
        file: NodeId,
        len: u64,
    },
    Sync {
        node: NodeId,
    },
}

/// The folder before a process, and every change that the process made.
#[derive(Debug)]
pub(crate) struct History {
    start: Vec<Node>,
    /// By call; most calls change nothing or one thing.
    changes: Vec<Option<Change>>,
    /// The nodes with all changes.
    end: Vec<Node>,
}

impl History {
    pub(crate) fn new(start: &Tree, calls: &[Call]) -> Self {
        let mut nodes = vec![Node::Folder(BTreeMap::new())];
        for (path, entry) in &start.0 {
            let (folder, name) = parent(&nodes, path);
            let node = match entry {
                Entry::Folder => Node::Folder(BTreeMap::new()),
                Entry::File(bytes) => Node::File(bytes.clone()),
                Entry::Link(target) => Node::Link(target.clone()),
            };
            nodes.push(node);
            let id = nodes.len() - 1;
            apply(&mut nodes, &Change::Name { folder, name, node: id, was: None });
        }
        let before = nodes.clone();
        let mut new_nodes = Vec::new();
        let changes = calls
            .iter()
            .map(|call| {
                let change = change_of(&mut nodes, &mut new_nodes, call)?;
                apply(&mut nodes, &change);
                Some(change)
            })
            .collect();
        Self { start: before.into_iter().chain(new_nodes).collect(), changes, end: nodes }
    }

    /// The folder after all calls, had nothing been lost.
    pub(crate) fn end(&self) -> Tree {
        tree(&self.end)
    }

    /// A folder that a cut of the power just before the call `cut`, counted from 0, may leave.
    pub(crate) fn after_cut(&self, cut: usize, order: Order, seed: u64) -> Tree {
        let mut dice = ChaCha8Rng::seed_from_u64(seed);
        let changes: Vec<&Change> = self.changes[..cut].iter().flatten().collect();
        let survives = surviving_names(&changes, order, &mut dice);
        let mut nodes = self.start.clone();
        for (change, survives) in changes.iter().zip(survives) {
            if survives {
                apply(&mut nodes, change);
            }
        }
        for (file, node) in nodes.iter_mut().enumerate() {
            if let Node::File(start) = &self.start[file] {
                *node = Node::File(surviving_bytes(start, file, &changes, order, &mut dice));
            }
        }
        tree(&nodes)
    }
}

/// For each change whether it is a change of names that is on the disk.
fn surviving_names(changes: &[&Change], order: Order, dice: &mut ChaCha8Rng) -> Vec<bool> {
    let mut synced = BTreeSet::new();
    let mut certain = vec![false; changes.len()];
    for (index, change) in changes.iter().enumerate().rev() {
        match change {
            Change::Sync { node } => drop(synced.insert(*node)),
            Change::Name { folder, .. } | Change::Unname { folder, .. } => {
                certain[index] = synced.contains(folder) || (order == Order::Journal && !synced.is_empty());
            }
            Change::Bytes { .. } | Change::Length { .. } => {}
        }
    }
    let is_open = |index: &usize| {
        !certain[*index] && matches!(changes[*index], Change::Name { .. } | Change::Unname { .. })
    };
    let open: Vec<usize> = (0..changes.len()).filter(is_open).collect();
    let survivors: Vec<usize> = match order {
        Order::Journal => open[..dice.random_range(0..=open.len())].to_vec(),
        Order::Any => {
            // From none over some to all: each extreme is a state of its own.
            let chance = [0.0, 0.2, 0.5, 0.8, 1.0][dice.random_range(0..5)];
            open.into_iter().filter(|_| dice.random_bool(chance)).collect()
        }
    };
    survivors.into_iter().for_each(|index| certain[index] = true);
    certain
}

/// What is on the disk of a file: all that was forced there, and of what came later everything,
/// nothing, or a part.
fn surviving_bytes(
    start: &[u8],
    file: NodeId,
    changes: &[&Change],
    order: Order,
    dice: &mut ChaCha8Rng,
) -> Vec<u8> {
    let is_sync = |change: &&&Change| matches!(change, Change::Sync { node } if *node == file);
    let after_sync = changes.len() - changes.iter().rev().take_while(|change| !is_sync(change)).count();
    let mut synced = start.to_vec();
    changes[..after_sync].iter().for_each(|change| apply_bytes(&mut synced, file, change));
    let mut all = synced.clone();
    let mut written = Vec::new();
    for change in &changes[after_sync..] {
        apply_bytes(&mut all, file, change);
        if let Change::Bytes { file: of, offset, bytes } = change
            && *of == file
        {
            written.push((*offset as usize, bytes.len()));
        }
    }
    if all == synced {
        return all;
    }
    let torn = |dice: &mut ChaCha8Rng| {
        let mut left = dice.random_range(0..=written.iter().map(|(_, len)| len).sum::<usize>());
        let mut torn = synced.clone();
        for (offset, len) in &written {
            let kept = left.min(*len);
            left -= kept;
            let end = (offset + kept).min(all.len());
            if *offset < end {
                put(&mut torn, *offset, &all[*offset..end]);
            }
        }
        torn
    };
    match dice.random_range(0..4) {
        0 => all,
        1 => synced,
        2 => torn(dice),
        _ => {
            let Some((first, last)) = written.first().zip(written.last()) else { return synced };
            let end = all.len();
            let from = dice.random_range(first.0.min(end)..=end);
            let to = match order {
                Order::Journal => end,
                Order::Any => dice.random_range(from..=(last.0 + last.1).clamp(from, end)),
            };
            all[from..to].fill(0);
            all
        }
    }
}

/// What `call` changes; new nodes are added, empty.
fn change_of(nodes: &mut Vec<Node>, new_nodes: &mut Vec<Node>, call: &Call) -> Option<Change> {
    let mut add = |nodes: &mut Vec<Node>, node: Node| {
        nodes.push(node.clone());
        new_nodes.push(node);
        nodes.len() - 1
    };
    let path = &call.path;
    let new = match &call.operation {
        Operation::Nothing => return None,
        // A file that was removed while it was open has no name, and whatever is written there is
        // lost anyway.
        Operation::Write { offset, bytes } => {
            let file = find(nodes, path)?;
            return Some(Change::Bytes { file, offset: *offset, bytes: bytes.clone() });
        }
        Operation::Truncate(len) => return Some(Change::Length { file: find(nodes, path)?, len: *len }),
        Operation::Sync => return Some(Change::Sync { node: find(nodes, path)? }),
        Operation::Remove | Operation::RemoveFolder => {
            let (folder, name) = parent(nodes, path);
            return Some(Change::Unname { folder, name, node: find(nodes, path)? });
        }
        Operation::Rename { to } => {
            let (folder, name) = parent(nodes, to);
            let node = find(nodes, path)?;
            return Some(Change::Name { folder, name, node, was: Some(parent(nodes, path)) });
        }
        Operation::Create => Node::File(Vec::new()),
        Operation::MakeFolder => Node::Folder(BTreeMap::new()),
        Operation::Link { target } => Node::Link(target.clone()),
    };
    let (folder, name) = parent(nodes, path);
    Some(Change::Name { folder, name, node: add(nodes, new), was: None })
}

fn apply(nodes: &mut [Node], change: &Change) {
    match change {
        Change::Name { folder, name, node, was } => {
            if let Some((folder, name)) = was {
                unname(nodes, *folder, name, *node);
            }
            names(nodes, *folder).insert(name.clone(), *node);
        }
        Change::Unname { folder, name, node } => unname(nodes, *folder, name, *node),
        Change::Bytes { file, .. } | Change::Length { file, .. } => {
            if let Node::File(content) = &mut nodes[*file] {
                apply_bytes(content, *file, change);
            }
        }
        Change::Sync { .. } => {}
    }
}

fn apply_bytes(content: &mut Vec<u8>, file: NodeId, change: &Change) {
    match change {
        Change::Bytes { file: of, offset, bytes } if *of == file => put(content, *offset as usize, bytes),
        Change::Length { file: of, len } if *of == file => content.resize(*len as usize, 0),
        _ => {}
    }
}

fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    content.resize(content.len().max(offset + bytes.len()), 0);
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn unname(nodes: &mut [Node], folder: NodeId, name: &str, node: NodeId) {
    let names = names(nodes, folder);
    if names.get(name) == Some(&node) {
        names.remove(name);
    }
}

fn names(nodes: &mut [Node], folder: NodeId) -> &mut BTreeMap<String, NodeId> {
    match &mut nodes[folder] {
        Node::Folder(names) => names,
        other => panic!("{other:?} is no folder"),
    }
}

/// The node at `path`; `None` if there is none.
fn find(nodes: &[Node], path: &str) -> Option<NodeId> {
    path.split('/').filter(|part| !part.is_empty()).try_fold(ROOT, |folder, part| match &nodes[folder] {
        Node::Folder(names) => names.get(part).copied(),
        Node::File(_) | Node::Link(_) => None,
    })
}

/// The folder of `path` and its name there.
fn parent(nodes: &[Node], path: &str) -> (NodeId, String) {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let found = find(nodes, folder);
    (found.unwrap_or_else(|| panic!("the shim missed the call that made `{folder}`")), name.into())
}

fn tree(nodes: &[Node]) -> Tree {
    fn add(tree: &mut Tree, nodes: &[Node], node: NodeId, path: String) {
        match &nodes[node] {
            Node::Folder(names) => {
                let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
                names.iter().for_each(|(name, node)| add(tree, nodes, *node, format!("{prefix}{name}")));
                if !path.is_empty() {
                    tree.0.insert(path, Entry::Folder);
                }
            }
            Node::File(bytes) => drop(tree.0.insert(path, Entry::File(bytes.clone()))),
            Node::Link(target) => drop(tree.0.insert(path, Entry::Link(target.clone()))),
        }
    }
    let mut result = Tree::default();
    add(&mut result, nodes, ROOT, String::new());
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &str, text: &str) -> Call {
        Call::new(path, Operation::Write { offset: 0, bytes: text.into() })
    }

    fn call(path: &str, operation: Operation) -> Call {
        Call::new(path, operation)
    }

    /// Every state of `name` that some cut just before some call, or after the last, leaves behind.
    fn states(start: &Tree, calls: &[Call], order: Order, name: &str) -> BTreeSet<Option<String>> {
        let history = History::new(start, calls);
        let cuts = (0..=calls.len()).flat_map(|cut| (0..100).map(move |seed| (cut, seed)));
        cuts.map(|(cut, seed)| match history.after_cut(cut, order, seed).0.get(name) {
            Some(Entry::File(bytes)) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        })
        .collect()
    }

    fn with_file(name: &str, text: &str) -> Tree {
        Tree(BTreeMap::from([(name.to_string(), Entry::File(text.into()))]))
    }

    fn replace(syncs: bool) -> Vec<Call> {
        let rename = call("a.tmp", Operation::Rename { to: "a".into() });
        let mut calls = vec![call("a.tmp", Operation::Create), write("a.tmp", "new")];
        calls.extend(syncs.then(|| call("a.tmp", Operation::Sync)));
        calls.push(rename);
        calls
    }

    #[test]
    fn a_file_replaced_by_a_synced_one_is_old_or_new() {
        for order in [Order::Journal, Order::Any] {
            let states = states(&with_file("a", "old"), &replace(true), order, "a");
            assert_eq!(states, BTreeSet::from([Some("old".into()), Some("new".into())]), "{order:?}");
        }
    }

    #[test]
    fn a_file_replaced_without_a_sync_can_be_empty_torn_or_zeros() {
        let states = states(&with_file("a", "old"), &replace(false), Order::Journal, "a");
        for state in ["old", "new", "", "n", "n\0\0", "\0\0\0"] {
            assert!(states.contains(&Some(state.into())), "{state:?} is not among {states:?}");
        }
    }

    #[test]
    fn a_name_is_certain_once_its_folder_was_synced() {
        let mut calls = replace(true);
        let all = calls.len();
        calls.push(call("", Operation::Sync));
        let history = History::new(&with_file("a", "old"), &calls);
        let names = |cut: usize| -> BTreeSet<_> {
            let of_seed = |seed: u64| history.after_cut(cut, Order::Any, seed).0.remove("a");
            (0..50).map(|seed| format!("{:?}", of_seed(seed))).collect()
        };
        assert_eq!((names(all).len(), names(all + 1).len()), (2, 1));
    }

    #[test]
    fn a_new_file_that_was_synced_can_be_gone_where_no_journal_keeps_order() {
        let calls = [call("a", Operation::Create), write("a", "x"), call("a", Operation::Sync)];
        let lost = |order: Order| {
            let history = History::new(&Tree::default(), &calls);
            (0..50).any(|seed| history.after_cut(3, order, seed).0.is_empty())
        };
        assert!(lost(Order::Any) && !lost(Order::Journal));
    }

    #[test]
    fn names_reach_the_disk_in_their_order_only_where_a_journal_keeps_it() {
        let calls = [call("a", Operation::MakeFolder), call("b", Operation::MakeFolder)];
        let b_alone = |order: Order| {
            let history = History::new(&Tree::default(), &calls);
            let names = |seed: u64| history.after_cut(2, order, seed).0.into_keys().collect::<Vec<_>>();
            (0..100).any(|seed| names(seed) == ["b"])
        };
        assert!(b_alone(Order::Any) && !b_alone(Order::Journal));
    }

    #[test]
    fn a_folder_renamed_takes_what_is_in_it_along() {
        let calls = [
            call("a.tmp", Operation::MakeFolder),
            call("a.tmp/x", Operation::Create),
            write("a.tmp/x", "1"),
            call("a.tmp/x", Operation::Sync),
            call("a.tmp", Operation::Sync),
            call("a.tmp", Operation::Rename { to: "a".into() }),
            call("a/x", Operation::Remove),
        ];
        let history = History::new(&Tree::default(), &calls);
        assert_eq!(history.end().0.into_keys().collect::<Vec<_>>(), ["a"]);
        let whole = |seed: u64| history.after_cut(6, Order::Any, seed).0.contains_key("a/x");
        let there = |seed: u64| history.after_cut(6, Order::Any, seed).0.contains_key("a");
        assert!((0..50).all(|seed| whole(seed) == there(seed)) && (0..50).any(there));
    }
}

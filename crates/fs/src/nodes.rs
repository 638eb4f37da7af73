//! The inodes of a tree that the guest knows, each remembered by its place instead of by a descriptor.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;

use crate::stat::Key;
use crate::tree_state::{invalid, Saved};

/// Inodes of a saved state, at most, that have become one file with others of it. All others are files of the tree, each of which is
/// there once: so no state makes a table larger than a guest could that looks at every file.
pub const MOST_LOST: usize = 1 << 16;

/// The root's number in FUSE.
pub const ROOT: u64 = virtiofsd::fuse::ROOT_ID;

/// One inode known to the guest.
#[derive(Debug)]
pub struct Node {
    /// The directory it was first found in.
    pub parent: u64,
    /// Its name there.
    pub name: Box<CStr>,
    /// Which file of the host it is.
    pub key: Key,
    /// File type (`S_IFMT` bits).
    pub kind: u32,
    lookups: u64,
    children: u64,
}

impl Node {
    /// How often the guest looked it up and has not forgotten.
    #[must_use]
    pub fn lookups(&self) -> u64 {
        self.lookups
    }
}

/// All inodes known to the guest.
///
/// A node stays while the guest has looked it up more often than forgotten, or while another one is found through it.
#[derive(Debug)]
pub struct Nodes {
    nodes: HashMap<u64, Node>,
    numbers: HashMap<Key, u64>,
    next: u64,
    /// Inodes of a saved state that are found nowhere.
    lost: usize,
    most_lost: usize,
}

impl Nodes {
    /// A table that holds the root only.
    #[must_use]
    pub fn new(root: Key) -> Self {
        let node = Node {
            parent: ROOT,
            name: c"".into(),
            key: root,
            kind: libc::S_IFDIR,
            lookups: 1,
            children: 0,
        };
        Nodes {
            nodes: HashMap::from([(ROOT, node)]),
            numbers: HashMap::from([(root, ROOT)]),
            next: ROOT + 1,
            lost: 0,
            most_lost: MOST_LOST,
        }
    }

    /// The node with this number.
    ///
    /// # Errors
    /// `ESTALE` when the guest has no such node.
    pub fn get(&self, number: u64) -> io::Result<&Node> {
        self.nodes.get(&number).ok_or_else(stale)
    }

    /// How many inodes the guest knows, the root included.
    #[must_use]
    pub fn known(&self) -> usize {
        self.nodes.len()
    }

    /// The number the next new inode gets.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// All inodes but the root, the directory of each before it.
    #[must_use]
    pub fn in_order(&self) -> Vec<(u64, &Node)> {
        let mut nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|(number, node)| (*number, node))
            .filter(|(number, _)| *number != ROOT)
            .collect();
        // A directory is found before anything in it, so its number is smaller.
        nodes.sort_unstable_by_key(|(number, _)| *number);
        nodes
    }

    /// Puts back an inode of a saved state that was found again as `key`. Two that have become one file stay two numbers:
    /// the second is found nowhere.
    ///
    /// # Errors
    /// `ESTALE` when its directory was not put back before, `InvalidData` when more than [`MOST_LOST`] have become one.
    pub fn restore(&mut self, saved: Saved, key: Key, kind: u32) -> io::Result<()> {
        self.nodes
            .get_mut(&saved.parent)
            .ok_or_else(stale)?
            .children += 1;
        let (key, kind) = if self.numbers.contains_key(&key) {
            self.lost += 1;
            if self.lost > self.most_lost {
                return Err(invalid("too many of its files are one file"));
            }
            let nowhere = Key {
                dev: u64::MAX,
                ino: saved.number,
                mount: u64::MAX,
            };
            (nowhere, 0)
        } else {
            (key, kind)
        };
        let Saved {
            number,
            parent,
            lookups,
            name,
        } = saved;
        let name = name.into_boxed_c_str();
        self.nodes.insert(
            number,
            Node {
                parent,
                name,
                key,
                kind,
                lookups,
                children: 0,
            },
        );
        self.numbers.insert(key, number);
        Ok(())
    }

    /// Sets another bound than [`MOST_LOST`], to show what it is for.
    #[cfg(test)]
    pub fn bound_lost(&mut self, most: usize) {
        self.most_lost = most;
    }

    /// The path of `name` in a directory, from the root of the tree on, for messages.
    #[must_use]
    pub fn path(&self, parent: u64, name: &CStr) -> String {
        let mut parts = vec![name.to_string_lossy()];
        let mut next = parent;
        while next != ROOT {
            let Some(node) = self.nodes.get(&next) else {
                break;
            };
            parts.push(node.name.to_string_lossy());
            next = node.parent;
        }
        parts.reverse();
        format!("/{}", parts.join("/"))
    }

    /// Goes on with the numbers of a saved state.
    pub fn resume(&mut self, next: u64) {
        self.next = next;
    }

    /// Counts a lookup of `name` in `parent` that found `key`; returns the number of its node.
    ///
    /// # Errors
    /// `ESTALE` when the guest does not know the directory.
    pub fn remember(&mut self, parent: u64, name: &CStr, key: Key, kind: u32) -> io::Result<u64> {
        if let Some(number) = self.numbers.get(&key) {
            if let Some(node) = self.nodes.get_mut(number) {
                node.lookups += 1;
                return Ok(*number);
            }
        }
        self.nodes.get_mut(&parent).ok_or_else(stale)?.children += 1;
        let number = self.next;
        self.next += 1;
        self.nodes.insert(
            number,
            Node {
                parent,
                name: name.into(),
                key,
                kind,
                lookups: 1,
                children: 0,
            },
        );
        self.numbers.insert(key, number);
        Ok(number)
    }

    /// Counts down lookups; returns the numbers that are gone then.
    pub fn forget(&mut self, number: u64, count: u64) -> Vec<u64> {
        let mut gone = Vec::new();
        if number == ROOT {
            return gone;
        }
        let Some(node) = self.nodes.get_mut(&number) else {
            return gone;
        };
        node.lookups = node.lookups.saturating_sub(count);
        let mut next = number;
        while next != ROOT {
            match self.nodes.get(&next) {
                Some(node) if node.lookups == 0 && node.children == 0 => {}
                _ => break,
            }
            let Some(node) = self.nodes.remove(&next) else {
                break;
            };
            self.numbers.remove(&node.key);
            gone.push(next);
            if let Some(parent) = self.nodes.get_mut(&node.parent) {
                parent.children = parent.children.saturating_sub(1);
            }
            next = node.parent;
        }
        gone
    }
}

/// What the guest is told when something is not where it was: its kernel then looks the whole path up again.
#[must_use]
pub fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ino: u64) -> Key {
        Key {
            dev: 1,
            ino,
            mount: 1,
        }
    }

    fn table() -> Nodes {
        Nodes::new(key(1))
    }

    #[test]
    fn a_directory_outlives_its_own_lookups_while_a_child_needs_it() {
        let mut nodes = table();
        let dir = nodes.remember(ROOT, c"dir", key(2), libc::S_IFDIR).unwrap();
        let file = nodes.remember(dir, c"file", key(3), libc::S_IFREG).unwrap();
        assert!(nodes.forget(dir, 1).is_empty());
        assert!(nodes.get(dir).is_ok());
        assert_eq!(nodes.forget(file, 1), [file, dir]);
        assert_eq!(nodes.known(), 1);
    }

    #[test]
    fn hard_links_are_one_node() {
        let mut nodes = table();
        let first = nodes
            .remember(ROOT, c"first", key(2), libc::S_IFREG)
            .unwrap();
        assert_eq!(
            nodes
                .remember(ROOT, c"second", key(2), libc::S_IFREG)
                .unwrap(),
            first
        );
        assert!(nodes.forget(first, 1).is_empty());
        assert_eq!(nodes.forget(first, 1), [first]);
    }

    #[test]
    fn numbers_are_never_used_again() {
        let mut nodes = table();
        let first = nodes.remember(ROOT, c"a", key(2), libc::S_IFREG).unwrap();
        nodes.forget(first, 1);
        assert_ne!(
            nodes.remember(ROOT, c"a", key(2), libc::S_IFREG).unwrap(),
            first
        );
    }

    #[test]
    fn the_root_and_the_unknown_cannot_be_forgotten() {
        let mut nodes = table();
        assert!(nodes.forget(ROOT, u64::MAX).is_empty());
        assert!(nodes.forget(77, 1).is_empty());
        assert!(nodes.get(ROOT).is_ok());
        assert!(nodes.remember(77, c"a", key(2), libc::S_IFREG).is_err());
        assert_eq!(nodes.known(), 1);
    }
}

//! The descriptors used most recently, up to a number.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::hash::Hash;
use std::sync::Arc;

/// Keeps at most `capacity` files open and closes the one not used for longest.
///
/// A file still in use elsewhere stays open until that use ends.
#[derive(Debug)]
pub struct Recent<K> {
    capacity: usize,
    clock: u64,
    files: HashMap<K, (Arc<File>, u64)>,
    order: BTreeMap<u64, K>,
}

impl<K: Copy + Eq + Hash> Recent<K> {
    /// Makes an empty cache for `capacity` files.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Recent {
            capacity,
            clock: 0,
            files: HashMap::new(),
            order: BTreeMap::new(),
        }
    }

    /// The file kept under `key`, which becomes the one used last.
    pub fn get(&mut self, key: K) -> Option<Arc<File>> {
        let (file, used) = self.files.get_mut(&key)?;
        self.clock += 1;
        self.order.remove(used);
        *used = self.clock;
        self.order.insert(self.clock, key);
        Some(file.clone())
    }

    /// Keeps `file` under `key`.
    pub fn put(&mut self, key: K, file: Arc<File>) {
        self.remove(key);
        while self.files.len() >= self.capacity {
            let Some((_, oldest)) = self.order.pop_first() else {
                return;
            };
            self.files.remove(&oldest);
        }
        self.clock += 1;
        self.order.insert(self.clock, key);
        self.files.insert(key, (file, self.clock));
    }

    /// Lets go of what is kept under `key`.
    pub fn remove(&mut self, key: K) {
        if let Some((_, used)) = self.files.remove(&key) {
            self.order.remove(&used);
        }
    }

    /// How many files are kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.files.len()
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        self.files.clear();
        self.order.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Arc<File> {
        Arc::new(File::open("/dev/null").unwrap())
    }

    #[test]
    fn the_one_not_used_for_longest_goes_first() {
        let mut recent = Recent::new(2);
        recent.put(1, file());
        recent.put(2, file());
        assert!(recent.get(1).is_some());
        recent.put(3, file());
        assert!(recent.get(1).is_some() && recent.get(3).is_some());
        assert!(recent.get(2).is_none());
        assert_eq!((recent.files.len(), recent.order.len()), (2, 2));
    }

    #[test]
    fn putting_twice_and_removing_twice_keep_the_books() {
        let mut recent = Recent::new(2);
        recent.put(1, file());
        recent.put(1, file());
        assert_eq!((recent.files.len(), recent.order.len()), (1, 1));
        recent.remove(1);
        recent.remove(1);
        assert_eq!((recent.files.len(), recent.order.len()), (0, 0));
    }
}

//! The streams of one direction by their ids: a sorted list, for there are few. (A tree's code for a handful of streams is two
//! hundred blocks, each of which an emulated guest translates at every start.)

/// Streams in the order of their ids.
#[derive(Debug)]
pub(crate) struct Streams<T>(Vec<(u32, T)>);

impl<T> Streams<T> {
    /// One stream.
    pub(crate) fn of(stream: u32, value: T) -> Self {
        Self(vec![(stream, value)])
    }

    fn find(&self, stream: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&stream, |(id, _)| *id)
    }

    pub(crate) fn get(&self, stream: u32) -> Option<&T> {
        let (_, value) = self.0.get(self.find(stream).ok()?)?;
        Some(value)
    }

    pub(crate) fn get_mut(&mut self, stream: u32) -> Option<&mut T> {
        let at = self.find(stream).ok()?;
        let (_, value) = self.0.get_mut(at)?;
        Some(value)
    }

    /// Adds a stream; false when there is one of this id, which stays as it is.
    pub(crate) fn add(&mut self, stream: u32, value: impl FnOnce() -> T) -> bool {
        match self.find(stream) {
            Ok(_) => false,
            Err(at) => {
                self.0.insert(at, (stream, value()));
                true
            }
        }
    }

    /// Forgets a stream, if there is one.
    pub(crate) fn remove(&mut self, stream: u32) {
        if let Ok(at) = self.find(stream) {
            self.0.remove(at);
        }
    }

    /// Forgets those for which `keep` is false.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(u32, &mut T) -> bool) {
        self.0.retain_mut(|(stream, value)| keep(*stream, value));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.0.iter().map(|(stream, value)| (*stream, value))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::Streams;

    /// Whatever the order in which they come, they stand in the order of their ids, each once.
    #[test]
    fn streams_are_sorted_and_unique() {
        let mut streams = Streams::of(4, 'd');
        for (stream, value) in [(9, 'i'), (1, 'a'), (7, 'g')] {
            assert!(streams.add(stream, || value));
        }
        assert!(!streams.add(7, || unreachable!()));
        let all = |streams: &Streams<char>| -> Vec<(u32, char)> {
            streams.iter().map(|(id, value)| (id, *value)).collect()
        };
        assert_eq!(all(&streams), [(1, 'a'), (4, 'd'), (7, 'g'), (9, 'i')]);
        streams.remove(4);
        streams.remove(5);
        streams.retain(|stream, _| stream != 9);
        streams
            .values_mut()
            .for_each(|value| value.make_ascii_uppercase());
        assert_eq!(all(&streams), [(1, 'A'), (7, 'G')]);
        assert_eq!((streams.get(7), streams.get(9)), (Some(&'G'), None));
    }
}

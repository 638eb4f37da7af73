//! Bytes in and out of what a guest has lent.

use cloche_device::Slice;

/// How many bytes some stretches have together.
#[must_use]
pub fn total_len(slices: &[Slice<'_>]) -> u64 {
    slices.iter().fold(0, |sum, slice| {
        sum.saturating_add(u64::try_from(slice.len()).unwrap_or(u64::MAX))
    })
}

/// Takes up to `into.len()` bytes from the front of `slices` and returns how many there were.
pub fn take_front(slices: &mut Vec<Slice<'_>>, into: &mut [u8]) -> usize {
    let mut filled = 0;
    let mut used_up = 0;
    for slice in slices.iter_mut() {
        let Some(room) = into.get_mut(filled..).filter(|room| !room.is_empty()) else {
            break;
        };
        // As much as fits.
        let count = slice.copy_to(room);
        filled += count;
        if count < slice.len() {
            if let Ok(rest) = slice.offset(count) {
                *slice = rest;
            }
            break;
        }
        used_up += 1;
    }
    slices.drain(..used_up);
    filled
}

/// Fills the front of `slices` with `bytes`, and takes what was filled away from them.
pub fn fill_front(slices: &mut Vec<Slice<'_>>, bytes: &[u8]) {
    let mut left = put_front(slices, bytes);
    let mut filled = 0;
    for slice in slices.iter_mut() {
        if left < slice.len() {
            if let Ok(rest) = slice.offset(left) {
                *slice = rest;
            }
            break;
        }
        left -= slice.len();
        filled += 1;
    }
    slices.drain(..filled);
}

/// Copies `bytes` into the front of `slices` and returns how many fitted.
pub fn put_front(slices: &[Slice<'_>], bytes: &[u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) else {
            break;
        };
        let count = rest.len().min(slice.len());
        let Some(part) = rest.get(..count) else { break };
        slice.copy_from(part);
        done += count;
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloche_device::Memory;
    use vm_memory::{Bytes, GuestAddress, GuestMemory};

    #[test]
    fn bytes_are_taken_across_slices_and_the_rest_stays() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        memory
            .write_slice(b"abcdefghij", GuestAddress(0x100))
            .unwrap();
        let mut slices = vec![
            memory.get_slice(GuestAddress(0x100), 3).unwrap(),
            memory.get_slice(GuestAddress(0x103), 4).unwrap(),
            memory.get_slice(GuestAddress(0x107), 3).unwrap(),
        ];
        let mut head = [0; 5];
        assert_eq!(take_front(&mut slices, &mut head), 5);
        assert_eq!(&head, b"abcde");
        assert_eq!((slices.len(), total_len(&slices)), (2, 5));
        let mut more = [0; 9];
        assert_eq!(take_front(&mut slices, &mut more), 5);
        assert_eq!(&more[..5], b"fghij");
        assert!(slices.is_empty());
    }

    #[test]
    fn slices_are_filled_one_after_the_other() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let mut slices = vec![
            memory.get_slice(GuestAddress(0x10), 2).unwrap(),
            memory.get_slice(GuestAddress(0x20), 3).unwrap(),
        ];
        for part in [&b"a"[..], b"bc", b"de"] {
            fill_front(&mut slices, part);
        }
        assert!(slices.is_empty());
        let mut found = [0; 3];
        memory.read_slice(&mut found, GuestAddress(0x20)).unwrap();
        assert_eq!(&found, b"cde");
    }

    #[test]
    fn bytes_are_put_as_far_as_there_is_room() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let slices = [
            memory.get_slice(GuestAddress(0x10), 2).unwrap(),
            memory.get_slice(GuestAddress(0x20), 3).unwrap(),
        ];
        assert_eq!(put_front(&slices, b"abcdefgh"), 5);
        let mut found = [0; 6];
        memory.read_slice(&mut found, GuestAddress(0x20)).unwrap();
        assert_eq!(&found[..4], b"cde\0");
    }
}

//! What has to be known about a request beside what the library passes on.

use std::cell::Cell;
use std::ffi::CStr;
use std::io;

thread_local! {
    static LISTS_A_DIRECTORY: Cell<bool> = const { Cell::new(false) };
}

/// Marks the thread while it answers one request.
pub struct Scope(());

impl Scope {
    /// Begins; `lists_a_directory` tells that lookups are made for a listing (READDIRPLUS).
    #[must_use]
    pub fn enter(lists_a_directory: bool) -> Self {
        LISTS_A_DIRECTORY.set(lists_a_directory);
        Scope(())
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        LISTS_A_DIRECTORY.set(false);
    }
}

/// Whether the lookup at hand only adds attributes to a listing, so that it may be left out: the guest then looks the
/// name up when somebody wants it.
#[must_use]
pub fn is_for_a_listing() -> bool {
    LISTS_A_DIRECTORY.get()
}

/// Refuses what is not the name of one entry of a directory, so that no request reaches out of the tree.
///
/// # Errors
/// `EINVAL` for an empty name, for `.` and `..`, and for a name with a slash in it.
pub fn check_name(name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(())
}

/// Refuses what no file can hold. The library takes such an offset for impossible and would end the process.
///
/// # Errors
/// `EINVAL` when the range ends past the largest offset of a file.
pub fn check_range(offset: u64, size: u32) -> io::Result<()> {
    let end = offset.checked_add(u64::from(size));
    if end.is_some_and(|end| i64::try_from(end).is_ok()) {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_one_entry_pass() {
        for name in [c"a", c"...", c"..a", c"a b", c"\xff"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
        for name in [c"", c".", c"..", c"/", c"a/b", c"../a", c"a/.."] {
            assert_eq!(
                check_name(name).unwrap_err().raw_os_error(),
                Some(libc::EINVAL),
                "{name:?}"
            );
        }
    }

    #[test]
    fn only_ranges_a_file_can_have_pass() {
        const LARGEST: u64 = i64::MAX as u64;
        for (offset, size) in [(0, 0), (0, u32::MAX), (LARGEST, 0), (LARGEST - 1, 1)] {
            assert!(check_range(offset, size).is_ok(), "{offset} {size}");
        }
        for (offset, size) in [(LARGEST, 1), (LARGEST + 1, 0), (u64::MAX, 0), (u64::MAX, 1)] {
            assert!(check_range(offset, size).is_err(), "{offset} {size}");
        }
    }

    #[test]
    fn a_listing_is_known_only_while_it_is_made() {
        let scope = Scope::enter(true);
        assert!(is_for_a_listing());
        drop(scope);
        assert!(!is_for_a_listing());
    }
}

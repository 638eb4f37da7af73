//! What is thrown at the devices and at the parsers that face a guest, and what each of them must hold.
//!
//! A [`Target`] is a function that takes any bytes and panics when something that must hold does not. Its module says at
//! its head what that is. `fuzz/` runs them guided by coverage (`make fuzz`), `tests/smoke.rs` with the committed seeds
//! and some thousand repeatable mutations of them, with any compiler, as a part of `cargo test`.

mod choices;
mod fuse;
mod guest;
mod heap;
mod mutate;
mod process;
mod scratch;
mod seeds;
mod targets;

pub use mutate::mutations;
pub use seeds::seeds;
pub use targets::TARGETS;

/// Something to throw bytes at.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its file of seeds.
    pub name: &'static str,
    /// Runs it once.
    pub run: fn(&[u8]),
    /// Bytes of an input, at most; more are not passed on.
    pub max_input: usize,
    /// Bytes that it may hold on the heap at a time, whatever the input says.
    pub max_heap: usize,
    /// Runs of the smoke test beside those of the seeds: some, so that it takes seconds.
    pub smoke_runs: usize,
}

impl Target {
    /// The target with this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Runs it once, with what every target must hold: no more memory than [`Target::max_heap`], and no descriptor left
    /// open. Both are counted for the whole process, so nothing else may run in it meanwhile.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn throw(&self, input: &[u8]) {
        process::prepare();
        let fds = process::open_fds();
        let input = input.get(..self.max_input).unwrap_or(input);
        let used = heap::peak_of(|| (self.run)(input));
        assert!(
            used <= self.max_heap,
            "{used} bytes of memory were held, {} are allowed",
            self.max_heap
        );
        assert_eq!(process::open_fds(), fds, "descriptors were left open");
    }
}

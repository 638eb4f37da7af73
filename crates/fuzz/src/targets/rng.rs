//! The random numbers' queue: whatever the guest writes into its memory, nothing panics, every call ends, and nothing is
//! written that the guest did not lend for writing.
//!
//! The first byte says whether what follows is the guest's memory as it is, rings first, or a row of decisions that makes
//! descriptors of which it is known what they lend.

use cloche_device::Device;
use cloche_rng::Entropy;

use crate::choices::Choices;
use crate::guest::{lend_anything, Guest, LENT, MEMORY};

pub fn run(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mode = choices.byte();
    let mut entropy = Entropy::new();
    if mode & 1 == 0 {
        let mut guest = Guest::new(choices.rest());
        guest.start(mode & 2 != 0);
        serve(&mut entropy, &mut guest);
        return;
    }
    let mut guest = Guest::new(&[]);
    let lent = lend_anything(&guest, &mut choices);
    guest.start(mode & 2 != 0);
    let before = guest.read(LENT, MEMORY - LENT as usize);
    serve(&mut entropy, &mut guest);
    guest.check_untouched(LENT, &before, &lent);
}

/// Has the queue looked at a few times, as after kicks.
pub fn serve(device: &mut impl Device, guest: &mut Guest) {
    for _ in 0..4 {
        if device.process(0, &mut guest.vring).is_err() {
            return;
        }
    }
}

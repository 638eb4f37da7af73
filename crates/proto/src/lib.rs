//! Wire formats of cloche: frames, streams and messages.
//!
//! The specification is `protocol/README.md` (channel) and `protocol/warden.md` (warden). Nothing here does input or
//! output, and nothing here panics, whatever bytes it is given.

pub mod codec;
pub mod frame;
mod link;
pub mod message;
pub mod mux;
mod ring;
mod stream;
pub mod warden;

//! Wire formats of cloche: frames, streams and messages.
//!
//! The specification is `protocol/README.md` (channel) and `protocol/warden.md` (warden). Nothing here does input or
//! output, and nothing here panics, whatever bytes it is given.

mod assembler;
pub mod codec;
pub mod frame;
mod jail;
pub mod keeper;
mod link;
pub mod message;
pub mod mux;
mod ring;
mod step;
mod stream;
mod streams;
pub mod warden;

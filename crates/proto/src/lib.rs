//! Wire formats of cloche: frames, streams and messages.

//! cloche-fs
fn main() {}

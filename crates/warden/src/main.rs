//! cloche-warden
fn main() {}

//! cloche-agent
fn main() {}

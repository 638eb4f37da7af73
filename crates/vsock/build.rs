//! Compiles the filter that the program puts on itself.

fn main() {
    cloche_policy::build("cloche-vsock");
}

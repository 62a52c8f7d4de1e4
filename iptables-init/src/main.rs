//! The `istio-iptables` program: everything is in the library.

use std::process::exit;

fn main() {
    exit(iptables_init::main_with_args(std::env::args_os()));
}

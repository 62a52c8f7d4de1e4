//! `outrigger-lab`: test applications for pods, and the demo.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = outrigger_tests::cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("outrigger-lab: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(outrigger_tests::cli::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("outrigger-lab: {e}");
            ExitCode::FAILURE
        }
    }
}

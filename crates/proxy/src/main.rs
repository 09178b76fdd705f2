//! `torpor-proxy`: see the library.

use std::process::ExitCode;
use torpor_proxy::options::{Parsed, parse};
use torpor_proxy::say;

fn main() -> ExitCode {
    let options = match parse(lexopt::Parser::from_env()) {
        Ok(Parsed::Run(options)) => options,
        Ok(Parsed::Text(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("torpor-proxy: {error}; see torpor-proxy --help");
            return ExitCode::from(2);
        }
    };
    match torpor_proxy::proxy::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("{error}");
            ExitCode::FAILURE
        }
    }
}

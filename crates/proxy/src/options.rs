//! The command line.

use lexopt::prelude::{Long, Short, ValueExt};
use std::net::SocketAddr;
use std::path::PathBuf;

/// What `--help` prints.
const HELP: &str = "\
Usage: torpor-proxy --data DIR --http ADDR:PORT [--tls ADDR:PORT]

  --data DIR        data directory; torpord connects to DIR/run/proxy.sock
  --http ADDR:PORT  where services on port 80 answer; port 0 takes a free one
  --version, --help";

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The data directory.
    pub data: PathBuf,
    /// Where services on port 80 answer.
    pub http: SocketAddr,
}

/// What there is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Run.
    Run(Options),
    /// Print this.
    Text(String),
}

/// Reads the command line.
///
/// # Errors
/// A text that names the option.
pub fn parse(mut parser: lexopt::Parser) -> Result<Parsed, String> {
    let (mut data, mut http) = (None, None);
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Long("data") => data = Some(PathBuf::from(parser.value().map_err(|error| error.to_string())?)),
            Long("http") => http = Some(address("--http", &mut parser)?),
            Long("version") => return Ok(Parsed::Text(concat!("torpor-proxy ", env!("CARGO_PKG_VERSION")).into())),
            Long("help") | Short('h') => return Ok(Parsed::Text(HELP.into())),
            other => return Err(other.unexpected().to_string()),
        }
    }
    Ok(Parsed::Run(Options { data: data.ok_or("--data is missing")?, http: http.ok_or("--http is missing")? }))
}

fn address(option: &str, parser: &mut lexopt::Parser) -> Result<SocketAddr, String> {
    let value = parser.value().and_then(|value| value.string()).map_err(|error| error.to_string())?;
    value.parse().map_err(|_| format!("{option}: {value}: not of the form ADDRESS:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Result<Parsed, String> {
        parse(lexopt::Parser::from_args(words))
    }

    #[test]
    fn options_are_read_or_refused_by_name() {
        let run = parse_words(&["--data", "/d", "--http", "127.0.0.1:0"]);
        let expected = Options { data: "/d".into(), http: "127.0.0.1:0".parse().expect("an address") };
        assert_eq!(run, Ok(Parsed::Run(expected)));
        assert!(parse_words(&["--data", "/d"]).is_err_and(|error| error.contains("--http")));
        let bad = parse_words(&["--data", "/d", "--http", "8080"]);
        assert!(bad.is_err_and(|error| error.contains("8080")));
        assert!(parse_words(&["--nonsense"]).is_err_and(|error| error.contains("nonsense")));
    }
}

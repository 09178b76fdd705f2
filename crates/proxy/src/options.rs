//! The command line.

use lexopt::prelude::{Long, Short, ValueExt};
use std::net::SocketAddr;
use std::path::PathBuf;

/// What `--help` prints.
const HELP: &str = "\
Usage: torpor-proxy --data DIR --http ADDR:PORT [OPTIONS]

  --data DIR           data directory; torpord connects to DIR/run/proxy.sock
  --http ADDR:PORT     where services on port 80 answer; port 0 takes a free one
  --tls ADDR:PORT      where services on port 443 answer
  --metrics ADDR:PORT  where counters can be read, at /metrics
  --access-log FILE    a line for each request is appended there
  --version, --help";

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The data directory.
    pub data: PathBuf,
    /// Where services on port 80 answer.
    pub http: SocketAddr,
    /// Where services on port 443 answer.
    pub tls: Option<SocketAddr>,
    /// Where counters can be read.
    pub metrics: Option<SocketAddr>,
    /// Where requests are logged.
    pub access_log: Option<PathBuf>,
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
    let (mut data, mut http, mut tls, mut metrics, mut access_log) = (None, None, None, None, None);
    let path = |parser: &mut lexopt::Parser| parser.value().map(PathBuf::from).map_err(|error| error.to_string());
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Long("data") => data = Some(path(&mut parser)?),
            Long("http") => http = Some(address("--http", &mut parser)?),
            Long("tls") => tls = Some(address("--tls", &mut parser)?),
            Long("metrics") => metrics = Some(address("--metrics", &mut parser)?),
            Long("access-log") => access_log = Some(path(&mut parser)?),
            Long("version") => return Ok(Parsed::Text(concat!("torpor-proxy ", env!("CARGO_PKG_VERSION")).into())),
            Long("help") | Short('h') => return Ok(Parsed::Text(HELP.into())),
            other => return Err(other.unexpected().to_string()),
        }
    }
    let (data, http) = (data.ok_or("--data is missing")?, http.ok_or("--http is missing")?);
    Ok(Parsed::Run(Options { data, http, tls, metrics, access_log }))
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
        let http = "127.0.0.1:0".parse().expect("an address");
        let expected = Options { data: "/d".into(), http, tls: None, metrics: None, access_log: None };
        assert_eq!(run, Ok(Parsed::Run(expected)));
        assert!(parse_words(&["--data", "/d"]).is_err_and(|error| error.contains("--http")));
        let bad = parse_words(&["--data", "/d", "--http", "8080"]);
        assert!(bad.is_err_and(|error| error.contains("8080")));
        assert!(parse_words(&["--nonsense"]).is_err_and(|error| error.contains("nonsense")));
    }
}

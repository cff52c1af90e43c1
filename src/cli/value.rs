//! Values of options.

use std::{net::SocketAddr, time::Duration};

use jiff::SignedDuration;

/// `90s`, `10m`, `300ms`, `1h 30m`
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration = text.parse().map_err(|_| "use a number with a unit, such as 90s, 10m or 300ms")?;
    Duration::try_from(parsed).map_err(|_| "a duration cannot be negative".to_owned())
}

/// `HOST:PORT` that others can dial.
pub(super) fn reachable(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("use HOST:PORT")?;
    if host.is_empty() || !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err("use HOST:PORT, with a port from 1 to 65535".to_owned());
    }
    let address = text.parse::<SocketAddr>();
    if address.is_ok_and(|address| address.ip().is_unspecified()) {
        return Err("that is every address of this machine; name one at which others reach it".to_owned());
    }
    Ok(text.to_owned())
}

/// `KEY=VALUE`
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("use KEY=VALUE")?;
    if key.is_empty() { Err("the key is empty".to_owned()) } else { Ok((key.to_owned(), value.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertised_address_can_be_dialled() {
        for good in ["cdc-0.cdc:8300", "10.0.0.7:1", "[::1]:65535"] {
            assert_eq!(reachable(good), Ok(good.to_owned()));
        }
        for bad in ["", "cdc-0", ":8300", "cdc-0:", "cdc-0:0", "cdc-0:65536", "0.0.0.0:8300", "[::]:8300"] {
            assert!(reachable(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_mins(90)));
        assert!(duration("5").is_err());
        assert!(duration("-5s").is_err());
    }
}

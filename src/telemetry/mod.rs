//! Logs: lines on standard error, for people or as JSON.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::ParseError, fmt::MakeWriter, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// What is logged when nothing else is said.
pub const DEFAULT_FILTER: &str = "info,h2=warn,hyper=warn,kube_runtime=warn,tower=warn,tonic=warn";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Begins to log to standard error. A second call does nothing.
///
/// # Errors
/// When the filter makes no sense.
pub fn init(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    let lines = lines(format, io::stderr);
    // Only a subscriber that is there already can fail this, and that one logs.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    Ok(())
}

/// Writes events as lines. The module that an event comes from is left out: `target` is the capture that is drained.
fn lines<W>(format: LogFormat, out: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_writer(out);
    match format {
        LogFormat::Text => {
            let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(colours).boxed()
        }
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_target_of_a_drain_is_not_lost_behind_the_name_of_a_module() {
        let page = Page::default();
        let written = page.clone();
        let subscriber = tracing_subscriber::registry().with(lines(LogFormat::Json, move || written.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target = "capture-2", epoch = 7, "drain starts");
        });
        let line = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&event["target"], &event["epoch"]), (&"capture-2".into(), &7.into()), "{line}");
        assert_eq!((&event["message"], &event["level"]), (&"drain starts".into(), &"INFO".into()), "{line}");
        assert_eq!(line.matches("\"target\"").count(), 1, "{line}");
    }
}

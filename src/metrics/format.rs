//! The two formats that scrapers ask for: `OpenMetrics`, which the library writes, and the older text of Prometheus.

/// How the series are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Version 1.0.0 of `OpenMetrics`: what Prometheus asks for by itself.
    OpenMetrics,
    /// Version 0.0.4 of the text format: what `promtool check metrics` and everybody else reads.
    Text,
}

impl Format {
    /// What a scraper wants, by its `Accept` header.
    pub fn wanted(accept: Option<&str>) -> Self {
        let open = accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
        if open { Self::OpenMetrics } else { Self::Text }
    }

    /// The media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// An `OpenMetrics` page as text: there a counter is described by the name of its series, `…_total`, and neither units nor
/// the end are marked.
pub(super) fn as_text(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut help = None;
    for line in page.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            push(&mut text, &[line]);
            continue;
        };
        match comment.split_once(' ') {
            // The kind, which comes next, decides on the name.
            Some(("HELP", described)) => help = described.split_once(' '),
            Some(("TYPE", described)) => {
                let suffix = if described.ends_with(" counter") { "_total" } else { "" };
                if let Some((name, sentence)) = help.take() {
                    push(&mut text, &["# HELP ", name, suffix, " ", sentence]);
                }
                if let Some((name, kind)) = described.split_once(' ') {
                    push(&mut text, &["# TYPE ", name, suffix, " ", kind]);
                }
            }
            _ => {}
        }
    }
    text
}

fn push(text: &mut String, parts: &[&str]) {
    text.extend(parts.iter().copied());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, format: Format) {
        assert_eq!(Format::wanted(Some(accept)), format, "{accept}");
    }

    #[test]
    fn the_scraper_chooses_the_format() {
        check(
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            Format::OpenMetrics,
        );
        check("text/plain;version=0.0.4", Format::Text);
        check("*/*", Format::Text);
        assert_eq!(Format::wanted(None), Format::Text);
    }

    #[test]
    fn text_describes_counters_by_their_series_and_has_no_units() {
        let open = "# HELP a Apples.\n# TYPE a counter\na_total{k=\"v\"} 1\n\
                    # HELP b_seconds Bees.\n# TYPE b_seconds gauge\n# UNIT b_seconds seconds\nb_seconds 2.5\n# EOF\n";
        let text = "# HELP a_total Apples.\n# TYPE a_total counter\na_total{k=\"v\"} 1\n\
                    # HELP b_seconds Bees.\n# TYPE b_seconds gauge\nb_seconds 2.5\n";
        assert_eq!(as_text(open), text);
    }
}

//! The report: one page that needs nothing else, with the table of the last screen and the lag over time.

use super::{
    Outcome,
    chart::{Scale, chart},
    screen::{LINES, notes, proof, setting, verdict},
};

const STYLE: &str = include_str!("report.css");

/// What the lines of the charts are: class, and what it says.
const LEGEND: [(&str, &str); 5] = [
    ("highest", "lag of the changefeed that is furthest behind"),
    ("median", "50th percentile of the changefeeds"),
    ("calm", "the highest lag right before"),
    ("window", "from the order to leave until all work runs elsewhere, as calm"),
    ("loss", "the coordinator is dead, or its work not yet caught up"),
];

/// The page, as HTML.
pub fn report(outcome: &Outcome) -> String {
    let scale = Scale::of(&outcome.departures);
    let charts: String = outcome.departures.iter().map(|departure| chart(departure, &scale)).collect();
    let legend = LEGEND.map(|(class, what)| format!("<li><i class=\"{class}\"></i>{}</li>\n", escape(what))).concat();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>capturedrain demo</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>What a capture\u{2019}s leaving costs</h1>\n<p class=\"soft\">{setting}</p>\n\
         {verdict}<div class=\"wide\">\n{table}</div>\n<p class=\"soft\">{notes}</p>\n\
         <ul class=\"legend\">\n{legend}</ul>\n{charts}\
         <p class=\"soft\">Lag over the seconds since the order to leave, on the same scale in all charts: the age of the \
         oldest row that the source has and the sink has not, looked for in the sinks\u{2019} files 40 times a second. \
         Made by capturedrain {version}.</p>\n</body>\n</html>\n",
        setting = escape(&setting(outcome)),
        verdict = banner(outcome),
        table = table(outcome),
        notes = escape(&notes(outcome).join(" ")),
        version = escape(env!("CARGO_PKG_VERSION")),
    )
}

fn banner(outcome: &Outcome) -> String {
    let class = if outcome.proven { "verdict" } else { "verdict failed" };
    let (verdict, proof) = (escape(verdict(outcome)), escape(&proof(outcome)));
    format!("<p class=\"{class}\">{verdict} <span>{proof}</span></p>\n")
}

fn table(outcome: &Outcome) -> String {
    let row = |head: String, cells: &mut dyn Iterator<Item = String>| {
        format!("<tr>{head}{}</tr>\n", cells.collect::<String>())
    };
    let departures = || outcome.departures.iter();
    let titles = row("<th></th>".to_owned(), &mut departures().map(|d| format!("<th>{}</th>", escape(d.way.title()))));
    let lines = LINES.map(|(name, of)| {
        let class = if name.starts_with(' ') { " class=\"part\"" } else { "" };
        let head = format!("<th{class}>{}</th>", escape(name.trim_start()));
        row(head, &mut departures().map(|departure| format!("<td>{}</td>", escape(&of(departure)))))
    });
    format!("<table>\n<thead>\n{titles}</thead>\n<tbody>\n{}</tbody>\n</table>\n", lines.concat())
}

/// Text as it stands in HTML, between tags and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Not allowed in HTML; a key may have them.
            c if c.is_control() && c != '\n' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::outcome::tests::outcome;

    #[test]
    fn the_page_has_everything_and_asks_for_nothing() {
        let page = report(&outcome());
        for part in ["40,213 rows", "PROVEN", "by SIGTERM", "class=\"loss\"", "prefers-color-scheme: dark"] {
            assert!(page.contains(part), "{part}");
        }
        assert_eq!(page.matches("<svg").count(), 3);
        for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn every_tag_is_closed_in_turn() {
        let page = report(&outcome());
        let mut open = Vec::new();
        for tag in page.split('<').skip(1).map(|rest| rest.split('>').next().unwrap_or(rest)) {
            let name = tag.split([' ', '\n']).next().unwrap_or(tag);
            match name.strip_prefix('/') {
                Some(closed) => assert_eq!(open.pop(), Some(closed), "{tag}"),
                None if tag.ends_with('/') || ["!DOCTYPE", "meta"].contains(&name) => {}
                None => open.push(name),
            }
        }
        assert_eq!(open, Vec::<&str>::new());
    }

    #[test]
    fn what_is_foreign_is_text() {
        let mut outcome = outcome();
        outcome.proof.first = Some("lost: <img src=x onerror=\"y\">&'\u{1}".to_owned());
        let page = report(&outcome);
        assert!(page.contains("lost: &lt;img src=x onerror=&quot;y&quot;&gt;&amp;&#39;\u{fffd}"));
        assert!(page.contains("it is told &lt;to&gt; leave") && !page.contains("<to>"));
    }
}

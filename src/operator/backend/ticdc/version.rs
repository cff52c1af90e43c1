//! Which releases drain, and which only say so.
//!
//! - The classic `TiCDC` drains since 6.2; from 6.3 on it also runs with captures of two releases side by side, which a
//!   rolling update needs.
//! - The new architecture came with 8.5.4. Until 8.5.7 its call is a stub that answers 0 nine times out of ten, whatever
//!   is on the capture; and as a process says nothing of its architecture, all of these releases are refused.
//! - Pre-releases after that, and releases that are not known here, are refused as well.

/// The first release that drains.
const FIRST: (u64, u64, u64) = (6, 3, 0);
/// The first release whose call may be a stub.
const STUB_FROM: (u64, u64, u64) = (8, 5, 4);
/// The first one whose call is none any more.
const STUB_UNTIL: (u64, u64, u64) = (8, 5, 7);
/// The first major release of which nothing is known.
const UNKNOWN_FROM_MAJOR: u64 = 10;

/// Whether a release drains, or why not: the end of a sentence that begins with the release.
pub(super) fn drains(version: &str) -> Result<(), &'static str> {
    let unreadable = "which is no release that is known here";
    let Some((release, is_early)) = parse(version) else { return Err(unreadable) };
    if release < FIRST || (release == FIRST && is_early) {
        return Err("which cannot drain: 6.3.0 is the first that can");
    }
    if release.0 >= UNKNOWN_FROM_MAJOR {
        return Err(unreadable);
    }
    // What comes before a release is older than it.
    if release >= STUB_FROM && (release < STUB_UNTIL || is_early) {
        return Err("which may answer that a capture is empty when it is not: use 8.5.7 or later");
    }
    Ok(())
}

/// The three numbers, and whether it is a build from before that release. `-release.N` and the marks of a build of the
/// release itself (`-fips`, `-dirty`) are none.
fn parse(version: &str) -> Option<((u64, u64, u64), bool)> {
    let version = version.trim().trim_start_matches('v');
    let (numbers, rest) = version.split_once(['-', '+']).unwrap_or((version, ""));
    let mut numbers = numbers.split('.').map(|number| number.parse().ok());
    let release = (numbers.next()??, numbers.next()??, numbers.next()??);
    let is_of_release =
        |part: &str| matches!(part, "" | "fips" | "dirty" | "enterprise") || part.starts_with("release.");
    numbers.next().is_none().then(|| (release, !rest.split('-').all(is_of_release)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_that_drain_are_told_from_those_that_only_say_so() {
        let check = |drain: bool, versions: &[&str]| {
            for version in versions {
                assert_eq!(drains(version).is_ok(), drain, "{version}: {:?}", drains(version));
            }
        };
        check(true, &["v6.3.0", "6.5.12", "v7.1.0", "v7.5.6", "v8.1.2", "v8.5.0", "v8.5.3", "v7.6.0-alpha"]);
        check(true, &["v8.5.7", "v8.5.8", "v8.5.7-release.1", "v8.5.7-fips", "v9.0.0", "v9.1.3"]);
        check(false, &["v4.0.16", "v5.4.3", "v6.1.7", "v6.2.0", "v6.3.0-alpha", "v6.3.0-20-gabcdef0"]);
        check(false, &["v8.5.4", "v8.5.4-release.1", "v8.5.5", "v8.5.6", "v8.5.6-release.2", "v8.5.4-alpha"]);
        check(false, &["v8.5.7-alpha", "v9.0.0-beta.1", "v9.0.0-alpha-12-gabcdef0", "v9.0.0-rc.1"]);
        check(false, &["v10.0.0", "v26.3.0", "None", "", "master", "8.5", "v8.5.7.1", "v-1.2.3", "vv"]);
    }
}

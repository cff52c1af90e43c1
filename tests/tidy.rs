//! Rules of the tree that no compiler keeps: layers, a pure core, short files, licences, links, `make help`.
//!
//! Each rule is a function from text to complaints, with a test that shows it a text which breaks the rule.

#![allow(clippy::unwrap_used, reason = "a tree that cannot be read fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Component, Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Which modules of `src/` may name which others, lowest first. All may use the core and `telemetry`; a module with an
/// empty list knows nothing else.
const LAYERS: &[(&str, &[&str])] = &[
    // What touches the world, each part knowing nothing of the others.
    ("clock", &[]),
    ("telemetry", &[]),
    ("tls", &[]),
    ("store", &["tls"]),
    ("pipeline", &["clock"]),
    ("verify", &["pipeline"]),
    // What people are shown.
    ("view", &[]),
    ("metrics", &["clock", "view"]),
    // Doors speak to a capture through `door`, never to the process behind it.
    ("door", &["metrics"]),
    ("wire", &["door", "tls"]),
    ("http", &["clock", "door", "metrics", "tls", "view", "wire"]),
    // In front of both doors: who may come in.
    ("listener", &["http", "tls", "view", "wire"]),
    ("client", &["tls", "view", "wire"]),
    ("resource", &[]),
    ("operator", &["client", "metrics", "resource", "telemetry", "tls", "view"]),
    ("plugin", &["operator", "resource", "tls", "view"]),
    // The process that wires all of it.
    ("node", &["client", "clock", "store", "pipeline", "metrics", "door", "wire", "http", "listener", "tls"]),
    // What the kubelet runs.
    ("hook", &["client", "clock", "operator"]),
    // What people start.
    ("demo", &["client", "clock", "door", "node", "operator", "pipeline", "resource", "store", "verify", "view"]),
    (
        "cli",
        &["client", "clock", "demo", "hook", "http", "node", "operator", "plugin", "resource", "store", "tls", "view"],
    ),
    ("main", &["cli"]),
];

/// Paths that the core may not name: they are the clock, the world, or an order that differs from run to run.
const IMPURE_PATHS: &[&str] = &[
    "std::time::Instant",
    "std::time::SystemTime",
    "std::collections::HashMap",
    "std::collections::HashSet",
    "std::collections::hash_map",
    "std::collections::hash_set",
    "std::fs",
    "std::net",
    "std::env",
    "std::thread",
    "std::process",
    "std::io",
];

/// Crates that the core may not depend on, by the beginning of their names.
const IMPURE_CRATES: &[&str] =
    &["tokio", "kube", "k8s", "tonic", "etcd", "rand", "getrandom", "axum", "hyper", "reqwest", "redb", "jiff"];

/// Licences whose code may be in the binary. An expression passes when these satisfy it.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0", // data: certificates of public authorities
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// Longest file in `src/`, in lines.
const FILE_MAX_LINES: usize = 600;

/// Signs of unfinished work. Put together here, so that this file does not break its own rule.
const UNFINISHED: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("unimplemented", "!("), concat!("todo", "!(")];

#[test]
fn modules_name_only_what_lies_below_them() {
    let mut complaints = Vec::new();
    for (path, text) in sources("src/") {
        if !path.starts_with("src/core/") && path != "src/lib.rs" {
            complaints.extend(layer_complaints(&path, &text));
        }
    }
    assert_none(&complaints);
}

#[test]
fn the_core_is_pure() {
    let mut complaints = Vec::new();
    for (path, text) in sources("src/core/") {
        complaints.extend(purity_complaints(&path, &text));
    }
    complaints.extend(dependency_complaints(&metadata(), "capturedrain-core"));
    assert_none(&complaints);
}

#[test]
fn files_are_short() {
    let complaints: Vec<_> = sources("src/").iter().filter_map(|(path, text)| length_complaint(path, text)).collect();
    assert_none(&complaints);
}

#[test]
fn long_functions_say_why() {
    let mut complaints = Vec::new();
    for (path, text) in files(".rs") {
        complaints.extend(exemption_complaints(&path, &text));
    }
    assert_none(&complaints);
}

#[test]
fn links_between_files_resolve() {
    let mut complaints = Vec::new();
    for (path, text) in files(".md") {
        complaints.extend(link_complaints(&path, &text, &|target| root().join(target).exists()));
    }
    assert_none(&complaints);
}

#[test]
fn make_help_lists_every_target() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    assert_none(&help_complaints(&makefile));
}

#[test]
fn nothing_is_left_unfinished() {
    let mut complaints = Vec::new();
    for (path, text) in files("") {
        // Checksums contain any word sooner or later.
        if ![".sum", ".lock"].iter().any(|ending| path.ends_with(ending)) {
            complaints.extend(unfinished_complaints(&path, &text));
        }
    }
    assert_none(&complaints);
}

#[test]
fn licences_are_allowed() {
    assert_none(&licence_complaints(&metadata()));
}

#[test]
fn generated_files_are_up_to_date() {
    let copy = "charts/capturedrain-operator/files/capturedrain.yaml";
    for (command, file) in [("crd", "crds/capturedrain.yaml"), ("crd", copy), ("openapi", "docs/openapi.json")] {
        let output = Command::new(env!("CARGO_BIN_EXE_capturedrain")).arg(command).output().unwrap();
        assert!(output.status.success(), "capturedrain {command}: {}", String::from_utf8_lossy(&output.stderr));
        let kept = fs::read(root().join(file)).unwrap_or_default();
        assert!(kept == output.stdout, "{file} is not what the code says: run `make {command}`");
    }
}

// The rules.

fn layer_complaints(path: &str, text: &str) -> Vec<String> {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let module = inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs");
    let Some((_, below)) = LAYERS.iter().find(|(name, _)| *name == module) else {
        return vec![format!("{path}: module {module} has no layer; give it one in tests/tidy.rs")];
    };
    let code = code_only(text);
    // In the file that is the module itself, `super` is the crate, unless an own submodule has that name.
    let is_root = inside == format!("{module}/mod.rs") || inside == format!("{module}.rs");
    let mut named = BTreeSet::new();
    for named_path in paths(&code) {
        let mut parts = named_path.split("::");
        match parts.next() {
            Some("crate" | "capturedrain") => {}
            Some("super") if is_root => {}
            _ => continue,
        }
        let Some(other) = parts.next() else { continue };
        if named_path.starts_with("super") && code.contains(&format!("mod {other};")) {
            continue;
        }
        named.insert(other.to_owned());
    }
    named
        .into_iter()
        .filter(|other| LAYERS.iter().any(|(name, _)| name == other))
        .filter(|other| other != module && other != "telemetry" && !below.contains(&other.as_str()))
        .map(|other| format!("{path}: {module} names {other}, which is not below it"))
        .collect()
}

fn purity_complaints(path: &str, text: &str) -> Vec<String> {
    let impure =
        |named: &String| IMPURE_PATHS.iter().any(|impure| named == impure || named.starts_with(&format!("{impure}::")));
    let named = paths(&code_only(text));
    named.iter().filter(|named| impure(named)).map(|named| format!("{path}: the core names {named}")).collect()
}

fn dependency_complaints(metadata: &Value, package: &str) -> Vec<String> {
    let Some(package) = packages(metadata).find(|candidate| candidate["name"] == package) else {
        return vec![format!("there is no package {package}")];
    };
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    dependencies
        .filter(|dependency| dependency["kind"] != "dev")
        .filter_map(|dependency| dependency["name"].as_str())
        .filter(|name| IMPURE_CRATES.iter().any(|impure| name.starts_with(impure)))
        .map(|name| format!("the core depends on {name}"))
        .collect()
}

fn length_complaint(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > FILE_MAX_LINES).then(|| format!("{path}: {lines} lines, more than {FILE_MAX_LINES}; split what it does"))
}

fn exemption_complaints(path: &str, text: &str) -> Vec<String> {
    let code = code_only(text);
    let attributes = code.split("#[").skip(1).chain(code.split("#![").skip(1));
    attributes
        .map(|rest| rest.split(']').next().unwrap_or(rest))
        .filter(|attribute| attribute.contains("clippy::too_many_lines") && !attribute.contains("reason"))
        .map(|attribute| format!("{path}: #[{attribute}] gives no reason"))
        .collect()
}

fn link_complaints(path: &str, text: &str, exists: &dyn Fn(&Path) -> bool) -> Vec<String> {
    let folder = Path::new(path).parent().unwrap_or(Path::new(""));
    // Every other part of a text that is split at fences, and then at ticks, is code.
    let prose: String = text.split("```").step_by(2).flat_map(|prose| prose.split('`').step_by(2)).collect();
    let mut complaints = Vec::new();
    for rest in prose.split("](").skip(1) {
        let link = rest.split(')').next().unwrap_or(rest);
        let file = link.split('#').next().unwrap_or(link);
        if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
            continue;
        }
        let target = normal(&folder.join(file));
        if !exists(&target) {
            complaints.push(format!("{path}: link to {link}, but there is no {}", target.display()));
        }
    }
    complaints
}

fn help_complaints(makefile: &str) -> Vec<String> {
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    makefile
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, rest)| is_name(name) && !rest.starts_with('=') && !rest.contains("## "))
        .map(|(name, _)| format!("make {name} is not in `make help`: write what it does behind ##"))
        .collect()
}

fn unfinished_complaints(path: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for word in UNFINISHED.iter().filter(|word| line.contains(**word)) {
            complaints.push(format!("{path}:{}: {word}", index + 1));
        }
    }
    complaints
}

fn licence_complaints(metadata: &Value) -> Vec<String> {
    packages(metadata)
        .filter_map(|package| {
            let (name, version) = (package["name"].as_str()?, package["version"].as_str()?);
            match package["license"].as_str() {
                None => Some(format!("{name} {version} states no licence")),
                Some(licence) if !satisfied(licence) => Some(format!("{name} {version} has the licence {licence}")),
                Some(_) => None,
            }
        })
        .collect()
}

/// Whether the allowed licences satisfy an SPDX expression. The old `MIT/Apache-2.0` means `OR`; `WITH` an exception
/// grants more than the licence alone, so the licence decides.
fn satisfied(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = tokens.as_slice();
    let verdict = any_of(&mut rest);
    verdict && rest.is_empty()
}

fn any_of(tokens: &mut &[&str]) -> bool {
    let mut verdict = all_of(tokens);
    while let Some((&"OR", rest)) = tokens.split_first() {
        *tokens = rest;
        verdict |= all_of(tokens);
    }
    verdict
}

fn all_of(tokens: &mut &[&str]) -> bool {
    let mut verdict = one_of(tokens);
    while let Some((&"AND", rest)) = tokens.split_first() {
        *tokens = rest;
        verdict &= one_of(tokens);
    }
    verdict
}

fn one_of(tokens: &mut &[&str]) -> bool {
    let Some((first, rest)) = tokens.split_first() else { return false };
    *tokens = rest;
    if *first == "(" {
        let verdict = any_of(tokens);
        let Some((&")", rest)) = tokens.split_first() else { return false };
        *tokens = rest;
        return verdict;
    }
    if let ["WITH", _exception, rest @ ..] = *tokens {
        *tokens = rest;
    }
    LICENCES.contains(first)
}

// Reading Rust, as far as the rules need it.

/// The code without comments, and with empty strings and characters.
fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let skip = |mut index: usize, end: &[char]| {
        while index < chars.len() && !chars[index..].starts_with(end) {
            index += if end == ['"'] && chars[index] == '\\' { 2 } else { 1 };
        }
        index + end.len()
    };
    let mut code = String::with_capacity(text.len());
    let mut index = 0;
    while index < chars.len() {
        let starts_word = index == 0 || !is_word(at(index - 1));
        index = match (at(index), at(index + 1)) {
            ('/', '/') => skip(index, &['\n']) - 1,
            ('/', '*') => after_comment(&chars, index),
            ('r', '"' | '#') if starts_word && raw_end(&chars, index).is_some() => {
                let end = raw_end(&chars, index).unwrap_or_default();
                skip(index + 1 + end.len(), &end)
            }
            ('"', _) => skip(index + 1, &['"']),
            // A character, not a lifetime.
            ('\'', '\\') => skip(index + 3, &['\'']),
            ('\'', _) if at(index + 2) == '\'' => index + 3,
            (c, _) => {
                code.push(c);
                index + 1
            }
        };
    }
    code
}

/// Where the comment ends that begins here; comments nest.
fn after_comment(chars: &[char], start: usize) -> usize {
    let (mut index, mut depth) = (start, 0);
    while index < chars.len() {
        if chars[index..].starts_with(&['/', '*']) {
            depth += 1;
            index += 2;
        } else if chars[index..].starts_with(&['*', '/']) {
            depth -= 1;
            index += 2;
        } else {
            index += 1;
        }
        if depth == 0 {
            break;
        }
    }
    index
}

/// What ends the raw string whose `r` stands here; `None` when none begins.
fn raw_end(chars: &[char], r: usize) -> Option<Vec<char>> {
    let hashes = chars[r + 1..].iter().take_while(|c| **c == '#').count();
    let is_raw = chars.get(r + 1 + hashes) == Some(&'"');
    is_raw.then(|| std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// All paths of two names and more in code without comments; those of `use` are written out.
fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find(is_word) {
        rest = &rest[start..];
        let word = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        let end = if &rest[..word] == "use" {
            let end = rest.find(';').unwrap_or(rest.len());
            let tree = rest[word..end].split_whitespace().collect::<Vec<_>>().join(" ");
            write_out("", &tree, &mut found);
            end
        } else {
            let end = path_end(rest, word);
            if end > word {
                found.push(rest[..end].to_owned());
            }
            end
        };
        rest = &rest[end..];
    }
    found
}

/// Where the path ends that begins with a word of this length.
fn path_end(text: &str, word: usize) -> usize {
    let mut end = word;
    while let Some(more) = text[end..].strip_prefix("::") {
        let next = more.find(|c: char| !is_word(c)).unwrap_or(more.len());
        if next == 0 {
            break;
        }
        end += 2 + next;
    }
    end
}

/// Writes out `a::{b, c::d as e}` as `a::b` and `a::c::d`.
fn write_out(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let tree = tree.trim().trim_start_matches("::");
    let Some((head, group)) = tree.split_once('{') else {
        if !tree.is_empty() {
            let path = format!("{prefix}{}", tree.split(" as ").next().unwrap_or(tree));
            found.push(path.strip_suffix("::self").unwrap_or(&path).to_owned());
        }
        return;
    };
    let prefix = format!("{prefix}{}", head.trim());
    let group = group.trim_end().strip_suffix('}').unwrap_or(group);
    let (mut depth, mut begin) = (0, 0);
    for (index, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                write_out(&prefix, &group[begin..index], found);
                begin = index + 1;
            }
            _ => {}
        }
    }
    write_out(&prefix, &group[begin..], found);
}

// Reading the tree.

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text files of the tree whose names end so, ignored ones left out.
fn files(ending: &str) -> BTreeMap<String, String> {
    // A clone may belong to another user, as it does in containers.
    let output = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    names
        .split('\0')
        .filter(|name| !name.is_empty() && name.ends_with(ending))
        .filter_map(|name| Some((name.to_owned(), fs::read_to_string(root().join(name)).ok()?)))
        .collect()
}

fn sources(folder: &str) -> BTreeMap<String, String> {
    let mut files = files(".rs");
    files.retain(|path, _| path.starts_with(folder));
    assert!(!files.is_empty(), "no sources in {folder}");
    files
}

/// What cargo knows of every package of the lock file, those of other platforms included.
fn metadata() -> Value {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--locked", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

/// The path with `..` and `.` worked out.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Each rule, shown something that breaks it.
mod can_fail {
    use super::*;

    #[test]
    fn layers() {
        let check = |path: &str, text: &str, complaints: usize| {
            let found = layer_complaints(path, text);
            assert_eq!(found.len(), complaints, "{path}: {text}: {found:?}");
        };
        check("src/http/mod.rs", "use crate::node::Node;", 1);
        check("src/http/server.rs", "use crate::{\n    door::Door,\n    node,\n};", 1);
        check("src/http/mod.rs", "fn f() { crate::cli::run() }", 1);
        check("src/http/mod.rs", "use super::node;", 1);
        check("src/node/mod.rs", "mod cli; use self::cli::X; mod tests { use super::cli::Y; }", 0);
        check("src/node/mod.rs", "use crate::{store::{Store, etcd::Etcd}, wire};", 0);
        check("src/store/mod.rs", "// as crate::node says\nconst X: &str = \"crate::node\";", 0);
        check("src/main.rs", "fn main() { capturedrain::demo::run() }", 1);
        check("src/novel/mod.rs", "", 1);
        check("src/door.rs", "use capturedrain_core::model::CaptureId; use crate::telemetry;", 0);
    }

    #[test]
    fn purity() {
        let check = |text: &str, complaints: usize| {
            let found = purity_complaints("src/core/x.rs", text);
            assert_eq!(found.len(), complaints, "{text}: {found:?}");
        };
        check("use std::{collections::{BTreeMap, HashMap}, time::{Duration, Instant}};", 2);
        check("let now = std::time::SystemTime::now();", 1);
        check("use std::{fs, sync::Arc};", 1);
        check("use std::collections::HashMap as Map;", 1);
        check("let quote = '\"'; let fs = std::fs::read(x); let quote = '\"';", 1);
        check("use crate::model::Instant; use std::{sync::Arc, time::Duration};", 0);
        check("/// Unlike std::time::Instant, /* std::fs */ pure.\nlet x: &'static str = r#\"std::fs \" \"#;", 0);
    }

    #[test]
    fn dependencies() {
        let metadata = serde_json::json!({"packages": [{"name": "core", "dependencies": [
            {"name": "tokio-stream", "kind": null},
            {"name": "rand_chacha", "kind": "dev"},
            {"name": "serde", "kind": null},
        ]}]});
        assert_eq!(dependency_complaints(&metadata, "core"), ["the core depends on tokio-stream"]);
        assert_eq!(dependency_complaints(&metadata, "other").len(), 1);
    }

    #[test]
    fn lengths() {
        assert!(length_complaint("src/x.rs", &"\n".repeat(FILE_MAX_LINES)).is_none());
        assert!(length_complaint("src/x.rs", &"\n".repeat(FILE_MAX_LINES + 1)).is_some());
    }

    #[test]
    fn exemptions() {
        assert_eq!(exemption_complaints("x.rs", "#[allow(clippy::too_many_lines)]\nfn f() {}").len(), 1);
        assert_eq!(exemption_complaints("x.rs", "#![expect(clippy::too_many_lines)]").len(), 1);
        let reasoned = "#[expect(\n    clippy::too_many_lines,\n    reason = \"a table\"\n)]\nfn f() {}";
        assert_eq!(exemption_complaints("x.rs", reasoned).len(), 0);
    }

    #[test]
    fn links() {
        let exists = |path: &Path| path == Path::new("docs/design.md") || path == Path::new("README.md");
        let check = |text: &str, complaints: usize| {
            let found = link_complaints("docs/protocol.md", text, &exists);
            assert_eq!(found.len(), complaints, "{text}: {found:?}");
        };
        check("[gone](gone.md)", 1);
        check("[up](../gone.md#there) and [fine](design.md)", 1);
        check("[a](design.md#words) [b](../README.md) [c](https://example.org) [d](#here)", 0);
        check("`[code](gone.md)`\n```\n[code](gone.md)\n```\n", 0);
    }

    #[test]
    fn help() {
        assert_eq!(help_complaints("all: build\n\tcargo build\n").len(), 1);
        assert_eq!(help_complaints("X := 1\n.PHONY: all\nall: build ## build all\n\techo a: b\n").len(), 0);
    }

    #[test]
    fn unfinished() {
        for word in UNFINISHED {
            assert_eq!(unfinished_complaints("x.rs", &format!("fine\nx {word} x")).len(), 1, "{word}");
        }
        assert_eq!(unfinished_complaints("Cargo.toml", "todo = \"warn\"").len(), 0);
    }

    #[test]
    fn licences() {
        let check = |expression: &str, verdict: bool| assert_eq!(satisfied(expression), verdict, "{expression}");
        check("MIT", true);
        check("GPL-3.0-only", false);
        check("MIT/Apache-2.0", true);
        check("GPL-3.0-only OR MIT", true);
        check("GPL-3.0-only AND MIT", false);
        check("(MIT OR Apache-2.0) AND Unicode-3.0", true);
        check("(MIT OR Apache-2.0) AND GPL-3.0-only", false);
        check("MIT OR GPL-3.0-only AND GPL-2.0-only", true);
        check("Apache-2.0 WITH LLVM-exception", true);
        check("(MIT", false);
        check("", false);
        let metadata = serde_json::json!({"packages": [
            {"name": "a", "version": "1.0.0", "license": "MIT"},
            {"name": "b", "version": "2.0.0", "license": "GPL-3.0-only"},
            {"name": "c", "version": "3.0.0", "license": null},
        ]});
        assert_eq!(licence_complaints(&metadata).len(), 2);
    }
}

//! Processes and folders that go with the test, however it ends: also when it panics, and when it is killed.
//!
//! A shell waits beside the tests at the end of a pipe that only they hold. When they are gone it ends what they told it
//! of. Dropping does the same earlier, one by one.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
};

use tempfile::TempDir;

/// Learns of process groups and folders by lines, and ends all of them at the end of its input.
const WATCH: &str = r#"
trap '' HUP INT TERM
groups=' ' folders=
while read -r verb what; do
    case $verb in
        end) groups="$groups$what " ;;
        spare) groups="${groups%% "$what" *} ${groups#* "$what" }" ;;
        remove) folders="$folders $what" ;;
    esac
done
for group in $groups; do kill -9 "-$group"; done
tries=0
until rm -rf $folders || [ $((tries += 1)) -gt 50 ]; do sleep 0.1; done
"#;

/// Becomes a command once it is watched.
const WHEN_WATCHED: &str = r#"read -r watched && exec "$@" </dev/null"#;

/// What a shell answers when it cannot find or run a command.
const MISSING: [i32; 2] = [126, 127];

/// Writes a line to the watching shell, which the first one starts.
fn tell(line: &str) {
    static WATCHER: OnceLock<Mutex<Child>> = OnceLock::new();
    let start = || {
        let mut command = Command::new("sh");
        command.args(["-c", WATCH]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own, so that Ctrl-C ends the tests and not what ends their servers.
        Mutex::new(command.current_dir("/").process_group(0).spawn().expect("sh starts"))
    };
    let mut watcher = WATCHER.get_or_init(start).lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(watcher.stdin.as_mut().expect("a pipe"), "{line}").expect("the watching shell listens");
}

/// A process, with all that it starts in its process group.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts a command, whose output goes to the end of a file, or nowhere.
    pub(crate) fn start(command: &[String], log: Option<&Path>) -> Self {
        let output = || match log {
            Some(log) => File::options().create(true).append(true).open(log).expect("a log file").into(),
            None => Stdio::null(),
        };
        let mut shell = Command::new("sh");
        shell.args(["-c", WHEN_WATCHED, "sh"]).args(command).process_group(0);
        let mut child = shell.stdin(Stdio::piped()).stdout(output()).stderr(output()).spawn().expect("sh starts");
        tell(&format!("end {}", child.id()));
        writeln!(child.stdin.take().expect("a pipe"), "watched").expect("the shell listens");
        Self { child, name: command[0].clone() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Panics when it has ended, with what to do about it.
    pub(crate) fn assert_running(&mut self) {
        let Some(status) = self.child.try_wait().expect("a child") else { return };
        let name = &self.name;
        let missing = status.code().is_some_and(|code| MISSING.contains(&code));
        assert!(!missing, "{name} cannot be started: `make tools` installs it, `make test` names it");
        panic!("{name} has ended: {status}");
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Sends a signal, such as `-TERM` or `-STOP`, to it alone.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, "--", &self.pid().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{signal} to {}", self.name);
    }

    fn end(&mut self) -> io::Result<()> {
        // Its number is its own until it is waited for, also when it has ended.
        let group = format!("-{}", self.pid());
        Command::new("kill").args(["-9", "--", &group]).stderr(Stdio::null()).status()?;
        tell(&format!("spare {}", self.pid()));
        self.child.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A temporary folder.
#[derive(Debug)]
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("capturedrain-").tempdir().expect("a temporary folder");
        tell(&format!("remove {}", folder.path().display()));
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file in it, and gives its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).expect("a file in a temporary folder");
        path
    }
}

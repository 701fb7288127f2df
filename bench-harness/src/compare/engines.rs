//! Builds the engines, and finds out how cargo built them.
//!
//! `cargo run` builds only `compare`. So `compare` runs cargo to build the engines, in its own
//! profile and target directory. Cargo's messages report the version, features and optimisation
//! with which each allocator was compiled. The output of a build script may report the flags that
//! it passed to the C compiler.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use cargo_metadata::{Artifact, Message, PackageId, TargetKind};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::args::Args;
use crate::allocator::Allocator;

/// All engines of a run.
#[derive(Debug)]
pub struct Engines {
    /// Cargo profile that they are built in.
    pub profile: String,
    /// One engine per allocator, in the order of the table.
    pub all: Vec<Engine>,
}

/// An engine that is ready to run.
#[derive(Debug)]
pub struct Engine {
    /// Allocator that the engine measures.
    pub allocator: &'static Allocator,
    /// Path of the executable.
    pub path: PathBuf,
    /// How the allocator was built, with one entry per crate, if known.
    pub build: Option<Vec<CrateBuild>>,
}

/// How one crate was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrateBuild {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Cargo features.
    pub features: Vec<String>,
    /// Optimisation level that cargo requested of the Rust compiler and of the build script.
    pub opt_level: String,
    /// Whether assertions of Rust code are compiled in.
    pub debug_assertions: bool,
    /// Relevant flags among those that the build script passed to the C compiler, if its output
    /// contains them.
    pub native_flags: Option<String>,
}

impl CrateBuild {
    /// Returns whether anything shows that the crate was built unlike a release.
    pub fn is_unoptimised(&self) -> bool {
        let native = self.native_flags.as_deref().unwrap_or("-O");
        self.opt_level == "0" || self.debug_assertions || native.contains("-O0")
    }
}

/// Builds the engines of all allocators that `args` chooses.
///
/// Without cargo or the sources, it uses the engines beside this executable.
pub fn prepare(args: &Args) -> Result<Engines, String> {
    let place = Place::of_this_executable(args)?;
    let allocators = args.allocators();
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    if place.profile == "dev" {
        eprintln!("warning: a debug build measures nothing worth knowing; use cargo run --release");
    }
    let child =
        if manifest.exists() { cargo(&place, &allocators, &manifest).spawn().ok() } else { None };
    let all: Result<Vec<Engine>, String> = match child {
        Some(child) => {
            let builds = follow(child, &format!("building {} engines", allocators.len()))?;
            allocators.into_iter().map(|allocator| engine(allocator, &builds)).collect()
        }
        None => existing(&place, &allocators),
    };
    Ok(Engines { all: all?, profile: place.profile })
}

/// The profile and the directories that engines are built in.
struct Place {
    profile: String,
    target: PathBuf,
    executables: PathBuf,
}

impl Place {
    /// Derives the place from the path of this executable, which lies in `<target>/<profile>`. The
    /// directory of the profile `dev` is called `debug`.
    fn of_this_executable(args: &Args) -> Result<Self, String> {
        let path = std::env::current_exe().map_err(|error| format!("where am I? {error}"))?;
        let executables = path.parent().unwrap_or(Path::new("."));
        let target = executables.parent().unwrap_or(Path::new(".")).to_owned();
        let own = executables.file_name().and_then(|name| name.to_str()).unwrap_or("release");
        let directory = match args.profile.as_deref() {
            Some("dev") => "debug",
            Some(profile) => profile,
            None => own,
        };
        let profile = if directory == "debug" { "dev" } else { directory };
        Ok(Self { profile: profile.to_owned(), executables: target.join(directory), target })
    }
}

fn cargo(place: &Place, allocators: &[&Allocator], manifest: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--message-format=json-render-diagnostics", "--profile", &place.profile])
        // Cargo looks for its configuration in the current directory. It must find the same one as
        // when it built `compare`, or it would rebuild the dependencies.
        .current_dir(manifest.parent().unwrap_or(Path::new(".")))
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(&place.target);
    if cfg!(feature = "peers") {
        command.args(["--features", "peers"]);
    }
    for allocator in allocators {
        command.args(["--bin", &allocator.engine()]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Results of one build, as cargo reported them.
#[derive(Default)]
struct Builds {
    /// Executables by name of the target.
    executables: HashMap<String, PathBuf>,
    /// Libraries by name of the crate, with underscores.
    libraries: HashMap<String, Artifact>,
    /// Files with the output of each package's build script.
    script_output: HashMap<PackageId, PathBuf>,
}

/// Waits for cargo and shows its progress. Returns the collected messages, or cargo's output as the
/// error if it fails.
fn follow(mut child: Child, doing: &str) -> Result<Builds, String> {
    let spinner = ProgressBar::new_spinner().with_message(doing.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(120));
    let stderr = child.stderr.take().expect("piped");
    let stdout = child.stdout.take().expect("piped");
    let log = thread::scope(|scope| {
        let log = scope.spawn(|| {
            let mut log = String::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                spinner.set_message(format!("{doing}: {}", line.trim()));
                log += &line;
                log.push('\n');
            }
            log
        });
        let mut builds = Builds::default();
        for message in Message::parse_stream(BufReader::new(stdout)).map_while(Result::ok) {
            builds.take(message);
        }
        (log.join().expect("reading does not panic"), builds)
    });
    spinner.finish_and_clear();
    let (log, builds) = log;
    let status = child.wait().map_err(|error| format!("cargo: {error}"))?;
    if status.success() { Ok(builds) } else { Err(format!("the engines do not build\n{log}")) }
}

impl Builds {
    fn take(&mut self, message: Message) {
        match message {
            Message::CompilerArtifact(artifact) => {
                if let Some(executable) = &artifact.executable {
                    self.executables.insert(artifact.target.name.clone(), executable.into());
                } else if artifact.target.kind.contains(&TargetKind::Lib) {
                    self.libraries.insert(artifact.target.name.replace('-', "_"), artifact);
                }
            }
            Message::BuildScriptExecuted(script) => {
                let output = Path::new(&script.out_dir).with_file_name("output");
                self.script_output.insert(script.package_id, output);
            }
            _ => {}
        }
    }

    fn of_crate(&self, name: &str) -> Option<CrateBuild> {
        let artifact = self.libraries.get(&name.replace('-', "_"))?;
        let id = &artifact.package_id.repr;
        let output = self.script_output.get(&artifact.package_id);
        Some(CrateBuild {
            name: name.to_owned(),
            version: id.rsplit(['@', '#']).next().unwrap_or(id).to_owned(),
            features: artifact.features.clone(),
            opt_level: artifact.profile.opt_level.clone(),
            debug_assertions: artifact.profile.debug_assertions,
            native_flags: output
                .and_then(|path| std::fs::read_to_string(path).ok())
                .and_then(|output| native_flags(&output)),
        })
    }
}

fn engine(allocator: &'static Allocator, builds: &Builds) -> Result<Engine, String> {
    let name = allocator.engine();
    let path = builds.executables.get(&name).cloned();
    let path = path.ok_or_else(|| format!("cargo built no executable {name}"))?;
    let build = allocator.crates.iter().filter_map(|name| builds.of_crate(name)).collect();
    Ok(Engine { allocator, path, build: Some(build) })
}

fn existing(place: &Place, allocators: &[&'static Allocator]) -> Result<Vec<Engine>, String> {
    let existing = |allocator: &&'static Allocator| {
        let path = place.executables.join(allocator.engine());
        if path.exists() {
            Ok(Engine { allocator, path, build: None })
        } else {
            Err(format!("cargo cannot be run to build {}", path.display()))
        }
    };
    allocators.iter().map(existing).collect()
}

/// Returns the optimisation flag of the last compiler call in a build script's output, followed by
/// `-DNDEBUG` if C assertions are off. Ignores calls that only test whether the compiler knows a
/// flag.
fn native_flags(output: &str) -> Option<String> {
    let flag = |word: &str| {
        let word = word.trim_matches('"');
        (word.starts_with("-O") && word.len() == 3).then(|| word.to_owned())
    };
    let call = output.lines().rfind(|line| {
        !line.contains("flag_check") && line.split_whitespace().filter_map(flag).count() > 0
    })?;
    // The compiler obeys the last of several flags.
    let mut flags = call.split_whitespace().filter_map(flag).next_back()?;
    if call.contains("-DNDEBUG") {
        flags += " -DNDEBUG";
    }
    Some(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_optimisation_flag_counts() {
        let output = "cargo:rerun-if-changed=x\n\
            running: \"cc\" \"-O0\" \"-ffunction-sections\" \"-O3\" \"-DNDEBUG\" \"-c\" \"a.c\"\n\
            cargo:rustc-link-lib=static=a";
        assert_eq!(native_flags(output).as_deref(), Some("-O3 -DNDEBUG"));
        assert_eq!(native_flags("OPT_LEVEL = Some(3)\n"), None);
    }
}

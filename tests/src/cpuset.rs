//! A cgroup that keeps a process to some CPUs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;

/// A cgroup with a cpuset, below that of this process; removed when dropped, if its processes have ended.
#[derive(Debug)]
pub struct Cpuset(PathBuf);

impl Cpuset {
    /// A cgroup without processes. None where there are no cpusets, or this process may not make any.
    #[must_use]
    pub fn new() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let parent = groups.lines().find_map(|line| {
            // Version 2 has one hierarchy, without a name; version 1 one for each controller.
            let (root, path) = match line.split_once("::") {
                Some((_, path)) => ("/sys/fs/cgroup", path),
                None => ("/sys/fs/cgroup/cpuset", line.split_once(":cpuset:")?.1),
            };
            let parent = Path::new(root).join(path.trim_start_matches('/'));
            parent.join("cpuset.cpus").exists().then_some(parent)
        })?;
        let cpuset = Self(parent.join(format!("hayloft-{}", process::id())));
        fs::create_dir(&cpuset.0).ok()?;
        // Version 1 wants both before there can be processes.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let inherited = fs::read(parent.join(file)).ok()?;
            fs::write(cpuset.0.join(file), inherited).ok()?;
        }
        Some(cpuset)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cpuset {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Moves this process to the cpuset at a path, and lets that use one CPU only, or several.
///
/// # Errors
///
/// If the kernel refuses.
pub fn be_kept_to(cpuset: &Path, cpus: &[usize]) -> io::Result<()> {
    let cpus: Vec<_> = cpus.iter().map(usize::to_string).collect();
    fs::write(cpuset.join("cpuset.cpus"), cpus.join(","))?;
    fs::write(cpuset.join("cgroup.procs"), process::id().to_string())
}
